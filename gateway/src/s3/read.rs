//! Reading: GET, HEAD, and what GetObjectAttributes tells. All choose version and bytes in one place.

use std::ops::Range;
use std::sync::Arc;

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, EXPIRES, IF_RANGE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use s3s::dto::{
    Checksum, ChecksumMode, ETag, GetObjectAttributesInput, GetObjectAttributesOutput,
    GetObjectAttributesParts, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ObjectPart,
    ServerSideEncryption, StorageClass, TimestampFormat,
};
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums};
use super::bucket_settings::encryption_of;
use super::buckets::existing;
use super::conditions::{self, Conditions, timestamp};
use super::lock::{self, LockHeaders};
use super::objects::cid_header;
use super::{error, get, list, tagging, versions};
use crate::gateway::Core;
use crate::layout::PartView;
use crate::meta::{Bucket, Found, Object, VersionName, Versioning};

const VERSION_ID: HeaderName = HeaderName::from_static("x-amz-version-id");
const DELETE_MARKER: HeaderName = HeaderName::from_static("x-amz-delete-marker");

/// The object and its bucket, or 404; 405 for a delete marker that is named.
pub(super) async fn existing_object(
    core: &Core,
    bucket: &str,
    key: &str,
    version: Option<&str>,
) -> S3Result<(Bucket, Object)> {
    let bucket = existing(core, bucket).await?;
    let name = versions::named(version)?;
    if name.is_none() && bucket.features.versioning == Versioning::Off {
        let object = core.meta.object(&bucket, key).await.map_err(error::meta)?;
        return Ok((bucket, object.ok_or_else(|| error::no_such_key(key))?));
    }
    match core.meta.version(&bucket, key, name.as_ref()).await.map_err(error::meta)? {
        Some(Found::Object(object)) => Ok((bucket, *object)),
        Some(Found::Marker { name: marker, modified_ms, .. }) => {
            Err(marked(key, &marker, name.is_some().then_some(modified_ms)))
        }
        None if name.is_some() => Err(error::no_such_version(key)),
        None => Err(error::no_such_key(key)),
    }
}

/// The error for a delete marker, which says that it is one.
fn marked(key: &str, marker: &VersionName, named_ms: Option<u64>) -> S3Error {
    let mut error = if named_ms.is_some() {
        s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource.")
    } else {
        error::no_such_key(key)
    };
    let mut headers = HeaderMap::new();
    headers.insert(DELETE_MARKER, HeaderValue::from_static("true"));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(value) = HeaderValue::try_from(marker.to_string()) {
        headers.insert(VERSION_ID, value);
    }
    if let Some(ms) = named_ms {
        headers.insert(http::header::ALLOW, HeaderValue::from_static("DELETE"));
        let mut text = Vec::new();
        if timestamp(ms).format(TimestampFormat::HttpDate, &mut text).is_ok()
            && let Ok(value) = HeaderValue::from_bytes(&text)
        {
            headers.insert(LAST_MODIFIED, value);
        }
    }
    error.set_headers(headers);
    error
}

/// Which object and which bytes of it a GET or HEAD wants.
struct Selection {
    bucket: String,
    key: String,
    version: Option<String>,
    part_number: Option<i32>,
    range: Option<s3s::dto::Range>,
    /// `If-Range`: the range is wanted only of what the client has the beginning of.
    if_range: Option<HeaderValue>,
    conditions: Conditions,
    checksum_mode: Option<ChecksumMode>,
}

/// The selection of an input of GET or HEAD, which are two types of the library with the same fields.
macro_rules! selection {
    ($input:ident, $headers:ident) => {
        Selection {
            bucket: $input.bucket,
            key: $input.key,
            version: $input.version_id,
            part_number: $input.part_number,
            range: $input.range,
            if_range: $headers.get(IF_RANGE).cloned(),
            conditions: Conditions {
                if_match: $input.if_match,
                if_none_match: $input.if_none_match,
                if_modified_since: $input.if_modified_since,
                if_unmodified_since: $input.if_unmodified_since,
            },
            checksum_mode: $input.checksum_mode,
        }
    };
}

/// What the heads of GET and HEAD say alike, and the fields that only one of them has.
macro_rules! described {
    ($output:ident of $selected:ident, overridden by $overrides:ident; $($field:ident: $value:expr),*) => {{
        let kept = &$selected.object.attributes;
        let stored = |name| attributes::header(kept, name);
        $output {
            accept_ranges: Some("bytes".to_owned()),
            content_length: $selected.len(),
            content_range: $selected.content_range(),
            content_type: $overrides.content_type.or_else(|| Some(attributes::content_type(kept))),
            content_encoding: $overrides.content_encoding.or_else(|| stored(&CONTENT_ENCODING)),
            content_disposition: $overrides.content_disposition.or_else(|| stored(&CONTENT_DISPOSITION)),
            content_language: $overrides.content_language.or_else(|| stored(&CONTENT_LANGUAGE)),
            cache_control: $overrides.cache_control.or_else(|| stored(&CACHE_CONTROL)),
            e_tag: Some(ETag::Strong(kept.etag.clone())),
            last_modified: Some(timestamp($selected.object.modified_ms)),
            metadata: attributes::user_metadata(kept),
            checksum_crc32: $selected.checksums.crc32,
            checksum_crc32c: $selected.checksums.crc32c,
            checksum_crc64nvme: $selected.checksums.crc64nvme,
            checksum_sha1: $selected.checksums.sha1,
            checksum_sha256: $selected.checksums.sha256,
            checksum_type: $selected.checksums.kind,
            parts_count: $selected.parts_count,
            version_id: $selected.version_id,
            server_side_encryption: $selected.encryption,
            object_lock_mode: $selected.lock.mode,
            object_lock_retain_until_date: $selected.lock.until,
            object_lock_legal_hold_status: $selected.lock.hold,
            $($field: $value,)*
            ..$output::default()
        }
    }};
}

/// `response-*`.
struct Overrides {
    content_type: Option<String>,
    content_encoding: Option<String>,
    content_disposition: Option<String>,
    content_language: Option<String>,
    cache_control: Option<String>,
    has_expires: bool,
}

/// The overrides of an input of GET or HEAD.
macro_rules! overrides {
    ($input:ident) => {
        Overrides {
            content_type: $input.response_content_type.take(),
            content_encoding: $input.response_content_encoding.take(),
            content_disposition: $input.response_content_disposition.take(),
            content_language: $input.response_content_language.take(),
            cache_control: $input.response_cache_control.take(),
            has_expires: $input.response_expires.is_some(),
        }
    };
}

/// What GET and HEAD share: the object, the bytes, and everything that their heads say.
struct Selected {
    object: Object,
    /// `None` is all of it.
    range: Option<Range<u64>>,
    checksums: Checksums,
    version_id: Option<String>,
    /// The parts, when one was asked for.
    parts_count: Option<i32>,
    encryption: Option<ServerSideEncryption>,
    lock: LockHeaders,
}

impl Selected {
    fn bytes(&self) -> Range<u64> {
        self.range.clone().unwrap_or(0..self.object.size)
    }

    fn len(&self) -> Option<i64> {
        let bytes = self.bytes();
        i64::try_from(bytes.end - bytes.start).ok()
    }

    fn content_range(&self) -> Option<String> {
        let range = self.range.as_ref()?;
        Some(format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), self.object.size))
    }

    /// Headers that the library has no field for.
    fn headers(&self, expires_overridden: bool) -> HeaderMap {
        let mut headers = cid_header(&self.object);
        if !expires_overridden && let Some(expires) = attributes::expires(&self.object.attributes) {
            headers.insert(EXPIRES, expires);
        }
        headers
    }
}

async fn select(core: &Core, wanted: Selection) -> S3Result<Selected> {
    let (bucket, object) =
        existing_object(core, &wanted.bucket, &wanted.key, wanted.version.as_deref()).await?;
    wanted.conditions.check(&object.attributes.etag, object.modified_ms)?;
    let is_the_same =
        |value: &HeaderValue| conditions::is_same(value, &object.attributes.etag, object.modified_ms);
    let (range, parts_count, of_part) = match wanted.part_number {
        // Another version than the client has a part of: it gets the whole.
        None if !wanted.if_range.as_ref().is_none_or(is_the_same) => (None, None, None),
        None => (get::requested(wanted.range.as_ref(), object.size)?, None, None),
        Some(_) if wanted.range.is_some() => {
            return Err(s3_error!(
                InvalidRequest,
                "Cannot specify both Range header and partNumber query parameter"
            ));
        }
        Some(number) => part(core, &object, number).await?,
    };
    let asked = wanted.checksum_mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    // A checksum of the whole says nothing about a range of it; a part has its own.
    let checksums = match of_part {
        Some(checksum) if asked => Checksums::of_part(checksum, &object.attributes.checksums),
        None if asked && range.is_none() => Checksums::of(&object.attributes.checksums),
        _ => Checksums::default(),
    };
    let encryption = encryption_of(&bucket);
    let version_id = versions::id_of(&bucket, &object);
    let lock = lock::headers_of(&object.attributes.lock);
    Ok(Selected { object, range, checksums, version_id, parts_count, encryption, lock })
}

/// The bytes of a part, how many parts there are, and the part's checksum.
type PartSelection = (Option<Range<u64>>, Option<i32>, Option<(String, String)>);

/// The bytes of part `number`.
async fn part(core: &Core, object: &Object, number: i32) -> S3Result<PartSelection> {
    let count = i32::try_from(object.part_count).ok().filter(|count| *count > 0);
    let out_of_range = || {
        error::custom(
            "InvalidPartNumber",
            StatusCode::RANGE_NOT_SATISFIABLE,
            "The requested partnumber is not satisfiable",
        )
    };
    if number < 1 {
        return Err(s3_error!(
            InvalidArgument,
            "Part number must be an integer between 1 and 10000, inclusive"
        ));
    }
    if object.part_count == 0 {
        // An object of one PUT is its own first part.
        return if number == 1 { Ok((None, None, None)) } else { Err(out_of_range()) };
    }
    let mut parts = core.meta.part_views(object).await.map_err(error::meta)?;
    let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
    if index < parts.len() {
        let part = parts.swap_remove(index);
        return Ok((Some(part.range), count, part.checksum));
    }
    // A last part without bytes is counted and has no range.
    if count.is_some_and(|count| number <= count) && object.size == 0 {
        return Ok((None, count, None));
    }
    Err(out_of_range())
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let S3Request { mut input, headers: asked, .. } = request;
    let overrides = overrides!(input);
    let selected = select(core, selection!(input, asked)).await?;
    let body = get::body(core, &selected.object, selected.bytes()).await?;
    let headers = selected.headers(overrides.has_expires);
    let tag_count = tagging::count_of(&selected.object);
    let output = described!(
        GetObjectOutput of selected, overridden by overrides;
        body: Some(body), tag_count: tag_count
    );
    Ok(S3Response::with_headers(output, headers))
}

pub(super) async fn head(
    core: &Arc<Core>,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let S3Request { mut input, headers: asked, .. } = request;
    let overrides = overrides!(input);
    let selected = select(core, selection!(input, asked)).await?;
    let headers = selected.headers(overrides.has_expires);
    let output = described!(HeadObjectOutput of selected, overridden by overrides;);
    Ok(S3Response::with_headers(output, headers))
}

/// What GetObjectAttributes can be asked for.
const ATTRIBUTES: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];

/// GetObjectAttributes.
pub(super) async fn attributes(
    core: &Arc<Core>,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let input = request.input;
    let (bucket, object) =
        existing_object(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let names = || input.object_attributes.iter().flat_map(|names| names.as_str().split(',')).map(str::trim);
    if names().any(|asked| !ATTRIBUTES.contains(&asked)) {
        return Err(s3_error!(InvalidArgument, "Invalid attribute name specified."));
    }
    let wants = |name: &str| names().any(|asked| asked == name);
    let sums = Checksums::of(&object.attributes.checksums);
    let checksum = Some(Checksum {
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
    });
    let checksum = checksum.filter(|sum| sum.checksum_type.is_some() && wants("Checksum"));
    let object_parts = if wants("ObjectParts") && object.part_count > 0 {
        Some(parts_page(core, &object, input.max_parts, input.part_number_marker).await?)
    } else {
        None
    };
    let class = || StorageClass::from_static(StorageClass::STANDARD);
    let output = GetObjectAttributesOutput {
        e_tag: wants("ETag").then(|| ETag::Strong(object.attributes.etag.clone())),
        checksum,
        object_parts,
        object_size: i64::try_from(object.size).ok().filter(|_| wants("ObjectSize")),
        storage_class: wants("StorageClass").then(class),
        last_modified: Some(timestamp(object.modified_ms)),
        version_id: versions::id_of(&bucket, &object),
        ..GetObjectAttributesOutput::default()
    };
    Ok(S3Response::with_headers(output, cid_header(&object)))
}

async fn parts_page(
    core: &Core,
    object: &Object,
    max: Option<i32>,
    marker: Option<i32>,
) -> S3Result<GetObjectAttributesParts> {
    let max = list::page_lines(max, "max-parts")?;
    let marker = usize::try_from(marker.unwrap_or(0))
        .map_err(|_| s3_error!(InvalidArgument, "part-number-marker must not be negative"))?;
    let views = core.meta.part_views(object).await.map_err(error::meta)?;
    let number = |index: usize| i32::try_from(index + 1).ok();
    let line = |(index, part): (usize, &PartView)| {
        let sums = part.checksum.clone().map(|checksum| Checksums::of(&[checksum])).unwrap_or_default();
        ObjectPart {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            part_number: number(index),
            size: i64::try_from(part.range.end - part.range.start).ok(),
        }
    };
    let parts: Vec<ObjectPart> = views.iter().enumerate().skip(marker).take(max).map(line).collect();
    Ok(GetObjectAttributesParts {
        is_truncated: Some(marker + parts.len() < views.len()),
        max_parts: i32::try_from(max).ok(),
        part_number_marker: i32::try_from(marker).ok(),
        next_part_number_marker: parts.last().and_then(|part| part.part_number),
        total_parts_count: i32::try_from(object.part_count).ok(),
        parts: Some(parts),
    })
}
