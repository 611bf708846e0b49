//! ListObjectVersions: the current versions and the history of a bucket, merged key by key, the newest first.
//!
//! Both tables are in key order, so one step looks at the next row of each; memory is a chunk of either.

use std::collections::VecDeque;

use holdfast_protocol::time::UnixMs;

use super::error::MetaError;
use super::history::{Past, VersionName, name_of};
use super::model::{Bucket, VersionId};
use super::store::{Row, prefix_end};
use super::{Meta, next_key, schema};

/// Rows of one chunk of either table.
const CHUNK: usize = 256;

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct VersionQuery {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Keys that hold it behind the prefix are rolled up; empty is none.
    pub delimiter: String,
    /// Only keys behind this one, or versions of it behind `version_marker`.
    pub key_marker: String,
    /// See `key_marker`.
    pub version_marker: Option<VersionName>,
    /// Lines and common prefixes together.
    pub max: usize,
}

/// A version or a delete marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionLine {
    /// The key.
    pub key: String,
    /// Its name.
    pub name: VersionName,
    /// When it was written.
    pub modified_ms: UnixMs,
    /// Whether it is the newest of its key.
    pub is_latest: bool,
    /// Bytes and entity tag; `None` of a delete marker.
    pub object: Option<(u64, String)>,
}

/// A page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionPage {
    /// Versions and delete markers, by key and then from the newest.
    pub lines: Vec<VersionLine>,
    /// Common prefixes in order.
    pub common_prefixes: Vec<String>,
    /// Key and version markers of the next page.
    pub next: Option<(String, Option<VersionName>)>,
}

/// One of the two tables.
struct Cursor {
    rows: VecDeque<Row>,
    table: Vec<u8>,
    start: Vec<u8>,
    end: Vec<u8>,
    suffix_len: usize,
}

impl Cursor {
    fn new(table: Vec<u8>, prefix: &str, behind: &[u8], suffix_len: usize) -> Self {
        let range = [&table[..], prefix.as_bytes()].concat();
        let start = [&table[..], behind].concat().max(range.clone());
        Self { rows: VecDeque::new(), table, start, end: prefix_end(&range), suffix_len }
    }

    async fn peek(&mut self, meta: &Meta) -> Result<Option<&Row>, MetaError> {
        if self.rows.is_empty() && self.start < self.end {
            self.rows = meta.store.page(&self.start, &self.end, CHUNK).await?.into();
            match self.rows.back() {
                Some(last) => self.start = next_key(last.key.clone()),
                None => self.start.clone_from(&self.end),
            }
        }
        Ok(self.rows.front())
    }

    fn key_of(&self, row: &Row) -> Result<String, MetaError> {
        let corrupt = MetaError::Corrupt { what: "version" };
        let end = row.key.len().checked_sub(self.suffix_len).ok_or_else(|| corrupt.clone())?;
        let key = row.key.get(self.table.len()..end).ok_or_else(|| corrupt.clone())?;
        std::str::from_utf8(key).map(str::to_owned).map_err(|_| corrupt)
    }

    /// Steps over every key that begins with `prefix`.
    fn skip(&mut self, prefix: &str) {
        let group = [&self.table[..], prefix.as_bytes()].concat();
        let behind = prefix_end(&group);
        while self.rows.front().is_some_and(|row| row.key < behind) {
            self.rows.pop_front();
        }
        if self.rows.is_empty() && self.start < behind {
            self.start = behind;
        }
    }
}

impl Meta {
    /// ListObjectVersions.
    pub async fn list_versions(
        &self,
        bucket: &Bucket,
        query: &VersionQuery,
    ) -> Result<VersionPage, MetaError> {
        let max = query.max.min(schema::LIST_MAX);
        let mut page = VersionPage::default();
        if max == 0 {
            return Ok(page);
        }
        let mut walk = VersionWalk::new(bucket, query);
        let mut last: Option<(String, Option<VersionName>)> = None;
        while let Some(line) = walk.next(self, bucket).await? {
            if page.lines.len() + page.common_prefixes.len() == max {
                page.next = last;
                return Ok(page);
            }
            let rolled = rolled_up(&line.key, query);
            match rolled {
                Some(prefix) => {
                    walk.skip(&prefix);
                    last = Some((prefix.clone(), None));
                    page.common_prefixes.push(prefix);
                }
                None => {
                    last = Some((line.key.clone(), Some(line.name)));
                    page.lines.push(line);
                }
            }
        }
        Ok(page)
    }
}

fn rolled_up(key: &str, query: &VersionQuery) -> Option<String> {
    if query.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(query.prefix.as_str())?;
    let at = rest.find(query.delimiter.as_str())?;
    Some(key[..query.prefix.len() + at + query.delimiter.len()].to_owned())
}

struct VersionWalk {
    current: Cursor,
    past: Cursor,
    /// The key whose versions are being listed.
    at_key: Option<String>,
    /// Lines of the marker's key up to this name are skipped.
    behind: Option<(String, VersionName)>,
}

impl VersionWalk {
    fn new(bucket: &Bucket, query: &VersionQuery) -> Self {
        let marker = query.key_marker.as_bytes();
        let is_prefix = !query.delimiter.is_empty() && query.key_marker.ends_with(&query.delimiter);
        let (current_start, past_start) = match query.version_marker {
            _ if query.key_marker.is_empty() => (Vec::new(), Vec::new()),
            Some(_) => (marker.to_vec(), [marker, &[0]].concat()),
            None if is_prefix => (prefix_end(marker), prefix_end(marker)),
            None => (next_key(marker.to_vec()), [marker, &[1]].concat()),
        };
        let behind = query.version_marker.map(|name| (query.key_marker.clone(), name));
        Self {
            current: Cursor::new(schema::objects(bucket.id), &query.prefix, &current_start, 0),
            past: Cursor::new(
                schema::history(bucket.id),
                &query.prefix,
                &past_start,
                schema::HISTORY_SUFFIX_LEN,
            ),
            at_key: None,
            behind,
        }
    }

    fn skip(&mut self, prefix: &str) {
        self.current.skip(prefix);
        self.past.skip(prefix);
    }

    async fn next(&mut self, meta: &Meta, bucket: &Bucket) -> Result<Option<VersionLine>, MetaError> {
        loop {
            let Some(line) = self.step(meta, bucket).await? else { return Ok(None) };
            match &self.behind {
                // By age and not by name alone: the marker's version may be gone by now.
                Some((key, VersionName::Id { modified_ms, .. })) if *key == line.key => {
                    if line.modified_ms < *modified_ms {
                        self.behind = None;
                        return Ok(Some(line));
                    }
                }
                Some((key, VersionName::Null)) if *key == line.key => {
                    if line.name == VersionName::Null {
                        self.behind = None;
                    }
                }
                _ => return Ok(Some(line)),
            }
        }
    }

    async fn step(&mut self, meta: &Meta, bucket: &Bucket) -> Result<Option<VersionLine>, MetaError> {
        self.current.peek(meta).await?;
        self.past.peek(meta).await?;
        let current = self.current.rows.front().map(|row| self.current.key_of(row)).transpose()?;
        let past = self.past.rows.front().map(|row| self.past.key_of(row)).transpose()?;
        let takes_current = match (&current, &past) {
            (None, None) => return Ok(None),
            (Some(current), Some(past)) => current <= past,
            (current, _) => current.is_some(),
        };
        if takes_current {
            let Some(row) = self.current.rows.pop_front() else { return Ok(None) };
            let object = meta.open_object(bucket.id, &row.key, &row.value)?;
            let key = current.unwrap_or_default();
            self.at_key = Some(key.clone());
            return Ok(Some(line(
                key,
                true,
                (object.is_null, object.modified_ms, object.version),
                Some((object.size, object.attributes.etag)),
            )));
        }
        let Some(row) = self.past.rows.pop_front() else { return Ok(None) };
        let key = past.unwrap_or_default();
        let is_latest = self.at_key.as_ref() != Some(&key);
        self.at_key = Some(key.clone());
        Ok(Some(match meta.open_past(bucket.id, &row)? {
            Past::Object(object) => line(
                key,
                is_latest,
                (object.is_null, object.modified_ms, object.version),
                Some((object.size, object.attributes.etag)),
            ),
            Past::Marker(marker) => {
                line(key, is_latest, (marker.is_null, marker.modified_ms, marker.version), None)
            }
        }))
    }
}

fn line(
    key: String,
    is_latest: bool,
    (is_null, modified_ms, version): (bool, UnixMs, VersionId),
    object: Option<(u64, String)>,
) -> VersionLine {
    VersionLine { key, name: name_of(is_null, modified_ms, version), modified_ms, is_latest, object }
}
