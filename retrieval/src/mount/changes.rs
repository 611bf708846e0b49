//! Changes: writing, truncating, creating, removing, renaming.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use tokio::time::Instant;

use super::backend::{BackendError, ListRequest, WriteIf};
use super::content::Content;
use super::error::FsError;
use super::files::{Attr, FileSystem, Kind, Opened, now_ms};
use super::names;
use super::staged::Staged;
use super::upload::FILE_LEN_MAX;

/// Keys of a directory that are renamed at once.
const RENAMES_IN_FLIGHT: usize = 16;
const LIST_PAGE: usize = 1000;

impl FileSystem {
    /// Writes, if that needs no waiting: not while the file is uploaded.
    pub fn try_write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Option<Result<(), FsError>> {
        let handle = match self.handle(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        let mut guard = handle.content.staged.try_write().ok()?;
        if guard.as_ref().is_some_and(Staged::is_scattered) {
            return None;
        }
        Some(self.write_staged(handle.ino, &handle.content, &mut guard, offset, bytes))
    }

    /// Writes.
    pub async fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let handle = self.handle(handle)?;
        let mut guard = handle.content.staged.write().await;
        if let Some(staged) = guard.as_mut().filter(|staged| staged.is_scattered()) {
            let key = self.tree().path(handle.ino)?;
            let size = staged.size;
            self.complete(&key, staged, 0..size).await?;
        }
        self.write_staged(handle.ino, &handle.content, &mut guard, offset, bytes)
    }

    fn write_staged(
        &self,
        ino: u64,
        content: &Content,
        guard: &mut Option<Staged>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FsError> {
        if offset.saturating_add(bytes.len() as u64) > FILE_LEN_MAX {
            return Err(FsError::Disk { kind: std::io::ErrorKind::FileTooLarge, errno: libc::EFBIG });
        }
        let staged = self.stage(ino, content, guard, true)?;
        staged.write(offset, bytes)?;
        let size = staged.size;
        self.changed(ino, size)
    }

    /// The staged bytes of a file, begun over the version that it has, or over nothing.
    fn stage<'a>(
        &self,
        ino: u64,
        content: &Content,
        guard: &'a mut Option<Staged>,
        over_version: bool,
    ) -> Result<&'a mut Staged, FsError> {
        if guard.is_none() {
            let (key, base) = {
                let tree = self.tree();
                (tree.path(ino)?, tree.node(ino)?.file()?.version.clone())
            };
            let number = self.next_staged.fetch_add(1, Ordering::Relaxed);
            let staged = Staged::create(&self.config.staging, number, &key, base.filter(|_| over_version))?;
            *guard = Some(staged);
            content.set_staged(true);
        }
        guard.as_mut().ok_or(FsError::BadHandle)
    }

    fn changed(&self, ino: u64, size: u64) -> Result<(), FsError> {
        let mut tree = self.tree();
        let file = tree.file_mut(ino)?;
        file.size = size;
        file.modified_ms = now_ms();
        Ok(())
    }

    /// Makes a file `size` bytes long. Without an open writer it is uploaded at once.
    pub async fn truncate(&self, ino: u64, size: u64) -> Result<(), FsError> {
        self.writable()?;
        if size > FILE_LEN_MAX {
            return Err(FsError::Disk { kind: std::io::ErrorKind::FileTooLarge, errno: libc::EFBIG });
        }
        let (content, has_writer) = {
            let mut tree = self.tree();
            let file = tree.file_mut(ino)?;
            (Arc::clone(file.content.get_or_insert_with(Content::new)), file.writers > 0)
        };
        {
            let mut guard = content.staged.write().await;
            let staged = self.stage(ino, &content, &mut guard, size > 0)?;
            staged.truncate(size)?;
        }
        self.changed(ino, size)?;
        if has_writer { Ok(()) } else { self.upload(ino).await }
    }

    /// Creates a file and opens it for writing. With `exclusive` nobody else anywhere creates it too.
    pub async fn create(&self, parent: u64, name: &[u8], exclusive: bool) -> Result<(Attr, Opened), FsError> {
        self.writable()?;
        let name = names::checked(name)?;
        let key = self.tree().key_in(parent, name)?;
        let claimed = if exclusive {
            match self.patience.run(|_| self.backend.put(&key, Bytes::new(), WriteIf::Absent)).await {
                Ok(stat) => Some(stat),
                Err(BackendError::Changed { .. }) => return Err(FsError::Exists),
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        let (ino, opened) = {
            let mut tree = self.tree();
            let ino = match &claimed {
                Some(stat) => tree.see_file(parent, name, stat, Instant::now()),
                None => tree.create_file(parent, name, now_ms()),
            };
            tree.looked_up(ino);
            drop(tree);
            (ino, self.open_now(ino, true)?)
        };
        if claimed.is_none() {
            // Even an empty file is there after its close.
            let handle = self.handle(opened.handle)?;
            let mut guard = handle.content.staged.write().await;
            match self.stage(ino, &handle.content, &mut guard, false) {
                Ok(staged) => staged.dirty = true,
                Err(error) => {
                    drop(guard);
                    self.tree().unlink(parent, name);
                    self.release(opened.handle).await;
                    return Err(error);
                }
            }
        }
        let tree = self.tree();
        Ok((self.attr_in(&tree, ino)?, opened))
    }

    /// Creates an empty file, durable at once.
    pub async fn make_file(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        self.writable()?;
        let name = names::checked(name)?;
        let key = self.tree().key_in(parent, name)?;
        match self.patience.run(|_| self.backend.put(&key, Bytes::new(), WriteIf::Absent)).await {
            Ok(stat) => {
                let mut tree = self.tree();
                let ino = tree.see_file(parent, name, &stat, Instant::now());
                tree.looked_up(ino);
                self.attr_in(&tree, ino)
            }
            Err(BackendError::Changed { .. }) => Err(FsError::Exists),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory: an empty object whose key ends in `/` stands for it.
    pub async fn make_directory(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        self.writable()?;
        let name = names::checked(name)?;
        let marker = format!("{}/", self.tree().key_in(parent, name)?);
        match self.patience.run(|_| self.backend.put(&marker, Bytes::new(), WriteIf::Absent)).await {
            Ok(_) => {}
            Err(BackendError::Changed { .. }) => return Err(FsError::Exists),
            Err(error) => return Err(error.into()),
        }
        let mut tree = self.tree();
        let ino = tree.see_directory(parent, name, Instant::now());
        tree.keep_directory(ino);
        tree.looked_up(ino);
        self.attr_in(&tree, ino)
    }

    /// Removes a file's name. Who has it open keeps what is here of it.
    pub async fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.writable()?;
        let name = names::checked(name)?;
        let (key, only_here) = {
            let tree = self.tree();
            let key = tree.key_in(parent, name)?;
            let only_here = match tree.child(parent, name) {
                Some(ino) => tree.node(ino)?.file()?.version.is_none(),
                None => false,
            };
            (key, only_here)
        };
        // An upload under way must not end after the removal.
        let content = self.content_at(parent, name);
        let _still = match &content {
            Some(content) => Some(content.staged.write().await),
            None => None,
        };
        if !only_here {
            self.patience.run(|_| self.backend.delete(&key)).await?;
        }
        let mut tree = self.tree();
        tree.unlink(parent, name);
        // The last key of a directory may be gone, the directory is not.
        tree.keep_directory(parent);
        Ok(())
    }

    fn content_at(&self, parent: u64, name: &str) -> Option<Arc<Content>> {
        let tree = self.tree();
        tree.node(tree.child(parent, name)?).ok()?.file().ok()?.content.clone()
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.writable()?;
        let name = names::checked(name)?;
        let (marker, ino) = {
            let tree = self.tree();
            (format!("{}/", tree.key_in(parent, name)?), tree.child(parent, name))
        };
        if !self.is_empty(&marker, ino).await? {
            return Err(FsError::NotEmpty);
        }
        self.patience.run(|_| self.backend.delete(&marker)).await?;
        let mut tree = self.tree();
        tree.unlink(parent, name);
        tree.keep_directory(parent);
        Ok(())
    }

    /// Whether nothing but its marker lies in a directory.
    async fn is_empty(&self, prefix: &str, ino: Option<u64>) -> Result<bool, FsError> {
        if let Some(ino) = ino
            && !self.tree().local_names(ino).is_empty()
        {
            return Ok(false);
        }
        let page = self
            .patience
            .run(|_| self.backend.list(ListRequest { prefix, one_level: false, after: None, max: 2 }))
            .await?;
        Ok(page.prefixes.is_empty() && page.objects.iter().all(|object| object.key == prefix))
    }

    /// Renames a file over whatever has the new name, in one step; or a directory, key by key.
    pub async fn rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        no_replace: bool,
    ) -> Result<(), FsError> {
        self.writable()?;
        let (name, new_name) = (names::checked(name)?, names::checked(new_name)?);
        let condition = if no_replace { WriteIf::Absent } else { WriteIf::Any };
        let known = self.tree().child(parent, name);
        let ino = match known {
            Some(ino) => ino,
            None => self.lookup(parent, name.as_bytes()).await?.ino,
        };
        let renamed = self.rename_inode(ino, (parent, name), (new_parent, new_name), condition).await;
        if known.is_none() {
            self.forget(ino, 1);
        }
        renamed
    }

    async fn rename_inode(
        &self,
        ino: u64,
        (parent, name): (u64, &str),
        (new_parent, new_name): (u64, &str),
        condition: WriteIf,
    ) -> Result<(), FsError> {
        let (from, to, kind) = {
            let tree = self.tree();
            let kind = self.attr_in(&tree, ino)?.kind;
            (tree.key_in(parent, name)?, tree.key_in(new_parent, new_name)?, kind)
        };
        if from == to {
            return Ok(());
        }
        match kind {
            Kind::File => self.rename_file(ino, &from, &to, condition, (new_parent, new_name)).await?,
            Kind::Directory => {
                if self.tree().is_below(new_parent, ino) {
                    return Err(FsError::Invalid);
                }
                self.rename_directory(ino, &from, &to, (new_parent, new_name)).await?;
            }
        }
        self.tree().keep_directory(parent);
        Ok(())
    }

    async fn rename_file(
        &self,
        ino: u64,
        from: &str,
        to: &str,
        condition: WriteIf,
        (new_parent, new_name): (u64, &str),
    ) -> Result<(), FsError> {
        let exists = |error: BackendError| match error {
            BackendError::Changed { .. } if condition == WriteIf::Absent => FsError::Exists,
            error => error.into(),
        };
        let content = self.tree().node(ino)?.file()?.content.clone();
        let mut guard = match &content {
            Some(content) => Some(content.staged.write().await),
            None => None,
        };
        // An upload of the file that is replaced must not end after the rename.
        let replaced = self.content_at(new_parent, new_name);
        let _still = match &replaced {
            Some(content) => Some(content.staged.write().await),
            None => None,
        };
        let staged = guard.as_mut().and_then(|guard| guard.as_mut()).filter(|staged| staged.dirty);
        if let Some(staged) = staged {
            // Straight to its new key, so that nobody sees half of it there.
            let was_there = self.tree().node(ino)?.file()?.version.is_some();
            let stat = self.send(from, to, staged, condition).await.map_err(|error| match error {
                FsError::Backend(error) => exists(error),
                error => error,
            })?;
            self.settle(ino, staged, &stat);
            if was_there {
                self.patience.run(|_| self.backend.delete(from)).await?;
            }
        } else {
            self.rename_key(from, to, condition).await.map_err(exists)?;
        }
        self.tree().rename(ino, new_parent, new_name)
    }

    /// Renames an object; a repetition whose first attempt was done but not answered is done.
    async fn rename_key(&self, from: &str, to: &str, condition: WriteIf) -> Result<(), BackendError> {
        self.patience
            .run(|tried| async move {
                match self.backend.rename(from, to, condition).await {
                    Err(BackendError::NotFound { key }) if tried > 0 => {
                        self.backend.stat(to).await.map(drop).map_err(|error| match error {
                            BackendError::NotFound { .. } => BackendError::NotFound { key },
                            error => error,
                        })
                    }
                    done => done,
                }
            })
            .await
    }

    /// Renames every key below a directory. Not one step: whoever looks meanwhile sees some of both.
    async fn rename_directory(
        &self,
        ino: u64,
        from: &str,
        to: &str,
        (new_parent, new_name): (u64, &str),
    ) -> Result<(), FsError> {
        let (from, to) = (format!("{from}/"), format!("{to}/"));
        let there = self.tree().child(new_parent, new_name);
        if !self.is_empty(&to, there).await? {
            return Err(FsError::NotEmpty);
        }
        let waiting = self.tree().local_below(ino);
        for file in waiting {
            self.upload(file).await?;
        }
        loop {
            let page = self
                .patience
                .run(|_| {
                    let request =
                        ListRequest { prefix: &from, one_level: false, after: None, max: LIST_PAGE };
                    self.backend.list(request)
                })
                .await?;
            if page.objects.is_empty() {
                break;
            }
            // Renamed keys leave the listing, so its first page is always what is left.
            stream::iter(page.objects.iter().map(Ok::<_, FsError>))
                .try_for_each_concurrent(RENAMES_IN_FLIGHT, |object| {
                    let target = format!("{to}{}", &object.key[from.len()..]);
                    async move {
                        if target.len() > names::KEY_LEN_MAX {
                            return Err(FsError::NameTooLong);
                        }
                        match self.rename_key(&object.key, &target, WriteIf::Any).await {
                            // Deleted meanwhile.
                            Ok(()) | Err(BackendError::NotFound { .. }) => Ok(()),
                            Err(error) => Err(error.into()),
                        }
                    }
                })
                .await?;
        }
        let mut tree = self.tree();
        tree.rename(ino, new_parent, new_name)?;
        tree.keep_directory(ino);
        Ok(())
    }
}
