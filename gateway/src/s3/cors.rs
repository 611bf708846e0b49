//! CORS: which pages of other origins may read our answers. Preflights are answered here, and answers to requests with
//! an Origin get the headers that let a browser hand them to the page.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use s3s::dto::*;
use s3s::{Body, S3Error, S3Request, S3Response, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::buckets::existing;
use super::{document, error};
use crate::gateway::Core;
use crate::meta::BucketSetting;

/// Rules of one bucket: S3's limit.
const RULES_MAX: usize = 100;
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    id: Option<String>,
    origins: Vec<String>,
    methods: Vec<String>,
    headers: Vec<String>,
    exposed: Vec<String>,
    max_age_s: Option<i32>,
}

impl Rule {
    fn parse(rule: CORSRule) -> S3Result<Self> {
        let parsed = Self {
            id: rule.id,
            origins: rule.allowed_origins,
            methods: rule.allowed_methods,
            headers: rule.allowed_headers.unwrap_or_default(),
            exposed: rule.expose_headers.unwrap_or_default(),
            max_age_s: rule.max_age_seconds,
        };
        if parsed.origins.is_empty() || parsed.methods.is_empty() {
            return Err(s3_error!(MalformedXML, "A CORS rule names its origins and methods"));
        }
        if let Some(method) = parsed.methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
            return Err(s3_error!(
                InvalidRequest,
                "Found unsupported HTTP method in CORS config. Unsupported method is {method}"
            ));
        }
        for pattern in parsed.origins.iter().chain(&parsed.headers) {
            if pattern.matches('*').count() > 1 {
                return Err(s3_error!(InvalidRequest, "\"{pattern}\" can not have more than one wildcard."));
            }
        }
        Ok(parsed)
    }

    fn allows(&self, origin: &str, method: &str) -> bool {
        self.origins.iter().any(|pattern| like(pattern, origin, false))
            && self.methods.iter().any(|allowed| allowed == method)
    }

    fn allows_headers(&self, asked: &str) -> bool {
        let mut names = asked.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.all(|name| self.headers.iter().any(|pattern| like(pattern, name, true)))
    }
}

/// Whether `text` is what `pattern` says, in which one `*` is anything.
fn like(pattern: &str, text: &str, any_case: bool) -> bool {
    let (pattern, text) = if any_case {
        (pattern.to_ascii_lowercase(), text.to_ascii_lowercase())
    } else {
        (pattern.to_owned(), text.to_owned())
    };
    match pattern.split_once('*') {
        None => pattern == text,
        Some((front, back)) => {
            text.len() >= front.len() + back.len() && text.starts_with(front) && text.ends_with(back)
        }
    }
}

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutBucketCorsInput>,
) -> S3Result<S3Response<PutBucketCorsOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let rules = input.cors_configuration.cors_rules;
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(s3_error!(MalformedXML, "A CORS configuration has 1 to {RULES_MAX} rules"));
    }
    let rules = rules.into_iter().map(Rule::parse).collect::<S3Result<Vec<_>>>()?;
    let bytes = document::encode(&rules)?;
    core.meta.put_bucket_setting(&bucket, BucketSetting::Cors, Some(&bytes)).await.map_err(error::bucket)?;
    Ok(S3Response::new(PutBucketCorsOutput::default()))
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetBucketCorsInput>,
) -> S3Result<S3Response<GetBucketCorsOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let rules: Option<Vec<Rule>> = document::read(core, &bucket, BucketSetting::Cors).await?;
    let missing = || document::missing("NoSuchCORSConfiguration", "The CORS configuration does not exist");
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let rules = rules.ok_or_else(missing)?.into_iter().map(|rule| CORSRule {
        allowed_headers: some(rule.headers),
        allowed_methods: rule.methods,
        allowed_origins: rule.origins,
        expose_headers: some(rule.exposed),
        id: rule.id,
        max_age_seconds: rule.max_age_s,
    });
    Ok(S3Response::new(GetBucketCorsOutput { cors_rules: Some(rules.collect()) }))
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketCorsInput>,
) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    core.meta.put_bucket_setting(&bucket, BucketSetting::Cors, None).await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeleteBucketCorsOutput::default(), StatusCode::NO_CONTENT))
}

async fn rules_of(core: &Core, bucket: Option<&str>) -> Result<Vec<Rule>, S3Error> {
    let Some(name) = bucket else { return Ok(Vec::new()) };
    let Some(bucket) = core.meta.bucket(name).await.map_err(error::meta)? else { return Ok(Vec::new()) };
    Ok(document::read(core, &bucket, BucketSetting::Cors).await?.unwrap_or_default())
}

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The answer to a preflight.
pub(super) async fn preflight(
    core: &Core,
    bucket: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, S3Error> {
    let Some(origin) = text(headers, &ORIGIN) else {
        return Err(error::custom(
            "BadRequest",
            StatusCode::BAD_REQUEST,
            "Insufficient information. Origin request header needed.",
        ));
    };
    let Some(method) = text(headers, &ACCESS_CONTROL_REQUEST_METHOD) else {
        return Err(error::custom(
            "BadRequest",
            StatusCode::BAD_REQUEST,
            "Invalid Access-Control-Request-Method: null",
        ));
    };
    let asked = text(headers, &ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default();
    let rules = rules_of(core, bucket).await?;
    let rule = rules.iter().find(|rule| rule.allows(origin, method) && rule.allows_headers(asked));
    let Some(rule) = rule else {
        return Err(error::custom(
            "AccessForbidden",
            StatusCode::FORBIDDEN,
            "CORSResponse: This CORS request is not allowed.",
        ));
    };
    let mut response = Response::new(Body::empty());
    let given = response.headers_mut();
    allow(given, rule, origin);
    insert(given, ACCESS_CONTROL_ALLOW_HEADERS, asked);
    if let Some(seconds) = rule.max_age_s {
        given.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(seconds));
    }
    Ok(response)
}

/// Adds to an answer what lets the asking page read it.
pub(super) async fn decorate(
    core: &Core,
    bucket: Option<&str>,
    (origin, method): (&HeaderValue, &http::Method),
    response: &mut Response<Body>,
) {
    let Ok(origin) = origin.to_str() else { return };
    // Without an answer there are no rules: a browser is told nothing, which is the safe side.
    let rules = rules_of(core, bucket).await.unwrap_or_default();
    if let Some(rule) = rules.iter().find(|rule| rule.allows(origin, method.as_str())) {
        allow(response.headers_mut(), rule, origin);
    }
}

fn allow(headers: &mut HeaderMap, rule: &Rule, origin: &str) {
    let is_for_all = rule.origins.iter().any(|pattern| pattern == "*");
    insert(headers, ACCESS_CONTROL_ALLOW_ORIGIN, if is_for_all { "*" } else { origin });
    if !is_for_all {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    insert(headers, ACCESS_CONTROL_ALLOW_METHODS, &rule.methods.join(", "));
    insert(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &rule.exposed.join(", "));
    headers.append(
        VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Headers, Access-Control-Request-Method"),
    );
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, text: &str) {
    if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(text)) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origins: &[&str], methods: &[&str], headers: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Rule {
            id: None,
            origins: owned(origins),
            methods: owned(methods),
            headers: owned(headers),
            exposed: Vec::new(),
            max_age_s: None,
        }
    }

    #[test]
    fn origins_methods_and_headers_are_matched() {
        let rule = rule(&["https://*.example.org"], &["GET"], &["x-amz-*", "content-type"]);
        assert!(rule.allows("https://app.example.org", "GET"));
        assert!(!rule.allows("https://app.example.org", "PUT"));
        assert!(!rule.allows("http://app.example.org", "GET"));
        assert!(!rule.allows("https://example.org.evil", "GET"));
        assert!(rule.allows_headers("X-Amz-Date, Content-Type"));
        assert!(!rule.allows_headers("authorization"));
        assert!(rule.allows_headers(""));
    }

    #[test]
    fn rules_that_browsers_cannot_use_are_refused() {
        let raw = |methods: &[&str], origin: &str| CORSRule {
            allowed_headers: None,
            allowed_methods: methods.iter().map(|text| (*text).to_owned()).collect(),
            allowed_origins: vec![origin.to_owned()],
            expose_headers: None,
            id: None,
            max_age_seconds: None,
        };
        assert!(Rule::parse(raw(&["GET"], "*")).is_ok());
        assert!(Rule::parse(raw(&["PATCH"], "*")).is_err());
        assert!(Rule::parse(raw(&[], "*")).is_err());
        assert!(Rule::parse(raw(&["GET"], "*a*")).is_err());
    }
}
