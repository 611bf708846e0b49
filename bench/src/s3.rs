//! The S3 operations that the benchmark performs, each checked: status, length and every byte.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::chunked;
use crate::client::{Body, Connection, Endpoint};
use crate::pattern::Pattern;
use crate::sigv4::{self, Credentials, EMPTY_SHA256, STREAMING_UNSIGNED, Target, UNSIGNED_PAYLOAD};

/// A 503 is tried again this often before the line fails.
const RETRIES_MAX: u32 = 20;
/// How long to wait after a 503.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// An answer that is not an object's bytes may be this long: a listing of 1,000 long keys, or an error.
const TEXT_ANSWER_MAX: usize = 4 * 1024 * 1024;

/// How a body is protected on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// `UNSIGNED-PAYLOAD`.
    Unsigned,
    /// Its SHA-256 is part of the signature.
    Signed,
    /// aws-chunked with a CRC64NVME trailer: what current AWS clients send.
    Crc64Trailer,
}

/// A body ready to be sent any number of times: its checksum was computed beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    key: String,
    offset: u64,
    len: u64,
    payload: Payload,
    sha256: Option<String>,
}

impl Upload {
    /// The bytes `offset..offset + len` of object `key`. Hashes them when `payload` is signed.
    pub(crate) fn prepare(pattern: &Pattern, key: &str, offset: u64, len: u64, payload: Payload) -> Self {
        let sha256 = (payload == Payload::Signed).then(|| {
            let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            pattern.frames(key, offset, len).for_each(|frame| context.update(&frame));
            hex::encode(context.finish())
        });
        Self { key: key.to_owned(), offset, len, payload, sha256 }
    }

    fn body(&self, pattern: &Pattern) -> Body {
        let frames = pattern.frames(&self.key, self.offset, self.len);
        match self.payload {
            Payload::Unsigned | Payload::Signed => Body::frames(frames, self.len),
            Payload::Crc64Trailer => {
                Body::frames(chunked::Chunks::new(frames, self.len), chunked::encoded_len(self.len))
            }
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.payload == Payload::Crc64Trailer {
            headers.insert("content-encoding", HeaderValue::from_static("aws-chunked"));
            headers.insert("x-amz-decoded-content-length", HeaderValue::from(self.len));
            headers.insert("x-amz-trailer", HeaderValue::from_static(chunked::TRAILER));
        }
        headers
    }

    fn signed_payload(&self) -> &str {
        match self.payload {
            Payload::Unsigned => UNSIGNED_PAYLOAD,
            Payload::Signed => self.sha256.as_deref().unwrap_or(UNSIGNED_PAYLOAD),
            Payload::Crc64Trailer => STREAMING_UNSIGNED,
        }
    }
}

/// Which page of which listing; what is empty is not asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    /// Only keys that begin with this.
    pub(crate) prefix: &'a str,
    /// Roll up behind this.
    pub(crate) delimiter: &'a str,
    /// Only keys behind this.
    pub(crate) start_after: &'a str,
    /// Go on where a page ended.
    pub(crate) token: &'a str,
}

/// What a page of a listing has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// How many keys.
    pub(crate) keys: usize,
    /// How many common prefixes.
    pub(crate) folders: usize,
    /// Its first key.
    pub(crate) first: String,
    /// Its last key.
    pub(crate) last: String,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<String>,
}

/// What all sessions of a run share.
pub(crate) struct Server {
    /// Where it is.
    pub(crate) endpoint: Endpoint,
    /// With which key.
    pub(crate) credentials: Credentials,
    /// In which bucket.
    pub(crate) bucket: String,
    /// What the objects are made of.
    pub(crate) pattern: Pattern,
}

/// One client with one connection.
pub(crate) struct Session {
    server: Arc<Server>,
    connection: Option<Connection>,
    /// How often a 503 was answered and tried again.
    pub(crate) retries: u64,
}

impl Session {
    /// A client that connects with its first request.
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self { server: Arc::clone(server), connection: None, retries: 0 }
    }

    /// Makes the bucket; one that exists already is fine.
    pub(crate) async fn create_bucket(&mut self) -> Result<()> {
        let server = Arc::clone(&self.server);
        let call = Call::new(Method::PUT, None);
        let answer = self.call_once(&server, &call, Body::empty()).await?;
        let status = answer.status();
        let text = text_of(answer).await?;
        if !status.is_success() && status != StatusCode::CONFLICT {
            bail!("creating bucket {}: {status}: {text}", server.bucket);
        }
        Ok(())
    }

    /// Stores an object in one request.
    pub(crate) async fn put(&mut self, upload: &Upload) -> Result<()> {
        let call = Call { upload: Some(upload), ..Call::new(Method::PUT, Some(&upload.key)) };
        self.call(&call).await.map(drop)
    }

    /// Starts a multipart upload; returns its id.
    pub(crate) async fn create_multipart(&mut self, key: &str) -> Result<String> {
        let call = Call { query: &[("uploads", "")], ..Call::new(Method::POST, Some(key)) };
        let (_, text) = self.call(&call).await?;
        let id = between(&text, "<UploadId>", "</UploadId>").context("the answer has no UploadId")?;
        Ok(id.to_owned())
    }

    /// Stores a part; returns its ETag.
    pub(crate) async fn upload_part(&mut self, upload: &Upload, id: &str, number: u32) -> Result<String> {
        let number = number.to_string();
        let query = [("partNumber", &*number), ("uploadId", id)];
        let call = Call { upload: Some(upload), query: &query, ..Call::new(Method::PUT, Some(&upload.key)) };
        let (headers, _) = self.call(&call).await?;
        let etag = headers.get("etag").context("a part was answered without an ETag")?;
        Ok(etag.to_str()?.to_owned())
    }

    /// Ends a multipart upload.
    pub(crate) async fn complete_multipart(&mut self, key: &str, id: &str, etags: &[String]) -> Result<()> {
        let parts: String = (1..)
            .zip(etags)
            .map(|(number, etag): (u32, _)| {
                format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
            })
            .collect();
        let text = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let query = [("uploadId", id)];
        let call =
            Call { text: Some(Bytes::from(text)), query: &query, ..Call::new(Method::POST, Some(key)) };
        let (_, answer) = self.call(&call).await?;
        if answer.contains("<Error>") {
            bail!("completing the upload of {key}: {answer}");
        }
        Ok(())
    }

    /// Reads `offset..offset + len` of an object and compares every byte. `whole` asks without a range.
    pub(crate) async fn get(&mut self, key: &str, offset: u64, len: u64, whole: bool) -> Result<()> {
        let read = self.read(key, offset, len, whole, |_| true).await?;
        if read != len {
            bail!("GET {key}, {len} bytes at {offset}: {read} bytes came");
        }
        Ok(())
    }

    /// Reads an object from `offset` on, comparing, for as long as `go_on` says after each frame's length.
    /// Returns the bytes read. Stopping early closes the connection.
    pub(crate) async fn read(
        &mut self,
        key: &str,
        offset: u64,
        len: u64,
        whole: bool,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let server = Arc::clone(&self.server);
        let range = (!whole).then(|| format!("bytes={offset}-{}", offset + len - 1));
        let call = Call { range: range.as_deref(), ..Call::new(Method::GET, Some(key)) };
        let answer = self.call_until_served(&server, &call).await?;
        let expected = if whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        if answer.status() != expected {
            bail!("GET {key}: {}: {}", answer.status(), text_of(answer).await?);
        }
        let mut check = server.pattern.check(key, offset);
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("GET {key} broke off after {}", check.checked()))?;
            if let Some(data) = frame.data_ref() {
                check.next(data)?;
                if !go_on(data.len() as u64) {
                    self.connection = None;
                    break;
                }
            }
        }
        Ok(check.checked())
    }

    /// A GET with a query; the answer's bytes.
    pub(crate) async fn get_bytes(&mut self, key: &str, query: &[(&str, &str)]) -> Result<Bytes> {
        let server = Arc::clone(&self.server);
        let call = Call { query, ..Call::new(Method::GET, Some(key)) };
        let answer = self.call_until_served(&server, &call).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("GET {key}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    /// One page of ListObjectsV2.
    pub(crate) async fn list(&mut self, asked: &Asked<'_>) -> Result<Listing> {
        let pairs = [
            ("list-type", "2"),
            ("max-keys", "1000"),
            ("prefix", asked.prefix),
            ("delimiter", asked.delimiter),
            ("start-after", asked.start_after),
            ("continuation-token", asked.token),
        ];
        let query: Vec<(&str, &str)> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let call = Call { query: &query, ..Call::new(Method::GET, None) };
        let (_, text) = self.call(&call).await?;
        let last = text.rsplit_once("<Key>").and_then(|(_, rest)| rest.split_once("</Key>"));
        Ok(Listing {
            keys: text.matches("<Key>").count(),
            folders: text.matches("<CommonPrefixes>").count(),
            first: between(&text, "<Key>", "</Key>").unwrap_or_default().to_owned(),
            last: last.map(|(key, _)| key.to_owned()).unwrap_or_default(),
            next: between(&text, "<NextContinuationToken>", "</NextContinuationToken>").map(str::to_owned),
        })
    }

    async fn call(&mut self, call: &Call<'_>) -> Result<(HeaderMap, String)> {
        let server = Arc::clone(&self.server);
        let answer = self.call_until_served(&server, call).await?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let text = text_of(answer).await?;
        if !status.is_success() {
            bail!("{} {}: {status}: {text}", call.method, call.key.unwrap_or_default());
        }
        Ok((headers, text))
    }

    /// Tries again, within a budget, while the server says 503.
    async fn call_until_served(&mut self, server: &Server, call: &Call<'_>) -> Result<Response<Incoming>> {
        let mut tries = 0;
        loop {
            let body = match (call.upload, &call.text) {
                (Some(upload), _) => upload.body(&server.pattern),
                (None, Some(text)) => Body::full(text.clone()),
                (None, None) => Body::empty(),
            };
            let answer = self.call_once(server, call, body).await?;
            if answer.status() != StatusCode::SERVICE_UNAVAILABLE || tries == RETRIES_MAX {
                return Ok(answer);
            }
            tries += 1;
            self.retries += 1;
            self.connection = None;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn call_once(
        &mut self,
        server: &Server,
        call: &Call<'_>,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let request = call.request(server, body)?;
        let connection = match self.connection.take() {
            Some(connection) if connection.is_open() => connection,
            _ => Connection::open(&server.endpoint).await?,
        };
        self.connection.insert(connection).send(request).await
    }
}

/// One request, before it is signed.
struct Call<'a> {
    method: Method,
    key: Option<&'a str>,
    query: &'a [(&'a str, &'a str)],
    range: Option<&'a str>,
    upload: Option<&'a Upload>,
    text: Option<Bytes>,
}

impl<'a> Call<'a> {
    fn new(method: Method, key: Option<&'a str>) -> Self {
        Self { method, key, query: &[], range: None, upload: None, text: None }
    }

    fn request(&self, server: &Server, body: Body) -> Result<Request<Body>> {
        let path = match self.key {
            Some(key) => format!("/{}/{}", server.bucket, sigv4::encode(key, true)),
            None => format!("/{}", server.bucket),
        };
        let mut headers = self.upload.map(Upload::headers).unwrap_or_default();
        headers.insert(http::header::HOST, HeaderValue::from_str(&server.endpoint.host)?);
        if let Some(range) = self.range {
            headers.insert(http::header::RANGE, HeaderValue::from_str(range)?);
        }
        let payload = match (self.upload, &self.text) {
            (Some(upload), _) => upload.signed_payload(),
            (None, Some(_)) => UNSIGNED_PAYLOAD,
            (None, None) => EMPTY_SHA256,
        };
        let target = Target { method: &self.method, path: &path, query: self.query, payload };
        let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        sigv4::sign(&server.credentials, &target, &mut headers, &date)?;
        let uri = match self.query {
            [] => path,
            query => format!("{path}?{}", sigv4::canonical_query(query)),
        };
        let mut request = Request::builder().method(self.method.clone()).uri(uri).body(body)?;
        *request.headers_mut() = headers;
        // A request that may have a body must say when it has none; hyper says it for bodies alone.
        let has_bytes =
            self.upload.is_some_and(|upload| upload.len > 0 || upload.payload == Payload::Crc64Trailer);
        if self.method != Method::GET && !has_bytes && self.text.is_none() {
            request
                .headers_mut()
                .insert(HeaderName::from_static("content-length"), HeaderValue::from_static("0"));
        }
        Ok(request)
    }
}

async fn text_of(answer: Response<Incoming>) -> Result<String> {
    let body = http_body_util::Limited::new(answer.into_body(), TEXT_ANSWER_MAX);
    let bytes = body.collect().await.map_err(|error| anyhow::anyhow!("reading an answer: {error}"))?;
    Ok(String::from_utf8_lossy(&bytes.to_bytes()).into_owned())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inside, _)| inside)
}
