//! Leaving and shrinking from the node's side: the namespaces are told what to move away, again and again, over
//! whatever connection of theirs is open, until they say that it is done.
//!
//! Nothing is deleted here. Blocks go when their namespace, having put them elsewhere, signs their release.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NamespaceId;
use holdfast_protocol::message::{Drain, DrainProgress, DrainWish};
use holdfast_protocol::record::SignedAgreement;
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::time::UnixMs;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Node;
use super::mode::Mode;
use crate::server::link::Link;
use crate::server::session::Right;

/// How long a gateway may think about a wish.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What one namespace said last about a wish of ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamespaceLeave {
    /// The namespace.
    pub namespace: String,
    /// When it last answered; 0 when it never did.
    pub heard_ms: UnixMs,
    /// Shards still to move.
    pub shards_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// Shards moved.
    pub shards_moved: u64,
    /// Whether it has nothing left here that must stay.
    pub done: bool,
    /// What holds it up; empty when nothing does.
    pub note: String,
}

#[derive(Clone, Debug)]
struct Told {
    wish: DrainWish,
    progress: Option<(UnixMs, DrainProgress)>,
    trouble: String,
}

/// What every namespace was told and answered; as many entries as there are namespaces with agreements.
#[derive(Default)]
pub(crate) struct Leaves {
    told: Mutex<BTreeMap<NamespaceId, Told>>,
}

impl Leaves {
    fn needs(&self, namespace: NamespaceId, wish: DrainWish) -> bool {
        // Staying is said once; everything else until it is done, and then some, for its answer is the progress.
        let told = self.told.lock();
        let said = told.get(&namespace).filter(|told| told.wish == wish && told.progress.is_some());
        wish != DrainWish::Stay || said.is_none()
    }

    fn heard(
        &self,
        namespace: NamespaceId,
        wish: DrainWish,
        answer: Result<DrainProgress, String>,
        now_ms: UnixMs,
    ) {
        let mut told = self.told.lock();
        let entry = told.entry(namespace).or_insert(Told { wish, progress: None, trouble: String::new() });
        if entry.wish != wish {
            *entry = Told { wish, progress: None, trouble: String::new() };
        }
        match answer {
            Ok(progress) => {
                entry.progress = Some((now_ms, progress));
                entry.trouble.clear();
            }
            Err(trouble) => entry.trouble = trouble,
        }
    }

    fn is_done(&self, namespace: NamespaceId) -> bool {
        let told = self.told.lock();
        let progress = told.get(&namespace).filter(|told| told.wish != DrainWish::Stay);
        progress.and_then(|told| told.progress.as_ref()).is_some_and(|(_, progress)| progress.done)
    }
}

impl Node {
    /// What each namespace has still to move away, while the node leaves or shrinks.
    pub fn leave_report(&self) -> Vec<NamespaceLeave> {
        let told = self.leaves.told.lock();
        let wanted = told.iter().filter(|(_, told)| told.wish != DrainWish::Stay);
        wanted
            .map(|(namespace, told)| {
                let (heard_ms, progress) = told.progress.clone().unwrap_or_default();
                NamespaceLeave {
                    namespace: namespace.to_string(),
                    heard_ms,
                    shards_left: progress.shards_left,
                    bytes_left: progress.bytes_left,
                    shards_moved: progress.shards_moved,
                    done: progress.done,
                    note: if told.trouble.is_empty() { progress.note } else { told.trouble.clone() },
                }
            })
            .collect()
    }

    /// Whether every namespace with a running agreement says that all it kept here lies elsewhere.
    pub fn is_emptied(&self) -> bool {
        self.mode().is_leaving()
            && self.namespaces().iter().all(|(namespace, _)| self.leaves.is_done(*namespace))
    }

    /// One round: every namespace is told what we want of it, as far as a connection of it is open.
    pub(crate) async fn tell_wishes(&self) {
        let now_ms = self.now_ms();
        for (namespace, agreement) in self.namespaces() {
            let wish = self.wish(namespace).await;
            if self.leaves.needs(namespace, wish) {
                let answer = self.tell(namespace, &agreement, wish, now_ms).await;
                self.leaves.heard(namespace, wish, answer, now_ms);
            }
        }
    }

    /// Tells every namespace that we go now; true when all who were reached agree that nothing of theirs is left.
    pub async fn take_leave(&self) -> bool {
        let now_ms = self.now_ms();
        let mut all = true;
        for (namespace, agreement) in self.namespaces() {
            let answer = self.tell(namespace, &agreement, DrainWish::Gone, now_ms).await;
            all &= answer.is_ok_and(|progress| progress.done);
        }
        all
    }

    async fn tell(
        &self,
        namespace: NamespaceId,
        agreement: &SignedAgreement,
        wish: DrainWish,
        now_ms: UnixMs,
    ) -> Result<DrainProgress, String> {
        let links: Vec<Arc<Link>> = self.links.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        let mut trouble = "no gateway of it is connected".to_owned();
        for link in links {
            let Some(session) = link.acting_for(namespace, Right::Write, now_ms) else { continue };
            let peer = Peer::answered(link.connection.clone(), session.version);
            let asked = peer.drain(Drain { agreement: agreement.id(), wish });
            match tokio::time::timeout(ANSWER_WITHIN, asked).await {
                Ok(Ok(progress)) => return Ok(progress),
                Ok(Err(error)) => trouble = error.to_string(),
                Err(_) => {
                    trouble = format!("its gateway did not answer within {} s", ANSWER_WITHIN.as_secs())
                }
            }
        }
        tracing::debug!(%namespace, trouble, "a namespace does not hear what is to move away");
        Err(trouble)
    }

    /// What we want of a namespace now.
    async fn wish(&self, namespace: NamespaceId) -> DrainWish {
        if self.mode().is_leaving() {
            return DrainWish::Leave;
        }
        let used = self.accounts().used_bytes;
        // Which blocks go is the namespaces' choice, so a disk that is too full among others takes a few rounds.
        let target = match self.store.excess_bytes() {
            0 => return DrainWish::Stay,
            excess => used.saturating_sub(excess),
        };
        let mut kept = 0u64;
        for agreement in self.ledger.agreements() {
            if agreement.terms().namespace == namespace
                && let Ok(usage) = self.store.agreement_usage(agreement.id()).await
            {
                kept = kept.saturating_add(usage.bytes);
            }
        }
        // Each namespace gives up the same part.
        let keep = u128::from(kept) * u128::from(target) / u128::from(used.max(1));
        DrainWish::Shrink { keep_bytes: u64::try_from(keep).unwrap_or(u64::MAX) }
    }

    /// Namespaces with a running agreement, each with the one that ends last.
    pub(crate) fn namespaces(&self) -> Vec<(NamespaceId, Arc<SignedAgreement>)> {
        let now_ms = self.now_ms();
        let mut latest: BTreeMap<NamespaceId, Arc<SignedAgreement>> = BTreeMap::new();
        for agreement in self.ledger.agreements() {
            let terms = agreement.terms();
            if !super::admission::in_term(terms, now_ms) {
                continue;
            }
            let held = latest.entry(terms.namespace).or_insert_with(|| agreement.clone());
            if held.terms().end_ms < terms.end_ms {
                *held = agreement;
            }
        }
        latest.into_iter().collect()
    }

    /// Leaves now, whatever still lies here: the namespaces hear it as far as they are connected, and repair what they
    /// miss.
    pub async fn leave_by_force(&self) -> std::io::Result<()> {
        let accounts = self.accounts();
        self.take_leave().await;
        self.set_mode(Mode::Left)?;
        tracing::warn!(node = %self.id(), blocks = accounts.blocks, "the node has left by force");
        self.left.cancel();
        Ok(())
    }

    /// Ends the exit when nothing is left: says good-bye, remembers it, and stops. True when the node has left.
    pub(crate) async fn leave_when_emptied(&self) -> bool {
        if self.mode() != Mode::Exiting || !self.is_emptied() {
            return false;
        }
        self.take_leave().await;
        match self.set_mode(Mode::Left) {
            Ok(()) => {
                tracing::info!(node = %self.id(), "the node has left; its directory can be removed");
                self.left.cancel();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "that the node has left cannot be written; trying again");
                false
            }
        }
    }
}
