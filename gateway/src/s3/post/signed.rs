//! The policy of a form: its signature, its end, and whether the form keeps to it.

use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::time::UnixMs;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3Result, s3_error};
use subtle::ConstantTimeEq;

use super::form::Form;
use super::{access, error, lock};
use crate::gateway::Core;
use crate::keys::AccessKey;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Fields that a policy need not name.
const FREE_FIELDS: [&str; 3] = ["policy", "x-amz-signature", "file"];

/// The access key that signed the form, if the form keeps to what was signed; how long the file is, is still to be asked.
pub(super) async fn check(
    core: &Arc<Core>,
    form: &Form,
    bucket: &str,
) -> S3Result<(Arc<AccessKey>, Conditions)> {
    if form.field("awsaccesskeyid").is_some() || form.field("signature").is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "Signature Version 2 is not supported; sign with AWS4-HMAC-SHA256 (Signature Version 4)"
        ));
    }
    let Some(policy) = form.field("policy") else {
        return Err(s3_error!(AccessDenied, "Access Denied: the form carries no signed policy"));
    };
    let needed = |name: &'static str| {
        form.field(name)
            .ok_or_else(|| s3_error!(InvalidArgument, "Bucket POST must contain a field named '{name}'."))
    };
    if needed("x-amz-algorithm")? != ALGORITHM {
        return Err(s3_error!(InvalidArgument, "X-Amz-Algorithm only supports \"{ALGORITHM}\""));
    }
    let credential = needed("x-amz-credential")?;
    let (date, signature) = (needed("x-amz-date")?, needed("x-amz-signature")?);
    let scope: Vec<&str> = credential.split('/').collect();
    let [access_key, day, region, "s3", "aws4_request"] = scope[..] else {
        return Err(s3_error!(
            InvalidArgument,
            "The credential is malformed; expecting KEY/DATE/REGION/s3/aws4_request"
        ));
    };
    if !date.starts_with(day) {
        return Err(s3_error!(SignatureDoesNotMatch, "The credential's date is not that of the form"));
    }
    if form.field("x-amz-security-token").is_some() {
        return Err(s3_error!(NotImplemented, "Forms signed with a token are not implemented"));
    }
    let key = access::form_key(core, access_key).await?;
    let expected = signature_of(key.credentials.secret_key.as_str(), day, region, policy);
    if !bool::from(expected.as_bytes().ct_eq(signature.as_bytes())) {
        return Err(s3_error!(
            SignatureDoesNotMatch,
            "The request signature we calculated does not match the signature you provided."
        ));
    }
    let conditions = Conditions::parse(policy)?;
    conditions.check(form, bucket, core.config.clock.now_ms())?;
    Ok((key, conditions))
}

fn signature_of(secret: &str, day: &str, region: &str, policy: &str) -> String {
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, "s3", "aws4_request", policy] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    hex::encode(key)
}

/// What a policy demands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    expires_ms: UnixMs,
    fields: Vec<Condition>,
    length: Option<(u64, u64)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Condition {
    field: String,
    value: String,
    is_prefix: bool,
}

fn invalid(what: &str) -> S3Error {
    error::custom("InvalidPolicyDocument", http::StatusCode::BAD_REQUEST, format!("Invalid Policy: {what}"))
}

fn refused(what: &str) -> S3Error {
    s3_error!(AccessDenied, "Invalid according to Policy: {what}")
}

impl Conditions {
    fn parse(encoded: &str) -> S3Result<Self> {
        let json = STANDARD.decode(encoded.trim()).map_err(|_| invalid("it is not base64"))?;
        let json: serde_json::Value = serde_json::from_slice(&json).map_err(|_| invalid("Invalid JSON"))?;
        let expiration = json["expiration"].as_str().ok_or_else(|| invalid("Policy missing expiration."))?;
        let expiration = Timestamp::parse(TimestampFormat::DateTime, expiration)
            .map_err(|_| invalid("Invalid 'expiration' value"))?;
        let list = json["conditions"].as_array().ok_or_else(|| invalid("Policy missing conditions."))?;
        let mut parsed = Self { expires_ms: lock::ms_of(&expiration)?, fields: Vec::new(), length: None };
        for condition in list {
            parsed.take(condition)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, condition: &serde_json::Value) -> S3Result<()> {
        if let Some(object) = condition.as_object() {
            for (field, value) in object {
                let value = value.as_str().ok_or_else(|| invalid("a simple condition has a text"))?;
                self.push(field, value, false);
            }
            return Ok(());
        }
        let list = condition.as_array().map(Vec::as_slice).unwrap_or_default();
        let [kind, first, second] = list else { return Err(invalid("a condition has three elements")) };
        let kind = kind.as_str().unwrap_or_default().to_ascii_lowercase();
        if kind == "content-length-range" {
            let (Some(least), Some(most)) = (number(first), number(second)) else {
                return Err(invalid("content-length-range has two numbers"));
            };
            self.length = Some((least, most));
            return Ok(());
        }
        let field = first.as_str().and_then(|field| field.strip_prefix('$'));
        let (Some(field), Some(value)) = (field, second.as_str()) else {
            return Err(invalid("a condition names $FIELD and a text"));
        };
        match kind.as_str() {
            "eq" => self.push(field, value, false),
            "starts-with" => self.push(field, value, true),
            _ => return Err(invalid("unknown kind of condition")),
        }
        Ok(())
    }

    fn push(&mut self, field: &str, value: &str, is_prefix: bool) {
        self.fields.push(Condition { field: field.to_ascii_lowercase(), value: value.to_owned(), is_prefix });
    }

    fn check(&self, form: &Form, bucket: &str, now_ms: UnixMs) -> S3Result<()> {
        if self.expires_ms <= now_ms {
            return Err(refused("Policy expired."));
        }
        for condition in &self.fields {
            let value = match condition.field.as_str() {
                "bucket" => Some(bucket),
                field => form.field(field),
            };
            let value = value.unwrap_or_default();
            let holds = if condition.is_prefix {
                value.starts_with(&condition.value)
            } else {
                value == condition.value
            };
            if !holds {
                return Err(refused(&format!("Policy Condition failed: ${}", condition.field)));
            }
        }
        let is_named = |name: &str| self.fields.iter().any(|condition| condition.field == name);
        let is_free =
            |name: &str| FREE_FIELDS.contains(&name) || name.starts_with("x-ignore-") || name == "bucket";
        if let Some((extra, _)) = form.fields().find(|(name, _)| !is_free(name) && !is_named(name)) {
            return Err(refused(&format!("Extra input fields: {extra}")));
        }
        Ok(())
    }

    /// Whether a file of this length may be uploaded.
    pub(super) fn check_length(&self, len: u64) -> S3Result<()> {
        match self.length {
            Some((least, _)) if len < least => Err(s3_error!(
                EntityTooSmall,
                "Your proposed upload is smaller than the minimum allowed size"
            )),
            Some((_, most)) if len > most => {
                Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"))
            }
            _ => Ok(()),
        }
    }
}

fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(fields: &[(&str, &str)]) -> Form {
        let mut body = String::new();
        for (name, value) in fields {
            body.push_str(&format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        body.push_str("--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc\r\n--b--\r\n");
        Form::parse_head("multipart/form-data; boundary=b", body.as_bytes(), true).unwrap().unwrap()
    }

    fn conditions(list: &str) -> S3Result<Conditions> {
        Conditions::parse(
            &STANDARD.encode(format!(r#"{{"expiration":"2030-01-01T00:00:00.000Z","conditions":{list}}}"#)),
        )
    }

    #[test]
    fn a_form_keeps_to_its_policy_or_is_refused() {
        let policy = conditions(
            r#"[{"bucket":"b"},["starts-with","$key","up/"],["eq","$Content-Type","text/plain"],["content-length-range",2,4]]"#,
        )
        .unwrap();
        let good = [("key", "up/a"), ("content-type", "text/plain")];
        assert!(policy.check(&form(&good), "b", 0).is_ok());
        assert!(policy.check(&form(&good), "other", 0).is_err());
        assert!(policy.check(&form(&good), "b", u64::MAX).is_err());
        assert!(policy.check(&form(&[("key", "down/a"), good[1]]), "b", 0).is_err());
        assert!(policy.check(&form(&[good[0], good[1], ("acl", "public-read")]), "b", 0).is_err());
        assert!(policy.check(&form(&[good[0], good[1], ("x-ignore-this", "1")]), "b", 0).is_ok());
        for (len, fits) in [(1, false), (2, true), (4, true), (5, false)] {
            assert_eq!(policy.check_length(len).is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn policies_that_say_nothing_clear_are_refused() {
        for list in [
            "{}",
            r#"[["eq","key","x"]]"#,
            r#"[["near","$key","x"]]"#,
            r#"[["eq","$key"]]"#,
            r#"[{"key":1}]"#,
        ] {
            assert!(conditions(list).is_err(), "{list}");
        }
        assert!(Conditions::parse("!").is_err());
    }
}
