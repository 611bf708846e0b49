//! Prints what hashing, proving and verifying cost on this machine: best of several rounds, one core.

use std::hint::black_box;
use std::time::Instant;

use holdfast_proofs::{BlockHasher, ByteRange, LeafUnit, hash_block, verify_leaf, verify_reply};

const ROUNDS: u32 = 7;

/// Nanoseconds of one `work`, the best of several rounds of `times`.
fn best_ns<T>(times: u32, mut work: impl FnMut() -> T) -> f64 {
    let round = |work: &mut dyn FnMut() -> T| {
        let start = Instant::now();
        for _ in 0..times {
            black_box(work());
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(times)
    };
    (0..ROUNDS).map(|_| round(&mut work)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut block = vec![0u8; 1024 * 1024];
    blake3::Hasher::new().update(b"speed").finalize_xof().fill(&mut block);
    let (digest, tree) = hash_block(&block);
    let len = tree.len();

    let ns = best_ns(200, || hash_block(&block));
    println!("hash_block, 1 MiB             {:8.2} GB/s", block.len() as f64 / ns);
    for piece in [1_000, 6_500, 65_536] {
        let ns = best_ns(200, || {
            let mut hasher = BlockHasher::new();
            block.chunks(piece).for_each(|piece| hasher.update(piece));
            hasher.finish()
        });
        println!("BlockHasher, {piece:>6} B pieces   {:8.2} GB/s", block.len() as f64 / ns);
    }
    println!("group_path                    {:8.2} us", best_ns(2_000, || tree.group_path(17)) / 1e3);
    println!("group_paths, 5 of 64          {:8.2} us", best_ns(2_000, || tree.group_paths(17..22)) / 1e3);
    println!(
        "chunk_path                    {:8.2} us",
        best_ns(500, || tree.chunk_path(17, &block[16384..32768])) / 1e3
    );

    let path = tree.group_path(17).expect("group 17 of 64");
    let leaf = &block[17 * 16384..18 * 16384];
    let ns = best_ns(2_000, || verify_leaf(&digest, len, LeafUnit::Group, 17, leaf, &path.siblings));
    println!("verify one group              {:8.2} us", ns / 1e3);

    let range = ByteRange { start: 17 * 16384 + 100, len: 65_536 };
    let paths = tree.group_paths(17..22).expect("groups of 64");
    let body = bytes::Bytes::copy_from_slice(&block[17 * 16384..22 * 16384]);
    let ns = best_ns(2_000, || {
        verify_reply(&digest, len, LeafUnit::Group, &[range], &paths, body.clone()).map(|v| v.range(0))
    });
    println!("verify 64 KiB range, 5 groups {:8.2} us ({:.2} GB/s)", ns / 1e3, body.len() as f64 / ns);
}
