//! Claim tags: how a namespace tells its claims on one block apart without telling the node why.
//!
//! tag = AES-128(stripe id) under a key derived per node from the namespace's secret. To the node, tags are
//! random: two nodes that compare notes cannot see which blocks share a stripe. To the namespace they are
//! the stripe id: a node's question about a forgotten claim, or its inventory after the metadata was lost,
//! leads straight back to the stripe.

use aws_lc_rs::cipher::{
    AES_128, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use holdfast_protocol::NodeId;
use holdfast_protocol::record::{ClaimTag, StripeId};
use zeroize::Zeroizing;

/// The secret from which every node's tag key derives.
///
/// One block of AES is a permutation of 16 bytes, so the electronic-codebook mode is exactly what is meant:
/// each stripe has one tag per node and every tag one stripe.
#[derive(Clone)]
pub struct TagKey {
    secret: Zeroizing<[u8; 32]>,
}

impl TagKey {
    const CONTEXT: &'static str = "holdfast claim tag key v1";

    /// The tag key of a namespace, from a secret that is used for nothing else.
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret: Zeroizing::new(secret) }
    }

    /// The tag that `node` knows `stripe`'s claims by.
    pub fn tag(&self, stripe: StripeId, node: NodeId) -> ClaimTag {
        let key = EncryptingKey::ecb(self.node_key(node)).expect("AES-128 has an ECB mode");
        let mut block = stripe.0;
        key.less_safe_encrypt(&mut block, EncryptionContext::None).expect("16 bytes are one whole AES block");
        ClaimTag(block)
    }

    /// The stripe that `node` knows by `tag`. Any tag gives some id; whether it exists is for the caller to look up.
    pub fn stripe(&self, tag: ClaimTag, node: NodeId) -> StripeId {
        let key = DecryptingKey::ecb(self.node_key(node)).expect("AES-128 has an ECB mode");
        let mut block = tag.0;
        key.decrypt(&mut block, DecryptionContext::None).expect("16 bytes are one whole AES block");
        StripeId(block)
    }

    fn node_key(&self, node: NodeId) -> UnboundCipherKey {
        let mut hasher = blake3::Hasher::new_derive_key(Self::CONTEXT);
        hasher.update(self.secret.as_ref());
        hasher.update(node.as_bytes());
        let mut key = Zeroizing::new([0u8; 16]);
        hasher.finalize_xof().fill(key.as_mut());
        UnboundCipherKey::new(&AES_128, key.as_ref()).expect("16 bytes are an AES-128 key")
    }
}

impl std::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TagKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_protocol::PublicKey;
    use proptest::prelude::*;

    fn node(seed: u8) -> NodeId {
        NodeId(PublicKey([seed; 32]))
    }

    proptest! {
        #[test]
        fn a_tag_leads_back_to_its_stripe(secret: [u8; 32], id: [u8; 16], seed: u8) {
            let key = TagKey::new(secret);
            let stripe = StripeId(id);
            prop_assert_eq!(key.stripe(key.tag(stripe, node(seed)), node(seed)), stripe);
        }
    }

    #[test]
    fn nodes_and_namespaces_see_unrelated_tags_of_one_stripe() {
        let stripe = StripeId([7; 16]);
        let (ours, theirs) = (TagKey::new([1; 32]), TagKey::new([2; 32]));
        let tags = [ours.tag(stripe, node(1)), ours.tag(stripe, node(2)), theirs.tag(stripe, node(1))];
        assert_ne!(tags[0], tags[1]);
        assert_ne!(tags[0], tags[2]);
        assert_ne!(ours.stripe(tags[0], node(2)), stripe);
    }

    #[test]
    fn a_tag_key_never_prints_its_secret() {
        assert_eq!(format!("{:?}", TagKey::new([0xab; 32])), "TagKey(secret)");
    }
}
