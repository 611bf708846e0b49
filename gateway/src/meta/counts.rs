//! What access keys used, by day.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::error::{Attempt, MetaError};
use super::store::{PAGE_ROWS_MAX, Transaction, counters, prefix_end};
use super::{Meta, next_key, schema};

/// Days that one report spans, at most.
const DAYS_MAX: u32 = 3660;

/// Counts of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// Requests.
    pub requests: u64,
    /// Requests that were refused: not allowed, or too fast.
    pub refused: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes that went.
    pub bytes_out: u64,
}

/// Counts of one key on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDay {
    /// The access key.
    pub key: String,
    /// The day, counted from the epoch.
    pub day: u32,
    /// Its counts.
    pub counts: KeyCounts,
}

impl Meta {
    /// Adds to the counts of a day.
    pub async fn add_key_counts(
        &self,
        day: u32,
        counted: &HashMap<String, KeyCounts>,
    ) -> Result<(), MetaError> {
        let mut transaction = Transaction::default();
        for (key, counts) in counted {
            let deltas = [counts.requests, counts.refused, counts.bytes_in, counts.bytes_out];
            let deltas = deltas.map(|count| i64::try_from(count).unwrap_or(i64::MAX)).to_vec();
            transaction.add(schema::key_day(key, day), deltas);
        }
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(()),
            Err(Attempt::Conflict) => Err(MetaError::Contended),
            Err(Attempt::Failed(error)) => Err(error),
        }
    }

    /// The counts of `days` days up to `last`, of all keys or of one, by key and day.
    pub async fn key_counts(
        &self,
        only: Option<&str>,
        last: u32,
        days: u32,
    ) -> Result<Vec<KeyDay>, MetaError> {
        let first = last.saturating_sub(days.clamp(1, DAYS_MAX) - 1);
        let table = only.map_or_else(|| schema::table(schema::KEY_DAYS), schema::key_days);
        let (mut found, mut start) = (Vec::new(), table.clone());
        loop {
            let page = self.store.page(&start, &prefix_end(&table), PAGE_ROWS_MAX).await?;
            let Some(end) = page.last() else { return Ok(found) };
            start = next_key(end.key.clone());
            for row in &page {
                let (key, day) = decode(&row.key)?;
                if (first..=last).contains(&day) {
                    let counts = counters(&row.value);
                    let count = |at: usize| {
                        counts.get(at).map_or(0, |count| u64::try_from(*count).unwrap_or_default())
                    };
                    let counts = KeyCounts {
                        requests: count(0),
                        refused: count(1),
                        bytes_in: count(2),
                        bytes_out: count(3),
                    };
                    found.push(KeyDay { key, day, counts });
                }
            }
        }
    }
}

fn decode(row_key: &[u8]) -> Result<(String, u32), MetaError> {
    let corrupt = MetaError::Corrupt { what: "key count" };
    let (key, day) = row_key[1..].split_last_chunk::<4>().ok_or(corrupt.clone())?;
    let key = key.strip_suffix(&[0]).and_then(|key| std::str::from_utf8(key).ok()).ok_or(corrupt)?;
    Ok((key.to_owned(), u32::from_be_bytes(*day)))
}
