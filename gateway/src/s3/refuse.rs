//! What is refused before the S3 library sees it: Signature Version 2 in all its places.
//!
//! The library tries version 2 first and would accept it. It signs neither the body nor most headers, so it is
//! answered with a clear error instead. This file decides; it never touches a body.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use http::{Request, Uri};
use s3s::{S3Error, S3ErrorCode};

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
    if is_form_upload(request) {
        // Browser forms are buffered whole by the library, and may carry Signature Version 2 inside the body.
        return Some(S3Error::with_message(
            S3ErrorCode::NotImplemented,
            "Uploads by HTML form (POST Object) are not implemented; use PUT",
        ));
    }
    None
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

/// Percent-decodes a parameter's name; names of interest are ASCII, so anything else may stay as it is.
fn decode(name: &str) -> String {
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

fn is_form_upload<B>(request: &Request<B>) -> bool {
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
    fn form_uploads_are_refused_before_they_are_buffered() {
        let form = Request::builder()
            .method("POST")
            .uri("/bucket")
            .header(CONTENT_TYPE, "multipart/form-data; boundary=x")
            .body(())
            .unwrap();
        assert_eq!(refusal(&form).unwrap().code(), &S3ErrorCode::NotImplemented);
    }
}
