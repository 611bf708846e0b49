//! Epochs of which something may be due: one file each, written before anything of it is said.
//!
//! A file is canonical DAG-CBOR of [`EpochFile`], named by the epoch's number in 20 digits. It holds what was signed,
//! so a node that starts again never commits twice to one epoch, and the leaves that a draw opened, so that it can
//! answer although its inventory has moved on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_protocol::cbor;
use holdfast_protocol::record::{
    Commitment, Countersignature, Declaration, Epoch, OpenedLeaf, Signed, Unverified,
};
use serde::{Deserialize, Serialize};

use super::AuditError;
use crate::node::durable;

/// The longest file: two declarations, sixteen words, and 64 opened leaves.
const FILE_LEN_MAX: u64 = 512 * 1024;

/// A drawn leaf, opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenedDraw {
    /// Which draw.
    pub(super) draw: u32,
    /// The leaf, with its path.
    pub(super) leaf: OpenedLeaf,
    /// The drawn byte's place in the block.
    pub(super) offset: u32,
}

/// One epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct EpochFile {
    /// Version.
    pub(super) v: u16,
    /// Which.
    pub(super) epoch: Epoch,
    /// What was committed to.
    pub(super) commitment: Unverified<Commitment>,
    /// What was declared when it was first shown with something to declare.
    pub(super) declarations: Vec<Unverified<Declaration>>,
    /// Who countersigned.
    pub(super) countersignatures: Vec<Unverified<Countersignature>>,
    /// What was drawn, once that is known.
    pub(super) opened: Option<Vec<OpenedDraw>>,
    /// By which randomness.
    pub(super) randomness: Option<[u8; 32]>,
}

impl EpochFile {
    pub(super) fn new(commitment: &Signed<Commitment>) -> Self {
        Self {
            v: 1,
            epoch: commitment.record().epoch,
            commitment: commitment.to_wire(),
            declarations: Vec::new(),
            countersignatures: Vec::new(),
            opened: None,
            randomness: None,
        }
    }
}

/// All of them.
pub(super) struct Epochs {
    dir: PathBuf,
    files: BTreeMap<Epoch, EpochFile>,
}

impl Epochs {
    pub(super) fn open(dir: &Path) -> Result<Self, AuditError> {
        durable::make_dir(dir).map_err(|error| failed(dir, &error))?;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, &error))? {
            let path = entry.map_err(|error| failed(dir, &error))?.path();
            if path.extension().is_some() {
                continue;
            }
            let bytes = durable::read_bounded(&path, FILE_LEN_MAX).map_err(|error| failed(&path, &error))?;
            match cbor::decode::<EpochFile>(&bytes) {
                Ok(file) => {
                    files.insert(file.epoch, file);
                }
                // Its draws will be counted absent, and the log says why; the node itself must start.
                Err(error) => tracing::error!(path = %path.display(), %error, "an epoch's file is damaged"),
            }
        }
        Ok(Self { dir: dir.to_owned(), files })
    }

    pub(super) fn get(&self, epoch: Epoch) -> Option<&EpochFile> {
        self.files.get(&epoch)
    }

    pub(super) fn get_mut(&mut self, epoch: Epoch) -> Option<&mut EpochFile> {
        self.files.get_mut(&epoch)
    }

    /// Keeps a new epoch, and forgets those before `oldest`.
    pub(super) fn insert(&mut self, file: EpochFile, oldest: Epoch) -> Result<(), AuditError> {
        let epoch = file.epoch;
        self.files.insert(epoch, file);
        if let Err(error) = self.save(epoch) {
            self.files.remove(&epoch);
            return Err(error);
        }
        while let Some(entry) = self.files.first_entry().filter(|entry| *entry.key() < oldest) {
            let _ = std::fs::remove_file(path(&self.dir, *entry.key()));
            entry.remove();
        }
        Ok(())
    }

    /// Writes an epoch's file.
    pub(super) fn save(&self, epoch: Epoch) -> Result<(), AuditError> {
        let Some(file) = self.files.get(&epoch) else { return Ok(()) };
        let path = path(&self.dir, epoch);
        durable::write_whole(&path, &cbor::encode(file)).map_err(|error| failed(&path, &error))
    }
}

fn path(dir: &Path, epoch: Epoch) -> PathBuf {
    dir.join(format!("{epoch:020}"))
}

fn failed(path: &Path, error: &std::io::Error) -> AuditError {
    AuditError::Files { detail: format!("{}: {error}", path.display()) }
}
