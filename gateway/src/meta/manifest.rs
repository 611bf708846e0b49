//! Manifests: writing the pages of a run, and reading any range of an object piece by piece.

use std::ops::Range;
use std::sync::Arc;

use super::error::MetaError;
use super::model::{BucketId, Object, VersionId};
use super::row::{decode_object_part, decode_page, encode_page};
use super::store::{Row, Transaction, prefix_end};
use super::{Meta, Sealer, next_key, random, schema};
use crate::crypt::{PartCipher, PartSecret, WrapContext};
use crate::layout::{Entry, Layout, Page, PartLayout, PartView, Piece, Run, pieces};

/// A reader is given at least this many pieces at once, unless the range ends: enough that an object of many
/// small parts does not stall between them.
const PIECES_AT_ONCE: usize = 64;
/// Pages read at once when a whole run is walked: about 600 KiB.
const PAGES_AT_ONCE: usize = 16;

/// Walks a range of an object in order.
///
/// Holds one page of pieces at most. Versions are immutable, but an object may be deleted while it is read:
/// then a page is missing and [`ManifestReader::next`] fails.
#[derive(Debug)]
pub struct ManifestReader {
    meta: Arc<Meta>,
    object: Object,
    next: u64,
    end: u64,
    part: Option<(PartLayout, Option<Arc<PartCipher>>)>,
}

impl Meta {
    /// Reads `range` of an object; what lies behind its end is cut off.
    pub fn read(self: &Arc<Self>, object: &Object, range: Range<u64>) -> ManifestReader {
        let end = range.end.min(object.size);
        ManifestReader {
            meta: Arc::clone(self),
            object: object.clone(),
            next: range.start.min(end),
            end,
            part: None,
        }
    }

    /// The parts of an object, in order; parts without bytes are left out.
    pub async fn part_views(&self, object: &Object) -> Result<Vec<PartView>, MetaError> {
        match &object.layout {
            Layout::Empty => Ok(Vec::new()),
            Layout::Single(part) => Ok(vec![part.clone().view()]),
            Layout::Parts => {
                let rows = self.object_part_rows(object.version).await?;
                rows.iter().map(|row| Ok(self.open_object_part(object.bucket, row)?.view())).collect()
            }
        }
    }

    /// Puts a run's pages, or keeps a short run inline.
    pub(super) fn put_run(
        &self,
        bucket: &Sealer,
        entries: Vec<Entry>,
        transaction: &mut Transaction,
    ) -> Result<Run, MetaError> {
        if entries.len() <= schema::INLINE_BLOCKS_MAX {
            return Ok(Run::Inline(entries));
        }
        let run = VersionId(random()?);
        for page in Page::cut(&entries) {
            let key = schema::page(run, page.end());
            let value = self.seal(bucket, &key, encode_page(&page))?;
            transaction.put(key, value);
        }
        Ok(Run::Pages { run, count: entries.len() as u64 })
    }

    pub(super) fn open_page(&self, bucket: BucketId, row: &Row) -> Result<Page, MetaError> {
        decode_page(self.unseal(bucket, "manifest page", &row.key, &row.value)?)
    }

    /// All blocks of a run. Its caller has bounded their number.
    pub(super) async fn run_entries(&self, bucket: BucketId, run: &Run) -> Result<Vec<Entry>, MetaError> {
        match run {
            Run::Inline(entries) => Ok(entries.clone()),
            Run::Pages { run, count } => {
                let mut entries = Vec::new();
                let mut start = schema::pages(*run);
                loop {
                    let page =
                        self.store.page(&start, &prefix_end(&schema::pages(*run)), PAGES_AT_ONCE).await?;
                    let Some(last) = page.last() else { break };
                    start = next_key(last.key.clone());
                    for row in &page {
                        entries.extend(self.open_page(bucket, row)?.entries);
                    }
                }
                if entries.len() as u64 == *count {
                    Ok(entries)
                } else {
                    Err(MetaError::Corrupt { what: "manifest page" })
                }
            }
        }
    }

    /// Keys of a run's pages.
    pub(super) async fn page_keys(&self, run: &Run) -> Result<Vec<Vec<u8>>, MetaError> {
        let Run::Pages { run, .. } = run else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        let mut start = schema::pages(*run);
        loop {
            let page = self.store.page(&start, &prefix_end(&schema::pages(*run)), PAGES_AT_ONCE).await?;
            let Some(last) = page.last() else { return Ok(keys) };
            start = next_key(last.key.clone());
            keys.extend(page.into_iter().map(|row| row.key));
        }
    }

    pub(super) fn open_object_part(&self, bucket: BucketId, row: &Row) -> Result<PartLayout, MetaError> {
        decode_object_part(self.unseal(bucket, "object part", &row.key, &row.value)?)
    }

    /// The cipher of an object's part.
    fn part_cipher(&self, object: &Object, part: &PartLayout) -> Result<Option<Arc<PartCipher>>, MetaError> {
        match self.part_secret(object, part)? {
            Some(secret) => Ok(Some(Arc::new(secret.cipher()?))),
            None => Ok(None),
        }
    }

    /// The key of an object's part.
    pub(super) fn part_secret(
        &self,
        object: &Object,
        part: &PartLayout,
    ) -> Result<Option<PartSecret>, MetaError> {
        let Some(key) = &part.key else { return Ok(None) };
        let root_cid = object.root_cid.to_bytes();
        let context = WrapContext {
            object: &object.key,
            version: object.version,
            offset: part.offset,
            size: object.size,
            root_cid: &root_cid,
        };
        Ok(Some(self.bucket_keys(object.bucket, key.epoch)?.unwrap(key, part.iv_nonce, &context)?))
    }
}

impl ManifestReader {
    /// The next pieces of the range; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Vec<Piece>>, MetaError> {
        let mut out = Vec::new();
        while self.next < self.end && out.len() < PIECES_AT_ONCE {
            self.enter_part().await?;
            let Some((part, cipher)) = &self.part else { return Err(missing()) };
            let page = self.page(part).await?;
            let before = out.len();
            pieces(&page, part.offset, cipher.as_ref(), &(self.next..self.end), &mut out);
            let Some(last) = out.last().filter(|_| out.len() > before) else { return Err(missing()) };
            self.next = last.object_offset + u64::from(last.range.len);
        }
        Ok(if out.is_empty() { None } else { Some(out) })
    }

    /// The part that holds the next byte, and the page of it that does; `None` at the end of the range. The next
    /// byte is then the first behind that page.
    pub(super) async fn next_page(&mut self) -> Result<Option<(PartLayout, Arc<Page>)>, MetaError> {
        if self.next >= self.end {
            return Ok(None);
        }
        self.enter_part().await?;
        let Some((part, _)) = &self.part else { return Err(missing()) };
        let page = self.page(part).await?;
        let end = part.offset + page.end();
        if end <= self.next {
            return Err(missing());
        }
        self.next = end;
        Ok(Some((part.clone(), page)))
    }

    /// Makes `self.part` the one that holds the next byte.
    async fn enter_part(&mut self) -> Result<(), MetaError> {
        if self.part.as_ref().is_some_and(|(part, _)| self.next < part.offset + part.len) {
            return Ok(());
        }
        let part = match &self.object.layout {
            Layout::Empty => return Err(missing()),
            Layout::Single(part) => part.clone(),
            Layout::Parts => {
                let start = schema::part(self.object.version, self.next + 1);
                let end = prefix_end(&schema::parts(self.object.version));
                let rows = self.meta.store.page(&start, &end, 1).await?;
                self.meta.open_object_part(self.object.bucket, rows.first().ok_or_else(missing)?)?
            }
        };
        if !(part.offset..part.offset + part.len).contains(&self.next) {
            return Err(missing());
        }
        let cipher = self.meta.part_cipher(&self.object, &part)?;
        self.part = Some((part, cipher));
        Ok(())
    }

    /// The page that holds the next byte.
    async fn page(&self, part: &PartLayout) -> Result<Arc<Page>, MetaError> {
        let run = match &part.blocks {
            Run::Inline(entries) => return Ok(Arc::new(Page { start: 0, entries: entries.clone() })),
            Run::Pages { run, .. } => *run,
        };
        let in_run = self.next - part.offset;
        if let Some(page) = self.meta.pages.get(run, in_run) {
            return Ok(page);
        }
        let start = schema::page(run, in_run + 1);
        let rows = self.meta.store.page(&start, &prefix_end(&schema::pages(run)), 1).await?;
        let page = Arc::new(self.meta.open_page(self.object.bucket, rows.first().ok_or_else(missing)?)?);
        self.meta.pages.put(run, &page);
        Ok(page)
    }
}

fn missing() -> MetaError {
    MetaError::Corrupt { what: "manifest page" }
}
