//! Owned by the next commit.
