//! Versioning: switched on and off by bucket, and listed.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::{existing, owner};
use super::conditions::timestamp;
use super::error;
use super::list::{Encoding, common_prefixes, page_lines};
use super::lock::Refused;
use crate::gateway::Core;
use crate::meta::{Bucket, Object, VersionName, VersionQuery, Versioning};

/// The version that a request names; `None` is the current one.
pub(super) fn named(text: Option<&str>) -> S3Result<Option<VersionName>> {
    let Some(text) = text else { return Ok(None) };
    text.parse().map(Some).map_err(|_| s3_error!(InvalidArgument, "Invalid version id specified"))
}

/// What `x-amz-version-id` says of an object; nothing where no versions were ever kept.
pub(super) fn id_of(bucket: &Bucket, object: &Object) -> Option<String> {
    (bucket.features.versioning != Versioning::Off).then(|| object.version_name().to_string())
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let status = match bucket.features.versioning {
        Versioning::Off => None,
        Versioning::Enabled => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED)),
        Versioning::Suspended => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::SUSPENDED)),
    };
    Ok(S3Response::new(GetBucketVersioningOutput { status, ..GetBucketVersioningOutput::default() }))
}

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutBucketVersioningInput>,
) -> S3Result<S3Response<PutBucketVersioningOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let wanted = input.versioning_configuration;
    if wanted.mfa_delete.as_ref().is_some_and(|mfa| mfa.as_str() == MFADelete::ENABLED) {
        return Err(s3_error!(NotImplemented, "MFA delete is not implemented"));
    }
    let versioning = match wanted.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        _ => return Err(illegal("The versioning status is Enabled or Suspended")),
    };
    core.meta
        .update_features(&bucket, |features| {
            if features.lock && versioning != Versioning::Enabled {
                return Err(Refused(s3_error!(
                    InvalidBucketState,
                    "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed."
                )));
            }
            features.versioning = versioning;
            Ok(())
        })
        .await
        .map_err(|Refused(error)| error)?;
    Ok(S3Response::new(PutBucketVersioningOutput::default()))
}

fn illegal(message: &str) -> S3Error {
    error::custom("IllegalVersioningConfigurationException", http::StatusCode::BAD_REQUEST, message)
}

pub(super) async fn list(
    core: &Arc<Core>,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let max = page_lines(input.max_keys, "max-keys")?;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let key_marker = input.key_marker.unwrap_or_default();
    let version_marker = input.version_id_marker.filter(|text| !text.is_empty());
    if version_marker.is_some() && key_marker.is_empty() {
        return Err(s3_error!(
            InvalidArgument,
            "A version-id marker cannot be specified without a key marker."
        ));
    }
    let query = VersionQuery {
        prefix: input.prefix.unwrap_or_default(),
        delimiter: input.delimiter.unwrap_or_default(),
        key_marker,
        version_marker: named(version_marker.as_deref())?,
        max,
    };
    let page = core.meta.list_versions(&bucket, &query).await.map_err(error::meta)?;
    let owner = owner(core);
    let (mut versions, mut markers) = (Vec::new(), Vec::new());
    for line in page.lines {
        let (key, version_id) = (Some(encoding.text(line.key)), Some(line.name.to_string()));
        let (is_latest, last_modified) = (Some(line.is_latest), Some(timestamp(line.modified_ms)));
        match line.object {
            Some((size, etag)) => versions.push(ObjectVersion {
                e_tag: Some(ETag::Strong(etag)),
                is_latest,
                key,
                last_modified,
                owner: Some(owner.clone()),
                size: i64::try_from(size).ok(),
                storage_class: Some(ObjectVersionStorageClass::from_static(
                    ObjectVersionStorageClass::STANDARD,
                )),
                version_id,
                ..ObjectVersion::default()
            }),
            None => markers.push(DeleteMarkerEntry {
                is_latest,
                key,
                last_modified,
                owner: Some(owner.clone()),
                version_id,
            }),
        }
    }
    let (next_key, next_version) = match page.next {
        Some((key, version)) => (Some(encoding.text(key)), version.map(|version| version.to_string())),
        None => (None, None),
    };
    Ok(S3Response::new(ListObjectVersionsOutput {
        name: Some(bucket.name),
        prefix: Some(encoding.text(query.prefix)),
        delimiter: (!query.delimiter.is_empty()).then(|| encoding.text(query.delimiter)),
        key_marker: Some(encoding.text(query.key_marker)),
        version_id_marker: version_marker,
        max_keys: i32::try_from(max).ok(),
        encoding_type: input.encoding_type,
        is_truncated: Some(next_key.is_some()),
        next_key_marker: next_key,
        next_version_id_marker: next_version,
        common_prefixes: Some(common_prefixes(page.common_prefixes, encoding)),
        versions: Some(versions),
        delete_markers: Some(markers),
        ..ListObjectVersionsOutput::default()
    }))
}
