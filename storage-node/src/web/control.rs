//! The switches: pause, resume, drain, exit, resize, deny and allow. Each is durable when it is answered.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::record::Denied;
use holdfast_protocol::{Digest, NamespaceId, NodeId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Web;
use crate::node::{Mode, durable};

const FILE: &str = "control-token";

/// What opens the switches. Lies in the node's directory with mode 0600.
#[derive(Clone)]
pub struct ControlToken(Arc<Zeroizing<String>>);

impl ControlToken {
    /// Makes a new token at each start and leaves it in `dir`: whoever reads the directory may press the switches.
    pub fn make(dir: &Path) -> io::Result<Self> {
        let mut random = Zeroizing::new([0u8; 32]);
        getrandom::fill(random.as_mut()).map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let text = Zeroizing::new(hex::encode(random.as_ref()));
        durable::write_whole(&dir.join(FILE), format!("{}\n", text.as_str()).as_bytes())?;
        Ok(Self(Arc::new(text)))
    }

    /// The token that a running node left in `dir`.
    pub fn read(dir: &Path) -> io::Result<String> {
        let bytes = durable::read_bounded(&dir.join(FILE), 256)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether `presented` is the token. Both are hashed first, so that the time says nothing about where they differ.
    pub(super) fn matches(&self, presented: &str) -> bool {
        blake3::hash(self.0.as_bytes()) == blake3::hash(presented.as_bytes())
    }
}

impl std::fmt::Debug for ControlToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlToken(redacted)")
    }
}

/// `POST /api/v1/mode`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ModeRequest {
    /// What the operator wants.
    pub mode: Mode,
    /// With `exiting`: now, although blocks still lie here.
    #[serde(default)]
    pub force: bool,
}

/// `POST /api/v1/capacity`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// Bytes offered from now on.
    pub capacity_bytes: u64,
    /// On which of the further disks; on the node's own when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<std::path::PathBuf>,
}

/// `POST /api/v1/deny` and `/api/v1/allow`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DenyRequest {
    /// A CID or digest of a block, a peer's key as `peer:z6Mk…`, a namespace's as `namespace:z6Mk…`.
    pub what: String,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// A line of the deny-list in words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DenyLine {
    /// As in [`DenyRequest`].
    pub what: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since_ms: u64,
}

impl DenyRequest {
    /// What is meant, if it can be read.
    pub fn denied(&self) -> Option<Denied> {
        let what = self.what.trim();
        if let Some(peer) = what.strip_prefix("peer:") {
            return peer.parse::<NodeId>().ok().map(Denied::Peer);
        }
        if let Some(namespace) = what.strip_prefix("namespace:") {
            return namespace.parse::<NamespaceId>().ok().map(Denied::Namespace);
        }
        what.parse::<Digest>().ok().map(Denied::Block)
    }
}

impl DenyLine {
    /// A line of the list in words.
    pub fn of(line: &holdfast_protocol::record::DeniedLine) -> Self {
        let what = match line.what {
            Denied::Block(digest) => digest.to_string(),
            Denied::Peer(peer) => format!("peer:{peer}"),
            Denied::Namespace(namespace) => format!("namespace:{namespace}"),
        };
        Self { what, reason: line.reason.clone(), since_ms: line.since_ms }
    }
}

pub(super) async fn mode(State(web): State<Web>, Json(asked): Json<ModeRequest>) -> Response {
    if asked.mode == Mode::Left {
        return refuse(StatusCode::BAD_REQUEST, "a node has left when it says so itself; ask for `exiting`");
    }
    if asked.force {
        if asked.mode != Mode::Exiting {
            return refuse(StatusCode::BAD_REQUEST, "only an exit can be forced");
        }
        return done(Ok(web.node.leave_by_force().await));
    }
    let node = web.node.clone();
    done(tokio::task::spawn_blocking(move || node.set_mode(asked.mode)).await)
}

pub(super) async fn capacity(State(web): State<Web>, Json(asked): Json<ResizeRequest>) -> Response {
    if asked.capacity_bytes == 0 {
        return refuse(StatusCode::BAD_REQUEST, "a node that offers nothing is drained, not shrunk");
    }
    let node = web.node.clone();
    match asked.disk {
        Some(dir) => done(
            tokio::task::spawn_blocking(move || node.set_disk_capacity(&dir, asked.capacity_bytes)).await,
        ),
        None => done(tokio::task::spawn_blocking(move || node.set_capacity(asked.capacity_bytes)).await),
    }
}

pub(super) async fn denied(State(web): State<Web>) -> Json<Vec<DenyLine>> {
    Json(web.node.denied_lines().iter().map(DenyLine::of).collect())
}

pub(super) async fn deny(State(web): State<Web>, Json(asked): Json<DenyRequest>) -> Response {
    let Some(what) = asked.denied() else { return unreadable() };
    let (node, now_ms) = (web.node.clone(), web.node.now_ms());
    done(tokio::task::spawn_blocking(move || node.deny_list().deny(what, &asked.reason, now_ms)).await)
}

pub(super) async fn allow(State(web): State<Web>, Json(asked): Json<DenyRequest>) -> Response {
    let Some(what) = asked.denied() else { return unreadable() };
    let (node, now_ms) = (web.node.clone(), web.node.now_ms());
    match tokio::task::spawn_blocking(move || node.deny_list().allow(what, now_ms)).await {
        Ok(Ok(false)) => refuse(StatusCode::NOT_FOUND, "it is not on the deny-list"),
        Ok(Ok(true)) => Json(serde_json::json!({})).into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "interrupted"),
    }
}

fn unreadable() -> Response {
    refuse(StatusCode::BAD_REQUEST, "`what` is a block's CID, `peer:KEY` or `namespace:KEY`")
}

fn done<E: std::fmt::Display>(outcome: Result<Result<(), E>, tokio::task::JoinError>) -> Response {
    match outcome {
        Ok(Ok(())) => Json(serde_json::json!({})).into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "interrupted"),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
