//! drand's quicknet, checked offline: one BLS signature a round, over the round's number alone.

use drand_verify::{G2PubkeyRfc, Pubkey, derive_randomness};
use holdfast_protocol::record::BeaconRound;

use super::{Beacon, BeaconError, Clockwork};
use crate::draw::Randomness;

/// quicknet's public key, a point of G2, compressed. Its chain hash is
/// `52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971`.
pub const QUICKNET_PUBLIC_KEY: &str = "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3a\
     c6a5776a2d1064510d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a";
/// When quicknet's round 1 became public.
pub const QUICKNET_GENESIS_MS: u64 = 1_692_803_367_000;
/// Between quicknet's rounds.
pub const QUICKNET_PERIOD_MS: u64 = 3_000;

/// A signature of quicknet: a point of G1, compressed.
const SIGNATURE_LEN: usize = 48;

/// A drand network with scheme `bls-unchained-g1-rfc9380`.
pub struct Drand {
    key: G2PubkeyRfc,
    clockwork: Clockwork,
}

impl Drand {
    /// The network with this public key in hexadecimal.
    ///
    /// # Errors
    /// [`BeaconError::Spec`] when the key is no point of the curve's group, or the period is zero.
    pub fn new(public_key: &str, genesis_ms: u64, period_ms: u64) -> Result<Self, BeaconError> {
        let key = hex::decode(public_key)
            .ok()
            .and_then(|bytes| <[u8; 96]>::try_from(bytes).ok())
            .ok_or(BeaconError::Spec { detail: "a drand public key has 192 hexadecimal digits" })?;
        let key = G2PubkeyRfc::from_fixed(key)
            .map_err(|_| BeaconError::Spec { detail: "the drand public key is no point of the group" })?;
        Ok(Self { key, clockwork: Clockwork::new(genesis_ms, period_ms)? })
    }
}

impl Beacon for Drand {
    fn name(&self) -> String {
        "drand".to_owned()
    }

    fn is_independent(&self) -> bool {
        true
    }

    fn round_at(&self, ms: u64) -> u64 {
        self.clockwork.round_at(ms)
    }

    fn time_of(&self, round: u64) -> u64 {
        self.clockwork.time_of(round)
    }

    /// Two pairings: about 2 ms.
    fn verify(&self, round: &BeaconRound) -> Result<Randomness, BeaconError> {
        let number = round.round;
        if round.proof.len() != SIGNATURE_LEN {
            return Err(BeaconError::Length {
                round: number,
                expected: SIGNATURE_LEN,
                found: round.proof.len(),
            });
        }
        match self.key.verify(number, b"", &round.proof) {
            Ok(true) => Ok(derive_randomness(&round.proof)),
            Ok(false) | Err(_) => Err(BeaconError::Mismatch { round: number }),
        }
    }
}
