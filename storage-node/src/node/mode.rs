//! What the operator wants of the node: to serve, to pause, to be emptied, to go. Kept in `DIR/mode.json`, so that a
//! node that dies in the middle goes on where it stopped.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use super::error::OpenNodeError;

const FILE: &str = "mode.json";
/// The file has two short fields.
const FILE_LEN_MAX: u64 = 4096;
const VERSION: u16 = 1;

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Take blocks and serve them.
    #[default]
    Serving,
    /// Take no new blocks, serve those that are here.
    Paused,
    /// Take no new blocks; the namespaces are asked to move theirs elsewhere.
    Draining,
    /// As draining, and the node stops for good when nothing is left.
    Exiting,
    /// Gone: everything lies elsewhere, the directory may be removed.
    Left,
}

impl Mode {
    /// Why new blocks are refused in this mode; nothing when they are taken.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Serving => None,
            Self::Paused => Some("paused by its operator"),
            Self::Draining => Some("draining: its operator is emptying it"),
            Self::Exiting | Self::Left => Some("leaving the network"),
        }
    }

    /// Whether the namespaces are to move their blocks away.
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Exiting)
    }
}

/// What is kept: the mode, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub(crate) v: u16,
    /// The mode.
    pub mode: Mode,
    /// Since when.
    pub since_ms: u64,
    /// A smaller capacity than the store was opened with, while it shrinks.
    pub capacity_bytes: Option<u64>,
}

/// Where the mode of a node in `dir` is kept.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Reads what is kept; serving when nothing is.
pub(crate) fn read(dir: &Path) -> Result<Kept, OpenNodeError> {
    let path = path(dir);
    let damaged = |detail: String| OpenNodeError::Record { path: path.clone(), detail };
    let bytes = match durable::read_bounded(&path, FILE_LEN_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(damaged(error.to_string())),
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if kept.v > VERSION {
        return Err(damaged(format!("it has version {}, this release reads up to {VERSION}", kept.v)));
    }
    Ok(kept)
}

/// Keeps it durably. Blocks on the disk.
pub(crate) fn write(dir: &Path, kept: Kept) -> io::Result<()> {
    let kept = Kept { v: VERSION, ..kept };
    let json = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
    durable::write_whole(&path(dir), &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_survives_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap().mode, Mode::Serving);
        let kept = Kept { v: 0, mode: Mode::Exiting, since_ms: 7, capacity_bytes: Some(9) };
        write(dir.path(), kept).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Kept { v: VERSION, ..kept });
        std::fs::write(path(dir.path()), r#"{"v":9,"mode":"paused","since_ms":1,"capacity_bytes":null}"#)
            .unwrap();
        assert!(matches!(read(dir.path()), Err(OpenNodeError::Record { .. })));
    }
}
