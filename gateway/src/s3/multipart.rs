//! Multipart uploads: parts are stored like objects and committed one by one; completing is a metadata transaction.

use std::sync::Arc;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, ETag, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Part as PartLine, StorageClass, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::attributes::{self, Checksums, completed_checksum, wanted_checksum, wanted_of};
use super::bucket_settings::encryption_of;
use super::buckets::{existing, owner};
use super::checksum::{Algorithm, Combination, combine};
use super::conditions::{self, timestamp};
use super::list::{Encoding, common_prefixes, page_lines};
use super::objects::cid_headers;
use super::put::{BodyFacts, Received, receive};
use super::{asked, error, etag, lock, tagging};
use crate::gateway::Core;
use crate::meta::{
    Attributes, Bucket, CompletedUpload, Completion, NewPart, Part, Upload, VersionId, Versioning,
};

/// S3's limit on part numbers.
const PART_NUMBER_MAX: i32 = 10_000;
/// Parts read from metadata at a time.
const PARTS_PAGE: usize = 1000;

pub(super) async fn create(
    core: &Arc<Core>,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let S3Request { input, headers, .. } = request;
    let bucket = existing(core, &input.bucket).await?;
    asked::check(&bucket, &headers)?;
    let mut kept = attributes::from_request(&headers, input.metadata.as_ref())?;
    kept.tags = tagging::of_header(input.tagging.as_deref())?;
    kept.lock = lock::of_new(
        &bucket,
        input.object_lock_mode.as_ref().map(|mode| mode.as_str()),
        input.object_lock_retain_until_date.as_ref(),
        input.object_lock_legal_hold_status.as_ref(),
        core.config.clock.now_ms(),
    )?;
    let (algorithm, combination) =
        checksum_choice(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
    kept.checksums.push(wanted_checksum(algorithm, combination));
    let upload = core.meta.create_upload(&bucket, &input.key, kept).await.map_err(error::upload)?;
    let encryption = encryption_of(&bucket);
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(bucket.name),
        key: Some(input.key),
        upload_id: Some(upload_id(upload.id)),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: Some(ChecksumType::from_static(combination.name())),
        server_side_encryption: encryption,
        ..CreateMultipartUploadOutput::default()
    }))
}

fn checksum_choice(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<(Algorithm, Combination)> {
    let algorithm = match algorithm {
        None => Algorithm::Crc64Nvme,
        Some(name) => Algorithm::by_name(name.as_str())
            .ok_or_else(|| s3_error!(InvalidRequest, "Checksum algorithm provided is unsupported"))?,
    };
    let combination = match kind {
        None => Combination::default_of(algorithm),
        Some(name) => Combination::by_name(name.as_str())
            .ok_or_else(|| s3_error!(InvalidRequest, "The checksum type is FULL_OBJECT or COMPOSITE"))?,
    };
    if combination == Combination::FullObject && algorithm.crc().is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "The FULL_OBJECT checksum type cannot be used with the {} checksum algorithm.",
            algorithm.name().to_ascii_uppercase()
        ));
    }
    if combination == Combination::Composite && algorithm == Algorithm::Crc64Nvme {
        return Err(s3_error!(
            InvalidRequest,
            "The COMPOSITE checksum type cannot be used with the CRC64NVME checksum algorithm."
        ));
    }
    Ok((algorithm, combination))
}

pub(super) async fn upload_part(
    core: &Arc<Core>,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let S3Request { input, headers, trailing_headers, extensions: _held, .. } = request;
    let number = part_number(input.part_number)?;
    let (bucket, upload) = existing_upload(core, &input.bucket, &input.key, &input.upload_id).await?;
    let facts = BodyFacts {
        content_length: input.content_length,
        headers: &headers,
        trailers: trailing_headers,
        kept: wanted_of(&upload.attributes.checksums).map(|(algorithm, _)| algorithm),
    };
    let received = receive(core, &bucket, input.body, facts).await?;
    let encryption = encryption_of(&bucket);
    let part = commit_part(core, bucket, (input.key, upload.id, number), received).await?;
    let checksums = Checksums::of(&part.checksums);
    Ok(S3Response::new(UploadPartOutput {
        server_side_encryption: encryption,
        e_tag: Some(ETag::Strong(part.etag)),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        ..UploadPartOutput::default()
    }))
}

/// Commits a part in a task of its own.
pub(super) async fn commit_part(
    core: &Arc<Core>,
    bucket: Bucket,
    (key, upload, number): (String, VersionId, u16),
    received: Received,
) -> S3Result<Part> {
    let tag = etag::of_part(received.stored.blocks.iter().map(|block| block.digest));
    let attributes = Attributes { etag: tag, checksums: received.checksums, ..Attributes::default() };
    let new = NewPart { key, upload, number, attributes, stored: received.stored };
    let meta = Arc::clone(&core.meta);
    let committed = tokio::spawn(async move { meta.put_part(&bucket, new).await });
    let part = committed.await.map_err(|failed| unfinished(&failed))?.map_err(error::upload)?;
    core.wake_deliveries();
    Ok(part)
}

pub(super) async fn complete(
    core: &Arc<Core>,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let outcome = complete_once(core, &bucket, &input).await;
    let done = match outcome {
        Ok(done) => done,
        // It may have been completed by an attempt whose answer the client never got.
        Err(failed) if *failed.code() == S3ErrorCode::NoSuchUpload => {
            completed_before(core, &bucket, &input).await?.ok_or(failed)?
        }
        Err(failed) => return Err(failed),
    };
    let checksums = Checksums::of(&done.checksums);
    let output = CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(ETag::Strong(done.etag.clone())),
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        checksum_type: checksums.kind,
        server_side_encryption: encryption_of(&bucket),
        version_id: (bucket.features.versioning != Versioning::Off).then(|| done.version.to_string()),
        ..CompleteMultipartUploadOutput::default()
    };
    Ok(S3Response::with_headers(output, cid_headers(&done.root_cid)))
}

/// What the upload became, if just this completion succeeded before.
async fn completed_before(
    core: &Core,
    bucket: &Bucket,
    input: &CompleteMultipartUploadInput,
) -> S3Result<Option<CompletedUpload>> {
    let parts = input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or(&[]);
    let (named, id) = (named_parts(parts)?, parse_upload_id(&input.upload_id)?);
    core.meta.completed_upload(bucket, &input.key, id, &named).await.map_err(error::meta)
}

async fn complete_once(
    core: &Arc<Core>,
    bucket: &Bucket,
    input: &CompleteMultipartUploadInput,
) -> S3Result<CompletedUpload> {
    let (bucket, upload) = existing_upload(core, &bucket.name, &input.key, &input.upload_id).await?;
    let condition = conditions::of_put(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let wanted = input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or(&[]);
    let named = named_parts(wanted)?;
    let held = all_parts(core, &bucket, &input.key, upload.id).await?;
    let chosen = chosen_parts(wanted, &named, &held)?;
    let size: u64 = chosen.iter().map(|part| part.size).sum();
    if let Some(expected) = &input.mpu_object_size
        && u64::try_from(*expected).ok() != Some(size)
    {
        return Err(s3_error!(InvalidRequest, "The parts have {size} bytes, not the announced {expected}"));
    }
    let checksums = object_checksum(&upload, &chosen);
    check_kind(input, &upload)?;
    check_announced(input, &checksums)?;
    let completion = Completion {
        key: input.key.clone(),
        upload: upload.id,
        etag: etag::of_parts(chosen.iter().map(|part| part.etag.as_str())),
        parts: named,
        checksums,
        condition,
    };
    let meta = Arc::clone(&core.meta);
    let task_bucket = bucket.clone();
    let completed = tokio::spawn(async move { meta.complete_upload(&task_bucket, completion).await });
    let object = completed.await.map_err(|failed| unfinished(&failed))?.map_err(error::upload)?;
    core.wake_deliveries();
    lock::retain(core, &object).await;
    Ok(CompletedUpload {
        version: object.version_name(),
        etag: object.attributes.etag,
        checksums: object.attributes.checksums,
        root_cid: object.root_cid,
    })
}

/// Numbers and ETags as the client lists them; order and presence are for the commit to judge.
fn named_parts(wanted: &[CompletedPart]) -> S3Result<Vec<(u16, String)>> {
    if wanted.is_empty() {
        return Err(s3_error!(MalformedXML, "The request lists no parts"));
    }
    let mut named = Vec::with_capacity(wanted.len());
    for part in wanted {
        let number = part_number(part.part_number.unwrap_or(0))?;
        let Some(tag) = &part.e_tag else {
            return Err(s3_error!(MalformedXML, "Part {number} is listed without its ETag"));
        };
        named.push((number, tag.value().to_owned()));
    }
    if !named.is_sorted_by(|before, after| before.0 < after.0) {
        return Err(error::upload(crate::meta::UploadError::InvalidPartOrder));
    }
    Ok(named)
}

/// The parts that the client chose, with the checksums that it names compared.
fn chosen_parts(wanted: &[CompletedPart], named: &[(u16, String)], held: &[Part]) -> S3Result<Vec<Part>> {
    let mut chosen = Vec::with_capacity(named.len());
    for (line, (number, tag)) in wanted.iter().zip(named) {
        let invalid = || error::upload(crate::meta::UploadError::InvalidPart { number: *number });
        let at = held.binary_search_by_key(number, |part| part.number).map_err(|_| invalid())?;
        let part = &held[at];
        if part.etag != *tag {
            return Err(invalid());
        }
        check_named(line, *number, &Checksums::of(&part.checksums))?;
        chosen.push(part.clone());
    }
    Ok(chosen)
}

/// Compares the checksums that a client names for a part with those kept of it. One that was not kept cannot be
/// compared, and is refused rather than taken on trust.
fn check_named(line: &CompletedPart, number: u16, kept: &Checksums) -> S3Result<()> {
    for (named, kept, algorithm) in [
        (&line.checksum_crc32, &kept.crc32, "CRC32"),
        (&line.checksum_crc32c, &kept.crc32c, "CRC32C"),
        (&line.checksum_crc64nvme, &kept.crc64nvme, "CRC64NVME"),
        (&line.checksum_sha1, &kept.sha1, "SHA1"),
        (&line.checksum_sha256, &kept.sha256, "SHA256"),
    ] {
        match (named, kept) {
            (None, _) => {}
            (Some(named), Some(kept)) if named == kept => {}
            (Some(_), Some(_)) => {
                return Err(error::upload(crate::meta::UploadError::InvalidPart { number }));
            }
            (Some(_), None) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Part {number} is named with a {algorithm} checksum, and was uploaded without one"
                ));
            }
        }
    }
    Ok(())
}

/// The object's checksum from those of its parts; none when a part lacks it.
fn object_checksum(upload: &Upload, parts: &[Part]) -> Vec<(String, String)> {
    let Some((algorithm, combination)) = wanted_of(&upload.attributes.checksums) else { return Vec::new() };
    let values: Option<Vec<(String, u64)>> = parts
        .iter()
        .map(|part| {
            let kept = part.checksums.iter().find(|(name, _)| name == algorithm.name());
            kept.map(|(_, value)| (value.clone(), part.size))
        })
        .collect();
    values
        .and_then(|values| combine(algorithm, combination, &values))
        .map(|value| completed_checksum(algorithm, combination, value))
        .unwrap_or_default()
}

/// Whether the client completes the upload with the type of checksum that it began it with.
fn check_kind(input: &CompleteMultipartUploadInput, upload: &Upload) -> S3Result<()> {
    let begun = wanted_of(&upload.attributes.checksums).map(|(_, combination)| combination.name());
    match (&input.checksum_type, begun) {
        (Some(asked), Some(begun)) if asked.as_str() != begun => Err(s3_error!(
            InvalidRequest,
            "The upload was created using the {begun} checksum mode. The complete request must use the same checksum mode."
        )),
        _ => Ok(()),
    }
}

fn check_announced(input: &CompleteMultipartUploadInput, kept: &[(String, String)]) -> S3Result<()> {
    let kept = Checksums::of(kept);
    for (announced, computed) in [
        (&input.checksum_crc32, &kept.crc32),
        (&input.checksum_crc32c, &kept.crc32c),
        (&input.checksum_crc64nvme, &kept.crc64nvme),
        (&input.checksum_sha1, &kept.sha1),
        (&input.checksum_sha256, &kept.sha256),
    ] {
        // A composite value may be announced with or without its count.
        if announced.is_some() && computed.is_none() {
            return Err(s3_error!(
                InvalidRequest,
                "The upload was created using another checksum algorithm than the one of the announced checksum"
            ));
        }
        let differs = |announced: &String| {
            computed.as_ref().is_some_and(|computed| {
                computed != announced && computed.split('-').next() != Some(announced.as_str())
            })
        };
        if announced.as_ref().is_some_and(differs) {
            return Err(s3_error!(
                BadDigest,
                "The checksum of the object differs from the one you specified"
            ));
        }
    }
    Ok(())
}

async fn all_parts(core: &Core, bucket: &Bucket, key: &str, upload: VersionId) -> S3Result<Vec<Part>> {
    let mut all: Vec<Part> = Vec::new();
    loop {
        let after = all.last().map_or(0, |part| part.number);
        let (parts, more) =
            core.meta.list_parts(bucket, key, upload, after, PARTS_PAGE).await.map_err(error::upload)?;
        let ends = parts.is_empty() || !more;
        all.extend(parts);
        if ends {
            return Ok(all);
        }
    }
}

pub(super) async fn abort(
    core: &Arc<Core>,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = request.input;
    let (bucket, upload) = existing_upload(core, &input.bucket, &input.key, &input.upload_id).await?;
    core.meta.abort_upload(&bucket, &input.key, upload.id).await.map_err(error::upload)?;
    core.wake_deliveries();
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn list_parts(
    core: &Arc<Core>,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let input = request.input;
    let (bucket, upload) = existing_upload(core, &input.bucket, &input.key, &input.upload_id).await?;
    let max = page_lines(input.max_parts, "max-parts")?;
    let marker = input.part_number_marker.unwrap_or_default();
    let after = u16::try_from(marker)
        .map_err(|_| s3_error!(InvalidArgument, "part-number-marker is not a part number"))?;
    let (parts, more) =
        core.meta.list_parts(&bucket, &input.key, upload.id, after, max).await.map_err(error::upload)?;
    let next = parts.last().map(|part| i32::from(part.number));
    let (checksum_algorithm, checksum_type) = told_checksum(&upload);
    Ok(S3Response::new(ListPartsOutput {
        checksum_algorithm,
        checksum_type,
        bucket: Some(bucket.name),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        is_truncated: Some(more),
        max_parts: i32::try_from(max).ok(),
        part_number_marker: input.part_number_marker,
        next_part_number_marker: next,
        parts: Some(parts.into_iter().map(part_line).collect()),
        initiator: Some(initiator(core)),
        owner: Some(owner(core)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        ..ListPartsOutput::default()
    }))
}

/// What listings say of the checksum that an upload's object will have.
fn told_checksum(upload: &Upload) -> (Option<ChecksumAlgorithm>, Option<ChecksumType>) {
    let Some((algorithm, combination)) = wanted_of(&upload.attributes.checksums) else { return (None, None) };
    let name = algorithm.name().to_ascii_uppercase();
    (Some(ChecksumAlgorithm::from(name)), Some(ChecksumType::from_static(combination.name())))
}

fn part_line(part: Part) -> PartLine {
    let checksums = Checksums::of(&part.checksums);
    PartLine {
        checksum_crc32: checksums.crc32,
        checksum_crc32c: checksums.crc32c,
        checksum_crc64nvme: checksums.crc64nvme,
        checksum_sha1: checksums.sha1,
        checksum_sha256: checksums.sha256,
        e_tag: Some(ETag::Strong(part.etag)),
        last_modified: Some(timestamp(part.modified_ms)),
        part_number: Some(i32::from(part.number)),
        size: i64::try_from(part.size).ok(),
    }
}

pub(super) async fn list_uploads(
    core: &Arc<Core>,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let max = page_lines(input.max_uploads, "max-uploads")?;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.unwrap_or_default();
    let key_marker = input.key_marker.unwrap_or_default();
    let id_marker = match input.upload_id_marker.as_deref() {
        None | Some("") => None,
        Some(text) => Some(parse_upload_id(text)?),
    };
    let page = core
        .meta
        .list_uploads(&bucket, &prefix, &delimiter, (&key_marker, id_marker), max)
        .await
        .map_err(error::meta)?;
    let uploads = page.uploads.into_iter().map(|upload| {
        let (checksum_algorithm, checksum_type) = told_checksum(&upload);
        MultipartUpload {
            checksum_algorithm,
            checksum_type,
            initiated: Some(timestamp(upload.created_ms)),
            initiator: Some(initiator(core)),
            key: Some(encoding.text(upload.key)),
            owner: Some(owner(core)),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            upload_id: Some(upload_id(upload.id)),
        }
    });
    let (next_key, next_id) = match page.next {
        Some((key, id)) => (Some(key), id),
        None => (None, None),
    };
    Ok(S3Response::new(ListMultipartUploadsOutput {
        bucket: Some(bucket.name),
        uploads: Some(uploads.collect()),
        common_prefixes: Some(common_prefixes(page.common_prefixes, encoding)),
        is_truncated: Some(next_key.is_some()),
        next_key_marker: next_key.map(|key| encoding.text(key)),
        next_upload_id_marker: next_id.map(upload_id),
        max_uploads: i32::try_from(max).ok(),
        prefix: Some(encoding.text(prefix)),
        delimiter: (!delimiter.is_empty()).then(|| encoding.text(delimiter)),
        key_marker: Some(encoding.text(key_marker)),
        upload_id_marker: input.upload_id_marker,
        encoding_type: input.encoding_type,
        ..ListMultipartUploadsOutput::default()
    }))
}

pub(super) async fn existing_upload(
    core: &Core,
    bucket: &str,
    key: &str,
    id: &str,
) -> S3Result<(Bucket, Upload)> {
    let bucket = existing(core, bucket).await?;
    let id = parse_upload_id(id)?;
    let upload = core.meta.upload(&bucket, key, id).await.map_err(error::meta)?;
    let upload = upload.ok_or_else(|| error::upload(crate::meta::UploadError::NoSuchUpload))?;
    Ok((bucket, upload))
}

fn upload_id(id: VersionId) -> String {
    hex::encode(id.0)
}

fn parse_upload_id(text: &str) -> S3Result<VersionId> {
    let mut id = [0u8; 16];
    hex::decode_to_slice(text, &mut id).map_err(|_| error::upload(crate::meta::UploadError::NoSuchUpload))?;
    Ok(VersionId(id))
}

pub(super) fn part_number(number: i32) -> S3Result<u16> {
    match u16::try_from(number) {
        Ok(part) if (1..=PART_NUMBER_MAX).contains(&number) => Ok(part),
        _ => Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive")),
    }
}

fn initiator(core: &Core) -> Initiator {
    let owner = owner(core);
    Initiator { display_name: owner.display_name, id: owner.id }
}

pub(super) fn unfinished(failed: &tokio::task::JoinError) -> s3s::S3Error {
    tracing::error!(error = %failed, "a commit did not finish");
    s3_error!(InternalError, "We encountered an internal error. Please try again.")
}
