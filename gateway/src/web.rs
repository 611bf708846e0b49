//! The web side: health, metrics, the admin API and a status page.
//!
//! Reading health, metrics, status and the page is free, joining takes an invite; everything else takes
//! `Authorization: Bearer` with the admin token. Handlers only translate: what they ask for is done by [`crate::background`] and [`crate::meta`].

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use futures::FutureExt;
use tower::ServiceExt;

use crate::gateway::listen::{Handler, answer_body};
use crate::gateway::{Core, telemetry};

mod admin;
pub mod api;
mod challenge;
mod join;
mod keys;
mod nodes;
mod openapi;
mod page;
mod plan;
mod relay;
mod repair;
mod retrieval;
mod snapshots;
mod status;

/// The handler of the web listener.
pub(crate) fn handler(core: Arc<Core>) -> Handler {
    // Installed before the first request counts anything.
    telemetry::recorder();
    let router = router(core);
    Arc::new(move |request| {
        let router = router.clone();
        async move {
            match router.oneshot(request.map(Body::new)).await {
                Ok(response) => Ok(response.map(answer_body)),
                Err(never) => match never {},
            }
        }
        .boxed()
    })
}

fn router(core: Arc<Core>) -> Router {
    let admin = Router::new()
        .route("/api/v1/nodes", get(nodes::list))
        .route("/api/v1/invites", get(join::invites).post(join::invite))
        .route("/api/v1/invites/{id}", delete(join::revoke_invite))
        .route("/api/v1/nodes/{id}/challenge", post(relay::challenge))
        .route("/api/v1/nodes/{id}", delete(nodes::remove))
        .route("/api/v1/objects", get(admin::objects))
        .route("/api/v1/culprits", get(admin::culprits))
        .route("/api/v1/keys", get(keys::list).post(keys::create))
        .route("/api/v1/keys/{id}", delete(keys::revoke))
        .route("/api/v1/keys/{id}/rotate", post(keys::rotate))
        .route("/api/v1/keys/{id}/token", post(keys::token))
        .route("/api/v1/tokens/{id}", delete(keys::revoke_token))
        .route("/api/v1/buckets/{id}/rotate", post(keys::rotate_bucket))
        .route("/api/v1/usage", get(keys::usage))
        .route("/api/v1/trail", get(keys::trail))
        .route("/api/v1/repair", get(repair::state).post(repair::start))
        .route("/api/v1/retrieval", get(retrieval::show))
        .route("/api/v1/repair/damage", post(repair::damage))
        .route("/api/v1/challenge", post(challenge::targets))
        .route("/api/v1/snapshots", get(snapshots::list).post(snapshots::create))
        .route("/api/v1/snapshots/{name}", delete(snapshots::remove))
        .layer(middleware::from_fn_with_state(Arc::clone(&core), admin_only));
    Router::new()
        .route("/", get(page::show))
        .route("/admin", get(page::show_all))
        .route("/healthz", get(status::health))
        .route("/metrics", get(status::metrics))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/plan", get(plan::show))
        .route("/api/v1/openapi.json", get(openapi::document))
        // These look at the right to join by themselves: an invite opens them too.
        .merge(Router::new().route("/api/v1/nodes", post(join::announce)))
        .route("/api/v1/dialback", post(join::dial_back))
        .merge(admin)
        .fallback(not_found)
        .layer(middleware::map_response(no_sniffing))
        .with_state(core)
}

/// Lets requests pass that carry the admin token.
async fn admin_only(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let presented = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim);
    match presented {
        Some(token) if core.config.keys.admin_token().matches(token) => next.run(request).await,
        _ => {
            let error = refuse(
                StatusCode::UNAUTHORIZED,
                "this call takes `Authorization: Bearer TOKEN`; the token is in DIR/admin-token",
            );
            ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
        }
    }
}

async fn no_sniffing(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn not_found() -> Response {
    refuse(StatusCode::NOT_FOUND, "there is no such page; /api/v1/openapi.json lists the calls")
}

/// An error as JSON.
fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(api::ErrorBody { error: error.into() })).into_response()
}

/// A failure of the metadata.
fn meta_failed(error: &crate::meta::MetaError) -> Response {
    if error.is_retryable() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    }
    tracing::error!(%error, "an admin call failed");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

#[cfg(test)]
mod tests;
