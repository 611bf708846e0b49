//! A session: what Hello established about a peer, and what it therefore may do. Pure; no I/O, no clock.

use holdfast_protocol::NodeId;
use holdfast_protocol::limits::CLOCK_SKEW_MAX_MS;
use holdfast_protocol::message::{Hello, Refusal, RefusalReason};
use holdfast_protocol::record::{Authority, SignatureError};
use holdfast_protocol::rpc;

/// What a request needs its sender to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Write,
    Delete,
    Head,
    /// Any delegate at all.
    Delegate,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read blocks",
            Self::Write => "write blocks",
            Self::Delete => "delete and restore blocks",
            Self::Head => "put heads",
            Self::Delegate => "act for a namespace",
        }
    }

    fn held_by(self, authority: &Authority) -> bool {
        match self {
            Self::Read => authority.rights.read,
            Self::Write => authority.rights.write,
            Self::Delete => authority.rights.delete,
            Self::Head => authority.rights.head,
            Self::Delegate => true,
        }
    }
}

/// An open session. Immutable: a further Hello makes a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) peer: NodeId,
    pub(crate) version: u16,
    authority: Option<Authority>,
}

impl Session {
    /// Checks a Hello: version, delegation, self-introduction, clock.
    pub(crate) fn open(hello: &Hello, peer: NodeId, now_ms: u64) -> Result<Self, Refusal> {
        let version = rpc::answer_hello(hello)?;
        if let Some(record) = &hello.node_record {
            record.verify_by(peer.key()).map_err(|error| refuse_signature(&error))?;
        }
        let Some(delegation) = &hello.delegation else {
            return Ok(Self { peer, version, authority: None });
        };
        // First the clock: with a wrong one every other complaint would be misleading.
        check_clock(hello.now_ms, now_ms)?;
        let authority =
            Authority::verify(delegation, peer, now_ms).map_err(|error| refuse_signature(&error))?;
        Ok(Self { peer, version, authority: Some(authority) })
    }

    /// The authority, if the session has one that still runs and includes `right`.
    pub(crate) fn authority(&self, right: Right, now_ms: u64) -> Option<Authority> {
        self.authority.filter(|authority| authority.is_current(now_ms) && right.held_by(authority))
    }

    /// The authority with `right`, or the refusal that says what is missing. Asked anew for every request, because
    /// delegations end while sessions last.
    pub(crate) fn require(&self, right: Right, now_ms: u64) -> Result<Authority, Refusal> {
        let Some(authority) = self.authority else {
            return Err(Refusal::new(
                RefusalReason::Forbidden,
                format!("this needs a delegation with the right to {}; Hello showed none", right.name()),
            ));
        };
        if !authority.is_current(now_ms) {
            return Err(Refusal::new(
                RefusalReason::Expired,
                format!(
                    "the delegation ended at {} ms, it is {now_ms} ms here; say Hello with a new one",
                    authority.expires_ms
                ),
            ));
        }
        if !right.held_by(&authority) {
            return Err(Refusal::new(
                RefusalReason::Forbidden,
                format!("the delegation does not include the right to {}", right.name()),
            ));
        }
        Ok(authority)
    }
}

/// Says both clocks when they disagree too much for signed times to mean anything.
fn check_clock(theirs_ms: u64, ours_ms: u64) -> Result<(), Refusal> {
    let apart_ms = theirs_ms.abs_diff(ours_ms);
    if apart_ms <= CLOCK_SKEW_MAX_MS {
        return Ok(());
    }
    let direction = if theirs_ms > ours_ms { "ahead of" } else { "behind" };
    Err(Refusal::new(
        RefusalReason::Expired,
        format!(
            "clock skew: your clock ({theirs_ms} ms) is {} s {direction} this node's ({ours_ms} ms); at most {} s \
             are tolerated, set the wrong one right",
            apart_ms / 1000,
            CLOCK_SKEW_MAX_MS / 1000
        ),
    ))
}

/// The refusal for a signed record that is not accepted.
pub(crate) fn refuse_signature(error: &SignatureError) -> Refusal {
    let reason = match error {
        SignatureError::Forged { .. } | SignatureError::Signer { .. } | SignatureError::Rights { .. } => {
            RefusalReason::Forbidden
        }
        SignatureError::Expired { .. } => RefusalReason::Expired,
        // A record of a kind of failure that this release does not know is not believed either.
        _ => RefusalReason::Malformed,
    };
    Refusal::new(reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{Delegation, Rights, Signed};
    use holdfast_protocol::{NamespaceId, SigningKey};

    use super::*;

    const NOW: u64 = 10_000_000;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    fn delegation(rights: Rights, delegate: &SigningKey) -> Delegation {
        Delegation {
            v: 1,
            namespace: NamespaceId(key(1).public()),
            delegate: NodeId(delegate.public()),
            rights,
            not_before_ms: NOW - 1_000,
            expires_ms: NOW + 1_000,
            label: String::new(),
        }
    }

    fn hello(signed: Option<Signed<Delegation>>) -> Hello {
        Hello {
            newest: 1,
            oldest: 1,
            delegation: signed.map(|signed| signed.to_wire()),
            node_record: None,
            now_ms: NOW,
            software: String::new(),
        }
    }

    fn open(hello: &Hello) -> Result<Session, RefusalReason> {
        Session::open(hello, NodeId(key(2).public()), NOW).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_delegate_has_its_rights_until_they_end() {
        let rights = Rights { write: true, ..Rights::default() };
        let session = open(&hello(Some(Signed::sign(delegation(rights, &key(2)), &key(1))))).unwrap();
        assert!(session.require(Right::Write, NOW).is_ok());
        assert_eq!(session.require(Right::Delete, NOW).unwrap_err().reason, RefusalReason::Forbidden);
        assert_eq!(session.require(Right::Write, NOW + 1_000).unwrap_err().reason, RefusalReason::Expired);
        assert!(session.authority(Right::Write, NOW + 1_000).is_none());
    }

    #[test]
    fn a_stranger_has_none() {
        let session = open(&hello(None)).unwrap();
        assert_eq!(session.require(Right::Read, NOW).unwrap_err().reason, RefusalReason::Forbidden);
    }

    #[test]
    fn a_delegation_of_another_peer_or_signer_is_refused() {
        let stolen = Signed::sign(delegation(Rights::GATEWAY, &key(3)), &key(1));
        assert_eq!(open(&hello(Some(stolen))).unwrap_err(), RefusalReason::Forbidden);
        let forged = Signed::sign(delegation(Rights::GATEWAY, &key(2)), &key(3));
        assert_eq!(open(&hello(Some(forged))).unwrap_err(), RefusalReason::Forbidden);
    }

    #[test]
    fn a_wrong_clock_is_named_before_anything_else() {
        let mut late = hello(Some(Signed::sign(delegation(Rights::GATEWAY, &key(3)), &key(1))));
        late.now_ms = NOW - CLOCK_SKEW_MAX_MS - 1_000;
        let refusal = Session::open(&late, NodeId(key(2).public()), NOW).unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::Expired);
        assert!(refusal.message.contains("301 s behind"), "{}", refusal.message);
    }

    #[test]
    fn versions_must_meet() {
        let mut future = hello(None);
        (future.oldest, future.newest) = (7, 9);
        assert_eq!(open(&future).unwrap_err(), RefusalReason::Version);
    }
}
