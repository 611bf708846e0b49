//! What peers and this node signed for each other, durably: agreements and heads.
//!
//! One file per record, named by what makes it unique and holding the bytes that travelled. The
//! signatures inside are the checksums: every file is verified when it is read. Nothing here decides who may
//! say what; the server has checked that.
//!
//! ```text
//! DIR/agreements/<agreement id, hex>       canonical DAG-CBOR of UnverifiedAgreement
//! DIR/heads/<namespace, hex>/<instance>    canonical DAG-CBOR of PresentedHead
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::NamespaceId;
use holdfast_protocol::cbor;
use holdfast_protocol::limits::HEADS_MAX;
use holdfast_protocol::record::{
    AgreementId, Head, InstanceId, PresentedHead, SignedAgreement, UnverifiedAgreement,
};
use parking_lot::{Mutex, RwLock};

use super::durable;
use super::error::OpenNodeError;
use super::limits::{AGREEMENTS_MAX, HEAD_LEN_MAX};

/// No record file is longer: two signed agreements with every text at its bound.
const RECORD_FILE_LEN_MAX: u64 = 16 * 1024;

/// Agreements and heads, on disk and in memory.
pub(crate) struct Ledger {
    dir: PathBuf,
    state: RwLock<State>,
    /// Held over decide, write and insert, so that two writers never decide on the same state.
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    agreements: BTreeMap<AgreementId, Arc<SignedAgreement>>,
    heads: HashMap<NamespaceId, BTreeMap<InstanceId, KeptHead>>,
}

#[derive(Clone)]
struct KeptHead {
    seq: u64,
    presented: PresentedHead,
}

/// Why the ledger did not take a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LedgerError {
    #[error("writing {} failed: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the namespace keeps heads of {HEADS_MAX} instances here already")]
    TooManyInstances,
    #[error("the head with its delegation has {len} bytes; at most {HEAD_LEN_MAX} are kept")]
    HeadTooLong { len: usize },
}

impl Ledger {
    /// Reads everything in `dir`, checking every signature.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenNodeError> {
        let mut state = State::default();
        let agreements = dir.join("agreements");
        for path in record_files(&agreements)? {
            let wire: UnverifiedAgreement = read_record(&path)?;
            let signed = wire.verify().map_err(|error| damaged(&path, &error))?;
            if state.agreements.len() >= AGREEMENTS_MAX {
                return Err(damaged(&path, &"there are more agreements than a node keeps"));
            }
            state.agreements.insert(signed.id(), Arc::new(signed));
        }
        for namespace_dir in subdirectories(&dir.join("heads"))? {
            for path in record_files(&namespace_dir)? {
                let presented: PresentedHead = read_record(&path)?;
                let head = verify_kept(&presented).map_err(|error| damaged(&path, &error))?;
                let kept = KeptHead { seq: head.seq, presented };
                state.heads.entry(head.namespace).or_default().insert(head.instance, kept);
            }
        }
        Ok(Self { dir: dir.to_owned(), state: RwLock::new(state), writing: Mutex::new(()) })
    }

    /// The agreement with this id.
    pub(crate) fn agreement(&self, id: &AgreementId) -> Option<Arc<SignedAgreement>> {
        self.state.read().agreements.get(id).cloned()
    }

    /// All agreements, ended ones included.
    pub(crate) fn agreements(&self) -> Vec<Arc<SignedAgreement>> {
        self.state.read().agreements.values().cloned().collect()
    }

    /// The namespace's agreement that has begun and ends last, if any runs.
    pub(crate) fn current(&self, namespace: NamespaceId, now_ms: u64) -> Option<Arc<SignedAgreement>> {
        let state = self.state.read();
        let running = state.agreements.values().filter(|held| {
            held.terms().namespace == namespace && super::admission::in_term(held.terms(), now_ms)
        });
        running.max_by_key(|held| held.terms().end_ms).cloned()
    }

    /// The namespace's agreements, ended ones and those to come included; at most a few.
    pub(crate) fn of_namespace(&self, namespace: NamespaceId) -> Vec<Arc<SignedAgreement>> {
        let state = self.state.read();
        state.agreements.values().filter(|held| held.terms().namespace == namespace).cloned().collect()
    }

    /// How many agreements run.
    pub(crate) fn running(&self, now_ms: u64) -> u64 {
        let state = self.state.read();
        let running = state.agreements.values().filter(|held| held.terms().end_ms > now_ms).count();
        running as u64
    }

    /// Keeps the agreement that `decide` makes from those present. Blocks on the disk.
    pub(crate) fn agree<E: From<LedgerError>>(
        &self,
        decide: impl FnOnce(&[Arc<SignedAgreement>]) -> Result<SignedAgreement, E>,
    ) -> Result<Arc<SignedAgreement>, E> {
        let _writing = self.writing.lock();
        let signed = Arc::new(decide(&self.agreements())?);
        let path = self.dir.join("agreements").join(signed.id().to_string());
        write_record(&path, &cbor::encode(&signed.to_wire()))?;
        self.state.write().agreements.insert(signed.id(), signed.clone());
        Ok(signed)
    }

    /// Keeps a verified head if its `seq` is the highest of its instance; answers with the highest kept.
    /// Blocks on the disk.
    pub(crate) fn put_head(&self, head: &Head, presented: PresentedHead) -> Result<u64, LedgerError> {
        let bytes = cbor::encode(&presented);
        if bytes.len() > HEAD_LEN_MAX {
            return Err(LedgerError::HeadTooLong { len: bytes.len() });
        }
        let _writing = self.writing.lock();
        {
            let state = self.state.read();
            let of_namespace = state.heads.get(&head.namespace);
            if let Some(kept) = of_namespace.and_then(|heads| heads.get(&head.instance)) {
                if kept.seq >= head.seq {
                    return Ok(kept.seq);
                }
            } else if of_namespace.is_some_and(|heads| heads.len() >= HEADS_MAX) {
                return Err(LedgerError::TooManyInstances);
            }
        }
        let namespace = hex::encode(head.namespace.as_bytes());
        let path = self.dir.join("heads").join(namespace).join(head.instance.to_string());
        write_record(&path, &bytes)?;
        let kept = KeptHead { seq: head.seq, presented };
        self.state.write().heads.entry(head.namespace).or_default().insert(head.instance, kept);
        Ok(head.seq)
    }

    /// The heads kept for a namespace, at most [`HEADS_MAX`].
    pub(crate) fn heads(&self, namespace: &NamespaceId) -> Vec<PresentedHead> {
        let state = self.state.read();
        let heads = state.heads.get(namespace);
        heads.map(|heads| heads.values().map(|kept| kept.presented.clone()).collect()).unwrap_or_default()
    }
}

/// A kept head was verified when it came; later its delegation may have run out, so only the signatures
/// and the chain are checked again, at the time that the head itself names.
fn verify_kept(presented: &PresentedHead) -> Result<Head, holdfast_protocol::record::SignatureError> {
    let delegation = presented.delegation.verify()?;
    let at_ms = presented.head.verify()?.record().issued_ms;
    let (from, until) = (delegation.record().not_before_ms, delegation.record().expires_ms);
    presented.verify(at_ms.clamp(from, until.saturating_sub(1)))
}

fn write_record(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        durable::make_dir(parent).map_err(failed)?;
    }
    durable::write_whole(path, bytes).map_err(failed)
}

fn read_record<T: serde::Serialize + serde::de::DeserializeOwned>(path: &Path) -> Result<T, OpenNodeError> {
    let bytes = durable::read_bounded(path, RECORD_FILE_LEN_MAX).map_err(|error| damaged(path, &error))?;
    cbor::decode(&bytes).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> OpenNodeError {
    OpenNodeError::Record { path: path.to_owned(), detail: error.to_string() }
}

/// The finished files of a directory; unfinished ones are removed. A directory that is not there has none.
fn record_files(dir: &Path) -> Result<Vec<PathBuf>, OpenNodeError> {
    let mut files = Vec::new();
    for path in entries(dir)? {
        if path
            .extension()
            .is_some_and(|extension| format!(".{}", extension.display()) == durable::UNFINISHED)
        {
            match std::fs::remove_file(&path) {
                // It counts for nothing, and goes when the disk can be written again.
                Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
                other => other.map_err(|source| OpenNodeError::Dir { dir: path.clone(), source })?,
            }
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, OpenNodeError> {
    Ok(entries(dir)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, OpenNodeError> {
    let failed = |source| OpenNodeError::Dir { dir: dir.to_owned(), source };
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in listing {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{Agreement, Delegation, Prices, Rights, Signed};
    use holdfast_protocol::{NodeId, OperatorId, SigningKey};

    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    fn head(instance: u8, seq: u64, label: usize) -> (Head, PresentedHead) {
        let (namespace, gateway) = (key(1), key(2));
        let delegation = Delegation {
            v: 1,
            namespace: NamespaceId(namespace.public()),
            delegate: NodeId(gateway.public()),
            rights: Rights::GATEWAY,
            not_before_ms: 0,
            expires_ms: 10_000,
            label: "g".repeat(label),
        };
        let head = Head {
            v: 1,
            namespace: NamespaceId(namespace.public()),
            instance: InstanceId([instance; 16]),
            seq,
            journal_tip: None,
            checkpoint: None,
            issued_ms: 50_000,
        };
        let presented = PresentedHead {
            head: Signed::sign(head.clone(), &gateway).to_wire(),
            delegation: Signed::sign(delegation, &namespace).to_wire(),
        };
        (head, presented)
    }

    fn agreement(nonce: u8) -> SignedAgreement {
        let terms = Agreement {
            v: 1,
            namespace: NamespaceId(key(1).public()),
            node: NodeId(key(3).public()),
            operator: OperatorId(key(3).public()),
            capacity_bytes: 10,
            prices: Prices::default(),
            start_ms: 0,
            end_ms: 1_000,
            notice_ms: 0,
            nonce: [nonce; 16],
        };
        SignedAgreement::countersign(Signed::sign(terms, &key(1)), &key(3)).unwrap()
    }

    #[test]
    fn agreements_and_heads_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let signed = ledger.agree::<LedgerError>(|_| Ok(agreement(1))).unwrap();
        let (first, presented) = head(1, 7, 3);
        assert_eq!(ledger.put_head(&first, presented.clone()).unwrap(), 7);
        std::fs::write(dir.path().join("agreements/half.tmp"), b"torn").unwrap();

        let again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.agreement(&signed.id()), Some(signed));
        assert_eq!(again.heads(&first.namespace), vec![presented]);
        assert!(!dir.path().join("agreements/half.tmp").exists());
    }

    #[test]
    fn the_highest_seq_wins() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for (seq, kept) in [(5, 5), (4, 5), (5, 5), (9, 9)] {
            let (record, presented) = head(1, seq, 3);
            assert_eq!(ledger.put_head(&record, presented).unwrap(), kept);
        }
        assert_eq!(ledger.heads(&NamespaceId(key(1).public())).len(), 1);
    }

    #[test]
    fn heads_are_bounded_in_number_and_length() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let (record, presented) = head(0, 1, 5000);
        assert!(matches!(ledger.put_head(&record, presented), Err(LedgerError::HeadTooLong { .. })));
        for instance in 0..HEADS_MAX {
            let (record, presented) = head(u8::try_from(instance).unwrap(), 1, 3);
            ledger.put_head(&record, presented).unwrap();
        }
        let (record, presented) = head(200, 1, 3);
        assert!(matches!(ledger.put_head(&record, presented), Err(LedgerError::TooManyInstances)));
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("agreements")).unwrap();
        let mut bytes = cbor::encode(&agreement(1).to_wire());
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(dir.path().join("agreements/abcd"), &bytes).unwrap();
        assert!(matches!(Ledger::open(dir.path()), Err(OpenNodeError::Record { .. })));
    }
}
