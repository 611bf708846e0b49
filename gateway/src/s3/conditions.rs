//! Conditional requests, decided without I/O: RFC 9110 section 13.2.2, as S3 keeps it.

use std::time::{Duration, UNIX_EPOCH};

use holdfast_protocol::time::UnixMs;
use http::{HeaderMap, HeaderValue};
use s3s::dto::{ETagCondition, Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, s3_error};

use crate::meta::PutCondition;

/// The conditions of a GET or HEAD.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
    pub(crate) if_modified_since: Option<Timestamp>,
    pub(crate) if_unmodified_since: Option<Timestamp>,
}

impl Conditions {
    /// Nothing when the request may go on; else 412, or 304 with the headers that a cache needs.
    pub(crate) fn check(&self, etag: &str, modified_ms: UnixMs) -> Result<(), S3Error> {
        let modified = timestamp(modified_ms);
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !matches(condition, etag) => return Err(failed("If-Match")),
            (None, Some(since)) if modified > *since => return Err(failed("If-Unmodified-Since")),
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if matches(condition, etag) => Err(not_modified(etag, &modified)),
            (None, Some(since)) if modified <= *since => Err(not_modified(etag, &modified)),
            _ => Ok(()),
        }
    }
}

/// Whether an `If-Range` names what is there: by its strong tag, or by the very time of its last change.
pub(crate) fn is_same(if_range: &HeaderValue, etag: &str, modified_ms: UnixMs) -> bool {
    let Ok(text) = if_range.to_str().map(str::trim) else { return false };
    if let Some(tag) = text.strip_prefix('"') {
        return tag.strip_suffix('"') == Some(etag);
    }
    Timestamp::parse(TimestampFormat::HttpDate, text).is_ok_and(|time| time == timestamp(modified_ms))
}

/// The condition of a PUT or a CompleteMultipartUpload.
pub(crate) fn of_put(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Result<PutCondition, S3Error> {
    match (if_match, if_none_match) {
        (None, None) => Ok(PutCondition::Any),
        (None, Some(ETagCondition::Any)) => Ok(PutCondition::Absent),
        (Some(ETagCondition::ETag(etag)), None) => Ok(PutCondition::Etag(etag.value().to_owned())),
        (None, Some(ETagCondition::ETag(_))) => {
            Err(s3_error!(NotImplemented, "If-None-Match of a PUT takes only the value *"))
        }
        (Some(ETagCondition::Any), None) => {
            Err(s3_error!(NotImplemented, "If-Match of a PUT takes only an entity tag"))
        }
        (Some(_), Some(_)) => {
            Err(s3_error!(InvalidRequest, "If-Match and If-None-Match cannot be used together"))
        }
    }
}

/// Whole seconds, which is all that HTTP dates carry.
pub(crate) fn timestamp(ms: UnixMs) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(ms / 1000))
}

fn matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        // The library hands a list over as one tag; ours have neither commas nor quotes in them.
        ETagCondition::ETag(wanted) => {
            wanted.value().split(',').any(|one| one.trim_matches(['"', ' ']) == etag)
        }
    }
}

fn failed(which: &'static str) -> S3Error {
    s3_error!(PreconditionFailed, "The pre-condition {which} did not hold")
}

fn not_modified(etag: &str, modified: &Timestamp) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    error.set_status_code(http::StatusCode::NOT_MODIFIED);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("\"{etag}\"")) {
        headers.insert(http::header::ETAG, value);
    }
    let mut text = Vec::new();
    if modified.format(TimestampFormat::HttpDate, &mut text).is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&text)
    {
        headers.insert(http::header::LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "00112233445566778899aabbccddeeff-1";
    const MODIFIED: UnixMs = 1_700_000_000_500;

    fn tag(text: &str) -> Option<ETagCondition> {
        Some(text.parse().unwrap())
    }

    fn code(conditions: &Conditions) -> Option<S3ErrorCode> {
        conditions.check(TAG, MODIFIED).err().map(|error| error.code().clone())
    }

    #[test]
    fn tags_decide_before_dates() {
        let stale = Some(timestamp(MODIFIED - 10_000));
        let same = format!("\"{TAG}\"");
        let conditions =
            Conditions { if_match: tag(&same), if_unmodified_since: stale.clone(), ..Default::default() };
        assert_eq!(code(&conditions), None);
        let conditions = Conditions {
            if_none_match: tag("\"other\""),
            if_modified_since: Some(timestamp(MODIFIED)),
            ..Default::default()
        };
        assert_eq!(code(&conditions), None);
        let conditions = Conditions { if_unmodified_since: stale, ..Default::default() };
        assert_eq!(code(&conditions), Some(S3ErrorCode::PreconditionFailed));
    }

    #[test]
    fn a_matching_none_match_is_304_with_the_tag() {
        let conditions = Conditions { if_none_match: tag(&format!("\"{TAG}\"")), ..Default::default() };
        let error = conditions.check(TAG, MODIFIED).unwrap_err();
        assert_eq!(error.status_code(), Some(http::StatusCode::NOT_MODIFIED));
        assert_eq!(error.headers().unwrap()[http::header::ETAG], format!("\"{TAG}\""));
    }

    #[test]
    fn a_date_equal_to_the_modification_is_not_modified() {
        let conditions = Conditions { if_modified_since: Some(timestamp(MODIFIED)), ..Default::default() };
        assert_eq!(code(&conditions), Some(S3ErrorCode::NotModified));
        let conditions =
            Conditions { if_modified_since: Some(timestamp(MODIFIED - 1000)), ..Default::default() };
        assert_eq!(code(&conditions), None);
    }

    #[test]
    fn a_range_is_wanted_only_of_what_the_client_has_begun_to_read() {
        for (text, expected) in [
            (format!("\"{TAG}\""), true),
            ("\"other\"".to_owned(), false),
            (format!("W/\"{TAG}\""), false),
            ("Tue, 14 Nov 2023 22:13:20 GMT".to_owned(), true),
            ("Tue, 14 Nov 2023 22:13:21 GMT".to_owned(), false),
            ("soon".to_owned(), false),
        ] {
            assert_eq!(is_same(&text.parse().unwrap(), TAG, MODIFIED), expected, "{text}");
        }
    }

    #[test]
    fn a_mismatch_is_412_and_a_star_matches_what_is_there() {
        let conditions = Conditions { if_match: tag("\"other\""), ..Default::default() };
        assert_eq!(code(&conditions), Some(S3ErrorCode::PreconditionFailed));
        let conditions = Conditions { if_match: tag("*"), ..Default::default() };
        assert_eq!(code(&conditions), None);
        let list = format!("\"other\", \"{TAG}\"");
        let conditions = Conditions { if_match: tag(&list), ..Default::default() };
        assert_eq!(code(&conditions), None);
        let conditions = Conditions { if_none_match: tag(&list), ..Default::default() };
        assert_eq!(code(&conditions), Some(S3ErrorCode::NotModified));
    }

    #[test]
    fn puts_take_absence_or_one_tag() {
        assert_eq!(of_put(None, tag("*").as_ref()).unwrap(), PutCondition::Absent);
        assert_eq!(of_put(tag("\"a\"").as_ref(), None).unwrap(), PutCondition::Etag("a".to_owned()));
        assert!(of_put(tag("*").as_ref(), None).is_err());
        assert!(of_put(tag("\"a\"").as_ref(), tag("*").as_ref()).is_err());
    }
}
