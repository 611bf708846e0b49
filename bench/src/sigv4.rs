//! AWS Signature Version 4, in headers, for the requests that the benchmark sends: small on purpose, so
//! that the client's own cost stays out of the figures.

use anyhow::{Context, Result};
use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The payload is not part of the signature.
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// The payload is aws-chunked with a checksum behind it, and not part of the signature.
pub(crate) const STREAMING_UNSIGNED: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
/// The SHA-256 of no bytes.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const SERVICE: &str = "s3";

/// An access key and where it is used.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// The key's public half.
    pub(crate) access_key: String,
    /// The key's secret half.
    pub(crate) secret_key: String,
    /// The region to sign for.
    pub(crate) region: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a profile of an AWS credentials file.
    pub(crate) fn parse(text: &str, profile: &str) -> Result<Self> {
        let mut inside = false;
        let (mut access, mut secret, mut region) = (None, None, None);
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                inside = name.trim() == profile;
            } else if let (true, Some((name, value))) = (inside, line.split_once('=')) {
                let value = value.trim().to_owned();
                match name.trim() {
                    "aws_access_key_id" => access = Some(value),
                    "aws_secret_access_key" => secret = Some(value),
                    "region" => region = Some(value),
                    _ => {}
                }
            }
        }
        Ok(Self {
            access_key: access.with_context(|| format!("no aws_access_key_id in profile {profile}"))?,
            secret_key: secret.with_context(|| format!("no aws_secret_access_key in profile {profile}"))?,
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        })
    }
}

/// What is signed of a request besides its headers.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// The path, already percent-encoded.
    pub(crate) path: &'a str,
    /// The query's pairs, not encoded.
    pub(crate) query: &'a [(&'a str, &'a str)],
    /// A SHA-256 in hex, or one of the constants of this file.
    pub(crate) payload: &'a str,
}

/// Signs, and adds the `x-amz-date`, `x-amz-content-sha256` and `authorization` headers. Every header
/// present is signed; `host` must be among them. `date` is `YYYYMMDDTHHMMSSZ`.
pub(crate) fn sign(
    credentials: &Credentials,
    target: &Target<'_>,
    headers: &mut HeaderMap,
    date: &str,
) -> Result<()> {
    headers.insert(HeaderName::from_static("x-amz-date"), HeaderValue::from_str(date)?);
    headers.insert(HeaderName::from_static("x-amz-content-sha256"), HeaderValue::from_str(target.payload)?);
    let mut rows: Vec<(&str, &str)> = Vec::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        rows.push((name.as_str(), value.to_str()?.trim()));
    }
    rows.sort_unstable();
    let names: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = rows.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{}",
        target.method,
        target.path,
        canonical_query(target.query),
        target.payload
    );
    let day = date.get(..8).context("the date has 8 digits")?;
    let scope = format!("{day}/{}/{SERVICE}/aws4_request", credentials.region);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
    let mut key = format!("AWS4{}", credentials.secret_key).into_bytes();
    for part in [day, &credentials.region, SERVICE, "aws4_request", &to_sign] {
        key = hmac_sha256(&key, part.as_bytes());
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
        credentials.access_key,
        hex::encode(key)
    );
    headers.insert(http::header::AUTHORIZATION, HeaderValue::from_str(&authorization)?);
    Ok(())
}

/// The query as it is signed and as it is sent: sorted and percent-encoded.
pub(crate) fn canonical_query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (encode(name, false), encode(value, false))).collect();
    encoded.sort_unstable();
    let joined: Vec<String> = encoded.iter().map(|(name, value)| format!("{name}={value}")).collect();
    joined.join("&")
}

/// Percent-encodes as S3 wants it; slashes stay when `path`.
pub(crate) fn encode(text: &str, path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if path => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn hmac_sha256(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documented() -> Credentials {
        let text = "[other]\naws_access_key_id = no\n[holdfast]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n\
                    aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n";
        Credentials::parse(text, "holdfast").unwrap()
    }

    /// The GET Object example of "Authenticating Requests: Using the Authorization Header" in the Amazon
    /// S3 API reference.
    #[test]
    fn signs_amazons_own_get_example() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        headers.insert("range", HeaderValue::from_static("bytes=0-9"));
        let target = Target { method: &Method::GET, path: "/test.txt", query: &[], payload: EMPTY_SHA256 };
        sign(&documented(), &target, &mut headers, "20130524T000000Z").unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.contains("SignedHeaders=host;range;x-amz-content-sha256;x-amz-date"));
        assert!(authorization.ends_with("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"));
    }

    /// The List Objects example of the same page.
    #[test]
    fn signs_amazons_own_list_example() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        let query = [("prefix", "J"), ("max-keys", "2")];
        let target = Target { method: &Method::GET, path: "/", query: &query, payload: EMPTY_SHA256 };
        sign(&documented(), &target, &mut headers, "20130524T000000Z").unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.ends_with("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
    }

    #[test]
    fn encodes_as_s3_wants_it() {
        assert_eq!(encode("a b/c~é", true), "a%20b/c~%C3%A9");
        assert_eq!(canonical_query(&[("uploads", ""), ("a/b", "=")]), "a%2Fb=%3D&uploads=");
    }

    #[test]
    fn a_profile_that_is_not_there_is_named() {
        assert!(Credentials::parse("[default]\n", "holdfast").unwrap_err().to_string().contains("holdfast"));
    }
}
