//! Who may read a block. Pure: claims, session and grant in, permission or a refusal out.
//!
//! A refusal tells a peer nothing about blocks of namespaces that gave it no right: without any, the answer is the
//! same whether the block is here or not.

use holdfast_protocol::NamespaceId;
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::record::{AgreementId, Claim, ClaimState, Grant, PresentedGrant, SignatureError};

use super::session::{Right, Session, refuse_signature};

/// Why a read is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// A delegate of a namespace that claims the block.
    Namespace,
    /// Some claim is public.
    Public,
    /// A grant opens the scope of one of its namespace's claims; the bytes are charged to it.
    Grant(Grant),
}

/// Decides whether the session may read a block with these claims.
pub(crate) fn to_read(
    session: &Session,
    claims: &[Claim],
    grant: Option<&PresentedGrant>,
    owner: impl Fn(&AgreementId) -> Option<NamespaceId>,
    verify: impl Fn(&PresentedGrant) -> Result<Grant, SignatureError>,
    now_ms: u64,
) -> Result<Permission, Refusal> {
    let authority = session.authority(Right::Read, now_ms);
    if let Some(authority) = authority
        // Its own namespace may read even from trash: a download that began before the deletion ends well.
        && claims.iter().any(|claim| owner(&claim.agreement) == Some(authority.namespace))
    {
        return Ok(Permission::Namespace);
    }
    let kept = || claims.iter().filter(|claim| claim.state != ClaimState::Trash);
    if kept().any(|claim| claim.scope.is_none()) {
        return Ok(Permission::Public);
    }
    if let Some(presented) = grant {
        let grant = verify(presented).map_err(|error| refuse_signature(&error))?;
        if !grant.ops.read {
            return refuse(RefusalReason::Forbidden, "the grant is not for reading");
        }
        let mut of_namespace =
            kept().filter(|claim| owner(&claim.agreement) == Some(grant.namespace)).peekable();
        if of_namespace.peek().is_none() {
            return refuse(RefusalReason::NotFound, "the grant's namespace keeps no such block here");
        }
        let opened = of_namespace.any(|claim| claim.scope.is_some_and(|scope| grant.scopes.contains(&scope)));
        if !opened {
            return refuse(RefusalReason::Forbidden, "the grant does not open this block's scope");
        }
        return Ok(Permission::Grant(grant));
    }
    if authority.is_some() {
        return refuse(RefusalReason::NotFound, "the namespace keeps no such block here");
    }
    // Says why a delegate lost the right; a plain stranger is told what would open the block.
    session.require(Right::Read, now_ms)?;
    refuse(RefusalReason::Forbidden, "reading this needs a grant")
}

fn refuse(reason: RefusalReason, message: &str) -> Result<Permission, Refusal> {
    Err(Refusal::new(reason, message))
}
