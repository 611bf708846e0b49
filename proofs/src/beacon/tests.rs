use serde_bytes::ByteBuf;

use super::*;

/// Rounds of quicknet as the network published them: number, signature, randomness.
const PUBLISHED: [(u64, &str, &str); 3] = [
    (
        1,
        "b55e7cb2d5c613ee0b2e28d6750aabbb78c39dcc96bd9d38c2c2e12198df95571de8e8e402a0cc48871c7089a2b3af4b",
        "1466a6cd24e327188770752f6134001c64d6efcc590ccc26b721611ad96f165a",
    ),
    (
        123,
        "b75c69d0b72a5d906e854e808ba7e2accb1542ac355ae486d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc92",
        "fb8f7bc29bf24db51871ec8c79f3a1e4bd0557bc0dfcee9ed1d924e69d1c60dc",
    ),
    (
        657_413,
        "b713718a38ae728dfd477991af2822e08d2f305e47718cef9f7848ce4050e7be41076862b98fad56e91a6b85b89cd97b",
        "fc1873a13f3545aeade8401532ef5519920652eee6b0d2b19ca12643b87b3587",
    ),
];

fn published(index: usize) -> BeaconRound {
    let (round, signature, _) = PUBLISHED[index];
    BeaconRound { round, proof: ByteBuf::from(hex::decode(signature).unwrap()) }
}

#[test]
fn rounds_that_quicknet_published_hold() {
    let beacon = BeaconSpec::quicknet().open().unwrap();
    assert!(beacon.is_independent());
    for (index, (_, _, randomness)) in PUBLISHED.iter().enumerate() {
        assert_eq!(hex::encode(beacon.verify(&published(index)).unwrap()), *randomness);
    }
}

#[test]
fn a_round_holds_for_its_number_and_key_alone() {
    let beacon = BeaconSpec::quicknet().open().unwrap();
    for change in 0..2 {
        let mut round = published(1);
        match change {
            0 => round.round += 1,
            _ => round.proof = published(2).proof,
        }
        assert_eq!(beacon.verify(&round), Err(BeaconError::Mismatch { round: round.round }));
    }
    // Any flipped bit is either no point of the curve or another signature.
    for bit in 0..48 * 8 {
        let mut round = published(1);
        round.proof[bit / 8] ^= 1 << (bit % 8);
        assert!(beacon.verify(&round).is_err(), "bit {bit}");
    }
    let mut short = published(1);
    short.proof.pop();
    assert_eq!(beacon.verify(&short), Err(BeaconError::Length { round: 123, expected: 48, found: 47 }));
}

#[test]
fn quicknet_ticks_every_three_seconds() {
    let beacon = BeaconSpec::quicknet().open().unwrap();
    assert_eq!(beacon.round_at(drand::QUICKNET_GENESIS_MS), 1);
    assert_eq!(beacon.round_at(drand::QUICKNET_GENESIS_MS + 1), 2);
    assert_eq!(beacon.round_at(drand::QUICKNET_GENESIS_MS + 3_000), 2);
    assert_eq!(beacon.time_of(2), drand::QUICKNET_GENESIS_MS + 3_000);
    for round in [1u64, 2, 1_000_000] {
        assert_eq!(beacon.round_at(beacon.time_of(round)), round);
    }
}

#[test]
fn an_embedded_beacon_shows_layer_after_layer_and_says_that_it_is_not_independent() {
    let secrets = [OnionSecret::new([1; 32]), OnionSecret::new([2; 32])];
    let members: Vec<String> = secrets.iter().map(OnionSecret::anchor).collect();
    let beacon = Onion::new(&members, 1000, 500).unwrap();
    assert!(!beacon.is_independent());
    assert!(beacon.name().contains("not independent"));
    let round = |number: u64| {
        let layers: Vec<Randomness> = secrets.iter().map(|secret| secret.layer(number).unwrap()).collect();
        Onion::round(number, &layers)
    };
    let mut seen = std::collections::BTreeSet::new();
    // Forwards from the newest, backwards from the anchor, and the newest again.
    for number in [1, 2, 700, 3, 700] {
        seen.insert(beacon.verify(&round(number)).unwrap());
    }
    assert_eq!(seen.len(), 4);
    let mut late = round(5);
    late.round = 6;
    assert_eq!(beacon.verify(&late), Err(BeaconError::Mismatch { round: 6 }));
    late.round = 701;
    assert_eq!(beacon.verify(&late), Err(BeaconError::Mismatch { round: 701 }));
    let swapped = Onion::round(5, &[secrets[1].layer(5).unwrap(), secrets[0].layer(5).unwrap()]);
    assert_eq!(beacon.verify(&swapped), Err(BeaconError::Mismatch { round: 5 }));
    assert!(matches!(beacon.verify(&Onion::round(0, &[[0; 32]; 2])), Err(BeaconError::Length { .. })));
    assert!(secrets[0].layer(onion::ROUNDS_MAX + 1).is_none());
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let onion = |members: Vec<String>, period_ms| BeaconSpec::Onion { members, genesis_ms: 0, period_ms };
    assert!(onion(vec![], 1).open().is_err());
    assert!(onion(vec!["00".into()], 1).open().is_err());
    assert!(onion(vec!["00".repeat(32)], 0).open().is_err());
    assert!(onion(vec!["00".repeat(32)], 1).open().is_ok());
    let drand = BeaconSpec::Drand { public_key: "ab".repeat(96), genesis_ms: 0, period_ms: 1 };
    assert!(drand.open().is_err());
}
