//! Reading: lookups in the index, bytes and trees from the extents.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_proofs::GroupTree;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::AgreementId;
use tokio::sync::oneshot;

use super::engine::Shared;
use super::error::{IndexError, ReadError};
use super::format::{self, Place, RecordPage};
use super::index::rows::OrderRow;
use super::index::{View, bad_row, is_incomplete};
use super::types::{KeptOrder, Located, SharedTree};
use crate::disk::{Action, AlignedBuf, Done, PAGE, Request, stopped};

impl Shared {
    /// Runs a lookup: on this thread while memory suffices, on a blocking thread when the disk is needed.
    pub(crate) async fn lookup<T, F>(self: &Arc<Self>, look: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: Fn(&View<'_>) -> Result<T, IndexError> + Send + 'static,
    {
        match look(&self.index.view_in_memory()) {
            Err(error) if is_incomplete(&error) => {}
            other => return Ok(other?),
        }
        let shared = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || look(&shared.index.view())).await;
        Ok(looked.map_err(|_| ReadError::Closing)??)
    }

    pub(crate) async fn locate(self: &Arc<Self>, digest: Digest) -> Result<Option<Located>, ReadError> {
        // Before the look, so that a pass that begins in between is noticed.
        let punched = self.punched.load(Ordering::Acquire);
        let found = self
            .lookup(move |view| {
                let Some(row) = view.block(&digest)? else { return Ok(None) };
                Ok(Some((row, view.claims(&digest)?)))
            })
            .await?;
        let Some((row, claims)) = found else { return Ok(None) };
        let len = BlockLen::new(row.len).map_err(|_| ReadError::Damaged { digest })?;
        let Place { extent, offset } = row.place;
        Ok(Some(Located { digest, len, claims, extent, offset, record: row.record, punched, slot: 0 }))
    }

    pub(crate) async fn read(
        self: &Arc<Self>,
        located: &Located,
        range: ByteRange,
    ) -> Result<Bytes, ReadError> {
        let inside =
            range.start.checked_add(range.len).is_some_and(|end| range.len > 0 && end <= located.len.bytes());
        if !inside {
            return Err(ReadError::Range { range, len: located.len.bytes() });
        }
        let (start, end) = (range.start as usize, range.end() as usize);
        let first = start / PAGE * PAGE;
        let bytes = end.next_multiple_of(PAGE) - first;
        let place =
            Place { extent: located.extent, offset: located.offset + format::PAGE_BYTES + first as u64 };
        let read = self.read_pages(place, bytes).await;
        self.still_held(located).await?;
        let buffer = read.map_err(|source| disk_error(located.digest, &source))?;
        Ok(buffer.into_bytes(start - first, end - first))
    }

    pub(crate) async fn tree(self: &Arc<Self>, located: &Located) -> Result<SharedTree, ReadError> {
        let digest = located.digest;
        if let Some(tree) = self.trees.lock().get(&digest) {
            return Ok(Arc::clone(tree));
        }
        let place = Place { extent: located.extent, offset: located.offset };
        let read = self.read_pages(place, PAGE).await;
        self.still_held(located).await?;
        let page = read.map_err(|source| disk_error(digest, &source))?;
        let damaged = ReadError::Damaged { digest };
        let Ok((_, RecordPage::Block(block))) = format::read_record(&page, place, &self.secret) else {
            return Err(damaged);
        };
        if block.digest != digest || block.len != located.len {
            return Err(damaged);
        }
        let tree = GroupTree::from_chaining_values(block.len, &block.chain).map_err(|_| damaged)?;
        let tree = Arc::new(tree);
        self.trees.lock().put(digest, Arc::clone(&tree));
        Ok(tree)
    }

    pub(crate) async fn orders(
        self: &Arc<Self>,
        agreement: AgreementId,
        max: usize,
    ) -> Result<Vec<KeptOrder>, ReadError> {
        let rows = self
            .lookup(move |view| {
                let rows = view.scan(&OrderRow::rows_of(&agreement), max)?;
                rows.iter()
                    .map(|(key, value)| OrderRow::decode(value).ok_or_else(|| bad_row(key)))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let mut orders = Vec::with_capacity(rows.len());
        for row in rows {
            let len = row.len as usize;
            let place = Place { offset: row.place.offset + format::PAGE_BYTES, ..row.place };
            let pages = self
                .read_pages(place, len.next_multiple_of(PAGE))
                .await
                .map_err(|source| ReadError::Index { detail: format!("a deletion order: {source}") })?;
            let bytes = pages.into_bytes(0, len);
            orders.push(KeptOrder { agreement, kept_ms: row.kept_ms, bytes });
        }
        Ok(orders)
    }

    /// `len` bytes from `place` on; both are whole pages.
    async fn read_pages(&self, place: Place, len: usize) -> io::Result<AlignedBuf> {
        self.checks.reads.fetch_add(1, Ordering::Relaxed);
        let read = self.read_from_disk(place, len).await;
        if let Err(error) = &read {
            self.note_read_error(place, error);
        }
        read
    }

    async fn read_from_disk(&self, place: Place, len: usize) -> io::Result<AlignedBuf> {
        let file = self.file(place.extent)?;
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let buffer = self.read_pool.take(len).await.ok_or_else(too_long)?;
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| stopped())?;
        let (done, completed) = oneshot::channel();
        self.disk.submit(Request {
            file,
            action: Action::Read,
            offset: place.offset,
            len,
            buffer: Some(buffer),
            permit: Some(permit),
            done: Done::One(done),
        });
        let completion = completed.await.map_err(|_| stopped())?;
        completion.result?;
        completion.buffer.ok_or_else(stopped)
    }

    /// The same without a place among the readers and outside their memory: for whoever has time.
    pub(crate) async fn read_quietly(&self, place: Place, len: usize) -> io::Result<AlignedBuf> {
        let file = self.file(place.extent)?;
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let buffer = self.read_pool.take_unbounded(len).ok_or_else(too_long)?;
        let (done, completed) = oneshot::channel();
        let done = Done::One(done);
        let (action, offset) = (Action::Read, place.offset);
        self.disk.submit(Request { file, action, offset, len, buffer: Some(buffer), permit: None, done });
        let completion = completed.await.map_err(|_| stopped())?;
        completion.result?;
        completion.buffer.ok_or_else(stopped)
    }

    /// A block whose row is still the same was not punched before the read ended: rows go before bytes.
    async fn still_held(self: &Arc<Self>, located: &Located) -> Result<(), ReadError> {
        if self.punched.load(Ordering::Acquire) == located.punched {
            return Ok(());
        }
        let (digest, record) = (located.digest, located.record);
        let row = self.lookup(move |view| view.block(&digest)).await?;
        match row {
            Some(row) if row.record == record => Ok(()),
            Some(_) => Err(ReadError::Moved { digest }),
            None => Err(ReadError::Gone { digest }),
        }
    }
}

fn disk_error(digest: Digest, source: &io::Error) -> ReadError {
    ReadError::Disk { digest, detail: source.to_string() }
}
