//! What an auditor reads of strangers, under attack: a bent checkpoint, log entry or answer is refused or understood,
//! never a panic, and a checkpoint whose text was touched never passes for signed.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use holdfast_proofs::answer::decode_body;
use holdfast_proofs::log::{LogEntry, NoteError, SignedCheckpoint, cosign, sign_checkpoint};
use holdfast_protocol::cbor;
use holdfast_protocol::key::SigningKey;
use holdfast_protocol::record::BeaconRound;
use proptest::prelude::*;
use serde_bytes::ByteBuf;
use tlog_tiles::Hash;

const ORIGIN: &str = "auditor.example/holdfast";
const WITNESS: &str = "witness.example";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn note() -> String {
    let signed = sign_checkpoint(ORIGIN, 42, Hash([3; 32]), &key(7)).unwrap();
    cosign(&signed, WITNESS, &key(8), 1_700_000_000_000).unwrap()
}

fn round() -> Vec<u8> {
    let round = BeaconRound { round: 9, proof: ByteBuf::from(vec![5; 48]) };
    LogEntry::Round { epoch: cbor::decode(&[0x07]).unwrap(), round }.encode()
}

/// Overwrites, cuts or doubles a few places.
fn bend(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, byte) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, *byte),
            _ => bytes = [&bytes[..at], &bytes[at / 2..]].concat(),
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..5)
}

#[test]
fn an_untouched_note_is_signed_and_cosigned() {
    let read = SignedCheckpoint::parse(&note()).unwrap();
    read.verify(&key(7).public()).unwrap();
    assert_eq!(read.cosigned_by(WITNESS, &key(8).public()).unwrap(), 1_700_000_000);
    assert!(matches!(read.verify(&key(9).public()), Err(NoteError::Unsigned)));
    assert!(LogEntry::decode(&round()).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_bent_checkpoint_never_says_something_else_under_the_same_signature(edits in edits()) {
        let (whole, bent) = (note(), bend(note().into_bytes(), &edits));
        let Ok(bent) = String::from_utf8(bent) else { return Ok(()) };
        let Ok(read) = SignedCheckpoint::parse(&bent) else { return Ok(()) };
        if read.verify(&key(7).public()).is_ok() {
            let honest = SignedCheckpoint::parse(&whole).unwrap();
            prop_assert_eq!((&read.origin, read.size, read.root), (&honest.origin, honest.size, honest.root));
        }
        // Whatever it says of witnesses, asking must not panic.
        let _ = read.cosigned_by(WITNESS, &key(8).public());
    }

    #[test]
    fn bent_entries_do_no_harm(edits in edits()) {
        let bent = bend(round(), &edits);
        if let Ok(entry) = LogEntry::decode(&bent) {
            // One value has one encoding: what was understood is what was sent.
            prop_assert_eq!(entry.encode(), bent);
        }
    }

    #[test]
    fn random_bytes_are_no_entry_and_no_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(LogEntry::decode(&bytes).is_err());
        if let Ok(body) = decode_body(&bytes) {
            prop_assert_eq!(&cbor::encode(&body), &bytes);
        }
        let _ = SignedCheckpoint::parse(&String::from_utf8_lossy(&bytes));
    }
}
