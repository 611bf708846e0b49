//! Access keys as the first release kept them: `DIR/keys/access-keys.cbor`, read once and put away.
//!
//! Canonical DAG-CBOR `{v, keys: [{id, nonce, sealed, created_ms}]}`. `sealed` is AES-256-GCM-SIV under a key derived
//! from the root key, with the access key id as associated data.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use holdfast_protocol::cbor;
use holdfast_protocol::time::UnixMs;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use super::access::Credentials;
use super::{KeysError, file};

const FILE: &str = "access-keys.cbor";
const PUT_AWAY: &str = "access-keys.moved";
const SEAL_CONTEXT: &str = "holdfast access key sealing v1";
const FILE_VERSION: u16 = 1;
const KEYS_MAX: usize = 64;

/// A key of the file.
pub(super) struct Moved {
    pub(super) credentials: Credentials,
    pub(super) created_ms: UnixMs,
}

/// The keys of the file; none when there is no such file.
pub(super) fn read(keys_dir: &Path, root: &[u8; 32]) -> Result<Vec<Moved>, KeysError> {
    let path = keys_dir.join(FILE);
    let Some(bytes) = file::read_optional(&path)? else { return Ok(Vec::new()) };
    let stored: KeyFile =
        cbor::decode(&bytes).map_err(|source| KeysError::Record { path: path.clone(), source })?;
    let malformed = |detail| KeysError::Malformed { path: path.clone(), detail };
    if stored.v != FILE_VERSION || stored.keys.len() > KEYS_MAX {
        return Err(malformed("unknown version or number of access keys"));
    }
    let sealing = Zeroizing::new(blake3::derive_key(SEAL_CONTEXT, root));
    let sealing = LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM_SIV, sealing.as_ref()).expect("32 bytes are an AES-256 key"),
    );
    let open = |key: &SealedKey| {
        key.open(&sealing).ok_or_else(|| {
            malformed("an access key does not open under this root key; is root.key another directory's?")
        })
    };
    stored.keys.iter().map(open).collect()
}

/// Renames the file, so that a key which was revoked does not come back at the next start.
pub(super) fn put_away(keys_dir: &Path) -> Result<(), KeysError> {
    let path = keys_dir.join(FILE);
    match std::fs::rename(&path, keys_dir.join(PUT_AWAY)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KeysError::File { action: "put away", path, source }),
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
    fn open(&self, key: &LessSafeKey) -> Option<Moved> {
        let mut bytes = Zeroizing::new(self.sealed.to_vec());
        let plain = key
            .open_in_place(
                Nonce::assume_unique_for_key(self.nonce),
                Aad::from(self.id.as_bytes()),
                bytes.as_mut_slice(),
            )
            .ok()?;
        let secret = std::str::from_utf8(plain).ok()?.to_owned();
        let credentials = Credentials { access_key: self.id.clone(), secret_key: Zeroizing::new(secret) };
        Some(Moved { credentials, created_ms: self.created_ms })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes the file as the first release did.
    pub(in super::super) fn write(keys_dir: &Path, root: &[u8; 32], pair: &Credentials) {
        let sealing = blake3::derive_key(SEAL_CONTEXT, root);
        let sealing = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &sealing).unwrap());
        let nonce = [5; 12];
        let mut sealed = pair.secret_key.as_bytes().to_vec();
        let aad = Aad::from(pair.access_key.as_bytes());
        sealing.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).unwrap();
        let id = pair.access_key.clone();
        let key = SealedKey { id, nonce, sealed: ByteBuf::from(sealed), created_ms: 7 };
        let file = KeyFile { v: FILE_VERSION, keys: vec![key] };
        file::write_private(&keys_dir.join(FILE), &cbor::encode(&file)).unwrap();
    }

    #[test]
    fn another_root_key_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pair = Credentials {
            access_key: "HOLDOLD".to_owned(),
            secret_key: Zeroizing::new("an old secret".to_owned()),
        };
        write(dir.path(), &[7; 32], &pair);
        let error = read(dir.path(), &[8; 32]).err().unwrap();
        assert!(error.to_string().contains("root key"), "{error}");
        let read = read(dir.path(), &[7; 32]).unwrap();
        assert_eq!(*read[0].credentials.secret_key, "an old secret");
    }
}
