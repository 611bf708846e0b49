//! A file being written, on the local disk: what was written here lies over the version that was opened.
//!
//! Nothing is copied when writing begins. Bytes that were not written here are read from the version, and fetched at
//! the latest when the file is uploaded. Beside each file lies a note of what it is for, so that what a crash or a
//! dead network leaves behind can be found again: nothing here is ever acknowledged as durable.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ranges::RangeSet;
use super::tree::Version;

/// Ranges kept apart per file; a file written in more pieces is completed from its base first.
pub(super) const RANGES_MAX: usize = 4096;
const DATA: &str = "data";
const NOTE: &str = "key";

/// The version underneath.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) version: Arc<Version>,
    /// Bytes of it that still show: a truncation hides the rest for ever.
    pub(super) visible: u64,
}

/// A staged file. Its directory entry goes when it is dropped.
#[derive(Debug)]
pub(super) struct Staged {
    file: Arc<File>,
    path: PathBuf,
    pub(super) size: u64,
    pub(super) base: Option<Base>,
    written: RangeSet,
    /// Whether something waits to be uploaded.
    pub(super) dirty: bool,
    /// Left on disk when dropped.
    keep: bool,
}

impl Staged {
    /// A new staged file over `base`.
    pub(super) fn create(dir: &Path, number: u64, key: &str, base: Option<Arc<Version>>) -> io::Result<Self> {
        let path = dir.join(format!("{number:012}.{DATA}"));
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::write(path.with_extension(NOTE), key)?;
        let size = base.as_ref().map_or(0, |version| version.size);
        file.set_len(size)?;
        let base =
            base.filter(|version| version.size > 0).map(|version| Base { visible: version.size, version });
        Ok(Self {
            file: Arc::new(file),
            path,
            size,
            base,
            written: RangeSet::default(),
            dirty: false,
            keep: false,
        })
    }

    /// Writes at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        self.written.insert(offset..end);
        self.size = self.size.max(end);
        self.dirty = true;
        Ok(())
    }

    /// Makes it `size` bytes long; new bytes are zero.
    pub(super) fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        if size < self.size {
            self.written.truncate(size);
            if let Some(base) = &mut self.base {
                base.visible = base.visible.min(size);
            }
        }
        self.size = size;
        self.dirty = true;
        Ok(())
    }

    /// What of `range` must come from the base.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let visible = self.base.as_ref().map_or(0, |base| base.visible);
        self.written.gaps(range.start.min(visible)..range.end.min(visible))
    }

    /// Whether it was written in so many pieces that it should be completed.
    pub(super) fn is_scattered(&self) -> bool {
        self.written.len() > RANGES_MAX
    }

    /// Puts bytes of the base in their place.
    pub(super) fn fill(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.written.insert(offset..offset + bytes.len() as u64);
        Ok(())
    }

    /// The bytes of `range`, cut at the end of the file, as they lie here; what is missing reads as anything.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let end = range.end.min(self.size);
        let len = usize::try_from(end.saturating_sub(range.start)).unwrap_or(0);
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// The file itself, for readers on other threads.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// It is at the key now, as `version`.
    pub(super) fn uploaded(&mut self, version: Arc<Version>) {
        // All of it is here: uploading completed it.
        self.written.insert(0..self.size);
        self.base = Some(Base { visible: version.size, version });
        self.dirty = false;
    }

    /// Keeps the files when dropped.
    pub(super) fn keep(&mut self, key: &str) {
        self.keep = true;
        // Best effort: the key may have changed since the note was written.
        let _ = std::fs::write(self.path.with_extension(NOTE), key);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_file(self.path.with_extension(NOTE));
        }
    }
}

/// A staged file that a mount before this one could not upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Where its bytes are now. Bytes that were never written here are holes.
    pub path: PathBuf,
    /// The key it was for.
    pub key: String,
}

/// Moves what an earlier mount left in `dir` to `dir/lost`, and says what it was.
pub(super) fn rescue(dir: &Path) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == DATA) {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let lost = dir.join("lost");
    std::fs::create_dir_all(&lost)?;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    found.sort();
    let mut leftovers = Vec::with_capacity(found.len());
    for path in found {
        let note = path.with_extension(NOTE);
        let key = std::fs::read_to_string(&note).unwrap_or_default();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let target = lost.join(format!("{now}-{stem}.{DATA}"));
        std::fs::rename(&path, &target)?;
        std::fs::rename(&note, target.with_extension(NOTE)).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        leftovers.push(Leftover { path: target, key });
    }
    Ok(leftovers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(size: u64) -> Option<Arc<Version>> {
        Some(Arc::new(Version { id: 1, etag: "e".into(), size }))
    }

    #[test]
    fn a_truncation_hides_the_base_for_ever() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut staged = Staged::create(dir.path(), 1, "k", version(100))?;
        assert_eq!(staged.missing(0..100), vec![0..100]);
        staged.write(10, &[1; 10])?;
        assert_eq!(staged.missing(0..100), vec![0..10, 20..100]);
        staged.truncate(15)?;
        staged.truncate(100)?;
        assert_eq!(staged.missing(0..100), vec![0..10]);
        assert_eq!(staged.read(15..20)?, vec![0; 5]);
        Ok(())
    }

    #[test]
    fn what_was_left_is_moved_aside_with_its_key() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut staged = Staged::create(dir.path(), 7, "old", None)?;
        staged.write(0, b"unsaved")?;
        staged.keep("a/b");
        drop(staged);
        let clean = Staged::create(dir.path(), 8, "gone", None)?;
        drop(clean);
        let left = rescue(dir.path())?;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].key, "a/b");
        assert_eq!(std::fs::read(&left[0].path)?, b"unsaved");
        assert!(rescue(dir.path())?.is_empty());
        Ok(())
    }
}
