//! The node's directory: its lock, its format number, its key.
//!
//! ```text
//! DIR/lock         held while a process runs on this directory
//! DIR/format       "holdfast-node <version>\n"
//! DIR/key          the Ed25519 seed, 64 hexadecimal digits, mode 0600
//! DIR/agreements/  one file per agreement (see ledger.rs)
//! DIR/heads/       one directory per namespace, one file per gateway instance
//! DIR/store/       the extents and their index (see store.rs)
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::SigningKey;
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::durable;
use super::error::OpenNodeError;

/// The directory format this release writes; older ones are read.
const FORMAT: u32 = 1;
const FORMAT_WORD: &str = "holdfast-node";

/// A directory that this process holds.
pub(crate) struct Home {
    dir: PathBuf,
    key: Arc<SigningKey>,
    /// Released by the system when the file closes.
    _lock: File,
}

impl Home {
    /// Takes the directory, making it on first start.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenNodeError> {
        let failed = |source: io::Error| OpenNodeError::Dir { dir: dir.to_owned(), source };
        durable::make_dir(dir).map_err(failed)?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = match lock {
            // A lock needs no writing: on a read-only disk the file of an earlier start will do.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            other => other,
        };
        let lock = lock.map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| OpenNodeError::Locked { dir: dir.to_owned() })?;
        // The key before the format: a directory with a format had a key, and is never given another one.
        let is_new = !check_format(dir)?;
        let key = Arc::new(open_key(&dir.join("key"), is_new)?);
        if is_new {
            let path = dir.join("format");
            durable::write_whole(&path, format!("{FORMAT_WORD} {FORMAT}\n").as_bytes()).map_err(failed)?;
        }
        Ok(Self { dir: dir.to_owned(), key, _lock: lock })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's key.
    pub(crate) fn key(&self) -> Arc<SigningKey> {
        self.key.clone()
    }
}

/// Whether the directory has a format, and one that this release reads.
fn check_format(dir: &Path) -> Result<bool, OpenNodeError> {
    let path = dir.join("format");
    let failed = |source: io::Error| OpenNodeError::Dir { dir: path.clone(), source };
    match durable::read_bounded(&path, 64) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found = text
                .trim()
                .strip_prefix(FORMAT_WORD)
                .and_then(|rest| rest.trim().parse::<u32>().ok())
                .ok_or_else(|| OpenNodeError::NotANode { dir: dir.to_owned() })?;
            if found > FORMAT || found == 0 {
                return Err(OpenNodeError::Newer { dir: dir.to_owned(), found, newest: FORMAT });
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

fn open_key(path: &Path, may_make: bool) -> Result<SigningKey, OpenNodeError> {
    let unusable = |detail: &'static str| OpenNodeError::Key { path: path.to_owned(), detail };
    match durable::read_bounded(path, 256) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let text = std::str::from_utf8(&text).map_err(|_| unusable("it is not text"))?;
            let mut seed = Zeroizing::new([0u8; 32]);
            hex::decode_to_slice(text.trim(), seed.as_mut())
                .map_err(|_| unusable("it must hold 64 hexadecimal digits"))?;
            SigningKey::from_seed(&seed).map_err(|_| unusable("its seed is not one of an Ed25519 key"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !may_make => Err(unusable("it is missing")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate().map_err(|_| unusable("the system gave no random bytes"))?;
            let text = Zeroizing::new(format!("{}\n", hex::encode(key.seed())));
            durable::write_whole(path, text.as_bytes())
                .map_err(|source| OpenNodeError::Dir { dir: path.to_owned(), source })?;
            Ok(key)
        }
        Err(source) => Err(OpenNodeError::Dir { dir: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap().key().public();
        assert_eq!(Home::open(dir.path()).unwrap().key().public(), first);
        let mode = std::fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let held = Home::open(dir.path()).unwrap();
        assert!(matches!(Home::open(dir.path()), Err(OpenNodeError::Locked { .. })));
        drop(held);
        assert!(Home::open(dir.path()).is_ok());
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "holdfast-node 9\n").unwrap();
        assert!(matches!(Home::open(dir.path()), Err(OpenNodeError::Newer { found: 9, .. })));
        assert!(!dir.path().join("key").exists());
    }

    #[test]
    fn a_missing_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path()).unwrap());
        std::fs::remove_file(dir.path().join("key")).unwrap();
        assert!(matches!(Home::open(dir.path()), Err(OpenNodeError::Key { .. })));
        assert!(!dir.path().join("key").exists());
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "abc").unwrap();
        assert!(matches!(Home::open(dir.path()), Err(OpenNodeError::Key { .. })));
        assert_eq!(std::fs::read(dir.path().join("key")).unwrap(), b"abc");
    }
}
