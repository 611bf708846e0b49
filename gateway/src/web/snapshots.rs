//! Snapshots over the admin API.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};

use super::api::{CreateSnapshot, SnapshotList};
use super::{meta_failed, refuse};
use crate::gateway::Core;
use crate::snapshot::{self, SnapshotError};

pub(super) async fn list(State(core): State<Arc<Core>>) -> Response {
    match snapshot::list(&core).await {
        Ok(snapshots) => Json(SnapshotList { snapshots }).into_response(),
        Err(error) => failed(&error),
    }
}

pub(super) async fn create(State(core): State<Arc<Core>>, Json(new): Json<CreateSnapshot>) -> Response {
    // In a task of its own: a client that hangs up must not leave it half made.
    let made = tokio::spawn(snapshot::create(core, new.name, new.bucket, new.prefix));
    match made.await {
        Ok(Ok(row)) => (StatusCode::CREATED, Json(row)).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub(super) async fn remove(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Response {
    match tokio::spawn(snapshot::remove(core, name)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn failed(error: &SnapshotError) -> Response {
    let status = match error {
        SnapshotError::Name { .. } => StatusCode::BAD_REQUEST,
        SnapshotError::Exists { .. } | SnapshotError::Tree(_) | SnapshotError::TooMany => {
            StatusCode::CONFLICT
        }
        SnapshotError::NotFound { .. } | SnapshotError::NoSuchBucket { .. } | SnapshotError::Empty { .. } => {
            StatusCode::NOT_FOUND
        }
        SnapshotError::Restless { .. } => StatusCode::SERVICE_UNAVAILABLE,
        SnapshotError::Meta(error) => return meta_failed(error),
        SnapshotError::Link { source, .. } if source.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        SnapshotError::Link { .. } | SnapshotError::Bucket(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, error.to_string())
}
