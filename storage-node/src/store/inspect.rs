//! Looking into an extent file from outside, for people and tests: its head and its records, one after another.
//!
//! Reads only, needs no lock, and works beside a running node; what is being written while it looks may be missing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::OpenError;
use super::format::{self, Cause, Entry, PAGE_BYTES, PageFault, Place, RecordPage, Secret};
use super::identity;
use crate::disk::PAGE;

/// An extent file, open for looking.
pub struct ExtentReader {
    file: File,
    secret: Secret,
    extent: u64,
    at: u64,
    size: u64,
    path: PathBuf,
}

/// What lies at one place of an extent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordView {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes to the next record.
    pub bytes: u64,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// A record, or what is there instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum What {
    /// The head of the file.
    Head {
        /// The store it belongs to.
        store_id: String,
        /// When the file was made.
        created_ms: u64,
        /// The longest it becomes.
        limit: u64,
    },
    /// A block; its data may have been punched since.
    Block {
        /// Record id.
        record: u64,
        /// Commit group.
        group: u64,
        /// When it was written.
        written_ms: u64,
        /// The block's CID.
        cid: String,
        /// Its length.
        len: u32,
        /// Whether the data behind the page are still those of the CID.
        data_holds: bool,
        /// The claim that it came with.
        first_claim: EntryView,
    },
    /// Small records.
    Entries {
        /// Record id.
        record: u64,
        /// Commit group.
        group: u64,
        /// When they were written.
        written_ms: u64,
        /// The entries.
        entries: Vec<EntryView>,
    },
    /// A kept deletion order.
    Order {
        /// Record id.
        record: u64,
        /// Commit group.
        group: u64,
        /// When it was written.
        written_ms: u64,
        /// Under which agreement.
        agreement: String,
        /// Its length.
        len: u32,
    },
    /// Nothing was written here.
    Blank,
    /// A page whose checksum does not hold.
    Damaged,
    /// A good page of a newer release.
    Newer,
}

/// A claim's state, or an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryView {
    /// `provisional`, `live`, `trash`, `gone`; `released`, `lost`, `order dropped`.
    pub state: &'static str,
    /// Sequence.
    pub sequence: u64,
    /// The record that it is about.
    pub target: u64,
    /// The block's CID.
    pub cid: String,
    /// The claim's agreement, if it is a claim.
    pub agreement: Option<String>,
    /// The claim's tag, if it is a claim.
    pub tag: Option<String>,
    /// When a provisional claim's lease ends.
    pub lease_until_ms: u64,
    /// Until when deletion is refused.
    pub retain_until_ms: u64,
    /// When this became so.
    pub changed_ms: u64,
}

impl ExtentReader {
    /// Opens an extent file where it lies: `STORE/extents/<16 hex digits>.extent`. The store's secret is read from
    /// beside it, because only with it can a page be told from block bytes that look like one.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let unusable = |detail: &str| OpenError::Identity { dir: path.to_owned(), detail: detail.to_owned() };
        let extent = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| u64::from_str_radix(stem, 16).ok())
            .ok_or_else(|| unusable("an extent's name is 16 hexadecimal digits"))?;
        let dir = path
            .parent()
            .and_then(Path::parent)
            .ok_or_else(|| unusable("an extent lies in STORE/extents"))?;
        let secret = identity::read_secret(dir)?;
        let reading = |source: io::Error| identity::failed(path, "reading", source);
        let file = File::open(path).map_err(reading)?;
        let size = file.metadata().map_err(reading)?.len() / PAGE_BYTES * PAGE_BYTES;
        Ok(Self { file, secret, extent, at: 0, size, path: path.to_owned() })
    }

    /// The file's whole pages, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next record, or the run of pages that are none; `None` at the end of the file.
    pub fn read_next(&mut self) -> Result<Option<RecordView>, OpenError> {
        if self.at >= self.size {
            return Ok(None);
        }
        let offset = self.at;
        let (mut bytes, what) = self.look(offset)?;
        if matches!(what, What::Blank | What::Damaged) {
            // Pages of one kind are one line.
            while offset + bytes < self.size {
                let (_, next) = self.look(offset + bytes)?;
                if next != what {
                    break;
                }
                bytes += PAGE_BYTES;
            }
        }
        self.at = offset + bytes;
        Ok(Some(RecordView { offset, bytes, what }))
    }

    fn look(&self, offset: u64) -> Result<(u64, What), OpenError> {
        let page = self.read(offset, PAGE)?;
        if offset == 0 {
            let what = match format::read_head(&page, self.extent, &self.secret) {
                Ok(head) => What::Head {
                    store_id: identity::hex(&head.store),
                    created_ms: head.created_ms,
                    limit: head.limit,
                },
                Err(fault) => fault_view(fault),
            };
            return Ok((PAGE_BYTES, what));
        }
        let place = Place { extent: self.extent, offset };
        let (stamp, found) = match format::read_record(&page, place, &self.secret) {
            Ok(read) => read,
            Err(fault) => return Ok((PAGE_BYTES, fault_view(fault))),
        };
        let (record, group, written_ms) = (stamp.record, stamp.group, stamp.written_ms);
        let bytes = found.record_bytes();
        let what = match found {
            RecordPage::Block(block) => {
                let data = self.read(offset + PAGE_BYTES, block.len.as_usize()).unwrap_or_default();
                What::Block {
                    record,
                    group,
                    written_ms,
                    cid: block.digest.raw_cid().to_string(),
                    len: block.len.bytes(),
                    data_holds: holdfast_protocol::digest::Digest::of(&data) == block.digest,
                    first_claim: entry_view(&Entry::Claim(block.claim)),
                }
            }
            RecordPage::Entries(entries) => {
                let entries = entries.iter().map(entry_view).collect();
                What::Entries { record, group, written_ms, entries }
            }
            RecordPage::Order(order) => What::Order {
                record,
                group,
                written_ms,
                agreement: order.agreement.to_string(),
                len: order.len,
            },
        };
        Ok((bytes, what))
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; len];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|source| identity::failed(&self.path, "reading", source))?;
        Ok(bytes)
    }
}

fn fault_view(fault: PageFault) -> What {
    match fault {
        PageFault::Blank => What::Blank,
        PageFault::Damaged => What::Damaged,
        PageFault::Newer => What::Newer,
    }
}

fn entry_view(entry: &Entry) -> EntryView {
    match entry {
        Entry::Claim(claim) => EntryView {
            state: claim.standing.name(),
            sequence: claim.sequence,
            target: claim.target,
            cid: claim.digest.raw_cid().to_string(),
            agreement: Some(claim.agreement.to_string()),
            tag: Some(hex::encode(claim.tag.0)),
            lease_until_ms: claim.lease_until_ms,
            retain_until_ms: claim.retain_until_ms,
            changed_ms: claim.changed_ms,
        },
        Entry::Tombstone(end) => EntryView {
            state: match end.cause {
                Cause::Released => "released",
                Cause::Lost => "lost",
                Cause::OrderDropped(_) => "order dropped",
            },
            sequence: end.sequence,
            target: end.target,
            cid: end.digest.raw_cid().to_string(),
            agreement: None,
            tag: None,
            lease_until_ms: 0,
            retain_until_ms: 0,
            changed_ms: end.changed_ms,
        },
    }
}
