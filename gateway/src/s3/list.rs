//! Listings: one page of metadata rows each, no object opened.

use std::sync::Arc;

use s3s::dto::{
    ChecksumAlgorithm, CommonPrefix, ETag, EncodingType, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object as ObjectLine, ObjectStorageClass, Owner,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::attributes::Checksums;
use super::buckets::{existing, owner};
use super::checksum::Algorithm;
use super::conditions::timestamp;
use super::error;
use crate::gateway::Core;
use crate::meta::{ListPage, ListQuery};

/// Lines of one page: S3's limit, and its default.
pub(super) const PAGE_LINES_MAX: i32 = 1000;

pub(super) async fn v2(
    core: &Arc<Core>,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let max_keys = page_lines(input.max_keys, "max-keys")?;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.filter(|text| !text.is_empty());
    let query = ListQuery {
        prefix: prefix.clone(),
        delimiter: delimiter.clone().unwrap_or_default(),
        start_after: behind(input.start_after.as_deref().unwrap_or_default(), &prefix, delimiter.as_deref()),
        token: input.continuation_token.clone(),
        max_keys,
    };
    let page = page(core, &bucket, &query).await?;
    let lines_owner = input.fetch_owner.unwrap_or(false).then(|| owner(core));
    let key_count = i32::try_from(page.objects.len() + page.common_prefixes.len()).ok();
    let is_truncated = page.next.is_some();
    let next = page.next.clone();
    let (contents, prefixes) = lines(page, encoding, lines_owner.as_ref());
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(bucket.name),
        prefix: Some(encoding.text(prefix)),
        max_keys: i32::try_from(max_keys).ok(),
        key_count,
        continuation_token: input.continuation_token,
        is_truncated: Some(is_truncated),
        next_continuation_token: next,
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: delimiter.map(|text| encoding.text(text)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|text| encoding.text(text)),
        request_charged: None,
    }))
}

pub(super) async fn v1(
    core: &Arc<Core>,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let max_keys = page_lines(input.max_keys, "max-keys")?;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.filter(|text| !text.is_empty());
    let marker = input.marker.unwrap_or_default();
    let query = ListQuery {
        prefix: prefix.clone(),
        delimiter: delimiter.clone().unwrap_or_default(),
        start_after: behind(&marker, &prefix, delimiter.as_deref()),
        token: None,
        max_keys,
    };
    let page = page(core, &bucket, &query).await?;
    let is_truncated = page.next.is_some();
    let next_marker = is_truncated.then(|| last_line(&page)).flatten();
    let (contents, prefixes) = lines(page, encoding, Some(&owner(core)));
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(bucket.name),
        prefix: Some(encoding.text(prefix)),
        marker: Some(encoding.text(marker)),
        max_keys: i32::try_from(max_keys).ok(),
        is_truncated: Some(is_truncated),
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: delimiter.map(|text| encoding.text(text)),
        next_marker: next_marker.map(|text| encoding.text(text)),
        encoding_type: input.encoding_type,
        request_charged: None,
    }))
}

/// A common prefix is listed only behind the marker. One that the marker begins with is not behind it, so all keys under
/// it are stepped over.
fn behind(marker: &str, prefix: &str, delimiter: Option<&str>) -> String {
    let rolled_up = delimiter.zip(marker.strip_prefix(prefix)).and_then(|(delimiter, rest)| {
        rest.find(delimiter).map(|at| &marker[..prefix.len() + at + delimiter.len()])
    });
    rolled_up.map_or_else(|| marker.to_owned(), |prefix| format!("{prefix}{}", char::MAX))
}

fn last_line(page: &ListPage) -> Option<String> {
    let object = page.objects.last().map(|object| object.key.as_str());
    let prefix = page.common_prefixes.last().map(String::as_str);
    object.max(prefix).map(str::to_owned)
}

async fn page(core: &Core, bucket: &crate::meta::Bucket, query: &ListQuery) -> S3Result<ListPage> {
    if query.max_keys == 0 {
        return Ok(ListPage::default());
    }
    core.meta.list_objects(bucket, query).await.map_err(error::meta)
}

/// How many lines a page may have.
pub(super) fn page_lines(asked: Option<i32>, what: &str) -> S3Result<usize> {
    let asked = asked.unwrap_or(PAGE_LINES_MAX).min(PAGE_LINES_MAX);
    usize::try_from(asked).map_err(|_| s3_error!(InvalidArgument, "{what} must not be negative"))
}

fn lines(page: ListPage, encoding: Encoding, owner: Option<&Owner>) -> (Vec<ObjectLine>, Vec<CommonPrefix>) {
    let objects = page
        .objects
        .into_iter()
        .map(|object| ObjectLine {
            checksum_algorithm: algorithms(&object.checksums),
            checksum_type: Checksums::of(&object.checksums).kind,
            e_tag: Some(ETag::Strong(object.etag)),
            key: Some(encoding.text(object.key)),
            last_modified: Some(timestamp(object.modified_ms)),
            owner: owner.cloned(),
            size: i64::try_from(object.size).ok(),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..ObjectLine::default()
        })
        .collect();
    (objects, common_prefixes(page.common_prefixes, encoding))
}

/// The algorithms of an object's checksums, as listings name them.
fn algorithms(kept: &[(String, String)]) -> Option<Vec<ChecksumAlgorithm>> {
    let names: Vec<_> = kept
        .iter()
        .filter_map(|(name, _)| Algorithm::by_name(name))
        .map(|algorithm| ChecksumAlgorithm::from(algorithm.name().to_ascii_uppercase()))
        .collect();
    (!names.is_empty()).then_some(names)
}

/// `CommonPrefixes`.
pub(super) fn common_prefixes(prefixes: Vec<String>, encoding: Encoding) -> Vec<CommonPrefix> {
    prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(encoding.text(prefix)) }).collect()
}

/// Whether names are percent-encoded in the answer: XML cannot carry every key as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    /// What `encoding-type` asks for.
    pub(super) fn of(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None => Ok(Self::Plain),
            Some(EncodingType::URL) => Ok(Self::Url),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    /// `text` in this encoding.
    pub(super) fn text(self, text: String) -> String {
        match self {
            Self::Plain => text,
            Self::Url => percent_encoded(&text),
        }
    }
}

fn percent_encoded(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_encoding_keeps_slashes_and_escapes_the_rest() {
        assert_eq!(Encoding::Url.text("a/b c+d\u{1}é~".to_owned()), "a/b%20c%2Bd%01%C3%A9~");
        assert_eq!(Encoding::Plain.text("a b".to_owned()), "a b");
        assert!(Encoding::of(Some(&EncodingType::from_static("base64"))).is_err());
    }

    #[test]
    fn a_prefix_as_marker_skips_everything_under_it() {
        for marker in ["photos/", "photos/a", "photos/a/b"] {
            assert!(behind(marker, "", Some("/")).as_str() > "photos/zzz");
            assert!(behind(marker, "", Some("/")).as_str() < "photos0");
        }
        assert_eq!(behind("photos/a", "photos/", Some("/")), "photos/a");
        assert_eq!(behind("photos", "", Some("/")), "photos");
        assert_eq!(behind("photos/", "", None), "photos/");
    }

    #[test]
    fn page_sizes_are_cut_to_the_limit_and_negative_ones_refused() {
        assert_eq!(page_lines(None, "max-keys").unwrap(), 1000);
        assert_eq!(page_lines(Some(5000), "max-keys").unwrap(), 1000);
        assert_eq!(page_lines(Some(7), "max-keys").unwrap(), 7);
        assert!(page_lines(Some(-1), "max-keys").is_err());
    }
}
