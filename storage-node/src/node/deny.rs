//! The operator's deny-list: blocks, peers and namespaces that this node refuses, signed by the node's key.
//!
//! Refused is not lost: what is here stays here, audits of it are answered with `denied`, and HasBlocks says what is
//! held. The list lies in `DIR/deny.cbor` as the signed record's wire bytes.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::limits::{DENIED_MAX, TEXT_LEN_MAX};
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::record::{Denied, DeniedLine, DenyList, Record, Signed, Unverified};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NamespaceId, NodeId, SigningKey, cbor};
use parking_lot::{Mutex, RwLock};

use super::durable;
use super::error::OpenNodeError;

const FILE: &str = "deny.cbor";
/// The longest list as it lies on disk: every line with a reason of full length would be more than anybody writes.
const FILE_LEN_MAX: u64 = 64 * 1024 * 1024;

/// The list, as it is in force.
pub struct DenyBook {
    path: PathBuf,
    key: Arc<SigningKey>,
    list: RwLock<Listed>,
    /// Held over decide, write and replace.
    writing: Mutex<()>,
}

struct Listed {
    record: DenyList,
    what: HashSet<Denied>,
}

/// Why the list was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DenyError {
    /// Too many lines.
    #[error("the deny-list has {DENIED_MAX} lines, which is as many as there may be")]
    Full,
    /// The reason is too long.
    #[error("a reason has at most {TEXT_LEN_MAX} bytes")]
    Reason,
    /// The file.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DenyError {
    /// Whether the same change can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

impl DenyBook {
    /// Reads the list of the node with this key. A list that somebody else signed is damage, not an empty list.
    pub(crate) fn open(dir: &Path, key: Arc<SigningKey>) -> Result<Self, OpenNodeError> {
        let path = dir.join(FILE);
        let damaged = |detail: String| OpenNodeError::Record { path: path.clone(), detail };
        let record = match durable::read_bounded(&path, FILE_LEN_MAX) {
            Ok(bytes) => {
                let wire: Unverified<DenyList> =
                    cbor::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
                wire.verify_by(key.public()).map_err(|error| damaged(error.to_string()))?.into_record()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => DenyList {
                v: DenyList::VERSION,
                node: NodeId(key.public()),
                lines: Vec::new(),
                seq: 0,
                issued_ms: 0,
            },
            Err(error) => return Err(damaged(error.to_string())),
        };
        let what = record.lines.iter().map(|line| line.what).collect();
        Ok(Self { path, key, list: RwLock::new(Listed { record, what }), writing: Mutex::new(()) })
    }

    /// The lines in force.
    pub fn lines(&self) -> Vec<DeniedLine> {
        self.list.read().record.lines.clone()
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.list.read().what.len()
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refused blocks behind `after`, by digest, at most `max`.
    pub fn refused_after(&self, after: Option<Digest>, max: usize) -> Vec<Digest> {
        let list = self.list.read();
        let blocks = list.record.lines.iter().filter_map(|line| match line.what {
            Denied::Block(digest) => Some(digest),
            Denied::Peer(_) | Denied::Namespace(_) => None,
        });
        blocks.filter(|digest| after.is_none_or(|after| *digest > after)).take(max).collect()
    }

    /// Refuses something from now on; again with another reason replaces it. Blocks on the disk.
    pub fn deny(&self, what: Denied, reason: &str, now_ms: UnixMs) -> Result<(), DenyError> {
        if reason.len() > TEXT_LEN_MAX {
            return Err(DenyError::Reason);
        }
        self.change(now_ms, |lines| {
            lines.retain(|line| line.what != what);
            lines.push(DeniedLine { what, reason: reason.to_owned(), since_ms: now_ms });
        })
    }

    /// Refuses it no longer; false when it was not refused. Blocks on the disk.
    pub fn allow(&self, what: Denied, now_ms: UnixMs) -> Result<bool, DenyError> {
        if !self.list.read().what.contains(&what) {
            return Ok(false);
        }
        self.change(now_ms, |lines| lines.retain(|line| line.what != what))?;
        Ok(true)
    }

    fn change(&self, now_ms: UnixMs, change: impl FnOnce(&mut Vec<DeniedLine>)) -> Result<(), DenyError> {
        let _writing = self.writing.lock();
        let mut record = self.list.read().record.clone();
        change(&mut record.lines);
        if record.lines.len() > DENIED_MAX {
            return Err(DenyError::Full);
        }
        record.lines.sort_by_key(|line| line.what);
        record.seq = record.seq.saturating_add(1);
        record.issued_ms = now_ms;
        let wire = Signed::sign(record.clone(), &self.key).to_wire();
        durable::write_whole(&self.path, &cbor::encode(&wire))
            .map_err(|source| DenyError::Write { path: self.path.clone(), source })?;
        let what = record.lines.iter().map(|line| line.what).collect();
        *self.list.write() = Listed { record, what };
        Ok(())
    }

    /// The refusal for a block, if it is on the list.
    pub(crate) fn block(&self, digest: &Digest) -> Result<(), Refusal> {
        self.check(Denied::Block(*digest), "this node's operator refuses this block; it is not lost")
    }

    /// The refusal for a peer, if it is on the list.
    pub(crate) fn peer(&self, peer: NodeId) -> Result<(), Refusal> {
        self.check(Denied::Peer(peer), "this node's operator refuses this peer")
    }

    /// The refusal for a namespace, if it is on the list.
    pub(crate) fn namespace(&self, namespace: NamespaceId) -> Result<(), Refusal> {
        self.check(Denied::Namespace(namespace), "this node's operator refuses this namespace")
    }

    fn check(&self, what: Denied, text: &str) -> Result<(), Refusal> {
        let list = self.list.read();
        if list.what.is_empty() || !list.what.contains(&what) {
            return Ok(());
        }
        Err(Refusal::new(RefusalReason::Denied, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Arc<SigningKey> {
        Arc::new(SigningKey::from_seed(&[byte; 32]).unwrap())
    }

    #[test]
    fn the_list_is_signed_kept_and_taken_back_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let book = DenyBook::open(dir.path(), key(1)).unwrap();
        let (block, peer) = (Digest::of(b"x"), NodeId(key(2).public()));
        assert!(book.block(&block).is_ok());
        book.deny(Denied::Block(block), "court order", 5).unwrap();
        book.deny(Denied::Peer(peer), "does not pay", 6).unwrap();
        let again = DenyBook::open(dir.path(), key(1)).unwrap();
        assert_eq!(again.block(&block).unwrap_err().reason, RefusalReason::Denied);
        assert_eq!(again.peer(peer).unwrap_err().reason, RefusalReason::Denied);
        assert!(again.block(&Digest::of(b"y")).is_ok());
        assert!(again.allow(Denied::Block(block), 7).unwrap());
        assert!(!again.allow(Denied::Block(block), 8).unwrap());
        assert!(again.block(&block).is_ok());
        assert_eq!(again.lines().len(), 1);
    }

    #[test]
    fn a_list_of_another_key_is_damage_not_permission() {
        let dir = tempfile::tempdir().unwrap();
        let book = DenyBook::open(dir.path(), key(1)).unwrap();
        book.deny(Denied::Block(Digest::of(b"x")), "", 5).unwrap();
        assert!(matches!(DenyBook::open(dir.path(), key(2)), Err(OpenNodeError::Record { .. })));
    }
}
