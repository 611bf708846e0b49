//! The inventory: what each agreement keeps, in the order of digests, bucket by bucket.

use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::record::AgreementId;

use super::rows::{self, ClaimKey};
use super::{View, bad_row};
use crate::store::error::IndexError;
use crate::store::format::Standing;
use crate::store::types::InventoryEntry;

impl View<'_> {
    /// Entries of a bucket behind `after`, by digest and agreement, at most `max`. Blocks in trash are not in it.
    pub(crate) fn inventory(
        &self,
        bucket: u16,
        after: Option<(Digest, AgreementId)>,
        max: usize,
    ) -> Result<Vec<InventoryEntry>, IndexError> {
        let prefix = [b"c", &bucket.to_be_bytes()[..]].concat();
        let start = after.map(|(digest, agreement)| ClaimKey::rows_of_agreement(&digest, &agreement));
        let mut entries: Vec<InventoryEntry> = Vec::new();
        for row in self.rows(&prefix, start.as_deref()) {
            let (key, value) = row?;
            let claim = rows::decode_claim(&key, &value).ok_or_else(|| bad_row(&key))?;
            let kept = matches!(claim.standing, Standing::Provisional | Standing::Live);
            if !kept || after == Some((claim.digest, claim.agreement)) {
                continue;
            }
            let live = claim.standing == Standing::Live;
            let last = entries.last_mut().filter(|last| last.digest == claim.digest);
            let len = last.as_ref().map(|last| last.len);
            if let Some(last) = last.filter(|last| last.agreement == claim.agreement) {
                last.live |= live;
                continue;
            }
            if entries.len() >= max {
                break;
            }
            let len = match len {
                Some(len) => len,
                None => self.len_of(&claim.digest)?,
            };
            entries.push(InventoryEntry { digest: claim.digest, len, agreement: claim.agreement, live });
        }
        Ok(entries)
    }

    fn len_of(&self, digest: &Digest) -> Result<BlockLen, IndexError> {
        let row = self.block(digest)?;
        row.and_then(|row| BlockLen::new(row.len).ok()).ok_or_else(|| bad_row(b"b"))
    }
}
