//! A request from its head to the last byte of its answer: whose it is, what it may hold, and what is written down of it.
//!
//! The S3 library looks secrets up by access key alone and forgets the request's head meanwhile, so the session travels
//! beside it as a task-local. It never decides what is allowed; that is [`super::access`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::condition::Facts;
use crate::gateway::Core;
use crate::gateway::listen::{BoxError, Peer};
use crate::keys::{AccessKey, Place, Token, trail};
use crate::meta::Bucket;

/// The header and the parameter of a token beside a signature, as AWS names them.
const TOKEN_HEADER: &str = "x-amz-security-token";
const TOKEN_PARAMETER: &str = "X-Amz-Security-Token";
/// The parameter of a token that is a right by itself.
const LINK_PARAMETER: &str = "x-holdfast-token";

tokio::task_local! {
    static CURRENT: Arc<Session>;
}

/// One request.
pub(crate) struct Session {
    core: Arc<Core>,
    /// A token that came beside a signature.
    pub(super) signed_token: Option<String>,
    /// A token that came alone.
    pub(super) bearer_token: Option<String>,
    bytes_in: u64,
    facts: Facts,
    state: Mutex<State>,
}

/// What is learned of a request on its way.
#[derive(Default)]
struct State {
    key: Option<Arc<AccessKey>>,
    token: Option<Arc<Token>>,
    place: Option<Place>,
    /// The bucket's row, as access was decided on it.
    row: Option<Bucket>,
    operation: String,
    bucket: String,
    object: String,
    status: u16,
}

impl Session {
    /// Reads what the head of a request says.
    pub(super) fn begin<B>(core: &Arc<Core>, request: &Request<B>) -> Arc<Self> {
        let headers = request.headers();
        let header = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Arc::new(Self {
            core: Arc::clone(core),
            signed_token: header.or_else(|| parameter(request.uri(), TOKEN_PARAMETER)),
            bearer_token: parameter(request.uri(), LINK_PARAMETER),
            bytes_in: declared_len(headers),
            facts: Facts::of(request, request.extensions().get::<Peer>().copied()),
            state: Mutex::default(),
        })
    }

    /// Runs `work` as part of this request.
    pub(super) async fn scope<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        CURRENT.scope(Arc::clone(self), work).await
    }

    /// The request that is being worked on.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// What conditions of policies look at.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes that the request brings.
    pub(super) fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// What is asked for.
    pub(super) fn asks_for(&self, operation: &str, bucket: &str, object: &str) {
        let mut state = self.state.lock();
        state.operation = operation.to_owned();
        state.bucket = bucket.to_owned();
        state.object = object.to_owned();
    }

    /// The token that a signature was made with.
    pub(super) fn set_token(&self, token: Arc<Token>) {
        self.state.lock().token = Some(token);
    }

    pub(super) fn token(&self) -> Option<Arc<Token>> {
        self.state.lock().token.clone()
    }

    /// Whose request it is.
    pub(super) fn belongs_to(&self, key: Arc<AccessKey>) {
        self.state.lock().key = Some(key);
    }

    /// Its place among the key's others.
    pub(super) fn holds(&self, place: Place) {
        self.state.lock().place = Some(place);
    }

    /// Access was decided on this row.
    pub(super) fn decided_on(&self, bucket: &Bucket) {
        self.state.lock().row = Some(bucket.clone());
    }

    /// The row that access was decided on, once: whoever looks again wants to know what is there by then.
    pub(super) fn take_bucket(&self, name: &str) -> Option<Bucket> {
        self.state.lock().row.take_if(|bucket| bucket.name == name)
    }

    /// The answer, which keeps the session until its last byte.
    pub(super) fn answered<B>(self: Arc<Self>, response: Response<B>) -> Response<Metered<B>> {
        self.state.lock().status = response.status().as_u16();
        response.map(|inner| Metered { inner, session: self, bytes_out: 0 })
    }

    fn finish(&self, bytes_out: u64) {
        let state = std::mem::take(&mut *self.state.lock());
        if let Some(place) = &state.place {
            place.transferred(self.bytes_in.saturating_add(bytes_out));
        }
        let is_forbidden = state.status == StatusCode::FORBIDDEN.as_u16()
            || state.status == StatusCode::UNAUTHORIZED.as_u16();
        let is_refused = is_forbidden || state.status == StatusCode::SERVICE_UNAVAILABLE.as_u16();
        if let Some(key) = &state.key {
            // A body that was refused did not come through.
            let bytes_in = if state.status < 400 { self.bytes_in } else { 0 };
            self.core.key_usage.count(key.id(), is_refused, bytes_in, bytes_out);
        }
        let Some(trail) = &self.core.trail else { return };
        // Being too fast is no deed; it is counted, and whoever does it would fill the disk with it.
        let is_read = !self.core.config.trail_reads && is_read(&state.operation);
        if !is_forbidden && (is_read || is_refused) {
            return;
        }
        trail.add(trail::Entry {
            at_ms: self.core.config.clock.now_ms(),
            key: state.key.as_ref().map(|key| key.id().to_owned()).unwrap_or_default(),
            person: state.key.as_ref().map(|key| key.person.clone()).unwrap_or_default(),
            operation: state.operation,
            bucket: state.bucket,
            object: state.object,
            status: state.status,
            bytes_in: self.bytes_in,
            bytes_out,
        });
    }
}

/// Whose memory an upload takes: a person that is not the owner has a share and no more.
pub(crate) fn tenant() -> Option<String> {
    let session = Session::current()?;
    let state = session.state.lock();
    let key = state.key.as_ref()?;
    (!key.rules.is_owner()).then(|| key.person.clone())
}

/// Operations that change nothing.
fn is_read(operation: &str) -> bool {
    operation.starts_with("Get") || operation.starts_with("Head") || operation.starts_with("List")
}

/// Bytes of the body as the client means it, without the marks of chunks.
pub(super) fn declared_len(headers: &HeaderMap) -> u64 {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
    number("x-amz-decoded-content-length").or_else(|| number("content-length")).unwrap_or(0)
}

/// A query parameter's decoded value.
fn parameter(uri: &Uri, wanted: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(name, _)| *name == wanted)?;
    Some(super::refuse::decode(value))
}

/// A body that is counted, and ends its session when it ends, however it ends.
pub(crate) struct Metered<B> {
    inner: B,
    session: Arc<Session>,
    bytes_out: u64,
}

impl<B> Drop for Metered<B> {
    fn drop(&mut self) {
        self.session.finish(self.bytes_out);
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.bytes_out += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
