//! The facade: opens a gateway on its data directory and runs it until it is told to stop.
//!
//! Owns the order of starting and stopping. What requests do lives in [`crate::s3`] and [`crate::web`]; what
//! happens between requests in [`crate::background`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_retrieval::cache::{Admission, BlockCache, CacheConfig, CacheError, DiskConfig};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::background;
use crate::config::{GatewayConfig, MetaLocation};
use crate::crypt::NamespaceKeys;
use crate::keys::trail::Trail;
use crate::keys::{AccessKeyError, AccessKeys, Credentials, GatewayKeys, KeysError};
use crate::meta::{
    Meta, MetaError, MetaStore, PostgresConfig, PostgresStore, RocksConfig, RocksStore, StoreError,
};
use crate::{s3, web};

pub(crate) mod body;
pub(crate) mod buffers;
mod core;
pub(crate) mod listen;
pub(crate) mod network;
mod placement;
pub(crate) mod plane;
mod seats;
pub(crate) mod telemetry;
mod tls;

pub(crate) use self::core::Core;
use self::listen::Listener;
use self::tls::Tls;
pub use self::tls::TlsError;

/// An open gateway: metadata open, sockets bound, nothing served before [`Gateway::run`].
pub struct Gateway {
    core: Arc<Core>,
    s3_addr: SocketAddr,
    s3_tls_addr: Option<SocketAddr>,
    s3_tls_ca: Option<PathBuf>,
    web_addr: SocketAddr,
    /// Taken by the first `run`.
    parts: Mutex<Option<Parts>>,
}

/// What `run` consumes.
struct Parts {
    s3: Listener,
    s3_tls: Option<Listener>,
    web: Listener,
    connections: background::Connections,
    /// Locks the data directory while it lives.
    lock: std::fs::File,
}

impl Gateway {
    /// Opens the metadata, makes the owner's access key on the first open, and binds all listeners.
    pub async fn open(config: GatewayConfig) -> Result<Arc<Self>, OpenGatewayError> {
        let lock = lock_directory(&config)?;
        // Sockets before metadata: a port in use is the commoner mistake, and cheaper to find.
        let s3 = listen::bind("S3", config.s3_listen, "--s3-listen").await?;
        let (s3_tls, s3_tls_ca) = bind_tls(&config).await?.unzip();
        let s3_tls_ca = s3_tls_ca.flatten();
        let web = listen::bind("the web side", config.web_listen, "--web-listen").await?;
        let (s3_addr, web_addr) = (addr_of(&s3, config.s3_listen), addr_of(&web, config.web_listen));
        let s3_tls_addr = s3_tls.as_ref().and_then(|listener| listener.tcp.local_addr().ok());
        let store = open_store(&config).await?;
        let namespace = NamespaceKeys::new(config.keys.root().clone(), config.keys.namespace_id());
        let meta = Meta::open(store, namespace, Arc::clone(&config.clock)).await?;
        let cache = open_cache(&config).await?;
        let access_keys = AccessKeys::open(
            Arc::clone(&meta),
            config.keys.root().expose(),
            &config.dir.join("keys"),
            config.clock.now_ms(),
        )
        .await?;
        let trail = Trail::open(&config.dir, config.keys.root())
            .map_err(|source| OpenGatewayError::Trail { path: config.dir.join("trail"), source })?;
        let (core, connections) = Core::over_network(config, meta, access_keys, Some(trail), Some(cache));
        background::restore_nodes(&core).await?;
        let parts = Mutex::new(Some(Parts {
            s3: Listener::plain(s3),
            s3_tls,
            web: Listener::plain(web),
            connections,
            lock,
        }));
        Ok(Arc::new(Self { core, s3_addr, s3_tls_addr, s3_tls_ca, web_addr, parts }))
    }

    /// Serves until `stop` fires, then lets requests in flight finish within the drain deadline, flushes and closes.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), RunGatewayError> {
        let Some(parts) = self.parts.lock().take() else { return Err(RunGatewayError::AlreadyRunning) };
        let core = &self.core;
        let (http, drain) = (core.config.http, core.config.timing.drain);
        // Background work goes on while requests drain: they may wait for it.
        let stop_background = CancellationToken::new();
        let background = background::start(Arc::clone(core), parts.connections, stop_background.clone());
        tracing::info!(s3 = %self.s3_addr, web = %self.web_addr, "the gateway serves");
        let s3 = listen::serve(parts.s3, s3::handler(Arc::clone(core)), http, stop.clone(), drain);
        let s3_tls = async {
            if let Some(listener) = parts.s3_tls {
                listen::serve(listener, s3::handler(Arc::clone(core)), http, stop.clone(), drain).await;
            }
        };
        let web = listen::serve(parts.web, web::handler(Arc::clone(core)), http, stop.clone(), drain);
        tokio::join!(s3, s3_tls, web);
        stop_background.cancel();
        background.stopped().await;
        if let Err(error) = core.key_usage.flush(&core.meta, core.config.clock.now_ms()).await {
            tracing::warn!(%error, "the last counts of access keys are lost");
        }
        core.meta.close().await?;
        drop(parts.lock);
        tracing::info!("the gateway has stopped");
        Ok(())
    }

    /// Where S3 is served; with the real port when 0 was asked for.
    pub fn s3_addr(&self) -> SocketAddr {
        self.s3_addr
    }

    /// Where S3 is served over TLS, if it is.
    pub fn s3_tls_addr(&self) -> Option<SocketAddr> {
        self.s3_tls_addr
    }

    /// The PEM file that clients of the TLS side must trust; `None` when the operator brought a certificate.
    pub fn s3_tls_ca(&self) -> Option<&Path> {
        self.s3_tls_ca.as_deref()
    }

    /// Where the web side is served.
    pub fn web_addr(&self) -> SocketAddr {
        self.web_addr
    }

    /// The first access key pair, made on the first open.
    pub fn credentials(&self) -> &Credentials {
        self.core.access_keys.first()
    }

    /// The keys.
    pub fn keys(&self) -> &GatewayKeys {
        &self.core.config.keys
    }
}

async fn open_store(config: &GatewayConfig) -> Result<Arc<dyn MetaStore>, OpenGatewayError> {
    match &config.meta {
        MetaLocation::Directory => {
            let rocks = RocksConfig::new(config.dir.join("meta"));
            let opening = tokio::task::spawn_blocking(move || RocksStore::open(&rocks));
            Ok(opening.await.map_err(|_| OpenGatewayError::Stopping)??)
        }
        MetaLocation::Database(url) => {
            let database = PostgresConfig::new(url.clone(), &config.keys.node_id());
            Ok(PostgresStore::open(&database).await?)
        }
    }
}

fn addr_of(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// The TLS listener, if one is wanted, and the file to trust if we signed the certificate ourselves.
async fn bind_tls(config: &GatewayConfig) -> Result<Option<(Listener, Option<PathBuf>)>, OpenGatewayError> {
    let Some(wanted) = &config.s3_tls else { return Ok(None) };
    let Tls { acceptor, ca } = Tls::prepare(&config.dir, wanted, config.clock.now_ms())?;
    let tcp = listen::bind("S3 over TLS", wanted.listen, "--s3-tls-listen").await?;
    Ok(Some((Listener { tcp, tls: Some(acceptor) }, ca)))
}

/// Verified blocks close by: a little memory always, the disk when it is wanted.
async fn open_cache(config: &GatewayConfig) -> Result<Arc<BlockCache>, CacheError> {
    let disk = (config.cache_disk_bytes > 0)
        .then(|| DiskConfig { dir: config.dir.join("cache"), bytes: config.cache_disk_bytes });
    let admission = Admission::SecondSighting;
    BlockCache::open(CacheConfig { memory_bytes: config.memory.cache_bytes, admission, disk }).await
}

/// One gateway per directory: two would each believe to be the only writer of the local metadata.
fn lock_directory(config: &GatewayConfig) -> Result<std::fs::File, OpenGatewayError> {
    let path = config.dir.join("lock");
    let failed = |source| OpenGatewayError::Lock { path: path.clone(), source };
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenGatewayError::InUse { path: config.dir.clone() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Why a gateway could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenGatewayError {
    /// The keys of the data directory.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The access keys.
    #[error("cannot use the access keys: {0}")]
    AccessKeys(#[from] AccessKeyError),
    /// The audit trail cannot be written.
    #[error("cannot write the audit trail at {path}: {source}", path = .path.display())]
    Trail {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else listens there.
    #[error(
        "cannot listen for {what} on {address}: the port is already in use; \
         stop the other program or choose another port with {option}"
    )]
    PortInUse {
        /// S3 or the web side.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The option that chooses another.
        option: &'static str,
    },
    /// The address cannot be listened on.
    #[error("cannot listen for {what} on {address}: {source}; choose another with {option}")]
    Listen {
        /// S3 or the web side.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The option that chooses another.
        option: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// S3 over TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another gateway runs on this directory.
    #[error("another gateway uses {path}; stop it first, or choose another --data", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be locked.
    #[error("cannot lock {path}: {source}", path = .path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The metadata's store cannot be opened.
    #[error("cannot open the metadata: {0}")]
    Store(#[from] StoreError),
    /// The metadata cannot be used.
    #[error("cannot use the metadata: {0}")]
    Meta(#[from] MetaError),
    /// The cache of blocks cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl OpenGatewayError {
    /// Whether trying again without a person's help can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Keys(error) => error.is_retryable(),
            Self::Tls(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Meta(error) => error.is_retryable(),
            Self::Cache(error) => error.is_retryable(),
            Self::AccessKeys(error) => error.is_retryable(),
            Self::Trail { .. }
            | Self::PortInUse { .. }
            | Self::Listen { .. }
            | Self::InUse { .. }
            | Self::Lock { .. }
            | Self::Stopping => false,
        }
    }
}

/// Why a running gateway ended other than by its stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunGatewayError {
    /// `run` was called twice.
    #[error("this gateway runs already")]
    AlreadyRunning,
    /// The metadata could not be flushed and closed; what was acknowledged is in its log.
    #[error("the metadata could not be closed: {0}")]
    Close(#[from] MetaError),
}

impl RunGatewayError {
    /// Whether trying again can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::AlreadyRunning => false,
            Self::Close(error) => error.is_retryable(),
        }
    }
}
