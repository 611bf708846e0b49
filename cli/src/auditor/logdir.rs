//! An audit log as a directory of static files, and reading one from a directory or over HTTP.
//!
//! Tiles are written and synced before the checkpoint that names them, and each file takes its name only when it is
//! whole, so a reader at any moment finds a log that its checkpoint describes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use holdfast_proofs::log::{
    LogEntry, LogFile, LogTail, SignedCheckpoint, TILE_WIDTH, blob_path, bundle_entries, sign_checkpoint,
    tile_path,
};
use holdfast_protocol::{Digest, SigningKey};
use url::Url;

use crate::client::Http;

/// The newest state of a log.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The longest file of a log: a bundle of 256 entries of 64 KiB.
const FILE_LEN_MAX: u64 = 17 * 1024 * 1024;

/// Incomplete tiles that are kept of each: readers that took a checkpoint a moment ago still find theirs.
const PARTIAL_KEPT: usize = 16;

/// A log that we write.
pub(crate) struct LogDir {
    dir: PathBuf,
    origin: String,
    key: Arc<SigningKey>,
    tail: LogTail,
    /// The incomplete files in place, by the path of the complete one, narrowest first.
    partial: BTreeMap<String, Vec<String>>,
}

impl LogDir {
    /// Opens the log in `dir`, making it when absent, and gives its entries so far.
    pub(crate) fn open(dir: &Path, origin: &str, key: Arc<SigningKey>) -> Result<(Self, Vec<LogEntry>)> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut entries = Vec::new();
        let mut tail = LogTail::new();
        if let Some(note) = read_file(&dir.join(CHECKPOINT))? {
            let note = String::from_utf8(note).context("the log's checkpoint is not text")?;
            let checkpoint = SignedCheckpoint::parse(&note)?;
            checkpoint.verify(&key.public()).context("the log's checkpoint is not ours")?;
            let read = |path: &str| read_file(&dir.join(path)).ok().flatten();
            tail = LogTail::open(checkpoint.size, read).context("the log is damaged")?;
            if tail.root() != checkpoint.root {
                bail!("the log in {} is damaged: its tiles are not those of its checkpoint", dir.display());
            }
            for bundle in 0..checkpoint.size.div_ceil(TILE_WIDTH as u64) {
                let width = usize::try_from(checkpoint.size - bundle * TILE_WIDTH as u64)?.min(TILE_WIDTH);
                let path = tile_path("entries", bundle, width);
                let bytes = read(&path).with_context(|| format!("{path} of the log is missing"))?;
                for entry in bundle_entries(&bytes).context("a bundle of the log is damaged")? {
                    entries.push(LogEntry::decode(entry)?);
                }
            }
        }
        let partial = BTreeMap::new();
        Ok((Self { dir: dir.to_owned(), origin: origin.to_owned(), key, tail, partial }, entries))
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the proofs of an answer.
    pub(crate) fn keep(&self, digest: &Digest, body: &[u8]) -> Result<()> {
        let path = self.dir.join(blob_path(digest));
        if path.exists() { Ok(()) } else { write_public(&path, body) }
    }

    /// Appends entries and publishes a checkpoint over them.
    pub(crate) fn append(&mut self, entries: &[LogEntry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            self.tail.append(&entry.encode())?;
        }
        for LogFile { path, bytes } in self.tail.files() {
            write_public(&self.dir.join(&path), &bytes)?;
            let whole = path.split(".p/").next().unwrap_or(&path).to_owned();
            let before = if whole == path {
                // Whoever wants an incomplete tile finds all of it in the complete one.
                self.partial.remove(&whole).unwrap_or_default()
            } else {
                let kept = self.partial.entry(whole).or_default();
                // A level of which nothing changed comes again under the same path.
                if kept.last() != Some(&path) {
                    kept.push(path);
                }
                let surplus = kept.len().saturating_sub(PARTIAL_KEPT);
                kept.drain(..surplus).collect()
            };
            for before in before {
                let _ = std::fs::remove_file(self.dir.join(before));
            }
        }
        let note = sign_checkpoint(&self.origin, self.tail.size(), self.tail.root(), &self.key);
        let note = note.context("the log's name is no name of a log")?;
        write_public(&self.dir.join(CHECKPOINT), note.as_bytes())
    }
}

/// A log that somebody serves: a directory, or a web address.
#[derive(Debug, Clone)]
pub(crate) enum LogSource {
    /// On this machine.
    Dir(PathBuf),
    /// Anywhere.
    Web(Url, Box<Http>),
}

impl LogSource {
    /// `text` is a directory or an `http:` URL.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.starts_with("http://") {
            let text = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
            return Ok(Self::Web(Url::parse(&text)?, Box::new(Http::new())));
        }
        if text.starts_with("https://") {
            bail!("`{text}`: this command speaks http only; fetch the files first and name their directory");
        }
        Ok(Self::Dir(PathBuf::from(text)))
    }

    /// A file of the log; `None` when it is not there.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Dir(dir) => read_file(&dir.join(path)),
            Self::Web(base, http) => http.fetch(&base.join(path)?).await,
        }
    }

    /// An incomplete tile or the one that has replaced it.
    pub(crate) async fn tile(&self, level: &str, index: u64, width: usize) -> Result<Option<Vec<u8>>> {
        match self.read(&tile_path(level, index, width)).await? {
            None if width < TILE_WIDTH => self.read(&tile_path(level, index, TILE_WIDTH)).await,
            found => Ok(found),
        }
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        bail!("{} is longer than any file of a log", path.display());
    }
    Ok(Some(bytes))
}

/// Writes a file that anybody may read: whole, synced, then under its name.
fn write_public(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let write = || -> std::io::Result<()> {
        let parent = path.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(parent)?;
        let partial = path.with_extension("partial");
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&partial, path)?;
        std::fs::File::open(parent)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_found_again_and_a_changed_one_is_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let key = Arc::new(SigningKey::from_seed(&[1; 32])?);
        let round = |epoch| LogEntry::Round {
            epoch,
            round: holdfast_protocol::record::BeaconRound { round: epoch, proof: Vec::new().into() },
        };
        let (mut log, entries) = LogDir::open(root.path(), "test/log", key.clone())?;
        assert!(entries.is_empty());
        for epoch in 0..300 {
            log.append(&[round(epoch)])?;
        }
        drop(log);
        let (log, entries) = LogDir::open(root.path(), "test/log", key.clone())?;
        assert_eq!((log.tail.size(), entries.len()), (300, 300));
        assert_eq!(entries[299], round(299));
        let partial = std::fs::read_dir(root.path().join("tile/0/001.p"))?.count();
        assert_eq!(partial, PARTIAL_KEPT, "the widest incomplete tiles stay");
        assert!(
            !root.path().join("tile/0/000.p").join("255").exists(),
            "a complete tile needs no incomplete ones"
        );
        let tile = root.path().join("tile/0/001.p/44");
        let mut bytes = std::fs::read(&tile)?;
        bytes[5] ^= 1;
        std::fs::write(&tile, bytes)?;
        assert!(LogDir::open(root.path(), "test/log", key).is_err());
        Ok(())
    }
}
