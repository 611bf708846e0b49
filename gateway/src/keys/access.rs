//! S3 access keys: the secret halves lie sealed under the root key, never in clear.
//!
//! One file, `DIR/keys/access-keys.cbor`: canonical DAG-CBOR `{v, keys: [{id, nonce, sealed, created_ms}]}`. `sealed` is
//! AES-256-GCM-SIV under a key derived from the root key, with the access key id as associated data, so that
//! secrets cannot be swapped between ids.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use holdfast_protocol::cbor;
use holdfast_protocol::key::KeyError;
use holdfast_protocol::time::UnixMs;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use super::{KeysError, file};

const SEAL_CONTEXT: &str = "holdfast access key sealing v1";
const FILE_VERSION: u16 = 1;
/// Access keys of one gateway; the file is read whole.
const ACCESS_KEYS_MAX: usize = 64;
/// As long as AWS's, from the same alphabet, so that tools which check the shape are content.
const ACCESS_KEY_LEN: usize = 20;
const SECRET_LEN_BYTES: usize = 30;

/// An S3 access key pair of this gateway.
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

/// All access keys of the gateway, opened.
#[derive(Clone, Debug)]
pub(crate) struct AccessKeys {
    first: Credentials,
    by_id: HashMap<String, Zeroizing<String>>,
}

impl AccessKeys {
    /// The access keys under `keys_dir`; the first pair is made when there is none.
    pub(crate) fn load_or_create(
        keys_dir: &Path,
        root: &[u8; 32],
        now_ms: UnixMs,
    ) -> Result<Self, KeysError> {
        let path = keys_dir.join("access-keys.cbor");
        let sealing = sealing_key(root);
        if let Some(bytes) = file::read_optional(&path)? {
            let stored: KeyFile =
                cbor::decode(&bytes).map_err(|source| KeysError::Record { path: path.clone(), source })?;
            let malformed = |detail| KeysError::Malformed { path: path.clone(), detail };
            if stored.v != FILE_VERSION || stored.keys.is_empty() || stored.keys.len() > ACCESS_KEYS_MAX {
                return Err(malformed("unknown version or number of access keys"));
            }
            let mut opened = Vec::with_capacity(stored.keys.len());
            for key in &stored.keys {
                opened.push(key.open(&sealing).ok_or_else(|| {
                    malformed(
                        "an access key does not open under this root key; is root.key another directory's?",
                    )
                })?);
            }
            return Self::of(opened).ok_or_else(|| malformed("no access key"));
        }
        let fresh = fresh_pair()?;
        let stored = KeyFile { v: FILE_VERSION, keys: vec![SealedKey::seal(&fresh, &sealing, now_ms)?] };
        file::write_private(&path, &cbor::encode(&stored))?;
        Self::of(vec![fresh]).ok_or(KeysError::Key(KeyError::Random))
    }

    fn of(pairs: Vec<Credentials>) -> Option<Self> {
        let first = pairs.first()?.clone();
        let by_id = pairs.into_iter().map(|pair| (pair.access_key, pair.secret_key)).collect();
        Some(Self { first, by_id })
    }

    /// The pair that the credentials file names.
    pub(crate) fn first(&self) -> &Credentials {
        &self.first
    }

    /// The secret of an access key.
    pub(crate) fn secret(&self, access_key: &str) -> Option<&str> {
        self.by_id.get(access_key).map(|secret| secret.as_str())
    }

    /// Keys of these pairs, for tests.
    #[cfg(test)]
    pub(crate) fn single(access_key: &str, secret: &str) -> Self {
        let pair =
            Credentials { access_key: access_key.to_owned(), secret_key: Zeroizing::new(secret.to_owned()) };
        Self::of(vec![pair]).expect("one pair is there")
    }
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    v: u16,
    keys: Vec<SealedKey>,
}

#[derive(Serialize, Deserialize)]
struct SealedKey {
    id: String,
    #[serde(with = "serde_bytes")]
    nonce: [u8; 12],
    sealed: ByteBuf,
    created_ms: UnixMs,
}

impl SealedKey {
    fn seal(pair: &Credentials, key: &LessSafeKey, created_ms: UnixMs) -> Result<Self, KeysError> {
        let mut nonce = [0u8; 12];
        getrandom::fill(&mut nonce).map_err(|_| KeyError::Random)?;
        let mut sealed = pair.secret_key.as_bytes().to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(pair.access_key.as_bytes()),
            &mut sealed,
        )
        .map_err(|_| KeyError::Seed)?;
        Ok(Self { id: pair.access_key.clone(), nonce, sealed: ByteBuf::from(sealed), created_ms })
    }

    fn open(&self, key: &LessSafeKey) -> Option<Credentials> {
        let mut bytes = Zeroizing::new(self.sealed.to_vec());
        let plain = key
            .open_in_place(
                Nonce::assume_unique_for_key(self.nonce),
                Aad::from(self.id.as_bytes()),
                bytes.as_mut_slice(),
            )
            .ok()?;
        let secret = std::str::from_utf8(plain).ok()?.to_owned();
        Some(Credentials { access_key: self.id.clone(), secret_key: Zeroizing::new(secret) })
    }
}

fn sealing_key(root: &[u8; 32]) -> LessSafeKey {
    let key = Zeroizing::new(blake3::derive_key(SEAL_CONTEXT, root));
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key.as_ref()).expect("32 bytes are an AES-256 key"))
}

fn fresh_pair() -> Result<Credentials, KeysError> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut random = [0u8; ACCESS_KEY_LEN];
    getrandom::fill(&mut random).map_err(|_| KeyError::Random)?;
    let mut access_key = String::from("HOLD");
    for byte in &random[4..] {
        access_key.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    let mut secret = Zeroizing::new([0u8; SECRET_LEN_BYTES]);
    getrandom::fill(secret.as_mut()).map_err(|_| KeyError::Random)?;
    Ok(Credentials { access_key, secret_key: Zeroizing::new(STANDARD_NO_PAD.encode(*secret)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_found_again_and_lies_nowhere_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        let first = AccessKeys::load_or_create(dir.path(), &[7; 32], 1).unwrap();
        let second = AccessKeys::load_or_create(dir.path(), &[7; 32], 2).unwrap();
        let pair = first.first();
        assert_eq!(second.secret(&pair.access_key), Some(pair.secret_key.as_str()));
        let bytes = std::fs::read(dir.path().join("access-keys.cbor")).unwrap();
        let secret = pair.secret_key.as_bytes();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }

    #[test]
    fn another_root_key_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        AccessKeys::load_or_create(dir.path(), &[7; 32], 1).unwrap();
        let error = AccessKeys::load_or_create(dir.path(), &[8; 32], 1).unwrap_err();
        assert!(error.to_string().contains("root key"), "{error}");
    }

    #[test]
    fn access_keys_have_the_shape_that_tools_expect() {
        let pair = fresh_pair().unwrap();
        assert_eq!(pair.access_key.len(), 20);
        assert_eq!(pair.secret_key.len(), 40);
        assert!(pair.access_key.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
        assert!(!format!("{pair:?}").contains(pair.secret_key.as_str()));
    }
}
