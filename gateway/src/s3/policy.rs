//! Bucket policies: parsed strictly, decided without I/O.
//!
//! What is understood: statements of Allow and Deny with principals (`*` or access keys), actions and resources with
//! `*` and `?`, conditions ([`super::condition`]), and NotPrincipal, NotAction and NotResource where they deny. What is not
//! understood is refused when the policy is put, never ignored when it is asked. Anybody without a key may be allowed to
//! read and list, and nothing else.

use serde::Deserialize;

use super::condition::{self, Condition, RawConditions};

/// Bytes of a policy: S3's limit.
pub(crate) const POLICY_LEN_MAX: usize = 20 * 1024;
/// What anybody may be allowed.
const ANONYMOUS_ACTIONS: [&str; 7] = [
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:GetObjectTagging",
    "s3:GetObjectAttributes",
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:GetBucketLocation",
];
/// Versions of the language.
const VERSIONS: [&str; 2] = ["2012-10-17", "2008-10-17"];
/// Letters and digits of the longest access key.
const ACCESS_KEY_LEN_MAX: usize = 128;
const RESOURCE_PREFIX: &str = "arn:aws:s3:::";

/// Why a policy is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    /// It is no policy.
    #[error("{0}")]
    Malformed(String),
    /// It says something that would not be obeyed.
    #[error("{0} is not implemented in bucket policies")]
    NotImplemented(&'static str),
}

/// A bucket policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    version: Option<String>,
    statements: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    allows: bool,
    /// Access keys; `*` is anybody.
    principals: Names,
    actions: Names,
    resources: Names,
    conditions: Vec<Condition>,
}

/// Those that are named, or all others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    list: Vec<String>,
    /// `NotAction` and its like.
    is_negated: bool,
}

impl Names {
    fn hold(&self, is_it: impl Fn(&str) -> bool) -> bool {
        self.list.iter().any(|name| is_it(name)) != self.is_negated
    }
}

/// What a policy says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It denies, whatever else allows.
    Denied,
    /// It allows.
    Allowed,
    /// It says nothing.
    Silent,
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The access key; `None` without one.
    pub(crate) access_key: Option<&'a str>,
    /// `s3:GetObject` and its like.
    pub(crate) action: &'a str,
    pub(crate) bucket: &'a str,
    /// Empty when it is about the bucket.
    pub(crate) key: &'a str,
    /// What conditions ask about.
    pub(crate) conditions: condition::Asked<'a>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPrincipal {
    Anybody(String),
    Named(std::collections::BTreeMap<String, OneOrMany<String>>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawStatement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: String,
    principal: Option<RawPrincipal>,
    action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    condition: Option<RawConditions>,
    not_principal: Option<RawPrincipal>,
    not_action: Option<OneOrMany<String>>,
    not_resource: Option<OneOrMany<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawPolicy {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMany<RawStatement>,
}

impl Policy {
    /// Parses a policy that is to be put on `bucket`.
    pub(crate) fn parse(text: &str, bucket: &str) -> Result<Self, PolicyError> {
        let policy = Self::parse_kept(text, bucket)?;
        if policy.version.as_ref().is_some_and(|version| !VERSIONS.contains(&version.as_str())) {
            return Err(PolicyError::Malformed("The policy must contain a valid version string".to_owned()));
        }
        let named = policy.statements.iter().flat_map(|statement| &statement.principals.list);
        match named.into_iter().find(|name| !is_principal(name)) {
            Some(name) => Err(PolicyError::Malformed(format!(
                "Invalid principal in policy: {name}; a principal is * or an access key"
            ))),
            None => Ok(policy),
        }
    }

    /// Parses the policy that `bucket` has. Earlier releases took any version, and principals that are nobody's; they still
    /// are nobody's.
    pub(crate) fn parse_kept(text: &str, bucket: &str) -> Result<Self, PolicyError> {
        let malformed = |what: &str| PolicyError::Malformed(what.to_owned());
        if text.len() > POLICY_LEN_MAX {
            return Err(malformed("the policy is longer than 20 KiB"));
        }
        let raw: RawPolicy = serde_json::from_str(text)
            .map_err(|error| PolicyError::Malformed(format!("This policy contains invalid Json: {error}")))?;
        let statements = raw
            .statement
            .into_vec()
            .into_iter()
            .map(|statement| Statement::parse(statement, bucket))
            .collect::<Result<Vec<_>, _>>()?;
        if statements.is_empty() {
            return Err(malformed("the policy has no statement"));
        }
        Ok(Self { version: raw.version, statements })
    }

    /// What it says of a request.
    pub(crate) fn decide(&self, asked: &Asked<'_>) -> Verdict {
        let mut verdict = Verdict::Silent;
        for statement in self.statements.iter().filter(|statement| statement.is_about(asked)) {
            if !statement.allows {
                return Verdict::Denied;
            }
            verdict = Verdict::Allowed;
        }
        verdict
    }

    /// Whether it lets anybody read, wherever they are.
    pub(crate) fn is_public(&self) -> bool {
        self.statements.iter().any(|statement| {
            statement.allows
                && statement.names_anybody()
                && !statement.conditions.iter().any(Condition::closes)
        })
    }

    /// Whether it can only be decided with the tags of the object.
    pub(crate) fn needs_tags(&self) -> bool {
        self.statements.iter().flat_map(|statement| &statement.conditions).any(Condition::needs_tags)
    }
}

impl Statement {
    fn parse(raw: RawStatement, bucket: &str) -> Result<Self, PolicyError> {
        let malformed = |what: &str| PolicyError::Malformed(what.to_owned());
        let allows = match raw.effect.as_str() {
            "Allow" => true,
            "Deny" => false,
            _ => return Err(malformed("Effect is Allow or Deny")),
        };
        let negated = [
            (raw.not_principal.is_some(), "Allowing with NotPrincipal"),
            (raw.not_action.is_some(), "Allowing with NotAction"),
            (raw.not_resource.is_some(), "Allowing with NotResource"),
        ];
        if allows && let Some((_, what)) = negated.iter().find(|(is_there, _)| *is_there) {
            return Err(PolicyError::NotImplemented(what));
        }
        let (named, others) =
            (raw.principal.map(principals).transpose()?, raw.not_principal.map(principals).transpose()?);
        let list = |list: Option<OneOrMany<String>>| list.map(OneOrMany::into_vec);
        let statement = Self {
            allows,
            principals: names(named, others, "Principal")?,
            actions: names(list(raw.action), list(raw.not_action), "Action")?,
            resources: names(list(raw.resource), list(raw.not_resource), "Resource")?,
            conditions: Condition::parse_all(raw.condition.unwrap_or_default())?,
        };
        statement.check(bucket)?;
        Ok(statement)
    }

    fn check(&self, bucket: &str) -> Result<(), PolicyError> {
        let malformed = |what: String| Err(PolicyError::Malformed(what));
        for action in &self.actions.list {
            if action != "*" && !action.starts_with("s3:") {
                return malformed(format!("Policy has invalid action: {action}"));
            }
            let is_reading = ANONYMOUS_ACTIONS.contains(&action.as_str());
            if self.allows
                && self.names_anybody()
                && !is_reading
                && action != "s3:Get*"
                && action != "s3:List*"
            {
                return Err(PolicyError::NotImplemented("Allowing anybody more than reading"));
            }
        }
        for resource in &self.resources.list {
            let name = resource.strip_prefix(RESOURCE_PREFIX);
            let name = name.map(|name| name.split_once('/').map_or(name, |(bucket, _)| bucket));
            if name != Some(bucket) {
                return malformed(format!("Policy has invalid resource: {resource}"));
            }
        }
        Ok(())
    }

    fn names_anybody(&self) -> bool {
        self.principals.hold(|principal| principal == "*")
    }

    fn is_about(&self, asked: &Asked<'_>) -> bool {
        let resource = if asked.key.is_empty() {
            format!("{RESOURCE_PREFIX}{}", asked.bucket)
        } else {
            format!("{RESOURCE_PREFIX}{}/{}", asked.bucket, asked.key)
        };
        let is_named = self
            .principals
            .hold(|principal| principal == "*" || asked.access_key.is_some_and(|key| principal == key));
        // Whatever a pattern covers, nobody without a key gets more than reading.
        let is_open = asked.access_key.is_some() || !self.allows || ANONYMOUS_ACTIONS.contains(&asked.action);
        is_named
            && is_open
            && self.actions.hold(|action| matches(action, asked.action))
            && self.resources.hold(|pattern| matches(pattern, &resource))
            && self.conditions.iter().all(|condition| condition.holds(&asked.conditions))
    }
}

/// What a statement names under `field` or under its negation: one of them, and something.
fn names(
    named: Option<Vec<String>>,
    others: Option<Vec<String>>,
    field: &'static str,
) -> Result<Names, PolicyError> {
    let names = match (named, others) {
        (Some(list), None) => Names { list, is_negated: false },
        (None, Some(list)) => Names { list, is_negated: true },
        (None, None) => {
            return Err(PolicyError::Malformed(format!("Missing required field {field}")));
        }
        (Some(_), Some(_)) => {
            return Err(PolicyError::Malformed(format!("{field} and Not{field} cannot both be given")));
        }
    };
    if names.list.is_empty() {
        return Err(PolicyError::Malformed("a statement names nobody or nothing".to_owned()));
    }
    Ok(names)
}

/// Whether a principal can be anybody's: whoever is named in another way would never be met, and a statement that
/// denies him would be a promise that is not kept.
fn is_principal(name: &str) -> bool {
    let is_key = name.len() <= ACCESS_KEY_LEN_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name == "*" || (is_key && !name.is_empty())
}

fn principals(raw: RawPrincipal) -> Result<Vec<String>, PolicyError> {
    match raw {
        RawPrincipal::Anybody(text) if text == "*" => Ok(vec![text]),
        RawPrincipal::Anybody(_) => Err(PolicyError::Malformed("Invalid principal in policy".to_owned())),
        RawPrincipal::Named(map) => {
            let mut all = Vec::new();
            for (kind, names) in map {
                if kind != "AWS" {
                    return Err(PolicyError::NotImplemented("A principal other than AWS"));
                }
                all.extend(names.into_vec());
            }
            Ok(all)
        }
    }
}

/// The action of an operation.
pub(crate) fn action_of(operation: &str, has_version: bool) -> String {
    let name = match (operation, has_version) {
        ("GetObject" | "HeadObject", false) => "GetObject",
        ("GetObject" | "HeadObject", true) => "GetObjectVersion",
        ("ListObjects" | "ListObjectsV2" | "HeadBucket", _) => "ListBucket",
        ("ListObjectVersions", _) => "ListBucketVersions",
        ("ListMultipartUploads", _) => "ListBucketMultipartUploads",
        ("ListParts", _) => "ListMultipartUploadParts",
        (
            "CreateMultipartUpload"
            | "UploadPart"
            | "UploadPartCopy"
            | "CompleteMultipartUpload"
            | "CopyObject"
            | "PostObject",
            _,
        ) => "PutObject",
        ("DeleteObject", true) => "DeleteObjectVersion",
        ("DeleteObjects", _) => "DeleteObject",
        (other, _) => other,
    };
    format!("s3:{name}")
}

/// Whether `text` is what `pattern` says, in which `*` is anything and `?` any one character.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut star, mut from) = (0, None, 0);
    let mut position = 0;
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some(at);
                from = position;
                at += 1;
            }
            Some(character) if *character == '?' || *character == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match star {
                Some(star) => {
                    at = star + 1;
                    from += 1;
                    position = from;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|character| *character == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(access_key: Option<&'a str>, action: &'a str, key: &'a str) -> Asked<'a> {
        static FACTS: std::sync::LazyLock<condition::Facts> = std::sync::LazyLock::new(Default::default);
        let conditions = condition::Asked { facts: &FACTS, now_ms: 0, tags: &[] };
        Asked { access_key, action, bucket: "data", key, conditions }
    }

    fn policy(statements: &str) -> Result<Policy, PolicyError> {
        Policy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#), "data")
    }

    #[test]
    fn anybody_may_read_what_the_policy_opens_and_nothing_else() {
        let policy = policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/open/*"}"#,
        )
        .unwrap();
        assert!(policy.is_public());
        for (action, key, verdict) in [
            ("s3:GetObject", "open/a", Verdict::Allowed),
            ("s3:GetObject", "closed/a", Verdict::Silent),
            ("s3:PutObject", "open/a", Verdict::Silent),
            ("s3:ListBucket", "", Verdict::Silent),
        ] {
            assert_eq!(policy.decide(&asked(None, action, key)), verdict, "{action} {key}");
        }
    }

    #[test]
    fn denying_wins_and_keys_can_be_named() {
        let policy = policy(
            r#"{"Effect":"Allow","Principal":{"AWS":["*"]},"Action":["s3:Get*"],"Resource":"arn:aws:s3:::data/*"},
               {"Effect":"Deny","Principal":{"AWS":"HOLDKEY"},"Action":"s3:*","Resource":["arn:aws:s3:::data/x?"]}"#,
        )
        .unwrap();
        assert_eq!(policy.decide(&asked(Some("HOLDKEY"), "s3:GetObject", "x1")), Verdict::Denied);
        assert_eq!(policy.decide(&asked(Some("HOLDKEY"), "s3:GetObject", "x12")), Verdict::Allowed);
        assert_eq!(policy.decide(&asked(None, "s3:GetObject", "x1")), Verdict::Allowed);
        assert_eq!(policy.decide(&asked(None, "s3:GetBucketPolicy", "")), Verdict::Silent);
    }

    #[test]
    fn conditions_and_negations_narrow_statements() {
        let policy = policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/*","Condition":{"Bool":{"aws:SecureTransport":"true"}}},
               {"Effect":"Deny","NotPrincipal":{"AWS":"HOLDKEY"},"NotAction":"s3:GetObject","Resource":"arn:aws:s3:::data/*"}"#,
        )
        .unwrap();
        // The request that is asked about came without TLS.
        assert_eq!(policy.decide(&asked(None, "s3:GetObject", "x")), Verdict::Silent);
        assert_eq!(policy.decide(&asked(Some("HOLDOTHER"), "s3:PutObject", "x")), Verdict::Denied);
        assert_eq!(policy.decide(&asked(Some("HOLDKEY"), "s3:PutObject", "x")), Verdict::Silent);
    }

    #[test]
    fn what_would_not_be_obeyed_is_refused() {
        for (text, implemented) in [
            (
                r#"{"Effect":"Allow","Principal":"*","NotAction":"s3:GetObject","Resource":"arn:aws:s3:::data/*"}"#,
                false,
            ),
            (
                r#"{"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::1:user/x"},"Action":"s3:*","Resource":"arn:aws:s3:::data/*"}"#,
                true,
            ),
            (
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::data/*"}"#,
                false,
            ),
            (r#"{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::data/*"}"#, false),
            (
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::other/*"}"#,
                true,
            ),
            (
                r#"{"Effect":"Maybe","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/*"}"#,
                true,
            ),
            (r#"{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/*"}"#, true),
            (
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/*","Unknown":1}"#,
                true,
            ),
        ] {
            let error = policy(text).unwrap_err();
            assert_eq!(matches!(error, PolicyError::Malformed(_)), implemented, "{text}: {error}");
        }
        assert!(Policy::parse("{", "data").is_err());
    }

    #[test]
    fn patterns_have_stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*d", "abcbd", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
