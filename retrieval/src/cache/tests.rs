//! The cache against a real directory: a model, crashes, flipped bits, two owners, whole epochs.

use std::collections::HashMap;
use std::path::Path;

use holdfast_protocol::BlockLen;
use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

fn block(salt: u64, len: usize) -> Block {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new_derive_key("holdfast cache test noise");
    hasher.update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Block::new(Bytes::from(bytes)).unwrap()
}

fn on_disk(dir: &Path, bytes: u64) -> CacheConfig {
    let disk = Some(DiskConfig { dir: dir.to_path_buf(), bytes });
    CacheConfig { memory_bytes: 0, admission: Admission::All, disk }
}

fn whole(block: &Block) -> ByteRange {
    ByteRange { start: 0, len: block.len().bytes() }
}

async fn get(cache: &BlockCache, block: &Block) -> Option<Bytes> {
    cache.get(&block.to_ref(), whole(block)).await
}

fn files_len(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn blocks_outlive_the_process_and_any_range_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let lens = [1, 100, 4096, 4097, 16_384, 16_385, 100_000, 700_000, MIB - 1, MIB];
    let blocks: Vec<Block> = (0u64..).zip(lens).map(|(salt, len)| block(salt, len)).collect();
    let cache = BlockCache::open(on_disk(dir.path(), 64 << 20)).await.unwrap();
    blocks.iter().for_each(|block| cache.put(block));
    cache.flush().await;
    drop(cache);
    let cache = BlockCache::open(on_disk(dir.path(), 64 << 20)).await.unwrap();
    for block in &blocks {
        assert_eq!(get(&cache, block).await.as_ref(), Some(block.bytes()), "{block:?}");
        let len = block.len().bytes();
        for (start, len) in [(0, 1), (len / 2, len - len / 2), (len - 1, 1), (len / 3, len / 3)] {
            if len == 0 {
                continue;
            }
            let expected = block.bytes().slice(start as usize..(start + len) as usize);
            assert_eq!(cache.get(&block.to_ref(), ByteRange { start, len }).await, Some(expected));
        }
        assert_eq!(cache.get(&block.to_ref(), ByteRange { start: 0, len: len + 1 }).await, None);
    }
    assert_eq!(cache.counts().damaged, 0);
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    let second = BlockCache::open(on_disk(dir.path(), 32 << 20)).await;
    assert!(matches!(second, Err(CacheError::InUse { .. })), "{second:?}");
    drop(first);
    BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    let small = BlockCache::open(on_disk(dir.path(), 1 << 20)).await;
    assert!(matches!(small, Err(CacheError::TooSmall { .. })));
}

#[tokio::test]
async fn the_files_stay_within_their_size_whatever_lengths_come() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = 40u64 << 20;
    let cache = BlockCache::open(on_disk(dir.path(), bytes)).await.unwrap();
    let slack = 64 * 1024; // lock, id and directory
    for salt in 0..400u64 {
        let len = [3_000, 50_000, 300_000, MIB, 100_000][usize::try_from(salt / 40 % 5).unwrap()];
        let block = block(salt, len);
        cache.put(&block);
        cache.flush().await;
        assert_eq!(get(&cache, &block).await.as_ref(), Some(block.bytes()), "the newest is always there");
        assert!(files_len(dir.path()) <= bytes + slack, "{} after {salt}", files_len(dir.path()));
    }
    drop(cache);
    // A smaller cache takes what fits of the directory, or begins anew; it never stays larger.
    let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    assert!(files_len(dir.path()) <= (32 << 20) + slack);
    cache.put(&block(1_000, MIB));
    cache.flush().await;
    assert!(get(&cache, &block(1_000, MIB)).await.is_some());
}

/// Flips one bit of every segment at `at` (counted from the end of the file).
fn flip(dir: &Path, from_end: u64) {
    use std::os::unix::fs::FileExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "hfc") {
            let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
            let at = file.metadata().unwrap().len() - from_end;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
}

#[tokio::test]
async fn a_bit_that_the_disk_flips_is_a_miss_and_never_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    // As many as one segment has slots, so that the last slot of the file is in use.
    let blocks: Vec<Block> = (0..3).map(|salt| block(salt, MIB)).collect();
    blocks.iter().for_each(|block| cache.put(block));
    cache.flush().await;
    flip(dir.path(), 10);
    let mut missed = Vec::new();
    for block in &blocks {
        let head = cache.get(&block.to_ref(), ByteRange { start: 0, len: 1000 }).await;
        assert_eq!(head, Some(block.bytes().slice(..1000)), "the other groups are unharmed");
        match get(&cache, block).await {
            Some(bytes) => assert_eq!(bytes, *block.bytes()),
            None => missed.push(block),
        }
    }
    assert_eq!((missed.len(), cache.counts().damaged), (1, 1));
    assert_eq!(get(&cache, missed[0]).await, None, "it is gone");
    cache.put(missed[0]);
    cache.flush().await;
    assert_eq!(get(&cache, missed[0]).await.as_ref(), Some(missed[0].bytes()), "and can come again");
}

#[tokio::test]
async fn whatever_a_crash_leaves_of_the_files_opens_and_serves_no_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<Block> =
        (0..9u64).map(|salt| block(salt, 200_000 + usize::try_from(salt).unwrap())).collect();
    for cut in [1u64, 10, 4_096, 100_000, 300_000, 2_000_000] {
        let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
        blocks.iter().for_each(|block| cache.put(block));
        cache.flush().await;
        drop(cache);
        // Pages that never reached the disk read as zeros; files may also be cut short.
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "hfc") {
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                let len = file.metadata().unwrap().len();
                file.set_len(len.saturating_sub(cut)).unwrap();
                if cut.is_multiple_of(2) {
                    file.set_len(len).unwrap();
                }
            }
        }
        let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
        for block in &blocks {
            let found = get(&cache, block).await;
            assert!(found.is_none() || found.as_ref() == Some(block.bytes()), "cut {cut}");
        }
    }
    std::fs::write(dir.path().join("segment-0000ffff.hfc"), b"not ours").unwrap();
    std::fs::write(dir.path().join("id"), b"short").unwrap();
    let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    assert_eq!(cache.counts().disk_blocks, 0, "another id: nothing of before is trusted");
}

#[tokio::test]
async fn a_second_epoch_in_a_known_order_reads_only_what_did_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<Block> = (0..120).map(|salt| block(salt, 400_000)).collect();
    let shuffled: Vec<usize> = (0..120).map(|at| at * 47 % 120).collect();
    // 32 MiB in segments of 4 MiB hold 8 x 8 slots of 512 KiB for blocks of 400,000 bytes.
    let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    let epochs = (0..120).chain(shuffled.iter().copied());
    cache.follow(epochs.clone().map(|at| blocks[at].digest()));
    let mut hits = 0;
    for at in epochs {
        match get(&cache, &blocks[at]).await {
            Some(bytes) => {
                assert_eq!(bytes, *blocks[at].bytes());
                hits += 1;
            }
            None => {
                cache.put(&blocks[at]);
                cache.flush().await;
            }
        }
    }
    let held = cache.counts().disk_blocks;
    assert!(held >= 56, "{held}");
    assert!(hits >= 55, "{hits} hits with {held} places: each place should serve the second epoch once");
}

#[tokio::test]
async fn many_threads_read_and_write_a_cache_too_small_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlockCache::open(on_disk(dir.path(), 32 << 20)).await.unwrap();
    let blocks: Arc<Vec<Block>> = Arc::new((0..150).map(|salt| block(salt, 250_000)).collect());
    let tasks = (0..8u64).map(|worker| {
        let (cache, blocks) = (Arc::clone(&cache), Arc::clone(&blocks));
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                for step in 0..150u64 {
                    let at = usize::try_from((step * 31 + worker * 97) % 150).unwrap();
                    match get(&cache, &blocks[at]).await {
                        Some(bytes) => assert!(bytes == *blocks[at].bytes()),
                        None => {
                            cache.put(&blocks[at]);
                            cache.flush().await;
                        }
                    }
                }
            });
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    let counts = cache.counts();
    assert!(counts.disk_hits > 0 && counts.written > 0, "{counts:?}");
    assert_eq!(counts.damaged, 0, "a slot that changes hands is a miss, not damage");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64),
    Get(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u64..60).prop_map(Step::Put),
        8 => (0u64..60).prop_map(Step::Get),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Against a map that forgets nothing: what is found is right, and while everything fits, everything is found.
    #[test]
    fn a_cache_is_a_map_that_may_forget(steps in steps(), large in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let len = |salt: u64| if large { 300_000 + usize::try_from(salt).unwrap() } else { 1 + 997 * usize::try_from(salt).unwrap() };
            let fits = !large;
            let mut model: HashMap<u64, Block> = HashMap::new();
            // Every class that occurs needs a segment: 64 MiB has 16 of 4 MiB.
            let bytes = if large { 32 << 20 } else { 64 << 20 };
            let mut cache = BlockCache::open_now(on_disk(dir.path(), bytes)).unwrap();
            for step in steps {
                match step {
                    Step::Put(salt) => {
                        let block = block(salt, len(salt));
                        cache.put(&block);
                        cache.flush().await;
                        model.insert(salt, block);
                    }
                    Step::Get(salt) => {
                        let wanted = block(salt, len(salt));
                        let found = get(&cache, &wanted).await;
                        match model.get(&salt) {
                            None => assert_eq!(found, None),
                            Some(block) if fits => assert_eq!(found.as_ref(), Some(block.bytes())),
                            Some(block) => assert!(found.is_none() || found.as_ref() == Some(block.bytes())),
                        }
                    }
                    Step::Reopen => {
                        drop(cache);
                        cache = BlockCache::open_now(on_disk(dir.path(), bytes)).unwrap();
                    }
                }
            }
            assert_eq!(cache.counts().damaged, 0);
            let unknown = BlockRef { digest: Digest([9; 32]), len: BlockLen::MAX };
            assert_eq!(cache.get(&unknown, ByteRange { start: 0, len: 1 }).await, None);
        });
    }
}
