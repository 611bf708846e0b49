//! One value of every record and message, from fixed keys and numbers.

use holdfast_protocol::message::*;
use holdfast_protocol::record::*;
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, OperatorId, SigningKey};
use serde_bytes::ByteBuf;

/// A moment in 2026, in milliseconds.
pub(crate) const NOW_MS: u64 = 1_780_000_000_000;

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub(crate) fn namespace_key() -> SigningKey {
    key(1)
}

pub(crate) fn gateway_key() -> SigningKey {
    key(2)
}

pub(crate) fn node_key() -> SigningKey {
    key(3)
}

pub(crate) fn namespace() -> NamespaceId {
    NamespaceId(namespace_key().public())
}

pub(crate) fn gateway() -> NodeId {
    NodeId(gateway_key().public())
}

pub(crate) fn node() -> NodeId {
    NodeId(node_key().public())
}

pub(crate) fn operator() -> OperatorId {
    OperatorId(key(4).public())
}

pub(crate) fn len(bytes: u32) -> BlockLen {
    BlockLen::new(bytes).unwrap()
}

pub(crate) fn digest(seed: u8) -> Digest {
    Digest::of(&[seed])
}

pub(crate) fn claim_ref(seed: u8) -> ClaimRef {
    ClaimRef(digest(seed), ClaimTag([seed; 16]))
}

pub(crate) fn agreement_id() -> AgreementId {
    AgreementId([0xa9; 32])
}

pub(crate) fn delegation() -> Delegation {
    Delegation {
        v: 1,
        namespace: namespace(),
        delegate: gateway(),
        rights: Rights { read: true, write: true, delete: true, head: true, grant: true },
        not_before_ms: NOW_MS - 1000,
        expires_ms: NOW_MS + 30 * 86_400_000,
        label: "gateway in the cellar".into(),
    }
}

pub(crate) fn node_record() -> NodeRecord {
    NodeRecord {
        v: 1,
        node: node(),
        operator: operator(),
        addresses: vec!["203.0.113.7:7400".into(), "[2001:db8::1]:7400".into()],
        capacity_bytes: 10_000_000_000_000,
        free_bytes: 9_999_999_999_999,
        prices: prices(),
        reachability: Reachability::Direct,
        asn: 64_496,
        software: "holdfast/0.1.0".into(),
        seq: 7,
        issued_ms: NOW_MS,
        expires_ms: NOW_MS + 86_400_000,
    }
}

pub(crate) fn prices() -> Prices {
    Prices { storage_micro_per_tb_month: 4_000_000, egress_micro_per_tb: 2_000_000, currency: "EUR".into() }
}

pub(crate) fn agreement() -> Agreement {
    Agreement {
        v: 1,
        namespace: namespace(),
        node: node(),
        operator: operator(),
        capacity_bytes: 1_000_000_000_000,
        prices: prices(),
        start_ms: NOW_MS,
        end_ms: NOW_MS + 365 * 86_400_000,
        notice_ms: 30 * 86_400_000,
        nonce: [0x5a; 16],
    }
}

pub(crate) fn signed_agreement() -> SignedAgreement {
    SignedAgreement::countersign(Signed::sign(agreement(), &namespace_key()), &node_key()).unwrap()
}

pub(crate) fn receipt() -> Receipt {
    Receipt {
        v: 1,
        node: node(),
        agreement: agreement_id(),
        blocks: vec![ReceiptBlock(digest(1), len(1)), ReceiptBlock(digest(2), BlockLen::MAX)],
        lease_until_ms: NOW_MS + 3_600_000,
        issued_ms: NOW_MS,
        term_until_ms: NOW_MS + 365 * 86_400_000,
    }
}

pub(crate) fn claim() -> Claim {
    Claim {
        v: 1,
        agreement: agreement_id(),
        digest: digest(1),
        tag: ClaimTag([0x7a; 16]),
        scope: Some(ScopeId([0x5c; 16])),
        state: ClaimState::Provisional,
        lease_until_ms: NOW_MS + 3_600_000,
        retain_until_ms: NOW_MS + 86_400_000,
        created_ms: NOW_MS,
    }
}

pub(crate) fn grant() -> Grant {
    Grant {
        v: 1,
        namespace: namespace(),
        holder: NodeId(key(5).public()),
        scopes: vec![ScopeId([1; 16]), ScopeId([2; 16])],
        ops: GrantOps { read: true, list: false },
        not_before_ms: NOW_MS,
        expires_ms: NOW_MS + 3_600_000,
        byte_budget: 1 << 40,
        nonce: [0x6e; 16],
    }
}

pub(crate) fn presented_grant() -> PresentedGrant {
    PresentedGrant {
        grant: Signed::sign(grant(), &gateway_key()).to_wire(),
        delegation: Some(Signed::sign(delegation(), &namespace_key()).to_wire()),
    }
}

pub(crate) fn head() -> Head {
    Head {
        v: 1,
        namespace: namespace(),
        instance: InstanceId([0x11; 16]),
        seq: 99,
        journal_tip: Some(digest(3)),
        checkpoint: None,
        issued_ms: NOW_MS,
    }
}

pub(crate) fn presented_head() -> PresentedHead {
    PresentedHead {
        head: Signed::sign(head(), &gateway_key()).to_wire(),
        delegation: Signed::sign(delegation(), &namespace_key()).to_wire(),
    }
}

pub(crate) fn manifest() -> Manifest {
    let sealed = ByteBuf::from(vec![0xee; 48]);
    let key = Some(WrappedKey { epoch: 1, nonce: [9; 12], sealed });
    Manifest {
        v: 1,
        size: 1_048_577,
        block_count: 2,
        root_cid: ByteBuf::from(digest(4).cid(holdfast_protocol::digest::CODEC_DAG_PB).to_bytes()),
        encryption: Encryption::Aes256Ctr,
        parts: vec![
            ManifestPart { offset: 0, len: 1_048_576, key: key.clone(), iv_nonce: 1 },
            ManifestPart { offset: 1_048_576, len: 1, key, iv_nonce: u64::MAX },
        ],
    }
}

pub(crate) fn manifest_page() -> ManifestPage {
    ManifestPage { v: 1, offset: 0, blocks: vec![(digest(5), BlockLen::MAX), (digest(6), len(1))] }
}

pub(crate) fn stripe() -> Stripe {
    let shard = |seed, node| Some(Shard { digest: digest(seed), len: len(100_000), node });
    Stripe {
        v: 1,
        id: StripeId([0x57; 16]),
        version: 3,
        policy: PolicyName::Local,
        k: 4,
        m: 2,
        block_len: len(100_000),
        shards: vec![
            shard(1, Some(node())),
            shard(2, None),
            None,
            None,
            shard(3, Some(gateway())),
            shard(4, None),
        ],
    }
}

pub(crate) fn read_transcript() -> ReadTranscript {
    let blocks = vec![(digest(1), BlockLen::MAX), (digest(2), BlockLen::new(70_000).unwrap())];
    let reads = [
        TranscriptRead { block: 0, start: 0, len: BlockLen::MAX.bytes(), by: TranscriptSource::Node(0) },
        TranscriptRead { block: 1, start: 16_384, len: 300, by: TranscriptSource::Rebuilt },
        TranscriptRead { block: 1, start: 0, len: 70_000, by: TranscriptSource::Cache },
    ];
    let mut packed = Vec::new();
    reads.iter().for_each(|read| read.pack(blocks[read.block as usize].1, &mut packed));
    ReadTranscript {
        v: 1,
        run: RunId([0x61; 16]),
        label: "epoch 3".into(),
        seq: 1,
        previous: [0x62; 32],
        from_ms: NOW_MS,
        to_ms: NOW_MS + 1_000,
        blocks,
        nodes: vec![NodeId(node_key().public())],
        reads: 3,
        bytes: reads.iter().map(|read| u64::from(read.len)).sum(),
        packed: packed.into(),
        last: false,
    }
}

pub(crate) fn disclaimer() -> Disclaimer {
    Disclaimer { v: 1, agreement: agreement_id(), claims: vec![claim_ref(1)], issued_ms: NOW_MS }
}

pub(crate) fn deletion_order() -> DeletionOrder {
    DeletionOrder {
        v: 1,
        agreement: agreement_id(),
        claims: vec![claim_ref(1), claim_ref(2)],
        issued_ms: NOW_MS,
    }
}

pub(crate) fn invite() -> Invite {
    Invite {
        v: 1,
        namespace: namespace(),
        gateways: vec!["http://gateway.example:8080".into()],
        id: [0x1d; 16],
        nodes: 3,
        issued_ms: NOW_MS,
        expires_ms: NOW_MS + 86_400_000,
        label: "the attic".into(),
    }
}

pub(crate) fn deny_list() -> DenyList {
    let line = |what| DeniedLine { what, reason: "by court order".into(), since_ms: NOW_MS };
    DenyList {
        v: 1,
        node: node(),
        lines: vec![
            line(Denied::Block(digest(1))),
            line(Denied::Peer(gateway())),
            line(Denied::Namespace(namespace())),
        ],
        seq: 2,
        issued_ms: NOW_MS,
    }
}

pub(crate) fn declared_page() -> DeclaredPage {
    let mut digests = vec![digest(1), digest(2)];
    digests.sort_unstable();
    DeclaredPage {
        v: 1,
        node: node(),
        kind: DeclaredAs::Lost,
        after: None,
        digests,
        last: true,
        issued_ms: NOW_MS,
    }
}

pub(crate) fn drain_progress() -> DrainProgress {
    DrainProgress {
        shards_left: 7,
        bytes_left: 7_340_032,
        shards_moved: 3,
        bytes_moved: 3_145_728,
        releases_left: 2,
        waiting_for_nodes: 1,
        done: false,
        note: "no other node may take it".into(),
    }
}

pub(crate) fn put_block() -> PutBlock {
    PutBlock {
        agreement: agreement_id(),
        digest: digest(1),
        len: len(65_537),
        tag: ClaimTag([0x7a; 16]),
        scope: Some(ScopeId([0x5c; 16])),
        lease_until_ms: NOW_MS + 3_600_000,
        retain_until_ms: 0,
    }
}

pub(crate) fn read_leaves() -> ReadBlock {
    let ranges = vec![ByteRange { start: 0, len: 1 }, ByteRange { start: 65_536, len: 40_000 }];
    ReadBlock {
        digest: digest(1),
        part: ReadPart::Leaves { unit: LeafUnit::Group, ranges },
        grant: Some(Box::new(presented_grant())),
    }
}

/// Every request, with the name of its golden file.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let claims = vec![claim_ref(1), claim_ref(2)];
    let terms = Signed::sign(agreement(), &namespace_key()).to_wire();
    let agreement = agreement_id();
    let chunk = vec![ByteRange { start: 1024, len: 1024 }];
    let hello = Hello {
        newest: 1,
        oldest: 1,
        delegation: Some(Signed::sign(delegation(), &namespace_key()).to_wire()),
        node_record: None,
        now_ms: NOW_MS,
        software: "holdfast/0.1.0".into(),
    };
    let of_node = Hello {
        delegation: None,
        node_record: Some(Signed::sign(node_record(), &node_key()).to_wire()),
        ..hello.clone()
    };
    vec![
        ("hello-delegate", Request::Hello(hello)),
        ("hello-node", Request::Hello(of_node)),
        ("put-block", Request::PutBlock(put_block())),
        ("put-block-public", Request::PutBlock(PutBlock { scope: None, ..put_block() })),
        (
            "commit-blocks",
            Request::CommitBlocks(CommitBlocks {
                agreement,
                claims: claims.clone(),
                retain_until_ms: NOW_MS,
            }),
        ),
        (
            "read-block-whole",
            Request::ReadBlock(ReadBlock { digest: digest(1), part: ReadPart::Whole, grant: None }),
        ),
        ("read-block-groups", Request::ReadBlock(read_leaves())),
        (
            "read-block-chunks",
            Request::ReadBlock(ReadBlock {
                digest: digest(1),
                part: ReadPart::Leaves { unit: LeafUnit::Chunk, ranges: chunk },
                grant: None,
            }),
        ),
        ("has-blocks", Request::HasBlocks(HasBlocks { agreement, claims: claims.clone() })),
        (
            "delete-blocks",
            Request::DeleteBlocks(DeleteBlocks {
                order: Signed::sign(deletion_order(), &gateway_key()).to_wire(),
            }),
        ),
        ("restore-blocks", Request::RestoreBlocks(RestoreBlocks { agreement, claims })),
        ("put-head", Request::PutHead(presented_head())),
        ("get-heads", Request::GetHeads(HeadsOf { namespace: namespace() })),
        ("agree", Request::Agree(Agree { terms })),
        ("status", Request::Status(StatusQuery {})),
        ("drain-leave", Request::Drain(Drain { agreement, wish: DrainWish::Leave })),
        (
            "drain-shrink",
            Request::Drain(Drain { agreement, wish: DrainWish::Shrink { keep_bytes: 1 << 40 } }),
        ),
        ("declared-lost", Request::Declared(DeclaredQuery { kind: DeclaredAs::Lost, after: None })),
        (
            "declared-refused",
            Request::Declared(DeclaredQuery { kind: DeclaredAs::Refused, after: Some(digest(1)) }),
        ),
    ]
}

/// Every refusal reason there is, with the word that stands for it on the wire.
pub(crate) const REASONS: [(&str, RefusalReason); 19] = [
    ("malformed", RefusalReason::Malformed),
    ("version", RefusalReason::Version),
    ("hello_first", RefusalReason::HelloFirst),
    ("forbidden", RefusalReason::Forbidden),
    ("expired", RefusalReason::Expired),
    ("budget_spent", RefusalReason::BudgetSpent),
    ("no_agreement", RefusalReason::NoAgreement),
    ("agreement_full", RefusalReason::AgreementFull),
    ("not_found", RefusalReason::NotFound),
    ("lost", RefusalReason::Lost),
    ("denied", RefusalReason::Denied),
    ("digest_mismatch", RefusalReason::DigestMismatch),
    ("range", RefusalReason::Range),
    ("disk_full", RefusalReason::DiskFull),
    ("disk_failed", RefusalReason::DiskFailed),
    ("busy", RefusalReason::Busy),
    ("stopping", RefusalReason::Stopping),
    ("too_large", RefusalReason::TooLarge),
    ("internal", RefusalReason::Internal),
];

pub(crate) fn status() -> NodeStatus {
    NodeStatus {
        capacity_bytes: 1000,
        used_bytes: 400,
        trash_bytes: 300,
        garbage_bytes: 200,
        free_bytes: 100,
        paid_bytes: 333,
        blocks: 12,
        agreements: 2,
        uptime_s: 86_400,
        refusing_writes: String::new(),
        software: "holdfast/0.1.0".into(),
    }
}

/// Every reply, with the name of its golden file.
pub(crate) fn replies() -> Vec<(String, Reply)> {
    let hello = HelloReply {
        version: 1,
        node_record: Some(Signed::sign(node_record(), &node_key()).to_wire()),
        agreement: Some(signed_agreement().to_wire()),
        now_ms: NOW_MS,
        software: "holdfast/0.1.0".into(),
    };
    let receipt = Signed::sign(receipt(), &node_key()).to_wire();
    let outcomes =
        vec![BlockOutcome::Done, BlockOutcome::Already, BlockOutcome::Absent, BlockOutcome::Retained];
    let paths = vec![
        LeafPath { index: 0, siblings: ByteBuf::from(vec![0xaa; 64]) },
        LeafPath { index: 5, siblings: ByteBuf::from(vec![0xbb; 96]) },
    ];
    let held = vec![Held::Absent, Held::Provisional, Held::Live, Held::Trash, Held::Lost];
    let disclaimer = Some(Signed::sign(disclaimer(), &gateway_key()).to_wire());
    let mut all = vec![
        ("hello".to_owned(), Reply::Hello(hello)),
        ("put-block".to_owned(), Reply::PutBlock(PutBlockReply { existed: false, receipt })),
        ("outcomes".to_owned(), Reply::Outcomes(Outcomes { outcomes })),
        (
            "read-block-whole".to_owned(),
            Reply::ReadBlock(ReadBlockReply { body_len: 1_048_576, paths: Vec::new() }),
        ),
        ("read-block-leaves".to_owned(), Reply::ReadBlock(ReadBlockReply { body_len: 32_768, paths })),
        ("has-blocks".to_owned(), Reply::HasBlocks(HasBlocksReply { held, disclaimer })),
        ("put-head".to_owned(), Reply::PutHead(HeadSeq { seq: 99 })),
        ("get-heads".to_owned(), Reply::GetHeads(Heads { heads: vec![presented_head()] })),
        ("agree".to_owned(), Reply::Agree(signed_agreement().to_wire())),
        ("status".to_owned(), Reply::Status(status())),
        ("drain".to_owned(), Reply::Drain(drain_progress())),
        (
            "declared".to_owned(),
            Reply::Declared(DeclaredReply { page: Signed::sign(declared_page(), &node_key()).to_wire() }),
        ),
    ];
    all.extend(REASONS.iter().map(|(word, reason)| {
        let refusal = Refusal::new(*reason, "because");
        (format!("refused-{}", word.replace('_', "-")), Reply::Refused(refusal))
    }));
    all
}
