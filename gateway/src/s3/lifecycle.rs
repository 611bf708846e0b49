//! Lifecycle: what a bucket deletes by itself, and when. Rules are parsed strictly and decided without I/O; the run over
//! a bucket is here too and is started by the background.
//!
//! A day is 24 hours from the version's own time; S3 rounds up to the next midnight, which is never earlier.

use std::sync::Arc;

use holdfast_protocol::time::UnixMs;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::buckets::existing;
use super::{document, error, lock};
use crate::gateway::Core;
use crate::meta::{
    Bucket, BucketSetting, DeleteCondition, DeleteError, Deletion, Found, MetaError, UploadError,
    VersionLine, VersionQuery, Versioning,
};

/// Rules of one bucket: S3's limit.
const RULES_MAX: usize = 1000;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Lines looked at a time.
const PAGE: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rule {
    id: Option<String>,
    enabled: bool,
    /// The old form puts the prefix into the rule itself; shown as it came.
    old_form: bool,
    prefix: String,
    tags: Vec<(String, String)>,
    larger_than: Option<u64>,
    smaller_than: Option<u64>,
    days: Option<u32>,
    date_ms: Option<UnixMs>,
    expired_markers: bool,
    noncurrent_days: Option<u32>,
    noncurrent_kept: Option<u32>,
    abort_days: Option<u32>,
}

/// A version as rules look at it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) key: &'a str,
    /// `None` of a delete marker.
    pub(crate) size: Option<u64>,
    pub(crate) tags: &'a [(String, String)],
    pub(crate) modified_ms: UnixMs,
    pub(crate) is_latest: bool,
    /// Since when it is not the latest, and how many newer ones there are that are not either.
    pub(crate) noncurrent: Option<(UnixMs, u32)>,
    /// Whether it is all there is under its key.
    pub(crate) is_alone: bool,
}

impl Rule {
    fn covers(&self, key: &str, size: Option<u64>, tags: &[(String, String)]) -> bool {
        self.enabled
            && key.starts_with(&self.prefix)
            && self.tags.iter().all(|tag| tags.contains(tag))
            && self.larger_than.is_none_or(|least| size.is_some_and(|size| size > least))
            && self.smaller_than.is_none_or(|most| size.is_some_and(|size| size < most))
    }

    /// Whether the version is to be deleted now.
    pub(crate) fn expires(&self, candidate: &Candidate<'_>, now_ms: UnixMs) -> bool {
        if !self.covers(candidate.key, candidate.size, candidate.tags) {
            return false;
        }
        let over = |since: UnixMs, days: Option<u32>| {
            days.is_some_and(|days| since.saturating_add(u64::from(days) * DAY_MS) <= now_ms)
        };
        match (candidate.is_latest, candidate.size) {
            (true, Some(_)) => {
                over(candidate.modified_ms, self.days) || self.date_ms.is_some_and(|date| date <= now_ms)
            }
            // A delete marker that hides nothing.
            (true, None) => {
                candidate.is_alone && (self.expired_markers || over(candidate.modified_ms, self.days))
            }
            (false, _) => candidate.noncurrent.is_some_and(|(since, newer)| {
                over(since, self.noncurrent_days) && self.noncurrent_kept.is_none_or(|kept| newer >= kept)
            }),
        }
    }

    /// Whether an upload that began then is to be aborted now.
    pub(crate) fn aborts(&self, key: &str, created_ms: UnixMs, now_ms: UnixMs) -> bool {
        self.enabled
            && key.starts_with(&self.prefix)
            && self
                .abort_days
                .is_some_and(|days| created_ms.saturating_add(u64::from(days) * DAY_MS) <= now_ms)
    }

    fn parse(rule: LifecycleRule) -> S3Result<Self> {
        if rule.transitions.is_some_and(|list| !list.is_empty())
            || rule.noncurrent_version_transitions.is_some_and(|list| !list.is_empty())
        {
            return Err(s3_error!(
                NotImplemented,
                "Transitions are not implemented: there is one storage class"
            ));
        }
        let enabled = match rule.status.as_str() {
            ExpirationStatus::ENABLED => true,
            ExpirationStatus::DISABLED => false,
            _ => return Err(s3_error!(MalformedXML, "The status of a rule is Enabled or Disabled")),
        };
        let mut parsed = Self { id: rule.id, enabled, ..Self::default() };
        if parsed.id.as_ref().is_some_and(|id| id.len() > 255) {
            return Err(s3_error!(InvalidArgument, "ID length should not exceed allowed limit of 255"));
        }
        match (rule.prefix, rule.filter) {
            (Some(_), Some(_)) => {
                return Err(s3_error!(MalformedXML, "A rule has either a Prefix or a Filter"));
            }
            (prefix, None) => {
                parsed.old_form = true;
                parsed.prefix = prefix.unwrap_or_default();
            }
            (None, Some(filter)) => parsed.take_filter(filter),
        }
        if let Some(expiration) = rule.expiration {
            parsed.days = positive(expiration.days)?;
            parsed.date_ms = expiration.date.as_ref().map(lock::ms_of).transpose()?;
            parsed.expired_markers = expiration.expired_object_delete_marker == Some(true);
            let named = [parsed.days.is_some(), parsed.date_ms.is_some(), parsed.expired_markers];
            if named.iter().filter(|named| **named).count() != 1 {
                return Err(s3_error!(
                    MalformedXML,
                    "Expiration names one of Days, Date and ExpiredObjectDeleteMarker"
                ));
            }
            if parsed.date_ms.is_some_and(|ms| ms % DAY_MS != 0) {
                return Err(s3_error!(InvalidArgument, "'Date' must be at midnight GMT"));
            }
        }
        if let Some(noncurrent) = rule.noncurrent_version_expiration {
            parsed.noncurrent_days = positive(noncurrent.noncurrent_days)?;
            parsed.noncurrent_kept = positive(noncurrent.newer_noncurrent_versions)?;
        }
        if let Some(abort) = rule.abort_incomplete_multipart_upload {
            parsed.abort_days = positive(abort.days_after_initiation)?;
        }
        let does_something = parsed.days.is_some()
            || parsed.date_ms.is_some()
            || parsed.expired_markers
            || parsed.noncurrent_days.is_some()
            || parsed.abort_days.is_some();
        if !does_something {
            return Err(s3_error!(InvalidRequest, "At least one action needs to be specified in a rule"));
        }
        if parsed.abort_days.is_some() && !parsed.tags.is_empty() {
            return Err(s3_error!(
                InvalidRequest,
                "AbortIncompleteMultipartUpload cannot be specified with Tags"
            ));
        }
        Ok(parsed)
    }

    fn take_filter(&mut self, filter: LifecycleRuleFilter) {
        let bound = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let pair = |tag: Tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default());
        if let Some(all) = filter.and {
            self.prefix = all.prefix.unwrap_or_default();
            self.tags = all.tags.unwrap_or_default().into_iter().map(pair).collect();
            self.larger_than = bound(all.object_size_greater_than);
            self.smaller_than = bound(all.object_size_less_than);
        } else {
            self.prefix = filter.prefix.unwrap_or_default();
            self.tags = filter.tag.into_iter().map(pair).collect();
            self.larger_than = bound(filter.object_size_greater_than);
            self.smaller_than = bound(filter.object_size_less_than);
        }
    }

    fn shown(self) -> LifecycleRule {
        let wide = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
        let narrow = |value: Option<u32>| value.and_then(|value| i32::try_from(value).ok());
        let tag =
            |(key, value): &(String, String)| Tag { key: Some(key.clone()), value: Some(value.clone()) };
        let conditions = usize::from(!self.prefix.is_empty())
            + self.tags.len()
            + usize::from(self.larger_than.is_some())
            + usize::from(self.smaller_than.is_some());
        let filter = if conditions > 1 {
            LifecycleRuleFilter {
                and: Some(LifecycleRuleAndOperator {
                    prefix: (!self.prefix.is_empty()).then(|| self.prefix.clone()),
                    tags: (!self.tags.is_empty()).then(|| self.tags.iter().map(tag).collect()),
                    object_size_greater_than: wide(self.larger_than),
                    object_size_less_than: wide(self.smaller_than),
                }),
                ..LifecycleRuleFilter::default()
            }
        } else {
            let has_other = conditions == 1 && self.prefix.is_empty();
            LifecycleRuleFilter {
                prefix: (!has_other).then(|| self.prefix.clone()),
                tag: self.tags.first().map(tag),
                object_size_greater_than: wide(self.larger_than),
                object_size_less_than: wide(self.smaller_than),
                ..LifecycleRuleFilter::default()
            }
        };
        let expires = self.days.is_some() || self.date_ms.is_some() || self.expired_markers;
        LifecycleRule {
            id: self.id,
            status: ExpirationStatus::from_static(if self.enabled {
                ExpirationStatus::ENABLED
            } else {
                ExpirationStatus::DISABLED
            }),
            prefix: self.old_form.then(|| self.prefix.clone()),
            filter: (!self.old_form).then_some(filter),
            expiration: expires.then(|| LifecycleExpiration {
                days: narrow(self.days),
                date: self.date_ms.map(lock::date),
                expired_object_delete_marker: self.expired_markers.then_some(true),
            }),
            noncurrent_version_expiration: self.noncurrent_days.map(|days| NoncurrentVersionExpiration {
                noncurrent_days: narrow(Some(days)),
                newer_noncurrent_versions: narrow(self.noncurrent_kept),
            }),
            abort_incomplete_multipart_upload: self
                .abort_days
                .map(|days| AbortIncompleteMultipartUpload { days_after_initiation: narrow(Some(days)) }),
            noncurrent_version_transitions: None,
            transitions: None,
        }
    }
}

fn positive(value: Option<i32>) -> S3Result<Option<u32>> {
    match value {
        None => Ok(None),
        Some(value) if value > 0 => Ok(u32::try_from(value).ok()),
        Some(_) => Err(s3_error!(InvalidArgument, "Days and counts of a rule must be positive")),
    }
}

pub(super) async fn put(
    core: &Arc<Core>,
    request: S3Request<PutBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let rules = input.lifecycle_configuration.map(|configuration| configuration.rules).unwrap_or_default();
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(s3_error!(MalformedXML, "A lifecycle configuration has 1 to {RULES_MAX} rules"));
    }
    let mut parsed = rules.into_iter().map(Rule::parse).collect::<S3Result<Vec<_>>>()?;
    for (index, rule) in parsed.iter_mut().enumerate() {
        rule.id.get_or_insert_with(|| format!("rule-{}", index + 1));
    }
    let mut ids: Vec<_> = parsed.iter().map(|rule| rule.id.clone()).collect();
    ids.sort();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(s3_error!(
            InvalidArgument,
            "Rule ID must be unique. Found same ID for more than one rule"
        ));
    }
    let bytes = document::encode(&parsed)?;
    let put = core.meta.put_bucket_setting(&bucket, BucketSetting::Lifecycle, Some(&bytes)).await;
    put.map_err(error::bucket)?;
    Ok(S3Response::new(PutBucketLifecycleConfigurationOutput::default()))
}

pub(super) async fn get(
    core: &Arc<Core>,
    request: S3Request<GetBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let rules: Option<Vec<Rule>> = document::read(core, &bucket, BucketSetting::Lifecycle).await?;
    let missing =
        || document::missing("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist");
    let rules = rules.ok_or_else(missing)?.into_iter().map(Rule::shown).collect();
    Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
        rules: Some(rules),
        ..GetBucketLifecycleConfigurationOutput::default()
    }))
}

pub(super) async fn delete(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketLifecycleInput>,
) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    core.meta.put_bucket_setting(&bucket, BucketSetting::Lifecycle, None).await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeleteBucketLifecycleOutput::default(), http::StatusCode::NO_CONTENT))
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Versions and delete markers deleted, or hidden by a new delete marker.
    pub(crate) versions: u64,
    /// Uploads aborted.
    pub(crate) uploads: u64,
}

/// Deletes all that is due in all buckets. What cannot be deleted (locked, or changed meanwhile) is left for the next run.
pub(crate) async fn run(core: &Core, now_ms: UnixMs) -> Result<Expired, MetaError> {
    let mut done = Expired::default();
    for bucket in core.meta.buckets().await? {
        let Ok(Some(rules)) = document::read::<Vec<Rule>>(core, &bucket, BucketSetting::Lifecycle).await
        else {
            continue;
        };
        expire_versions(core, &bucket, &rules, now_ms, &mut done).await?;
        if rules.iter().any(|rule| rule.abort_days.is_some()) {
            abort_uploads(core, &bucket, &rules, now_ms, &mut done).await?;
        }
    }
    if done != Expired::default() {
        core.wake_deliveries();
    }
    Ok(done)
}

/// What is known of the key that the walk is at.
#[derive(Default)]
struct KeyWalk {
    key: String,
    newer_ms: UnixMs,
    noncurrent: u32,
}

async fn expire_versions(
    core: &Core,
    bucket: &Bucket,
    rules: &[Rule],
    now_ms: UnixMs,
    done: &mut Expired,
) -> Result<(), MetaError> {
    let mut query = VersionQuery { max: PAGE, ..VersionQuery::default() };
    let mut at = KeyWalk::default();
    loop {
        let page = core.meta.list_versions(bucket, &query).await?;
        for (index, line) in page.lines.iter().enumerate() {
            if line.is_latest || line.key != at.key {
                at = KeyWalk { key: line.key.clone(), ..KeyWalk::default() };
            }
            // Across a page's end nobody is called alone: the next run looks again.
            let is_alone = line.is_latest
                && page.lines.get(index + 1).map_or(page.next.is_none(), |next| next.key != line.key);
            let noncurrent = (!line.is_latest).then_some((at.newer_ms, at.noncurrent));
            if is_due(core, bucket, rules, (line, noncurrent, is_alone), now_ms).await?
                && expire(core, bucket, line).await?
            {
                done.versions += 1;
            }
            at.noncurrent += u32::from(!line.is_latest);
            at.newer_ms = line.modified_ms;
        }
        let Some((key, version)) = page.next else { return Ok(()) };
        (query.key_marker, query.version_marker) = (key, version);
    }
}

async fn is_due(
    core: &Core,
    bucket: &Bucket,
    rules: &[Rule],
    (line, noncurrent, is_alone): (&VersionLine, Option<(UnixMs, u32)>, bool),
    now_ms: UnixMs,
) -> Result<bool, MetaError> {
    let candidate = |tags| Candidate {
        key: &line.key,
        size: line.object.as_ref().map(|(size, _)| *size),
        tags,
        modified_ms: line.modified_ms,
        is_latest: line.is_latest,
        noncurrent,
        is_alone,
    };
    let (with_tags, without): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| !rule.tags.is_empty());
    if without.iter().any(|rule| rule.expires(&candidate(&[]), now_ms)) {
        return Ok(true);
    }
    // Tags are read only for versions that a rule would delete if they had its tags.
    let may = with_tags.iter().any(|rule| rule.expires(&candidate(&rule.tags), now_ms));
    if !may {
        return Ok(false);
    }
    let found = core.meta.version(bucket, &line.key, Some(&line.name)).await?;
    let Some(Found::Object(object)) = found else { return Ok(false) };
    let tags = object.attributes.tags.clone();
    Ok(with_tags.iter().any(|rule| rule.expires(&candidate(&tags), now_ms)))
}

async fn expire(core: &Core, bucket: &Bucket, line: &VersionLine) -> Result<bool, MetaError> {
    let is_kept = bucket.features.versioning != Versioning::Off && line.is_latest && line.object.is_some();
    let deletion = Deletion {
        version: (!is_kept).then_some(line.name),
        // Whoever wrote the key since the listing keeps what was written.
        condition: DeleteCondition {
            etag: line.object.as_ref().map(|(_, etag)| etag.clone()),
            ..DeleteCondition::default()
        },
        bypass_governance: false,
    };
    match core.meta.delete(bucket, &line.key, &deletion).await {
        Ok(deleted) => Ok(deleted.existed),
        Err(DeleteError::Meta(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

async fn abort_uploads(
    core: &Core,
    bucket: &Bucket,
    rules: &[Rule],
    now_ms: UnixMs,
    done: &mut Expired,
) -> Result<(), MetaError> {
    let (mut key, mut id) = (String::new(), None);
    loop {
        let page = core.meta.list_uploads(bucket, "", "", (&key, id), PAGE).await?;
        for upload in &page.uploads {
            if !rules.iter().any(|rule| rule.aborts(&upload.key, upload.created_ms, now_ms)) {
                continue;
            }
            match core.meta.abort_upload(bucket, &upload.key, upload.id).await {
                Ok(()) => done.uploads += 1,
                Err(UploadError::NoSuchUpload) => {}
                Err(error) => tracing::warn!(%error, key = upload.key, "an upload cannot be aborted"),
            }
        }
        match page.next {
            None => return Ok(()),
            Some((next, next_id)) => (key, id) = (next, next_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 100 * DAY_MS;

    fn current(age_days: u64) -> Candidate<'static> {
        Candidate {
            key: "logs/a",
            size: Some(100),
            tags: &[],
            modified_ms: NOW - age_days * DAY_MS,
            is_latest: true,
            noncurrent: None,
            is_alone: true,
        }
    }

    fn rule() -> Rule {
        Rule { enabled: true, prefix: "logs/".to_owned(), ..Rule::default() }
    }

    #[test]
    fn current_versions_expire_by_age_prefix_size_and_tags() {
        let ten = Rule { days: Some(10), ..rule() };
        assert!(ten.expires(&current(10), NOW) && !ten.expires(&current(9), NOW));
        assert!(!Rule { enabled: false, ..ten.clone() }.expires(&current(10), NOW));
        assert!(!Rule { prefix: "other".to_owned(), ..ten.clone() }.expires(&current(10), NOW));
        assert!(!Rule { larger_than: Some(100), ..ten.clone() }.expires(&current(10), NOW));
        assert!(Rule { smaller_than: Some(101), ..ten.clone() }.expires(&current(10), NOW));
        let tagged = Rule { tags: vec![("a".to_owned(), "b".to_owned())], ..ten };
        assert!(!tagged.expires(&current(10), NOW));
        let tags = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())];
        assert!(tagged.expires(&Candidate { tags: &tags, ..current(10) }, NOW));
        assert!(Rule { date_ms: Some(NOW), ..rule() }.expires(&current(0), NOW));
        assert!(!Rule { date_ms: Some(NOW + 1), ..rule() }.expires(&current(0), NOW));
    }

    #[test]
    fn noncurrent_versions_expire_by_when_they_were_replaced() {
        let past = |days: u64, newer| Candidate {
            is_latest: false,
            noncurrent: Some((NOW - days * DAY_MS, newer)),
            ..current(90)
        };
        let rule = Rule { noncurrent_days: Some(5), noncurrent_kept: Some(2), ..rule() };
        assert!(rule.expires(&past(5, 2), NOW));
        assert!(!rule.expires(&past(4, 2), NOW) && !rule.expires(&past(5, 1), NOW));
        assert!(!rule.expires(&current(90), NOW));
    }

    #[test]
    fn markers_go_when_they_hide_nothing_and_uploads_when_they_are_old() {
        let marker = Candidate { size: None, ..current(1) };
        let rule_of_markers = Rule { expired_markers: true, ..rule() };
        assert!(rule_of_markers.expires(&marker, NOW));
        assert!(!rule_of_markers.expires(&Candidate { is_alone: false, ..marker }, NOW));
        let abort = Rule { abort_days: Some(3), ..rule() };
        assert!(abort.aborts("logs/x", NOW - 3 * DAY_MS, NOW));
        assert!(!abort.aborts("logs/x", NOW - 3 * DAY_MS + 1, NOW) && !abort.aborts("x", 0, NOW));
    }
}
