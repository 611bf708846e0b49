//! What is refused before the S3 library sees it: Signature Version 2 in all its places.
//!
//! The library tries version 2 first and would accept it. It signs neither the body nor most headers, so it is
//! answered with a clear error instead. This file decides; it never touches a body.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use http::{Request, Uri};
use s3s::{S3Error, S3ErrorCode};

use super::buckets::REGION;

const MESSAGE: &str =
    "Signature Version 2 is not supported; sign with AWS4-HMAC-SHA256 (Signature Version 4)";

/// The error for a request that must not go further, if it is one.
pub(crate) fn refusal<B>(request: &Request<B>) -> Option<S3Error> {
    if has_v2_header(request.headers()) || has_v2_query(request.uri()) {
        return Some(S3Error::with_message(S3ErrorCode::InvalidRequest, MESSAGE));
    }
    if request.headers().get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Some(S3Error::with_message(
            S3ErrorCode::InvalidRequest,
            "More than one Authorization header was sent",
        ));
    }
    if signed_headers(request).is_none() && names_response_headers(request.uri()) {
        return Some(S3Error::with_message(
            S3ErrorCode::InvalidRequest,
            "Request specific response headers cannot be used for anonymous GET requests",
        ));
    }
    unsigned_header(request)
        .or_else(|| endless_url(request.uri()))
        .or_else(|| no_payload_hash(request.headers()))
        .or_else(|| no_region(request))
}

/// Requests signed for any region are served. What is none (the `US` of old tools) is answered as S3 answers the wrong
/// region: with the right one, by which such a client signs again.
fn no_region<B>(request: &Request<B>) -> Option<S3Error> {
    let credential = match request.headers().get(AUTHORIZATION) {
        Some(value) => {
            let text = value.to_str().ok()?;
            text.split_once("Credential=")?.1.split(',').next()?.to_owned()
        }
        None => parameter(request.uri(), "X-Amz-Credential")?,
    };
    let region = credential.rsplit('/').nth(2)?;
    let is_region = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (region.is_empty() || !region.bytes().all(is_region)).then(|| {
        S3Error::with_message(
            S3ErrorCode::AuthorizationHeaderMalformed,
            format!(
                "The authorization header is malformed; the region '{region}' is wrong; expecting '{REGION}'"
            ),
        )
    })
}

/// `x-amz-content-sha256` is a hash, or one of the words for a body that is signed otherwise or not at all.
fn no_payload_hash(headers: &HeaderMap) -> Option<S3Error> {
    let value = headers.get("x-amz-content-sha256")?.as_bytes();
    let is_hash = value.len() == 64 && value.iter().all(u8::is_ascii_hexdigit);
    let is_known =
        is_hash || value == b"UNSIGNED-PAYLOAD" || value.starts_with(b"STREAMING-") || value.is_empty();
    (!is_known).then(|| {
        S3Error::with_message(
            S3ErrorCode::InvalidArgument,
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
        )
    })
}

fn has_v2_header(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let value = value.as_bytes().trim_ascii_start();
        value.len() >= 4 && value[..3].eq_ignore_ascii_case(b"AWS") && value[3].is_ascii_whitespace()
    })
}

fn has_v2_query(uri: &Uri) -> bool {
    let Some(query) = uri.query() else { return false };
    query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or_default())
        .any(|name| matches!(&*decode(name), "Signature" | "AWSAccessKeyId"))
}

/// `text`, percent-decoded.
pub(super) fn decoded(text: &str) -> String {
    decode(text)
}

/// Percent-decodes a parameter's name; names of interest are ASCII, so anything else may stay as it is.
pub(super) fn decode(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        if let Some(Ok(byte)) = escaped.map(|digits| {
            std::str::from_utf8(digits)
                .map_err(drop)
                .and_then(|text| u8::from_str_radix(text, 16).map_err(drop))
        }) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The longest life of a presigned URL: S3's seven days.
const PRESIGNED_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// A signed request with an `x-amz-` or `x-holdfast-` header that its signature does not cover: the library would obey
/// the header, so whoever holds a presigned PUT could add a copy source and read what the signer may read.
fn unsigned_header<B>(request: &Request<B>) -> Option<S3Error> {
    let signed = signed_headers(request)?;
    let is_signed = |name: &str| signed.split(';').any(|signed| signed.eq_ignore_ascii_case(name));
    let stray = request.headers().keys().map(http::HeaderName::as_str).find(|name| {
        // The hash of the body protects itself: a wrong one fails, and a URL's signer does not know the body.
        let meant = name.starts_with("x-amz-") || name.starts_with("x-holdfast-");
        meant && *name != "x-amz-content-sha256" && !is_signed(name)
    })?;
    Some(S3Error::with_message(
        S3ErrorCode::AccessDenied,
        format!("There were headers present in the request which were not signed: {stray}"),
    ))
}

/// The list of signed headers of a Version 4 request, from its header or its query; `None` when it is not signed.
fn signed_headers<B>(request: &Request<B>) -> Option<String> {
    if let Some(authorization) = request.headers().get(AUTHORIZATION) {
        let text = authorization.to_str().ok()?;
        let list = text.split(',').find_map(|part| part.split_once("SignedHeaders=")).map(|(_, list)| list);
        return Some(list.unwrap_or_default().trim().to_owned());
    }
    parameter(request.uri(), "X-Amz-SignedHeaders")
        .or_else(|| parameter(request.uri(), "X-Amz-Signature").map(|_| String::new()))
}

/// Whether the signature of a request covers this header.
pub(super) fn is_signed<B>(request: &Request<B>, name: &str) -> bool {
    let signed = signed_headers(request);
    signed.is_some_and(|signed| signed.split(';').any(|signed| signed.eq_ignore_ascii_case(name)))
}

fn endless_url(uri: &Uri) -> Option<S3Error> {
    let seconds = parameter(uri, "X-Amz-Expires")?;
    let is_allowed =
        seconds.parse::<u64>().is_ok_and(|seconds| (1..=PRESIGNED_SECONDS_MAX).contains(&seconds));
    (!is_allowed).then(|| {
        S3Error::with_message(
            S3ErrorCode::AuthorizationQueryParametersError,
            "X-Amz-Expires must be a number of seconds from 1 to 604800 (seven days)",
        )
    })
}

/// `response-content-type` and its like: a stranger must not have stored bytes served as a page from our origin.
fn names_response_headers(uri: &Uri) -> bool {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .map(|pair| pair.split('=').next().unwrap_or_default())
        .any(|name| decode(name).starts_with("response-"))
}

/// A query parameter's decoded value.
fn parameter(uri: &Uri, wanted: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(name, _)| decode(name) == wanted).map(|(_, value)| decode(value)).next()
}

/// Whether the request is a browser's form, which [`super::post`] reads.
pub(super) fn is_form<B>(request: &Request<B>) -> bool {
    request.method() == http::Method::POST
        && request.headers().get(CONTENT_TYPE).is_some_and(|value| {
            value.as_bytes().trim_ascii_start().to_ascii_lowercase().starts_with(b"multipart/form-data")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, authorization: Option<&str>) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        if let Some(value) = authorization {
            builder = builder.header(AUTHORIZATION, value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn version_2_is_refused_in_the_header_and_in_the_query() {
        for (uri, header) in [
            ("/bucket/key", Some("AWS AKIAEXAMPLE:c2lnbmF0dXJl")),
            ("/bucket/key", Some("aws AKIAEXAMPLE:c2lnbmF0dXJl")),
            ("/bucket/key?AWSAccessKeyId=A&Signature=B&Expires=1", None),
            ("/bucket/key?x=1&Signature=B", None),
            ("/bucket/key?%53ignature=B", None),
        ] {
            let error = refusal(&request(uri, header)).expect(uri);
            assert_eq!(error.code(), &S3ErrorCode::InvalidRequest);
            assert!(error.message().unwrap().contains("Signature Version 2"));
        }
    }

    #[test]
    fn version_4_and_anonymous_requests_pass() {
        for (uri, header) in [
            ("/bucket/key", Some("AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request")),
            ("/bucket/key?X-Amz-Signature=B&X-Amz-Algorithm=AWS4-HMAC-SHA256", None),
            ("/bucket/Signature?prefix=Signature", None),
            ("/bucket", None),
        ] {
            assert!(refusal(&request(uri, header)).is_none(), "{uri}");
        }
    }

    #[test]
    fn a_header_that_the_signature_does_not_cover_is_refused() {
        let authorization = "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, \
                             SignedHeaders=host;x-amz-date, Signature=00";
        let presigned =
            "/bucket/key?X-Amz-SignedHeaders=host%3Bx-amz-meta-a&X-Amz-Signature=B&X-Amz-Expires=60";
        for (uri, authorization, header, passes) in [
            (presigned, None, "x-amz-copy-source", false),
            (presigned, None, "x-holdfast-public", false),
            (presigned, None, "x-amz-meta-a", true),
            (presigned, None, "x-amz-content-sha256", true),
            (presigned, None, "content-type", true),
            ("/bucket/key", Some(authorization), "x-amz-copy-source", false),
            ("/bucket/key", Some(authorization), "x-amz-date", true),
            ("/bucket/key", None, "x-amz-copy-source", true),
        ] {
            let mut request = request(uri, authorization);
            let value = if header == "x-amz-content-sha256" { "UNSIGNED-PAYLOAD" } else { "value" };
            request.headers_mut().insert(header, value.parse().unwrap());
            assert_eq!(refusal(&request).is_none(), passes, "{uri} {header}");
        }
    }

    #[test]
    fn a_region_that_is_none_is_answered_with_ours() {
        for (region, passes) in [("us-east-1", true), ("eu-7", true), ("US", false), ("", false)] {
            let header = format!(
                "AWS4-HMAC-SHA256 Credential=A/20260101/{region}/s3/aws4_request, SignedHeaders=host, Signature=0"
            );
            let found = refusal(&request("/bucket/key", Some(&header)));
            assert_eq!(found.is_none(), passes, "{region}");
            if let Some(error) = found {
                assert_eq!(error.code(), &S3ErrorCode::AuthorizationHeaderMalformed);
            }
        }
    }

    #[test]
    fn a_presigned_url_lives_seven_days_at_most() {
        for (seconds, passes) in
            [("1", true), ("604800", true), ("604801", false), ("0", false), ("-1", false)]
        {
            let uri = format!("/b/k?X-Amz-SignedHeaders=host&X-Amz-Signature=B&X-Amz-Expires={seconds}");
            assert_eq!(refusal(&request(&uri, None)).is_none(), passes, "{seconds}");
        }
    }
}
