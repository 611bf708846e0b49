//! Golden bytes and round trips of what audits sign and say.

use holdfast_protocol::message::{AuditQuery, AuditReply, InventoryQuery, InventoryReply, Reply, Request};
use holdfast_protocol::record::*;
use holdfast_protocol::{Digest, SigningKey};
use serde_bytes::ByteBuf;

use crate::golden::{frame, signed};
use crate::samples::*;

/// The names of all golden records here.
pub(crate) const RECORDS: [&str; 7] = [
    "commitment",
    "countersignature",
    "declaration",
    "inventory-page",
    "audit-answer",
    "verdict",
    "standing",
];

fn auditor_key() -> SigningKey {
    key(6)
}

fn auditor() -> holdfast_protocol::NodeId {
    holdfast_protocol::NodeId(auditor_key().public())
}

fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
    digests.sort_unstable();
    digests
}

pub(crate) fn commitment() -> Commitment {
    Commitment {
        v: 1,
        node: node(),
        epoch: 494_444,
        count: 3,
        bytes: 1_113_601,
        root: InventoryHash([0xc0; 32]),
        issued_ms: NOW_MS,
    }
}

pub(crate) fn declaration() -> Declaration {
    Declaration {
        v: 1,
        node: node(),
        epoch: 494_444,
        kind: DeclaredAs::Lost,
        digests: sorted(vec![digest(1), digest(2)]),
        issued_ms: NOW_MS,
    }
}

pub(crate) fn countersignature() -> Countersignature {
    Countersignature {
        v: 1,
        node: node(),
        epoch: 494_444,
        commitment: RecordId([0x1d; 32]),
        declarations: vec![RecordId([0x2d; 32])],
        seen_ms: NOW_MS + 1,
    }
}

pub(crate) fn inventory_page() -> InventoryPage {
    let digests = sorted(vec![digest(1), digest(2), digest(3)]);
    InventoryPage {
        v: 1,
        node: node(),
        agreement: agreement_id(),
        epoch: Some(494_444),
        root: Some(InventoryHash([0xc0; 32])),
        after: Some(digests[0]),
        entries: digests[1..].iter().map(|digest| InventoryEntry(*digest, len(65_537))).collect(),
        last: true,
        issued_ms: NOW_MS,
    }
}

pub(crate) fn audit_answer() -> AuditAnswer {
    AuditAnswer {
        v: 1,
        node: node(),
        epoch: 494_444,
        round: 29_000_000,
        body_len: 75_000,
        body: digest(4),
        issued_ms: NOW_MS,
    }
}

fn draw_proof() -> DrawProof {
    DrawProof {
        draw: 7,
        leaf: OpenedLeaf {
            digest: digest(1),
            len: len(65_537),
            owner: OwnerHash([0x0e; 32]),
            index: 1,
            count: 2,
            siblings: ByteBuf::from(vec![0x51; 40 * 17]),
        },
        chunk: Some(ChunkProof {
            chunk: ByteBuf::from(vec![0xc4; 1024]),
            path: ByteBuf::from(vec![0xb1; 32 * 7]),
            last: ByteBuf::from(vec![0xc5; 1]),
            last_path: ByteBuf::from(vec![0xb2; 32]),
        }),
    }
}

pub(crate) fn verdict() -> Verdict {
    let draw = |draw, digest, outcome, why: &str| DrawVerdict { draw, digest, outcome, why: why.into() };
    Verdict {
        v: 1,
        auditor: auditor(),
        node: node(),
        epoch: 494_444,
        round: 29_000_000,
        commitment: Some(RecordId([0x1d; 32])),
        answer: Some(RecordId([0xa2; 32])),
        outcome: AuditOutcome::Wrong,
        draws: vec![
            draw(0, Some(digest(1)), AuditOutcome::Passed, ""),
            draw(1, None, AuditOutcome::Pending, ""),
            draw(
                2,
                Some(digest(2)),
                AuditOutcome::Wrong,
                "the leaf and its path do not lead to the committed root",
            ),
        ],
        settled: false,
        issued_ms: NOW_MS,
    }
}

pub(crate) fn standing() -> Standing {
    Standing {
        v: 1,
        auditor: auditor(),
        node: node(),
        epoch: 494_444,
        data_ppm: 998_123,
        online_ppm: 970_000,
        pay_ppm: 500_000,
        state: StandingState::Good,
        forecast_data_ppm: 999_500,
        forecast_online_ppm: 985_000,
        evidence: RecordId([0xe1; 32]),
        replay: "holdfast auditor verify https://auditor.example/log --epoch 494444".into(),
        issued_ms: NOW_MS,
    }
}

fn round() -> BeaconRound {
    BeaconRound { round: 29_000_000, proof: ByteBuf::from(vec![0xbe; 48]) }
}

/// Every request of audits, with the name of its golden file.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    vec![
        (
            "inventory",
            Request::Inventory(InventoryQuery { agreement: agreement_id(), after: None, max: 1024 }),
        ),
        (
            "inventory-after",
            Request::Inventory(InventoryQuery { agreement: agreement_id(), after: Some(digest(1)), max: 1 }),
        ),
        ("audit-commitment", Request::Audit(AuditQuery::Commitment { epoch: 494_444 })),
        (
            "audit-countersigned",
            Request::Audit(AuditQuery::Countersigned {
                countersignature: Signed::sign(countersignature(), &auditor_key()).to_wire(),
            }),
        ),
        (
            "audit-answer",
            Request::Audit(AuditQuery::Answer { epoch: 494_444, round: round(), draws: vec![0, 1, 19] }),
        ),
        (
            "audit-found",
            Request::Audit(AuditQuery::Found {
                verdict: Signed::sign(verdict(), &auditor_key()).to_wire(),
                standing: Signed::sign(standing(), &auditor_key()).to_wire(),
            }),
        ),
    ]
}

/// Every reply of audits, with the name of its golden file.
pub(crate) fn replies() -> Vec<(&'static str, Reply)> {
    vec![
        (
            "inventory",
            Reply::Inventory(InventoryReply { page: Signed::sign(inventory_page(), &node_key()).to_wire() }),
        ),
        (
            "audit-commitment",
            Reply::Audit(AuditReply::Commitment {
                commitment: Signed::sign(commitment(), &node_key()).to_wire(),
                declarations: vec![Signed::sign(declaration(), &node_key()).to_wire()],
                countersignatures: vec![Signed::sign(countersignature(), &auditor_key()).to_wire()],
            }),
        ),
        (
            "audit-answer",
            Reply::Audit(AuditReply::Answer {
                answer: Signed::sign(audit_answer(), &node_key()).to_wire(),
                body_len: 75_000,
            }),
        ),
        ("audit-noted", Reply::Audit(AuditReply::Noted)),
    ]
}

#[test]
fn audit_records_have_their_golden_bytes() {
    signed("commitment", commitment(), &node_key());
    signed("countersignature", countersignature(), &auditor_key());
    signed("declaration", declaration(), &node_key());
    signed("inventory-page", inventory_page(), &node_key());
    signed("audit-answer", audit_answer(), &node_key());
    signed("verdict", verdict(), &auditor_key());
    signed("standing", standing(), &auditor_key());
    crate::golden::body("answer-body.hex", &AnswerBody { draws: vec![draw_proof()] });
}

#[test]
fn audit_messages_have_their_golden_bytes() {
    for (name, request) in requests() {
        frame::<Request>(&format!("request-{name}.hex"), &request);
    }
    for (name, reply) in replies() {
        frame::<Reply>(&format!("reply-{name}.hex"), &reply);
    }
}

/// Each kind signs under a domain of its own: a countersignature can never stand for a commitment.
#[test]
fn audit_domains_are_distinct() {
    let mut domains = vec![
        Commitment::DOMAIN,
        Countersignature::DOMAIN,
        Declaration::DOMAIN,
        InventoryPage::DOMAIN,
        AuditAnswer::DOMAIN,
        Verdict::DOMAIN,
        Standing::DOMAIN,
    ];
    domains.extend(crate::golden::signing_hashes().into_iter().map(|(domain, _)| domain));
    let count = domains.len();
    domains.sort_unstable();
    domains.dedup();
    assert_eq!(domains.len(), count);
    assert!(domains.iter().all(|domain| domain.starts_with("holdfast ") && domain.ends_with(" v1")));
}

#[test]
fn bounds_are_checked() {
    let mut page = inventory_page();
    assert!(page.check_bounds().is_ok());
    page.entries.swap(0, 1);
    assert!(page.check_bounds().is_err(), "not ascending");
    let mut page = inventory_page();
    page.after = Some(page.entries[0].0);
    assert!(page.check_bounds().is_err(), "lists the key that it starts after");
    let page = InventoryPage { entries: vec![], last: false, ..inventory_page() };
    assert!(page.check_bounds().is_err(), "a page that neither lists nor ends never ends");
    let mut declaration = declaration();
    declaration.digests.push(declaration.digests[1]);
    assert!(declaration.check_bounds().is_err(), "a block twice");
    assert!(Commitment { count: 0, ..commitment() }.check_bounds().is_err(), "bytes of no block");
    let mut body = AnswerBody { draws: vec![draw_proof(), draw_proof()] };
    assert!(body.check_bounds().is_err(), "a draw twice");
    body.draws.pop();
    body.draws[0].leaf.siblings = ByteBuf::from(vec![0; 37 * 40]);
    assert!(body.check_bounds().is_err(), "a path longer than any");
    let query = AuditQuery::Answer { epoch: 1, round: round(), draws: vec![2, 1] };
    assert!(Request::Audit(query).check_bounds().is_err());
    let query = InventoryQuery { agreement: agreement_id(), after: None, max: 0 };
    assert!(Request::Inventory(query).check_bounds().is_err());
}

/// What a page says of a digest: it speaks of everything between its ends, and of nothing else.
#[test]
fn a_page_speaks_of_what_lies_between_its_ends() {
    let all = sorted(vec![digest(1), digest(2), digest(3)]);
    let mut page = inventory_page();
    assert!(!page.speaks_of(&all[0]) && page.speaks_of(&all[1]) && page.lists(&all[2]));
    page.entries.pop();
    assert!(page.speaks_of(&all[2]) && !page.lists(&all[2]), "an omission");
    page.last = false;
    assert!(!page.speaks_of(&all[2]), "it may come on the next page");
}

/// What repair acts on: blocks that are proved to be missing, and no others.
#[test]
fn a_verdict_names_what_is_missing() {
    let missing: Vec<_> = verdict().missing().collect();
    assert_eq!(missing, vec![(digest(2), AuditOutcome::Wrong)]);
}
