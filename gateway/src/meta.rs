//! Metadata: buckets, objects, uploads, placements, nodes and the queues of background work, over one
//! ordered key-value schema.
//!
//! [`Meta`] owns every rule about rows: what is committed together, which reference counts what, which
//! rows are sealed under which key. It never touches block bytes and never talks to a node.
//!
//! Every change is optimistic: read rows, decide, and commit with what was read as the precondition. A writer
//! that loses a race reads again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::time::{Clock, UnixMs};
use parking_lot::{Mutex, RwLock};

use crate::crypt::{BucketKeys, CryptError, NamespaceKeys, SEAL_LEN};

mod bucket;
mod check;
mod codec;
mod completed;
#[cfg(test)]
pub(crate) mod conformance;
mod copy;
mod counts;
mod delete;
mod error;
mod features;
mod graves;
mod history;
mod invite;
mod lease;
mod link;
mod list;
mod list_versions;
mod manifest;
mod model;
mod node;
mod object;
mod pack;
mod pages;
mod placement;
pub mod postgres;
mod queue;
mod reads;
mod refs;
mod retain;
pub mod rocks;
mod row;
pub mod schema;
mod settings;
pub mod store;
mod ticket;
mod unlink;
mod upkeep;
mod upload;
mod whereabouts;

pub use check::{CheckReport, Finding};
pub use completed::CompletedUpload;
pub use copy::{NewCopy, is_shareable};
pub use counts::{KeyCounts, KeyDay};
pub use delete::{DeleteCondition, DeleteError, Deleted, Deletion};
pub use error::{BucketError, MetaError, PlacementError, PutError, UploadError};
pub use features::{DefaultRetention, Features, Lock, Retention, RetentionMode, Versioning};
pub use history::{Found, VersionName};
pub use invite::GivenInvite;
pub use lease::{Fence, Lease};
pub use link::LinkError;
pub use list_versions::{VersionLine, VersionPage, VersionQuery};
pub use manifest::ManifestReader;
pub use model::*;
pub use pack::Origins;
pub use postgres::{PostgresConfig, PostgresStore};
pub use queue::SweepReport;
pub use retain::RetentionItem;
pub use rocks::{RocksConfig, RocksStore};
pub use settings::BucketSetting;
pub use store::{MetaStore, Precondition, StoreError, TransactError, Transaction, Write};
pub use upkeep::{DamageReport, NodePresence};

use error::{Attempt, MaybeTorn};

/// Attempts of one operation before it gives up. Losers take turns, so each turn loses only to first attempts.
const ATTEMPTS_MAX: usize = 64;
/// Bucket keys kept derived. A gateway with more active buckets derives some again.
const DERIVED_KEYS_MAX: usize = 1024;
/// A seal, and the epoch of the key it was made with.
const TRAILER_LEN: usize = SEAL_LEN + 4;

/// Typed access to one namespace's metadata. Cheap to share behind an `Arc`.
pub struct Meta {
    store: Arc<dyn MetaStore>,
    keys: NamespaceKeys,
    derived: RwLock<HashMap<(BucketId, u32), Arc<BucketKeys>>>,
    clock: Arc<dyn Clock>,
    nodes: node::NodeTable,
    pages: pages::PageCache,
    whereabouts: whereabouts::Whereabouts,
    /// Held by a writer that lost a race, so that losers retry one at a time instead of against each other.
    retry_turn: tokio::sync::Mutex<()>,
    /// The fence of the shared work, as this gateway held it last; none when it never did.
    owner: RwLock<Option<Fence>>,
    lease_watch: lease::LeaseWatch,
    /// Where the sweep of tombstones goes on.
    sweep_from: Mutex<Option<Vec<u8>>>,
    /// The same for completed uploads.
    completed_from: Mutex<Option<Vec<u8>>>,
    /// Objects that are being read.
    reads: reads::Reads,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Meta {
    /// Opens the metadata in `store`: marks an empty one as of this format and these keys, refuses one of a
    /// newer format or of other keys.
    pub async fn open(
        store: Arc<dyn MetaStore>,
        keys: NamespaceKeys,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, MetaError> {
        let meta = Self {
            store,
            keys,
            derived: RwLock::default(),
            clock,
            nodes: node::NodeTable::default(),
            pages: pages::PageCache::default(),
            whereabouts: whereabouts::Whereabouts::default(),
            retry_turn: tokio::sync::Mutex::new(()),
            owner: RwLock::default(),
            lease_watch: lease::LeaseWatch::default(),
            sweep_from: Mutex::default(),
            completed_from: Mutex::default(),
            reads: reads::Reads::default(),
        };
        meta.check_format().await?;
        meta.load_nodes().await?;
        Ok(Arc::new(meta))
    }

    async fn check_format(&self) -> Result<(), MetaError> {
        let key = schema::format();
        let mark = codec_format(schema::FORMAT);
        let seal = self.keys.seal(&key, &mark)?;
        let ours = [&mark[..], &seal].concat();
        let Some(found) = self.store.get(&key).await? else {
            let mut transaction = Transaction::default();
            transaction.expect(key, None);
            transaction.put(schema::format(), ours);
            return match self.store.transact(transaction).await {
                Ok(()) => Ok(()),
                // Another gateway opened it at the same time; what it wrote is checked at the next open.
                Err(TransactError::Conflict) => Ok(()),
                Err(TransactError::Store(error)) => Err(error.into()),
            };
        };
        let format = found
            .get(..8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_le_bytes)
            .ok_or(MetaError::Corrupt { what: "format" })?;
        if format > schema::FORMAT {
            return Err(MetaError::Format { found: format, newest: schema::FORMAT });
        }
        if self.keys.check_seal(&key, &found[..8], &found[8..])? { Ok(()) } else { Err(MetaError::WrongKeys) }
    }

    /// The keys that seal rows and wrap part keys.
    pub fn keys(&self) -> &NamespaceKeys {
        &self.keys
    }

    /// Flushes and closes the store.
    pub async fn close(&self) -> Result<(), MetaError> {
        Ok(self.store.close().await?)
    }

    /// A setting: opaque bytes under a name, sealed by whoever keeps them.
    pub async fn setting(&self, name: &str) -> Result<Option<Bytes>, MetaError> {
        Ok(self.store.get(&schema::setting(name)).await?)
    }

    /// Sets a setting, or removes it; `false` when it is not `expected` any more, and then nothing changed.
    pub async fn put_setting(
        &self,
        name: &str,
        expected: Option<Bytes>,
        value: Option<Vec<u8>>,
    ) -> Result<bool, MetaError> {
        let mut transaction = Transaction::default();
        transaction.expect(schema::setting(name), expected);
        match value {
            Some(value) => transaction.put(schema::setting(name), value),
            None => transaction.delete(schema::setting(name)),
        }
        match self.store.transact(transaction).await {
            Ok(()) => Ok(true),
            Err(TransactError::Conflict) => Ok(false),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    /// Up to `limit` settings whose name begins with `prefix` and comes after `after`.
    pub async fn settings(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, MetaError> {
        let start = after.map_or_else(|| schema::setting(prefix), |name| next_key(schema::setting(name)));
        let rows = self.store.page(&start, &store::prefix_end(&schema::setting(prefix)), limit).await?;
        let name = |key: &[u8]| std::str::from_utf8(&key[1..]).map(str::to_owned);
        rows.into_iter()
            .map(|row| Ok((name(&row.key).map_err(|_| MetaError::Corrupt { what: "setting" })?, row.value)))
            .collect()
    }

    fn now_ms(&self) -> UnixMs {
        self.clock.now_ms()
    }

    /// Repeats `attempt` while it loses races, or reads what looks torn by one.
    async fn retry<T, E, F>(&self, mut attempt: impl FnMut() -> F + Send) -> Result<T, E>
    where
        E: From<MetaError> + MaybeTorn,
        F: Future<Output = Result<T, Attempt<E>>> + Send,
    {
        let mut last = match attempt().await {
            Ok(done) => return Ok(done),
            Err(Attempt::Failed(error)) if !error.may_be_torn() => return Err(error),
            Err(lost) => lost,
        };
        let _turn = self.retry_turn.lock().await;
        for _ in 1..ATTEMPTS_MAX {
            crate::gateway::telemetry::meta_retried();
            last = match attempt().await {
                Ok(done) => return Ok(done),
                Err(Attempt::Failed(error)) if !error.may_be_torn() => return Err(error),
                Err(lost) => lost,
            };
        }
        match last {
            Attempt::Conflict => Err(MetaError::Contended.into()),
            Attempt::Failed(damaged) => Err(damaged),
        }
    }

    fn bucket_keys(&self, bucket: BucketId, epoch: u32) -> Result<Arc<BucketKeys>, CryptError> {
        if let Some(keys) = self.derived.read().get(&(bucket, epoch)) {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(self.keys.bucket(bucket, epoch)?);
        let mut derived = self.derived.write();
        if derived.len() >= DERIVED_KEYS_MAX {
            derived.clear();
        }
        derived.insert((bucket, epoch), Arc::clone(&keys));
        Ok(keys)
    }

    /// `body` with its seal under the bucket's key.
    fn seal(&self, bucket: &Sealer, key: &[u8], mut body: Vec<u8>) -> Result<Vec<u8>, MetaError> {
        let keys = self.bucket_keys(bucket.id, bucket.epoch)?;
        let epoch = bucket.epoch.to_le_bytes();
        body.extend_from_slice(&epoch);
        let seal = keys.seal(key, &body);
        body.extend_from_slice(&seal);
        Ok(body)
    }

    /// The body of a sealed row, if its seal holds.
    fn unseal<'a>(
        &self,
        bucket: BucketId,
        what: &'static str,
        key: &[u8],
        value: &'a [u8],
    ) -> Result<&'a [u8], MetaError> {
        let corrupt = MetaError::Corrupt { what };
        let body = value.len().checked_sub(TRAILER_LEN).ok_or(corrupt)?;
        let (sealed, seal) = value.split_at(body + 4);
        let epoch = u32::from_le_bytes(sealed[body..].try_into().unwrap_or_default());
        if self.bucket_keys(bucket, epoch)?.check_seal(key, sealed, seal) {
            Ok(&value[..body])
        } else {
            Err(MetaError::Forged { what })
        }
    }
}

/// Which bucket key seals: all that row helpers need of a bucket.
#[derive(Clone, Copy, Debug)]
struct Sealer {
    id: BucketId,
    epoch: u32,
}

impl From<&Bucket> for Sealer {
    fn from(bucket: &Bucket) -> Self {
        Self { id: bucket.id, epoch: bucket.key_epoch }
    }
}

/// The first key behind `key`.
fn next_key(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

fn codec_format(format: u64) -> [u8; 8] {
    format.to_le_bytes()
}

fn random<const N: usize>() -> Result<[u8; N], MetaError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(|_| MetaError::Crypt(CryptError::Random))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
