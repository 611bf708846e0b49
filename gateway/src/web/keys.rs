//! Access keys over the admin API: made, listed, revoked, rotated; what they used, and the audit trail.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;

use super::api::{KeyList, KeyMade, KeyRow, NewKey, RotateKey, TokenMade, TrailList, UsageReport, UsageRow};
use super::{meta_failed, refuse};
use crate::gateway::Core;
use crate::keys::trail::{self, Entry};
use crate::keys::{AccessKey, AccessKeyError, Rules};

/// Lines of a page of keys.
const PAGE_MAX: usize = 1000;
/// Days of a usage report, unless others are asked for.
const REPORT_DAYS: u32 = 30;
/// Lines of the trail, unless others are asked for.
const TRAIL_LINES: usize = 100;
const DAY_MS: u64 = 86_400_000;

#[derive(Debug, Deserialize)]
pub(super) struct PageQuery {
    after: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn list(State(core): State<Arc<Core>>, Query(query): Query<PageQuery>) -> Response {
    let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    match core.access_keys.page(query.after.as_deref(), limit).await {
        Ok(keys) => {
            let next = (keys.len() == limit).then(|| keys.last().map(|key| key.id().to_owned())).flatten();
            let now_ms = core.config.clock.now_ms();
            let keys = keys.into_iter().map(|key| row(key, now_ms)).collect();
            Json(KeyList { keys, next }).into_response()
        }
        Err(error) => failed(&error),
    }
}

fn row(key: AccessKey, now_ms: u64) -> KeyRow {
    KeyRow {
        access_key: key.id().to_owned(),
        live: key.is_live(now_ms),
        person: key.person,
        rules: key.rules,
        created_ms: key.created_ms,
        revoked_ms: key.revoked_ms,
    }
}

pub(super) async fn create(State(core): State<Arc<Core>>, Json(new): Json<NewKey>) -> Response {
    let now_ms = core.config.clock.now_ms();
    let rules = if new.owner { Rules::owner() } else { new.rules };
    let made = core.access_keys.create(&new.person, rules, now_ms).await;
    made_answer(&core, "CreateAccessKey", &new.person, made)
}

pub(super) async fn revoke(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    if let Some(refusal) = malformed(&id) {
        return refusal;
    }
    let now_ms = core.config.clock.now_ms();
    match core.access_keys.revoke(&id, now_ms).await {
        Ok(key) => {
            note(&core, "RevokeAccessKey", &id, StatusCode::OK);
            Json(row(key, now_ms)).into_response()
        }
        Err(error) => failed(&error),
    }
}

pub(super) async fn rotate(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    Json(ask): Json<RotateKey>,
) -> Response {
    if let Some(refusal) = malformed(&id) {
        return refusal;
    }
    let made = core.access_keys.rotate(&id, ask.grace_ms, core.config.clock.now_ms()).await;
    made_answer(&core, "RotateAccessKey", &id, made)
}

/// A token for all that a key may do, for its holder to narrow and hand on.
pub(super) async fn token(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    if let Some(refusal) = malformed(&id) {
        return refusal;
    }
    match core.access_keys.live(&id, core.config.clock.now_ms()).await {
        Ok(Some(_)) => match core.tokens.issue(&id) {
            Ok(token) => {
                note(&core, "IssueToken", &id, StatusCode::OK);
                Json(TokenMade { token }).into_response()
            }
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Ok(None) => failed(&AccessKeyError::Unknown { id }),
        Err(error) => failed(&error),
    }
}

/// Ends a token by the name of one of its blocks.
pub(super) async fn revoke_token(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    if id.len() != 128 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let text = "the name of a token's block has 128 hexadecimal digits; `holdfast key inspect` shows it";
        return refuse(StatusCode::BAD_REQUEST, text);
    }
    match core.access_keys.revoke_token(&id, core.config.clock.now_ms()).await {
        Ok(()) => {
            note(&core, "RevokeToken", &id, StatusCode::OK);
            Json(serde_json::json!({ "revoked": id })).into_response()
        }
        Err(error) => failed(&error),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct UsageQuery {
    key: Option<String>,
    days: Option<u32>,
}

pub(super) async fn usage(State(core): State<Arc<Core>>, Query(query): Query<UsageQuery>) -> Response {
    let now_ms = core.config.clock.now_ms();
    // What was counted here a moment ago belongs to the report.
    if let Err(error) = core.key_usage.flush(&core.meta, now_ms).await {
        return meta_failed(&error);
    }
    let today = u32::try_from(now_ms / DAY_MS).unwrap_or(u32::MAX);
    let days = query.days.unwrap_or(REPORT_DAYS).max(1);
    match core.meta.key_counts(query.key.as_deref(), today, days).await {
        Ok(found) => {
            let row = |found: crate::meta::KeyDay| UsageRow {
                access_key: found.key,
                day: trail::day_of(u64::from(found.day) * DAY_MS),
                counts: found.counts,
            };
            Json(UsageReport { rows: found.into_iter().map(row).collect() }).into_response()
        }
        Err(error) => meta_failed(&error),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TrailQuery {
    key: Option<String>,
    person: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn trail(State(core): State<Arc<Core>>, Query(query): Query<TrailQuery>) -> Response {
    let limit = query.limit.unwrap_or(TRAIL_LINES);
    let read = tokio::task::spawn_blocking(move || {
        let wanted = |entry: &Entry| {
            query.key.as_ref().is_none_or(|key| *key == entry.key || *key == entry.object)
                && query.person.as_ref().is_none_or(|person| *person == entry.person)
        };
        core.trail.as_ref().map(|trail| trail.last(limit, wanted)).transpose()
    });
    match read.await {
        Ok(Ok(Some((entries, chain_holds)))) => Json(TrailList { entries, chain_holds }).into_response(),
        Ok(Ok(None)) | Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "this gateway keeps no audit trail"),
        Ok(Err(error)) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("the audit trail cannot be read: {error}"))
        }
    }
}

/// Gives a bucket a new key for all that is written from now on.
pub(super) async fn rotate_bucket(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Response {
    match core.meta.rotate_bucket(&name).await {
        Ok(bucket) => {
            note(&core, "RotateBucketKey", &name, StatusCode::OK);
            Json(serde_json::json!({ "bucket": bucket.name, "key_epoch": bucket.key_epoch })).into_response()
        }
        Err(crate::meta::BucketError::NotFound { .. }) => {
            refuse(StatusCode::BAD_REQUEST, format!("there is no bucket `{name}`"))
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

fn made_answer(
    core: &Core,
    operation: &str,
    what: &str,
    made: Result<AccessKey, AccessKeyError>,
) -> Response {
    match made {
        Ok(key) => {
            note(core, operation, what, StatusCode::OK);
            let token = match core.tokens.issue(key.id()) {
                Ok(token) => token,
                Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            };
            let made = KeyMade {
                access_key: key.id().to_owned(),
                secret_key: key.credentials.secret_key.to_string(),
                token,
                person: key.person,
                rules: key.rules,
            };
            Json(made).into_response()
        }
        Err(error) => failed(&error),
    }
}

/// An administrator's deed goes into the trail like everybody's.
fn note(core: &Core, operation: &str, what: &str, status: StatusCode) {
    let Some(trail) = &core.trail else { return };
    trail.add(Entry {
        at_ms: core.config.clock.now_ms(),
        person: "admin".to_owned(),
        operation: operation.to_owned(),
        object: what.to_owned(),
        status: status.as_u16(),
        ..Entry::default()
    });
}

fn malformed(id: &str) -> Option<Response> {
    let is_id = id.starts_with("HOLD") && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (!is_id).then(|| refuse(StatusCode::BAD_REQUEST, format!("`{id}` is not an access key of a gateway")))
}

fn failed(error: &AccessKeyError) -> Response {
    let status = match error {
        AccessKeyError::Unknown { .. } => StatusCode::NOT_FOUND,
        AccessKeyError::Changed { .. } => StatusCode::CONFLICT,
        AccessKeyError::Rules(_) | AccessKeyError::Person => StatusCode::BAD_REQUEST,
        AccessKeyError::Meta(error) => return meta_failed(error),
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => {
            tracing::error!(%error, "an access key cannot be used");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    refuse(status, error.to_string())
}
