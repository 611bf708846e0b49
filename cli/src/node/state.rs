//! Where a running node says where it runs: in its directory, or beside it when that cannot be written.
//!
//! A disk that has become read-only is still served, and its owner must be able to ask the node how it does.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Whether files in `dir` can be made and changed, as far as its file system is concerned.
pub(crate) fn is_read_only(dir: &Path) -> bool {
    let found = rustix::fs::statvfs(dir);
    found.is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The directory for what a running node tells of itself: `dir`, or one named after it under the directory for
/// temporary files when `dir` is read-only. Makes nothing.
pub(crate) fn state_dir(dir: &Path) -> PathBuf {
    if is_read_only(dir) { beside(dir) } else { dir.to_owned() }
}

/// As [`state_dir`], made when it is absent. One that somebody else made is refused: it would be their word.
pub(crate) fn make_state_dir(dir: &Path) -> Result<PathBuf> {
    let state = state_dir(dir);
    if state == dir {
        return Ok(state);
    }
    match std::fs::DirBuilder::new().mode(0o700).create(&state) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", state.display()));
        }
        Ok(()) | Err(_) => {}
    }
    if !is_ours(&state) {
        bail!("{} belongs to somebody else; remove it, the node leaves its address there", state.display());
    }
    Ok(state)
}

/// Where a running node may have left what it tells of itself: a disk that was read-only when the node started may be
/// writable by now. Nobody else's word is taken for our node's.
pub(crate) fn trusted_state_dirs(dir: &Path) -> Vec<PathBuf> {
    let beside = beside(dir);
    if is_ours(&beside) { vec![dir.to_owned(), beside] } else { vec![dir.to_owned()] }
}

fn beside(dir: &Path) -> PathBuf {
    let whole = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = blake3::hash(whole.as_os_str().as_encoded_bytes()).to_hex();
    let ours = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("holdfast-node-{ours}-{}", &name[..16]))
}

fn is_ours(dir: &Path) -> bool {
    let found = std::fs::symlink_metadata(dir);
    found.is_ok_and(|found| {
        found.is_dir() && found.uid() == rustix::process::getuid().as_raw() && found.mode() & 0o077 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_written_keeps_its_own_state() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(make_state_dir(dir.path())?, dir.path());
        assert_eq!(trusted_state_dirs(dir.path()), [dir.path()]);
        Ok(())
    }

    #[test]
    fn only_a_private_directory_of_our_own_is_trusted() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        for (mode, ours) in [(0o700, true), (0o755, false), (0o701, false)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode))?;
            assert_eq!(is_ours(dir.path()), ours, "{mode:o}");
        }
        Ok(())
    }
}
