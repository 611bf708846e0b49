//! The mount over objects in memory: operations against a model, and through the kernel.
//!
//! What goes through the kernel needs `/dev/fuse` and the right to mount (root, or fusermount3). Where neither can be
//! had those tests fail and say so; `HOLDFAST_TEST_WITHOUT_FUSE=1` leaves them out, aloud.

#![cfg(feature = "mount")]

mod kernel;
mod killed;
mod memory;
mod model;
mod semantics;
mod world;
