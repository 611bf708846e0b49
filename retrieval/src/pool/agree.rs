//! Coming to an agreement with a node.

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Agreement, Signed, SignedAgreement};

use super::{NodePool, PoolError};

impl NodePool {
    /// The agreement in force with `id`: the one that the node named in its Hello, when it is with the same
    /// namespace, covers the capacity of `terms` and has not ended when `terms` begin; else `terms`, countersigned by
    /// the node. Terms that begin later are agreed on and not taken into use.
    ///
    /// `terms` carry the namespace's signature; the namespace's key never comes here.
    pub async fn ensure_agreement(
        &self,
        id: NodeId,
        terms: Signed<Agreement>,
    ) -> Result<SignedAgreement, PoolError> {
        let peer = self.peer(id).await?;
        let entry = self.entry(id)?;
        let wanted = terms.record();
        if let Some(agreed) = entry.agreed() {
            let has = agreed.terms();
            if has.namespace == wanted.namespace
                && has.capacity_bytes >= wanted.capacity_bytes
                && has.end_ms > self.now_ms().max(wanted.start_ms)
            {
                entry.set_agreed(agreed.clone());
                return Ok(agreed);
            }
        }
        let answer = peer.agree(&terms).await.map_err(|source| PoolError::Call { node: id, source })?;
        let refused = |detail, source| PoolError::Agreement { node: id, detail, source };
        let agreed =
            answer.verify().map_err(|source| refused("a signature is wrong", Some(Box::new(source))))?;
        if agreed.terms() != wanted {
            return Err(refused("the terms are not those that we proposed", None));
        }
        if wanted.node != id {
            return Err(refused("the terms name another node", None));
        }
        if wanted.start_ms <= self.now_ms() {
            entry.set_agreed(agreed.clone());
        }
        Ok(agreed)
    }
}
