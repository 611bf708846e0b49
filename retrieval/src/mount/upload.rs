//! Uploading staged files: at close and fsync, in one PUT or in parts, completed from their base on the way.
//!
//! When an upload returns, the gateway has acknowledged it: that is what fsync means here.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::backend::{BackendError, Stat, WriteIf};
use super::error::FsError;
use super::files::{FileSystem, now_ms, upload_room_mib};
use super::reading::Source;
use super::staged::Staged;

/// Files up to this go in one PUT; longer ones in parts of it, or longer if S3's 10,000 parts would not do.
pub(super) const PART_LEN: u64 = 16 << 20;
const PARTS_MAX: u64 = 10_000;
/// The longest file: S3's own limit.
pub(super) const FILE_LEN_MAX: u64 = 5 << 40;
/// Parts of one file on their way at once.
const PARTS_IN_FLIGHT: usize = 4;
/// Bytes of the base fetched at once.
const FILL_LEN: u64 = 8 << 20;

/// What was done about the dirty files of a mount that ends.
#[derive(Debug, Default)]
pub struct Finished {
    /// Files uploaded just now.
    pub uploaded: usize,
    /// Keys that could not be uploaded, and why; their bytes stay in the staging directory.
    pub failed: Vec<(String, FsError)>,
}

impl FileSystem {
    /// Makes what was written to an inode durable.
    pub async fn upload(&self, ino: u64) -> Result<(), FsError> {
        let Some(content) = self.tree().node(ino)?.file()?.content.clone() else { return Ok(()) };
        let mut guard = content.staged.write().await;
        let Some(staged) = guard.as_mut() else { return Ok(()) };
        let (key, linked) = {
            let tree = self.tree();
            (tree.path(ino)?, tree.node(ino)?.linked)
        };
        if staged.dirty && linked {
            let stat = self.send(&key, &key, staged, WriteIf::Any).await?;
            self.settle(ino, staged, &stat);
        }
        if self.tree().node(ino)?.file()?.writers == 0 {
            // Clean, or without a name: nobody will ask for it again.
            self.let_go(&content, &mut guard);
            self.tree().drop_unused(ino);
        }
        Ok(())
    }

    /// Takes in that the staged bytes are at the key now.
    pub(super) fn settle(&self, ino: u64, staged: &mut Staged, stat: &Stat) {
        let mut tree = self.tree();
        let version = tree.version(stat);
        let mut old = None;
        if let Ok(file) = tree.file_mut(ino) {
            old = file.version.replace(Arc::clone(&version));
            file.size = stat.size;
            file.modified_ms = now_ms();
            file.checked = Some(Instant::now());
            // The kernel's pages are what was written.
            file.paged = version.id;
        }
        drop(tree);
        staged.uploaded(version);
        self.forget_version(old.as_ref());
    }

    /// Sends a staged file to `to`; what it lacks comes from its base at `from`.
    pub(super) async fn send(
        &self,
        from: &str,
        to: &str,
        staged: &mut Staged,
        condition: WriteIf,
    ) -> Result<Stat, FsError> {
        let size = staged.size;
        if size > FILE_LEN_MAX {
            return Err(BackendError::TooLarge { key: to.to_owned() }.into());
        }
        if size > PART_LEN {
            return self.send_parts(from, to, staged, condition).await;
        }
        let _room = self.upload_room(size).await?;
        self.complete(from, staged, 0..size).await?;
        let bytes = Bytes::from(staged.read(0..size)?);
        let stat = self
            .patience
            .run_long(|_| {
                let bytes = bytes.clone();
                self.backend.put(to, bytes, condition)
            })
            .await?;
        Ok(stat)
    }

    async fn send_parts(
        &self,
        from: &str,
        to: &str,
        staged: &mut Staged,
        condition: WriteIf,
    ) -> Result<Stat, FsError> {
        let upload = self.patience.run(|_| self.backend.create_upload(to)).await?;
        let sent = self.send_all_parts(from, to, &upload, staged).await;
        let tags = match sent {
            Ok(tags) => tags,
            Err(error) => {
                // Best effort, in one attempt: an upload that stays behind is the gateway's to expire.
                let _ = self.patience.attempt(Instant::now(), self.backend.abort_upload(to, &upload)).await;
                return Err(error);
            }
        };
        let size = staged.size;
        let stat = self
            .patience
            .run_long(|tried| {
                let (tags, upload) = (&tags, &upload);
                async move {
                    match self.backend.complete_upload(to, upload, tags, condition).await {
                        // The answer to the attempt before may have been lost on the way.
                        Err(BackendError::NotFound { key }) if tried > 0 => match self.backend.stat(to).await
                        {
                            Ok(stat) if stat.size == size => Ok(stat),
                            Ok(_) | Err(BackendError::NotFound { .. }) => Err(BackendError::NotFound { key }),
                            Err(error) => Err(error),
                        },
                        done => done,
                    }
                }
            })
            .await?;
        Ok(stat)
    }

    async fn send_all_parts(
        &self,
        from: &str,
        to: &str,
        upload: &str,
        staged: &mut Staged,
    ) -> Result<Vec<String>, FsError> {
        let size = staged.size;
        let part_len = PART_LEN.max(size.div_ceil(PARTS_MAX).next_multiple_of(1 << 20));
        let count = size.div_ceil(part_len);
        let mut tags = vec![String::new(); usize::try_from(count).unwrap_or(usize::MAX)];
        let mut in_flight = FuturesUnordered::new();
        for index in 0..count {
            while in_flight.len() >= PARTS_IN_FLIGHT {
                if let Some(done) = in_flight.next().await {
                    let (at, tag): (usize, String) = done?;
                    tags[at] = tag;
                }
            }
            let range = index * part_len..((index + 1) * part_len).min(size);
            let room = loop {
                // The parts under way hold room themselves: they must go on while this one waits for its own.
                tokio::select! {
                    biased;
                    room = self.upload_room(range.end - range.start) => break room?,
                    Some(done) = in_flight.next() => {
                        let (at, tag): (usize, String) = done?;
                        tags[at] = tag;
                    }
                }
            };
            self.complete(from, staged, range.clone()).await?;
            let file = staged.file();
            in_flight.push(async move {
                let _room = room;
                let len = usize::try_from(range.end - range.start).unwrap_or(0);
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes))
                });
                let bytes = read.await.map_err(std::io::Error::other)??;
                let number = u16::try_from(index + 1).map_err(|_| FsError::Invalid)?;
                let tag = self
                    .patience
                    .run_long(|_| self.backend.put_part(to, upload, number, bytes.clone()))
                    .await?;
                Ok::<_, FsError>((usize::from(number) - 1, tag))
            });
        }
        while let Some(done) = in_flight.next().await {
            let (at, tag) = done?;
            tags[at] = tag;
        }
        Ok(tags)
    }

    /// Memory for a piece of an upload.
    async fn upload_room(&self, bytes: u64) -> Result<tokio::sync::SemaphorePermit<'_>, FsError> {
        // A part of a file of terabytes is longer than the whole room may be: it then takes all of it.
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let most = u32::try_from(upload_room_mib(&self.config)).unwrap_or(u32::MAX);
        self.upload_mib.acquire_many(mib.min(most)).await.map_err(|_| FsError::TooManyOpen)
    }

    /// Fetches what a staged file lacks of `range`.
    pub(super) async fn complete(
        &self,
        key: &str,
        staged: &mut Staged,
        range: Range<u64>,
    ) -> Result<(), FsError> {
        let Some(base) = staged.base.clone() else { return Ok(()) };
        let source = Source { key: key.into(), version: base.version };
        for gap in staged.missing(range) {
            let mut at = gap.start;
            while at < gap.end {
                let end = (at + FILL_LEN).min(gap.end);
                let bytes = self.reading.exact(&source, at..end).await?;
                staged.fill(at, &bytes)?;
                at = end;
            }
        }
        Ok(())
    }

    /// Uploads everything that waits: the end of a mount. What fails stays in the staging directory.
    pub async fn finish(&self) -> Finished {
        let mut finished = Finished::default();
        let waiting = self.tree().all_local();
        for ino in waiting {
            let known = {
                let tree = self.tree();
                tree.node(ino).ok().filter(|node| node.linked).and_then(|_| tree.path(ino).ok())
            };
            // Without a name it is nobody's to keep.
            let Some(key) = known else { continue };
            let was_dirty = self.is_dirty(ino).await;
            match self.upload(ino).await {
                Ok(()) => finished.uploaded += usize::from(was_dirty),
                Err(error) => {
                    self.keep_staged(ino, &key).await;
                    finished.failed.push((key, error));
                }
            }
        }
        finished
    }

    async fn is_dirty(&self, ino: u64) -> bool {
        let content = self.tree().node(ino).ok().and_then(|node| node.file().ok()?.content.clone());
        let Some(content) = content else { return false };
        content.staged.read().await.as_ref().is_some_and(|staged| staged.dirty)
    }

    async fn keep_staged(&self, ino: u64, key: &str) {
        let content = self.tree().node(ino).ok().and_then(|node| node.file().ok()?.content.clone());
        let Some(content) = content else { return };
        if let Some(staged) = content.staged.write().await.as_mut() {
            staged.keep(key);
        }
    }
}
