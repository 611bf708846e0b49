//! The node's own web side, for its operator: a page, `/metrics`, `/healthz`, the report as JSON, and the switches.
//!
//! It listens where the operator says, on this machine by default. Reading is free; switches take the control token
//! that lies in the node's directory, so a page that somebody opens cannot press them. Answers and requests are small
//! and bounded; nothing here touches a block.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, NodeReport};

mod alert;
mod control;
mod page;

pub use alert::{Alerts, Webhook, WebhookError};
pub use control::{ControlToken, DenyLine, DenyRequest, ModeRequest, ResizeRequest};

/// The longest request body: a deny-list line with a long reason.
const BODY_LEN_MAX: usize = 16 * 1024;
/// Requests answered at the same time; an operator and a scraper need a handful.
const REQUESTS_AT_ONCE: usize = 32;

/// What the handlers share.
#[derive(Clone)]
struct Web {
    node: Arc<Node>,
    token: ControlToken,
    metrics: Option<PrometheusHandle>,
    places: Arc<tokio::sync::Semaphore>,
}

/// Serves the web side on `listener` until `stop`.
pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    token: ControlToken,
    metrics: Option<PrometheusHandle>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let places = Arc::new(tokio::sync::Semaphore::new(REQUESTS_AT_ONCE));
    let router = router(Web { node, token, metrics, places });
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

/// Installs the process's metrics recorder; `None` when there is one already.
pub fn metrics_recorder() -> Option<PrometheusHandle> {
    let handle = PrometheusBuilder::new().install_recorder().ok()?;
    crate::metric::describe();
    Some(handle)
}

fn router(web: Web) -> Router {
    let switches = Router::new()
        .route("/api/v1/mode", post(control::mode))
        .route("/api/v1/capacity", post(control::capacity))
        .route("/api/v1/deny", get(control::denied).post(control::deny))
        .route("/api/v1/allow", post(control::allow))
        .layer(middleware::from_fn_with_state(web.clone(), holder_only));
    Router::new()
        .route("/", get(show))
        .route("/healthz", get(health))
        .route("/metrics", get(render_metrics))
        .route("/api/v1/status", get(status))
        .merge(switches)
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page"))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(middleware::from_fn_with_state(web.clone(), bounded))
        .with_state(web)
}

async fn show(State(web): State<Web>) -> Html<String> {
    let report = web.node.report().await;
    Html(page::render(
        &report,
        &web.node.watch().samples(),
        &web.node.watch().challenges(),
        web.node.now_ms(),
    ))
}

async fn status(State(web): State<Web>) -> Json<NodeReport> {
    Json(web.node.report().await)
}

/// 200 as long as nothing is wrong that somebody must act on.
async fn health(State(web): State<Web>) -> Response {
    let problems = web.node.problems();
    let is_well = problems.iter().all(|problem| problem.severity < crate::node::Severity::Alarm);
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "healthy": is_well, "problems": problems }))).into_response()
}

async fn render_metrics(State(web): State<Web>) -> Response {
    let Some(metrics) = &web.metrics else {
        return (StatusCode::SERVICE_UNAVAILABLE, "another part of this process has the metrics")
            .into_response();
    };
    crate::metric::set_gauges(&web.node);
    metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

/// Lets requests pass that carry the control token.
async fn holder_only(State(web): State<Web>, request: Request, next: Next) -> Response {
    let presented = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if presented.is_some_and(|token| web.token.matches(token.trim())) {
        return next.run(request).await;
    }
    let text = "this takes `Authorization: Bearer TOKEN`; the token is in DIR/control-token";
    (StatusCode::UNAUTHORIZED, Json(serde_json::json!({ "error": text }))).into_response()
}

/// Bounds what runs at once, and says what browsers need to hear.
async fn bounded(State(web): State<Web>, request: Request, next: Next) -> Response {
    let Ok(_place) = web.places.acquire().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    );
    response
}

#[cfg(test)]
mod tests;
