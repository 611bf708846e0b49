//! Transfers that go on where they were stopped: `put` and `import` write a journal of what is done, and the gateway
//! keeps the parts of what was under way.
//!
//! A journal is a file of JSON lines below the state directory, named after what is transferred where. A line that a kill
//! cut off is ignored, and so costs one file or part again. What a journal calls done is believed only if the object is
//! still there with the same entity tag, and only if its source has not changed. The journal goes when all is done.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::client::S3;

/// Files up to this size go in one request; longer ones in parts of it. In memory per job, so 8 jobs take 128 MiB.
pub(crate) const PART_LEN: usize = 16 * 1024 * 1024;
/// S3's own limit, which bounds a file to 160 GB with these parts; longer files get longer parts.
const PARTS_MAX: u64 = 10_000;

/// What became of one file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Transferred {
    /// The object's key.
    pub(crate) key: String,
    /// Bytes.
    pub(crate) bytes: u64,
    /// The root CID, where the gateway named it.
    pub(crate) cid: Option<String>,
    /// Bytes that an earlier run had transferred.
    pub(crate) resumed_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Begun { key: String, source: String, upload: String, part_len: usize },
    Done { key: String, source: String, etag: String, cid: Option<String> },
}

/// What a run before this one has written down.
#[derive(Debug, Default)]
struct Before {
    begun: HashMap<String, (String, String, usize)>,
    done: HashMap<String, (String, String, Option<String>)>,
}

/// The journal of one transfer, locked while it lives.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<File>,
    before: Before,
}

impl Journal {
    /// Opens the journal of a transfer, which `names` tell from all others.
    pub(crate) fn open(names: &[&str]) -> Result<Self> {
        Self::open_in(&state_dir()?, names)
    }

    fn open_in(dir: &Path, names: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut hasher = blake3::Hasher::new_derive_key("holdfast transfer journal v1");
        for name in names {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        }
        let path = dir.join(format!("{}.jsonl", hex::encode(&hasher.finalize().as_bytes()[..16])));
        let file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open the journal {}", path.display()))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("the same transfer is running already; wait for it, or stop it and run this again")
            }
            Err(error) => return Err(error).context("cannot lock the journal"),
        }
        let mut before = Before::default();
        for line in BufReader::new(&file).lines() {
            match serde_json::from_str(&line.with_context(|| format!("cannot read {}", path.display()))?) {
                Ok(Line::Begun { key, source, upload, part_len }) => {
                    before.begun.insert(key, (source, upload, part_len));
                }
                Ok(Line::Done { key, source, etag, cid }) => {
                    before.done.insert(key, (source, etag, cid));
                }
                Err(_) => {}
            }
        }
        Ok(Self { path, file: Mutex::new(file), before })
    }

    /// Whether an earlier run left anything.
    pub(crate) fn is_resumed(&self) -> bool {
        !self.before.begun.is_empty() || !self.before.done.is_empty()
    }

    fn write(&self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // A line that was cut off by a kill must not run into the next one.
        text.insert(0, b'\n');
        let mut file = self.file.lock().map_err(|_| anyhow::anyhow!("the journal is unusable"))?;
        file.write_all(&text).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// All is done.
    pub(crate) fn finish(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

fn state_dir() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) if !state.is_empty() => PathBuf::from(state),
        (_, Some(home)) => PathBuf::from(home).join(".local/state"),
        _ => bail!("neither XDG_STATE_HOME nor HOME is set, so there is no place for the transfer's journal"),
    };
    Ok(base.join("holdfast/transfers"))
}

/// Where bytes come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file here.
    File(PathBuf),
    /// An object elsewhere; its entity tag is demanded at every read.
    Object { s3: Box<S3>, bucket: String, key: String, etag: String },
}

impl Source {
    /// `len` bytes from `offset` on.
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        match self {
            Self::File(path) => {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(std::io::SeekFrom::Start(offset)).await?;
                let mut bytes = Vec::with_capacity(len);
                file.take(len as u64).read_to_end(&mut bytes).await?;
                if bytes.len() < len {
                    bail!("{} became shorter while it was uploaded", path.display());
                }
                Ok(Bytes::from(bytes))
            }
            Self::Object { s3, bucket, key, etag } => s3.read((bucket, key), etag, offset, len).await,
        }
    }
}

/// A file or object to transfer.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Where its bytes come from.
    pub(crate) source: Source,
    /// The key that it gets.
    pub(crate) key: String,
    /// Its bytes.
    pub(crate) len: u64,
    /// Changes whenever the source does.
    pub(crate) fingerprint: String,
}

/// Transfers one item, going on where the journal says.
pub(crate) async fn transfer(
    s3: &S3,
    bucket: &str,
    item: &Item,
    journal: Option<&Journal>,
    bar: &ProgressBar,
) -> Result<Transferred> {
    if let Some(done) = done_before(s3, bucket, item, journal).await? {
        bar.inc(item.len);
        return Ok(done);
    }
    let part_len = part_len_for(item.len);
    if item.len < part_len as u64 {
        let body = item.source.read(0, usize::try_from(item.len)?).await?;
        let stored = s3.put(bucket, &item.key, body).await?;
        bar.inc(item.len);
        note_done(journal, item, stored.etag, stored.cid.clone())?;
        return Ok(Transferred { key: item.key.clone(), bytes: item.len, cid: stored.cid, resumed_bytes: 0 });
    }
    let (upload, part_len, parts) = upload_of(s3, bucket, item, journal, part_len).await?;
    let outcome = send_parts(s3, bucket, item, (&upload, part_len, &parts), bar).await;
    match outcome {
        Ok((done, etag)) => {
            note_done(journal, item, etag, done.cid.clone())?;
            Ok(done)
        }
        Err(failed) if journal.is_none() => {
            // Nobody will go on with it; its parts would stay and be paid for.
            if let Err(error) = s3.abort((bucket, &item.key), &upload).await {
                return Err(
                    failed.context(format!("and the upload {upload} could not be given up: {error:#}"))
                );
            }
            Err(failed)
        }
        Err(failed) => Err(failed),
    }
}

async fn done_before(
    s3: &S3,
    bucket: &str,
    item: &Item,
    journal: Option<&Journal>,
) -> Result<Option<Transferred>> {
    let Some((source, etag, cid)) = journal.and_then(|journal| journal.before.done.get(&item.key)) else {
        return Ok(None);
    };
    if *source != item.fingerprint || s3.etag_of(bucket, &item.key).await?.as_ref() != Some(etag) {
        return Ok(None);
    }
    let (key, bytes, cid) = (item.key.clone(), item.len, cid.clone());
    Ok(Some(Transferred { key, bytes, cid, resumed_bytes: bytes }))
}

fn note_done(journal: Option<&Journal>, item: &Item, etag: String, cid: Option<String>) -> Result<()> {
    let Some(journal) = journal else { return Ok(()) };
    journal.write(&Line::Done { key: item.key.clone(), source: item.fingerprint.clone(), etag, cid })
}

/// Parts that are there already: number to entity tag and bytes.
type Parts = HashMap<u16, (String, u64)>;

async fn upload_of(
    s3: &S3,
    bucket: &str,
    item: &Item,
    journal: Option<&Journal>,
    part_len: usize,
) -> Result<(String, usize, Parts)> {
    if let Some((source, upload, before_len)) =
        journal.and_then(|journal| journal.before.begun.get(&item.key))
    {
        if *source == item.fingerprint
            && let Some(parts) = s3.parts((bucket, &item.key), upload).await?
        {
            return Ok((upload.clone(), *before_len, parts));
        }
        if *source != item.fingerprint {
            // Of a file that has changed since. Should it be gone already, so much the better.
            let _ = s3.abort((bucket, &item.key), upload).await;
        }
    }
    let upload = s3.create_upload(bucket, &item.key).await?;
    if let Some(journal) = journal {
        let (key, source) = (item.key.clone(), item.fingerprint.clone());
        journal.write(&Line::Begun { key, source, upload: upload.clone(), part_len })?;
    }
    Ok((upload, part_len, Parts::new()))
}

async fn send_parts(
    s3: &S3,
    bucket: &str,
    item: &Item,
    (upload, part_len, before): (&str, usize, &Parts),
    bar: &ProgressBar,
) -> Result<(Transferred, String)> {
    let mut etags = Vec::new();
    let (mut offset, mut resumed_bytes) = (0u64, 0u64);
    while offset < item.len {
        let number = u16::try_from(etags.len() + 1).context("more than 10,000 parts")?;
        let len = (item.len - offset).min(part_len as u64);
        match before.get(&number).filter(|(_, size)| *size == len) {
            Some((etag, _)) => {
                etags.push(etag.clone());
                resumed_bytes += len;
            }
            None => {
                let body = item.source.read(offset, usize::try_from(len)?).await?;
                etags.push(s3.put_part((bucket, &item.key), upload, number, body).await?);
            }
        }
        offset += len;
        bar.inc(len);
    }
    let stored = s3.complete((bucket, &item.key), upload, &etags).await?;
    let done = Transferred { key: item.key.clone(), bytes: item.len, cid: stored.cid, resumed_bytes };
    Ok((done, stored.etag))
}

fn part_len_for(len: u64) -> usize {
    let needed = len.div_ceil(PARTS_MAX).next_multiple_of(1024 * 1024);
    usize::try_from(needed).unwrap_or(usize::MAX).max(PART_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_ten_thousand_suffice() {
        assert_eq!(part_len_for(1), PART_LEN);
        let five_tib = 5u64 << 40;
        assert!(part_len_for(five_tib) as u64 * PARTS_MAX >= five_tib);
    }

    #[test]
    fn a_journal_remembers_whole_lines_and_is_one_process_s() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let names = ["http://gateway", "bucket", "/data"];
        let journal = Journal::open_in(dir.path(), &names)?;
        assert!(!journal.is_resumed());
        let done =
            Line::Done { key: "k".to_owned(), source: "1".to_owned(), etag: "\"tag\"".to_owned(), cid: None };
        journal.write(&done)?;
        assert!(Journal::open_in(dir.path(), &names).is_err(), "locked");
        assert!(!Journal::open_in(dir.path(), &["another"])?.is_resumed());
        let path = journal.path.clone();
        drop(journal);
        let mut file = File::options().append(true).open(&path)?;
        file.write_all(b"\n{\"event\":\"done\",\"key\":\"half")?;
        drop(file);
        let journal = Journal::open_in(dir.path(), &names)?;
        assert_eq!(journal.before.done.len(), 1);
        journal.write(&Line::Begun {
            key: "m".to_owned(),
            source: "2".to_owned(),
            upload: "id".to_owned(),
            part_len: 7,
        })?;
        drop(journal);
        let journal = Journal::open_in(dir.path(), &names)?;
        assert_eq!(journal.before.begun["m"], ("2".to_owned(), "id".to_owned(), 7));
        journal.finish()?;
        assert!(!path.exists());
        Ok(())
    }
}
