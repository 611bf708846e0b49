//! Golden bytes: what this release writes is, byte for byte, what version 1 of the protocol is.
//!
//! The files under `tests/golden/` are never edited. A test that fails here means that a peer or a disk
//! with yesterday's bytes would no longer be understood: change the code back, or raise the record's `v`
//! and give the *new* version files of its own, with `HOLDFAST_GOLDEN_WRITE=1 cargo test`. That switch
//! writes files that do not exist and leaves every other one alone.

use std::fmt::Write as _;
use std::path::PathBuf;

use holdfast_protocol::cbor;
use holdfast_protocol::framing::encode_frame;
use holdfast_protocol::message::{DeletionOrder, Reply, Request};
use holdfast_protocol::record::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::audit;
use crate::samples::{self, *};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The committed text of one file; written first when it does not exist and the switch says so.
fn committed(name: &str, now: &str) -> String {
    let path = path(name);
    if !path.exists() && std::env::var_os("HOLDFAST_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("tests/golden/{name} cannot be read ({error}); new files come from HOLDFAST_GOLDEN_WRITE=1")
    })
}

/// Hexadecimal in lines of 64 digits, so that a difference can be found by eye.
fn lines_of_hex(bytes: &[u8]) -> String {
    let digits = hex::encode(bytes);
    digits.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

#[track_caller]
fn same(name: &str, bytes: &[u8]) -> Vec<u8> {
    let now = lines_of_hex(bytes);
    let then = committed(name, &now);
    assert!(
        then == now,
        "tests/golden/{name} differs from what this code writes. Never edit the file: it is what peers and \
         disks of version 1 hold. Change the code back, or make a new version with files of its own.\n\
         committed:\n{then}written now:\n{now}"
    );
    bytes_of(&then)
}

fn record<R: Record + PartialEq + std::fmt::Debug>(name: &str, value: &R) {
    let bytes = same(&format!("record-{name}.hex"), &value.encode());
    assert_eq!(&R::decode(&bytes).unwrap(), value, "{name}");
}

pub(crate) fn signed<R: Record + PartialEq + std::fmt::Debug>(
    name: &str,
    value: R,
    key: &holdfast_protocol::SigningKey,
) {
    record(name, &value);
    let wire = Signed::sign(value, key).to_wire();
    let bytes = same(&format!("signed-{name}.hex"), &cbor::encode(&wire));
    let read: Unverified<R> = cbor::decode(&bytes).unwrap();
    assert_eq!(read, wire, "{name}");
    assert_eq!(read.verify().unwrap().signer(), key.public(), "{name}");
}

pub(crate) fn frame<M>(name: &str, message: &M)
where
    M: holdfast_protocol::framing::Message + Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = same(name, &encode_frame(message).unwrap());
    let (prefix, header) = bytes.split_at(4);
    assert_eq!(prefix, u32::try_from(header.len()).unwrap().to_le_bytes());
    assert_eq!(&cbor::decode::<M>(header).unwrap(), message, "{name}");
}

/// A value that is neither a record nor a message: what an answer's raw bytes hold.
pub(crate) fn body<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let bytes = same(name, &cbor::encode(value));
    assert_eq!(&cbor::decode::<T>(&bytes).unwrap(), value, "{name}");
}

#[test]
fn records_have_their_golden_bytes() {
    signed("agreement", agreement(), &namespace_key());
    signed("delegation", delegation(), &namespace_key());
    signed("receipt", receipt(), &node_key());
    signed("grant", grant(), &gateway_key());
    signed("node-record", node_record(), &node_key());
    signed("head", head(), &gateway_key());
    signed("disclaimer", disclaimer(), &gateway_key());
    signed("deletion-order", deletion_order(), &gateway_key());
    signed("invite", invite(), &namespace_key());
    signed("deny-list", deny_list(), &node_key());
    signed("declared-page", declared_page(), &node_key());
    record("claim", &claim());
    record("manifest", &manifest());
    record("manifest-page", &manifest_page());
    record("stripe", &stripe());
    signed("read-transcript", read_transcript(), &gateway_key());
}

#[test]
fn requests_have_their_golden_bytes() {
    for (name, request) in samples::requests() {
        frame::<Request>(&format!("request-{name}.hex"), &request);
    }
}

#[test]
fn replies_have_their_golden_bytes() {
    for (name, reply) in samples::replies() {
        frame::<Reply>(&format!("reply-{name}.hex"), &reply);
    }
}

/// Words that stand for choices, ids as text, and what is signed: also part of the protocol.
#[test]
fn text_forms_are_golden() {
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name}: {value}").unwrap();
    line("alpn", String::from_utf8_lossy(holdfast_protocol::transport::quic::ALPN).into_owned());
    line("node id", node().to_string());
    line("raw cid", digest(1).to_string());
    line("dag-pb cid", digest(1).cid(holdfast_protocol::digest::CODEC_DAG_PB).to_string());
    line("agreement id", signed_agreement().id().to_string());
    for (domain, hash) in signing_hashes() {
        line(domain, hex::encode(hash));
    }
    let words = |values: Vec<String>| values.join(" ");
    line(
        "policies",
        words(cbor_words(&[PolicyName::Local, PolicyName::Small, PolicyName::Standard, PolicyName::Journal])),
    );
    line("ciphers", words(cbor_words(&[Encryption::None, Encryption::Aes256Ctr, Encryption::Dedup])));
    line(
        "reachability",
        words(cbor_words(&[Reachability::Unknown, Reachability::Direct, Reachability::DialOut])),
    );
    line("claim states", words(cbor_words(&[ClaimState::Provisional, ClaimState::Live, ClaimState::Trash])));
    let then = committed("text-forms.txt", &text);
    assert!(then == text, "never edit text-forms.txt; committed:\n{then}\nnow:\n{text}");
}

/// Each word as the CBOR text that carries it.
fn cbor_words<T: Serialize>(values: &[T]) -> Vec<String> {
    values.iter().map(|value| cbor::decode::<String>(&cbor::encode(value)).unwrap()).collect()
}

pub(crate) fn signing_hashes() -> Vec<(&'static str, [u8; 32])> {
    fn of<R: Record>(record: &R) -> (&'static str, [u8; 32]) {
        (R::DOMAIN, signing_hash::<R>(&record.encode()))
    }
    vec![
        of(&agreement()),
        of(&delegation()),
        of(&receipt()),
        of(&claim()),
        of(&grant()),
        of(&node_record()),
        of(&head()),
        of(&manifest()),
        of(&manifest_page()),
        of(&stripe()),
        of(&disclaimer()),
        of::<DeletionOrder>(&deletion_order()),
    ]
}

/// Every kind signs under a domain of its own, and the domain follows the record's name.
#[test]
fn domains_are_distinct() {
    let mut domains: Vec<_> = signing_hashes().into_iter().map(|(domain, _)| domain).collect();
    domains.extend([Invite::DOMAIN, DenyList::DOMAIN]);
    assert!(domains.iter().all(|domain| domain.starts_with("holdfast ") && domain.ends_with(" v1")));
    domains.sort_unstable();
    domains.dedup();
    assert_eq!(domains.len(), 14);
}

/// No file lies around that no test reads.
#[test]
fn no_golden_file_is_forgotten() {
    let mut known: Vec<String> = vec!["text-forms.txt".into(), "README".into()];
    for name in [
        "agreement",
        "delegation",
        "receipt",
        "grant",
        "node-record",
        "head",
        "disclaimer",
        "deletion-order",
        "invite",
        "deny-list",
        "declared-page",
        "read-transcript",
    ] {
        known.push(format!("record-{name}.hex"));
        known.push(format!("signed-{name}.hex"));
    }
    for name in ["claim", "manifest", "manifest-page", "stripe"] {
        known.push(format!("record-{name}.hex"));
    }
    known.extend(samples::requests().into_iter().map(|(name, _)| format!("request-{name}.hex")));
    known.extend(samples::replies().into_iter().map(|(name, _)| format!("reply-{name}.hex")));
    known.push("answer-body.hex".into());
    known.extend(
        audit::RECORDS.iter().flat_map(|name| [format!("record-{name}.hex"), format!("signed-{name}.hex")]),
    );
    known.extend(audit::requests().into_iter().map(|(name, _)| format!("request-{name}.hex")));
    known.extend(audit::replies().into_iter().map(|(name, _)| format!("reply-{name}.hex")));
    for entry in std::fs::read_dir(path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "tests/golden/{name} belongs to no test");
    }
}
