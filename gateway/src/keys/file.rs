//! Key files: whole, private, synced; and the format mark of the data directory.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_protocol::SigningKey;
use holdfast_protocol::key::KeyError;
use zeroize::Zeroizing;

use super::KeysError;

/// The format of the data directory that this release writes. Raised when an older release could not read it.
pub const DATA_FORMAT: u32 = 1;

/// Written as the last step of making keys: with it, missing keys are an error and no longer an invitation.
const FORMAT_FILE: &str = "format";
const FORMAT_PREFIX: &str = "holdfast-gateway ";
/// No key file is longer; a larger one is not ours.
const KEY_FILE_LEN_MAX: u64 = 16 * 1024;

/// Makes the directory or checks that this release may use it.
pub(super) fn prepare_directory(dir: &Path) -> Result<(), KeysError> {
    make_private(dir)?;
    let format = dir.join(FORMAT_FILE);
    match read_optional(&format)? {
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found: u32 = text
                .trim()
                .strip_prefix(FORMAT_PREFIX)
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| KeysError::Format { path: format.clone() })?;
            if found > DATA_FORMAT {
                return Err(KeysError::NewerFormat { path: dir.to_owned(), found, newest: DATA_FORMAT });
            }
            for name in ["namespace.key", "gateway.key", "root.key"] {
                let path = dir.join("keys").join(name);
                if !path.exists() {
                    return Err(KeysError::Missing { path });
                }
            }
            Ok(())
        }
        None => {
            let keys = dir.join("keys");
            make_private(&keys)?;
            // All keys first, the mark last: a crash in between leaves keys that the next start finds.
            signing_key(&keys.join("namespace.key"))?;
            signing_key(&keys.join("gateway.key"))?;
            secret(&keys.join("root.key"))?;
            write_private(&format, format!("{FORMAT_PREFIX}{DATA_FORMAT}\n").as_bytes())
        }
    }
}

pub(super) fn make_private(dir: &Path) -> Result<(), KeysError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| KeysError::File {
        action: "make the directory",
        path: dir.to_owned(),
        source,
    })
}

/// The signing key in `path`, made when there is none.
pub(super) fn signing_key(path: &Path) -> Result<SigningKey, KeysError> {
    Ok(SigningKey::from_seed(&*secret(path)?)?)
}

/// The 32 secret bytes in `path`, made when there are none.
pub(super) fn secret(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeysError> {
    if let Some(text) = read_optional(path)? {
        let text = Zeroizing::new(text);
        return parse_secret(path, &text);
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    getrandom::fill(bytes.as_mut()).map_err(|_| KeyError::Random)?;
    write_secret(path, &bytes)?;
    Ok(bytes)
}

/// Writes 32 secret bytes as [`secret`] reads them.
pub(super) fn write_secret(path: &Path, bytes: &Zeroizing<[u8; 32]>) -> Result<(), KeysError> {
    let text = Zeroizing::new(format!("{}\n", hex::encode(**bytes)));
    write_private(path, text.as_bytes())
}

fn parse_secret(path: &Path, text: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeysError> {
    let malformed =
        || KeysError::Malformed { path: path.to_owned(), detail: "expected 64 hexadecimal digits" };
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let mut bytes = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), bytes.as_mut()).map_err(|_| malformed())?;
    Ok(bytes)
}

/// The token in `path`, made when there is none.
pub(super) fn token(path: &Path) -> Result<Zeroizing<String>, KeysError> {
    if let Some(text) = read_optional(path)? {
        let text = Zeroizing::new(text);
        let text = std::str::from_utf8(&text).unwrap_or_default().trim();
        if text.len() < 32 {
            return Err(KeysError::Malformed {
                path: path.to_owned(),
                detail: "an admin token has at least 32 characters; remove the file to have one made",
            });
        }
        return Ok(Zeroizing::new(text.to_owned()));
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    getrandom::fill(bytes.as_mut()).map_err(|_| KeyError::Random)?;
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
    write_private(path, format!("{}\n", text.as_str()).as_bytes())?;
    Ok(text)
}

/// The file's bytes, or `None` when there is no such file.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, KeysError> {
    let failed = |source| KeysError::File { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = Vec::new();
    file.take(KEY_FILE_LEN_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Writes `path` whole with mode 0600: synced beside it, renamed onto it, the directory synced.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
    let failed = |source| KeysError::File { action: "write", path: path.to_owned(), source };
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    // The mode above only counts for a file that is new.
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    if let Some(parent) = path.parent() {
        // A bare name lies in the current directory.
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
    }
    Ok(())
}
