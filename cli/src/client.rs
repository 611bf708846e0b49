//! HTTP to a gateway: presigned S3 requests and the admin API. Bodies stream; nothing is read without a bound.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use holdfast_protocol::NodeId;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusty_s3::actions::{CompleteMultipartUpload, CreateMultipartUpload, ListObjectsV2, ListParts};
use rusty_s3::{Bucket, S3Action, UrlStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::network::Access;

/// A presigned URL is used at once; the rest is allowance for clocks.
const PRESIGNED_FOR: Duration = Duration::from_secs(900);
/// The longest answer that is read whole: a page of 1,000 keys of 1 KiB, in XML.
const ANSWER_LEN_MAX: usize = 16 * 1024 * 1024;
/// How often a request that the gateway asks to slow down is tried.
const ATTEMPTS_MAX: u32 = 5;

/// A pooled HTTP client with TCP_NODELAY; speaks TLS to those whose certificates the system trusts.
#[derive(Debug, Clone)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trusting_the_system())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// A file by GET, whole; `None` when it is not there.
    pub(crate) async fn fetch(&self, url: &Url) -> Result<Option<Vec<u8>>> {
        let response = self.send(Method::GET, url, &HeaderMap::new(), Bytes::new()).await?;
        let (status, _, body) = read_all(response).await?;
        match status {
            StatusCode::OK => Ok(Some(body.to_vec())),
            StatusCode::NOT_FOUND => Ok(None),
            other => bail!("{url} was answered with {other}"),
        }
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(all) = request.headers_mut() {
            all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            // Said also when it is 0: S3 refuses a body of unknown length.
            all.insert(http::header::CONTENT_LENGTH, body.len().into());
        }
        let request = request.body(Full::new(body)).context("cannot form the request")?;
        let host = url.host_str().unwrap_or("?").to_owned();
        self.0.request(request).await.with_context(|| {
            format!(
                "{host}:{} does not answer; is the gateway running?",
                url.port_or_known_default().unwrap_or(0)
            )
        })
    }
}

/// TLS under the certificates that the system trusts, or those of `SSL_CERT_FILE`. Where there are none, no peer is
/// trusted; plain HTTP goes on.
fn trusting_the_system() -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of its own default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Reads an answer whole, within [`ANSWER_LEN_MAX`].
async fn read_all(response: Response<Incoming>) -> Result<(StatusCode, HeaderMap, Bytes)> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LEN_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("the answer broke off or is too long: {error}"))?;
    Ok((parts.status, parts.headers, body.to_bytes()))
}

/// The admin API of a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    http: Http,
    base: Url,
    token: String,
}

impl Admin {
    pub(crate) fn new(base: Url, token: String) -> Self {
        Self { http: Http::new(), base, token }
    }

    pub(crate) fn of(access: &Access) -> Result<Self> {
        let (base, token) = access.admin()?;
        Ok(Self::new(base, token))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Bytes::from(serde_json::to_vec(body)?)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// The status of `/healthz`, or `None` while nobody listens.
    pub(crate) async fn is_healthy(&self) -> Result<bool> {
        let url = self.base.join("healthz")?;
        match self.http.send(Method::GET, &url, &HeaderMap::new(), Bytes::new()).await {
            Ok(response) => Ok(response.status() == StatusCode::OK),
            Err(_) => Ok(false),
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let body = self.ask(method, path, body).await?;
        serde_json::from_slice(&body)
            .with_context(|| format!("the gateway's answer to {path} cannot be read"))
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let url = self.base.join(path)?;
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, format!("Bearer {}", self.token).parse()?);
        headers.insert(http::header::CONTENT_TYPE, "application/json".parse()?);
        let (status, _, body) = read_all(self.http.send(method, &url, &headers, body).await?).await?;
        if !status.is_success() {
            let said = serde_json::from_slice::<serde_json::Value>(&body)
                .ok()
                .and_then(|value| value["error"].as_str().map(str::to_owned))
                .unwrap_or_else(|| String::from_utf8_lossy(&body).chars().take(300).collect());
            bail!("the gateway answered {status} to {path}: {said}");
        }
        Ok(body)
    }
}

/// An S3 client for one gateway.
#[derive(Debug, Clone)]
pub(crate) struct S3 {
    http: Http,
    access: Access,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Listed {
    /// Its key.
    pub(crate) key: String,
    /// Its size; 0 for a prefix.
    pub(crate) size: u64,
    /// Its entity tag, as the listing has it.
    #[serde(skip)]
    pub(crate) etag: Option<String>,
    /// When it was written, as the gateway says it.
    pub(crate) last_modified: Option<String>,
    /// Whether this is a common prefix rather than an object.
    pub(crate) is_prefix: bool,
}

/// One page of a listing.
pub(crate) struct Page {
    pub(crate) items: Vec<Listed>,
    pub(crate) next: Option<String>,
}

impl S3 {
    pub(crate) fn new(access: Access) -> Self {
        Self { http: Http::new(), access }
    }

    fn bucket(&self, name: &str) -> Result<Bucket> {
        Bucket::new(self.access.s3.clone(), UrlStyle::Path, name.to_owned(), self.access.region.clone())
            .with_context(|| format!("`{name}` is not a bucket name"))
    }

    /// Sends a presigned request, again while the gateway says SlowDown, and turns S3's errors into ours.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut wait = Duration::from_millis(200);
        for attempt in 1.. {
            let response = self.http.send(method.clone(), url, headers, body.clone()).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let (_, _, answer) = read_all(response).await?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            if status == StatusCode::SERVICE_UNAVAILABLE && attempt < ATTEMPTS_MAX {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            let (code, message) = (element(&answer, "Code"), element(&answer, "Message"));
            bail!(
                "the gateway answered {status} {}: {}",
                code.unwrap_or_default(),
                message.unwrap_or(url.path())
            );
        }
        unreachable!("the loop above ends by returning")
    }

    /// Creates a bucket; fine if it is ours already.
    pub(crate) async fn create_bucket(&self, name: &str, public: bool) -> Result<()> {
        let bucket = self.bucket(name)?;
        let mut headers = HeaderMap::new();
        let mut action = bucket.create_bucket(&self.access.credentials);
        if public {
            action.headers_mut().insert("x-amz-acl", "public-read");
            headers.insert("x-amz-acl", "public-read".parse()?);
        }
        let url = action.sign(PRESIGNED_FOR);
        match self.send(Method::PUT, &url, &headers, Bytes::new()).await {
            Ok(_) => Ok(()),
            Err(error) if error.to_string().contains("BucketAlreadyOwnedByYou") => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot create bucket {name}")),
        }
    }

    /// Uploads `body` as one object or part; the CRC64NVME of the bytes goes with it and is checked by the gateway.
    pub(crate) async fn put(&self, bucket: &str, key: &str, body: Bytes) -> Result<Stored> {
        let bucket = self.bucket(bucket)?;
        let checksum = crc64nvme(&body);
        let mut action = bucket.put_object(Some(&self.access.credentials), key);
        action.headers_mut().insert("x-amz-checksum-crc64nvme", checksum.clone());
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-crc64nvme", checksum.parse()?);
        let response = self.send(Method::PUT, &action.sign(PRESIGNED_FOR), &headers, body).await?;
        let etag = etag_of(response.headers()).context("the gateway gave an object no ETag")?;
        Ok(Stored { etag, cid: cid_of(response.headers()) })
    }

    /// Starts a multipart upload; returns its id.
    pub(crate) async fn create_upload(&self, bucket: &str, key: &str) -> Result<String> {
        let bucket = self.bucket(bucket)?;
        let url = bucket.create_multipart_upload(Some(&self.access.credentials), key).sign(PRESIGNED_FOR);
        let (_, _, body) =
            read_all(self.send(Method::POST, &url, &HeaderMap::new(), Bytes::new()).await?).await?;
        let parsed = CreateMultipartUpload::parse_response(&String::from_utf8_lossy(&body))
            .context("the answer to CreateMultipartUpload cannot be read")?;
        Ok(parsed.upload_id().to_owned())
    }

    /// Uploads a part; returns its ETag.
    pub(crate) async fn put_part(
        &self,
        at: (&str, &str),
        upload: &str,
        number: u16,
        body: Bytes,
    ) -> Result<String> {
        let bucket = self.bucket(at.0)?;
        let checksum = crc64nvme(&body);
        let mut action = bucket.upload_part(Some(&self.access.credentials), at.1, number, upload);
        action.headers_mut().insert("x-amz-checksum-crc64nvme", checksum.clone());
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-crc64nvme", checksum.parse()?);
        let response = self.send(Method::PUT, &action.sign(PRESIGNED_FOR), &headers, body).await?;
        let etag = response.headers().get(http::header::ETAG).context("the gateway gave a part no ETag")?;
        Ok(etag.to_str().context("the part's ETag is no text")?.to_owned())
    }

    /// The parts of an upload, or `None` when there is no such upload (any more).
    pub(crate) async fn parts(
        &self,
        at: (&str, &str),
        upload: &str,
    ) -> Result<Option<HashMap<u16, (String, u64)>>> {
        let bucket = self.bucket(at.0)?;
        let mut parts = HashMap::new();
        let mut after = None;
        loop {
            let mut action = ListParts::new(&bucket, Some(&self.access.credentials), at.1, upload);
            if let Some(after) = after {
                action.set_part_number_marker(after);
            }
            let url = action.sign(PRESIGNED_FOR);
            let response = match self.send(Method::GET, &url, &HeaderMap::new(), Bytes::new()).await {
                Ok(response) => response,
                Err(error) if error.to_string().contains("NoSuchUpload") => return Ok(None),
                Err(error) => return Err(error),
            };
            let (_, _, body) = read_all(response).await?;
            let page = ListParts::parse_response(&String::from_utf8_lossy(&body))
                .context("the list of parts cannot be read")?;
            parts.extend(page.parts.into_iter().map(|part| (part.number, (part.etag, part.size))));
            match page.next_part_number_marker {
                Some(next) => after = Some(next),
                None => return Ok(Some(parts)),
            }
        }
    }

    /// Gives a multipart upload up.
    pub(crate) async fn abort(&self, at: (&str, &str), upload: &str) -> Result<()> {
        let bucket = self.bucket(at.0)?;
        let action = bucket.abort_multipart_upload(Some(&self.access.credentials), at.1, upload);
        let url = action.sign(PRESIGNED_FOR);
        self.send(Method::DELETE, &url, &HeaderMap::new(), Bytes::new()).await.map(|_| ())
    }

    /// The entity tag of an object, if there is one.
    pub(crate) async fn etag_of(&self, bucket: &str, key: &str) -> Result<Option<String>> {
        let bucket = self.bucket(bucket)?;
        let url = bucket.head_object(Some(&self.access.credentials), key).sign(PRESIGNED_FOR);
        let response = self.http.send(Method::HEAD, &url, &HeaderMap::new(), Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => Ok(etag_of(response.headers())),
            StatusCode::NOT_FOUND => Ok(None),
            status => bail!("the gateway answered {status} to HEAD {key}"),
        }
    }

    /// `len` bytes of an object from `offset` on, if it still has this entity tag.
    pub(crate) async fn read(&self, at: (&str, &str), etag: &str, offset: u64, len: usize) -> Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let bucket = self.bucket(at.0)?;
        let url = bucket.get_object(Some(&self.access.credentials), at.1).sign(PRESIGNED_FOR);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RANGE, format!("bytes={offset}-{}", offset + len as u64 - 1).parse()?);
        headers.insert(http::header::IF_MATCH, etag.parse()?);
        let response = self.send(Method::GET, &url, &headers, Bytes::new()).await?;
        let body = Limited::new(response.into_body(), len).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading {} broke off: {error}", at.1))?.to_bytes();
        if body.len() != len {
            bail!("{} bytes of {} came instead of {len}", body.len(), at.1);
        }
        Ok(body)
    }

    /// The address of the gateway.
    pub(crate) fn address(&self) -> &str {
        self.access.s3.as_str()
    }

    /// Completes a multipart upload.
    pub(crate) async fn complete(&self, at: (&str, &str), upload: &str, etags: &[String]) -> Result<Stored> {
        let bucket = self.bucket(at.0)?;
        let action = CompleteMultipartUpload::new(
            &bucket,
            Some(&self.access.credentials),
            at.1,
            upload,
            etags.iter().map(String::as_str),
        );
        let url = action.sign(PRESIGNED_FOR);
        let body = Bytes::from(action.body());
        let response = self.send(Method::POST, &url, &HeaderMap::new(), body).await?;
        let (_, headers, body) = read_all(response).await?;
        let body = String::from_utf8_lossy(&body);
        if let Some(message) = element(&body, "Message") {
            bail!("completing {} failed: {message}", at.1);
        }
        let etag = element(&body, "ETag").context("the answer to a completion names no ETag")?;
        Ok(Stored { etag: etag.replace("&quot;", "\""), cid: cid_of(&headers) })
    }

    /// Opens an object for reading from byte `start` on; returns its headers and the rest of its body.
    pub(crate) async fn open(&self, bucket: &str, key: &str, start: u64) -> Result<Response<Incoming>> {
        let bucket = self.bucket(bucket)?;
        let url = bucket.get_object(Some(&self.access.credentials), key).sign(PRESIGNED_FOR);
        let mut headers = HeaderMap::new();
        if start > 0 {
            headers.insert(http::header::RANGE, format!("bytes={start}-").parse()?);
        }
        self.send(Method::GET, &url, &headers, Bytes::new()).await
    }

    /// A page of the ticket for reading an object straight from the nodes, for `holder`.
    pub(crate) async fn ticket(
        &self,
        at: (&str, &str),
        holder: NodeId,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Bytes> {
        let bucket = self.bucket(at.0)?;
        let mut action = bucket.get_object(Some(&self.access.credentials), at.1);
        let query = action.query_mut();
        query.insert("holdfast-ticket", "1");
        query.insert("holder", holder.to_string());
        query.insert("offset", offset.to_string());
        if let Some(version) = version {
            query.insert("version", version.to_owned());
        }
        let url = action.sign(PRESIGNED_FOR);
        let (_, _, body) =
            read_all(self.send(Method::GET, &url, &HeaderMap::new(), Bytes::new()).await?).await?;
        Ok(body)
    }

    /// Asks about snapshots: an answer of JSON, or of nothing. `query` is in order.
    pub(crate) async fn snapshots(&self, method: Method, query: &[(&str, &str)]) -> Result<Bytes> {
        self.of_no_bucket(method, query).await
    }

    /// Sends a request that names no bucket, without a body.
    async fn of_no_bucket(&self, method: Method, query: &[(&str, &str)]) -> Result<Bytes> {
        let credentials = &self.access.credentials;
        let signed_as = match method {
            Method::PUT => rusty_s3::Method::Put,
            Method::DELETE => rusty_s3::Method::Delete,
            _ => rusty_s3::Method::Get,
        };
        let url = rusty_s3::signing::sign(
            &jiff::Timestamp::now(),
            signed_as,
            self.access.s3.clone(),
            credentials.key(),
            credentials.secret(),
            credentials.token(),
            &self.access.region,
            PRESIGNED_FOR.as_secs(),
            query.iter().copied(),
            std::iter::empty(),
        );
        let (_, _, body) = read_all(self.send(method, &url, &HeaderMap::new(), Bytes::new()).await?).await?;
        Ok(body)
    }

    /// Bytes `range` of an object.
    pub(crate) async fn range(&self, at: (&str, &str), range: Range<u64>) -> Result<Bytes> {
        let bucket = self.bucket(at.0)?;
        let url = bucket.get_object(Some(&self.access.credentials), at.1).sign(PRESIGNED_FOR);
        let mut headers = HeaderMap::new();
        let last = range.end.saturating_sub(1);
        headers.insert(http::header::RANGE, format!("bytes={}-{last}", range.start).parse()?);
        let (_, _, body) = read_all(self.send(Method::GET, &url, &headers, Bytes::new()).await?).await?;
        Ok(body)
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        let bucket = self.bucket(bucket)?;
        let url = bucket.delete_object(Some(&self.access.credentials), key).sign(PRESIGNED_FOR);
        self.send(Method::DELETE, &url, &HeaderMap::new(), Bytes::new()).await.map(|_| ())
    }

    /// One page of the objects under `prefix`; with `delimiter` only the next level.
    pub(crate) async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
    ) -> Result<Page> {
        let bucket = self.bucket(bucket)?;
        let mut action = bucket.list_objects_v2(Some(&self.access.credentials));
        action.with_prefix(prefix);
        if let Some(delimiter) = delimiter {
            action.with_delimiter(delimiter);
        }
        if let Some(after) = after {
            action.with_continuation_token(after);
        }
        let url = action.sign(PRESIGNED_FOR);
        let (_, _, body) =
            read_all(self.send(Method::GET, &url, &HeaderMap::new(), Bytes::new()).await?).await?;
        let parsed = ListObjectsV2::parse_response(&String::from_utf8_lossy(&body))
            .context("the listing cannot be read")?;
        let prefixes = parsed.common_prefixes.into_iter().map(|item| Listed {
            key: item.prefix,
            size: 0,
            etag: None,
            last_modified: None,
            is_prefix: true,
        });
        let objects = parsed.contents.into_iter().map(|item| Listed {
            key: item.key,
            size: item.size.unwrap_or(0),
            etag: item.etag,
            last_modified: item.last_modified,
            is_prefix: false,
        });
        Ok(Page { items: prefixes.chain(objects).collect(), next: parsed.next_continuation_token })
    }

    /// All objects under `prefix`, page by page.
    pub(crate) async fn list_all(&self, bucket: &str, prefix: &str) -> Result<Vec<Listed>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.list(bucket, prefix, None, after.as_deref()).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// The names of the buckets.
    pub(crate) async fn buckets(&self) -> Result<Vec<String>> {
        let body = self.of_no_bucket(Method::GET, &[]).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(body
            .split("<Bucket>")
            .skip(1)
            .filter_map(|bucket| element(bucket, "Name").map(str::to_owned))
            .collect())
    }
}

/// What the gateway says of an object that it stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its entity tag, in quotes.
    pub(crate) etag: String,
    /// Its root CID, where the gateway named it.
    pub(crate) cid: Option<String>,
}

fn etag_of(headers: &HeaderMap) -> Option<String> {
    headers.get(http::header::ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn cid_of(headers: &HeaderMap) -> Option<String> {
    headers.get("x-holdfast-cid").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The text of the first `<name>` of a small XML answer of the gateway's.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn crc64nvme(bytes: &[u8]) -> String {
    use base64::Engine;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    base64::engine::general_purpose::STANDARD.encode(sum.to_be_bytes())
}
