//! Round trips: what is written is read back equal, and its bytes are the only ones that mean it.

use holdfast_protocol::cbor;
use holdfast_protocol::framing::{Message, encode_frame};
use holdfast_protocol::limits::*;
use holdfast_protocol::message::*;
use holdfast_protocol::record::*;
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, OperatorId, PublicKey};
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use crate::samples;

/// Draws values from a seed (SplitMix64). Numbers come in all magnitudes, so that every length of CBOR
/// integer occurs.
struct Draw(u64);

impl Draw {
    fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any number of any magnitude.
    fn number(&mut self) -> u64 {
        let shift = self.u64() % 64;
        self.u64() >> shift
    }

    fn below(&mut self, end: u64) -> u64 {
        self.u64() % end
    }

    fn count(&mut self, max: usize) -> usize {
        // Often few, sometimes the most.
        if self.below(8) == 0 { max } else { usize::try_from(self.below(4)).unwrap().min(max) }
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.u64().to_le_bytes()[0])
    }

    fn text(&mut self) -> String {
        let count = self.count(200);
        (0..count)
            .map(|_| char::from_u32(u32::try_from(self.below(0x2000)).unwrap()).unwrap_or('é'))
            .collect()
    }

    fn one_of<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn many<T>(&mut self, max: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.count(max)).map(|_| make(self)).collect()
    }

    fn key(&mut self) -> PublicKey {
        PublicKey(self.bytes())
    }

    fn digest(&mut self) -> Digest {
        Digest(self.bytes())
    }

    fn len(&mut self) -> BlockLen {
        BlockLen::new(1 + u32::try_from(self.below(u64::from(BLOCK_LEN_MAX))).unwrap()).unwrap()
    }

    fn claim_ref(&mut self) -> ClaimRef {
        ClaimRef(self.digest(), ClaimTag(self.bytes()))
    }

    /// A start and a later end.
    fn span(&mut self) -> (u64, u64) {
        let start = self.number() / 2;
        (start, start + 1 + self.number() / 4)
    }
}

fn prices(draw: &mut Draw) -> Prices {
    Prices {
        storage_micro_per_tb_month: draw.number(),
        egress_micro_per_tb: draw.number(),
        currency: draw.text(),
    }
}

fn agreement(draw: &mut Draw) -> Agreement {
    let (start_ms, end_ms) = draw.span();
    Agreement {
        v: 1,
        namespace: NamespaceId(draw.key()),
        node: NodeId(draw.key()),
        operator: OperatorId(draw.key()),
        capacity_bytes: draw.number(),
        prices: prices(draw),
        start_ms,
        end_ms,
        notice_ms: draw.below(end_ms - start_ms + 1),
        nonce: draw.bytes(),
    }
}

fn delegation(draw: &mut Draw) -> Delegation {
    let (not_before_ms, expires_ms) = draw.span();
    let rights = Rights {
        read: draw.flag(),
        write: draw.flag(),
        delete: draw.flag(),
        head: draw.flag(),
        grant: draw.flag(),
    };
    Delegation {
        v: 1,
        namespace: NamespaceId(draw.key()),
        delegate: NodeId(draw.key()),
        rights,
        not_before_ms,
        expires_ms,
        label: draw.text(),
    }
}

fn receipt(draw: &mut Draw) -> Receipt {
    let mut blocks = draw.many(RECEIPT_BLOCKS_MAX - 1, |draw| ReceiptBlock(draw.digest(), draw.len()));
    blocks.push(ReceiptBlock(draw.digest(), draw.len()));
    let (issued_ms, term_until_ms) = draw.span();
    Receipt {
        v: 1,
        node: NodeId(draw.key()),
        agreement: AgreementId(draw.bytes()),
        blocks,
        lease_until_ms: draw.number(),
        issued_ms,
        term_until_ms,
    }
}

fn claim(draw: &mut Draw) -> Claim {
    Claim {
        v: 1,
        agreement: AgreementId(draw.bytes()),
        digest: draw.digest(),
        tag: ClaimTag(draw.bytes()),
        scope: draw.maybe(|draw| ScopeId(draw.bytes())),
        state: draw.one_of(&[ClaimState::Provisional, ClaimState::Live, ClaimState::Trash]),
        lease_until_ms: draw.number(),
        retain_until_ms: draw.number(),
        created_ms: draw.number(),
    }
}

fn grant(draw: &mut Draw) -> Grant {
    let (not_before_ms, expires_ms) = draw.span();
    Grant {
        v: 1,
        namespace: NamespaceId(draw.key()),
        holder: NodeId(draw.key()),
        scopes: draw.many(GRANT_SCOPES_MAX, |draw| ScopeId(draw.bytes())),
        ops: GrantOps { read: draw.flag(), list: draw.flag() },
        not_before_ms,
        expires_ms,
        byte_budget: draw.number(),
        nonce: draw.bytes(),
    }
}

fn node_record(draw: &mut Draw) -> NodeRecord {
    let issued_ms = draw.number() / 2;
    NodeRecord {
        v: 1,
        node: NodeId(draw.key()),
        operator: OperatorId(draw.key()),
        addresses: draw.many(NODE_ADDRESSES_MAX, Draw::text),
        capacity_bytes: draw.number(),
        free_bytes: draw.number(),
        prices: prices(draw),
        reachability: draw.one_of(&[Reachability::Unknown, Reachability::Direct, Reachability::DialOut]),
        asn: u32::try_from(draw.below(1 << 32)).unwrap(),
        software: draw.text(),
        seq: draw.number(),
        issued_ms,
        expires_ms: issued_ms + 1 + draw.below(86_400_000),
    }
}

fn head(draw: &mut Draw) -> Head {
    Head {
        v: 1,
        namespace: NamespaceId(draw.key()),
        instance: InstanceId(draw.bytes()),
        seq: draw.number(),
        journal_tip: draw.maybe(Draw::digest),
        checkpoint: draw.maybe(Draw::digest),
        issued_ms: draw.number(),
    }
}

fn manifest(draw: &mut Draw) -> Manifest {
    let mut size = 0;
    let parts = draw.many(100, |draw| {
        let len = draw.below(1 << 40);
        let offset = size;
        size += len;
        let key = draw.maybe(|draw| WrappedKey {
            epoch: u32::try_from(draw.below(1 << 32)).unwrap(),
            nonce: draw.bytes(),
            sealed: ByteBuf::from(draw.bytes::<48>().to_vec()),
        });
        ManifestPart { offset, len, key, iv_nonce: draw.number() }
    });
    Manifest {
        v: 1,
        size,
        block_count: draw.number(),
        root_cid: ByteBuf::from(draw.digest().raw_cid().to_bytes()),
        encryption: draw.one_of(&[Encryption::None, Encryption::Aes256Ctr, Encryption::Dedup]),
        parts,
    }
}

fn manifest_page(draw: &mut Draw) -> ManifestPage {
    let mut blocks = draw.many(MANIFEST_PAGE_ENTRIES - 1, |draw| (draw.digest(), draw.len()));
    blocks.push((draw.digest(), draw.len()));
    ManifestPage { v: 1, offset: draw.number(), blocks }
}

fn stripe(draw: &mut Draw) -> Stripe {
    let k = 1 + u8::try_from(draw.below(40)).unwrap();
    let m = u8::try_from(draw.below(24)).unwrap();
    let shards = (0..k + m)
        .map(|_| {
            draw.maybe(|draw| Shard {
                digest: draw.digest(),
                len: draw.len(),
                node: draw.maybe(|draw| NodeId(draw.key())),
            })
        })
        .collect();
    Stripe {
        v: 1,
        id: StripeId(draw.bytes()),
        version: draw.number(),
        policy: draw.one_of(&[
            PolicyName::Local,
            PolicyName::Small,
            PolicyName::Standard,
            PolicyName::Journal,
        ]),
        k,
        m,
        block_len: BlockLen::MAX,
        shards,
    }
}

fn disclaimer(draw: &mut Draw) -> Disclaimer {
    Disclaimer {
        v: 1,
        agreement: AgreementId(draw.bytes()),
        claims: draw.many(CLAIMS_PER_REQUEST_MAX, Draw::claim_ref),
        issued_ms: draw.number(),
    }
}

fn deletion_order(draw: &mut Draw) -> DeletionOrder {
    let Disclaimer { v, agreement, claims, issued_ms } = disclaimer(draw);
    DeletionOrder { v, agreement, claims, issued_ms }
}

/// A record survives its encoding, and the signed form survives its own.
fn record_survives<R: Record + Clone + PartialEq + std::fmt::Debug>(record: &R) {
    let bytes = record.encode();
    assert_eq!(&R::decode(&bytes).unwrap(), record);
    let signed = Signed::sign(record.clone(), &samples::node_key());
    let wire: Unverified<R> = cbor::decode(&cbor::encode(&signed.to_wire())).unwrap();
    assert_eq!(wire.verify_by(samples::node_key().public()).unwrap().record(), record);
    assert!(wire.verify_by(samples::gateway_key().public()).is_err());
}

fn message_survives<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let frame = encode_frame(message).unwrap();
    assert!(frame.len() <= HEADER_LEN_MAX + 4);
    assert_eq!(&cbor::decode::<M>(&frame[4..]).unwrap(), message);
}

/// The requests and replies whose fields vary freely; the samples cover the rest.
fn messages(draw: &mut Draw) {
    let key = samples::node_key();
    let claims = draw.many(CLAIMS_PER_REQUEST_MAX, Draw::claim_ref);
    let agreement_id = AgreementId(draw.bytes());
    let count = claims.len();
    message_survives(&Request::CommitBlocks(CommitBlocks {
        agreement: agreement_id,
        claims: claims.clone(),
        retain_until_ms: draw.number(),
    }));
    message_survives(&Request::HasBlocks(HasBlocks { agreement: agreement_id, claims }));
    message_survives(&Request::DeleteBlocks(DeleteBlocks {
        order: Signed::sign(deletion_order(draw), &key).to_wire(),
    }));
    message_survives(&Request::PutBlock(PutBlock {
        agreement: agreement_id,
        digest: draw.digest(),
        len: draw.len(),
        tag: ClaimTag(draw.bytes()),
        scope: draw.maybe(|draw| ScopeId(draw.bytes())),
        lease_until_ms: draw.number(),
        retain_until_ms: draw.number(),
    }));
    message_survives(&Request::Agree(Agree { terms: Signed::sign(agreement(draw), &key).to_wire() }));
    let held = (0..count)
        .map(|_| draw.one_of(&[Held::Absent, Held::Provisional, Held::Live, Held::Trash, Held::Lost]))
        .collect();
    let disclaimer = draw.maybe(|draw| Signed::sign(disclaimer(draw), &key).to_wire());
    message_survives(&Reply::HasBlocks(HasBlocksReply { held, disclaimer }));
    message_survives(&Reply::PutBlock(PutBlockReply {
        existed: draw.flag(),
        receipt: Signed::sign(receipt(draw), &key).to_wire(),
    }));
    let paths = draw.many(READ_LEAVES_MAX, |draw| LeafPath {
        index: u32::try_from(draw.below(1024)).unwrap(),
        siblings: ByteBuf::from(vec![7; 32 * PATH_LEN_MAX]),
    });
    let body_len = u32::try_from(draw.below(u64::from(BLOCK_LEN_MAX))).unwrap();
    message_survives(&Reply::ReadBlock(ReadBlockReply { body_len, paths }));
    let heads = draw.many(HEADS_MAX, |draw| PresentedHead {
        head: Signed::sign(head(draw), &key).to_wire(),
        delegation: Signed::sign(Delegation { label: "é".repeat(512), ..delegation(draw) }, &key).to_wire(),
    });
    message_survives(&Reply::GetHeads(Heads { heads }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn records_survive_their_encoding(seed in any::<u64>()) {
        let draw = &mut Draw(seed);
        record_survives(&agreement(draw));
        record_survives(&delegation(draw));
        record_survives(&receipt(draw));
        record_survives(&claim(draw));
        record_survives(&grant(draw));
        record_survives(&node_record(draw));
        record_survives(&head(draw));
        record_survives(&manifest(draw));
        record_survives(&manifest_page(draw));
        record_survives(&stripe(draw));
        record_survives(&disclaimer(draw));
        record_survives(&deletion_order(draw));
    }

    #[test]
    fn messages_survive_their_frames(seed in any::<u64>()) {
        messages(&mut Draw(seed));
    }

    #[test]
    fn ids_survive_their_text(bytes in any::<[u8; 32]>()) {
        let id = NodeId(PublicKey(bytes));
        prop_assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        let digest = Digest(bytes);
        prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        prop_assert_eq!(hex::encode(bytes).parse::<Digest>().unwrap(), digest);
    }
}

#[test]
fn samples_survive_their_frames() {
    for (_, request) in samples::requests() {
        message_survives(&request);
    }
    for (_, reply) in samples::replies() {
        message_survives(&reply);
    }
}
