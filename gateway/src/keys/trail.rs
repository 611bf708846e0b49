//! The audit trail: who did what, when, and how it ended, one JSON line each, in a chain that shows changes.
//!
//! One file a day, `DIR/trail/YYYY-MM-DD.jsonl`, of this gateway. Every line ends with `chain`: 16 bytes of BLAKE3, keyed
//! by a key that derives from the root key, over the line before's and this one. So whoever can write the files but does
//! not have the root key cannot change, drop or add a line in the middle in silence; dropping lines at the end shows only
//! against another copy. Files older than [`DAYS_MAX`] are removed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_protocol::time::UnixMs;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;

use super::RootKey;

const CHAIN_CONTEXT: &str = "holdfast audit trail chain v1";
/// Lines that may wait to be written; more are counted, and the count is written instead.
const WAITING_MAX: usize = 16 * 1024;
/// Days that are kept.
pub const DAYS_MAX: usize = 90;
/// Lines are on disk this long after they were written, at the latest.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a line that is read back; a key of 1 KiB with every byte escaped fits.
const LINE_LEN_MAX: u64 = 64 * 1024;
/// Strangers' requests written down in a second.
const STRANGERS_PER_S: u32 = 10;
/// Lines that one look-up gives.
pub const LINES_MAX: usize = 10_000;

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since the epoch.
    pub at_ms: UnixMs,
    /// The access key; empty for the administrator and for strangers.
    pub key: String,
    /// Who holds it; `admin` for the administrator.
    pub person: String,
    /// What was asked for: an S3 operation, or an administrator's.
    pub operation: String,
    /// In which bucket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bucket: String,
    /// To which object, or to which access key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// The answer's status.
    pub status: u16,
    /// Bytes that came.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes that went.
    #[serde(default)]
    pub bytes_out: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: Entry,
    chain: String,
}

/// Strangers' requests of this second.
#[derive(Default)]
struct Strangers {
    second: u64,
    count: u32,
}

impl Strangers {
    fn lets_in(&mut self, at_ms: UnixMs) -> bool {
        if self.second != at_ms / 1000 {
            *self = Self { second: at_ms / 1000, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= STRANGERS_PER_S
    }
}

/// Writes entries behind its callers' backs.
pub struct Trail {
    directory: PathBuf,
    key: [u8; 32],
    sender: Mutex<Option<mpsc::Sender<Entry>>>,
    lost: Arc<AtomicU64>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    strangers: Mutex<Strangers>,
}

impl Trail {
    /// Goes on with the trail under `dir`.
    pub fn open(dir: &Path, root: &RootKey) -> std::io::Result<Self> {
        let directory = dir.join("trail");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let key = blake3::derive_key(CHAIN_CONTEXT, root.expose());
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer { directory: directory.clone(), key, lost: Arc::clone(&lost), open: None };
        let thread =
            std::thread::Builder::new().name("audit-trail".to_owned()).spawn(move || writer.run(receiver))?;
        let (sender, writer) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok(Self { directory, key, sender, lost, writer, strangers: Mutex::default() })
    }

    /// Adds an entry. Never waits: when the disk cannot follow, the entry is counted as lost, and the trail says so.
    ///
    /// Of strangers' requests only [`STRANGERS_PER_S`] a second are written down: anybody can send those.
    pub fn add(&self, entry: Entry) {
        if entry.person.is_empty() && !self.strangers.lock().lets_in(entry.at_ms) {
            return;
        }
        let sender = self.sender.lock();
        if sender.as_ref().is_none_or(|sender| sender.try_send(entry).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits and ends.
    pub fn close(&self) {
        drop(self.sender.lock().take());
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the audit trail's writer panicked");
        }
    }

    /// The last entries that `wanted` picks, oldest first, and whether the chain of the files that were read holds.
    pub fn last(&self, limit: usize, wanted: impl Fn(&Entry) -> bool) -> std::io::Result<(Vec<Entry>, bool)> {
        let limit = limit.min(LINES_MAX);
        let (mut found, mut holds) = (VecDeque::new(), true);
        for path in days(&self.directory)?.into_iter().rev() {
            // Newer days have taken their places already.
            let places = limit - found.len();
            let (mut picked, chained) = read(&path, &self.key, places, &wanted)?;
            holds &= chained;
            picked.append(&mut found);
            found = picked;
            if found.len() >= limit {
                break;
            }
        }
        Ok((found.into(), holds))
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trail").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The thread that writes.
struct Writer {
    directory: PathBuf,
    key: [u8; 32],
    lost: Arc<AtomicU64>,
    open: Option<Open>,
}

struct Open {
    day: String,
    file: BufWriter<File>,
    chain: [u8; 16],
    synced: Instant,
}

impl Writer {
    fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        while let Some(entry) = entries.blocking_recv() {
            let at_ms = entry.at_ms;
            self.write(entry);
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let operation = format!("{lost} entries were lost: the disk could not follow");
                self.write(Entry { at_ms, person: "gateway".to_owned(), operation, ..Entry::default() });
            }
            if entries.is_empty() {
                self.settle(false);
            }
        }
        self.settle(true);
    }

    fn write(&mut self, entry: Entry) {
        if let Err(error) = self.try_write(entry) {
            tracing::error!(%error, directory = %self.directory.display(), "the audit trail cannot be written");
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.open = None;
        }
    }

    fn try_write(&mut self, entry: Entry) -> std::io::Result<()> {
        let day = day_of(entry.at_ms);
        // A clock that was set back goes on in the file that is open.
        if self.open.as_ref().is_none_or(|open| open.day < day) {
            self.settle(true);
            self.open = Some(self.open_day(day)?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let body = serde_json::to_string(&entry)?;
        let chain = link(&self.key, &open.chain, &body);
        let line = Line { entry, chain: hex::encode(chain) };
        writeln!(open.file, "{}", serde_json::to_string(&line)?)?;
        open.chain = chain;
        Ok(())
    }

    fn open_day(&self, day: String) -> std::io::Result<Open> {
        let path = self.directory.join(format!("{day}.jsonl"));
        let chain = last_chain(&path)?;
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        // A line that a crash tore ends here; the chain goes on behind the last whole one.
        if !ends_with_newline(&path)? {
            file.write_all(b"\n")?;
        }
        for old in days(&self.directory)?.into_iter().rev().skip(DAYS_MAX) {
            std::fs::remove_file(old)?;
        }
        Ok(Open { day, file: BufWriter::new(file), chain, synced: Instant::now() })
    }

    fn settle(&mut self, now: bool) {
        let Some(open) = &mut self.open else { return };
        let flushed = open.file.flush().and_then(|()| {
            if now || open.synced.elapsed() >= SYNC_EVERY {
                open.synced = Instant::now();
                return open.file.get_ref().sync_data();
            }
            Ok(())
        });
        if let Err(error) = flushed {
            tracing::error!(%error, directory = %self.directory.display(), "the audit trail cannot be written");
            self.open = None;
        }
    }
}

fn link(key: &[u8; 32], before: &[u8; 16], body: &str) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(before).update(body.as_bytes());
    let mut chain = [0; 16];
    chain.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    chain
}

/// The files of the trail, oldest first.
fn days(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut days = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            days.push(path);
        }
    }
    days.sort();
    Ok(days)
}

/// Calls `each` with every whole line of a file. Torn lines are skipped: the chain goes on over them.
fn for_each_line(path: &Path, mut each: impl FnMut(Line)) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if std::io::Read::take(&mut reader, LINE_LEN_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Ok(line) = serde_json::from_slice::<Line>(&line) {
            each(line);
        }
    }
}

/// The last `places` entries of a file that are wanted, and whether its chain holds from the first line to the last.
fn read(
    path: &Path,
    key: &[u8; 32],
    places: usize,
    wanted: &impl Fn(&Entry) -> bool,
) -> std::io::Result<(VecDeque<Entry>, bool)> {
    let (mut entries, mut holds, mut chain) = (VecDeque::new(), true, [0u8; 16]);
    for_each_line(path, |line| {
        // What was read as an entry can be written as one.
        let body = serde_json::to_string(&line.entry).unwrap_or_default();
        chain = link(key, &chain, &body);
        holds &= bool::from(hex::encode(chain).as_bytes().ct_eq(line.chain.as_bytes()));
        if places > 0 && wanted(&line.entry) {
            if entries.len() == places {
                entries.pop_front();
            }
            entries.push_back(line.entry);
        }
    })?;
    Ok((entries, holds))
}

fn last_chain(path: &Path) -> std::io::Result<[u8; 16]> {
    let mut chain = [0; 16];
    if path.exists() {
        for_each_line(path, |line| {
            // A value of another shape is passed over, and the chain shows a break.
            let mut found = [0; 16];
            if hex::decode_to_slice(&line.chain, &mut found).is_ok() {
                chain = found;
            }
        })?;
    }
    Ok(chain)
}

fn ends_with_newline(path: &Path) -> std::io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The day of a time, in UTC, as ISO 8601 has it.
pub(crate) fn day_of(at_ms: UnixMs) -> String {
    // The civil calendar of days since the epoch, by eras of 400 years that begin in March.
    let days = at_ms / 86_400_000 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 1_800_000_000_000;

    fn entry(operation: &str, at_ms: u64) -> Entry {
        Entry {
            at_ms,
            person: "alice".to_owned(),
            operation: operation.to_owned(),
            status: 200,
            ..Entry::default()
        }
    }

    fn root() -> RootKey {
        RootKey::from_bytes([3; 32])
    }

    #[test]
    fn days_are_named_by_the_calendar() {
        for (at_ms, day) in [
            (0, "1970-01-01"),
            (951_782_400_000, "2000-02-29"),
            (951_868_800_000, "2000-03-01"),
            (1_767_225_599_999, "2025-12-31"),
            (1_767_225_600_000, "2026-01-01"),
            (4_107_542_400_000, "2100-03-01"),
        ] {
            assert_eq!(day_of(at_ms), day);
        }
    }

    #[test]
    fn entries_are_found_again_in_order_over_restarts_and_days() {
        let dir = tempfile::tempdir().unwrap();
        for (operation, at_ms) in [("one", DAY), ("two", DAY + 1), ("three", DAY + 86_400_000)] {
            let trail = Trail::open(dir.path(), &root()).unwrap();
            trail.add(entry(operation, at_ms));
            trail.close();
        }
        let trail = Trail::open(dir.path(), &root()).unwrap();
        let (found, holds) = trail.last(10, |_| true).unwrap();
        assert_eq!(
            found.iter().map(|entry| &entry.operation[..]).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        assert!(holds);
        let (found, _) = trail.last(1, |entry| entry.at_ms <= DAY + 1).unwrap();
        assert_eq!(found[0].operation, "two");
    }

    #[test]
    fn a_changed_or_missing_line_breaks_the_chain_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let trail = Trail::open(dir.path(), &root()).unwrap();
        for turn in 0..5 {
            trail.add(entry(&format!("turn {turn}"), DAY + turn));
        }
        trail.close();
        let path = dir.path().join("trail").join(format!("{}.jsonl", day_of(DAY)));
        let whole = std::fs::read_to_string(&path).unwrap();
        let holds = || Trail::open(dir.path(), &root()).unwrap().last(10, |_| true).unwrap().1;
        assert!(holds());
        std::fs::write(&path, whole.replace("turn 2", "turn 9")).unwrap();
        assert!(!holds(), "a changed line");
        let without: Vec<&str> = whole.lines().filter(|line| !line.contains("turn 2")).collect();
        std::fs::write(&path, without.join("\n")).unwrap();
        assert!(!holds(), "a missing line");
        std::fs::write(&path, format!("{whole}{{\"at_ms\":18000")).unwrap();
        let trail = Trail::open(dir.path(), &root()).unwrap();
        trail.add(entry("after the crash", DAY + 9));
        trail.close();
        let (found, holds) = Trail::open(dir.path(), &root()).unwrap().last(10, |_| true).unwrap();
        assert!(holds, "a torn line at a crash");
        assert_eq!(found.last().unwrap().operation, "after the crash");
        assert!(
            !Trail::open(dir.path(), &RootKey::from_bytes([4; 32])).unwrap().last(10, |_| true).unwrap().1
        );
    }
}
