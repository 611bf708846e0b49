//! Joining: who may bring in a node, whether it can be dialled, and nodes that dial us because nobody can dial them.
//!
//! A node announces itself over HTTP with its signed record. It gets in with the admin token, with an invite of this
//! namespace, or because it is in already and its record is newer than the one kept. We dial what it says back; when
//! nothing answers there, we expect it to dial us.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Invite, InviteText, NodeRecord, Signed, Unverified};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::transport::Connection;
use parking_lot::Mutex;

use super::nodes::{self, AdmitError};
use crate::gateway::Core;
use crate::meta::{MetaError, NodeEntry};

/// Nodes that may be expected at the same time.
const EXPECTED_MAX: usize = 1024;
/// How long a node may take to dial in after it announced itself.
const EXPECTED_MS: u64 = 10 * 60 * 1000;
/// How long dialling back may take in all: three addresses of the handshake deadline each.
const DIAL_BACK_WITHIN: Duration = Duration::from_secs(15);
/// Addresses that are dialled back.
const DIALLED_BACK_MAX: usize = 3;

/// By what right a node comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The admin token.
    Admin,
    /// An invite of this namespace.
    Invited(Invite),
    /// Nothing but its own signature: enough for a node that is in already.
    Itself,
}

/// How a node came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// We dialled it.
    Direct,
    /// Nothing answers at its addresses: it is to dial us.
    DialsIn,
}

/// Nodes that were let in and have not dialled us yet.
#[derive(Default)]
pub(crate) struct Expected(Mutex<HashMap<NodeId, Guest>>);

struct Guest {
    record: Unverified<NodeRecord>,
    invite: Option<[u8; 16]>,
    until_ms: UnixMs,
}

impl Expected {
    fn add(&self, id: NodeId, guest: Guest, now_ms: UnixMs) -> Result<(), JoinError> {
        let mut guests = self.0.lock();
        guests.retain(|_, guest| guest.until_ms > now_ms);
        if guests.len() >= EXPECTED_MAX && !guests.contains_key(&id) {
            return Err(JoinError::Crowded);
        }
        guests.insert(id, guest);
        Ok(())
    }

    fn take(&self, id: NodeId, now_ms: UnixMs) -> Option<Guest> {
        self.0.lock().remove(&id).filter(|guest| guest.until_ms > now_ms)
    }

    /// Expected nodes that came by this invite, besides `node` itself.
    fn invited_by(&self, invite: [u8; 16], node: NodeId) -> usize {
        let guests = self.0.lock();
        guests.iter().filter(|(id, guest)| **id != node && guest.invite == Some(invite)).count()
    }
}

/// Reads an invite and checks that it is ours and runs.
pub(crate) async fn check_invite(core: &Core, text: &str) -> Result<Invite, JoinError> {
    let text: InviteText = text.parse().map_err(|_| JoinError::NoPass)?;
    let invite = text.verify().map_err(|_| JoinError::NoPass)?;
    if invite.namespace != core.config.keys.namespace_id() {
        return Err(JoinError::OtherNamespace);
    }
    let now_ms = core.config.clock.now_ms();
    if now_ms >= invite.expires_ms {
        return Err(JoinError::InviteOver { ago_s: (now_ms - invite.expires_ms) / 1000 });
    }
    if core.meta.is_invite_revoked(invite.id).await? {
        return Err(JoinError::InviteRevoked);
    }
    Ok(invite)
}

/// A node announces itself. `came` of the answer says whether it has to dial us.
pub(crate) async fn announce(
    core: &Core,
    pass: Pass,
    record: Unverified<NodeRecord>,
) -> Result<(Came, Option<NodeEntry>), JoinError> {
    let now_ms = core.config.clock.now_ms();
    let signed = record.verify().map_err(|source| JoinError::Record { detail: source.to_string() })?;
    let id = signed.record().node;
    if signed.signer() != id.key() {
        return Err(JoinError::Record { detail: "another key than the node's own signed it".to_owned() });
    }
    let invite = match &pass {
        Pass::Invited(invite) => Some(invite.id),
        Pass::Admin | Pass::Itself => None,
    };
    let before = {
        // One by one, so that an invite's nodes are counted right; nothing in here waits for the node.
        let _counting = core.joins.counting.lock().await;
        let before = core.meta.node(id).await?.filter(|entry| !entry.removed);
        may_come(core, &pass, &signed, before.as_ref(), now_ms).await?;
        let guest = Guest { record: record.clone(), invite, until_ms: now_ms.saturating_add(EXPECTED_MS) };
        core.joins.expected.add(id, guest, now_ms)?;
        before
    };
    let mut addresses = dialable(signed.record());
    if let Some(before) = &before
        && core.pool.is_connected(id)
        && told_before(before) == addresses
    {
        core.joins.expected.take(id, now_ms);
        let came = if before.addresses.is_empty() { Came::DialsIn } else { Came::Direct };
        return Ok((came, Some(nodes::learn(core, before, record).await?)));
    }
    match dial_back(core, id, &addresses).await {
        Ok((connection, address)) => {
            core.joins.expected.take(id, now_ms);
            // What answered goes first.
            addresses.retain(|other| *other != address);
            addresses.insert(0, address);
            let entry = nodes::admit_over(core, connection, addresses, Some(record), invite).await?;
            Ok((Came::Direct, Some(entry)))
        }
        Err(why) => {
            tracing::info!(node = %id, why, "a node cannot be dialled; it is to dial us");
            Ok((Came::DialsIn, before))
        }
    }
}

/// The addresses that the node named when it was last heard.
fn told_before(before: &NodeEntry) -> Vec<SocketAddr> {
    let record = before.record.as_ref().and_then(|record| record.verify().ok());
    record.map(|record| dialable(record.record())).unwrap_or_default()
}

fn dialable(record: &NodeRecord) -> Vec<SocketAddr> {
    record.addresses.iter().filter_map(|text| text.parse().ok()).collect()
}

async fn may_come(
    core: &Core,
    pass: &Pass,
    signed: &Signed<NodeRecord>,
    before: Option<&NodeEntry>,
    now_ms: UnixMs,
) -> Result<(), JoinError> {
    if now_ms >= signed.record().expires_ms {
        return Err(JoinError::Record {
            detail: "the node record has expired; is its clock right?".to_owned(),
        });
    }
    match pass {
        Pass::Admin => Ok(()),
        Pass::Itself => {
            let kept = before.ok_or(JoinError::NoPass)?;
            let seq = kept.record.as_ref().and_then(|kept| Some(kept.verify().ok()?.record().seq));
            // An old record is no news, and may be a copy that somebody else sends.
            if seq.is_some_and(|seq| seq >= signed.record().seq) { Err(JoinError::OldRecord) } else { Ok(()) }
        }
        Pass::Invited(invite) => {
            if before.is_some() {
                return Ok(());
            }
            let came = core
                .meta
                .nodes()
                .await?
                .iter()
                .filter(|entry| entry.notes.invite == Some(invite.id) && entry.id != signed.record().node)
                .count();
            let used = came + core.joins.expected.invited_by(invite.id, signed.record().node);
            if used >= invite.nodes as usize {
                return Err(JoinError::InviteUsed { nodes: invite.nodes });
            }
            Ok(())
        }
    }
}

/// Dials what a node says it listens on, on a connection of its own. The address that answered, with the right key.
pub(crate) async fn dial_back(
    core: &Core,
    id: NodeId,
    addresses: &[SocketAddr],
) -> Result<(Arc<dyn Connection>, SocketAddr), String> {
    let attempts = async {
        let mut why = "it names no address".to_owned();
        for address in addresses.iter().take(DIALLED_BACK_MAX) {
            match core.config.transport.dial(id, &[*address]).await {
                Ok(connection) => return Ok((connection, *address)),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    };
    match tokio::time::timeout(DIAL_BACK_WITHIN, attempts).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("nothing answered within {} s", DIAL_BACK_WITHIN.as_secs())),
    }
}

/// A connection that somebody opened to us: a known node's is taken over, an expected one's takes the node in.
pub(super) async fn dialled_in(core: &Core, connection: Arc<dyn Connection>) {
    let id = connection.peer();
    let now_ms = core.config.clock.now_ms();
    let outcome = match core.joins.expected.take(id, now_ms) {
        Some(guest) => {
            let record = Some(guest.record);
            nodes::admit_over(core, connection, Vec::new(), record, guest.invite).await.map(drop)
        }
        None if core.pool.node(id).is_some() => {
            core.pool.adopt(connection).await.map(drop).map_err(AdmitError::from)
        }
        None => {
            connection.close("not a node of this namespace; announce the node first");
            return;
        }
    };
    if let Err(error) = outcome {
        tracing::info!(node = %id, %error, "a node that dialled in was not taken over");
    }
}

/// What joining keeps between calls.
#[derive(Default)]
pub(crate) struct Joins {
    pub(crate) expected: Expected,
    counting: tokio::sync::Mutex<()>,
}

/// Why a node did not come in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum JoinError {
    /// Neither token nor invite, and not in already.
    #[error(
        "joining takes an invite of this namespace (`holdfast gateway invite` makes one) or the admin token, as \
         `Authorization: Bearer`"
    )]
    NoPass,
    /// An invite of somebody else.
    #[error("the invite is another namespace's; ask this gateway's operator for one")]
    OtherNamespace,
    /// Its time is over.
    #[error("the invite ended {ago_s} s ago; ask for a new one")]
    InviteOver {
        /// Seconds since.
        ago_s: u64,
    },
    /// It was taken back.
    #[error("the invite was taken back by the gateway's operator; ask for a new one")]
    InviteRevoked,
    /// Enough nodes came by it.
    #[error("the invite was for {nodes} nodes, and as many came; ask for another")]
    InviteUsed {
        /// How many.
        nodes: u32,
    },
    /// The record is not newer than what is known.
    #[error("a newer record of this node is kept already")]
    OldRecord,
    /// The record does not hold.
    #[error("the node record does not hold: {detail}")]
    Record {
        /// Why.
        detail: String,
    },
    /// Too many nodes are expected.
    #[error("{EXPECTED_MAX} nodes are expected to dial in already; try again in some minutes")]
    Crowded,
    /// Taking it in failed.
    #[error(transparent)]
    Admit(Box<AdmitError>),
    /// The metadata failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl From<AdmitError> for JoinError {
    fn from(error: AdmitError) -> Self {
        Self::Admit(Box::new(error))
    }
}

impl JoinError {
    /// Whether the same announcement can succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Crowded => true,
            Self::Admit(error) => error.is_retryable(),
            Self::Meta(error) => error.is_retryable(),
            Self::NoPass
            | Self::OtherNamespace
            | Self::InviteOver { .. }
            | Self::InviteRevoked
            | Self::InviteUsed { .. }
            | Self::OldRecord
            | Self::Record { .. } => false,
        }
    }
}
