//! What a mount needs of the place where objects are: list, stat, read a range of one version, write, delete, rename.
//!
//! Keys are whole keys of the bucket; the mount's prefix is the file system's business. Every call may be repeated.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// An object as HEAD or a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// The entity tag, with its quotes: it names the version.
    pub etag: Box<str>,
    /// When it was written, in milliseconds since 1970.
    pub modified_ms: u64,
    /// The root CID, where the backend told it.
    pub cid: Option<Box<str>>,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its whole key.
    pub key: String,
    /// What it is.
    pub stat: Stat,
}

/// A page of the next level below a prefix.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects in key order.
    pub objects: Vec<Listed>,
    /// Common prefixes in order, each ending in `/`.
    pub prefixes: Vec<String>,
    /// Pass as `after` for the next page; `None` on the last.
    pub next: Option<String>,
}

/// Which page.
#[derive(Clone, Debug)]
pub struct ListRequest<'a> {
    /// Only keys that begin with this.
    pub prefix: &'a str,
    /// Roll up what lies deeper than one level.
    pub one_level: bool,
    /// [`ListPage::next`] of the page before.
    pub after: Option<&'a str>,
    /// Lines at most, 1 to 1,000.
    pub max: usize,
}

/// What must be at a key before a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteIf {
    /// Anything: the last writer wins.
    Any,
    /// Nothing.
    Absent,
}

/// Bytes in order; ends early only with an error.
pub type ByteStream = BoxStream<'static, Result<Bytes, BackendError>>;

/// Where objects are.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The object at `key`.
    async fn stat(&self, key: &str) -> Result<Stat, BackendError>;

    /// A page of a listing.
    async fn list(&self, request: ListRequest<'_>) -> Result<ListPage, BackendError>;

    /// Bytes `range` of the version `etag` of the object at `key`; [`BackendError::Changed`] if that is no longer it.
    async fn read(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ByteStream, BackendError>;

    /// Writes an object whole; durable when it returns.
    async fn put(&self, key: &str, bytes: Bytes, condition: WriteIf) -> Result<Stat, BackendError>;

    /// Starts an upload in parts.
    async fn create_upload(&self, key: &str) -> Result<String, BackendError>;

    /// Writes part `number`, from 1; returns its tag.
    async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        bytes: Bytes,
    ) -> Result<String, BackendError>;

    /// Makes the object of parts 1 to n, whose tags these are; durable when it returns.
    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        condition: WriteIf,
    ) -> Result<Stat, BackendError>;

    /// Gives an upload up.
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), BackendError>;

    /// Deletes the object at `key`; fine if there is none.
    async fn delete(&self, key: &str) -> Result<(), BackendError>;

    /// Moves an object, in one step, over whatever was at `to` (unless that must be absent). The version stays.
    async fn rename(&self, from: &str, to: &str, condition: WriteIf) -> Result<(), BackendError>;
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No such object, bucket or upload.
    #[error("there is no {key}")]
    NotFound {
        /// Which.
        key: String,
    },
    /// A condition on what was there did not hold.
    #[error("something else is at {key} than was expected")]
    Changed {
        /// Where.
        key: String,
    },
    /// Not allowed.
    #[error("access to {key} is denied: {why}")]
    Denied {
        /// To what.
        key: String,
        /// What was said.
        why: String,
    },
    /// More than the backend keeps.
    #[error("{key} is larger than an object may be")]
    TooLarge {
        /// Which.
        key: String,
    },
    /// No room, or a quota is used up.
    #[error("there is no room for {key}: {why}")]
    NoSpace {
        /// For what.
        key: String,
        /// What was said.
        why: String,
    },
    /// The request made no sense to the backend.
    #[error("{key}: the request was refused: {why}")]
    Refused {
        /// About what.
        key: String,
        /// What was said.
        why: String,
    },
    /// The backend asks to come back later, or failed inside.
    #[error("the gateway is not able to serve now: {why}")]
    Busy {
        /// What was said.
        why: String,
    },
    /// No answer.
    #[error("the gateway does not answer: {why}")]
    Unreachable {
        /// What was tried.
        why: String,
    },
}

impl BackendError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Unreachable { .. } => true,
            Self::NotFound { .. }
            | Self::Changed { .. }
            | Self::Denied { .. }
            | Self::TooLarge { .. }
            | Self::NoSpace { .. }
            | Self::Refused { .. } => false,
        }
    }
}
