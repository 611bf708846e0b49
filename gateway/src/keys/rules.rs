//! What an access key may do: grants on buckets and prefixes, an end, a quota, limits. Decides without I/O.

use holdfast_protocol::time::UnixMs;
use serde::{Deserialize, Serialize};

/// Grants of one key.
pub const GRANTS_MAX: usize = 64;
/// Bytes of a bucket pattern or a prefix.
pub const PATTERN_LEN_MAX: usize = 1024;

/// What is done to a bucket or its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Read objects and what is known of them.
    Read,
    /// List keys.
    List,
    /// Put objects, parts and copies.
    Write,
    /// Delete objects.
    Delete,
    /// Create, configure and delete buckets.
    Manage,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::List, Self::Write, Self::Delete, Self::Manage];

    /// Its word in options, tokens and the trail.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Manage => "manage",
        }
    }

    /// The operation of this word.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }
}

/// Leave to do some operations in some buckets, below some prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// A bucket's name; with `*` at its end, all buckets whose names begin so.
    pub bucket: String,
    /// Only keys that begin with this; all when empty.
    #[serde(default)]
    pub prefix: String,
    /// What may be done.
    pub operations: Vec<Operation>,
}

impl Grant {
    fn is_of(&self, bucket: &str) -> bool {
        match self.bucket.strip_suffix('*') {
            Some(start) => bucket.starts_with(start),
            None => self.bucket == bucket,
        }
    }
}

/// What a key may do, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// What it may do; nothing when empty.
    pub grants: Vec<Grant>,
    /// It ends by itself.
    pub expires_ms: Option<UnixMs>,
    /// No more is written once the buckets it may write to hold this many bytes.
    pub quota_bytes: Option<u64>,
    /// Requests a second, at each gateway.
    pub requests_per_second: Option<u32>,
    /// Bytes up and down a second, at each gateway.
    pub bytes_per_second: Option<u64>,
    /// Requests under way at once, at each gateway.
    pub concurrent: Option<u32>,
}

impl Rules {
    /// Everything, without end or limit: the owner's.
    pub fn owner() -> Self {
        let grant =
            Grant { bucket: "*".to_owned(), prefix: String::new(), operations: Operation::ALL.to_vec() };
        Self { grants: vec![grant], ..Self::default() }
    }

    /// Whether these are the owner's.
    pub fn is_owner(&self) -> bool {
        let is_whole = |grant: &Grant| {
            grant.bucket == "*" && grant.prefix.is_empty() && grant.operations == Operation::ALL
        };
        self.grants.len() == 1
            && self.grants.iter().all(is_whole)
            && self.expires_ms.is_none()
            && self.quota_bytes.is_none()
            && self.requests_per_second.is_none()
            && self.bytes_per_second.is_none()
            && self.concurrent.is_none()
    }

    /// Whether the rules can be kept.
    pub fn check(&self) -> Result<(), RulesError> {
        if self.grants.is_empty() {
            return Err(RulesError::NoGrant);
        }
        if self.grants.len() > GRANTS_MAX {
            return Err(RulesError::TooManyGrants { found: self.grants.len() });
        }
        for grant in &self.grants {
            let is_pattern = !grant.bucket.is_empty()
                && grant.bucket.len() <= PATTERN_LEN_MAX
                && !grant.bucket.trim_end_matches('*').contains('*')
                && !grant.bucket.ends_with("**");
            if !is_pattern {
                return Err(RulesError::Bucket { pattern: grant.bucket.clone() });
            }
            if grant.prefix.len() > PATTERN_LEN_MAX {
                return Err(RulesError::Prefix);
            }
            if grant.operations.is_empty() {
                return Err(RulesError::NoOperation { bucket: grant.bucket.clone() });
            }
        }
        Ok(())
    }

    /// Whether `operation` is granted on this object of this bucket, or on the bucket as a whole.
    pub fn allow(&self, operation: Operation, bucket: &str, object: Option<&str>) -> bool {
        self.grants.iter().any(|grant| {
            let within = match object {
                Some(key) => key.starts_with(&grant.prefix),
                None => grant.prefix.is_empty(),
            };
            within && grant.is_of(bucket) && grant.operations.contains(&operation)
        })
    }

    /// Whether `operation` is granted on anything in this bucket.
    pub fn allow_some(&self, operation: Operation, bucket: &str) -> bool {
        self.grants.iter().any(|grant| grant.is_of(bucket) && grant.operations.contains(&operation))
    }

    /// Whether the key has anything to do with this bucket: then it may know that it exists.
    pub fn know(&self, bucket: &str) -> bool {
        self.grants.iter().any(|grant| grant.is_of(bucket))
    }

    /// Whether every key that is granted here is granted by `wider`, too: what a person may hand on.
    pub fn is_within(&self, wider: &Self) -> bool {
        self.grants.iter().all(|mine| {
            mine.operations.iter().all(|operation| {
                wider.grants.iter().any(|theirs| {
                    let bucket = match theirs.bucket.strip_suffix('*') {
                        Some(start) => mine.bucket.starts_with(start),
                        None => theirs.bucket == mine.bucket,
                    };
                    bucket && mine.prefix.starts_with(&theirs.prefix) && theirs.operations.contains(operation)
                })
            })
        })
    }
}

/// Why rules cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// A key that may do nothing.
    #[error("a key needs a grant at least: name a bucket and what may be done in it")]
    NoGrant,
    /// More than are kept.
    #[error("{found} grants are more than the {GRANTS_MAX} that a key can have")]
    TooManyGrants {
        /// How many.
        found: usize,
    },
    /// Not a bucket or a pattern.
    #[error("`{pattern}` is neither a bucket nor the beginning of names with one * behind it")]
    Bucket {
        /// What was given.
        pattern: String,
    },
    /// A prefix longer than any key.
    #[error("a prefix has at most {PATTERN_LEN_MAX} bytes")]
    Prefix,
    /// A grant of nothing.
    #[error("nothing is granted on `{bucket}`; name some of read, list, write, delete, manage")]
    NoOperation {
        /// Where.
        bucket: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(grants: &[(&str, &str, &[Operation])]) -> Rules {
        let grant = |(bucket, prefix, operations): &(&str, &str, &[Operation])| Grant {
            bucket: (*bucket).to_owned(),
            prefix: (*prefix).to_owned(),
            operations: operations.to_vec(),
        };
        Rules { grants: grants.iter().map(grant).collect(), ..Rules::default() }
    }

    #[test]
    fn a_grant_reaches_its_bucket_its_prefix_and_its_operations_and_no_further() {
        use Operation::{Delete, List, Manage, Read, Write};
        let rules = rules(&[("train", "v1/", &[Read, List]), ("alice-*", "", &[Read, Write, Manage])]);
        for (operation, bucket, object, allowed) in [
            (Read, "train", Some("v1/a"), true),
            (Read, "train", Some("v1"), false),
            (Read, "train", Some("v2/a"), false),
            (Write, "train", Some("v1/a"), false),
            (Read, "trains", Some("v1/a"), false),
            (Read, "trai", Some("v1/a"), false),
            (Manage, "train", None, false),
            (List, "train", None, false),
            (Manage, "alice-x", None, true),
            (Write, "alice-", Some("k"), true),
            (Write, "alice", Some("k"), false),
            (Delete, "alice-x", Some("k"), false),
            (Read, "bob-x", Some("k"), false),
        ] {
            assert_eq!(rules.allow(operation, bucket, object), allowed, "{operation:?} {bucket} {object:?}");
        }
        assert!(rules.know("train") && rules.know("alice-1") && !rules.know("bob"));
        assert!(rules.allow_some(List, "train") && !rules.allow_some(Write, "train"));
    }

    #[test]
    fn rules_are_handed_on_narrower_or_not_at_all() {
        use Operation::{Read, Write};
        let wide = rules(&[("data*", "a/", &[Read, Write])]);
        assert!(rules(&[("data-1", "a/b", &[Read])]).is_within(&wide));
        assert!(rules(&[("data*", "a/", &[Read, Write])]).is_within(&wide));
        for wider in [("dat*", "a/", Read), ("data", "a", Read), ("data", "a/", Operation::Delete)] {
            assert!(!rules(&[(wider.0, wider.1, &[wider.2])]).is_within(&wide), "{wider:?}");
        }
        assert!(wide.is_within(&Rules::owner()));
    }

    #[test]
    fn rules_that_say_nothing_are_refused() {
        assert_eq!(Rules::default().check(), Err(RulesError::NoGrant));
        for bucket in ["", "a*b", "**"] {
            let error = rules(&[(bucket, "", &[Operation::Read])]).check();
            assert!(matches!(error, Err(RulesError::Bucket { .. })), "{bucket}");
        }
        assert!(Rules::owner().check().is_ok() && Rules::owner().is_owner());
    }
}
