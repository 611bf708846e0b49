//! The storage node: extents on disk, an index that can be rebuilt, and the server in front of them.

pub mod disk;
pub mod store;
