//! What is wrong with a disk, and how that is noticed: an identity that is looked at again and again, the file
//! system's free room, and counters of errors.
//!
//! A mount that vanishes leaves an empty directory behind, and a path then leads elsewhere although everything that is
//! open still works. So before a path is followed, the lock file that this process holds must be the one that the
//! path leads to. Else the store is *away*: nothing it holds counts as lost.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::engine::Shared;
use super::error::OpenError;
use super::format::Place;
use super::identity;
use super::scrub::ScrubProgress;
use super::types::Accounts;

/// A file system smaller than 32 times the reserve keeps a 32nd of itself instead.
const RESERVE_SHARE: u64 = 32;
/// Losses that are counted for a report; more are many.
const LOSSES_COUNTED_MAX: usize = 10_000;

/// Which directory the store was opened in.
pub(crate) struct Presence {
    lock: PathBuf,
    device: u64,
    inode: u64,
}

/// The path leads to another file than the one that is locked.
#[derive(Debug, thiserror::Error)]
#[error("{} is not the directory that was opened: its disk was unmounted or another is mounted there", dir.display())]
pub(crate) struct Gone {
    dir: PathBuf,
}

impl Presence {
    pub(crate) fn of(dir: &Path, lock: &File) -> Result<Self, OpenError> {
        let held = lock.metadata().map_err(|source| identity::failed(dir, "reading", source))?;
        Ok(Self { lock: dir.join("lock"), device: held.dev(), inode: held.ino() })
    }

    /// Whether the path still leads to what was opened.
    pub(crate) fn check(&self) -> Result<(), Gone> {
        match std::fs::metadata(&self.lock) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => Ok(()),
            // Unreadable is as gone as absent: a disk that was pulled out answers EIO.
            Ok(_) | Err(_) => {
                Err(Gone { dir: self.lock.parent().map(Path::to_path_buf).unwrap_or_default() })
            }
        }
    }
}

/// What was seen of the disk.
#[derive(Default)]
pub(crate) struct Checks {
    /// Reads for peers so far.
    pub(crate) reads: AtomicU64,
    /// Reads that the disk failed.
    pub(crate) read_errors: AtomicU64,
    /// The last of them.
    pub(crate) last_read_error: Mutex<Option<String>>,
    /// The last block found no room beneath the reserve.
    pub(crate) full: AtomicBool,
    /// The path led elsewhere when it was last looked at.
    pub(crate) away: AtomicBool,
}

/// Why a person should look at a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "alarm")]
#[non_exhaustive]
pub enum Alarm {
    /// The store's directory is gone from its path: unmounted, or another disk is mounted there.
    Away {
        /// What was found.
        detail: String,
    },
    /// A write or sync failed; no writes until the node is started again. Reads go on.
    WritesFailed {
        /// The first failure.
        detail: String,
    },
    /// The file system was read-only when the store was opened. Reads are served.
    ReadOnly {
        /// Where.
        dir: PathBuf,
    },
    /// The file system has less free than blocks must leave.
    Full {
        /// Bytes free on the file system.
        free_bytes: u64,
        /// Bytes that blocks leave free.
        reserve_bytes: u64,
    },
    /// Something else fills the disk: less is free than is still offered.
    Overcommitted {
        /// Bytes still offered.
        offered_bytes: u64,
        /// Bytes free on the file system.
        free_bytes: u64,
    },
    /// The disk failed reads.
    ReadErrors {
        /// How many since the start.
        count: u64,
        /// The last one.
        last: String,
    },
    /// Blocks were declared lost.
    Losses {
        /// How many; 10,000 stands for that many or more.
        count: u64,
    },
    /// So many blocks failed in one pass that the scrub stopped rather than declare them: cable, controller or memory
    /// are likelier than the disk.
    ScrubStopped {
        /// Blocks that failed.
        failed: u64,
    },
}

impl Alarm {
    /// The alarm's name, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::WritesFailed { .. } => "writes_failed",
            Self::ReadOnly { .. } => "read_only",
            Self::Full { .. } => "full",
            Self::Overcommitted { .. } => "overcommitted",
            Self::ReadErrors { .. } => "read_errors",
            Self::Losses { .. } => "losses",
            Self::ScrubStopped { .. } => "scrub_stopped",
        }
    }

    /// What the disk's owner should do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Away { .. } => "mount the disk where it was; the node takes it up again by itself",
            Self::WritesFailed { .. } => {
                "look at the system's log for this disk; if it is read-only or failing, replace it, else restart the node"
            }
            Self::ReadOnly { .. } => {
                "look at the system's log for why (a failing disk is often made read-only); once it can be written \
                 again the node takes it up by itself"
            }
            Self::Full { .. } => "free room on the disk, or offer less; deletions are still taken",
            Self::Overcommitted { .. } => "free what else is on the disk, or offer less",
            Self::ReadErrors { .. } => "look at the disk's SMART data; it may be failing",
            Self::Losses { .. } => {
                "nothing for these blocks; they are repaired elsewhere. More of them mean that the disk is failing"
            }
            Self::ScrubStopped { .. } => {
                "check cable, controller and memory before anything is declared lost; then restart the node"
            }
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away { detail } => write!(f, "the disk is not there: {detail}"),
            Self::WritesFailed { detail } => write!(f, "no writes until the node is restarted: {detail}"),
            Self::ReadOnly { dir } => {
                write!(
                    f,
                    "the disk at {} is read-only: its blocks are served, nothing is taken",
                    dir.display()
                )
            }
            Self::Full { free_bytes, reserve_bytes } => {
                write!(f, "the disk is full: {free_bytes} bytes are free, blocks leave {reserve_bytes}")
            }
            Self::Overcommitted { offered_bytes, free_bytes } => {
                write!(
                    f,
                    "{offered_bytes} bytes are still offered, but only {free_bytes} are free on the disk"
                )
            }
            Self::ReadErrors { count, last } => write!(f, "the disk failed {count} reads; the last: {last}"),
            Self::Losses { count } => write!(f, "{count} blocks were declared lost"),
            Self::ScrubStopped { failed } => {
                write!(f, "{failed} blocks failed in one pass of the scrub, which has stopped")
            }
        }
    }
}

/// How one disk does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreHealth {
    /// The store's id, 32 hexadecimal digits.
    pub store_id: String,
    /// Where it is.
    pub dir: PathBuf,
    /// How I/O is done: `io_uring` or `threads`; empty while the disk is away.
    pub io: String,
    /// Buffers registered with the kernel, in bytes.
    pub registered_bytes: u64,
    /// Whether the disk is there.
    pub present: bool,
    /// Whether it takes new blocks.
    pub takes_blocks: bool,
    /// Where every byte is; as last known while the disk is away.
    pub accounts: Accounts,
    /// Bytes free on the file system, when known.
    pub disk_free_bytes: Option<u64>,
    /// Bytes of the file system, when known.
    pub disk_total_bytes: Option<u64>,
    /// Reads that the disk failed since the start.
    pub read_errors: u64,
    /// Blocks declared lost and not given again, at most 10,000.
    pub losses: u64,
    /// How far the scrub is.
    pub scrub: ScrubProgress,
    /// What a person should look at.
    pub alarms: Vec<Alarm>,
}

impl StoreHealth {
    /// A disk that is not there.
    pub(crate) fn away(id: &[u8; 16], dir: PathBuf, accounts: Accounts, why: String) -> Self {
        Self {
            store_id: identity::hex(id),
            dir,
            io: String::new(),
            registered_bytes: 0,
            present: false,
            takes_blocks: false,
            accounts,
            disk_free_bytes: None,
            disk_total_bytes: None,
            read_errors: 0,
            losses: 0,
            scrub: ScrubProgress::default(),
            alarms: vec![Alarm::Away { detail: why }],
        }
    }
}

impl Shared {
    /// Whether the file system has room for `bytes` more of blocks.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        // What cannot be asked is found out by allocating.
        let Ok((free, total)) = self.disk.room(&self.dir) else { return true };
        free >= bytes.saturating_add(self.reserve(total))
    }

    fn reserve(&self, total: u64) -> u64 {
        self.reserve_bytes.min(total / RESERVE_SHARE)
    }

    /// Counts a failed read, and looks whether the disk is there at all.
    pub(crate) fn note_read_error(&self, place: Place, error: &io::Error) {
        self.checks.read_errors.fetch_add(1, Ordering::Relaxed);
        let text = format!("extent {:016x} at {}: {error}", place.extent, place.offset);
        *self.checks.last_read_error.lock() = Some(text);
        self.look_for_presence();
    }

    /// Looks whether the path still leads here; refuses writes for good when it does not.
    pub(crate) fn look_for_presence(&self) -> bool {
        match self.presence.check() {
            Ok(()) => !self.checks.away.load(Ordering::Acquire),
            Err(gone) => {
                self.checks.away.store(true, Ordering::Release);
                self.fail(gone.to_string());
                false
            }
        }
    }

    /// How the disk does now. Blocks on the disk a little.
    pub(crate) fn health(&self) -> StoreHealth {
        let present = self.look_for_presence();
        let accounts = self.accounts();
        let room = self.disk.room(&self.dir).ok().filter(|_| present);
        let failure = self.failure();
        let losses =
            self.index.view().losses(None, LOSSES_COUNTED_MAX).map_or(0, |losses| losses.len() as u64);
        let read_errors = self.checks.read_errors.load(Ordering::Relaxed);
        let full = self.checks.full.load(Ordering::Relaxed);
        let scrub = self.scrub.progress(self.accounts(), self.scrub_period_ms);
        let mut alarms = Vec::new();
        match (&failure, present) {
            (Some(_), true) if self.read_only => alarms.push(Alarm::ReadOnly { dir: self.dir.clone() }),
            (Some(detail), true) => alarms.push(Alarm::WritesFailed { detail: detail.clone() }),
            (detail, false) => {
                alarms.push(Alarm::Away {
                    detail: detail.clone().unwrap_or_else(|| "its path leads elsewhere".to_owned()),
                });
            }
            (None, true) => {}
        }
        if let Some((free_bytes, total)) = room {
            let reserve_bytes = self.reserve(total);
            if full || free_bytes < reserve_bytes {
                alarms.push(Alarm::Full { free_bytes, reserve_bytes });
            } else if free_bytes < accounts.free_bytes {
                alarms.push(Alarm::Overcommitted { offered_bytes: accounts.free_bytes, free_bytes });
            }
        }
        if read_errors > 0 {
            let last = self.checks.last_read_error.lock().clone().unwrap_or_default();
            alarms.push(Alarm::ReadErrors { count: read_errors, last });
        }
        if losses > 0 {
            alarms.push(Alarm::Losses { count: losses });
        }
        if let Some(failed) = self.scrub.stopped() {
            alarms.push(Alarm::ScrubStopped { failed });
        }
        StoreHealth {
            store_id: identity::hex(&self.id),
            dir: self.dir.clone(),
            io: self.disk.name().to_owned(),
            registered_bytes: self.disk.registered_bytes(),
            present,
            takes_blocks: failure.is_none() && !full && accounts.free_bytes > 0,
            accounts,
            disk_free_bytes: room.map(|(free, _)| free),
            disk_total_bytes: room.map(|(_, total)| total),
            read_errors,
            losses,
            scrub,
            alarms,
        }
    }
}
