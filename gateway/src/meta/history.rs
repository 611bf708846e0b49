//! Older versions of objects.
//!
//! The current version of a key is its `o` row, as in a bucket without versions, so that GET and listings cost the same.
//! Whatever is older, and every delete marker, is a row of the history, the newest first. The invariant that every change
//! keeps: if a key has no `o` row, the newest row of its history is a delete marker (or there is none).
//!
//! Within one key times are unique: a version that would have its predecessor's time gets a millisecond more. So the
//! time and the random id, together the name that clients see, find a row directly.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use holdfast_protocol::time::UnixMs;

use super::codec::{Reader, Writer};
use super::error::MetaError;
use super::features::Versioning;
use super::model::{Bucket, BucketId, Object, VersionId};
use super::object::{Place, object_of};
use super::refs::RefChanges;
use super::row::ObjectRow;
use super::store::{PAGE_ROWS_MAX, Row, Transaction, prefix_end};
use super::{Meta, Sealer, next_key, schema};

/// Rows read at a time when the null version is looked for.
const SEARCH_ROWS: usize = 64;
const OBJECT: u8 = 1;
const MARKER: u8 = 2;

/// What clients call a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionName {
    /// The version that was written while the bucket kept none.
    Null,
    /// Any other.
    Id {
        /// When it was written.
        modified_ms: UnixMs,
        /// Which.
        version: VersionId,
    },
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Id { modified_ms, version } => {
                write!(f, "{}{version}", hex::encode((u64::MAX - modified_ms).to_be_bytes()))
            }
        }
    }
}

/// The text names no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not the id of a version")]
pub struct NoVersionName;

impl FromStr for VersionName {
    type Err = NoVersionName;
    fn from_str(text: &str) -> Result<Self, NoVersionName> {
        if text == "null" {
            return Ok(Self::Null);
        }
        let mut bytes = [0u8; 24];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NoVersionName)?;
        let (age, version) = bytes.split_at(8);
        let age = u64::from_be_bytes(age.try_into().map_err(|_| NoVersionName)?);
        let version = VersionId(version.try_into().map_err(|_| NoVersionName)?);
        Ok(Self::Id { modified_ms: u64::MAX - age, version })
    }
}

/// A delete marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) version: VersionId,
    pub(super) modified_ms: UnixMs,
    pub(super) is_null: bool,
}

/// A row of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and not for long")]
pub(super) enum Past {
    Object(ObjectRow),
    Marker(Marker),
}

impl Past {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Object(object) => {
                out.u8(OBJECT).fixed(&object.encode());
            }
            Self::Marker(marker) => {
                out.u8(MARKER).fixed(&marker.version.0).int(marker.modified_ms);
                out.u8(u8::from(marker.is_null));
            }
        }
        out.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let corrupt = MetaError::Corrupt { what: "version" };
        match bytes.split_first() {
            Some((&OBJECT, rest)) => Ok(Self::Object(ObjectRow::decode(rest)?)),
            Some((&MARKER, rest)) => {
                let mut row = Reader::new("version", rest);
                let version = VersionId(row.array()?);
                let marker = Marker { version, modified_ms: row.int()?, is_null: row.u8()? != 0 };
                row.end()?;
                Ok(Self::Marker(marker))
            }
            _ => Err(corrupt),
        }
    }

    pub(super) fn modified_ms(&self) -> UnixMs {
        match self {
            Self::Object(object) => object.modified_ms,
            Self::Marker(marker) => marker.modified_ms,
        }
    }

    pub(super) fn version(&self) -> VersionId {
        match self {
            Self::Object(object) => object.version,
            Self::Marker(marker) => marker.version,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        match self {
            Self::Object(object) => object.is_null,
            Self::Marker(marker) => marker.is_null,
        }
    }

    pub(super) fn name(&self) -> VersionName {
        name_of(self.is_null(), self.modified_ms(), self.version())
    }
}

pub(super) fn name_of(is_null: bool, modified_ms: UnixMs, version: VersionId) -> VersionName {
    if is_null { VersionName::Null } else { VersionName::Id { modified_ms, version } }
}

impl Object {
    /// What clients call this version.
    pub fn version_name(&self) -> VersionName {
        name_of(self.is_null, self.modified_ms, self.version)
    }
}

/// What a key and a version name lead to.
#[derive(Clone, Debug)]
pub enum Found {
    /// An object.
    Object(Box<Object>),
    /// A delete marker.
    Marker {
        /// Its name.
        name: VersionName,
        /// When it was set.
        modified_ms: UnixMs,
        /// Whether it is the newest of its key.
        is_current: bool,
    },
}

/// A version with the row it was read from.
pub(super) struct Standing {
    pub(super) row: Row,
    pub(super) is_current: bool,
    pub(super) past: Past,
}

/// What a new current version is written with.
pub(super) struct Stamp {
    pub(super) modified_ms: UnixMs,
    pub(super) is_null: bool,
}

impl Meta {
    pub(super) fn open_past(&self, bucket: BucketId, row: &Row) -> Result<Past, MetaError> {
        Past::decode(self.unseal(bucket, "version", &row.key, &row.value)?)
    }

    /// Writes a row of the history.
    pub(super) fn put_past(
        &self,
        bucket: &Bucket,
        key: &str,
        past: &Past,
        transaction: &mut Transaction,
    ) -> Result<(), MetaError> {
        let row_key = schema::history_row(bucket.id, key, past.modified_ms(), past.version());
        let value = self.seal(&Sealer::from(bucket), &row_key, past.encode())?;
        transaction.put(row_key, value);
        Ok(())
    }

    /// Rows of a key's history behind `after`, the newest first.
    pub(super) async fn pasts(
        &self,
        bucket: &Bucket,
        key: &str,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        let table = schema::history_of(bucket.id, key);
        let start = after.map_or_else(|| table.clone(), |after| next_key(after.to_vec()));
        let mut rows = self.store.page(&start, &prefix_end(&table), limit.min(PAGE_ROWS_MAX)).await?;
        // A key that goes on behind a zero byte shares the prefix; its rows are longer.
        rows.retain(|row| row.key.len() == table.len() + schema::HISTORY_SUFFIX_LEN - 1);
        Ok(rows)
    }

    /// The newest row of a key's history.
    pub(super) async fn newest_past(
        &self,
        bucket: &Bucket,
        key: &str,
    ) -> Result<Option<(Row, Past)>, MetaError> {
        let row = self.pasts(bucket, key, None, 1).await?.pop();
        row.map(|row| self.open_past(bucket.id, &row).map(|past| (row, past))).transpose()
    }

    async fn null_past(&self, bucket: &Bucket, key: &str) -> Result<Option<(Row, Past)>, MetaError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.pasts(bucket, key, after.as_deref(), SEARCH_ROWS).await?;
            let Some(last) = rows.last() else { return Ok(None) };
            after = Some(last.key.clone());
            for row in rows {
                let past = self.open_past(bucket.id, &row)?;
                if past.is_null() {
                    return Ok(Some((row, past)));
                }
            }
        }
    }

    /// Makes room for a new current version in a bucket that keeps versions or did: what is there moves into the
    /// history, except that a bucket whose versioning is suspended has one null version only.
    ///
    /// The caller replaces or deletes the `o` row, and relies on its being as it was.
    pub(super) async fn shelve(
        &self,
        at: &Place<'_>,
        old: Option<ObjectRow>,
        usage: &mut [i64; 2],
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<Stamp, MetaError> {
        let is_null = at.bucket.features.versioning == Versioning::Suspended;
        let newest = match &old {
            Some(old) => Some(old.modified_ms),
            None => {
                let newest = self.newest_past(at.bucket, at.key).await?;
                if let Some((row, _)) = &newest {
                    transaction.expect(row.key.clone(), Some(row.value.clone()));
                }
                newest.map(|(_, past)| past.modified_ms())
            }
        };
        let modified_ms = self.now_ms().max(newest.map_or(0, |newest| newest + 1));
        match old {
            Some(old) if is_null && old.is_null => {
                self.retire(at, &old, usage, (changes, transaction)).await?
            }
            old => {
                if is_null && let Some((row, past)) = self.null_past(at.bucket, at.key).await? {
                    transaction.expect(row.key.clone(), Some(row.value));
                    transaction.delete(row.key);
                    if let Past::Object(object) = &past {
                        self.retire(at, object, usage, (&mut *changes, &mut *transaction)).await?;
                    }
                }
                if let Some(old) = old {
                    self.put_past(at.bucket, at.key, &Past::Object(old), transaction)?;
                }
            }
        }
        Ok(Stamp { modified_ms, is_null })
    }

    /// The row of a named version, or of the current one.
    pub(super) async fn standing(
        &self,
        bucket: &Bucket,
        key: &str,
        name: Option<&VersionName>,
    ) -> Result<Option<Standing>, MetaError> {
        let row_key = schema::object(bucket.id, key);
        let current: Option<(Bytes, ObjectRow)> = match self.store.get(&row_key).await? {
            None => None,
            Some(value) => {
                let row = self.open_object(bucket.id, &row_key, &value)?;
                Some((value, row))
            }
        };
        let has_current = current.is_some();
        if let Some((value, row)) = current {
            let its_name = name_of(row.is_null, row.modified_ms, row.version);
            if name.is_none_or(|name| *name == its_name) {
                let row_of = Row { key: row_key, value };
                return Ok(Some(Standing { row: row_of, is_current: true, past: Past::Object(row) }));
            }
        }
        if bucket.features.versioning == Versioning::Off {
            return Ok(None);
        }
        let found = match name {
            None => self.newest_past(bucket, key).await?,
            Some(VersionName::Null) => self.null_past(bucket, key).await?,
            Some(VersionName::Id { modified_ms, version }) => {
                let row_key = schema::history_row(bucket.id, key, *modified_ms, *version);
                let value = self.store.get(&row_key).await?;
                let row = value.map(|value| Row { key: row_key, value });
                row.map(|row| self.open_past(bucket.id, &row).map(|past| (row, past))).transpose()?
            }
        };
        let Some((row, past)) = found else { return Ok(None) };
        let is_newest = name.is_none()
            || self.newest_past(bucket, key).await?.is_some_and(|(newest, _)| newest.key == row.key);
        Ok(Some(Standing { row, is_current: is_newest && !has_current, past }))
    }

    /// The named version of a key, or its current one. An object stays whole while what this returns lives.
    pub async fn version(
        &self,
        bucket: &Bucket,
        key: &str,
        name: Option<&VersionName>,
    ) -> Result<Option<Found>, MetaError> {
        let entered = self.reads.enter(bucket.id, key).await;
        let Some(standing) = self.standing(bucket, key, name).await? else { return Ok(None) };
        Ok(Some(match standing.past {
            Past::Object(row) => {
                let pin = Some(entered.found(row.version));
                Found::Object(Box::new(Object { pin, ..object_of(bucket.id, key.to_owned(), row) }))
            }
            Past::Marker(marker) => Found::Marker {
                name: name_of(marker.is_null, marker.modified_ms, marker.version),
                modified_ms: marker.modified_ms,
                is_current: standing.is_current,
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_versions_come_back_and_others_are_refused() {
        for name in [
            VersionName::Null,
            VersionName::Id { modified_ms: 1_700_000_000_000, version: VersionId([7; 16]) },
        ] {
            assert_eq!(name.to_string().parse::<VersionName>().unwrap(), name);
        }
        for text in ["", "NULL", "zz", "00", &"0".repeat(47), &"0".repeat(50)] {
            assert!(text.parse::<VersionName>().is_err(), "{text}");
        }
    }

    #[test]
    fn markers_come_back() {
        let marker = Past::Marker(Marker { version: VersionId([3; 16]), modified_ms: 99, is_null: true });
        assert_eq!(Past::decode(&marker.encode()).unwrap(), marker);
        assert!(Past::decode(&[]).is_err() && Past::decode(&[9, 1]).is_err());
    }
}
