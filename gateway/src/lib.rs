//! The gateway: S3, the admin API and web pages, metadata and keys.
//!
//! Turns S3 requests into encrypted blocks on strangers' nodes and back. It owns the namespace's buckets, manifests,
//! placement and keys; nodes own the bytes. Nothing is acknowledged before enough receipts and one metadata
//! transaction, and nothing reaches a client that was not verified by [`holdfast_retrieval`].

mod background;
pub mod config;
pub mod crypt;
mod gateway;
pub mod keys;
pub mod layout;
pub mod meta;
mod s3;
mod snapshot;
pub mod unixfs;
pub mod web;

pub use config::{
    CertificateFiles, GatewayConfig, HttpLimits, MemoryLimits, MetaLocation, RepairPolicy, SeedNode, Timing,
    TlsConfig,
};
pub use gateway::{Gateway, OpenGatewayError, RunGatewayError, TlsError};
pub use keys::{AccessKeyError, AdminToken, Credentials, DATA_FORMAT, GatewayKeys, KeysError, RootKey};
