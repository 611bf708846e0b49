//! DeleteObject and DeleteObjects, with their conditions, versions and locks.

use std::sync::Arc;

use futures::StreamExt;
use http::StatusCode;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETagCondition, Error as DeleteErrorLine, ObjectIdentifier, Timestamp,
};
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::{access, bucket_policy, error, lock, versions};
use crate::gateway::Core;
use crate::meta::{Bucket, DeleteCondition, Deleted, Deletion};

/// Keys that one DeleteObjects may name: S3's limit.
const DELETE_KEYS_MAX: usize = 1000;
/// Keys of one DeleteObjects deleted at the same time; their transactions then share a sync.
const DELETES_AT_ONCE: usize = 32;

fn condition(
    etag: Option<String>,
    modified: Option<&Timestamp>,
    size: Option<i64>,
) -> S3Result<DeleteCondition> {
    let size = size.map(u64::try_from).transpose();
    let size = size.map_err(|_| s3_error!(InvalidArgument, "The size must not be negative"))?;
    Ok(DeleteCondition { etag, modified_s: modified.map(lock::ms_of).transpose()?.map(|ms| ms / 1000), size })
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let etag = input.if_match.map(|condition| match condition {
        ETagCondition::Any => "*".to_owned(),
        ETagCondition::ETag(etag) => etag.into_value(),
    });
    let deletion = Deletion {
        version: versions::named(input.version_id.as_deref())?,
        condition: condition(etag, input.if_match_last_modified_time.as_ref(), input.if_match_size)?,
        bypass_governance: input.bypass_governance_retention == Some(true),
    };
    let deleted = remove(core, &bucket, &input.key, deletion).await?;
    let version = deleted.removed.or(deleted.marker).map(|name| name.to_string());
    let output = DeleteObjectOutput {
        delete_marker: deleted.marker.map(|_| true),
        version_id: version,
        ..DeleteObjectOutput::default()
    };
    Ok(S3Response::with_status(output, StatusCode::NO_CONTENT))
}

/// Deletes in a task of its own; that nothing was there is no error.
async fn remove(core: &Arc<Core>, bucket: &Bucket, key: &str, deletion: Deletion) -> S3Result<Deleted> {
    let names_version = deletion.version.is_some();
    let (meta, task_bucket, task_key) = (Arc::clone(&core.meta), bucket.clone(), key.to_owned());
    let removed = tokio::spawn(async move { meta.delete(&task_bucket, &task_key, &deletion).await });
    let deleted = match removed.await {
        Ok(result) => result.map_err(|failed| error::delete(failed, key, names_version))?,
        Err(failed) => {
            tracing::error!(error = %failed, "a deletion did not finish");
            return Err(s3_error!(InternalError, "We encountered an internal error. Please try again."));
        }
    };
    core.wake_deliveries();
    Ok(deleted)
}

pub(super) async fn delete_many(
    core: &Arc<Core>,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let access_key = access::key_of(&request.extensions);
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    if input.delete.objects.is_empty() || input.delete.objects.len() > DELETE_KEYS_MAX {
        return Err(s3_error!(MalformedXML, "DeleteObjects names 1 to 1000 keys"));
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    let bypass = input.bypass_governance_retention == Some(true);
    // Deletions of one key keep their order: they are told apart by version, and made one after another.
    let mut outcomes = futures::stream::iter(input.delete.objects)
        .map(|wanted| one_of_many(core, &bucket, &access_key, wanted, bypass))
        .buffered(DELETES_AT_ONCE);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(_) if quiet => {}
            Ok(line) => deleted.push(line),
            Err(line) => errors.push(*line),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..DeleteObjectsOutput::default()
    }))
}

async fn one_of_many(
    core: &Arc<Core>,
    bucket: &Bucket,
    access_key: &str,
    wanted: ObjectIdentifier,
    bypass_governance: bool,
) -> Result<DeletedObject, Box<DeleteErrorLine>> {
    let attempt = async {
        bucket_policy::may(core, bucket, access_key, "DeleteObject", &wanted.key).await?;
        let etag = wanted.e_tag.clone().map(s3s::dto::ETag::into_value);
        let deletion = Deletion {
            version: versions::named(wanted.version_id.as_deref())?,
            condition: condition(etag, wanted.last_modified_time.as_ref(), wanted.size)?,
            bypass_governance,
        };
        remove(core, bucket, &wanted.key, deletion).await
    };
    match attempt.await {
        Ok(deleted) => Ok(DeletedObject {
            delete_marker: deleted.marker.map(|_| true),
            delete_marker_version_id: deleted.marker.map(|name| name.to_string()),
            version_id: deleted.removed.map(|name| name.to_string()),
            key: Some(wanted.key),
        }),
        Err(error) => Err(Box::new(error_line(wanted, &error))),
    }
}

fn error_line(wanted: ObjectIdentifier, error: &S3Error) -> DeleteErrorLine {
    DeleteErrorLine {
        code: Some(error.code().as_str().to_owned()),
        key: Some(wanted.key),
        message: error.message().map(str::to_owned),
        version_id: wanted.version_id,
    }
}
