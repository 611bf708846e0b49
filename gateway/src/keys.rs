//! The keys of a gateway's data directory: made once, found again ever after.
//!
//! Owns `DIR/format`, `DIR/keys/*` and `DIR/admin-token`. Every secret is a file of mode 0600, written whole,
//! synced and renamed into place, so that a crash leaves either no key or the key. What is encrypted under the
//! root key (access keys, bucket keys) is not kept here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::cbor::{self, DecodeError};
use holdfast_protocol::key::KeyError;
use holdfast_protocol::record::{Authority, Delegation, Rights, SignatureError, Signed, Unverified};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{NamespaceId, NodeId, SigningKey};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

mod access;
mod file;
mod legacy;
mod limits;
pub mod recovery;
pub mod rules;
pub mod token;
pub mod trail;
mod usage;

pub(crate) use access::AccessKeys;
pub use access::{AccessKey, AccessKeyError, Credentials};
pub use file::DATA_FORMAT;
pub(crate) use limits::{Limits, Place};
pub use rules::{Grant, Operation, Rules};
pub(crate) use token::Tokens;
pub use token::{Asked, Presented, Token};
pub(crate) use usage::KeyUsage;

/// How long a self-issued delegation runs. It is renewed at a start once half of it has passed, so a gateway
/// that restarts at least twice a year never meets its end.
const DELEGATION_MS: u64 = 365 * 24 * 3600 * 1000;

/// Everything secret that a gateway needs before it can open its metadata or its transport.
#[derive(Clone)]
pub struct GatewayKeys {
    namespace: Arc<SigningKey>,
    transport: Arc<SigningKey>,
    root: RootKey,
    delegation: Signed<Delegation>,
    admin_token: AdminToken,
}

impl GatewayKeys {
    /// Finds the keys under `dir`, or makes them when the directory is new.
    ///
    /// A directory that already holds metadata but no keys is refused: fresh keys could never read it.
    pub fn load_or_create(dir: &Path, label: &str, now_ms: UnixMs) -> Result<Self, KeysError> {
        file::prepare_directory(dir)?;
        let keys = dir.join("keys");
        let namespace = Arc::new(file::signing_key(&keys.join("namespace.key"))?);
        let transport = Arc::new(file::signing_key(&keys.join("gateway.key"))?);
        let root = RootKey(Arc::new(file::secret(&keys.join("root.key"))?));
        let admin_token = AdminToken(Arc::new(file::token(&dir.join("admin-token"))?));
        let delegation = delegation(&keys.join("delegation.cbor"), &namespace, &transport, label, now_ms)?;
        Ok(Self { namespace, transport, root, delegation, admin_token })
    }

    /// The namespace that owns the buckets.
    pub fn namespace_id(&self) -> NamespaceId {
        NamespaceId(self.namespace.public())
    }

    /// The namespace's own key: signs agreements and delegations.
    pub fn namespace(&self) -> &Arc<SigningKey> {
        &self.namespace
    }

    /// This gateway's TLS key, for [`holdfast_protocol::transport::quic`].
    pub fn transport(&self) -> &Arc<SigningKey> {
        &self.transport
    }

    /// This gateway's id on the network.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.transport.public())
    }

    /// The root of all encryption.
    pub fn root(&self) -> &RootKey {
        &self.root
    }

    /// The namespace's word that the TLS key acts for it.
    pub fn delegation(&self) -> &Signed<Delegation> {
        &self.delegation
    }

    /// What admin calls must present.
    pub fn admin_token(&self) -> &AdminToken {
        &self.admin_token
    }
}

impl fmt::Debug for GatewayKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayKeys")
            .field("namespace", &self.namespace_id())
            .field("gateway", &self.node_id())
            .finish_non_exhaustive()
    }
}

/// The root key: 32 bytes from which bucket keys and the sealing of access keys derive.
#[derive(Clone)]
pub struct RootKey(Arc<Zeroizing<[u8; 32]>>);

impl RootKey {
    /// The key's bytes, for deriving others.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key of these bytes, for tests and for rebuilding from a backup.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(redacted)")
    }
}

/// The bearer token of the admin API.
#[derive(Clone)]
pub struct AdminToken(Arc<Zeroizing<String>>);

impl AdminToken {
    /// The token, for the file and for callers of the admin API in the same process.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `presented` is the token, in time that does not depend on where they differ.
    pub fn matches(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// A token of this text, for tests.
    pub fn from_text(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(redacted)")
    }
}

/// Reads the delegation, or issues a fresh one when there is none or half of its time has passed.
fn delegation(
    path: &Path,
    namespace: &SigningKey,
    transport: &SigningKey,
    label: &str,
    now_ms: UnixMs,
) -> Result<Signed<Delegation>, KeysError> {
    let delegate = NodeId(transport.public());
    if let Some(bytes) = file::read_optional(path)? {
        let wire: Unverified<Delegation> =
            cbor::decode(&bytes).map_err(|source| KeysError::Record { path: path.to_owned(), source })?;
        let signed = wire
            .verify_by(namespace.public())
            .map_err(|source| KeysError::Delegation { path: path.to_owned(), source })?;
        let expires_ms = signed.record().expires_ms;
        let is_current = Authority::verify(&wire, delegate, now_ms).is_ok();
        if is_current && expires_ms.saturating_sub(now_ms) > DELEGATION_MS / 2 {
            return Ok(signed);
        }
    }
    let signed = Signed::sign(
        Delegation {
            v: 1,
            namespace: NamespaceId(namespace.public()),
            delegate,
            rights: Rights::GATEWAY,
            not_before_ms: now_ms,
            expires_ms: now_ms.saturating_add(DELEGATION_MS),
            label: label.chars().take(200).collect(),
        },
        namespace,
    );
    file::write_private(path, &cbor::encode(&signed.to_wire()))?;
    Ok(signed)
}

/// Why the keys could not be found or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory was written by a newer release.
    #[error(
        "the data directory {path} has format {found}, and this release reads formats up to {newest}; \
         run a newer holdfast, or point --data at another directory", path = .path.display()
    )]
    NewerFormat {
        /// Which directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that is read.
        newest: u32,
    },
    /// The format file is not one.
    #[error("{path} does not say `holdfast-gateway N`; is this a gateway's data directory?", path = .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
    },
    /// Metadata without the keys that open it.
    #[error(
        "{path} is missing although the data directory is in use; put it back from a backup: \
         fresh keys could not read what is stored", path = .path.display()
    )]
    Missing {
        /// Which key file.
        path: PathBuf,
    },
    /// A key file that holds something else.
    #[error("{path} does not hold a key: {detail}", path = .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: &'static str,
    },
    /// The delegation file is not a record.
    #[error("{path} cannot be read", path = .path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong with the bytes.
        source: DecodeError,
    },
    /// The delegation is not the namespace's.
    #[error("{path} is not a delegation of this namespace; remove it and start again", path = .path.display())]
    Delegation {
        /// Which file.
        path: PathBuf,
        /// What does not hold.
        source: SignatureError,
    },
    /// No key could be made.
    #[error("cannot make a key")]
    Key(#[from] KeyError),
}

impl KeysError {
    /// Whether trying again without a person's help can succeed.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Key(KeyError::Random))
    }
}

#[cfg(test)]
mod tests;
