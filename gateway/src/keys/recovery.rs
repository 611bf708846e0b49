//! The recovery file: what a namespace cannot do without, enciphered under a code that its owner keeps elsewhere.
//!
//! The namespace's signing key and root key are the only things that no node and no database can give back. The file is
//! text: a head of readable lines, an empty line, then base64 of a nonce of 12 bytes and AES-256-GCM-SIV of the
//! canonical DAG-CBOR of [`Secrets`], with the head as associated data. The key derives from the code, which has 160
//! random bits and needs no slow derivation.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::cbor;
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{NamespaceId, SigningKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{KeysError, file, trail};

const CONTEXT: &str = "holdfast recovery file v1";
const FIRST_LINE: &str = "holdfast recovery file, version 1";
const VERSION: u16 = 1;
/// Without letters and digits that are taken for one another.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
const CODE_LEN: usize = 32;
const GROUP_LEN: usize = 4;
/// Characters of a line of the file.
const LINE_LEN: usize = 64;
/// Left when the owner has shown that the code was written down.
const CONFIRMED_FILE: &str = "recovery-confirmed";

/// What opens a recovery file: 32 letters and digits, shown in groups of four.
#[derive(Clone)]
pub struct RecoveryCode(Zeroizing<String>);

impl RecoveryCode {
    fn fresh() -> Result<Self, RecoveryError> {
        let mut random = Zeroizing::new([0u8; CODE_LEN]);
        getrandom::fill(random.as_mut()).map_err(|_| RecoveryError::Random)?;
        let code = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        Ok(Self(Zeroizing::new(code)))
    }

    /// Reads a code as a person types it: any case, with or without dashes and blanks.
    pub fn parse(text: &str) -> Result<Self, RecoveryError> {
        let kept = text.chars().filter(|each| !each.is_whitespace() && *each != '-');
        let code = Zeroizing::new(kept.map(|each| each.to_ascii_uppercase()).collect::<String>());
        if code.len() == CODE_LEN && code.bytes().all(|byte| ALPHABET.contains(&byte)) {
            Ok(Self(code))
        } else {
            Err(RecoveryError::Code)
        }
    }

    /// As it is shown.
    pub fn expose(&self) -> Zeroizing<String> {
        let groups: Vec<&str> = (0..CODE_LEN)
            .step_by(GROUP_LEN)
            .filter_map(|start| self.0.get(start..start + GROUP_LEN))
            .collect();
        Zeroizing::new(groups.join("-"))
    }

    /// Whether two codes are one, in time that does not depend on where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    fn key(&self) -> LessSafeKey {
        let key = Zeroizing::new(blake3::derive_key(CONTEXT, self.0.as_bytes()));
        LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM_SIV, key.as_ref()).expect("32 bytes are an AES-256 key"),
        )
    }
}

impl fmt::Debug for RecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryCode(redacted)")
    }
}

#[derive(Serialize, Deserialize)]
struct Secrets {
    v: u16,
    namespace: ByteBuf,
    root: ByteBuf,
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.namespace.as_mut().zeroize();
        self.root.as_mut().zeroize();
    }
}

/// Writes a recovery file of the keys in `dir` to `out`, under a fresh code.
pub fn back_up(dir: &Path, out: &Path, now_ms: UnixMs) -> Result<RecoveryCode, RecoveryError> {
    let keys = dir.join("keys");
    let existing = |name: &str| {
        let path = keys.join(name);
        if path.exists() {
            Ok(file::secret(&path)?)
        } else {
            Err(RecoveryError::from(KeysError::Missing { path }))
        }
    };
    let (namespace, root) = (existing("namespace.key")?, existing("root.key")?);
    let id = SigningKey::from_seed(&namespace).map_err(KeysError::from)?.public();
    let code = RecoveryCode::fresh()?;
    let head = format!("{FIRST_LINE}\nnamespace {}\nmade {}\n", NamespaceId(id), trail::day_of(now_ms));
    let secrets = Secrets { v: VERSION, namespace: ByteBuf::from(*namespace), root: ByteBuf::from(*root) };
    let mut sealed = cbor::encode(&secrets);
    let mut nonce = [0u8; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| RecoveryError::Random)?;
    code.key()
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(head.as_bytes()),
            &mut sealed,
        )
        .map_err(|_| RecoveryError::Random)?;
    let text = STANDARD.encode([&nonce[..], &sealed].concat());
    let mut whole = format!("{head}\n");
    for line in text.as_bytes().chunks(LINE_LEN) {
        whole.push_str(&String::from_utf8_lossy(line));
        whole.push('\n');
    }
    file::write_private(out, whole.as_bytes())?;
    Ok(code)
}

/// Puts the keys of a recovery file into `dir`, which may be new. Keys of another namespace are left alone.
pub fn restore(dir: &Path, recovery: &Path, code: &RecoveryCode) -> Result<NamespaceId, RecoveryError> {
    let damaged = || RecoveryError::Damaged { path: recovery.to_owned() };
    let bytes = file::read_optional(recovery)?
        .ok_or_else(|| RecoveryError::Keys(KeysError::Missing { path: recovery.to_owned() }))?;
    let text = String::from_utf8(bytes).map_err(|_| damaged())?;
    let (head, body) = text.split_once("\n\n").ok_or_else(damaged)?;
    if !head.starts_with(FIRST_LINE) {
        return Err(damaged());
    }
    let body: String = body.split_whitespace().collect();
    let sealed = STANDARD.decode(body).map_err(|_| damaged())?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let head = format!("{head}\n");
    let plain = code
        .key()
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(head.as_bytes()),
            sealed.as_mut_slice(),
        )
        .map_err(|_| RecoveryError::WrongCode)?;
    let secrets: Secrets = cbor::decode(plain).map_err(|_| damaged())?;
    let seed = |bytes: &ByteBuf| -> Result<Zeroizing<[u8; 32]>, RecoveryError> {
        bytes[..].try_into().map(Zeroizing::new).map_err(|_| damaged())
    };
    let (namespace, root) = (seed(&secrets.namespace)?, seed(&secrets.root)?);
    let id = NamespaceId(SigningKey::from_seed(&namespace).map_err(KeysError::from)?.public());
    let keys = dir.join("keys");
    file::make_private(dir)?;
    file::make_private(&keys)?;
    // Both are looked at before either is written.
    let names = [("namespace.key", &namespace), ("root.key", &root)];
    for (name, secret) in names {
        let path = keys.join(name);
        if path.exists() && !bool::from(file::secret(&path)?.ct_eq(&**secret)) {
            return Err(RecoveryError::Another { path });
        }
    }
    for (name, secret) in names {
        file::write_secret(&keys.join(name), secret)?;
    }
    Ok(id)
}

/// Remembers that the owner has shown the code.
pub fn confirm(dir: &Path, now_ms: UnixMs) -> Result<(), RecoveryError> {
    Ok(file::write_private(&dir.join("keys").join(CONFIRMED_FILE), format!("{now_ms}\n").as_bytes())?)
}

/// Whether the owner once showed a code of these keys.
pub fn is_confirmed(dir: &Path) -> bool {
    dir.join("keys").join(CONFIRMED_FILE).exists()
}

/// Why keys were not backed up or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// Not a code.
    #[error("a recovery code has 32 letters and digits, in groups of four")]
    Code,
    /// Not the code of this file, or the file was changed.
    #[error("the code does not open this recovery file; is it another file's, or a letter wrong?")]
    WrongCode,
    /// Not a recovery file.
    #[error("{path} is not a whole recovery file", path = .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The directory has keys of its own.
    #[error("{path} is there already and holds another key; restore into a new directory", path = .path.display())]
    Another {
        /// Which file.
        path: PathBuf,
    },
    /// Files.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No random bytes.
    #[error("the system's random source failed")]
    Random,
}

impl RecoveryError {
    /// Whether trying again without a person's help can succeed.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Random)
    }
}

#[cfg(test)]
mod tests {
    use super::super::GatewayKeys;
    use super::*;

    const NOW: UnixMs = 1_800_000_000_000;

    #[test]
    fn a_second_gateway_of_the_namespace_comes_from_the_recovery_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, out) =
            (dir.path().join("one"), dir.path().join("two"), dir.path().join("recovery.txt"));
        let first = GatewayKeys::load_or_create(&one, "one", NOW).unwrap();
        let code = back_up(&one, &out, NOW).unwrap();
        let text = std::fs::read_to_string(&out).unwrap();
        assert!(!text.contains(&hex::encode(first.root().expose())));
        let typed = RecoveryCode::parse(&code.expose().to_lowercase().replace('-', " ")).unwrap();
        assert!(code.matches(&typed) && code.expose().len() == 39);
        assert_eq!(restore(&two, &out, &typed).unwrap(), first.namespace_id());
        let second = GatewayKeys::load_or_create(&two, "two", NOW).unwrap();
        assert_eq!(second.namespace_id(), first.namespace_id());
        assert_eq!(second.root().expose(), first.root().expose());
        assert_ne!(second.node_id(), first.node_id(), "each gateway has a key of its own");
        assert_eq!(second.delegation().record().namespace, first.namespace_id());
        // Again into the same directory changes nothing.
        restore(&two, &out, &typed).unwrap();
    }

    #[test]
    fn a_wrong_code_and_a_changed_file_open_nothing_and_other_keys_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other, out) =
            (dir.path().join("one"), dir.path().join("other"), dir.path().join("recovery"));
        GatewayKeys::load_or_create(&one, "one", NOW).unwrap();
        let code = back_up(&one, &out, NOW).unwrap();
        let wrong = RecoveryCode::fresh().unwrap();
        assert!(matches!(restore(&dir.path().join("new"), &out, &wrong), Err(RecoveryError::WrongCode)));
        GatewayKeys::load_or_create(&other, "other", NOW).unwrap();
        assert!(matches!(restore(&other, &out, &code), Err(RecoveryError::Another { .. })));
        let text = std::fs::read_to_string(&out).unwrap();
        std::fs::write(&out, text.replace("made 2027", "made 2028")).unwrap();
        assert!(matches!(restore(&dir.path().join("new"), &out, &code), Err(RecoveryError::WrongCode)));
        assert!(matches!(RecoveryCode::parse("ABCD-EFGH"), Err(RecoveryError::Code)));
    }
}
