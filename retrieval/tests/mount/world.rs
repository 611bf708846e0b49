//! A file system over a bucket in memory, and the same one mounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_retrieval::mount::fuse::{FuseOptions, Mounted};
use holdfast_retrieval::mount::{FileSystem, MountConfig};

use crate::memory::MemoryBackend;

pub(crate) struct World {
    pub(crate) backend: Arc<MemoryBackend>,
    pub(crate) files: Arc<FileSystem>,
    pub(crate) staging: tempfile::TempDir,
}

pub(crate) fn config(staging: &Path) -> MountConfig {
    MountConfig {
        prefix: String::new(),
        read_only: false,
        immutable: false,
        ttl: Duration::ZERO,
        staging: staging.to_owned(),
        memory_bytes: 64 << 20,
        patience: Duration::from_secs(60),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut MountConfig)) -> Self {
        Self::over(Arc::new(MemoryBackend::new()), change)
    }

    pub(crate) fn over(backend: Arc<MemoryBackend>, change: impl FnOnce(&mut MountConfig)) -> Self {
        let staging = tempfile::tempdir().expect("tempdir");
        let mut config = config(staging.path());
        change(&mut config);
        let (files, left) = FileSystem::new(config, Arc::clone(&backend) as _).expect("staging");
        assert!(left.is_empty());
        Self { backend, files, staging }
    }
}

/// A mounted [`World`].
pub(crate) struct Mount {
    pub(crate) world: World,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) mounted: Option<Mounted>,
}

impl Mount {
    /// `None` only when the environment says that tests go without FUSE.
    pub(crate) fn new(world: World) -> Option<Self> {
        if std::env::var_os("HOLDFAST_TEST_WITHOUT_FUSE").is_some() {
            eprintln!("NOT TESTED: HOLDFAST_TEST_WITHOUT_FUSE is set, so nothing goes through the kernel");
            return None;
        }
        let dir = tempfile::tempdir().expect("tempdir");
        let options =
            FuseOptions { source: "holdfast:test".to_owned(), allow_other: false, uid: uid(), gid: gid() };
        let mounted = Mounted::new(Arc::clone(&world.files), dir.path(), &options).unwrap_or_else(|error| {
            panic!(
                "FUSE cannot be had here ({error}): it takes /dev/fuse (`mknod /dev/fuse c 10 229`) and root or \
                 fusermount3; set HOLDFAST_TEST_WITHOUT_FUSE=1 to leave these tests out"
            )
        });
        Some(Self { world, dir, mounted: Some(mounted) })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Runs what a program would do, on a thread that may block.
    pub(crate) async fn program<T: Send + 'static>(
        &self,
        work: impl FnOnce(PathBuf) -> T + Send + 'static,
    ) -> T {
        let path = self.path();
        tokio::task::spawn_blocking(move || work(path)).await.expect("the program panicked")
    }

    /// Unmounts, which fails while a file is open.
    pub(crate) async fn unmount(&mut self) -> std::io::Result<()> {
        let Some(mounted) = self.mounted.take() else { return Ok(()) };
        tokio::task::spawn_blocking(move || mounted.unmount()).await.expect("no panic")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            // On a thread of its own: it waits for requests that the runtime answers.
            let _ = std::thread::spawn(move || mounted.unmount()).join();
        }
    }
}

pub(crate) fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

pub(crate) fn gid() -> u32 {
    rustix::process::getgid().as_raw()
}
