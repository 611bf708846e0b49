//! Snapshots over S3, for whoever has rights in the bucket that they are taken of: no admin token is needed.
//!
//! | request, signed like any other | what it takes | answer |
//! |---|---|---|
//! | `PUT /?holdfast-snapshot=NAME&bucket=B[&prefix=P/]` | read, list and write below the prefix | 201, the snapshot in JSON |
//! | `GET /?holdfast-snapshot` | list, below each one's prefix | those snapshots in JSON |
//! | `DELETE /?holdfast-snapshot=NAME` | delete below its prefix | 204 |
//!
//! A snapshot is read as the bucket `cid-…`: by keys that name it, and by those that may read where it was taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use parking_lot::Mutex;
use s3s::route::S3Route;
use s3s::{Body, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::access::{Caller, Gatekeeper, denied};
use super::policy::Verdict;
use super::ticket::{TicketRoute, parameter};
use super::{bucket_policy, error};
use crate::gateway::Core;
use crate::keys::Operation;
use crate::snapshot::{self, SnapshotError, is_snapshot_bucket};
use crate::web::api::{SnapshotList, SnapshotRow};

const MARK: &str = "holdfast-snapshot";
/// How long it is remembered where a snapshot was taken: the list of all is read to find out.
const SOURCES_KEPT: Duration = Duration::from_secs(5);
const SOURCES_MAX: usize = 1024;

/// Routes of our own: the library knows one.
pub(super) struct Routes {
    pub(super) tickets: TicketRoute,
    pub(super) core: Arc<Core>,
}

/// What a request about snapshots asks for.
enum Asked {
    Create { name: String, bucket: String, prefix: String },
    List,
    Remove { name: String },
}

fn asked(method: &Method, uri: &Uri) -> S3Result<Asked> {
    let name = parameter(uri, MARK).unwrap_or_default();
    if uri.path() != "/" {
        return Err(s3_error!(InvalidArgument, "Snapshots are asked for at /?{MARK}"));
    }
    match *method {
        Method::GET => Ok(Asked::List),
        Method::DELETE => Ok(Asked::Remove { name }),
        Method::PUT => {
            let bucket = parameter(uri, "bucket").filter(|bucket| !bucket.is_empty());
            let bucket = bucket.ok_or_else(|| s3_error!(InvalidArgument, "`bucket` is missing"))?;
            Ok(Asked::Create { name, bucket, prefix: parameter(uri, "prefix").unwrap_or_default() })
        }
        _ => Err(s3_error!(MethodNotAllowed, "Snapshots are made by PUT, listed by GET, removed by DELETE")),
    }
}

#[async_trait::async_trait]
impl S3Route for Routes {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, extensions: &mut Extensions) -> bool {
        parameter(uri, MARK).is_some() || self.tickets.is_match(method, uri, headers, extensions)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        if parameter(&request.uri, MARK).is_none() {
            return self.tickets.check_access(request).await;
        }
        let asked = asked(&request.method, &request.uri)?;
        let gatekeeper = Gatekeeper { core: Arc::clone(&self.core) };
        let access_key = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let (operation, bucket) = match &asked {
            Asked::Create { bucket, .. } => ("CreateSnapshot", bucket.as_str()),
            Asked::List => ("ListSnapshots", ""),
            Asked::Remove { .. } => ("DeleteSnapshot", ""),
        };
        let caller = gatekeeper.enter(access_key, operation, bucket).await?;
        match &asked {
            Asked::Create { bucket, prefix, .. } => {
                for operation in [Operation::Read, Operation::List, Operation::Write] {
                    require(&caller, operation, bucket, prefix)?;
                }
            }
            Asked::List => {}
            Asked::Remove { name } => {
                let row = snapshot::find(&self.core, name).await.map_err(failed)?;
                // Whether there is one is the business of those who could remove it.
                let row = row.ok_or_else(|| if caller.is_owner() { no_such(name) } else { denied() })?;
                require(&caller, Operation::Delete, &row.bucket, &row.prefix)?;
            }
        }
        request.extensions.insert(Arc::new(caller));
        Ok(())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        if parameter(&request.uri, MARK).is_none() {
            return self.tickets.call(request).await;
        }
        let core = Arc::clone(&self.core);
        let stopped = |_| s3_error!(InternalError, "The gateway is stopping");
        // In tasks of their own: a client that hangs up must not leave anything half made.
        match asked(&request.method, &request.uri)? {
            Asked::Create { name, bucket, prefix } => {
                let made = tokio::spawn(snapshot::create(core, name, bucket, prefix)).await;
                json(StatusCode::CREATED, &made.map_err(stopped)?.map_err(failed)?)
            }
            Asked::List => {
                let caller = request.extensions.get::<Arc<Caller>>().ok_or_else(denied)?;
                let mut snapshots = snapshot::list(&core).await.map_err(failed)?;
                snapshots.retain(|row| caller.may(Operation::List, &row.bucket, Some(&row.prefix)));
                json(StatusCode::OK, &SnapshotList { snapshots })
            }
            Asked::Remove { name } => {
                let removed = tokio::spawn(snapshot::remove(core, name)).await;
                removed.map_err(stopped)?.map_err(failed)?;
                Ok(S3Response::with_status(Body::empty(), StatusCode::NO_CONTENT))
            }
        }
    }
}

fn require(caller: &Caller, operation: Operation, bucket: &str, prefix: &str) -> S3Result<()> {
    if caller.may(operation, bucket, Some(prefix)) { Ok(()) } else { Err(denied()) }
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> S3Result<S3Response<Body>> {
    let text = serde_json::to_vec(value);
    let text = text.map_err(|_| s3_error!(InternalError, "The answer cannot be written"))?;
    let mut response = S3Response::with_status(Body::from(bytes::Bytes::from(text)), status);
    response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn no_such(name: &str) -> S3Error {
    failed(SnapshotError::NotFound { name: name.to_owned() })
}

fn with(code: &'static str, status: StatusCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

fn failed(error: SnapshotError) -> S3Error {
    let message = error.to_string();
    match error {
        SnapshotError::Meta(error) => error::meta(error),
        SnapshotError::Name { .. } => S3Error::with_message(S3ErrorCode::InvalidArgument, message),
        SnapshotError::NoSuchBucket { .. } => S3Error::with_message(S3ErrorCode::NoSuchBucket, message),
        SnapshotError::Exists { .. } => with("SnapshotExists", StatusCode::CONFLICT, message),
        SnapshotError::TooMany | SnapshotError::Tree(_) => {
            with("InvalidSnapshot", StatusCode::CONFLICT, message)
        }
        SnapshotError::NotFound { .. } | SnapshotError::Empty { .. } => {
            with("NoSuchSnapshot", StatusCode::NOT_FOUND, message)
        }
        SnapshotError::Restless { .. } => error::slow_down(message),
        SnapshotError::Link { ref source, .. } if source.is_retryable() => error::slow_down(message),
        SnapshotError::Link { .. } | SnapshotError::Bucket(_) => {
            S3Error::with_message(S3ErrorCode::InternalError, message)
        }
    }
}

/// Where snapshots were taken, by the buckets that they are read as.
#[derive(Default)]
pub(crate) struct SnapshotSources(Mutex<HashMap<String, Found>>);

/// Snapshots of one content, and when they were found.
type Found = (Instant, Arc<[SnapshotRow]>);

impl SnapshotSources {
    async fn of(&self, core: &Core, bucket: &str) -> S3Result<Arc<[SnapshotRow]>> {
        if let Some((at, rows)) = self.0.lock().get(bucket)
            && at.elapsed() < SOURCES_KEPT
        {
            return Ok(Arc::clone(rows));
        }
        if core.meta.bucket(bucket).await.map_err(error::meta)?.is_none() {
            return Ok(Arc::new([]));
        }
        let mut rows = snapshot::list(core).await.map_err(failed)?;
        rows.retain(|row| row.read_bucket == bucket);
        let rows: Arc<[SnapshotRow]> = rows.into();
        let mut kept = self.0.lock();
        if kept.len() >= SOURCES_MAX {
            kept.clear();
        }
        kept.insert(bucket.to_owned(), (Instant::now(), Arc::clone(&rows)));
        Ok(rows)
    }
}

/// Snapshots with the same content, for a caller whose key does not name their bucket.
pub(super) struct Through(Vec<SnapshotRow>);

impl Through {
    /// `None` for other buckets, and for callers who need no source. Sources that a bucket's policy closes to the
    /// caller do not count.
    pub(super) async fn find(core: &Core, caller: &Caller, bucket: &str) -> S3Result<Option<Self>> {
        if !is_snapshot_bucket(bucket) || caller.may(Operation::Read, bucket, Some("")) {
            return Ok(None);
        }
        let mut open = Vec::new();
        for row in core.snapshot_sources.of(core, bucket).await?.iter() {
            // A snapshot outlives its bucket; rights are given by name.
            if let Some(source) = core.meta.bucket(&row.bucket).await.map_err(error::meta)? {
                let verdict =
                    bucket_policy::decide(core, &source, Some(caller.id()), "GetObject", &row.prefix);
                if verdict.await? == Verdict::Denied {
                    continue;
                }
            }
            open.push(row.clone());
        }
        Ok(Some(Self(open)))
    }

    /// Whether the caller may do this where one of them was taken.
    pub(super) fn lets(&self, caller: &Caller, operation: Operation, object: &str) -> bool {
        self.0.iter().any(|row| caller.may(operation, &row.bucket, Some(&format!("{}{object}", row.prefix))))
    }
}
