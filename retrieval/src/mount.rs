//! The mount: a bucket, a part of one, or a snapshot as a directory of this machine.
//!
//! [`FileSystem`] owns the semantics (`docs/MOUNT.md`): names, inodes, close-to-open, staging of writes, directory
//! streams, errors. It reaches objects through [`Backend`] alone, and never talks to the kernel: [`fuse`] does that.
//! Nothing here waits for the network without an end: see [`Patience`].

pub mod backend;
mod changes;
mod chunks;
mod content;
mod error;
mod files;
#[cfg(feature = "mount")]
pub mod fuse;
mod listing;
mod names;
mod patience;
mod pattern;
mod ranges;
mod reading;
mod spans;
mod staged;
mod tree;
mod upload;

pub use backend::{Backend, BackendError, ByteStream, ListPage, ListRequest, Listed, Stat, WriteIf};
pub use error::FsError;
pub use files::{Attr, DirEntry, FileSystem, Kind, MountConfig, OpenMode, Opened, ReadStart, ReadWait};
pub use patience::{Outage, Patience};
pub use pattern::{CHUNK_LEN as READ_UNIT, Pattern, Plan};
pub use ranges::RangeSet;
pub use staged::Leftover;
pub use upload::Finished;
