//! Walking the records of an extent file, in order, through a small window.

use std::io;
use std::sync::Arc;

use holdfast_protocol::digest::Digest;

use super::engine::Shared;
use super::format::{self, PAGE_BYTES, PageFault, Place, RecordPage, Stamp};
use crate::disk::{Action, AlignedBuf, DiskFile, PAGE, run_blocking, stopped};

/// Bytes read at a time while hopping from page to page.
const WINDOW_BYTES: u64 = 64 << 10;
/// Bytes read at a time while looking for a page.
const SEARCH_BYTES: u64 = 1 << 20;

/// A reader of one extent file.
pub(crate) struct Walk<'a> {
    shared: &'a Shared,
    file: Arc<DiskFile>,
    extent: u64,
    /// Whole pages of the file.
    size: u64,
    window: Option<(u64, u64, AlignedBuf)>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(shared: &'a Shared, file: Arc<DiskFile>, extent: u64) -> io::Result<Self> {
        let size = file.size()? / PAGE_BYTES * PAGE_BYTES;
        Ok(Self { shared, file, extent, size, window: None })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The page at `offset`; `None` at the end of the file.
    pub(crate) fn page(&mut self, offset: u64) -> io::Result<Option<&[u8]>> {
        self.page_within(offset, WINDOW_BYTES)
    }

    fn page_within(&mut self, offset: u64, window: u64) -> io::Result<Option<&[u8]>> {
        if offset + PAGE_BYTES > self.size {
            return Ok(None);
        }
        let inside = self
            .window
            .as_ref()
            .is_some_and(|(start, len, _)| *start <= offset && offset + PAGE_BYTES <= start + len);
        if !inside {
            let len = window.min(self.size - offset);
            // The old window's memory is free before the next is asked for.
            self.window = None;
            self.window = Some((offset, len, self.read(offset, len)?));
        }
        let Some((start, _, buffer)) = &self.window else { return Ok(None) };
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        Ok(buffer.get(at..at.saturating_add(PAGE)))
    }

    /// The record at `offset`, whole within the file; `None` at the end of the file.
    pub(crate) fn record(
        &mut self,
        offset: u64,
    ) -> io::Result<Option<Result<(Stamp, RecordPage), PageFault>>> {
        self.record_within(offset, WINDOW_BYTES)
    }

    fn record_within(
        &mut self,
        offset: u64,
        window: u64,
    ) -> io::Result<Option<Result<(Stamp, RecordPage), PageFault>>> {
        let (place, size) = (Place { extent: self.extent, offset }, self.size);
        let secret = &self.shared.secret;
        let Some(page) = self.page_within(offset, window)? else { return Ok(None) };
        let read = format::read_record(page, place, secret);
        Ok(Some(read.and_then(|(stamp, record)| {
            let whole = offset + record.record_bytes() <= size;
            if whole { Ok((stamp, record)) } else { Err(PageFault::Damaged) }
        })))
    }

    /// The first good record behind `offset` of a group not before `group`: its place and its group.
    pub(crate) fn next_record(&mut self, offset: u64, group: u64) -> io::Result<Option<(u64, u64)>> {
        let mut at = offset + PAGE_BYTES;
        while let Some(read) = self.record_within(at, SEARCH_BYTES)? {
            match read {
                Ok((stamp, _)) if stamp.group >= group => return Ok(Some((at, stamp.group))),
                Ok(_) | Err(_) => at += PAGE_BYTES,
            }
        }
        Ok(None)
    }

    /// Whether the data behind a record's page are those that the page names.
    pub(crate) fn data_holds(&self, stamp: &Stamp, record: &RecordPage) -> io::Result<bool> {
        let Some((len, digest)) = record.data() else { return Ok(true) };
        let padded = record.record_bytes() - PAGE_BYTES;
        let buffer = self.read(stamp.place.offset + PAGE_BYTES, padded)?;
        Ok(buffer.get(..len as usize).is_some_and(|bytes| Digest::of(bytes) == digest))
    }

    fn read(&self, offset: u64, len: u64) -> io::Result<AlignedBuf> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(len).map_err(|_| too_long())?;
        let buffer = self.shared.read_pool.take_unbounded(len).ok_or_else(too_long)?;
        let (result, buffer) =
            run_blocking(&*self.shared.disk, &self.file, Action::Read, offset, (Some(buffer), len));
        result?;
        buffer.ok_or_else(stopped)
    }
}
