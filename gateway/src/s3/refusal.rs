//! The document of an error, completed: what S3's own say and the library leaves out. A message for every code, the path
//! that was asked for, and the id by which the request is found in logs.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use s3s::Body;

use super::buckets::REGION;

/// Errors that the library answers without a message.
const MESSAGES: [(&str, &str); 18] = [
    (
        "InvalidBucketName",
        "The specified bucket is not valid: a name has 3 to 63 lower-case letters, digits, dots and hyphens, begins and ends with a letter or digit, and is no IP address.",
    ),
    ("InvalidURI", "Couldn't parse the specified URI."),
    ("KeyTooLongError", "Your key is too long: a key has at most 1024 bytes of UTF-8."),
    (
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    ("MissingRequestBodyError", "Request body is empty."),
    ("MissingContentLength", "You must provide the Content-Length HTTP header."),
    ("IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header"),
    ("MaxMessageLengthExceeded", "Your request was too big."),
    (
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    ),
    ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    ("AccessDenied", "Access Denied"),
    ("MethodNotAllowed", "The specified method is not allowed against this resource."),
    ("NotImplemented", "A header or operation you provided implies functionality that is not implemented."),
    ("InvalidArgument", "Invalid Argument"),
    ("InvalidRequest", "Invalid Request"),
    ("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
    ("AuthorizationHeaderMalformed", "The authorization header you provided is invalid."),
    ("InternalError", "We encountered an internal error. Please try again."),
];
const CLOSING: &str = "</Error>";

/// `response` as it goes out.
pub(super) fn completed(mut response: Response<Body>, id: &str, resource: &str) -> Response<Body> {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let document = response.body().bytes().and_then(|bytes| complete(&bytes, id, resource));
    let Some(document) = document else { return response };
    if response.headers().contains_key(header::CONTENT_LENGTH) {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(document.len()));
    }
    *response.body_mut() = Body::from(document);
    response
}

/// The document with what was missing; `None` when it is none of an error.
fn complete(document: &[u8], id: &str, resource: &str) -> Option<Bytes> {
    let text = std::str::from_utf8(document).ok()?;
    let front = text.strip_suffix(CLOSING)?;
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let mut whole = String::with_capacity(text.len() + resource.len() + 256);
    whole.push_str(front);
    if !text.contains("<Message>")
        && let Some((_, message)) = MESSAGES.iter().find(|(known, _)| *known == code)
    {
        whole.push_str(&format!("<Message>{}</Message>", escaped(message)));
    }
    if code == "AuthorizationHeaderMalformed" && !text.contains("<Region>") {
        whole.push_str(&format!("<Region>{REGION}</Region>"));
    }
    if !text.contains("<Resource>") {
        whole.push_str(&format!("<Resource>{}</Resource>", escaped(resource)));
    }
    if !text.contains("<RequestId>") {
        whole.push_str(&format!("<RequestId>{id}</RequestId>"));
    }
    whole.push_str(CLOSING);
    Some(Bytes::from(whole))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added_and_the_rest_stays() {
        let bare = b"<?xml version=\"1.0\"?><Error><Code>InvalidBucketName</Code></Error>";
        let text = String::from_utf8(complete(bare, "7", "/A&B").unwrap().to_vec()).unwrap();
        assert!(text.contains("<Message>The specified bucket is not valid"), "{text}");
        assert!(text.ends_with("<Resource>/A&amp;B</Resource><RequestId>7</RequestId></Error>"), "{text}");
        let said = b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>";
        let text = String::from_utf8(complete(said, "7", "/b/k").unwrap().to_vec()).unwrap();
        assert_eq!(text.matches("<Message>").count(), 1);
        assert!(complete(b"<DeleteResult></DeleteResult>", "7", "/").is_none());
        assert!(complete(b"\xff", "7", "/").is_none());
    }
}
