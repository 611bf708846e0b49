//! The erasure code: systematic Reed-Solomon over GF(2^8), Vandermonde matrix as in `reed-solomon-erasure`
//! (parity agrees byte for byte with klauspost's).
//!
//! Shards of one stripe have different lengths: each is padded to the longest with *virtual* zeros, and a
//! missing data block is all virtual zeros. Virtual zeros are never written anywhere: adding nothing to a
//! sum is what multiplying a zero and adding it does, so a short shard simply takes part in the front of
//! every column. The code also works on any byte range of all shards (a row of the stripe is one byte of
//! each shard), so a reader of 16 KiB rebuilds 16 KiB.
//!
//! All sums run in columns of [`COLUMN_LEN`] bytes over all shards, so that a column's inputs and outputs
//! stay in cache (up to 3 times faster for wide codes). The matrix is taken from the library itself (its
//! parity of unit vectors) and the multiplications are its SIMD kernels; only the choice of rows is ours,
//! because the library rebuilds every missing shard and never a chosen one.
//!
//! Costs on one Zen 5 core with AVX2: 16 GB/s of input for 4+2, 6 for 10+4, 2.3 for 16+12.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use holdfast_protocol::limits::SHARDS_MAX;
use parking_lot::Mutex;
use reed_solomon_erasure::galois_8::{self, ReedSolomon};

mod buffers;

/// Bytes of each shard that are worked on at a time: with 6 to 28 shards a column stays within a 1 MiB L2
/// cache, and within L1 for the shard being added.
pub const COLUMN_LEN: usize = 32 * 1024;

/// Distinct (k, m) kept. Policies use a handful; past the bound an instance is made per use.
const CODES_CACHED_MAX: usize = 16;

/// Codes by (k, m).
type Codes = HashMap<(usize, usize), Arc<Code>>;

/// A code k+m, ready to use. Cheap to clone through [`Code::shared`].
pub struct Code {
    k: usize,
    m: usize,
    /// Row `r` (of n) gives shard `r` as a sum over the k data shards; the first k rows are the identity.
    rows: Vec<Vec<u8>>,
}

/// What is known of one shard within the byte range at hand.
///
/// `bytes` may be shorter than the range: the rest is virtual zeros. Empty bytes are a shard that is all
/// virtual zeros there (a data slot that the stripe does not use, or a short block that ends before).
#[derive(Clone, Debug)]
pub struct ShardPiece {
    /// The shard's slot in the stripe: data `0..k`, parity `k..n`.
    pub slot: usize,
    /// Its bytes in the range, from the range's start.
    pub bytes: Bytes,
}

/// A shard to rebuild within the byte range at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedShard {
    /// The shard's slot in the stripe.
    pub slot: usize,
    /// How many of the range's bytes to give back: what of the shard's own length lies in the range.
    pub len: usize,
}

impl Code {
    /// The code of k data and m parity shards, from a bounded cache.
    pub fn shared(k: usize, m: usize) -> Result<Arc<Self>, CodeError> {
        static CODES: OnceLock<Mutex<Codes>> = OnceLock::new();
        let codes = CODES.get_or_init(Mutex::default);
        if let Some(code) = codes.lock().get(&(k, m)) {
            return Ok(Arc::clone(code));
        }
        let code = Arc::new(Self::new(k, m)?);
        let mut codes = codes.lock();
        if codes.len() < CODES_CACHED_MAX {
            codes.insert((k, m), Arc::clone(&code));
        }
        Ok(code)
    }

    fn new(k: usize, m: usize) -> Result<Self, CodeError> {
        if k == 0 || m == 0 || k.saturating_add(m) > SHARDS_MAX {
            return Err(CodeError::Shape { k, m });
        }
        let library = ReedSolomon::new(k, m).map_err(|_| CodeError::Shape { k, m })?;
        let identity = (0..k).map(|row| (0..k).map(|data| u8::from(row == data)).collect());
        let mut rows: Vec<Vec<u8>> = identity.collect();
        rows.resize(k + m, vec![0; k]);
        for data in 0..k {
            // The parity of a unit vector is that data shard's column of the matrix.
            let unit: Vec<[u8; 1]> = (0..k).map(|slot| [u8::from(slot == data)]).collect();
            let mut parity = vec![[0u8; 1]; m];
            library.encode_sep(&unit, &mut parity).map_err(|_| CodeError::Shape { k, m })?;
            for (row, [value]) in rows[k..].iter_mut().zip(parity) {
                row[data] = value;
            }
        }
        Ok(Self { k, m, rows })
    }

    /// Data shards.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Parity shards.
    pub fn m(&self) -> usize {
        self.m
    }

    /// The m parity shards of `blocks`, which take the data slots from 0 on. Fewer than k blocks leave the
    /// last data slots virtual zeros. Each parity shard is as long as the longest block.
    ///
    /// # Errors
    /// [`CodeError::Blocks`] for none, or more than k, or blocks that are all empty.
    pub fn encode(&self, blocks: &[Bytes]) -> Result<Vec<Bytes>, CodeError> {
        let longest = blocks.iter().map(Bytes::len).max().unwrap_or(0);
        if blocks.len() > self.k || longest == 0 {
            return Err(CodeError::Blocks { found: blocks.len(), k: self.k });
        }
        let inputs: Vec<&[u8]> = blocks.iter().map(Bytes::as_ref).collect();
        let rows: Vec<&[u8]> = self.rows[self.k..].iter().map(|row| &row[..blocks.len()]).collect();
        Ok(combine(&rows, &inputs, &vec![longest; self.m]))
    }

    /// Rebuilds the `wanted` shards of a byte range from any k others in the same range.
    ///
    /// The range's own position does not matter to the code: all pieces start at the same offset of their
    /// shards. `available` must name at least k distinct slots, counting the slots that are known to be
    /// virtual zeros; more than k are allowed and the surplus is not read.
    pub fn reconstruct(
        &self,
        available: &[ShardPiece],
        wanted: &[WantedShard],
    ) -> Result<Vec<Bytes>, CodeError> {
        let n = self.k + self.m;
        if let Some(slot) = available
            .iter()
            .map(|piece| piece.slot)
            .chain(wanted.iter().map(|wanted| wanted.slot))
            .find(|slot| *slot >= n)
        {
            return Err(CodeError::Slot { slot, n });
        }
        let chosen = self.choose(available)?;
        let slots: Vec<usize> = chosen.iter().map(|piece| piece.slot).collect();
        let inverse = self.invert(&slots)?;
        let rows: Vec<Vec<u8>> = wanted.iter().map(|wanted| self.row_over(wanted.slot, &inverse)).collect();
        let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        let inputs: Vec<&[u8]> = chosen.iter().map(|piece| piece.bytes.as_ref()).collect();
        let lens: Vec<usize> = wanted.iter().map(|wanted| wanted.len).collect();
        Ok(combine(&rows, &inputs, &lens))
    }

    /// The first k distinct slots in slot order: data shards first, since each one known saves a row of work.
    fn choose<'a>(&self, available: &'a [ShardPiece]) -> Result<Vec<&'a ShardPiece>, CodeError> {
        let mut chosen: Vec<&ShardPiece> = available.iter().collect();
        chosen.sort_by_key(|piece| piece.slot);
        chosen.dedup_by_key(|piece| piece.slot);
        if chosen.len() < self.k {
            return Err(CodeError::TooFew { found: chosen.len(), k: self.k });
        }
        chosen.truncate(self.k);
        Ok(chosen)
    }

    /// The inverse of the matrix rows `slots`, by Gauss and Jordan: about k^3 multiplications, 20 µs for k = 16.
    fn invert(&self, slots: &[usize]) -> Result<Vec<Vec<u8>>, CodeError> {
        let k = self.k;
        let mut left: Vec<Vec<u8>> = slots.iter().map(|slot| self.rows[*slot].clone()).collect();
        let mut right: Vec<Vec<u8>> =
            (0..k).map(|row| (0..k).map(|column| u8::from(row == column)).collect()).collect();
        for column in 0..k {
            let pivot = (column..k)
                .find(|row| left[*row][column] != 0)
                .ok_or(CodeError::Singular { k, m: self.m })?;
            left.swap(column, pivot);
            right.swap(column, pivot);
            let scale = galois_8::div(1, left[column][column]);
            scale_row(&mut left[column], scale);
            scale_row(&mut right[column], scale);
            for row in (0..k).filter(|row| *row != column) {
                let factor = left[row][column];
                if factor != 0 {
                    subtract_row(&mut left, row, column, factor);
                    subtract_row(&mut right, row, column, factor);
                }
            }
        }
        Ok(right)
    }

    /// Shard `slot` as a sum over the chosen shards: its row of the matrix times their inverse.
    fn row_over(&self, slot: usize, inverse: &[Vec<u8>]) -> Vec<u8> {
        (0..self.k)
            .map(|column| {
                self.rows[slot]
                    .iter()
                    .zip(inverse)
                    .fold(0, |sum, (factor, row)| galois_8::add(sum, galois_8::mul(*factor, row[column])))
            })
            .collect()
    }
}

fn scale_row(row: &mut [u8], factor: u8) {
    row.iter_mut().for_each(|value| *value = galois_8::mul(*value, factor));
}

/// `rows[to] -= factor * rows[from]`, in a field where minus is plus.
fn subtract_row(rows: &mut [Vec<u8>], to: usize, from: usize, factor: u8) {
    for column in 0..rows[to].len() {
        rows[to][column] = galois_8::add(rows[to][column], galois_8::mul(factor, rows[from][column]));
    }
}

/// Output `i` = sum over inputs of `rows[i][input] * inputs[input]`, `lens[i]` bytes of it.
///
/// Outputs are built in a scratch column and appended, so their memory is written once and never zeroed;
/// long ones are recycled (see [`buffers`]).
fn combine(rows: &[&[u8]], inputs: &[&[u8]], lens: &[usize]) -> Vec<Bytes> {
    let longest = lens.iter().copied().max().unwrap_or(0);
    let mut outputs: Vec<Vec<u8>> = lens.iter().map(|len| buffers::take(*len)).collect();
    let mut scratch = vec![0u8; COLUMN_LEN.min(longest)];
    for start in (0..longest).step_by(COLUMN_LEN) {
        for ((row, len), output) in rows.iter().zip(lens).zip(&mut outputs) {
            if start >= *len {
                continue;
            }
            let column = &mut scratch[..COLUMN_LEN.min(len - start)];
            sum_column(row, inputs, start, column);
            output.extend_from_slice(column);
        }
    }
    outputs.into_iter().map(buffers::share).collect()
}

/// One column of one output.
fn sum_column(row: &[u8], inputs: &[&[u8]], start: usize, column: &mut [u8]) {
    let mut fresh = true;
    for (factor, input) in row.iter().zip(inputs) {
        let input = input.get(start..).unwrap_or_default();
        let input = &input[..input.len().min(column.len())];
        if *factor == 0 || input.is_empty() {
            continue;
        }
        let (front, back) = column.split_at_mut(input.len());
        if fresh {
            galois_8::mul_slice(*factor, input, front);
            back.fill(0);
            fresh = false;
        } else {
            galois_8::mul_slice_xor(*factor, input, front);
        }
    }
    if fresh {
        column.fill(0);
    }
}

/// Whether this CPU can run the code's kernels, which are built for AVX2 on x86-64.
///
/// Call once at start, before any coding: on an older CPU the kernels would end the process by SIGILL.
pub fn check_cpu() -> Result<(), CpuError> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err(CpuError { missing: "AVX2" });
    }
    Ok(())
}

/// The CPU lacks what this build needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this build needs a CPU with {missing} (x86-64 of 2013 or later); on an older one build from source with \
     RUST_REED_SOLOMON_ERASURE_ARCH set to its name, for example x86-64-v2"
)]
pub struct CpuError {
    /// The missing instruction set.
    pub missing: &'static str,
}

/// Why shards could not be computed. None of these goes away by trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// No such code.
    #[error("there is no code {k}+{m}: both must be at least 1 and their sum at most 64")]
    Shape {
        /// Data shards asked for.
        k: usize,
        /// Parity shards asked for.
        m: usize,
    },
    /// None or too many blocks, or nothing in them.
    #[error("a stripe takes 1 to {k} blocks that are not all empty, not {found}")]
    Blocks {
        /// Blocks given.
        found: usize,
        /// Data slots.
        k: usize,
    },
    /// Not enough to rebuild from.
    #[error("{found} shards are known, {k} are needed")]
    TooFew {
        /// Distinct slots given.
        found: usize,
        /// Shards needed.
        k: usize,
    },
    /// A slot that the code does not have.
    #[error("slot {slot} is not among the {n} of this code")]
    Slot {
        /// The slot.
        slot: usize,
        /// Slots of the code.
        n: usize,
    },
    /// The matrix is not of a maximum-distance code; cannot happen with a Vandermonde matrix.
    #[error("the code {k}+{m} cannot be inverted")]
    Singular {
        /// Data shards.
        k: usize,
        /// Parity shards.
        m: usize,
    },
}

impl CodeError {
    /// Never: the same input gives the same answer.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
