//! The index's own version, and what a newer release adds to an older one's rows.
//!
//! | version | adds |
//! |---|---|
//! | 1 | (no row `i`) |
//! | 2 | generation; pages in the usage of agreements |

use std::collections::BTreeMap;

use holdfast_protocol::record::AgreementId;
use rocksdb::{IteratorMode, PrefixRange, WriteBatch};

use super::rows::{self, BlockRow, IndexRow, MetaRow};
use super::{Index, View, bad_row};
use crate::store::error::IndexError;
use crate::store::format::{Standing, record_bytes};
use crate::store::types::AgreementUsage;

const VERSION: u64 = 2;

/// Brings the index to this release's version; answers its generation. Costs nothing when it is there already.
pub(crate) fn upgrade(index: &Index) -> Result<u64, IndexError> {
    if let Some(row) = index.view().row(IndexRow::KEY, IndexRow::decode)? {
        return Ok(row.generation);
    }
    if index.is_read_only() {
        // Usages are right once the disk can be written; until then nothing is charged to anybody.
        return Ok(0);
    }
    let mut batch = WriteBatch::default();
    if index.view().get(MetaRow::KEY)?.is_some() {
        let usages = recount(&index.view())?;
        tracing::info!(
            agreements = usages.len(),
            "counted the pages of every agreement once, for a newer index"
        );
        for (agreement, usage) in &usages {
            batch.put(rows::usage_key(agreement), rows::encode_usage(usage));
        }
    }
    let mut drawn = [0; 8];
    // Without random bytes the generation is a constant: only a rebuild in the same state would go unnoticed.
    let generation = match getrandom::fill(&mut drawn) {
        Ok(()) => u64::from_le_bytes(drawn),
        Err(_) => 0,
    };
    batch.put(IndexRow::KEY, IndexRow { version: VERSION, generation }.encode());
    index.write(batch)?;
    Ok(generation)
}

/// Counts what every agreement keeps: one pass over claims and blocks, which lie in the same order.
fn recount(view: &View<'_>) -> Result<BTreeMap<AgreementId, AgreementUsage>, IndexError> {
    let mut usages: BTreeMap<AgreementId, AgreementUsage> = BTreeMap::new();
    let mut options = view.options();
    options.set_iterate_range(PrefixRange(&b"c"[..]));
    let mut block: Option<(holdfast_protocol::digest::Digest, BlockRow)> = None;
    for row in view.db.iterator_opt(IteratorMode::Start, options) {
        let (key, value) = row?;
        let claim = rows::decode_claim(&key, &value).ok_or_else(|| bad_row(&key))?;
        if !matches!(claim.standing, Standing::Provisional | Standing::Live) {
            continue;
        }
        let held = match block.filter(|(digest, _)| *digest == claim.digest) {
            Some((_, held)) => held,
            None => view.block(&claim.digest)?.ok_or_else(|| bad_row(b"b"))?,
        };
        block = Some((claim.digest, held));
        let usage = usages.entry(claim.agreement).or_default();
        usage.claims += 1;
        usage.bytes += u64::from(held.len);
        usage.page_bytes += record_bytes(held.len);
    }
    Ok(usages)
}
