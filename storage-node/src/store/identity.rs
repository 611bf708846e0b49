//! Who a data directory is: its format, its id, its secret, and the lock that keeps a second process out.
//!
//! ```text
//! DIR/lock            locked (flock) while open
//! DIR/identity.json   {"format": 1, "store_id": "<32 hex digits>", "created_ms": ...}
//! DIR/secret          32 bytes, mode 0600: the key of every checksum
//! DIR/extents/        <16 hex digits>.extent
//! DIR/index/          RocksDB, rebuildable
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, StatVfsMountFlags};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::config::Expect;
use super::error::OpenError;
use super::format::Secret;

/// The data format that this release writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;
/// An identity file is a line of JSON; more than this is something else.
const IDENTITY_LEN_MAX: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    store_id: String,
    created_ms: u64,
}

/// A data directory that is ours alone.
pub(crate) struct Identity {
    pub(crate) id: [u8; 16],
    pub(crate) secret: Secret,
    pub(crate) extents: PathBuf,
    pub(crate) index: PathBuf,
    /// The disk cannot be written.
    pub(crate) read_only: bool,
    /// Held for the lock.
    pub(crate) lock: File,
}

/// Whether what lies in `dir` cannot be written because its file system, or the mount of it, is read-only.
pub(crate) fn is_read_only(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Locks `dir` and reads who it is, or makes it somebody.
pub(crate) fn open(dir: &Path, expect: Expect, now_ms: u64) -> Result<Identity, OpenError> {
    if let Expect::Store(expected) = expect {
        // Looked at before anything is made: an empty mount point stays empty.
        match look(dir)? {
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(OpenError::Swapped {
                    dir: dir.to_owned(),
                    expected: hex(&expected),
                    found: hex(&found),
                });
            }
            None => return Err(OpenError::Missing { dir: dir.to_owned(), expected: hex(&expected) }),
        }
    }
    let read_only = is_read_only(dir);
    let extents = dir.join("extents");
    if read_only && look(dir)?.is_none() {
        // Nothing can be made here.
        return Err(failed(dir, "making a store", rustix::io::Errno::ROFS.into()));
    }
    let lock = if read_only {
        lock_read_only(dir)?
    } else {
        make_dir(dir)?;
        let lock = lock(dir)?;
        make_dir(&extents)?;
        lock
    };
    let path = dir.join("identity.json");
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(dir, &extents, &path, now_ms)?;
            read_bounded(&path).map_err(|source| failed(&path, "reading", source))?
        }
        Err(source) => return Err(failed(&path, "reading", source)),
    };
    let id = parse(dir, &text)?;
    let secret = read_secret(dir)?;
    Ok(Identity { id, secret, extents, index: dir.join("index"), read_only, lock })
}

/// Whose directory `dir` is, if anybody's. Changes nothing and takes no lock.
pub(crate) fn look(dir: &Path) -> Result<Option<[u8; 16]>, OpenError> {
    let path = dir.join("identity.json");
    match read_bounded(&path) {
        Ok(text) => parse(dir, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(&path, "reading", source)),
    }
}

/// An id as it is written.
pub(crate) fn hex(id: &[u8; 16]) -> String {
    hex::encode(id)
}

fn parse(dir: &Path, text: &[u8]) -> Result<[u8; 16], OpenError> {
    let unusable = |detail: String| OpenError::Identity { dir: dir.to_owned(), detail };
    // The format first, alone: a newer format may have other fields.
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u32,
    }
    let FormatOnly { format } =
        serde_json::from_slice(text).map_err(|error| unusable(format!("identity.json: {error}")))?;
    if format > FORMAT {
        return Err(OpenError::NewerFormat { dir: dir.to_owned(), found: format, newest: FORMAT });
    }
    let file: IdentityFile =
        serde_json::from_slice(text).map_err(|error| unusable(format!("identity.json: {error}")))?;
    let mut id = [0; 16];
    if file.store_id.len() != 32 || !file.store_id.is_ascii() {
        return Err(unusable("identity.json: store_id is not 32 hexadecimal digits".to_owned()));
    }
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&file.store_id[2 * index..2 * index + 2], 16)
            .map_err(|_| unusable("identity.json: store_id is not 32 hexadecimal digits".to_owned()))?;
    }
    Ok(id)
}

fn create(dir: &Path, extents: &Path, path: &Path, now_ms: u64) -> Result<(), OpenError> {
    let mut names = std::fs::read_dir(extents).map_err(|source| failed(extents, "reading", source))?;
    if names.next().is_some() {
        return Err(OpenError::Identity {
            dir: dir.to_owned(),
            detail: "identity.json is missing although there are extents; restore it from a copy".to_owned(),
        });
    }
    let mut random = Zeroizing::new([0u8; 48]);
    getrandom::fill(random.as_mut()).map_err(|_| OpenError::Random)?;
    // The secret first: an identity without its secret would be a store that reads nothing.
    write_durably(&dir.join("secret"), &random[..32])?;
    let store_id = random[32..].iter().map(|byte| format!("{byte:02x}")).collect();
    let identity = IdentityFile { format: FORMAT, store_id, created_ms: now_ms };
    let mut text = serde_json::to_vec(&identity).unwrap_or_default();
    text.push(b'\n');
    write_durably(path, &text)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed(dir, "syncing", source))
}

pub(crate) fn read_secret(dir: &Path) -> Result<Secret, OpenError> {
    let path = dir.join("secret");
    let bytes = Zeroizing::new(read_bounded(&path).map_err(|source| failed(&path, "reading", source))?);
    let mut secret = Zeroizing::new([0u8; 32]);
    if bytes.len() != secret.len() {
        return Err(OpenError::Identity {
            dir: dir.to_owned(),
            detail: format!("the secret has {} bytes instead of 32", bytes.len()),
        });
    }
    secret.copy_from_slice(&bytes);
    Ok(Secret(secret))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| failed(&path, "opening", source))?;
    lock_file(dir, path, file)
}

/// A lock needs no writing, only the file that an earlier start made.
fn lock_read_only(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::open(&path).map_err(|source| failed(&path, "opening", source))?;
    lock_file(dir, path, file)
}

fn lock_file(dir: &Path, path: PathBuf, file: File) -> Result<File, OpenError> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(errno) => Err(failed(&path, "locking", errno.into())),
    }
}

/// Writes a file that is there whole or not at all.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    let partial = path.with_extension("partial");
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|source| failed(path, "writing", source))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(IDENTITY_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    std::fs::create_dir_all(dir).map_err(|source| failed(dir, "making the directory", source))
}

pub(crate) fn failed(path: &Path, action: &'static str, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), action, source }
}
