//! Errors of metadata, one enum per kind of operation.

use holdfast_protocol::record::StripeId;

use super::store::{StoreError, TransactError};
use crate::crypt::CryptError;

/// Why metadata could not be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The back-end.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row that does not say what a row of its kind says.
    #[error("a {what} row of the metadata is damaged")]
    Corrupt {
        /// The kind of row.
        what: &'static str,
    },
    /// A row whose seal does not hold: it was changed, moved or written by somebody without the key.
    #[error("the seal of a {what} row does not hold: it was changed or moved by somebody without the key")]
    Forged {
        /// The kind of row.
        what: &'static str,
    },
    /// A data directory of a newer release.
    #[error("the metadata has format {found}, this release reads up to {newest}; run a newer release")]
    Format {
        /// The format found.
        found: u64,
        /// The newest that is read.
        newest: u64,
    },
    /// The metadata belongs to another namespace or was sealed under another root key.
    #[error("the metadata belongs to another namespace or root key; restore the keys it was made with")]
    WrongKeys,
    /// Too many writers wanted the same rows.
    #[error("too many writers change the same rows at once; try again")]
    Contended,
    /// Keys could not be made or used.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// A continuation token that no listing gave out.
    #[error("the continuation token is not one that a listing gave out")]
    Token,
    /// More than fits.
    #[error("a record is out of bounds: {what}")]
    Bounds {
        /// What.
        what: &'static str,
    },
}

impl MetaError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Contended => true,
            Self::Crypt(error) => error.is_retryable(),
            Self::Corrupt { .. }
            | Self::Forged { .. }
            | Self::Format { .. }
            | Self::WrongKeys
            | Self::Token
            | Self::Bounds { .. } => false,
        }
    }
}

/// An error that a torn read may look like.
///
/// Rows are read one after another, not as one snapshot. When another writer commits in between, a reference
/// may seem to have no block or a run to lack a page. Reading again tells damage from haste.
pub(super) trait MaybeTorn {
    /// Whether reading again may show that nothing is damaged.
    fn may_be_torn(&self) -> bool;
}

impl MaybeTorn for MetaError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }
}

impl MaybeTorn for BucketError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Meta(error) if error.may_be_torn())
    }
}

impl MaybeTorn for PutError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Meta(error) if error.may_be_torn())
    }
}

impl MaybeTorn for UploadError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Put(error) if error.may_be_torn())
    }
}

impl MaybeTorn for PlacementError {
    fn may_be_torn(&self) -> bool {
        matches!(self, Self::Meta(error) if error.may_be_torn())
    }
}

/// What one attempt of an operation may end in; [`super::Meta::retry`] deals with the conflicts.
#[derive(Debug)]
pub(super) enum Attempt<E> {
    /// Somebody else was faster.
    Conflict,
    /// It cannot succeed.
    Failed(E),
}

impl<E: From<MetaError>> From<TransactError> for Attempt<E> {
    fn from(error: TransactError) -> Self {
        match error {
            TransactError::Conflict => Self::Conflict,
            TransactError::Store(error) => Self::Failed(E::from(MetaError::Store(error))),
        }
    }
}

impl<E: From<MetaError>> From<MetaError> for Attempt<E> {
    fn from(error: MetaError) -> Self {
        Self::Failed(E::from(error))
    }
}

impl<E: From<MetaError>> From<StoreError> for Attempt<E> {
    fn from(error: StoreError) -> Self {
        Self::Failed(E::from(MetaError::Store(error)))
    }
}

/// Why a bucket could not be made or removed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The name is taken.
    #[error("bucket `{name}` exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// No such bucket.
    #[error("there is no bucket `{name}`")]
    NotFound {
        /// The name.
        name: String,
    },
    /// It still holds objects or unfinished uploads.
    #[error("bucket `{name}` still holds objects or unfinished uploads")]
    NotEmpty {
        /// The name.
        name: String,
    },
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl BucketError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Meta(error) if error.is_retryable())
    }
}

/// Why an object was not committed. Nothing of it is visible.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The bucket was removed meanwhile.
    #[error("the bucket was removed meanwhile")]
    NoSuchBucket,
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("the condition on what was there before does not hold")]
    PreconditionFailed,
    /// The source of a copy was deleted or overwritten meanwhile.
    #[error("the source of the copy was deleted meanwhile")]
    SourceGone,
    /// A stripe of this PUT was released meanwhile, because all that others kept in it is gone: its blocks may
    /// be gone too, so they must be uploaded again.
    #[error("stripe {stripe} was released before this upload was committed; upload again")]
    StripeReleased {
        /// The stripe.
        stripe: StripeId,
    },
    /// A block in none of the stripes that came with it, and not stored before.
    #[error("block {digest} is in none of the upload's stripes")]
    Unplaced {
        /// The block.
        digest: holdfast_protocol::Digest,
    },
    /// The lengths of the blocks are not the object's.
    #[error("the blocks have {found} bytes, the object {expected}")]
    Size {
        /// Bytes of the blocks.
        found: u64,
        /// Bytes of the object.
        expected: u64,
    },
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl PutError {
    /// Whether the same upload may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::StripeReleased { .. } => true,
            Self::Meta(error) => error.is_retryable(),
            Self::NoSuchBucket
            | Self::PreconditionFailed
            | Self::SourceGone
            | Self::Unplaced { .. }
            | Self::Size { .. } => false,
        }
    }
}

/// Why a multipart upload could not go on.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// No such upload; it was completed or aborted.
    #[error("there is no such upload; it may have been completed or aborted")]
    NoSuchUpload,
    /// Part numbers go from 1 to 10,000.
    #[error("part number {number} is not between 1 and 10000")]
    PartNumber {
        /// The number.
        number: u16,
    },
    /// A part that was not uploaded, or has another ETag.
    #[error("part {number} was not uploaded, or its ETag is another")]
    InvalidPart {
        /// The part.
        number: u16,
    },
    /// Part numbers must ascend, and there must be one at least.
    #[error("the parts are not in ascending order, or there is none")]
    InvalidPartOrder,
    /// A part that is not the last has less than 5 MiB.
    #[error("part {number} has {size} bytes; every part but the last needs 5 MiB")]
    EntityTooSmall {
        /// The part.
        number: u16,
        /// Its bytes.
        size: u64,
    },
    /// The object.
    #[error(transparent)]
    Put(#[from] PutError),
}

impl From<MetaError> for UploadError {
    fn from(error: MetaError) -> Self {
        Self::Put(PutError::Meta(error))
    }
}

impl UploadError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Put(error) if error.is_retryable())
    }
}

/// Why a stripe was not changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The stripe was released: nothing lives in it any more.
    #[error("stripe {stripe} is gone: nothing lives in it any more")]
    Gone {
        /// The stripe.
        stripe: StripeId,
    },
    /// Somebody else changed it first.
    #[error("stripe {stripe} has version {found}, expected {expected}")]
    Version {
        /// The stripe.
        stripe: StripeId,
        /// The version found.
        found: u64,
        /// The version expected.
        expected: u64,
    },
    /// A node that is to hold a shard has yet to be told to let go an earlier claim of it.
    #[error("a node has yet to let go an earlier claim of stripe {stripe}")]
    Releasing {
        /// The stripe.
        stripe: StripeId,
    },
    /// Another gateway owns this work by now.
    #[error("another gateway took over before stripe {stripe} was changed")]
    Overtaken {
        /// The stripe.
        stripe: StripeId,
    },
    /// The change touches more than where shards are.
    #[error("a new placement of stripe {stripe} changes more than its nodes")]
    Shape {
        /// The stripe.
        stripe: StripeId,
    },
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl PlacementError {
    /// Whether reading the stripe again and trying again may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Version { .. } | Self::Releasing { .. } => true,
            Self::Meta(error) => error.is_retryable(),
            Self::Gone { .. } | Self::Shape { .. } | Self::Overtaken { .. } => false,
        }
    }
}
