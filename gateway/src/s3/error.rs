//! Our errors as S3's: code, status, a message that says what happened, and `Retry-After` where waiting helps.
//!
//! Server faults are logged here, once, where they are handled; clients' mistakes are not.

use holdfast_protocol::record::Policy;
use holdfast_retrieval::fetch::FetchError;
use holdfast_retrieval::write::WriteError;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::get::ReadError;
use crate::crypt::CryptError;
use crate::gateway::plane::NotWritable;
use crate::meta::{Bucket, BucketError, DeleteError, MetaError, PutError, StoreError, UploadError};

/// What a client is told to wait after a refused write.
const RETRY_AFTER_S: u16 = 2;

/// 503 SlowDown.
pub(crate) fn slow_down(message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::SlowDown, message);
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    error.set_headers(headers);
    error
}

/// 500, with the cause in the log and not in the answer.
fn internal(error: &(dyn std::error::Error + 'static)) -> S3Error {
    tracing::error!(error, "a request failed by our own fault");
    s3_error!(InternalError, "We encountered an internal error. Please try again.")
}

/// The policy of a bucket's stripes.
pub(crate) fn policy_of(bucket: &Bucket) -> S3Result<Policy> {
    Policy::by_name(bucket.policy)
        .ok_or_else(|| s3_error!(InternalError, "The bucket has a policy that objects cannot have"))
}

/// Too few nodes, seen before a write.
pub(crate) fn not_writable(error: NotWritable) -> S3Error {
    slow_down(error.to_string())
}

/// A write that found too few nodes, or failed.
pub(crate) fn write(error: WriteError) -> S3Error {
    match &error {
        // More nodes are the operator's to bring, and no fault of this request: it says what is missing.
        WriteError::Placement(_) => slow_down(error.to_string()),
        _ if error.is_retryable() => slow_down(error.to_string()),
        _ => internal(&error),
    }
}

/// A read.
pub(crate) fn read(error: ReadError) -> S3Error {
    match error {
        ReadError::Meta(error) => meta(error),
        ReadError::Fetch(error) => fetch(error),
        ReadError::Crypt(_) | ReadError::Short { .. } => internal(&error),
    }
}

/// Blocks that cannot be read now, or at all.
fn fetch(error: FetchError) -> S3Error {
    if error.is_retryable() {
        tracing::warn!(%error, "a read was refused; it may be tried again");
        slow_down(error.to_string())
    } else {
        internal(&error)
    }
}

/// Metadata.
pub(crate) fn meta(error: MetaError) -> S3Error {
    match &error {
        MetaError::Bounds { what } => {
            return s3_error!(InvalidArgument, "The request is out of bounds: {what}");
        }
        MetaError::Token => {
            return s3_error!(InvalidArgument, "The continuation token provided is incorrect");
        }
        _ => {}
    }
    match &error {
        // What a database says about itself is for its operator; the client hears that waiting helps.
        MetaError::Store(source) if source.is_retryable() || matches!(source, StoreError::Closed) => {
            tracing::warn!(error = %source, "a request was refused for want of the metadata");
            slow_down("The metadata cannot be reached right now; try again".to_owned())
        }
        error if error.is_retryable() => slow_down(error.to_string()),
        error => internal(error),
    }
}

/// Keys.
pub(crate) fn crypt(error: CryptError) -> S3Error {
    internal(&error)
}

/// Buckets.
pub(crate) fn bucket(error: BucketError) -> S3Error {
    match error {
        // There is one owner: the namespace. S3's code for "you have it already" is what scripts look for.
        BucketError::Exists { name } => {
            s3_error!(BucketAlreadyOwnedByYou, "The bucket {name} exists already and is yours")
        }
        BucketError::NotFound { name } => no_such_bucket(&name),
        BucketError::NotEmpty { name } => {
            s3_error!(BucketNotEmpty, "The bucket {name} still holds objects or unfinished uploads")
        }
        BucketError::Meta(error) => meta(error),
    }
}

/// 404 for a bucket.
pub(crate) fn no_such_bucket(name: &str) -> S3Error {
    s3_error!(NoSuchBucket, "The specified bucket {name} does not exist")
}

/// 404 for a key.
pub(crate) fn no_such_key(key: &str) -> S3Error {
    s3_error!(NoSuchKey, "The specified key {key} does not exist")
}

/// The commit of an object.
pub(crate) fn put(error: PutError) -> S3Error {
    match error {
        PutError::NoSuchBucket => s3_error!(NoSuchBucket, "The bucket was removed during the upload"),
        PutError::PreconditionFailed => {
            s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
        }
        PutError::SourceGone => {
            s3_error!(NoSuchKey, "The source of the copy was deleted or overwritten meanwhile")
        }
        PutError::StripeReleased { .. } => slow_down(error.to_string()),
        PutError::Meta(error) => meta(error),
        PutError::Unplaced { .. } | PutError::Size { .. } => internal(&error),
    }
}

/// 404 for a version.
pub(crate) fn no_such_version(key: &str) -> S3Error {
    s3_error!(NoSuchVersion, "The specified version of {key} does not exist")
}

/// A deletion, or a change of what a version carries.
pub(crate) fn delete(error: DeleteError, key: &str, names_version: bool) -> S3Error {
    match error {
        DeleteError::NoSuchBucket => s3_error!(NoSuchBucket, "The bucket was removed meanwhile"),
        DeleteError::PreconditionFailed => {
            s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
        }
        DeleteError::Locked => {
            s3_error!(AccessDenied, "Access Denied because object protected by object lock.")
        }
        DeleteError::LockShrinks => {
            s3_error!(AccessDenied, "The retention of this version may only be made longer")
        }
        DeleteError::NoSuchVersion if names_version => no_such_version(key),
        DeleteError::NoSuchVersion => no_such_key(key),
        DeleteError::IsMarker if names_version => {
            s3_error!(MethodNotAllowed, "The specified method is not allowed against a delete marker")
        }
        DeleteError::IsMarker => no_such_key(key),
        DeleteError::Meta(error) => meta(error),
    }
}

/// Multipart uploads.
pub(crate) fn upload(error: UploadError) -> S3Error {
    match error {
        UploadError::NoSuchUpload => s3_error!(
            NoSuchUpload,
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
        ),
        UploadError::PartNumber { .. } => {
            s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive")
        }
        UploadError::InvalidPart { number } => s3_error!(
            InvalidPart,
            "Part {number} could not be found, or its entity tag is not the one of the uploaded part"
        ),
        UploadError::InvalidPartOrder => s3_error!(
            InvalidPartOrder,
            "The list of parts was not in ascending order. Parts must be ordered by part number."
        ),
        UploadError::EntityTooSmall { number, size } => {
            s3_error!(EntityTooSmall, "Part {number} has {size} bytes; every part but the last needs 5 MiB")
        }
        UploadError::Put(error) => put(error),
    }
}

/// A document that is longer than any that an operation needs.
pub(crate) fn document_too_long() -> S3Error {
    s3_error!(MaxMessageLengthExceeded, "Your request was too big.")
}

/// A request body that could not be read to its end.
///
/// The library's stream errors are private types, so they are told apart by the names that they print.
pub(crate) fn body(error: &(dyn std::error::Error + Send + Sync + 'static)) -> S3Error {
    let text = error.to_string();
    let has = |name: &str| text.contains(name);
    if has("RequestBodySlow") {
        return s3_error!(
            RequestTimeout,
            "Your socket connection to the server was not read from or written to within the timeout period."
        );
    }
    if has("ChunkMemory") {
        return slow_down("Too many long signed chunks are under way; sign smaller chunks".to_owned());
    }
    if has("SignatureMismatch") {
        return s3_error!(
            SignatureDoesNotMatch,
            "The signature of a chunk of the body does not match the one that we calculated"
        );
    }
    if has("Sha256Mismatch") {
        return sha256_differs();
    }
    if has("FormatError") || has("TooLarge") || has("TooManyTrailerHeaders") {
        return s3_error!(InvalidRequest, "The aws-chunked framing of the body is not well formed");
    }
    if has("LengthMismatch") {
        return s3_error!(InvalidRequest, "The body is longer than announced");
    }
    s3_error!(
        IncompleteBody,
        "You did not provide the number of bytes specified by the Content-Length HTTP header"
    )
}

/// The body is not the one that was signed.
pub(crate) fn sha256_differs() -> S3Error {
    let mut error = S3Error::with_message(
        sha256_mismatch(),
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    );
    error.set_status_code(StatusCode::BAD_REQUEST);
    error
}

/// An error of S3 that the library has no name for, or another status.
pub(crate) fn custom(code: &'static str, status: StatusCode, message: impl Into<String>) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message.into());
    error.set_status_code(status);
    error
}

/// A code of S3 that the library has no name for.
fn sha256_mismatch() -> S3ErrorCode {
    S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into())
}

#[cfg(test)]
mod tests {
    use holdfast_retrieval::placement::{DomainCount, PlacementError, Rules};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str);

    #[test]
    fn a_network_too_small_for_a_stripe_is_no_fault_of_ours() {
        let policy = Policy::LOCAL;
        let lacks = PlacementError::Lacks {
            policy: policy.name,
            rules: Rules::of(&policy),
            needed: 6,
            fits: 5,
            known: DomainCount { nodes: 5, operators: 1, networks: 1, asns: 1 },
            offer: None,
        };
        let said = write(lacks.into());
        assert_eq!(said.code(), &S3ErrorCode::SlowDown);
        assert!(
            said.message().is_some_and(|message| message.contains("needs 6 nodes, 5 are known")),
            "{said}"
        );
    }

    #[test]
    fn body_errors_become_the_codes_that_clients_know() {
        for (said, code) in [
            ("AwsChunkedStreamError: SignatureMismatch", S3ErrorCode::SignatureDoesNotMatch),
            ("AwsChunkedStreamError: Incomplete", S3ErrorCode::IncompleteBody),
            ("AwsChunkedStreamError: FormatError", S3ErrorCode::InvalidRequest),
            ("UploadStreamError: Sha256Mismatch", sha256_mismatch()),
            (
                "UploadStreamError: Underlying: RequestBodySlow: the client stopped",
                S3ErrorCode::RequestTimeout,
            ),
            ("RequestBodyBroken: the body ended", S3ErrorCode::IncompleteBody),
        ] {
            assert_eq!(body(&Said(said)).code(), &code, "{said}");
        }
    }

    #[test]
    fn too_few_nodes_is_503_with_retry_after() {
        let error = not_writable(NotWritable { policy: "local", needed: 5, up: 4, known: 6 });
        assert_eq!(error.code(), &S3ErrorCode::SlowDown);
        assert_eq!(error.status_code(), Some(http::StatusCode::SERVICE_UNAVAILABLE));
        assert!(error.headers().unwrap().contains_key(RETRY_AFTER));
        assert!(error.message().unwrap().contains("needs 5 nodes"));
    }

    #[test]
    fn multipart_mistakes_have_their_own_codes() {
        assert_eq!(upload(UploadError::InvalidPartOrder).code(), &S3ErrorCode::InvalidPartOrder);
        assert_eq!(upload(UploadError::InvalidPart { number: 2 }).code(), &S3ErrorCode::InvalidPart);
        assert_eq!(
            upload(UploadError::EntityTooSmall { number: 1, size: 5 }).code(),
            &S3ErrorCode::EntityTooSmall
        );
        assert_eq!(upload(UploadError::NoSuchUpload).code(), &S3ErrorCode::NoSuchUpload);
    }
}
