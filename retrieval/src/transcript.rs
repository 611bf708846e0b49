//! Transcripts of training runs: a signed chain of what a reader was served, and its check.
//!
//! A [`Recorder`] stands beside a fetcher and appends to a file: frames of `u32 little-endian length | DAG-CBOR of
//! a signed [`ReadTranscript`]`. Each record names the one before, so what is missing, moved or changed is
//! found. A digest is 32 bytes and a read 3 to 10, so a transcript stays under 1 % of the bytes while blocks or
//! repeated reads average 8 KiB and more; neighbouring reads of one block are written as one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::cbor;
use holdfast_protocol::limits::TEXT_LEN_MAX;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::transcript::{
    TRANSCRIPT_BLOCKS_MAX, TRANSCRIPT_NODES_MAX, TRANSCRIPT_READS_MAX,
};
use holdfast_protocol::record::{
    ReadTranscript, Record, RunId, SignatureError, Signed, TranscriptRead, TranscriptSource, Unverified,
};
use holdfast_protocol::time::{Clock, UnixMs};
use holdfast_protocol::{BlockLen, Digest, NodeId, PublicKey, SigningKey};
use parking_lot::Mutex;
use serde_bytes::ByteBuf;

use crate::block::BlockRef;
use crate::fetch::{ReadObserver, ServedBy};

/// The longest frame: a full record takes 4,096 blocks of 43 bytes, as many nodes of 34, and its reads.
const FRAME_LEN_MAX: usize = 1 << 20;
/// Reads that may still be extended by their neighbours: as many as readers are usually side by side.
const PENDING_MAX: usize = 32;
/// Records that one file may have: 16 TiB of whole blocks.
const RECORDS_MAX: u64 = 1 << 20;

/// Why a transcript cannot be written or does not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranscriptError {
    /// The file.
    #[error("the transcript {path} cannot be read or written", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Random bytes.
    #[error("the system's random source failed")]
    Random,
    /// The run's name is too long for a record.
    #[error("a run's label has at most {TEXT_LEN_MAX} bytes")]
    Label,
    /// A record of it cannot be read or its signature does not hold.
    #[error("record {seq} of the transcript does not hold")]
    Record {
        /// Which.
        seq: u64,
        /// Why.
        source: SignatureError,
    },
    /// A frame is longer than any record, or is no record.
    #[error("record {seq} of the transcript is no record")]
    Frame {
        /// Which.
        seq: u64,
    },
    /// A record is missing, was moved, or is of another run or signer.
    #[error("record {seq} of the transcript does not follow the one before it")]
    Chain {
        /// Which.
        seq: u64,
    },
    /// Something follows the end of the run.
    #[error("the transcript goes on after its end")]
    Trailing,
}

impl TranscriptError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Random)
    }
}

/// Writes down what a reader is served. Shared as an `Arc` with the fetcher beside which it stands.
///
/// Recording a read costs a look-up in memory; once in 16,384 reads a record is signed and written.
pub struct Recorder {
    path: PathBuf,
    key: Arc<SigningKey>,
    clock: Arc<dyn Clock>,
    state: Mutex<Writing>,
}

struct Writing {
    file: File,
    chain: Chain,
    open: Open,
    /// The newest reads, the oldest first, which a next one may extend: readers side by side take turns.
    pending: VecDeque<(BlockRef, ByteRange, ServedBy)>,
    summary: Summary,
    /// The first failure to write; nothing is written after it.
    failed: Option<io::Error>,
    finished: bool,
}

struct Chain {
    run: RunId,
    label: String,
    seq: u64,
    previous: [u8; 32],
}

/// The record being filled.
#[derive(Default)]
struct Open {
    from_ms: UnixMs,
    to_ms: UnixMs,
    block_index: HashMap<Digest, u32>,
    blocks: Vec<(Digest, BlockLen)>,
    node_index: HashMap<NodeId, u32>,
    nodes: Vec<NodeId>,
    reads: u32,
    bytes: u64,
    packed: Vec<u8>,
}

/// A transcript in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Signed records.
    pub records: u64,
    /// Reads, neighbouring ones counted as one.
    pub reads: u64,
    /// Bytes of all reads.
    pub bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Recorder {
    /// Starts the transcript of a run in a new file.
    pub fn create(
        path: &Path,
        label: &str,
        key: Arc<SigningKey>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, TranscriptError> {
        if label.len() > TEXT_LEN_MAX {
            return Err(TranscriptError::Label);
        }
        let failed = |source| TranscriptError::File { path: path.to_path_buf(), source };
        let file = File::options().create_new(true).write(true).open(path).map_err(failed)?;
        let run = RunId::random().map_err(|_| TranscriptError::Random)?;
        let chain = Chain { run, label: label.to_owned(), seq: 0, previous: [0; 32] };
        let state = Writing {
            file,
            chain,
            open: Open::default(),
            pending: VecDeque::with_capacity(PENDING_MAX),
            summary: Summary::default(),
            failed: None,
            finished: false,
        };
        Ok(Arc::new(Self { path: path.to_path_buf(), key, clock, state: Mutex::new(state) }))
    }

    /// Ends the run: the last record is signed, written and synced. Reads after this are not recorded.
    pub fn finish(&self) -> Result<Summary, TranscriptError> {
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        if !state.finished {
            while state.settle(now_ms) {
                if state.open.is_full() {
                    state.cut(&self.key, false);
                }
            }
            state.cut(&self.key, true);
            state.finished = true;
            if state.failed.is_none()
                && let Err(error) = state.file.sync_all()
            {
                state.failed = Some(error);
            }
        }
        match state.failed.take() {
            Some(source) => Err(TranscriptError::File { path: self.path.clone(), source }),
            None => Ok(state.summary),
        }
    }
}

impl ReadObserver for Recorder {
    fn served(&self, block: BlockRef, range: ByteRange, by: ServedBy) {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        if state.finished || state.failed.is_some() {
            return;
        }
        let extended =
            state.pending.iter_mut().rev().find(|(pending, read, source)| {
                *pending == block && *source == by && read.end() == range.start
            });
        if let Some((_, read, _)) = extended {
            read.len += range.len;
            return;
        }
        if state.pending.len() >= PENDING_MAX {
            state.settle(now_ms);
        }
        state.pending.push_back((block, range, by));
        if state.open.is_full() {
            state.cut(&self.key, false);
        }
    }
}

impl Writing {
    /// Enters the oldest pending read into the open record; false when none is pending.
    fn settle(&mut self, now_ms: UnixMs) -> bool {
        let Some((block, range, by)) = self.pending.pop_front() else { return false };
        self.open.enter(block, range, by, now_ms);
        true
    }

    /// Signs and writes the open record.
    fn cut(&mut self, key: &SigningKey, last: bool) {
        let open = std::mem::take(&mut self.open);
        let Chain { run, label, seq, previous } = &mut self.chain;
        self.summary.reads += u64::from(open.reads);
        self.summary.bytes += open.bytes;
        let record = ReadTranscript {
            v: ReadTranscript::VERSION,
            run: *run,
            label: label.clone(),
            seq: *seq,
            previous: *previous,
            from_ms: open.from_ms,
            to_ms: open.to_ms,
            blocks: open.blocks,
            nodes: open.nodes,
            reads: open.reads,
            bytes: open.bytes,
            packed: ByteBuf::from(open.packed),
            last,
        };
        let signed = Signed::sign(record, key);
        (*seq, *previous) = (*seq + 1, signed.id());
        let body = cbor::encode(&signed.to_wire());
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(&body);
        self.summary.records += 1;
        self.summary.file_bytes += frame.len() as u64;
        if self.failed.is_none()
            && let Err(error) = self.file.write_all(&frame)
        {
            self.failed = Some(error);
        }
    }
}

impl Open {
    fn is_full(&self) -> bool {
        self.reads as usize >= TRANSCRIPT_READS_MAX
            || self.blocks.len() >= TRANSCRIPT_BLOCKS_MAX
            || self.nodes.len() >= TRANSCRIPT_NODES_MAX
    }

    fn enter(&mut self, block: BlockRef, range: ByteRange, by: ServedBy, now_ms: UnixMs) {
        if self.reads == 0 {
            self.from_ms = now_ms;
        }
        self.to_ms = now_ms;
        let next = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let index = *self.block_index.entry(block.digest).or_insert(next);
        if index == next {
            self.blocks.push((block.digest, block.len));
        }
        let by = match by {
            ServedBy::Cache => TranscriptSource::Cache,
            ServedBy::Rebuilt => TranscriptSource::Rebuilt,
            ServedBy::Gateway => TranscriptSource::Gateway,
            ServedBy::Node(node) => {
                let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
                let index = *self.node_index.entry(node).or_insert(next);
                if index == next {
                    self.nodes.push(node);
                }
                TranscriptSource::Node(index)
            }
        };
        let read = TranscriptRead { block: index, start: range.start, len: range.len, by };
        read.pack(block.len, &mut self.packed);
        self.reads += 1;
        self.bytes += u64::from(range.len);
    }
}

/// A transcript whose chain and signatures hold.
#[derive(Clone, Debug)]
pub struct VerifiedTranscript {
    /// Which run.
    pub run: RunId,
    /// What it calls itself.
    pub label: String,
    /// Who signed all of it.
    pub signer: PublicKey,
    /// When its first and last reads were.
    pub from_ms: UnixMs,
    /// The last.
    pub to_ms: UnixMs,
    /// Whether it has its end; without it the run goes on, was cut off, or the file was.
    pub is_complete: bool,
    /// In numbers.
    pub summary: Summary,
    /// The blocks served.
    pub blocks: HashSet<Digest>,
    /// The nodes that served some.
    pub nodes: HashSet<NodeId>,
}

/// Checks the transcript in a file: every signature, the chain from its first record on, and that reads lie
/// within their blocks. `each` is told of every read in order.
pub fn verify_transcript(
    path: &Path,
    mut each: impl FnMut(BlockRef, ByteRange, ServedBy),
) -> Result<VerifiedTranscript, TranscriptError> {
    let failed = |source| TranscriptError::File { path: path.to_path_buf(), source };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut found: Option<VerifiedTranscript> = None;
    let (mut seq, mut previous) = (0u64, [0u8; 32]);
    loop {
        let body = match next_frame(&mut file) {
            Ok(Some(body)) => body,
            Ok(None) => break,
            Err(FrameFault::Io(source)) => return Err(failed(source)),
            Err(FrameFault::Length) => return Err(TranscriptError::Frame { seq }),
        };
        if found.as_ref().is_some_and(|found| found.is_complete) {
            return Err(TranscriptError::Trailing);
        }
        let wire: Unverified<ReadTranscript> =
            cbor::decode(&body).map_err(|_| TranscriptError::Frame { seq })?;
        let signed = wire.verify().map_err(|source| TranscriptError::Record { seq, source })?;
        let record = signed.record();
        let follows = record.seq == seq
            && record.previous == previous
            && found.as_ref().is_none_or(|found| found.run == record.run && found.signer == signed.signer());
        if !follows || seq >= RECORDS_MAX {
            return Err(TranscriptError::Chain { seq });
        }
        let all = found.get_or_insert_with(|| start_of(record, signed.signer()));
        add(all, record, seq, body.len(), &mut each)?;
        (seq, previous) = (seq + 1, signed.id());
    }
    found.ok_or(TranscriptError::Frame { seq: 0 })
}

fn start_of(record: &ReadTranscript, signer: PublicKey) -> VerifiedTranscript {
    VerifiedTranscript {
        run: record.run,
        label: record.label.clone(),
        signer,
        from_ms: record.from_ms,
        to_ms: record.to_ms,
        is_complete: false,
        summary: Summary::default(),
        blocks: HashSet::new(),
        nodes: HashSet::new(),
    }
}

fn add(
    all: &mut VerifiedTranscript,
    record: &ReadTranscript,
    seq: u64,
    len: usize,
    each: &mut impl FnMut(BlockRef, ByteRange, ServedBy),
) -> Result<(), TranscriptError> {
    let reads = record.unpack().map_err(|_| TranscriptError::Frame { seq })?;
    for read in &reads {
        let Some(&(digest, len)) = record.blocks.get(read.block as usize) else { continue };
        let by = match read.by {
            TranscriptSource::Cache => ServedBy::Cache,
            TranscriptSource::Rebuilt => ServedBy::Rebuilt,
            TranscriptSource::Gateway => ServedBy::Gateway,
            TranscriptSource::Node(index) => match record.nodes.get(index as usize) {
                Some(node) => ServedBy::Node(*node),
                None => continue,
            },
        };
        each(BlockRef { digest, len }, ByteRange { start: read.start, len: read.len }, by);
    }
    all.blocks.extend(record.blocks.iter().map(|(digest, _)| *digest));
    all.nodes.extend(record.nodes.iter().copied());
    if record.reads > 0 {
        all.to_ms = record.to_ms;
    }
    all.is_complete = record.last;
    all.summary.records += 1;
    all.summary.reads += u64::from(record.reads);
    all.summary.bytes += record.bytes;
    all.summary.file_bytes += 4 + len as u64;
    Ok(())
}

enum FrameFault {
    Io(io::Error),
    Length,
}

/// The next frame; `None` at the end of the file, and also where a crash has cut the last frame short.
fn next_frame(file: &mut impl Read) -> Result<Option<Vec<u8>>, FrameFault> {
    let mut prefix = [0u8; 4];
    match file.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(FrameFault::Io)?,
    }
    let len = u32::from_le_bytes(prefix) as usize;
    if len > FRAME_LEN_MAX {
        return Err(FrameFault::Length);
    }
    let mut body = vec![0; len];
    match file.read_exact(&mut body) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| Some(body)).map_err(FrameFault::Io),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestClock, key};

    fn block(number: u64) -> BlockRef {
        BlockRef { digest: Digest::of(&number.to_le_bytes()), len: BlockLen::MAX }
    }

    fn recorder(path: &Path) -> Arc<Recorder> {
        Recorder::create(path, "a run", Arc::new(key(9)), Arc::new(TestClock::default())).unwrap()
    }

    fn range(start: u32, len: u32) -> ByteRange {
        ByteRange { start, len }
    }

    /// A run of `count` random reads of 64 KiB over 5,000 blocks.
    fn run(path: &Path, count: u64) -> (Summary, Vec<(BlockRef, ByteRange, ServedBy)>) {
        let recorder = recorder(path);
        let mut reads = Vec::new();
        for turn in 0..count {
            let number = turn * 7919 % 5000;
            let start = u32::try_from(turn * 31 % 15).unwrap() * 65_536;
            let by = match turn % 5 {
                0 => ServedBy::Cache,
                1 => ServedBy::Rebuilt,
                2 => ServedBy::Gateway,
                node => ServedBy::Node(NodeId(key(node).public())),
            };
            let read = (block(number), range(start, 65_536), by);
            recorder.served(read.0, read.1, read.2);
            reads.push(read);
        }
        (recorder.finish().unwrap(), reads)
    }

    #[test]
    fn a_long_run_is_told_in_order_within_a_hundredth_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let (summary, reads) = run(&path, 40_000);
        let mut seen = Vec::new();
        let verified = verify_transcript(&path, |block, range, by| seen.push((block, range, by))).unwrap();
        assert_eq!(seen, reads);
        assert_eq!(verified.summary, summary);
        assert!(verified.is_complete && verified.signer == key(9).public());
        assert_eq!(
            (verified.blocks.len(), verified.nodes.len(), verified.label.as_str()),
            (5000, 2, "a run")
        );
        assert!(summary.records > 5);
        assert_eq!(summary.file_bytes, std::fs::metadata(&path).unwrap().len());
        assert!(summary.file_bytes * 100 < summary.bytes, "{summary:?}");
    }

    #[test]
    fn neighbouring_reads_of_a_block_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let recorder = recorder(&path);
        for at in 0..8 {
            recorder.served(block(1), range(at * 131_072, 131_072), ServedBy::Cache);
        }
        let summary = recorder.finish().unwrap();
        assert_eq!((summary.reads, summary.bytes), (1, 1 << 20));
        assert_eq!(recorder.finish().unwrap(), summary, "ending twice changes nothing");
        assert!(Recorder::create(&path, "", Arc::new(key(9)), Arc::new(TestClock::default())).is_err());
    }

    #[test]
    fn what_is_changed_left_out_or_added_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        run(&path, 40_000);
        let good = std::fs::read(&path).unwrap();
        let mut frames = Vec::new();
        let mut rest = &good[..];
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (body, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            frames.push([&len[..], body].concat());
            rest = tail;
        }
        let check = |frames: &[Vec<u8>]| {
            std::fs::write(&path, frames.concat()).unwrap();
            verify_transcript(&path, |_, _, _| {})
        };
        let mut swapped = frames.clone();
        swapped.swap(1, 2);
        assert!(matches!(check(&swapped), Err(TranscriptError::Chain { seq: 1 })));
        let mut without = frames.clone();
        without.remove(1);
        assert!(matches!(check(&without), Err(TranscriptError::Chain { seq: 1 })));
        let mut twice = frames.clone();
        twice.push(frames[frames.len() - 1].clone());
        assert!(check(&twice).is_err());
        for at in [50, 300, frames[0].len() - 1] {
            let mut changed = frames.clone();
            changed[0][at] ^= 1;
            assert!(check(&changed).is_err(), "byte {at}");
        }
        let open = check(&frames[..frames.len() - 1]).unwrap();
        assert!(!open.is_complete, "a run without its end says so");
        let mut torn = frames.clone();
        let last = torn.len() - 1;
        torn[last].truncate(20);
        assert!(!check(&torn).unwrap().is_complete);
    }
}
