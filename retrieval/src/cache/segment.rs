//! The cache's files: segments of equal slots, each with a table of what its slots hold.
//!
//! A segment file `segment-NNNNNNNN.hfc`, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `HFCACHE1` |
//! | 8..24 | the cache directory's id, so that a file from elsewhere is not taken for ours |
//! | 24..32 | the segment's number |
//! | 32..36 | bytes of a slot |
//! | 36..40 | slots |
//! | 40..44 | CRC-32C of bytes 0..40 |
//! | 4,096.. | the table: one entry per slot, back to back |
//! | the next multiple of 4,096.. | the slots |
//!
//! An entry is `digest (32) | len (4) | CRC-32C of each 16 KiB group of the bytes (4 each, as many as a full
//! slot has) | CRC-32C of all before it and of segment and slot number (4)`. A free slot's entry is zeros.
//!
//! Nothing is synced and nothing needs to be: an entry whose bytes never reached the disk fails its sums and
//! is a miss. The table stands in front, so that opening reads one run of bytes per segment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc_fast::CrcAlgorithm;
use holdfast_protocol::limits::{BLOCK_LEN_MAX, GROUP_LEN};
use holdfast_protocol::{BlockLen, Digest};

/// Bytes of the head, and what tables and slots are aligned to.
const PAGE: u64 = 4096;
const MAGIC: &[u8; 8] = b"HFCACHE1";
const HEAD_LEN: usize = 44;
/// Digest, length and the entry's own sum.
const ENTRY_FIXED_LEN: usize = 32 + 4 + 4;

/// Slot sizes. Each is at most half larger than the one before, so that at most a third of a slot is empty.
pub(crate) const CLASSES: [u32; 17] = [
    4 << 10,
    8 << 10,
    12 << 10,
    16 << 10,
    24 << 10,
    32 << 10,
    48 << 10,
    64 << 10,
    96 << 10,
    128 << 10,
    192 << 10,
    256 << 10,
    384 << 10,
    512 << 10,
    640 << 10,
    768 << 10,
    BLOCK_LEN_MAX,
];

/// The class whose slots fit a block of this length.
pub(crate) fn class_of(len: BlockLen) -> usize {
    CLASSES.partition_point(|slot| *slot < len.bytes()).min(CLASSES.len() - 1)
}

/// Where everything is in a segment of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of a slot.
    pub(crate) slot_bytes: u32,
    /// Slots.
    pub(crate) slots: u32,
}

impl Shape {
    /// The shape of a segment of about `segment_bytes`.
    pub(crate) fn new(class: usize, segment_bytes: u64) -> Self {
        let slot_bytes = CLASSES[class];
        let each = u64::from(slot_bytes) + Self { slot_bytes, slots: 0 }.entry_len() as u64;
        let slots = (segment_bytes.saturating_sub(2 * PAGE) / each).max(1);
        Self { slot_bytes, slots: u32::try_from(slots).unwrap_or(u32::MAX) }
    }

    fn groups(&self) -> usize {
        self.slot_bytes.div_ceil(GROUP_LEN) as usize
    }

    fn entry_len(&self) -> usize {
        ENTRY_FIXED_LEN + 4 * self.groups()
    }

    fn table_len(&self) -> usize {
        self.entry_len() * self.slots as usize
    }

    fn slots_at(&self) -> u64 {
        (PAGE + self.table_len() as u64).next_multiple_of(PAGE)
    }

    /// Bytes of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        self.slots_at() + u64::from(self.slot_bytes) * u64::from(self.slots)
    }

    /// Where a slot's bytes begin.
    pub(crate) fn slot_at(&self, slot: u32) -> u64 {
        self.slots_at() + u64::from(self.slot_bytes) * u64::from(slot)
    }

    fn entry_at(&self, slot: u32) -> u64 {
        PAGE + self.entry_len() as u64 * u64::from(slot)
    }
}

/// What one slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Which block.
    pub(crate) digest: Digest,
    /// Its length.
    pub(crate) len: BlockLen,
    /// CRC-32C of each 16 KiB group.
    pub(crate) sums: Box<[u32]>,
}

impl Entry {
    /// The entry of a block.
    pub(crate) fn of(digest: Digest, len: BlockLen, bytes: &[u8]) -> Self {
        Self { digest, len, sums: bytes.chunks(GROUP_LEN as usize).map(crc32c).collect() }
    }

    /// Whether `bytes`, which begin at group `first`, are what was put.
    pub(crate) fn holds(&self, first: usize, bytes: &[u8]) -> bool {
        let sums = self.sums.get(first..).unwrap_or_default();
        let groups = bytes.chunks(GROUP_LEN as usize);
        groups.len() <= sums.len() && groups.zip(sums).all(|(group, sum)| crc32c(group) == *sum)
    }

    fn encode(&self, shape: &Shape, segment: u64, slot: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(shape.entry_len());
        out.extend_from_slice(self.digest.as_bytes());
        out.extend_from_slice(&self.len.bytes().to_le_bytes());
        for group in 0..shape.groups() {
            out.extend_from_slice(&self.sums.get(group).copied().unwrap_or(0).to_le_bytes());
        }
        let sum = entry_sum(&out, segment, slot);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], shape: &Shape, segment: u64, slot: u32) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if entry_sum(body, segment, slot).to_le_bytes() != sum {
            return None;
        }
        let (digest, rest) = body.split_at_checked(32)?;
        let (len, sums) = rest.split_at_checked(4)?;
        let len = BlockLen::new(u32::from_le_bytes(len.try_into().ok()?)).ok()?;
        if len.bytes() > shape.slot_bytes {
            return None;
        }
        let count = len.bytes().div_ceil(GROUP_LEN) as usize;
        let sums = sums.chunks_exact(4).take(count);
        let sums: Box<[u32]> =
            sums.map(|sum| u32::from_le_bytes(sum.try_into().unwrap_or_default())).collect();
        (sums.len() == count).then_some(Self { digest: Digest(digest.try_into().ok()?), len, sums })
    }
}

/// CRC-32C: 30 GB/s and more, so that sums cost nothing beside the copy from the page cache.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap_or(u32::MAX)
}

/// Bound to its place, so that an entry in another slot or file is none.
fn entry_sum(body: &[u8], segment: u64, slot: u32) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(body);
    digest.update(&segment.to_le_bytes());
    digest.update(&slot.to_le_bytes());
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

/// One open segment file.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Its number: part of its name, and of every entry's sum.
    pub(crate) number: u64,
    /// Its shape.
    pub(crate) shape: Shape,
    file: File,
}

impl Segment {
    /// The file's name.
    pub(crate) fn name(number: u64) -> String {
        format!("segment-{number:08x}.hfc")
    }

    /// The number in a file's name.
    pub(crate) fn number_of(name: &str) -> Option<u64> {
        u64::from_str_radix(name.strip_prefix("segment-")?.strip_suffix(".hfc")?, 16).ok()
    }

    /// Makes an empty segment of `file`, which is cut to length: what it held is gone.
    pub(crate) fn format(file: File, id: [u8; 16], number: u64, shape: Shape) -> io::Result<Self> {
        // To nothing first, so that the table reads as zeros.
        file.set_len(0)?;
        file.set_len(shape.file_len())?;
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&id);
        head.extend_from_slice(&number.to_le_bytes());
        head.extend_from_slice(&shape.slot_bytes.to_le_bytes());
        head.extend_from_slice(&shape.slots.to_le_bytes());
        head.extend_from_slice(&crc32c(&head).to_le_bytes());
        file.write_all_at(&head, 0)?;
        Ok(Self { number, shape, file })
    }

    /// Opens a segment and reads its table; `None` when the file is none of ours or damaged.
    pub(crate) fn open(
        file: File,
        id: [u8; 16],
        number: u64,
        segment_bytes: u64,
    ) -> io::Result<Option<(Self, Vec<Option<Entry>>)>> {
        let mut head = [0u8; HEAD_LEN];
        match file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let Some(shape) = read_head(&head, id, number) else { return Ok(None) };
        // A cache of another size has other segments; they are made anew.
        let class = CLASSES.iter().position(|slot| *slot == shape.slot_bytes);
        if class.is_none_or(|class| Shape::new(class, segment_bytes) != shape)
            || file.metadata()?.len() != shape.file_len()
        {
            return Ok(None);
        }
        let mut table = vec![0u8; shape.table_len()];
        file.read_exact_at(&mut table, PAGE)?;
        let entries = (0..shape.slots)
            .zip(table.chunks_exact(shape.entry_len()))
            .map(|(slot, bytes)| Entry::decode(bytes, &shape, number, slot))
            .collect();
        Ok(Some((Self { number, shape, file }, entries)))
    }

    /// Puts a block's bytes and then its entry.
    pub(crate) fn write(&self, slot: u32, entry: &Entry, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.shape.slot_at(slot))?;
        self.file.write_all_at(&entry.encode(&self.shape, self.number, slot), self.shape.entry_at(slot))
    }

    /// Makes a slot's entry that of a free slot.
    pub(crate) fn clear(&self, slot: u32) -> io::Result<()> {
        self.file.write_all_at(&vec![0; self.shape.entry_len()], self.shape.entry_at(slot))
    }

    /// Reads bytes of a slot from byte `start` of its block on. With `only_memory`, fails with `WouldBlock`
    /// when the disk would have to be asked.
    pub(crate) fn read(&self, slot: u32, start: u32, out: &mut [u8], only_memory: bool) -> io::Result<()> {
        let at = self.shape.slot_at(slot) + u64::from(start);
        if !only_memory {
            return self.file.read_exact_at(out, at);
        }
        read_from_memory(&self.file, out, at)
    }
}

/// What the page cache holds, and nothing else.
#[cfg(target_os = "linux")]
fn read_from_memory(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut done = 0;
    while done < out.len() {
        let mut rest = [io::IoSliceMut::new(&mut out[done..])];
        match preadv2(file, &mut rest, at + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            // A file system without it answers EOPNOTSUPP: the disk's thread then reads.
            Err(_) => return Err(io::ErrorKind::WouldBlock.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn read_from_memory(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

fn read_head(head: &[u8; HEAD_LEN], id: [u8; 16], number: u64) -> Option<Shape> {
    let (body, sum) = head.split_at(HEAD_LEN - 4);
    let field =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?)) };
    let ours = crc32c(body).to_le_bytes() == sum
        && body.starts_with(MAGIC)
        && body[8..24] == id
        && body[24..32] == number.to_le_bytes();
    if !ours {
        return None;
    }
    Some(Shape { slot_bytes: field(32)?, slots: field(36)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [7; 16];

    fn file(dir: &tempfile::TempDir) -> File {
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        options.open(dir.path().join("segment")).unwrap()
    }

    #[test]
    fn every_block_has_a_class_that_fits_it() {
        for len in (1..=BLOCK_LEN_MAX).step_by(999).chain([BLOCK_LEN_MAX]) {
            let class = class_of(BlockLen::new(len).unwrap());
            assert!(CLASSES[class] >= len);
            assert!(class == 0 || CLASSES[class - 1] < len);
        }
    }

    #[test]
    fn entries_are_found_again_and_only_where_they_were_put() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::new(7, 4 << 20);
        let segment = Segment::format(file(&dir), ID, 3, shape).unwrap();
        let bytes = vec![5u8; 40_000];
        let len = BlockLen::of(&bytes).unwrap();
        let entry = Entry::of(Digest::of(&bytes), len, &bytes);
        segment.write(2, &entry, &bytes).unwrap();
        let (opened, entries) = Segment::open(file(&dir), ID, 3, 4 << 20).unwrap().unwrap();
        assert_eq!(entries[2].as_ref(), Some(&entry));
        assert_eq!(entries.iter().flatten().count(), 1);
        let mut out = vec![0; 40_000];
        opened.read(2, 0, &mut out, false).unwrap();
        assert!(entry.holds(0, &out));
        out[39_999] ^= 1;
        assert!(!entry.holds(0, &out));
        assert!(entry.holds(1, &out[16_384..32_768]));
        for (id, number) in [([8; 16], 3), (ID, 4)] {
            assert!(Segment::open(file(&dir), id, number, 4 << 20).unwrap().is_none());
        }
        assert!(Segment::open(file(&dir), ID, 3, 8 << 20).unwrap().is_none(), "another size of cache");
        opened.clear(2).unwrap();
        let (_, entries) = Segment::open(file(&dir), ID, 3, 4 << 20).unwrap().unwrap();
        assert!(entries.iter().all(Option::is_none));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_table_loses_one_entry_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::new(0, 1 << 20);
        let segment = Segment::format(file(&dir), ID, 0, shape).unwrap();
        for slot in 0..4u32 {
            let bytes = slot.to_le_bytes().repeat(25);
            let entry = Entry::of(Digest::of(&bytes), BlockLen::of(&bytes).unwrap(), &bytes);
            segment.write(slot, &entry, &bytes).unwrap();
        }
        for byte in 0..shape.entry_len() as u64 {
            let at = shape.entry_at(1) + byte;
            let mut one = [0];
            segment.file.read_exact_at(&mut one, at).unwrap();
            segment.file.write_all_at(&[one[0] ^ 0x40], at).unwrap();
            let (_, entries) = Segment::open(file(&dir), ID, 0, 1 << 20).unwrap().unwrap();
            assert_eq!(entries.iter().flatten().count(), 3, "byte {byte}");
            segment.file.write_all_at(&one, at).unwrap();
        }
    }
}
