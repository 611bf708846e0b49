//! Conditions of policy statements: parsed strictly, decided without I/O.
//!
//! Every operator that is taken is obeyed; every operator or key that would not be is refused when the policy is put. Within
//! a statement all conditions must hold; of the values of one condition, one must. A key that a request does not carry
//! makes a condition fail, unless its operator is a negation or ends in `IfExists`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use holdfast_protocol::time::UnixMs;
use http::{HeaderMap, Request, Uri, header};
use s3s::dto::{Timestamp, TimestampFormat};
use serde::Deserialize;

use super::policy::{OneOrMany, PolicyError, matches};
use crate::gateway::listen::Peer;

/// Addresses that so short a prefix names are as good as everybody's.
const CLOSED_PREFIX_BITS_MIN: u8 = 8;
/// The tags of the object that is asked for.
const EXISTING_TAG: &str = "s3:existingobjecttag/";
/// The tags that a request brings.
const REQUEST_TAG: &str = "s3:requestobjecttag/";
/// Keys that are a parameter of the request.
const PARAMETERS: [(&str, &str); 4] = [
    ("s3:prefix", "prefix"),
    ("s3:delimiter", "delimiter"),
    ("s3:max-keys", "max-keys"),
    ("s3:versionid", "versionId"),
];
/// Keys that are a header of the request.
const HEADERS: [(&str, &str); 12] = [
    ("aws:referer", "referer"),
    ("aws:useragent", "user-agent"),
    ("s3:x-amz-acl", "x-amz-acl"),
    ("s3:x-amz-copy-source", "x-amz-copy-source"),
    ("s3:x-amz-metadata-directive", "x-amz-metadata-directive"),
    ("s3:x-amz-server-side-encryption", "x-amz-server-side-encryption"),
    ("s3:x-amz-storage-class", "x-amz-storage-class"),
    ("s3:x-amz-content-sha256", "x-amz-content-sha256"),
    ("s3:object-lock-mode", "x-amz-object-lock-mode"),
    ("s3:object-lock-legal-hold", "x-amz-object-lock-legal-hold"),
    ("s3:if-match", "if-match"),
    ("s3:if-none-match", "if-none-match"),
];

/// What a request says that conditions may ask about.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    peer: Option<Peer>,
    headers: HeaderMap,
    uri: Uri,
}

/// Tokens and signatures are among the headers.
impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Facts(redacted)")
    }
}

impl Facts {
    /// Of the head of a request.
    pub(super) fn of<B>(request: &Request<B>, peer: Option<Peer>) -> Self {
        Self { peer, headers: request.headers().clone(), uri: request.uri().clone() }
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
    }

    fn parameter(&self, wanted: &str) -> Option<String> {
        // Decoded as the library decodes it: what is judged must be what is obeyed.
        let pairs = self.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let decode = |text: &str| super::refuse::decoded(&text.replace('+', " "));
        pairs.filter(|(name, _)| decode(name) == wanted).map(|(_, value)| decode(value)).next()
    }

    /// The version that the request names.
    pub(super) fn version(&self) -> Option<String> {
        self.parameter("versionId")
    }

    fn auth_type(&self) -> Option<&'static str> {
        if self.headers.contains_key(header::AUTHORIZATION) {
            return Some("REST-HEADER");
        }
        self.parameter("X-Amz-Signature").map(|_| "REST-QUERY-STRING")
    }

    fn tag(&self, wanted: &str) -> Option<String> {
        let tags = super::tagging::of_header(self.header("x-amz-tagging").as_deref()).ok()?;
        tags.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    }
}

/// What the conditions of a statement are asked with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The request.
    pub(crate) facts: &'a Facts,
    /// Now.
    pub(crate) now_ms: UnixMs,
    /// The tags of the object, where a condition asks for them.
    pub(crate) tags: &'a [(String, String)],
}

impl Asked<'_> {
    fn value(&self, key: &str) -> Option<Cow<'_, str>> {
        let facts = self.facts;
        if let Some((_, name)) = PARAMETERS.iter().find(|(known, _)| *known == key) {
            return facts.parameter(name).map(Cow::Owned);
        }
        if let Some((_, name)) = HEADERS.iter().find(|(known, _)| *known == key) {
            return facts.header(name);
        }
        if let Some(tag) = key.strip_prefix(EXISTING_TAG) {
            let found = self.tags.iter().find(|(name, _)| name.eq_ignore_ascii_case(tag));
            return found.map(|(_, value)| Cow::Borrowed(value.as_str()));
        }
        if let Some(tag) = key.strip_prefix(REQUEST_TAG) {
            return facts.tag(tag).map(Cow::Owned);
        }
        match key {
            "aws:sourceip" => facts.peer.map(|peer| Cow::Owned(peer.address.ip().to_canonical().to_string())),
            "aws:securetransport" => {
                Some(Cow::Borrowed(if facts.peer.is_some_and(|peer| peer.is_tls) { "true" } else { "false" }))
            }
            "aws:currenttime" => {
                let mut text = Vec::new();
                let now = super::lock::date(self.now_ms);
                now.format(TimestampFormat::DateTime, &mut text).ok()?;
                String::from_utf8(text).ok().map(Cow::Owned)
            }
            "aws:epochtime" => Some(Cow::Owned((self.now_ms / 1000).to_string())),
            "s3:authtype" => facts.auth_type().map(Cow::Borrowed),
            "s3:signatureversion" => facts.auth_type().map(|_| Cow::Borrowed("AWS4-HMAC-SHA256")),
            _ => None,
        }
    }
}

fn is_known(key: &str) -> bool {
    let is_tag =
        [EXISTING_TAG, REQUEST_TAG].iter().any(|tags| key.len() > tags.len() && key.starts_with(tags));
    let others = [
        "aws:sourceip",
        "aws:securetransport",
        "aws:currenttime",
        "aws:epochtime",
        "s3:authtype",
        "s3:signatureversion",
    ];
    is_tag || others.contains(&key) || PARAMETERS.iter().chain(&HEADERS).any(|(known, _)| *known == key)
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    test: Test,
    is_negated: bool,
    if_exists: bool,
    /// In lower case: names of keys have no case.
    key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Equals(Vec<String>),
    EqualsAnyCase(Vec<String>),
    Like(Vec<String>),
    Number(Order, Vec<i64>),
    /// In milliseconds.
    Date(Order, Vec<UnixMs>),
    Bool(Vec<bool>),
    Address(Vec<Network>),
    /// Whether the key is not there.
    Null(Vec<bool>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: Ord>(self, found: &T, wanted: &T) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::Less => found < wanted,
            Self::LessOrEqual => found <= wanted,
            Self::Greater => found > wanted,
            Self::GreaterOrEqual => found >= wanted,
        }
    }

    /// The order that ends an operator's name, and whether it is a negation.
    fn by_name(name: &str) -> Option<(Self, bool)> {
        Some(match name {
            "Equals" => (Self::Equal, false),
            "NotEquals" => (Self::Equal, true),
            "LessThan" => (Self::Less, false),
            "LessThanEquals" => (Self::LessOrEqual, false),
            "GreaterThan" => (Self::Greater, false),
            "GreaterThanEquals" => (Self::GreaterOrEqual, false),
            _ => return None,
        })
    }
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    fn holds(&self, found: IpAddr) -> bool {
        let top = |bits: u8, width: u32| width - u32::from(bits);
        match (self.address, found) {
            (IpAddr::V4(wanted), IpAddr::V4(found)) => {
                (wanted.to_bits() ^ found.to_bits()).checked_shr(top(self.bits, 32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(wanted), IpAddr::V6(found)) => {
                (wanted.to_bits() ^ found.to_bits()).checked_shr(top(self.bits, 128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A value as documents have it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum RawValue {
    Text(String),
    Bool(bool),
    Number(i64),
}

impl RawValue {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
        }
    }
}

/// The `Condition` of a statement: operator, key, values.
pub(super) type RawConditions = BTreeMap<String, BTreeMap<String, OneOrMany<RawValue>>>;

impl Condition {
    /// Parses all conditions of a statement.
    pub(super) fn parse_all(raw: RawConditions) -> Result<Vec<Self>, PolicyError> {
        let mut all = Vec::new();
        for (operator, keys) in raw {
            if keys.is_empty() {
                return Err(PolicyError::Malformed(format!("the condition {operator} names no key")));
            }
            for (key, values) in keys {
                let values = values.into_vec().into_iter().map(RawValue::into_text).collect();
                all.push(Self::parse(&operator, &key, values)?);
            }
        }
        Ok(all)
    }

    fn parse(operator: &str, key: &str, values: Vec<String>) -> Result<Self, PolicyError> {
        let key = key.to_ascii_lowercase();
        if !is_known(&key) {
            return Err(PolicyError::NotImplemented("A condition on such a key"));
        }
        let (name, if_exists) = match operator.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (operator, false),
        };
        let (test, is_negated) = parse_test(name, &key, values)?;
        Ok(Self { test, is_negated, if_exists, key })
    }

    /// Whether the request is as the condition says.
    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        let found = asked.value(&self.key);
        if let Test::Null(wanted) = &self.test {
            return wanted.contains(&found.is_none());
        }
        let Some(found) = found else { return self.is_negated || self.if_exists };
        self.test.holds(&found) != self.is_negated
    }

    /// Whether it asks for the object's tags, which cost a look-up.
    pub(super) fn needs_tags(&self) -> bool {
        self.key.starts_with(EXISTING_TAG)
    }

    /// Whether it keeps out all but few: what makes a statement for anybody less than public.
    pub(super) fn closes(&self) -> bool {
        match &self.test {
            Test::Address(networks) if !self.is_negated && !self.if_exists => {
                networks.iter().all(|network| network.bits >= CLOSED_PREFIX_BITS_MIN)
            }
            _ => false,
        }
    }
}

fn parse_test(name: &str, key: &str, values: Vec<String>) -> Result<(Test, bool), PolicyError> {
    let malformed = |value: &str| PolicyError::Malformed(format!("{value} is no value for {name} of {key}"));
    if values.is_empty() {
        return Err(PolicyError::Malformed(format!("{name} of {key} has no value")));
    }
    if let Some((order, is_negated)) = name.strip_prefix("Numeric").and_then(Order::by_name) {
        let numbers = each(&values, |value| value.parse().ok()).map_err(malformed)?;
        return Ok((Test::Number(order, numbers), is_negated));
    }
    if let Some((order, is_negated)) = name.strip_prefix("Date").and_then(Order::by_name) {
        return Ok((Test::Date(order, each(&values, date_of).map_err(malformed)?), is_negated));
    }
    Ok(match name {
        "StringEquals" => (Test::Equals(values), false),
        "StringNotEquals" => (Test::Equals(values), true),
        "StringEqualsIgnoreCase" => (Test::EqualsAnyCase(values), false),
        "StringNotEqualsIgnoreCase" => (Test::EqualsAnyCase(values), true),
        "StringLike" => (Test::Like(values), false),
        "StringNotLike" => (Test::Like(values), true),
        "Bool" => (Test::Bool(bools(&values).map_err(malformed)?), false),
        "Null" => (Test::Null(bools(&values).map_err(malformed)?), false),
        "IpAddress" => (Test::Address(each(&values, Network::parse).map_err(malformed)?), false),
        "NotIpAddress" => (Test::Address(each(&values, Network::parse).map_err(malformed)?), true),
        _ => return Err(PolicyError::NotImplemented("A condition with such an operator")),
    })
}

fn bools(values: &[String]) -> Result<Vec<bool>, &str> {
    each(values, |value| value.to_ascii_lowercase().parse().ok())
}

/// All values, or the one that is none.
fn each<T>(values: &[String], parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, &str> {
    values.iter().map(|value| parse(value).ok_or(value.as_str())).collect()
}

/// A date, or seconds since 1970.
fn date_of(text: &str) -> Option<UnixMs> {
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1000);
    }
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = Timestamp::parse(TimestampFormat::DateTime, &whole).ok()?;
    super::lock::ms_of(&time).ok()
}

impl Test {
    fn holds(&self, found: &str) -> bool {
        match self {
            Self::Equals(wanted) => wanted.iter().any(|wanted| wanted == found),
            Self::EqualsAnyCase(wanted) => {
                wanted.iter().any(|wanted| wanted.to_lowercase() == found.to_lowercase())
            }
            Self::Like(patterns) => patterns.iter().any(|pattern| matches(pattern, found)),
            Self::Number(order, wanted) => found
                .parse::<i64>()
                .is_ok_and(|found| wanted.iter().any(|wanted| order.holds(&found, wanted))),
            Self::Date(order, wanted) => {
                date_of(found).is_some_and(|found| wanted.iter().any(|wanted| order.holds(&found, wanted)))
            }
            Self::Bool(wanted) => found.parse::<bool>().is_ok_and(|found| wanted.contains(&found)),
            Self::Address(networks) => {
                found.parse().is_ok_and(|found| networks.iter().any(|network| network.holds(found)))
            }
            Self::Null(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Condition>, PolicyError> {
        Condition::parse_all(serde_json::from_str(text).unwrap())
    }

    fn facts(uri: &str, headers: &[(&'static str, &str)], address: &str) -> Facts {
        let mut request = Request::builder().uri(uri).body(()).unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        Facts::of(&request, Some(Peer { address: address.parse().unwrap(), is_tls: false }))
    }

    #[test]
    fn conditions_hold_as_their_operators_say() {
        let facts = facts(
            "/b?prefix=logs%2F1&max-keys=10",
            &[("referer", "https://a.example/x")],
            "[::ffff:10.1.2.3]:9",
        );
        let tags = [("Stage".to_owned(), "gold".to_owned())];
        let asked = Asked { facts: &facts, now_ms: 1_800_000_000_000, tags: &tags };
        for (text, expected) in [
            (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#, true),
            (r#"{"IpAddress":{"aws:SourceIp":["11.0.0.0/8","10.1.2.3"]}}"#, true),
            (r#"{"IpAddress":{"aws:SourceIp":"10.1.2.4/31"}}"#, false),
            (r#"{"IpAddress":{"aws:SourceIp":"::/0"}}"#, false),
            (r#"{"NotIpAddress":{"aws:SourceIp":"0.0.0.0/0"}}"#, false),
            (r#"{"StringLike":{"s3:prefix":"logs/*"}}"#, true),
            (r#"{"StringEquals":{"s3:prefix":["x","logs/1"]}}"#, true),
            (r#"{"StringNotEquals":{"s3:prefix":["x","logs/1"]}}"#, false),
            (r#"{"StringNotEquals":{"s3:delimiter":"/"}}"#, true),
            (r#"{"StringEquals":{"s3:delimiter":"/"}}"#, false),
            (r#"{"StringEqualsIfExists":{"s3:delimiter":"/"}}"#, true),
            (r#"{"NumericLessThan":{"s3:max-keys":10}}"#, false),
            (r#"{"NumericLessThanEquals":{"s3:max-keys":"10"}}"#, true),
            (r#"{"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}}"#, true),
            (r#"{"DateLessThan":{"aws:CurrentTime":"2026-01-01"}}"#, false),
            (r#"{"Bool":{"aws:SecureTransport":false}}"#, true),
            (r#"{"Null":{"aws:Referer":"false","s3:delimiter":"true"}}"#, true),
            (r#"{"StringEquals":{"s3:ExistingObjectTag/stage":"gold"}}"#, true),
            (r#"{"StringEqualsIgnoreCase":{"aws:Referer":"HTTPS://A.example/x"}}"#, true),
        ] {
            let conditions = parse(text).unwrap();
            assert!(!conditions.is_empty());
            assert_eq!(conditions.iter().all(|condition| condition.holds(&asked)), expected, "{text}");
        }
    }

    #[test]
    fn what_would_not_be_obeyed_is_not_taken() {
        for (text, is_malformed) in [
            (r#"{"Wonder":{"aws:SourceIp":"10.0.0.0/8"}}"#, false),
            (r#"{"StringEquals":{"aws:SourceVpc":"x"}}"#, false),
            (r#"{"ForAllValues:StringEquals":{"s3:prefix":"x"}}"#, false),
            (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/33"}}"#, true),
            (r#"{"Bool":{"aws:SecureTransport":"maybe"}}"#, true),
            (r#"{"NumericEquals":{"s3:max-keys":"many"}}"#, true),
            (r#"{"StringEquals":{"s3:prefix":[]}}"#, true),
            (r#"{"Bool":{}}"#, true),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(matches!(error, PolicyError::Malformed(_)), is_malformed, "{text}: {error}");
        }
    }

    #[test]
    fn only_a_narrow_list_of_addresses_closes_a_statement() {
        for (text, expected) in [
            (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#, true),
            (r#"{"IpAddress":{"aws:SourceIp":["10.0.0.0/8","0.0.0.0/0"]}}"#, false),
            (r#"{"NotIpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#, false),
            (r#"{"StringLike":{"aws:Referer":"https://a.example/*"}}"#, false),
        ] {
            assert_eq!(parse(text).unwrap()[0].closes(), expected, "{text}");
        }
    }
}
