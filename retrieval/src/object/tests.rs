//! The reader over a source in memory that counts, delays and fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

struct Source {
    bytes: Bytes,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    failing: AtomicBool,
}

impl Source {
    fn new(len: usize) -> Arc<Self> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new_derive_key("holdfast object test noise").finalize_xof().fill(&mut bytes);
        Arc::new(Self {
            bytes: Bytes::from(bytes),
            reads: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        })
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        self.bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }
}

#[async_trait]
impl ObjectSource for Source {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, ObjectError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(range.end - range.start, Ordering::Relaxed);
        tokio::task::yield_now().await;
        if self.failing.load(Ordering::Relaxed) {
            return Err(ObjectError::Cipher);
        }
        Ok(self.slice(range))
    }
}

const MIB: usize = 1 << 20;

fn reader(source: &Arc<Source>, budget: usize) -> ObjectReader {
    ObjectReader::new(Arc::clone(source) as _, AheadBudget::new(budget), AheadConfig::default())
}

#[tokio::test]
async fn a_sequential_reader_causes_one_fetch_per_block_and_none_twice() {
    let source = Source::new(20 * MIB + 777);
    let reader = reader(&source, 64 * MIB);
    let mut at = 0;
    loop {
        let bytes = reader.read(at, 128 * 1024).await.unwrap();
        if bytes.is_empty() {
            break;
        }
        assert_eq!(bytes, source.slice(at..at + bytes.len() as u64));
        at += bytes.len() as u64;
        assert!(reader.ahead_bytes() <= 20 << 20);
    }
    assert_eq!(at, source.size());
    assert_eq!(source.reads.load(Ordering::Relaxed), 21);
    assert_eq!(source.bytes_read.load(Ordering::Relaxed), source.size());
}

#[tokio::test]
async fn a_random_reader_causes_exactly_what_it_reads() {
    let source = Source::new(64 * MIB);
    let reader = reader(&source, 64 * MIB);
    let mut at = 77u64;
    let mut asked = 0;
    for _ in 0..60 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let start = 4096 + (at >> 33) % (60 << 20);
        asked += 4096;
        assert_eq!(reader.read(start, 4096).await.unwrap(), source.slice(start..start + 4096));
    }
    // A few may fall side by side and look sequential for a moment.
    let read = source.bytes_read.load(Ordering::Relaxed);
    assert!(read < asked + (16 << 20), "{read}");
}

#[tokio::test]
async fn a_strided_reader_finds_its_next_jumps_there() {
    let source = Source::new(64 * MIB);
    let reader = reader(&source, 64 * MIB);
    for step in 1..60u64 {
        let start = step << 20;
        assert_eq!(reader.read(start, 5000).await.unwrap(), source.slice(start..start + 5000));
    }
    let read = source.bytes_read.load(Ordering::Relaxed);
    assert!(read <= 75 * 5000, "nothing but the jumps is read: {read}");
    assert!(reader.ahead_bytes() <= 10 * 5000);
}

#[tokio::test]
async fn an_exhausted_budget_slows_readers_down_and_stops_none() {
    let source = Source::new(8 * MIB);
    let budget = AheadBudget::new(3 * MIB);
    let readers: Vec<_> = (0..8)
        .map(|_| ObjectReader::new(Arc::clone(&source) as _, budget.clone(), AheadConfig::default()))
        .collect();
    for step in 0..64u64 {
        for reader in &readers {
            let at = step * 128 * 1024;
            let bytes = reader.read(at, 128 * 1024).await.unwrap();
            assert_eq!(bytes, source.slice(at..at + 128 * 1024));
        }
    }
    drop(readers);
    tokio::task::yield_now().await;
    assert_eq!(budget.free_bytes(), 3 * MIB, "everything is given back");
}

#[tokio::test]
async fn what_failed_ahead_of_a_read_is_tried_again_by_the_read() {
    let source = Source::new(4 * MIB);
    let reader = reader(&source, 64 * MIB);
    source.failing.store(true, Ordering::Relaxed);
    assert!(matches!(reader.read(0, 100).await, Err(ObjectError::Cipher)));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    source.failing.store(false, Ordering::Relaxed);
    for at in (0..4u64).map(|at| at << 20) {
        assert_eq!(reader.read(at, 100).await.unwrap(), source.slice(at..at + 100));
    }
}

#[tokio::test]
async fn many_reads_at_once_of_one_reader_are_all_right() {
    let source = Source::new(16 * MIB);
    let reader = reader(&source, 8 * MIB);
    let reads = (0..128u64).map(|at| {
        let start = (at ^ 3) * 128 * 1024;
        let (reader, source) = (&reader, &source);
        async move {
            assert!(reader.read(start, 128 * 1024).await.unwrap() == source.slice(start..start + 128 * 1024));
        }
    });
    futures::future::join_all(reads).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is read in whatever order, with whatever budget, the bytes are the object's.
    #[test]
    fn any_reads_give_the_objects_bytes(
        reads in prop::collection::vec((0u64..6 << 20, 0usize..2_000_000, any::<bool>()), 1..40),
        budget in 0usize..8 << 20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let source = Source::new(5 * MIB + 12_345);
            let reader = reader(&source, budget);
            let mut next = 0;
            for (start, len, go_on) in reads {
                let start = if go_on { next } else { start };
                let bytes = reader.read(start, len).await.unwrap();
                let end = (start + len as u64).min(source.size());
                let expected = if start < end { source.slice(start..end) } else { Bytes::new() };
                assert!(bytes == expected);
                next = end;
            }
        });
    }
}
