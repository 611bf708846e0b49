//! S3 access keys, one per person or program: kept in the metadata, sealed whole under the root key.
//!
//! A setting `access-key/ID` holds a nonce of 12 bytes and AES-256-GCM-SIV of the canonical DAG-CBOR of a [`Record`],
//! under a key derived from the root key, with the setting's name as associated data. So whoever can read the metadata
//! finds no secret, and whoever can write it can neither widen a key's rules nor give one key another's.
//!
//! All gateways of a namespace see the same keys. A key that is found is believed for [`BELIEVED_FOR`]: so long a
//! revocation at another gateway may take. A key that is not found is looked for every time.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use holdfast_protocol::cbor;
use holdfast_protocol::time::UnixMs;
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use super::rules::{Rules, RulesError};
use super::token::Token;
use super::{KeysError, legacy};
use crate::meta::{Meta, MetaError};

const SEAL_CONTEXT: &str = "holdfast access key record sealing v1";
const RECORD_VERSION: u16 = 1;
const SETTING_PREFIX: &str = "access-key/";
const REVOKED_PREFIX: &str = "revoked-token/";
/// Hexadecimal digits of a block's signature.
const REVOCATION_ID_LEN_MAX: usize = 256;
/// As long as AWS's, from the same alphabet, so that tools which check the shape are content.
const ACCESS_KEY_LEN: usize = 20;
const SECRET_LEN_BYTES: usize = 30;
/// Bytes of the name of whoever holds a key.
const PERSON_LEN_MAX: usize = 200;
/// How long a key that was found is believed without looking again.
const BELIEVED_FOR: Duration = Duration::from_secs(1);
/// Keys believed at once.
const BELIEVED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Keys read at once when the owner's is looked for.
const PAGE: usize = 1000;

/// An S3 access key pair.
#[derive(Clone)]
pub struct Credentials {
    /// The public half.
    pub access_key: String,
    /// The secret half; print it only where its owner asked for it.
    pub secret_key: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn fresh() -> Result<Self, AccessKeyError> {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut random = [0u8; ACCESS_KEY_LEN];
        getrandom::fill(&mut random).map_err(|_| AccessKeyError::Random)?;
        let mut access_key = String::from("HOLD");
        for byte in &random[4..] {
            access_key.push(char::from(ALPHABET[usize::from(byte % 32)]));
        }
        let mut secret = Zeroizing::new([0u8; SECRET_LEN_BYTES]);
        getrandom::fill(secret.as_mut()).map_err(|_| AccessKeyError::Random)?;
        Ok(Self { access_key, secret_key: Zeroizing::new(STANDARD_NO_PAD.encode(*secret)) })
    }
}

/// An access key with what belongs to it.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// Both halves.
    pub credentials: Credentials,
    /// Who holds it.
    pub person: String,
    /// What it may do.
    pub rules: Rules,
    /// When it was made.
    pub created_ms: UnixMs,
    /// When it was revoked, if it was.
    pub revoked_ms: Option<UnixMs>,
}

impl AccessKey {
    /// Its public half.
    pub fn id(&self) -> &str {
        &self.credentials.access_key
    }

    /// Whether it opens anything at `now_ms`.
    pub fn is_live(&self, now_ms: UnixMs) -> bool {
        self.revoked_ms.is_none() && self.rules.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

/// All access keys of the namespace.
pub(crate) struct AccessKeys {
    first: Credentials,
    kept: Option<Kept>,
    believed: Mutex<LruCache<String, (Instant, Arc<AccessKey>)>>,
    /// Keys that are in no metadata; tests have some.
    pinned: HashMap<String, Arc<AccessKey>>,
}

/// Where keys are kept.
struct Kept {
    meta: Arc<Meta>,
    sealing: LessSafeKey,
}

impl AccessKeys {
    /// The access keys in `meta`. The owner's is made when there is none; keys that an earlier release left in
    /// `keys_dir` move in.
    pub(crate) async fn open(
        meta: Arc<Meta>,
        root: &[u8; 32],
        keys_dir: &Path,
        now_ms: UnixMs,
    ) -> Result<Self, AccessKeyError> {
        let kept = Kept { meta, sealing: sealing_key(root) };
        for moved in legacy::read(keys_dir, root)? {
            let key = AccessKey {
                credentials: moved.credentials,
                person: "owner".to_owned(),
                rules: Rules::owner(),
                created_ms: moved.created_ms,
                revoked_ms: None,
            };
            if kept.load(key.id()).await?.is_none() {
                kept.put(&key, None).await?;
            }
        }
        legacy::put_away(keys_dir)?;
        let mut first: Option<AccessKey> = None;
        let mut after: Option<String> = None;
        loop {
            let page = kept.page(after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id().to_owned());
            let owners = page.into_iter().filter(|key| key.rules.is_owner() && key.is_live(now_ms));
            first = first.into_iter().chain(owners).min_by_key(|key| key.created_ms);
        }
        let first = match first {
            Some(owner) => owner.credentials,
            None => {
                let owner = AccessKey {
                    credentials: Credentials::fresh()?,
                    person: "owner".to_owned(),
                    rules: Rules::owner(),
                    created_ms: now_ms,
                    revoked_ms: None,
                };
                kept.put(&owner, None).await?;
                owner.credentials
            }
        };
        Ok(Self::over(first, Some(kept), HashMap::new()))
    }

    fn over(first: Credentials, kept: Option<Kept>, pinned: HashMap<String, Arc<AccessKey>>) -> Self {
        Self { first, kept, believed: Mutex::new(LruCache::new(BELIEVED_MAX)), pinned }
    }

    /// The owner's pair, which the credentials file names.
    pub(crate) fn first(&self) -> &Credentials {
        &self.first
    }

    /// The key of this id, if it opens anything now.
    pub(crate) async fn live(
        &self,
        id: &str,
        now_ms: UnixMs,
    ) -> Result<Option<Arc<AccessKey>>, AccessKeyError> {
        let is_live = |key: &Arc<AccessKey>| key.is_live(now_ms);
        if let Some(key) = self.pinned.get(id) {
            return Ok(Some(Arc::clone(key)).filter(is_live));
        }
        let now = Instant::now();
        if let Some((at, key)) = self.believed.lock().get(id)
            && now.saturating_duration_since(*at) < BELIEVED_FOR
        {
            return Ok(Some(Arc::clone(key)).filter(is_live));
        }
        let Some(kept) = &self.kept else { return Ok(None) };
        let Some((key, _)) = kept.load(id).await? else {
            self.believed.lock().pop(id);
            return Ok(None);
        };
        let key = Arc::new(key);
        self.believed.lock().put(id.to_owned(), (now, Arc::clone(&key)));
        Ok(Some(key).filter(is_live))
    }

    /// Makes a key. Its secret half is told once, here.
    pub(crate) async fn create(
        &self,
        person: &str,
        rules: Rules,
        now_ms: UnixMs,
    ) -> Result<AccessKey, AccessKeyError> {
        rules.check()?;
        if person.is_empty() || person.len() > PERSON_LEN_MAX || person.chars().any(char::is_control) {
            return Err(AccessKeyError::Person);
        }
        let key = AccessKey {
            credentials: Credentials::fresh()?,
            person: person.to_owned(),
            rules,
            created_ms: now_ms,
            revoked_ms: None,
        };
        self.kept()?.put(&key, None).await?;
        Ok(key)
    }

    /// Up to `limit` keys by id, behind `after`.
    pub(crate) async fn page(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<AccessKey>, AccessKeyError> {
        self.kept()?.page(after, limit).await
    }

    /// Ends a key for good.
    pub(crate) async fn revoke(&self, id: &str, now_ms: UnixMs) -> Result<AccessKey, AccessKeyError> {
        self.change(id, |key| key.revoked_ms = key.revoked_ms.or(Some(now_ms))).await
    }

    /// Makes a key like `id` in its stead; the old one ends after `grace_ms`.
    pub(crate) async fn rotate(
        &self,
        id: &str,
        grace_ms: u64,
        now_ms: UnixMs,
    ) -> Result<AccessKey, AccessKeyError> {
        let unknown = || AccessKeyError::Unknown { id: id.to_owned() };
        let (old, _) =
            self.kept()?.load(id).await?.filter(|(key, _)| key.is_live(now_ms)).ok_or_else(unknown)?;
        let fresh = self.create(&old.person, old.rules.clone(), now_ms).await?;
        let end_ms = now_ms.saturating_add(grace_ms);
        self.change(id, |key| {
            if grace_ms == 0 {
                key.revoked_ms = Some(now_ms);
            }
            key.rules.expires_ms =
                Some(key.rules.expires_ms.map_or(end_ms, |expires_ms| expires_ms.min(end_ms)));
        })
        .await?;
        Ok(fresh)
    }

    /// Ends a token, and all that were made from it, by the name of one of its blocks.
    pub(crate) async fn revoke_token(
        &self,
        revocation_id: &str,
        now_ms: UnixMs,
    ) -> Result<(), AccessKeyError> {
        if revocation_id.is_empty()
            || revocation_id.len() > REVOCATION_ID_LEN_MAX
            || !revocation_id.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(AccessKeyError::Unknown { id: revocation_id.chars().take(40).collect() });
        }
        let name = format!("{REVOKED_PREFIX}{}", revocation_id.to_ascii_lowercase());
        // Revoked already is as good.
        self.kept()?.meta.put_setting(&name, None, Some(now_ms.to_le_bytes().to_vec())).await?;
        Ok(())
    }

    /// Whether one of the token's blocks was revoked.
    pub(crate) async fn is_token_revoked(&self, token: &Token) -> Result<bool, AccessKeyError> {
        let Some(kept) = &self.kept else { return Ok(false) };
        for id in token.revocation_ids() {
            if kept.meta.setting(&format!("{REVOKED_PREFIX}{id}")).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn change(&self, id: &str, change: impl Fn(&mut AccessKey)) -> Result<AccessKey, AccessKeyError> {
        let kept = self.kept()?;
        let (mut key, row) =
            kept.load(id).await?.ok_or_else(|| AccessKeyError::Unknown { id: id.to_owned() })?;
        change(&mut key);
        kept.put(&key, Some(row)).await?;
        self.believed.lock().pop(id);
        Ok(key)
    }

    fn kept(&self) -> Result<&Kept, AccessKeyError> {
        self.kept.as_ref().ok_or(AccessKeyError::Elsewhere)
    }

    /// One pair with the owner's rules, in no metadata, for tests.
    #[cfg(test)]
    pub(crate) fn single(access_key: &str, secret: &str) -> Self {
        let credentials =
            Credentials { access_key: access_key.to_owned(), secret_key: Zeroizing::new(secret.to_owned()) };
        let key = AccessKey {
            credentials: credentials.clone(),
            person: "owner".to_owned(),
            rules: Rules::owner(),
            created_ms: 0,
            revoked_ms: None,
        };
        Self::over(credentials, None, HashMap::from([(access_key.to_owned(), Arc::new(key))]))
    }

    /// The same beside keys in `meta`, for tests.
    #[cfg(test)]
    pub(crate) fn single_beside(access_key: &str, secret: &str, meta: Arc<Meta>, root: &[u8; 32]) -> Self {
        Self { kept: Some(Kept { meta, sealing: sealing_key(root) }), ..Self::single(access_key, secret) }
    }
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKeys").field("first", &self.first).finish_non_exhaustive()
    }
}

impl Kept {
    async fn load(&self, id: &str) -> Result<Option<(AccessKey, bytes::Bytes)>, AccessKeyError> {
        let name = format!("{SETTING_PREFIX}{id}");
        let Some(row) = self.meta.setting(&name).await? else { return Ok(None) };
        Ok(Some((self.open(&name, &row)?, row)))
    }

    async fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<AccessKey>, AccessKeyError> {
        let after = after.map(|id| format!("{SETTING_PREFIX}{id}"));
        let rows = self.meta.settings(SETTING_PREFIX, after.as_deref(), limit).await?;
        rows.iter().map(|(name, row)| self.open(name, row)).collect()
    }

    async fn put(&self, key: &AccessKey, before: Option<bytes::Bytes>) -> Result<(), AccessKeyError> {
        let name = format!("{SETTING_PREFIX}{}", key.id());
        let row = self.seal(&name, key)?;
        if self.meta.put_setting(&name, before, Some(row)).await? {
            Ok(())
        } else {
            Err(AccessKeyError::Changed { id: key.id().to_owned() })
        }
    }

    fn seal(&self, name: &str, key: &AccessKey) -> Result<Vec<u8>, AccessKeyError> {
        let record = Record {
            v: RECORD_VERSION,
            id: key.id().to_owned(),
            secret: ByteBuf::from(key.credentials.secret_key.as_bytes()),
            person: key.person.clone(),
            rules: key.rules.clone(),
            created_ms: key.created_ms,
            revoked_ms: key.revoked_ms,
        };
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| AccessKeyError::Random)?;
        // Grows only by the tag, which there is room for: no copy of the secret is left behind in freed memory.
        let mut sealed = cbor::encode(&record);
        self.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| AccessKeyError::Random)?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn open(&self, name: &str, row: &[u8]) -> Result<AccessKey, AccessKeyError> {
        let damaged = || AccessKeyError::Damaged { name: name.to_owned() };
        let (nonce, sealed) = row.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let plain = self
            .sealing
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(name.as_bytes()),
                bytes.as_mut_slice(),
            )
            .map_err(|_| damaged())?;
        let record: Record = cbor::decode(plain).map_err(|_| damaged())?;
        if record.v != RECORD_VERSION {
            return Err(damaged());
        }
        let secret = Zeroizing::new(record.secret.into_vec());
        let secret = std::str::from_utf8(&secret).map_err(|_| damaged())?.to_owned();
        Ok(AccessKey {
            credentials: Credentials { access_key: record.id, secret_key: Zeroizing::new(secret) },
            person: record.person,
            rules: record.rules,
            created_ms: record.created_ms,
            revoked_ms: record.revoked_ms,
        })
    }
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Record {
    v: u16,
    id: String,
    secret: ByteBuf,
    person: String,
    rules: Rules,
    created_ms: UnixMs,
    revoked_ms: Option<UnixMs>,
}

fn sealing_key(root: &[u8; 32]) -> LessSafeKey {
    let key = Zeroizing::new(blake3::derive_key(SEAL_CONTEXT, root));
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key.as_ref()).expect("32 bytes are an AES-256 key"))
}

/// Why an access key could not be found or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessKeyError {
    /// No such key.
    #[error("there is no access key {id}, or it has ended")]
    Unknown {
        /// Which.
        id: String,
    },
    /// Somebody else changed it at the same moment.
    #[error("access key {id} was changed at the same moment; try again")]
    Changed {
        /// Which.
        id: String,
    },
    /// A record that does not open.
    #[error("the record `{name}` does not open under this root key: it was changed, or made with another")]
    Damaged {
        /// The setting.
        name: String,
    },
    /// Rules that cannot be kept.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// No name of a person.
    #[error(
        "a key needs the name of whoever holds it: 1 to {PERSON_LEN_MAX} bytes, without control characters"
    )]
    Person,
    /// Keys of a test.
    #[error("these access keys cannot be changed")]
    Elsewhere,
    /// The keys of an earlier release.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// No random bytes.
    #[error("the system's random source failed")]
    Random,
}

impl AccessKeyError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Changed { .. } | Self::Random => true,
            Self::Keys(error) => error.is_retryable(),
            Self::Meta(error) => error.is_retryable(),
            Self::Unknown { .. } | Self::Damaged { .. } | Self::Rules(_) | Self::Person | Self::Elsewhere => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
