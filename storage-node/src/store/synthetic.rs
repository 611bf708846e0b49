//! An index of any size without the blocks, for measuring how a full store starts. Not for use otherwise: the extents
//! are holes.

use std::path::Path;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::{AgreementId, ClaimTag};
use rocksdb::WriteBatch;

use super::config::{EXTENT_BYTES_DEFAULT, Expect};
use super::engine::extent_path;
use super::error::{IndexError, OpenError};
use super::format::{ClaimEntry, PAGE_BYTES, Place, Standing, record_bytes};
use super::identity;
use super::index::rows::{
    AccountsRow, BlockRow, ClaimKey, ExtentRow, MetaRow, encode_claim, encode_usage, usage_key,
};
use super::index::{Index, upgrade};
use super::types::AgreementUsage;

/// Blocks whose rows go into one batch.
const BLOCKS_PER_BATCH: u64 = 10_000;

/// Makes a store in `dir` that says it holds `blocks` blocks of `len` bytes, one live claim on each.
pub fn make_index(dir: &Path, blocks: u64, len: u32, index_cache_bytes: usize) -> Result<(), OpenError> {
    let identity = identity::open(dir, Expect::Any, 1)?;
    let failed = |source: IndexError| OpenError::Index { source };
    let index = Index::open(&identity.index, index_cache_bytes)
        .map_err(|source| failed(IndexError::Rocks { source }))?;
    upgrade::upgrade(&index).map_err(failed)?;
    let record = record_bytes(len);
    let per_extent = ((EXTENT_BYTES_DEFAULT - PAGE_BYTES) / record).max(1);
    let agreement = AgreementId([1; 32]);
    let mut batch = WriteBatch::default();
    for block in 0..blocks {
        let (extent, nth) = (block / per_extent + 1, block % per_extent);
        let place = Place { extent, offset: PAGE_BYTES + nth * record };
        let digest = digest(block, blocks);
        let row = BlockRow { place, record: block + 1, len, provisional: 0, live: 1, trash: 0 };
        batch.put(BlockRow::key(&digest), row.encode());
        let claim = claim(digest, agreement, block + 1);
        batch.put(ClaimKey::of(&claim).row(), encode_claim(&claim));
        if block % BLOCKS_PER_BATCH == BLOCKS_PER_BATCH - 1 {
            index.write(std::mem::take(&mut batch)).map_err(failed)?;
        }
    }
    let extents = blocks.div_ceil(per_extent);
    for extent in 1..=extents {
        let held = per_extent.min(blocks - (extent - 1) * per_extent);
        let synced = PAGE_BYTES + held * record;
        let row = ExtentRow { synced, garbage: PAGE_BYTES, held, sealed: true };
        batch.put(ExtentRow::key(extent), row.encode());
        let path = extent_path(&identity.extents, extent);
        let made = std::fs::File::create(&path).and_then(|file| file.set_len(synced));
        made.map_err(|source| identity::failed(&path, "making", source))?;
    }
    let (used, paid) = (blocks * record, blocks * u64::from(len));
    let accounts =
        AccountsRow { used, trash: 0, garbage: extents * PAGE_BYTES, paid, blocks, claims: blocks };
    batch.put(AccountsRow::KEY, accounts.encode());
    let usage = AgreementUsage { claims: blocks, bytes: paid, page_bytes: used };
    batch.put(usage_key(&agreement), encode_usage(&usage));
    let meta = MetaRow {
        store: identity.id,
        next_record: blocks + 1,
        next_group: blocks + 1,
        newest_extent: extents,
    };
    batch.put(MetaRow::KEY, meta.encode());
    index.write(batch).map_err(failed)?;
    index.flush(true).map_err(failed)
}

/// The digest of the `block`th of `blocks`. Ascending and evenly spread, so that making the index does not take longer
/// than measuring it.
pub fn digest(block: u64, blocks: u64) -> Digest {
    let mut digest = *blake3::hash(&block.to_le_bytes()).as_bytes();
    let first = u128::from(block) * (u128::from(u64::MAX) + 1) / u128::from(blocks.max(1));
    digest[..8].copy_from_slice(&u64::try_from(first).unwrap_or(u64::MAX).to_be_bytes());
    Digest(digest)
}

fn claim(digest: Digest, agreement: AgreementId, record: u64) -> ClaimEntry {
    ClaimEntry {
        sequence: record,
        target: record,
        digest,
        agreement,
        tag: ClaimTag([1; 16]),
        scope: None,
        standing: Standing::Live,
        lease_until_ms: 0,
        retain_until_ms: 0,
        created_ms: 1,
        changed_ms: 1,
        order: 0,
    }
}
