//! Mounts of a network's buckets by `holdfast mount`.
//!
//! These take `/dev/fuse` and the right to mount. Without them tests fail and say so, unless
//! `HOLDFAST_TEST_WITHOUT_FUSE` is set, which is said too.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{Network, Process};

/// A mount of a network's bucket.
pub struct Mount {
    /// Taken by whoever waits for its end.
    process: Option<Process>,
    /// Where.
    pub dir: PathBuf,
}

/// Whether mounts can be had; fails when they cannot and nobody said that this is known.
pub fn has_fuse() -> Result<bool> {
    if std::env::var_os("HOLDFAST_TEST_WITHOUT_FUSE").is_some() {
        eprintln!("NOT TESTED: HOLDFAST_TEST_WITHOUT_FUSE is set, so nothing is mounted");
        return Ok(false);
    }
    std::fs::File::options().read(true).write(true).open("/dev/fuse").context(
        "FUSE cannot be had here: it takes /dev/fuse (`mknod /dev/fuse c 10 229`) and root or fusermount3; set \
         HOLDFAST_TEST_WITHOUT_FUSE=1 to leave these tests out",
    )?;
    Ok(true)
}

impl Mount {
    /// Mounts `target` of the network at `root/name`, staging beside it.
    pub fn new(network: &Network, root: &Path, name: &str, target: &str, more: &[&str]) -> Result<Self> {
        let (dir, staging) = (root.join(name), root.join(format!("{name}.staging")));
        std::fs::create_dir_all(&dir)?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
        let (dir_text, staging, data) = (text(&dir)?, text(&staging)?, text(&network.data)?);
        let mut args = vec!["mount", target, &dir_text, "--staging", &staging, "--data", &data];
        args.extend(more);
        let process = Process::start(&args)?;
        process.wait_event("ready")?;
        Ok(Self { process: Some(process), dir })
    }

    /// The process that serves it.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("it has ended")
    }

    /// Ctrl-C's twin; the exit code says whether anything was left.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("it has ended")?.stop()
    }
}

/// A mount must be gone before its directory is removed, also when a test fails.
impl Drop for Mount {
    fn drop(&mut self) {
        // Best effort: after a clean end it is unmounted already.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).stderr(std::process::Stdio::null()).status();
    }
}
