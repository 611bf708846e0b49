//! What a request asks for beyond bytes, and would not get: refused, never ignored.

use http::{HeaderMap, StatusCode};
use s3s::{S3Result, s3_error};

use super::{bucket_acl, error};
use crate::meta::Bucket;

/// Headers of things that do not exist here.
const REFUSED: [(&str, &str); 6] = [
    ("x-amz-server-side-encryption-customer-algorithm", "Encryption with customer-provided keys"),
    ("x-amz-server-side-encryption-customer-key", "Encryption with customer-provided keys"),
    ("x-amz-server-side-encryption-aws-kms-key-id", "Encryption with keys of a key service"),
    ("x-amz-copy-source-server-side-encryption-customer-algorithm", "Encryption with customer-provided keys"),
    ("x-amz-website-redirect-location", "Website redirection"),
    ("x-amz-write-offset-bytes", "Appending to objects"),
];

/// Checks the headers of a request that makes an object.
pub(super) fn check(bucket: &Bucket, headers: &HeaderMap) -> S3Result<()> {
    let text =
        |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    for (name, what) in REFUSED {
        if headers.contains_key(name) {
            return Err(s3_error!(NotImplemented, "{what} is not implemented"));
        }
    }
    if headers.keys().any(|name| name.as_str().starts_with("x-amz-grant-")) {
        return Err(bucket_acl::unsupported());
    }
    if let Some(acl) = text("x-amz-acl").or_else(|| text("acl")) {
        let is_so_already = acl == "public-read" && bucket.public;
        if !bucket_acl::HARMLESS.contains(&acl.as_str()) && !is_so_already {
            return Err(bucket_acl::unsupported());
        }
    }
    if let Some(class) = text("x-amz-storage-class").filter(|class| class != "STANDARD") {
        return Err(error::custom(
            "InvalidStorageClass",
            StatusCode::BAD_REQUEST,
            format!("The storage class {class} does not exist here; there is STANDARD"),
        ));
    }
    match text("x-amz-server-side-encryption").as_deref() {
        None => Ok(()),
        Some("AES256") if !bucket.public => Ok(()),
        Some("AES256") => {
            Err(s3_error!(InvalidRequest, "The bucket is public: its objects are not encrypted"))
        }
        Some(other) => Err(s3_error!(NotImplemented, "Server-side encryption by {other} is not implemented")),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{Encryption, PolicyName, ScopeId};

    use super::*;
    use crate::meta::{BucketId, Features};

    fn bucket(public: bool) -> Bucket {
        Bucket {
            name: "b".to_owned(),
            id: BucketId([0; 8]),
            created_ms: 0,
            public,
            encryption: if public { Encryption::None } else { Encryption::Aes256Ctr },
            scope: ScopeId([0; 16]),
            policy: PolicyName::Local,
            key_epoch: 1,
            features: Features::default(),
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (name, value, private, public) in [
            ("x-amz-acl", "private", true, true),
            ("x-amz-acl", "bucket-owner-full-control", true, true),
            ("x-amz-acl", "public-read", false, true),
            ("x-amz-acl", "public-read-write", false, false),
            ("x-amz-grant-read", "id=x", false, false),
            ("x-amz-storage-class", "STANDARD", true, true),
            ("x-amz-storage-class", "GLACIER", false, false),
            ("x-amz-server-side-encryption", "AES256", true, false),
            ("x-amz-server-side-encryption", "aws:kms", false, false),
            ("x-amz-website-redirect-location", "/x", false, false),
        ] {
            let headers: HeaderMap = [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect();
            assert_eq!(check(&bucket(false), &headers).is_ok(), private, "{name}: {value}");
            assert_eq!(check(&bucket(true), &headers).is_ok(), public, "{name}: {value}");
        }
    }
}
