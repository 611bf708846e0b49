//! Read transcript: what a reader was served, in order, under its own signature.
//!
//! A run's transcript is a chain of records, each naming the one before by its hash, so that none can be left
//! out or moved in silence. It says what the *reader* saw; it is no node's word.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Record, random_id, text_within, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NodeId;

random_id! {
    /// Names a run.
    RunId
}

/// Blocks that one record may name.
pub const TRANSCRIPT_BLOCKS_MAX: usize = 4096;
/// Nodes that one record may name.
pub const TRANSCRIPT_NODES_MAX: usize = 4096;
/// Reads that one record may list.
pub const TRANSCRIPT_READS_MAX: usize = 16_384;
/// Bytes of one packed read at most: four varints, of which three are small.
const READ_LEN_MAX: usize = 24;

/// One link of a run's transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadTranscript {
    /// Version.
    pub v: u16,
    /// Which run.
    pub run: RunId,
    /// What the run calls itself.
    pub label: String,
    /// Counts the records of the run from 0.
    pub seq: u64,
    /// BLAKE3 of the record before; zeros for the first.
    #[serde(with = "serde_bytes")]
    pub previous: [u8; 32],
    /// The reader's clock when the first read was served.
    pub from_ms: u64,
    /// The same for the last read.
    pub to_ms: u64,
    /// Blocks that the reads name by their index here.
    pub blocks: Vec<(Digest, BlockLen)>,
    /// Nodes that the reads name by their index here.
    pub nodes: Vec<NodeId>,
    /// How many reads.
    pub reads: u32,
    /// Bytes of all reads.
    pub bytes: u64,
    /// The reads, packed: see [`TranscriptRead`].
    pub packed: ByteBuf,
    /// Whether the run ends here.
    pub last: bool,
}

/// Who served a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TranscriptSource {
    /// The reader's own cache.
    Cache,
    /// Other shards of the block's stripe.
    Rebuilt,
    /// A gateway.
    Gateway,
    /// The node of this index.
    Node(u32),
}

/// One read of a transcript.
///
/// Packed as LEB128 varints: `block index * 2 + partial`, then `source` (0 cache, 1 rebuilt, 2 gateway,
/// 3 + index of a node), then, only when partial, `start` and `len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranscriptRead {
    /// Index of the block.
    pub block: u32,
    /// First byte within the block.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
    /// Who served it.
    pub by: TranscriptSource,
}

impl TranscriptRead {
    /// Appends the packed form; `block_len` is the length of the block that the read names.
    pub fn pack(&self, block_len: BlockLen, out: &mut Vec<u8>) {
        let partial = self.start != 0 || self.len != block_len.bytes();
        varint(u64::from(self.block) * 2 + u64::from(partial), out);
        let source = match self.by {
            TranscriptSource::Cache => 0,
            TranscriptSource::Rebuilt => 1,
            TranscriptSource::Gateway => 2,
            TranscriptSource::Node(index) => 3 + u64::from(index),
        };
        varint(source, out);
        if partial {
            varint(u64::from(self.start), out);
            varint(u64::from(self.len), out);
        }
    }

    fn unpack(from: &mut &[u8], blocks: &[(Digest, BlockLen)], nodes: usize) -> Option<Self> {
        let head = read_varint(from)?;
        let (block, partial) = (u32::try_from(head / 2).ok()?, head % 2 == 1);
        let len = blocks.get(block as usize)?.1.bytes();
        let by = match read_varint(from)? {
            0 => TranscriptSource::Cache,
            1 => TranscriptSource::Rebuilt,
            2 => TranscriptSource::Gateway,
            other => TranscriptSource::Node(u32::try_from(other - 3).ok()?),
        };
        if matches!(by, TranscriptSource::Node(index) if index as usize >= nodes) {
            return None;
        }
        let (start, read) = if partial {
            (u32::try_from(read_varint(from)?).ok()?, u32::try_from(read_varint(from)?).ok()?)
        } else {
            (0, len)
        };
        // One read has one packed form.
        let fits = read > 0 && start.checked_add(read)? <= len && partial == (start != 0 || read != len);
        fits.then_some(Self { block, start, len: read, by })
    }
}

impl ReadTranscript {
    /// The reads in order, if what is packed is what the record says.
    pub fn unpack(&self) -> Result<Vec<TranscriptRead>, DecodeError> {
        let damaged = DecodeError::OutOfBounds { field: "packed" };
        let mut from = &self.packed[..];
        let mut reads = Vec::with_capacity((self.reads as usize).min(TRANSCRIPT_READS_MAX));
        while !from.is_empty() {
            let read = TranscriptRead::unpack(&mut from, &self.blocks, self.nodes.len());
            reads.push(read.ok_or(DecodeError::OutOfBounds { field: "packed" })?);
            if reads.len() > TRANSCRIPT_READS_MAX {
                return Err(damaged);
            }
        }
        let bytes: u64 = reads.iter().map(|read| u64::from(read.len)).sum();
        if reads.len() == self.reads as usize && bytes == self.bytes { Ok(reads) } else { Err(damaged) }
    }
}

impl Record for ReadTranscript {
    const NAME: &'static str = "read transcript";
    const DOMAIN: &'static str = "holdfast read transcript v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        text_within(&self.label, "label")?;
        within(self.blocks.len() <= TRANSCRIPT_BLOCKS_MAX, "blocks")?;
        within(self.nodes.len() <= TRANSCRIPT_NODES_MAX, "nodes")?;
        within(self.reads as usize <= TRANSCRIPT_READS_MAX, "reads")?;
        within(self.packed.len() <= self.reads as usize * READ_LEN_MAX, "packed")?;
        within((self.seq == 0) == (self.previous == [0; 32]), "previous")?;
        self.unpack().map(drop)
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Refuses forms longer than needed, so that a record has one encoding.
fn read_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript() -> ReadTranscript {
        let (whole, small) = (BlockLen::MAX, BlockLen::new(1000).unwrap_or(BlockLen::MAX));
        let reads = [
            TranscriptRead { block: 0, start: 0, len: whole.bytes(), by: TranscriptSource::Node(1) },
            TranscriptRead { block: 1, start: 3, len: 900, by: TranscriptSource::Rebuilt },
            TranscriptRead { block: 0, start: 0, len: 65_536, by: TranscriptSource::Cache },
            TranscriptRead { block: 1, start: 0, len: 1000, by: TranscriptSource::Gateway },
        ];
        let blocks = vec![(Digest([1; 32]), whole), (Digest([2; 32]), small)];
        let mut packed = Vec::new();
        for read in &reads {
            read.pack(blocks[read.block as usize].1, &mut packed);
        }
        ReadTranscript {
            v: 1,
            run: RunId([7; 16]),
            label: "epoch 1".into(),
            seq: 0,
            previous: [0; 32],
            from_ms: 1,
            to_ms: 2,
            blocks,
            nodes: vec![NodeId(crate::PublicKey([3; 32])); 2],
            reads: 4,
            bytes: reads.iter().map(|read| u64::from(read.len)).sum(),
            packed: ByteBuf::from(packed),
            last: true,
        }
    }

    #[test]
    fn reads_come_back_as_they_were_packed() {
        let record = transcript();
        let again = ReadTranscript::decode(&record.encode());
        assert_eq!(again.as_ref().ok(), Some(&record));
        let reads = record.unpack().unwrap_or_default();
        assert_eq!((reads.len(), reads[1].start, reads[0].by), (4, 3, TranscriptSource::Node(1)));
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let change = |change: fn(&mut ReadTranscript)| {
            let mut record = transcript();
            change(&mut record);
            ReadTranscript::decode(&record.encode()).is_err()
        };
        assert!(change(|record| record.bytes += 1));
        assert!(change(|record| record.reads -= 1));
        assert!(change(|record| record.blocks.truncate(1)));
        assert!(change(|record| record.nodes.clear()));
        assert!(change(|record| record.packed.push(0x80)));
        assert!(change(|record| record.previous = [1; 32]));
        assert!(change(|record| record.packed = ByteBuf::from(vec![0xff; 40])));
        assert!(!change(|record| record.last = false));
    }

    #[test]
    fn every_flipped_bit_of_the_packed_reads_is_refused_or_says_something_else() {
        let record = transcript();
        for byte in 0..record.packed.len() {
            for bit in 0..8 {
                let mut other = record.clone();
                other.packed[byte] ^= 1 << bit;
                if let Ok(reads) = other.unpack() {
                    assert_ne!(reads, record.unpack().unwrap_or_default());
                }
            }
        }
    }
}
