//! A client that speaks HTTP by hand, so that it can also speak it wrongly, and signs by SigV4.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::dto::{Timestamp, TimestampFormat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Clone)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) access_key: String,
    pub(super) secret: String,
    /// Added to the clock that requests are signed by.
    pub(super) clock_offset_s: i64,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(super) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub(super) fn expect_error(self, status: u16, code: &str) -> Self {
        let text = self.text();
        assert!(
            self.status == status && text.contains(&format!("<Code>{code}</Code>")),
            "{}: {text}",
            self.status
        );
        self
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }
}

pub(super) type Headers<'a> = &'a [(&'a str, &'a str)];

impl Client {
    pub(super) fn new(address: SocketAddr, access_key: &str, secret: &str) -> Self {
        Self { address, access_key: access_key.to_owned(), secret: secret.to_owned(), clock_offset_s: 0 }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"").await
    }

    pub(super) async fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.call("PUT", path, &[], body).await
    }

    /// A signed request with `UNSIGNED-PAYLOAD`.
    pub(super) async fn call(&self, method: &str, path: &str, headers: Headers<'_>, body: &[u8]) -> Answer {
        let head = self.signed_head(method, path, headers, "UNSIGNED-PAYLOAD", body.len());
        self.exchange(&[head.as_bytes(), body].concat()).await
    }

    /// A request without a signature.
    pub(super) async fn anonymous(&self, method: &str, path: &str, headers: Headers<'_>) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(if has_body(method) { "content-length: 0\r\n\r\n" } else { "\r\n" });
        self.exchange(head.as_bytes()).await
    }

    /// Sends bytes as they are and reads all that comes back.
    pub(super) async fn exchange(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut reply));
        reading.await.expect("an answer in time").unwrap();
        parse(&reply)
    }

    /// The head of a signed request, blank line included.
    pub(super) fn signed_head(
        &self,
        method: &str,
        path: &str,
        extra: Headers<'_>,
        payload: &str,
        content_length: usize,
    ) -> String {
        let date = self.amz_date();
        let host = self.address.to_string();
        let mut signed: Vec<(String, String)> = vec![
            ("host".to_owned(), host),
            ("x-amz-content-sha256".to_owned(), payload.to_owned()),
            ("x-amz-date".to_owned(), date.clone()),
        ];
        signed.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        signed.sort();
        let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let (uri, query) = path.split_once('?').unwrap_or((path, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        pairs.sort();
        let canonical_headers: String =
            signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let canonical =
            format!("{method}\n{uri}\n{}\n{canonical_headers}\n{names}\n{payload}", pairs.join("&"));
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let signature = hex::encode(self.sign(&date[..8], &to_sign));
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in &signed {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}\r\n",
            self.access_key
        ));
        if has_body(method) || content_length > 0 {
            head.push_str(&format!("content-length: {content_length}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// A presigned path for a GET.
    pub(super) fn presigned(&self, path: &str, expires_s: u64) -> String {
        let date = self.amz_date();
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let credential = format!("{}/{scope}", self.access_key).replace('/', "%2F");
        let query = format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={date}\
             &X-Amz-Expires={expires_s}&X-Amz-SignedHeaders=host"
        );
        let canonical = format!("GET\n{path}\n{query}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD", self.address);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
        format!("{path}?{query}&X-Amz-Signature={}", hex::encode(self.sign(&date[..8], &to_sign)))
    }

    fn sign(&self, day: &str, to_sign: &str) -> Vec<u8> {
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in [day, "us-east-1", "s3", "aws4_request", to_sign] {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes());
            key = tag.as_ref().to_vec();
        }
        key
    }

    fn amz_date(&self) -> String {
        let offset = Duration::from_secs(self.clock_offset_s.unsigned_abs());
        let now = SystemTime::now();
        let time = if self.clock_offset_s < 0 { now - offset } else { now + offset };
        let mut text = Vec::new();
        Timestamp::from(time).format(TimestampFormat::DateTime, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap().replace(['-', ':'], "");
        format!("{}Z", &text[..15])
    }
}

/// Clients announce no length where there is nothing to send.
fn has_body(method: &str) -> bool {
    matches!(method, "PUT" | "POST")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn parse(reply: &[u8]) -> Answer {
    let at = reply.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(at) = at else {
        return Answer { status: 0, headers: HeaderMap::new(), body: reply.to_vec() };
    };
    let head = std::str::from_utf8(&reply[..at]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value.trim()).unwrap(),
        );
    }
    let body = reply[at + 4..].to_vec();
    if let Some(length) = headers.get("content-length") {
        let length: usize = length.to_str().unwrap().parse().unwrap();
        assert!(body.len() <= length, "the answer is longer than announced");
    }
    Answer { status, headers, body }
}
