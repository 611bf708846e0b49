//! Object lock: versions that may not be deleted before a time, or while somebody holds them.
//!
//! The gateway refuses to delete them. The time of COMPLIANCE also goes to the nodes, which then refuse to let the blocks
//! go, whatever the gateway says. GOVERNANCE may be taken back, and a legal hold has no time: both stay with the gateway.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use holdfast_protocol::time::UnixMs;
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::{error, versions};
use crate::gateway::Core;
use crate::meta::{
    Bucket, DefaultRetention as Default_, DeleteError, Found, Lock, Object, Retention, RetentionMode,
    Versioning,
};

const DAYS_MAX: i32 = 36_500;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The lock that a new object gets: what its request says, else what its bucket says.
pub(crate) fn of_new(
    bucket: &Bucket,
    mode: Option<&str>,
    until: Option<&Timestamp>,
    hold: Option<&ObjectLockLegalHoldStatus>,
    now_ms: UnixMs,
) -> S3Result<Lock> {
    let legal_hold = hold.is_some_and(|status| status.as_str() == ObjectLockLegalHoldStatus::ON);
    let retention = match (mode, until) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            Some(Retention { mode: mode_of(mode)?, until_ms: future(until, now_ms)? })
        }
        _ => {
            return Err(s3_error!(
                InvalidArgument,
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied"
            ));
        }
    };
    if !bucket.features.lock {
        if retention.is_some() || hold.is_some() {
            return Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"));
        }
        return Ok(Lock::default());
    }
    let default = || {
        bucket.features.retention.map(|default| Retention {
            mode: default.mode,
            until_ms: now_ms + u64::from(default.days) * DAY_MS,
        })
    };
    Ok(Lock { retention: retention.or_else(default), legal_hold })
}

/// Queues what the nodes are told of a new lock, once its object is committed. It was promised in the transaction that
/// locked the object, so what fails here is done later, by whoever owns the deliveries.
pub(crate) async fn retain(core: &Core, object: &Object) {
    let retention = object.attributes.lock.retention;
    if !retention.is_some_and(|retention| retention.mode == RetentionMode::Compliance) {
        return;
    }
    if let Err(error) = core.meta.retain(object.version).await {
        tracing::warn!(%error, "the nodes will be told of a lock later");
    }
    core.wake_deliveries();
}

fn mode_of(text: &str) -> S3Result<RetentionMode> {
    match text {
        ObjectLockRetentionMode::GOVERNANCE => Ok(RetentionMode::Governance),
        ObjectLockRetentionMode::COMPLIANCE => Ok(RetentionMode::Compliance),
        _ => Err(s3_error!(MalformedXML, "The retention mode is GOVERNANCE or COMPLIANCE")),
    }
}

fn name_of(mode: RetentionMode) -> &'static str {
    match mode {
        RetentionMode::Governance => ObjectLockRetentionMode::GOVERNANCE,
        RetentionMode::Compliance => ObjectLockRetentionMode::COMPLIANCE,
    }
}

/// A document's or a header's time in milliseconds.
pub(super) fn ms_of(time: &Timestamp) -> S3Result<UnixMs> {
    let invalid = || s3_error!(InvalidArgument, "The date is out of range");
    let mut text = Vec::new();
    time.format(TimestampFormat::EpochSeconds, &mut text).map_err(|_| invalid())?;
    let text = String::from_utf8(text).map_err(|_| invalid())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| invalid())?;
    let ms: u64 = format!("{fraction:0<3}").get(..3).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    seconds.checked_mul(1000).and_then(|whole| whole.checked_add(ms)).ok_or_else(invalid)
}

fn future(time: &Timestamp, now_ms: UnixMs) -> S3Result<UnixMs> {
    let until_ms = ms_of(time)?;
    if until_ms <= now_ms {
        return Err(s3_error!(InvalidArgument, "The retain until date must be in the future!"));
    }
    Ok(until_ms)
}

/// A time in milliseconds as S3's documents carry it.
pub(super) fn date(ms: UnixMs) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(ms))
}

/// What GET and HEAD say of a lock.
pub(super) struct LockHeaders {
    pub(super) mode: Option<ObjectLockMode>,
    pub(super) until: Option<Timestamp>,
    pub(super) hold: Option<ObjectLockLegalHoldStatus>,
}

pub(super) fn headers_of(lock: &Lock) -> LockHeaders {
    let hold = lock.legal_hold.then(|| ObjectLockLegalHoldStatus::from_static(ObjectLockLegalHoldStatus::ON));
    LockHeaders {
        mode: lock.retention.map(|retention| ObjectLockMode::from_static(name_of(retention.mode))),
        until: lock.retention.map(|retention| date(retention.until_ms)),
        hold,
    }
}

fn with_lock(bucket: &Bucket) -> S3Result<()> {
    if bucket.features.lock {
        return Ok(());
    }
    Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"))
}

pub(super) async fn put_configuration(
    core: &Arc<Core>,
    request: S3Request<PutObjectLockConfigurationInput>,
) -> S3Result<S3Response<PutObjectLockConfigurationOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let configuration = input.object_lock_configuration.unwrap_or_default();
    let is_enabled = configuration
        .object_lock_enabled
        .as_ref()
        .is_some_and(|enabled| enabled.as_str() == ObjectLockEnabled::ENABLED);
    if !is_enabled {
        return Err(s3_error!(MalformedXML, "ObjectLockEnabled must be Enabled"));
    }
    let retention = match configuration.rule.and_then(|rule| rule.default_retention) {
        None => None,
        Some(default) => Some(default_of(&default)?),
    };
    core.meta
        .update_features(&bucket, |features| {
            if features.versioning != Versioning::Enabled {
                return Err(Refused(s3_error!(
                    InvalidBucketState,
                    "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration"
                )));
            }
            features.lock = true;
            features.retention = retention;
            Ok(())
        })
        .await
        .map_err(|Refused(error)| error)?;
    Ok(S3Response::new(PutObjectLockConfigurationOutput::default()))
}

/// A refusal out of a change of a bucket's switches.
pub(super) struct Refused(pub(super) S3Error);

impl From<crate::meta::BucketError> for Refused {
    fn from(error: crate::meta::BucketError) -> Self {
        Self(error::bucket(error))
    }
}

fn default_of(default: &DefaultRetention) -> S3Result<Default_> {
    let Some(mode) = &default.mode else {
        return Err(s3_error!(MalformedXML, "DefaultRetention has no Mode"));
    };
    let (days, in_years) = match (default.days, default.years) {
        (Some(days), None) => (days, false),
        (None, Some(years)) => (years.saturating_mul(365), true),
        _ => return Err(s3_error!(MalformedXML, "DefaultRetention has either Days or Years")),
    };
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(s3_error!(InvalidArgument, "Default retention period must be a positive integer value"));
    }
    Ok(Default_ { mode: mode_of(mode.as_str())?, days: u32::try_from(days).unwrap_or(1), in_years })
}

pub(super) async fn configuration(
    core: &Arc<Core>,
    request: S3Request<GetObjectLockConfigurationInput>,
) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    if !bucket.features.lock {
        return Err(super::document::missing(
            "ObjectLockConfigurationNotFoundError",
            "Object Lock configuration does not exist for this bucket",
        ));
    }
    let rule = bucket.features.retention.map(|default| {
        let days = i32::try_from(default.days).unwrap_or(i32::MAX);
        ObjectLockRule {
            default_retention: Some(DefaultRetention {
                mode: Some(ObjectLockRetentionMode::from_static(name_of(default.mode))),
                days: (!default.in_years).then_some(days),
                years: default.in_years.then_some(days / 365),
            }),
        }
    });
    let enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
    let configuration = ObjectLockConfiguration { object_lock_enabled: enabled, rule };
    Ok(S3Response::new(GetObjectLockConfigurationOutput { object_lock_configuration: Some(configuration) }))
}

pub(super) async fn put_retention(
    core: &Arc<Core>,
    request: S3Request<PutObjectRetentionInput>,
) -> S3Result<S3Response<PutObjectRetentionOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    with_lock(&bucket)?;
    let name = versions::named(input.version_id.as_deref())?;
    let wanted = input.retention.unwrap_or_default();
    let now_ms = core.config.clock.now_ms();
    let retention = match (&wanted.mode, &wanted.retain_until_date) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            Some(Retention { mode: mode_of(mode.as_str())?, until_ms: future(until, now_ms)? })
        }
        _ => return Err(s3_error!(MalformedXML, "Retention has both Mode and RetainUntilDate, or neither")),
    };
    let bypass = input.bypass_governance_retention == Some(true);
    let object = core
        .meta
        .update_version(&bucket, &input.key, name.as_ref(), |attributes, now_ms| {
            if shrinks(attributes.lock.retention, retention, now_ms, bypass) {
                return Err(DeleteError::LockShrinks);
            }
            attributes.lock.retention = retention;
            Ok(())
        })
        .await
        .map_err(|error| error::delete(error, &input.key, name.is_some()))?;
    retain(core, &object).await;
    Ok(S3Response::new(PutObjectRetentionOutput::default()))
}

/// Whether a retention would be weaker than the one it replaces, without the right to that.
fn shrinks(old: Option<Retention>, new: Option<Retention>, now_ms: UnixMs, bypass: bool) -> bool {
    let Some(old) = old.filter(|old| old.until_ms > now_ms) else { return false };
    let is_weaker = new.is_none_or(|new| {
        new.until_ms < old.until_ms
            || (old.mode == RetentionMode::Compliance && new.mode == RetentionMode::Governance)
    });
    is_weaker && !(bypass && old.mode == RetentionMode::Governance)
}

async fn locked_object(core: &Core, bucket: &str, key: &str, version: Option<&str>) -> S3Result<Box<Object>> {
    let bucket = existing(core, bucket).await?;
    with_lock(&bucket)?;
    let name = versions::named(version)?;
    match core.meta.version(&bucket, key, name.as_ref()).await.map_err(error::meta)? {
        Some(Found::Object(object)) => Ok(object),
        Some(Found::Marker { .. }) => Err(error::delete(DeleteError::IsMarker, key, name.is_some())),
        None => Err(error::delete(DeleteError::NoSuchVersion, key, name.is_some())),
    }
}

fn no_lock() -> S3Error {
    super::document::missing(
        "NoSuchObjectLockConfiguration",
        "The specified object does not have a ObjectLock configuration",
    )
}

pub(super) async fn get_retention(
    core: &Arc<Core>,
    request: S3Request<GetObjectRetentionInput>,
) -> S3Result<S3Response<GetObjectRetentionOutput>> {
    let input = request.input;
    let object = locked_object(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let retention = object.attributes.lock.retention.ok_or_else(no_lock)?;
    let retention = ObjectLockRetention {
        mode: Some(ObjectLockRetentionMode::from_static(name_of(retention.mode))),
        retain_until_date: Some(date(retention.until_ms)),
    };
    Ok(S3Response::new(GetObjectRetentionOutput { retention: Some(retention) }))
}

pub(super) async fn put_hold(
    core: &Arc<Core>,
    request: S3Request<PutObjectLegalHoldInput>,
) -> S3Result<S3Response<PutObjectLegalHoldOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    with_lock(&bucket)?;
    let name = versions::named(input.version_id.as_deref())?;
    let status = input.legal_hold.and_then(|hold| hold.status);
    let is_held = match status.as_ref().map(ObjectLockLegalHoldStatus::as_str) {
        Some(ObjectLockLegalHoldStatus::ON) => true,
        Some(ObjectLockLegalHoldStatus::OFF) => false,
        _ => return Err(s3_error!(MalformedXML, "The status of a legal hold is ON or OFF")),
    };
    core.meta
        .update_version(&bucket, &input.key, name.as_ref(), |attributes, _| {
            attributes.lock.legal_hold = is_held;
            Ok(())
        })
        .await
        .map_err(|error| error::delete(error, &input.key, name.is_some()))?;
    Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
}

pub(super) async fn get_hold(
    core: &Arc<Core>,
    request: S3Request<GetObjectLegalHoldInput>,
) -> S3Result<S3Response<GetObjectLegalHoldOutput>> {
    let input = request.input;
    let object = locked_object(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let status = if object.attributes.lock.legal_hold {
        ObjectLockLegalHoldStatus::ON
    } else {
        ObjectLockLegalHoldStatus::OFF
    };
    let hold = ObjectLockLegalHold { status: Some(ObjectLockLegalHoldStatus::from_static(status)) };
    Ok(S3Response::new(GetObjectLegalHoldOutput { legal_hold: Some(hold) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compliance_only_grows_and_governance_shrinks_with_the_right_to_it() {
        let at = |mode, until_ms| Some(Retention { mode, until_ms });
        let (governance, compliance) = (RetentionMode::Governance, RetentionMode::Compliance);
        for (old, new, bypass, expected) in [
            (None, at(governance, 5), false, false),
            (at(governance, 10), at(governance, 20), false, false),
            (at(governance, 10), at(governance, 5), false, true),
            (at(governance, 10), at(governance, 5), true, false),
            (at(governance, 10), None, true, false),
            (at(governance, 10), at(compliance, 10), false, false),
            (at(compliance, 10), at(compliance, 20), false, false),
            (at(compliance, 10), at(compliance, 9), true, true),
            (at(compliance, 10), at(governance, 20), true, true),
            (at(compliance, 10), None, true, true),
            (at(compliance, 1), None, false, false),
        ] {
            assert_eq!(shrinks(old, new, 2, bypass), expected, "{old:?} {new:?} {bypass}");
        }
    }
}
