//! How nodes come in over HTTP: they announce themselves, ask to be dialled back, and their owners get invites.
//!
//! The admin token opens all of it; an invite of the namespace opens announcing and dialling back; a node that is in
//! needs neither to bring a newer record of itself.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::limits::{INVITE_GATEWAYS_MAX, TEXT_LEN_MAX};
use holdfast_protocol::record::{Invite, InviteText, NodeRecord, Record, Signed, Unverified};
use holdfast_protocol::{NodeId, cbor};

use super::api::{AddNode, DialBack, DialledBack, InviteList, InviteRow, Invited, Joined, MakeInvite};
use super::nodes::row;
use super::{meta_failed, refuse};
use crate::background::{self, Came, JoinError, Pass};
use crate::gateway::Core;
use crate::meta::{GivenInvite, MetaError};

/// The longest that an invite may run.
const INVITE_MAX_S: u64 = 90 * 24 * 3600;
/// Nodes that one invite may bring in.
const INVITE_NODES_MAX: u32 = 10_000;

/// Where nodes may dial this gateway.
pub(super) fn quic(core: &Core) -> Vec<SocketAddr> {
    if !core.config.quic_advertise.is_empty() {
        return core.config.quic_advertise.clone();
    }
    core.config.transport.local_addr().into_iter().collect()
}

/// By what right a request comes: the admin token, an invite, or nothing. With nothing, also why an invite that was
/// shown is good no more: a node that is in goes on as it would with none, and anybody else is told.
async fn pass(core: &Core, headers: &HeaderMap) -> Result<(Pass, Option<JoinError>), JoinError> {
    let presented = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|token| !token.is_empty());
    match presented {
        None => Ok((Pass::Itself, None)),
        Some(token) if core.config.keys.admin_token().matches(token) => Ok((Pass::Admin, None)),
        Some(token) => match background::check_invite(core, token).await {
            Err(over @ (JoinError::InviteOver { .. } | JoinError::InviteRevoked)) => {
                Ok((Pass::Itself, Some(over)))
            }
            checked => Ok((Pass::Invited(checked?), None)),
        },
    }
}

pub(super) async fn announce(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Json(request): Json<AddNode>,
) -> Response {
    let (pass, over) = match pass(&core, &headers).await {
        Ok(pass) => pass,
        Err(error) => return refused(&error),
    };
    let Some(bytes) = request.wire_bytes() else {
        return refuse(StatusCode::BAD_REQUEST, "`record` is not base64");
    };
    let record: Unverified<NodeRecord> = match cbor::decode(&bytes) {
        Ok(record) => record,
        Err(error) => {
            return refuse(StatusCode::BAD_REQUEST, format!("`record` is no signed node record: {error}"));
        }
    };
    match background::announce(&core, pass, record).await {
        Ok((came, entry)) => {
            let view = entry.and_then(|entry| core.pool.node(entry.id));
            Json(Joined {
                reachability: match came {
                    Came::Direct => "direct",
                    Came::DialsIn => "dial_out",
                }
                .to_owned(),
                namespace: core.config.keys.namespace_id().to_string(),
                gateway: core.config.keys.node_id().to_string(),
                quic: quic(&core),
                node: view.map(|view| row(&core, &view, None)),
            })
            .into_response()
        }
        Err(JoinError::NoPass) => refused(&over.unwrap_or(JoinError::NoPass)),
        Err(error) => refused(&error),
    }
}

pub(super) async fn dial_back(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Json(request): Json<DialBack>,
) -> Response {
    let Ok(id) = request.node.parse::<NodeId>() else {
        return refuse(StatusCode::BAD_REQUEST, "`node` is not a node's id (z6Mk…)");
    };
    match pass(&core, &headers).await {
        Ok((Pass::Admin | Pass::Invited(_), _)) => {}
        // We dial only for those who have a right to be here, or are.
        Ok((Pass::Itself, _)) if core.pool.node(id).is_some() => {}
        Ok((Pass::Itself, over)) => return refused(&over.unwrap_or(JoinError::NoPass)),
        Err(error) => return refused(&error),
    }
    let outcome = background::dial_back(&core, id, &request.addresses).await;
    let (reached, why) = match outcome {
        Ok((connection, address)) => {
            connection.close("dialled back; that was all");
            (Some(address), None)
        }
        Err(why) => (None, Some(why)),
    };
    Json(DialledBack { reached, why, now_ms: core.config.clock.now_ms() }).into_response()
}

/// Signs an invite. Its signature is all that the gateways need; a row is kept so that it can be listed and taken back.
pub(super) async fn invite(State(core): State<Arc<Core>>, Json(asked): Json<MakeInvite>) -> Response {
    let bad = |what: String| refuse(StatusCode::BAD_REQUEST, what);
    if asked.nodes == 0 || asked.nodes > INVITE_NODES_MAX {
        return bad(format!("`nodes` is 1 to {INVITE_NODES_MAX}"));
    }
    if asked.valid_s == 0 || asked.valid_s > INVITE_MAX_S {
        return bad(format!("`valid_s` is 1 to {INVITE_MAX_S}: 90 days at the most"));
    }
    if asked.gateways.is_empty() || asked.gateways.len() > INVITE_GATEWAYS_MAX {
        return bad(format!("`gateways` names 1 to {INVITE_GATEWAYS_MAX} web addresses to join at"));
    }
    if asked.label.len() > TEXT_LEN_MAX || asked.gateways.iter().any(|text| text.len() > TEXT_LEN_MAX) {
        return bad(format!("texts have at most {TEXT_LEN_MAX} bytes"));
    }
    let mut id = [0u8; 16];
    if getrandom::fill(&mut id).is_err() {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system's random source failed");
    }
    let now_ms = core.config.clock.now_ms();
    let expires_ms = now_ms.saturating_add(asked.valid_s.saturating_mul(1000));
    let invite = Invite {
        v: Invite::VERSION,
        namespace: core.config.keys.namespace_id(),
        gateways: asked.gateways,
        id,
        nodes: asked.nodes,
        issued_ms: now_ms,
        expires_ms,
        label: asked.label,
    };
    let given = GivenInvite {
        label: invite.label.clone(),
        nodes: invite.nodes,
        issued_ms: now_ms,
        expires_ms,
        revoked_ms: 0,
    };
    match core.meta.keep_invite(id, &given).await {
        Ok(true) => {}
        Ok(false) => return refuse(StatusCode::CONFLICT, "too many invites are kept; they go when they end"),
        Err(error) => return meta_failed(&error),
    }
    let signed = Signed::sign(invite, core.config.keys.namespace());
    let (id, invite) = (hex::encode(id), InviteText::of(&signed).to_string());
    Json(Invited { id, invite, expires_ms }).into_response()
}

/// Every invite that was given, with how many nodes came by it.
pub(super) async fn invites(State(core): State<Arc<Core>>) -> Response {
    let found = async { Ok::<_, MetaError>((core.meta.invites().await?, core.meta.nodes().await?)) };
    let (given, nodes) = match found.await {
        Ok(found) => found,
        Err(error) => return meta_failed(&error),
    };
    let invites = given.into_iter().map(|(id, invite)| {
        let came = nodes.iter().filter(|entry| entry.notes.invite == Some(id)).count();
        InviteRow {
            id: hex::encode(id),
            label: invite.label,
            nodes: invite.nodes,
            came,
            issued_ms: invite.issued_ms,
            expires_ms: invite.expires_ms,
            revoked_ms: (invite.revoked_ms != 0).then_some(invite.revoked_ms),
        }
    });
    Json(InviteList { invites: invites.collect() }).into_response()
}

/// Takes an invite back. Nodes that came by it stay.
pub(super) async fn revoke_invite(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    let mut bytes = [0; 16];
    if hex::decode_to_slice(&id, &mut bytes).is_err() {
        return refuse(StatusCode::BAD_REQUEST, "an invite's id is 32 hexadecimal digits");
    }
    let longest_ms = core.config.clock.now_ms().saturating_add(INVITE_MAX_S * 1000);
    match core.meta.revoke_invite(bytes, longest_ms).await {
        Ok(invite) => Json(serde_json::json!({ "id": id, "revoked_ms": invite.revoked_ms })).into_response(),
        Err(error) => meta_failed(&error),
    }
}

fn refused(error: &JoinError) -> Response {
    let status = match error {
        JoinError::NoPass
        | JoinError::OtherNamespace
        | JoinError::InviteOver { .. }
        | JoinError::InviteRevoked
        | JoinError::InviteUsed { .. } => StatusCode::UNAUTHORIZED,
        JoinError::OldRecord => StatusCode::CONFLICT,
        JoinError::Record { .. } => StatusCode::BAD_REQUEST,
        JoinError::Meta(error) => return meta_failed(error),
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        JoinError::Crowded | JoinError::Admit(_) => StatusCode::BAD_GATEWAY,
    };
    refuse(status, error.to_string())
}
