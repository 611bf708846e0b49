//! Listings: a walk over one table that rolls keys up behind a delimiter and steps over what it rolled up.
//!
//! Memory is one chunk of rows; a group of a million keys behind one prefix costs one seek.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::MetaError;
use super::model::{Bucket, ListPage, ListQuery, ObjectSummary, Upload, UploadPage, VersionId};
use super::row::decode_upload;
use super::store::{Row, prefix_end};
use super::{Meta, next_key, schema};

/// Rows of the first chunk when keys are rolled up: a chunk is mostly skipped when it falls into one group.
const ROLLED_CHUNK: usize = 32;
/// Bytes of an upload's row key behind the object key: a separator and the upload id.
const UPLOAD_SUFFIX_LEN: usize = 17;
/// A continuation token is the base64 of a key, or of a key's prefix with its last byte raised.
const TOKEN_LEN_MAX: usize = 2 * schema::OBJECT_KEY_LEN_MAX;

/// What a walk is told.
struct Walk<'a> {
    /// The table and the bucket.
    table: Vec<u8>,
    prefix: &'a str,
    delimiter: &'a str,
    /// First row key to look at, behind `table`.
    start: Vec<u8>,
    max: usize,
    /// Bytes behind the object key in a row key.
    suffix_len: usize,
}

/// What a walk finds.
enum Found {
    Row(Row),
    Prefix(String),
}

/// The first `max` finds, and where the next walk starts if there are more.
struct Walked {
    found: Vec<Found>,
    next: Option<Vec<u8>>,
}

impl Meta {
    /// ListObjectsV2.
    pub async fn list_objects(&self, bucket: &Bucket, query: &ListQuery) -> Result<ListPage, MetaError> {
        let start = match &query.token {
            Some(token) => decode_token(token)?,
            None if query.start_after.is_empty() => Vec::new(),
            None => next_key(query.start_after.clone().into_bytes()),
        };
        let walk = Walk {
            table: schema::objects(bucket.id),
            prefix: &query.prefix,
            delimiter: &query.delimiter,
            start,
            max: query.max_keys.min(schema::LIST_MAX),
            suffix_len: 0,
        };
        let walked = self.walk(&walk).await?;
        let mut page =
            ListPage { next: walked.next.map(|key| URL_SAFE_NO_PAD.encode(key)), ..ListPage::default() };
        for found in walked.found {
            match found {
                Found::Prefix(prefix) => page.common_prefixes.push(prefix),
                Found::Row(row) => {
                    let object = self.open_object(bucket.id, &row.key, &row.value)?;
                    page.objects.push(ObjectSummary {
                        key: text(&row.key[schema::OBJECT_PREFIX_LEN..])?.to_owned(),
                        size: object.size,
                        etag: object.attributes.etag,
                        checksums: object.attributes.checksums,
                        modified_ms: object.modified_ms,
                        root_cid: object.root_cid,
                    });
                }
            }
        }
        Ok(page)
    }

    /// ListMultipartUploads. The markers are those of the page before.
    pub async fn list_uploads(
        &self,
        bucket: &Bucket,
        prefix: &str,
        delimiter: &str,
        (key_marker, id_marker): (&str, Option<VersionId>),
        max: usize,
    ) -> Result<UploadPage, MetaError> {
        let start = match id_marker {
            _ if key_marker.is_empty() => Vec::new(),
            Some(id) => next_key([key_marker.as_bytes(), &[0], &id.0].concat()),
            // Behind every upload of the key, and behind a prefix that the page before rolled up.
            None if !delimiter.is_empty() && key_marker.ends_with(delimiter) => {
                prefix_end(key_marker.as_bytes())
            }
            None => [key_marker.as_bytes(), &[1]].concat(),
        };
        let table = schema::uploads(bucket.id);
        let max = max.min(schema::LIST_MAX);
        let walk = Walk { table, prefix, delimiter, start, max, suffix_len: UPLOAD_SUFFIX_LEN };
        let walked = self.walk(&walk).await?;
        let more = walked.next.is_some();
        let mut page = UploadPage::default();
        let mut last = None;
        for found in walked.found {
            match found {
                Found::Prefix(prefix) => {
                    last = Some((prefix.clone(), None));
                    page.common_prefixes.push(prefix);
                }
                Found::Row(row) => {
                    let upload = self.open_upload(bucket, &row)?;
                    last = Some((upload.key.clone(), Some(upload.id)));
                    page.uploads.push(upload);
                }
            }
        }
        page.next = last.filter(|_| more);
        Ok(page)
    }

    pub(super) fn open_upload(&self, bucket: &Bucket, row: &Row) -> Result<Upload, MetaError> {
        let body = self.unseal(bucket.id, "upload", &row.key, &row.value)?;
        let (key, id) = row.key[schema::OBJECT_PREFIX_LEN..]
            .split_last_chunk::<UPLOAD_SUFFIX_LEN>()
            .ok_or(MetaError::Corrupt { what: "upload" })?;
        let id = VersionId(id[1..].try_into().unwrap_or_default());
        decode_upload(text(key)?, id, body)
    }

    async fn walk(&self, walk: &Walk<'_>) -> Result<Walked, MetaError> {
        let mut walked = Walked { found: Vec::new(), next: None };
        if walk.max == 0 {
            return Ok(walked);
        }
        let range = [&walk.table[..], walk.prefix.as_bytes()].concat();
        let end = prefix_end(&range);
        let mut at = [&walk.table[..], &walk.start[..]].concat().max(range);
        // Where a walk after the last find would start, and the group that is rolled up right now.
        let mut behind_last = Vec::new();
        let mut group: Option<Vec<u8>> = None;
        let mut chunk = if walk.delimiter.is_empty() { walk.max + 1 } else { ROLLED_CHUNK };
        loop {
            let rows = self.store.page(&at, &end, chunk).await?;
            let Some(last) = rows.last() else { return Ok(walked) };
            at = next_key(last.key.clone());
            for row in rows {
                if group.as_ref().is_some_and(|group| row.key.starts_with(group)) {
                    continue;
                }
                if walked.found.len() == walk.max {
                    walked.next = Some(behind_last.split_off(walk.table.len()));
                    return Ok(walked);
                }
                match common_prefix(walk, &row.key)? {
                    Some(prefix) => {
                        let key = [&walk.table[..], prefix.as_bytes()].concat();
                        behind_last = prefix_end(&key);
                        walked.found.push(Found::Prefix(prefix));
                        group = Some(key);
                    }
                    None => {
                        behind_last = next_key(row.key.clone());
                        walked.found.push(Found::Row(row));
                    }
                }
            }
            // The rest of a group that this chunk ended in is stepped over, not read.
            if let Some(group) = group.as_ref().filter(|group| at.starts_with(group)) {
                at = prefix_end(group);
            } else {
                chunk = (chunk * 2).min(walk.max + 1).max(ROLLED_CHUNK);
            }
        }
    }
}

/// The prefix that this row's key is rolled up to, if it is.
fn common_prefix(walk: &Walk<'_>, row_key: &[u8]) -> Result<Option<String>, MetaError> {
    if walk.delimiter.is_empty() {
        return Ok(None);
    }
    let key = row_key.get(walk.table.len()..row_key.len().saturating_sub(walk.suffix_len));
    let key = text(key.ok_or(MetaError::Corrupt { what: "key" })?)?;
    let rest = key.strip_prefix(walk.prefix).unwrap_or_default();
    Ok(rest.find(walk.delimiter).map(|at| key[..walk.prefix.len() + at + walk.delimiter.len()].to_owned()))
}

fn text(bytes: &[u8]) -> Result<&str, MetaError> {
    std::str::from_utf8(bytes).map_err(|_| MetaError::Corrupt { what: "key" })
}

fn decode_token(token: &str) -> Result<Vec<u8>, MetaError> {
    if token.len() > TOKEN_LEN_MAX {
        return Err(MetaError::Token);
    }
    URL_SAFE_NO_PAD.decode(token).map_err(|_| MetaError::Token)
}
