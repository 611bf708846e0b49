//! The auditor's web side: its page, its report, its log as static files.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use super::page::{self, Summary};
use super::run::Running;

#[derive(Clone)]
struct Web {
    auditor: Arc<Running>,
    log: PathBuf,
}

/// Serves until `stop`.
pub(super) async fn serve(
    listener: tokio::net::TcpListener,
    auditor: Arc<Running>,
    stop: CancellationToken,
) -> Result<()> {
    let log = auditor.log_dir().await;
    let router = Router::new()
        .route("/", get(show))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/api/v1/report", get(report))
        .fallback(file)
        .with_state(Web { auditor, log });
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    serving.await.context("the auditor's web side ended")
}

async fn show(State(web): State<Web>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page::html(&summary(&web.auditor)))).into_response()
}

async fn report(State(web): State<Web>) -> Json<Summary> {
    Json(summary(&web.auditor))
}

/// What the auditor thinks now. Anybody computes the same from the log.
fn summary(running: &Running) -> Summary {
    let auditor = running.auditor.lock();
    let beacon = auditor.beacon();
    Summary {
        auditor: running.id().to_string(),
        log: running.log_address().to_owned(),
        beacon: beacon.name(),
        beacon_independent: beacon.is_independent(),
        entries: auditor.logged(),
        failed: 0,
        epoch_ms: auditor.policy().epoch_ms,
        nodes: page::nodes(auditor.book().accounts(), auditor.policy().epoch_ms, running.log_address()),
    }
}

/// A file of the log: `/log/…`.
async fn file(State(web): State<Web>, uri: Uri) -> Response {
    let found = uri.path().strip_prefix("/log/").and_then(|path| below(&web.log, path));
    let Some(path) = found else { return (StatusCode::NOT_FOUND, "there is no such page\n").into_response() };
    match tokio::fs::read(&path).await {
        Ok(bytes) => {
            let kind = if path.ends_with("checkpoint") {
                "text/plain; charset=utf-8"
            } else {
                "application/octet-stream"
            };
            ([(header::CONTENT_TYPE, kind)], bytes).into_response()
        }
        Err(_) => (StatusCode::NOT_FOUND, "there is no such file in the log\n").into_response(),
    }
}

/// The file that a path names below `dir`, if it stays there.
fn below(dir: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (is_plain && path.components().next().is_some()).then(|| dir.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out_of_the_log() {
        let dir = Path::new("/log");
        assert_eq!(below(dir, "tile/0/000.p/3"), Some(PathBuf::from("/log/tile/0/000.p/3")));
        for path in ["../key", "/etc/passwd", "tile/../../key", ""] {
            assert_eq!(below(dir, path), None, "{path}");
        }
    }
}
