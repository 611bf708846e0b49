//! What a file operation can fail with, and the one errno of each.

use super::backend::BackendError;

/// Why a file operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// ENOTDIR.
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsDirectory,
    /// EEXIST.
    #[error("file exists")]
    Exists,
    /// ENOTEMPTY.
    #[error("directory not empty")]
    NotEmpty,
    /// EROFS.
    #[error("the mount is read-only")]
    ReadOnly,
    /// ENAMETOOLONG: a component over 255 bytes, or a key over 1,024.
    #[error("the name is too long for an object's key")]
    NameTooLong,
    /// EILSEQ: not UTF-8.
    #[error("the name is not UTF-8")]
    BadName,
    /// EINVAL.
    #[error("invalid argument")]
    Invalid,
    /// EPERM: object storage has no such thing (links, devices, modes, owners).
    #[error("objects have no such thing")]
    NotPermitted,
    /// EOPNOTSUPP.
    #[error("not supported")]
    Unsupported,
    /// EBADF.
    #[error("no such open file")]
    BadHandle,
    /// ENFILE: more open files than the mount's bound.
    #[error("too many open files")]
    TooManyOpen,
    /// ENODATA.
    #[error("no such attribute")]
    NoAttribute,
    /// EINTR: whoever waits is being killed, or was told to stop. What was begun goes on without him.
    #[error("interrupted")]
    Interrupted,
    /// ESTALE: the object was replaced or deleted elsewhere while it was open here.
    #[error("the object was replaced elsewhere")]
    Stale,
    /// ENOSPC, EIO: the local disk, where writes are staged.
    #[error("the staging directory: {kind} (os error {errno})")]
    Disk {
        /// In words.
        kind: std::io::ErrorKind,
        /// As the system said it.
        errno: i32,
    },
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        Self::Disk { kind: error.kind(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl FsError {
    /// The errno that a program sees.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::Exists => libc::EEXIST,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::ReadOnly => libc::EROFS,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::BadName => libc::EILSEQ,
            Self::Invalid => libc::EINVAL,
            Self::NotPermitted => libc::EPERM,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::BadHandle => libc::EBADF,
            Self::TooManyOpen => libc::ENFILE,
            Self::NoAttribute => libc::ENODATA,
            Self::Interrupted => libc::EINTR,
            Self::Stale => libc::ESTALE,
            Self::Disk { errno, .. } => match *errno {
                libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EMFILE | libc::ENFILE => *errno,
                _ => libc::EIO,
            },
            Self::Backend(error) => match error {
                BackendError::NotFound { .. } => libc::ENOENT,
                BackendError::Changed { .. } => libc::ESTALE,
                BackendError::Denied { .. } => libc::EACCES,
                BackendError::TooLarge { .. } => libc::EFBIG,
                BackendError::NoSpace { .. } => libc::ENOSPC,
                BackendError::Refused { .. } => libc::EINVAL,
                BackendError::Busy { .. } | BackendError::Unreachable { .. } => libc::EIO,
            },
        }
    }
}
