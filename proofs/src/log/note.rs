//! Signed notes: C2SP `tlog-checkpoint` with Ed25519 signatures, and `tlog-cosignature` on top.
//!
//! A note is text, an empty line, and one line a signature: `— <name> <base64 of key id and signature>`. The key id
//! is the first 4 bytes of SHA-256 over name, newline, algorithm and key, so a verifier finds its line. These
//! signatures cover the note's text as it is: the one place where a signature has no Holdfast domain in front. The
//! text always begins with the log's origin, which no record does.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::{PublicKey, Signature, SigningKey};
use tlog_tiles::{Checkpoint, Hash};

/// Algorithm byte of a log's own signature.
const ED25519: u8 = 0x01;
/// Algorithm byte of a cosignature with its time.
const COSIGNATURE_V1: u8 = 0x04;
/// The longest note that is read.
pub const NOTE_LEN_MAX: usize = 16 * 1024;
/// Signature lines that are read.
pub const SIGNATURES_MAX: usize = 64;

fn key_id(name: &str, algorithm: u8, key: &PublicKey) -> [u8; 4] {
    let mut message = Vec::with_capacity(name.len() + 34);
    message.extend_from_slice(name.as_bytes());
    message.push(b'\n');
    message.push(algorithm);
    message.extend_from_slice(&key.0);
    let hash = digest(&SHA256, &message);
    let mut id = [0u8; 4];
    id.copy_from_slice(&hash.as_ref()[..4]);
    id
}

fn line(name: &str, id: [u8; 4], signature: &[u8]) -> String {
    format!("\u{2014} {name} {}\n", STANDARD.encode([&id[..], signature].concat()))
}

/// A log's key as other tools take it: `<name>+<key id>+<base64 of algorithm and key>`.
pub fn verifier_key(name: &str, key: &PublicKey) -> String {
    let encoded = STANDARD.encode([&[ED25519][..], &key.0].concat());
    format!("{name}+{}+{encoded}", hex::encode(key_id(name, ED25519, key)))
}

/// The checkpoint of a log as a note with its own signature. `None` when `origin` is no name of a log.
pub fn sign_checkpoint(origin: &str, size: u64, root: Hash, key: &SigningKey) -> Option<String> {
    let text = Checkpoint::new(origin, size, root, "").ok()?.to_bytes();
    let text = String::from_utf8(text).ok()?;
    let signature = key.sign(text.as_bytes());
    let id = key_id(origin, ED25519, &key.public());
    Some(format!("{text}\n{}", line(origin, id, &signature.0)))
}

fn cosigned_message(text: &str, seconds: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {seconds}\n{text}").into_bytes()
}

/// Adds `name`'s cosignature to a note: "at this time I saw this checkpoint, and it extends every one that I
/// cosigned before". The caller has checked that.
pub fn cosign(note: &str, name: &str, key: &SigningKey, now_ms: u64) -> Option<String> {
    let (text, _) = note.split_once("\n\n")?;
    let seconds = now_ms / 1000;
    let signature = key.sign(&cosigned_message(&format!("{text}\n"), seconds));
    let id = key_id(name, COSIGNATURE_V1, &key.public());
    let stamped = [&seconds.to_be_bytes()[..], &signature.0].concat();
    Some(format!("{note}{}", line(name, id, &stamped)))
}

/// A checkpoint with the signatures beneath it, none believed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct SignedCheckpoint {
    text: String,
    /// The log's name.
    pub origin: String,
    /// Its entries.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    signatures: Vec<(String, Vec<u8>)>,
}

impl SignedCheckpoint {
    /// Reads a note.
    ///
    /// # Errors
    /// [`NoteError::Malformed`] when it is none.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > NOTE_LEN_MAX {
            return Err(NoteError::Malformed);
        }
        let (text, lines) = note.split_once("\n\n").ok_or(NoteError::Malformed)?;
        let text = format!("{text}\n");
        let checkpoint = Checkpoint::from_bytes(text.as_bytes()).map_err(|_| NoteError::Malformed)?;
        let mut signatures = Vec::new();
        for line in lines.lines() {
            let (name, encoded) = line
                .strip_prefix("\u{2014} ")
                .and_then(|line| line.split_once(' '))
                .ok_or(NoteError::Malformed)?;
            let bytes = STANDARD.decode(encoded).map_err(|_| NoteError::Malformed)?;
            if signatures.len() == SIGNATURES_MAX {
                return Err(NoteError::Malformed);
            }
            signatures.push((name.to_owned(), bytes));
        }
        Ok(Self {
            origin: checkpoint.origin().to_owned(),
            size: checkpoint.size(),
            root: *checkpoint.hash(),
            text,
            signatures,
        })
    }

    /// Checks the log's own signature.
    ///
    /// # Errors
    /// [`NoteError::Unsigned`] without one by this key, [`NoteError::Forged`] when it does not hold.
    pub fn verify(&self, key: &PublicKey) -> Result<(), NoteError> {
        let id = key_id(&self.origin, ED25519, key);
        let found =
            self.signatures.iter().find(|(name, bytes)| *name == self.origin && bytes.starts_with(&id));
        let (_, bytes) = found.ok_or(NoteError::Unsigned)?;
        let signature = signature_of(&bytes[4..]).ok_or(NoteError::Malformed)?;
        if key.verify(self.text.as_bytes(), &signature) { Ok(()) } else { Err(NoteError::Forged) }
    }

    /// When `name` cosigned, in seconds, if it did with this key.
    ///
    /// # Errors
    /// As [`SignedCheckpoint::verify`].
    pub fn cosigned_by(&self, name: &str, key: &PublicKey) -> Result<u64, NoteError> {
        let id = key_id(name, COSIGNATURE_V1, key);
        let found = self.signatures.iter().find(|(signer, bytes)| signer == name && bytes.starts_with(&id));
        let (_, bytes) = found.ok_or(NoteError::Unsigned)?;
        let (time, signature) = bytes[4..].split_first_chunk::<8>().ok_or(NoteError::Malformed)?;
        let seconds = u64::from_be_bytes(*time);
        let signature = signature_of(signature).ok_or(NoteError::Malformed)?;
        if key.verify(&cosigned_message(&self.text, seconds), &signature) {
            Ok(seconds)
        } else {
            Err(NoteError::Forged)
        }
    }
}

fn signature_of(bytes: &[u8]) -> Option<Signature> {
    bytes.try_into().ok().map(Signature)
}

/// Why a note is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Not a signed checkpoint.
    #[error("this is no signed checkpoint")]
    Malformed,
    /// Nobody of that name and key signed.
    #[error("the checkpoint has no signature of that key")]
    Unsigned,
    /// The signature does not hold.
    #[error("the checkpoint's signature does not hold")]
    Forged,
}

impl NoteError {
    /// Never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}
