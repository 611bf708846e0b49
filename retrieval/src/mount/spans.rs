//! Ranges fetched ahead of a strided reader, exactly as they will be asked for; gone once they were handed over.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::backend::BackendError;
use super::chunks::Load;
use super::pattern::RUN_MAX;

/// Spans of all files together.
const SPANS_MAX: usize = 256;

/// The table, bounded in spans and bytes.
#[derive(Debug)]
pub(super) struct Spans {
    capacity: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By version and start; those of one version may overlap.
    spans: BTreeMap<(u64, u64), Span>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Span {
    end: u64,
    load: Arc<Load>,
    served: u64,
    /// When it was claimed: the oldest goes first.
    at: u64,
}

/// Whoever claimed a span brings it; what is dropped unfinished has failed.
#[derive(Debug)]
pub(super) struct SpanClaim {
    pub(super) range: Range<u64>,
    load: Arc<Load>,
}

impl SpanClaim {
    pub(super) fn finish(self, result: Result<Bytes, BackendError>) {
        self.load.finish(result);
    }
}

impl Drop for SpanClaim {
    fn drop(&mut self) {
        self.load.finish(Err(BackendError::Unreachable { why: "the fetch was given up".to_owned() }));
    }
}

impl Spans {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity: capacity.max(RUN_MAX), inner: Mutex::default() }
    }

    /// Takes on the fetching of `range`, unless somebody did.
    pub(super) fn claim(&self, version: u64, range: Range<u64>) -> Option<SpanClaim> {
        let mut inner = self.inner.lock();
        if inner.spans.get(&(version, range.start)).is_some_and(|span| span.end >= range.end) {
            return None;
        }
        inner.clock += 1;
        let (at, load) = (inner.clock, Arc::new(Load::default()));
        let span = Span { end: range.end, load: Arc::clone(&load), served: 0, at };
        inner.bytes += range.end - range.start;
        if let Some(old) = inner.spans.insert((version, range.start), span) {
            inner.bytes -= old.end - range.start;
        }
        while inner.spans.len() > SPANS_MAX || inner.bytes > self.capacity {
            let oldest = inner.spans.iter().min_by_key(|(_, span)| span.at).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            inner.remove(oldest);
        }
        Some(SpanClaim { range, load })
    }

    /// The span that holds all of `range`, and where it starts.
    pub(super) fn find(&self, version: u64, range: &Range<u64>) -> Option<(u64, Arc<Load>)> {
        let mut inner = self.inner.lock();
        let (id, span) = inner.spans.range_mut((version, 0)..=(version, range.start)).next_back()?;
        if span.end < range.end {
            return None;
        }
        span.served += range.end - range.start;
        let (id, load) = (*id, Arc::clone(&span.load));
        if span.served >= span.end - id.1 {
            inner.remove(id);
        }
        Some((id.1, load))
    }
}

impl Inner {
    fn remove(&mut self, id: (u64, u64)) {
        if let Some(span) = self.spans.remove(&id) {
            self.bytes -= span.end - id.1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_span_is_claimed_once_waited_for_and_let_go_when_it_was_handed_over() {
        let spans = Spans::new(RUN_MAX);
        let claim = spans.claim(1, 100..200).expect("new");
        assert!(spans.claim(1, 100..200).is_none());
        let (start, load) = spans.find(1, &(100..150)).expect("there");
        assert!(spans.find(1, &(150..201)).is_none() && spans.find(2, &(100..150)).is_none());
        claim.finish(Ok(Bytes::from(vec![7; 100])));
        assert_eq!((start, load.wait().await.expect("came").len()), (100, 100));
        assert!(spans.find(1, &(150..200)).is_some());
        assert!(spans.find(1, &(150..200)).is_none(), "handed over whole");
        assert_eq!(spans.inner.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_claim_that_is_dropped_has_failed() {
        let spans = Spans::new(RUN_MAX);
        let claim = spans.claim(1, 0..10).expect("new");
        let (_, load) = spans.find(1, &(0..5)).expect("there");
        drop(claim);
        assert!(load.wait().await.is_err());
    }

    #[test]
    fn bytes_and_spans_stay_within_their_bounds() {
        let spans = Spans::new(RUN_MAX);
        for at in 0..1000u64 {
            spans.claim(1, at * RUN_MAX..at * RUN_MAX + RUN_MAX / 2);
        }
        assert_eq!(spans.inner.lock().bytes, RUN_MAX);
        for at in 0..1000u64 {
            spans.claim(2, at * 10..at * 10 + 5);
        }
        assert!(spans.inner.lock().spans.len() <= SPANS_MAX);
    }
}
