//! What each access key used: counted in memory, written down every few seconds, reported by day.
//!
//! Counts of the last seconds before a crash are lost; nobody pays by them. Counters in the metadata are added to, so
//! every gateway of the namespace adds its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_protocol::time::UnixMs;
use parking_lot::Mutex;

use super::access::AccessKey;
use super::rules::Operation;
use crate::meta::{KeyCounts, Meta, MetaError};

/// How long the bytes stored are believed, plus what came since.
const BELIEVED_FOR: Duration = Duration::from_secs(1);
/// Keys with a quota whose figure is kept.
const KEYS_MAX: usize = 4096;
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Counts of all keys.
#[derive(Default)]
pub(crate) struct KeyUsage {
    pending: Mutex<HashMap<String, KeyCounts>>,
    stored: Mutex<HashMap<String, Stored>>,
}

/// Bytes in the buckets that a key may write to.
#[derive(Clone, Copy)]
struct Stored {
    bytes: u64,
    /// What was let in since.
    coming: u64,
    at: Instant,
}

impl KeyUsage {
    /// Counts a request.
    pub(crate) fn count(&self, key: &str, is_refused: bool, bytes_in: u64, bytes_out: u64) {
        let mut pending = self.pending.lock();
        if !pending.contains_key(key) {
            pending.insert(key.to_owned(), KeyCounts::default());
        }
        if let Some(counts) = pending.get_mut(key) {
            counts.requests += 1;
            counts.refused += u64::from(is_refused);
            counts.bytes_in = counts.bytes_in.saturating_add(bytes_in);
            counts.bytes_out = counts.bytes_out.saturating_add(bytes_out);
        }
    }

    /// Writes down what was counted since the last time.
    pub(crate) async fn flush(&self, meta: &Meta, now_ms: UnixMs) -> Result<(), MetaError> {
        let counted = std::mem::take(&mut *self.pending.lock());
        if counted.is_empty() {
            return Ok(());
        }
        let day = u32::try_from(now_ms / DAY_MS).unwrap_or(u32::MAX);
        let outcome = meta.add_key_counts(day, &counted).await;
        if outcome.is_err() {
            // Whether it was written is unknown; counted again is better than not at all only if it is rare. It is not
            // counted again: a report that is too low accuses nobody.
            tracing::debug!(keys = counted.len(), "counts of access keys were not written down");
        }
        outcome
    }

    /// Bytes in the buckets that `key` may write to, with what this gateway let in since they were counted.
    pub(crate) async fn stored(&self, meta: &Meta, key: &Arc<AccessKey>) -> Result<u64, MetaError> {
        let now = Instant::now();
        if let Some(stored) = self.stored.lock().get(key.id())
            && now.saturating_duration_since(stored.at) < BELIEVED_FOR
        {
            return Ok(stored.bytes.saturating_add(stored.coming));
        }
        let mut bytes = 0u64;
        for bucket in meta.buckets().await? {
            if key.rules.allow_some(Operation::Write, &bucket.name) {
                let usage = meta.usage(&bucket).await?;
                bytes = bytes.saturating_add(usage.bytes).saturating_add(usage.upload_bytes);
            }
        }
        let mut kept = self.stored.lock();
        if kept.len() >= KEYS_MAX {
            kept.clear();
        }
        kept.insert(key.id().to_owned(), Stored { bytes, coming: 0, at: now });
        Ok(bytes)
    }

    /// So many bytes were let in.
    pub(crate) fn coming(&self, key: &Arc<AccessKey>, bytes: u64) {
        if let Some(stored) = self.stored.lock().get_mut(key.id()) {
            stored.coming = stored.coming.saturating_add(bytes);
        }
    }
}
