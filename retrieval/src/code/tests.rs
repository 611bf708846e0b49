//! The code against an oracle of our own: a field multiplied bit by bit and a matrix built from its definition.

use proptest::prelude::*;

use super::*;

mod oracle {
    /// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1, bit by bit.
    pub(super) fn mul(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            let overflow = a & 0x80 != 0;
            a <<= 1;
            if overflow {
                a ^= 0x1d;
            }
            b >>= 1;
        }
        product
    }

    fn power(base: u8, exponent: usize) -> u8 {
        (0..exponent).fold(1, |product, _| mul(product, base))
    }

    fn inverse(a: u8) -> u8 {
        (1..=255).find(|b| mul(a, *b) == 1).expect("every element but zero has an inverse")
    }

    fn multiply(a: &[Vec<u8>], b: &[Vec<u8>]) -> Vec<Vec<u8>> {
        a.iter()
            .map(|row| {
                (0..b[0].len())
                    .map(|column| row.iter().zip(b).fold(0, |sum, (x, other)| sum ^ mul(*x, other[column])))
                    .collect()
            })
            .collect()
    }

    /// Inverts by augmenting with the identity and eliminating.
    fn invert(matrix: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let n = matrix.len();
        let mut wide: Vec<Vec<u8>> = matrix
            .iter()
            .enumerate()
            .map(|(r, row)| row.iter().copied().chain((0..n).map(|c| u8::from(c == r))).collect())
            .collect();
        for at in 0..n {
            let pivot = (at..n).find(|row| wide[*row][at] != 0).unwrap();
            wide.swap(at, pivot);
            let scale = inverse(wide[at][at]);
            wide[at].iter_mut().for_each(|value| *value = mul(*value, scale));
            let pivot_row = wide[at].clone();
            for (row, values) in wide.iter_mut().enumerate() {
                let factor = values[at];
                if row != at && factor != 0 {
                    values.iter_mut().zip(&pivot_row).for_each(|(v, p)| *v ^= mul(factor, *p));
                }
            }
        }
        wide.into_iter().map(|row| row[n..].to_vec()).collect()
    }

    /// The systematic Vandermonde matrix: rows r^c, times the inverse of their top square.
    pub(super) fn matrix(k: usize, m: usize) -> Vec<Vec<u8>> {
        let vandermonde: Vec<Vec<u8>> = (0..k + m)
            .map(|row| (0..k).map(|column| power(u8::try_from(row).unwrap(), column)).collect())
            .collect();
        multiply(&vandermonde, &invert(&vandermonde[..k]))
    }

    /// All n shards of these data shards, padded with real zeros to the longest.
    pub(super) fn shards(k: usize, m: usize, blocks: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let longest = blocks.iter().map(Vec::len).max().unwrap();
        let mut data = blocks.to_vec();
        data.resize(k, Vec::new());
        data.iter_mut().for_each(|block| block.resize(longest, 0));
        multiply(&matrix(k, m), &data)
    }
}

/// Bytes that look random and follow from the seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn blocks_of(lens: &[usize]) -> Vec<Vec<u8>> {
    lens.iter().enumerate().map(|(seed, len)| noise(seed as u64, *len)).collect()
}

fn as_bytes(blocks: &[Vec<u8>]) -> Vec<Bytes> {
    blocks.iter().cloned().map(Bytes::from).collect()
}

/// Encodes, compares with the oracle, and gives each shard as it is stored: short blocks short, unused slots empty.
fn encoded(k: usize, m: usize, blocks: &[Vec<u8>]) -> Vec<Bytes> {
    let parity = Code::shared(k, m).unwrap().encode(&as_bytes(blocks)).unwrap();
    let expected = oracle::shards(k, m, blocks);
    for (index, shard) in parity.iter().enumerate() {
        assert_eq!(shard[..], expected[k + index][..], "parity {index} of {k}+{m}");
    }
    let mut data = as_bytes(blocks);
    data.resize(k, Bytes::new());
    data.into_iter().chain(parity).collect()
}

fn rebuild_all_but(code: &Code, shards: &[Bytes], lost: &[usize]) {
    let available: Vec<ShardPiece> = (0..shards.len())
        .filter(|slot| !lost.contains(slot))
        .map(|slot| ShardPiece { slot, bytes: shards[slot].clone() })
        .collect();
    let wanted: Vec<WantedShard> =
        lost.iter().map(|slot| WantedShard { slot: *slot, len: shards[*slot].len() }).collect();
    let rebuilt = code.reconstruct(&available, &wanted).unwrap();
    for (slot, bytes) in lost.iter().zip(rebuilt) {
        assert_eq!(bytes, shards[*slot], "slot {slot} after losing {lost:?}");
    }
}

#[test]
fn every_loss_of_up_to_two_of_six_is_rebuilt() {
    let lens = [3 * COLUMN_LEN + 17, COLUMN_LEN, 1, 2 * COLUMN_LEN + 1];
    let shards = encoded(4, 2, &blocks_of(&lens));
    let code = Code::shared(4, 2).unwrap();
    for first in 0..6 {
        rebuild_all_but(&code, &shards, &[first]);
        for second in first + 1..6 {
            rebuild_all_but(&code, &shards, &[first, second]);
        }
    }
}

#[test]
fn three_losses_of_six_are_refused() {
    let shards = encoded(4, 2, &blocks_of(&[100, 100, 100, 100]));
    let available: Vec<ShardPiece> =
        (3..6).map(|slot| ShardPiece { slot, bytes: shards[slot].clone() }).collect();
    let error = Code::shared(4, 2).unwrap().reconstruct(&available, &[WantedShard { slot: 0, len: 100 }]);
    assert_eq!(error, Err(CodeError::TooFew { found: 3, k: 4 }));
}

#[test]
fn the_same_slot_twice_counts_once() {
    let shards = encoded(4, 2, &blocks_of(&[100; 4]));
    let available: Vec<ShardPiece> =
        [1, 2, 3, 3, 3].map(|slot| ShardPiece { slot, bytes: shards[slot].clone() }).to_vec();
    let error = Code::shared(4, 2).unwrap().reconstruct(&available, &[WantedShard { slot: 0, len: 100 }]);
    assert_eq!(error, Err(CodeError::TooFew { found: 3, k: 4 }));
}

#[test]
fn a_single_short_block_is_its_own_stripe() {
    for len in [1, 2, 31, 100] {
        let shards = encoded(4, 2, &blocks_of(&[len]));
        assert!(shards[4..].iter().all(|parity| parity.len() == len));
        let code = Code::shared(4, 2).unwrap();
        // Slots 1 to 3 are known to be virtual zeros, so any one stored shard is enough.
        rebuild_all_but(&code, &shards, &[0, 4]);
        rebuild_all_but(&code, &shards, &[0, 5]);
    }
}

#[test]
fn the_matrix_is_the_systematic_vandermonde_matrix() {
    for (k, m) in [(1, 1), (1, 2), (4, 2), (10, 4), (16, 12), (32, 32)] {
        assert_eq!(Code::new(k, m).unwrap().rows, oracle::matrix(k, m), "{k}+{m}");
    }
}

#[test]
fn codes_without_data_or_parity_or_with_too_many_shards_do_not_exist() {
    for (k, m) in [(0, 2), (4, 0), (60, 5), (usize::MAX, 1)] {
        assert_eq!(Code::shared(k, m).err(), Some(CodeError::Shape { k, m }));
    }
}

#[test]
fn nothing_to_encode_is_an_error() {
    let code = Code::shared(4, 2).unwrap();
    assert!(matches!(code.encode(&[]), Err(CodeError::Blocks { .. })));
    assert!(matches!(code.encode(&[Bytes::new()]), Err(CodeError::Blocks { .. })));
    assert!(matches!(code.encode(&as_bytes(&blocks_of(&[9; 5]))), Err(CodeError::Blocks { found: 5, k: 4 })));
}

#[test]
fn a_slot_beyond_the_code_is_an_error_and_no_panic() {
    let code = Code::shared(4, 2).unwrap();
    let piece = |slot| ShardPiece { slot, bytes: Bytes::from_static(b"x") };
    let wanted = [WantedShard { slot: 0, len: 1 }];
    let available: Vec<ShardPiece> = [1, 2, 3, 6].map(piece).to_vec();
    assert_eq!(code.reconstruct(&available, &wanted), Err(CodeError::Slot { slot: 6, n: 6 }));
    let available: Vec<ShardPiece> = [1, 2, 3, 4].map(piece).to_vec();
    let error = code.reconstruct(&available, &[WantedShard { slot: 9, len: 1 }]);
    assert_eq!(error, Err(CodeError::Slot { slot: 9, n: 6 }));
}

/// Lengths around the column edges, and losses, for a wide code.
fn stripes(k: usize, m: usize) -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let len =
        prop_oneof![1usize..200, COLUMN_LEN - 2..COLUMN_LEN + 3, 2 * COLUMN_LEN - 2..2 * COLUMN_LEN + 3,];
    let lens = prop::collection::vec(len, 1..=k);
    let lost = prop::sample::subsequence((0..k + m).collect::<Vec<_>>(), 0..=m);
    (lens, lost)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn small_rebuilds_what_random_losses_take((lens, lost) in stripes(10, 4)) {
        let shards = encoded(10, 4, &blocks_of(&lens));
        rebuild_all_but(&Code::shared(10, 4).unwrap(), &shards, &lost);
    }

    #[test]
    fn standard_rebuilds_what_random_losses_take((lens, lost) in stripes(16, 12)) {
        let shards = encoded(16, 12, &blocks_of(&lens));
        rebuild_all_but(&Code::shared(16, 12).unwrap(), &shards, &lost);
    }

    #[test]
    fn a_rebuilt_range_is_that_range_of_the_rebuilt_shard(
        (lens, lost) in stripes(4, 2),
        start in 0usize..3 * COLUMN_LEN,
        len in 1usize..2 * COLUMN_LEN,
    ) {
        let shards = encoded(4, 2, &blocks_of(&lens));
        let part = |slot: usize| {
            let shard = &shards[slot];
            shard.slice(start.min(shard.len())..(start + len).min(shard.len()))
        };
        let available: Vec<ShardPiece> = (0..6)
            .filter(|slot| !lost.contains(slot))
            .map(|slot| ShardPiece { slot, bytes: part(slot) })
            .collect();
        let wanted: Vec<WantedShard> =
            lost.iter().map(|slot| WantedShard { slot: *slot, len: part(*slot).len() }).collect();
        let rebuilt = Code::shared(4, 2).unwrap().reconstruct(&available, &wanted).unwrap();
        for (slot, bytes) in lost.iter().zip(rebuilt) {
            prop_assert_eq!(bytes, part(*slot));
        }
    }
}
