//! The mount's backend: objects of one bucket, over S3.
//!
//! Every request is signed for itself and may be repeated. Nothing here retries or waits: the mount's patience does.

use std::ops::Range;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use holdfast_retrieval::mount::{
    Backend, BackendError, ByteStream, ListPage, ListRequest, Listed, Stat, WriteIf,
};
use http::header::{CONTENT_LENGTH, ETAG, IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rusty_s3::actions::{CompleteMultipartUpload, CreateMultipartUpload, ListObjectsV2};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use super::ranges::{Range as Answer, Ranges};
use crate::network::Access;

const REGION: &str = "us-east-1";
/// A presigned URL is used at once, or again for reads of the same object within half of this.
const PRESIGNED_FOR: Duration = Duration::from_secs(900);
/// Read URLs kept: signing costs as much as a small read.
const READ_URLS_MAX: usize = 1024;
/// The longest answer that is read whole: a page of 1,000 keys of 1 KiB, in XML.
const ANSWER_LEN_MAX: usize = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections kept open: as many as the kernel may have requests.
const IDLE_CONNECTIONS_MAX: usize = 128;
const CHECKSUM: &str = "x-amz-checksum-crc64nvme";
const CID: &str = "x-holdfast-cid";
/// Asks a gateway of ours to move an object instead of copying it; the answer repeats it when that was done.
const RENAME: &str = "x-holdfast-rename";

/// One bucket behind one gateway.
#[derive(Debug)]
pub(crate) struct GatewayBackend {
    client: Client<HttpConnector, Full<Bytes>>,
    bucket: Bucket,
    credentials: Credentials,
    read_urls: parking::ReadUrls,
    /// How bodies are read, where the gateway is spoken to in plain HTTP.
    ranges: Option<std::sync::Arc<Ranges>>,
}

impl GatewayBackend {
    pub(crate) fn new(access: &Access, bucket: &str) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        let bucket = Bucket::new(access.s3.clone(), UrlStyle::Path, bucket.to_owned(), REGION)?;
        let credentials = access.credentials.clone();
        let ranges = Ranges::new(&access.s3);
        Ok(Self { client, bucket, credentials, read_urls: parking::ReadUrls::default(), ranges })
    }

    /// Sends a signed request; an answer that is no success becomes an error.
    async fn send(
        &self,
        key: &str,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, BackendError> {
        let is_head = method == Method::HEAD;
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(all) = request.headers_mut() {
            all.extend(headers);
            all.insert(CONTENT_LENGTH, body.len().into());
        }
        let refused = |why: String| BackendError::Refused { key: key.to_owned(), why };
        let request = request.body(Full::new(body)).map_err(|error| refused(error.to_string()))?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| BackendError::Unreachable { why: chain(&error) })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let answer = if is_head { String::new() } else { text(response).await? };
        Err(failure(key, status, &answer))
    }

    fn read_url(&self, key: &str) -> Url {
        if let Some(url) = self.read_urls.find(key) {
            return url;
        }
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(PRESIGNED_FOR);
        self.read_urls.insert(key, url.clone());
        url
    }
}

impl GatewayBackend {
    /// The same by the general client, whose bodies may come in any way.
    async fn read_anyhow(
        &self,
        key: &str,
        url: &Url,
        etag: &str,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let mut headers = HeaderMap::new();
        let wanted = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        for (name, value) in [(RANGE, wanted.as_str()), (IF_MATCH, etag)] {
            headers.insert(name, HeaderValue::from_str(value).map_err(|_| unreadable(key, "entity tag"))?);
        }
        let response = match self.send(key, Method::GET, url, headers, Bytes::new()).await {
            Err(error) => return Err(gone_is_changed(error)),
            Ok(sent) => sent,
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(unreadable(key, "answer to a range"));
        }
        let frames = stream::unfold(response.into_body(), |mut body| async move {
            loop {
                match body.frame().await? {
                    Ok(frame) => match frame.into_data() {
                        Ok(bytes) => return Some((Ok(bytes), body)),
                        Err(_) => continue,
                    },
                    Err(error) => {
                        let broken = BackendError::Unreachable { why: chain(&error) };
                        return Some((Err(broken), body));
                    }
                }
            }
        });
        Ok(frames.boxed())
    }
}

/// Deleted since it was opened: its readers hold on to something that is gone.
fn gone_is_changed(error: BackendError) -> BackendError {
    match error {
        BackendError::NotFound { key } => BackendError::Changed { key },
        error => error,
    }
}

/// Read URLs that were signed a moment ago.
mod parking {
    use super::{Duration, Instant, PRESIGNED_FOR, READ_URLS_MAX, Url};
    use std::collections::HashMap;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    pub(super) struct ReadUrls(Mutex<HashMap<String, (Url, Instant)>>);

    const USED_FOR: Duration = Duration::from_secs(PRESIGNED_FOR.as_secs() / 2);

    impl ReadUrls {
        pub(super) fn find(&self, key: &str) -> Option<Url> {
            let urls = self.0.lock().ok()?;
            let (url, signed) = urls.get(key)?;
            (signed.elapsed() < USED_FOR).then(|| url.clone())
        }

        pub(super) fn insert(&self, key: &str, url: Url) {
            if let Ok(mut urls) = self.0.lock() {
                if urls.len() >= READ_URLS_MAX {
                    urls.clear();
                }
                urls.insert(key.to_owned(), (url, Instant::now()));
            }
        }
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Reads an answer whole, within [`ANSWER_LEN_MAX`].
async fn text(response: Response<Incoming>) -> Result<String, BackendError> {
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
    let body = body.map_err(|error| BackendError::Unreachable { why: error.to_string() })?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// What an answer that is no success means.
fn failure(key: &str, status: StatusCode, answer: &str) -> BackendError {
    let key = key.to_owned();
    let code = element(answer, "Code").unwrap_or_default();
    let why = match element(answer, "Message") {
        Some(message) => format!("{status} {code}: {message}"),
        None => status.to_string(),
    };
    match (status, code) {
        (_, "QuotaExceeded" | "InsufficientStorage") | (StatusCode::INSUFFICIENT_STORAGE, _) => {
            BackendError::NoSpace { key, why }
        }
        (_, "EntityTooLarge") | (StatusCode::PAYLOAD_TOO_LARGE, _) => BackendError::TooLarge { key },
        (StatusCode::NOT_FOUND, _) => BackendError::NotFound { key },
        (StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            BackendError::Changed { key }
        }
        (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, _) => BackendError::Denied { key, why },
        (StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS, _) => {
            BackendError::Busy { why }
        }
        (status, _) if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
            BackendError::Busy { why }
        }
        _ => BackendError::Refused { key, why },
    }
}

/// The text of the first `<name>` of a small XML answer.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn unreadable(key: &str, what: &str) -> BackendError {
    BackendError::Refused { key: key.to_owned(), why: format!("the gateway's {what} cannot be read") }
}

/// An entity tag as headers carry it: in quotes.
fn quoted(etag: &str) -> Box<str> {
    let bare = etag.replace("&quot;", "\"");
    format!("\"{}\"", bare.trim_matches('"')).into()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What the headers of an answer about an object say.
fn stat_of(key: &str, headers: &HeaderMap, size: Option<u64>) -> Result<Stat, BackendError> {
    let length = || header(headers, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
    let etag = header(headers, ETAG.as_str()).ok_or_else(|| unreadable(key, "entity tag"))?;
    let modified = header(headers, LAST_MODIFIED.as_str())
        .and_then(|text| jiff::fmt::rfc2822::parse(text).ok())
        .map_or_else(now_ms, |time| milliseconds(time.timestamp()));
    Ok(Stat {
        size: size.or_else(length).ok_or_else(|| unreadable(key, "length"))?,
        etag: quoted(etag),
        modified_ms: modified,
        cid: header(headers, CID).map(Into::into),
    })
}

fn milliseconds(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

fn now_ms() -> u64 {
    milliseconds(jiff::Timestamp::now())
}

fn crc64nvme(bytes: &[u8]) -> String {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    base64::engine::general_purpose::STANDARD.encode(sum.to_be_bytes())
}

fn condition_header(condition: WriteIf, headers: &mut HeaderMap) {
    if condition == WriteIf::Absent {
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
    }
}

fn checksum_header(checksum: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(checksum) {
        headers.insert(HeaderName::from_static(CHECKSUM), value);
    }
    headers
}

/// `/bucket/key`, percent-encoded, as a copy names its source.
fn copy_source(url: &Url) -> String {
    url.path().to_owned()
}

#[async_trait]
impl Backend for GatewayBackend {
    async fn stat(&self, key: &str) -> Result<Stat, BackendError> {
        let url = self.bucket.head_object(Some(&self.credentials), key).sign(PRESIGNED_FOR);
        let response = self.send(key, Method::HEAD, &url, HeaderMap::new(), Bytes::new()).await?;
        stat_of(key, response.headers(), None)
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<ListPage, BackendError> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        action.with_prefix(request.prefix);
        action.with_max_keys(request.max);
        if request.one_level {
            action.with_delimiter("/");
        }
        if let Some(after) = request.after {
            action.with_continuation_token(after);
        }
        let url = action.sign(PRESIGNED_FOR);
        let prefix = request.prefix;
        let response = self.send(prefix, Method::GET, &url, HeaderMap::new(), Bytes::new()).await?;
        let answer = text(response).await?;
        let parsed = ListObjectsV2::parse_response(&answer).map_err(|_| unreadable(prefix, "listing"))?;
        let objects = parsed.contents.into_iter().map(|item| {
            let modified = item.last_modified.and_then(|text| text.parse().ok()).map_or(0, milliseconds);
            let etag = quoted(item.etag.as_deref().unwrap_or_default());
            let stat = Stat { size: item.size.unwrap_or(0), etag, modified_ms: modified, cid: None };
            Listed { key: item.key, stat }
        });
        Ok(ListPage {
            objects: objects.collect(),
            prefixes: parsed.common_prefixes.into_iter().map(|item| item.prefix).collect(),
            next: parsed.next_continuation_token,
        })
    }

    async fn read(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ByteStream, BackendError> {
        let url = self.read_url(key);
        // It becomes a line of a request.
        HeaderValue::from_str(etag).map_err(|_| unreadable(key, "entity tag"))?;
        let asked = match &self.ranges {
            Some(ranges) => ranges.read(&url, etag, range.clone()).await?,
            None => Answer::Unusual,
        };
        let error = match asked {
            Answer::Body(body) => return Ok(body),
            Answer::Refused(status, said) if !status.is_success() => failure(key, status, &said),
            Answer::Refused(..) => unreadable(key, "answer to a range"),
            Answer::Unusual => return self.read_anyhow(key, &url, etag, range).await,
        };
        Err(gone_is_changed(error))
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: WriteIf) -> Result<Stat, BackendError> {
        let checksum = crc64nvme(&bytes);
        let mut action = self.bucket.put_object(Some(&self.credentials), key);
        action.headers_mut().insert(CHECKSUM, checksum.clone());
        let mut headers = checksum_header(&checksum);
        condition_header(condition, &mut headers);
        let size = bytes.len() as u64;
        let response = self.send(key, Method::PUT, &action.sign(PRESIGNED_FOR), headers, bytes).await?;
        stat_of(key, response.headers(), Some(size))
    }

    async fn create_upload(&self, key: &str) -> Result<String, BackendError> {
        let url = self.bucket.create_multipart_upload(Some(&self.credentials), key).sign(PRESIGNED_FOR);
        let response = self.send(key, Method::POST, &url, HeaderMap::new(), Bytes::new()).await?;
        let answer = text(response).await?;
        let parsed =
            CreateMultipartUpload::parse_response(&answer).map_err(|_| unreadable(key, "upload id"))?;
        Ok(parsed.upload_id().to_owned())
    }

    async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        bytes: Bytes,
    ) -> Result<String, BackendError> {
        let checksum = crc64nvme(&bytes);
        let mut action = self.bucket.upload_part(Some(&self.credentials), key, number, upload);
        action.headers_mut().insert(CHECKSUM, checksum.clone());
        let url = action.sign(PRESIGNED_FOR);
        let response = self.send(key, Method::PUT, &url, checksum_header(&checksum), bytes).await?;
        let etag = header(response.headers(), ETAG.as_str()).ok_or_else(|| unreadable(key, "part's tag"))?;
        Ok(etag.to_owned())
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        condition: WriteIf,
    ) -> Result<Stat, BackendError> {
        let tags = tags.iter().map(String::as_str);
        let action = CompleteMultipartUpload::new(&self.bucket, Some(&self.credentials), key, upload, tags);
        let url = action.sign(PRESIGNED_FOR);
        let body = Bytes::from(action.body());
        let mut headers = HeaderMap::new();
        condition_header(condition, &mut headers);
        let response = self.send(key, Method::POST, &url, headers, body).await?;
        let answer = text(response).await?;
        // S3 may answer 200 and fail afterwards.
        if let Some(code) = element(&answer, "Code") {
            let status = match code {
                "PreconditionFailed" => StatusCode::PRECONDITION_FAILED,
                "NoSuchUpload" => StatusCode::NOT_FOUND,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return Err(failure(key, status, &answer));
        }
        self.stat(key).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), BackendError> {
        let action = self.bucket.abort_multipart_upload(Some(&self.credentials), key, upload);
        let url = action.sign(PRESIGNED_FOR);
        self.send(key, Method::DELETE, &url, HeaderMap::new(), Bytes::new()).await.map(drop)
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        let url = self.bucket.delete_object(Some(&self.credentials), key).sign(PRESIGNED_FOR);
        self.send(key, Method::DELETE, &url, HeaderMap::new(), Bytes::new()).await.map(drop)
    }

    async fn rename(&self, from: &str, to: &str, condition: WriteIf) -> Result<(), BackendError> {
        let source = copy_source(&self.bucket.get_object(None, from).sign(PRESIGNED_FOR));
        let mut action = self.bucket.put_object(Some(&self.credentials), to);
        action.headers_mut().insert("x-amz-copy-source", source.clone());
        action.headers_mut().insert(RENAME, "true");
        let mut headers = HeaderMap::new();
        let source = HeaderValue::from_str(&source).map_err(|_| unreadable(from, "key"))?;
        headers.insert(HeaderName::from_static("x-amz-copy-source"), source);
        headers.insert(HeaderName::from_static(RENAME), HeaderValue::from_static("true"));
        condition_header(condition, &mut headers);
        let url = action.sign(PRESIGNED_FOR);
        let response = self.send(to, Method::PUT, &url, headers, Bytes::new()).await?;
        if header(response.headers(), RENAME) == Some("true") {
            return Ok(());
        }
        // A gateway that only copies: what was copied is there, so its source may go.
        self.delete(from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_errors_with_their_own_errno() {
        let error = |status, code: &str| {
            failure("k", status, &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"))
        };
        assert!(matches!(error(StatusCode::NOT_FOUND, "NoSuchKey"), BackendError::NotFound { .. }));
        assert!(matches!(error(StatusCode::PRECONDITION_FAILED, ""), BackendError::Changed { .. }));
        assert!(matches!(error(StatusCode::FORBIDDEN, "AccessDenied"), BackendError::Denied { .. }));
        assert!(matches!(error(StatusCode::BAD_REQUEST, "EntityTooLarge"), BackendError::TooLarge { .. }));
        assert!(matches!(error(StatusCode::BAD_REQUEST, "InvalidArgument"), BackendError::Refused { .. }));
        assert!(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown").is_retryable());
        assert!(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError").is_retryable());
        assert!(!error(StatusCode::NOT_IMPLEMENTED, "NotImplemented").is_retryable());
    }

    #[test]
    fn tags_have_quotes_wherever_they_come_from() {
        for text in ["abc", "\"abc\"", "&quot;abc&quot;"] {
            assert_eq!(&*quoted(text), "\"abc\"");
        }
    }
}
