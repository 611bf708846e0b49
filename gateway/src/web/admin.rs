//! Looking things up over the admin API: objects and culprits.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;

use super::api::{CulpritList, CulpritRow, ObjectList, ObjectRow};
use super::{meta_failed, refuse};
use crate::gateway::Core;
use crate::meta::ListQuery;

const PAGE_DEFAULT: usize = 1000;

/// Which objects.
#[derive(Debug, Deserialize)]
pub(super) struct ObjectsQuery {
    bucket: String,
    #[serde(default)]
    prefix: String,
    token: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn objects(State(core): State<Arc<Core>>, Query(query): Query<ObjectsQuery>) -> Response {
    let bucket = match core.meta.bucket(&query.bucket).await {
        Ok(Some(bucket)) => bucket,
        Ok(None) => {
            return refuse(StatusCode::NOT_FOUND, format!("there is no bucket `{}`", query.bucket));
        }
        Err(error) => return meta_failed(&error),
    };
    let list = ListQuery {
        prefix: query.prefix,
        delimiter: String::new(),
        start_after: String::new(),
        token: query.token,
        max_keys: query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_DEFAULT),
    };
    match core.meta.list_objects(&bucket, &list).await {
        Ok(page) => {
            let row = |object: crate::meta::ObjectSummary| ObjectRow {
                bucket: bucket.name.clone(),
                key: object.key,
                cid: object.root_cid.to_string(),
                size: object.size,
                etag: object.etag,
                modified_ms: object.modified_ms,
            };
            let objects = page.objects.into_iter().map(row).collect();
            Json(ObjectList { objects, next: page.next }).into_response()
        }
        Err(error) => meta_failed(&error),
    }
}

pub(super) async fn culprits(State(core): State<Arc<Core>>) -> Json<CulpritList> {
    Json(CulpritList { culprits: culprit_rows(&core) })
}

/// Who was caught lying, latest first.
pub(super) fn culprit_rows(core: &Core) -> Vec<CulpritRow> {
    let row = |culprit: holdfast_retrieval::pool::Culprit| CulpritRow {
        node: culprit.node.to_string(),
        what: culprit.what,
        digest: culprit.digest.map(|digest| digest.to_string()).unwrap_or_default(),
        at_ms: culprit.at_ms,
        count: culprit.count,
    };
    core.pool.culprits().into_iter().map(row).collect()
}
