//! The embedded beacon: chains of hashes, peeled off round by round. Not independent of its members.
//!
//! A member draws a secret and hashes it over and over; the last hash is its *anchor*, which the network's
//! configuration names. In round r it shows the hash that lies r before the anchor, so anybody checks it by hashing
//! r times, and nobody but the member can know it earlier. A round's randomness takes in every member's hash, so
//! that one honest member keeps it unpredictable; the last to speak can still choose to be silent.

use holdfast_protocol::limits::BEACON_PROOF_MAX;
use holdfast_protocol::record::BeaconRound;
use serde_bytes::ByteBuf;

use super::{Beacon, BeaconError, Clockwork, Newest};
use crate::draw::Randomness;

/// Members of one beacon: each adds 32 bytes to a round's proof.
pub const MEMBERS_MAX: usize = BEACON_PROOF_MAX / 32;
/// Rounds of a chain: 30 years of hours, or three days of seconds. Checking one from the anchor costs at most
/// this many hashes, about 15 ms.
pub const ROUNDS_MAX: u64 = 1 << 18;

fn peel(layer: &Randomness) -> Randomness {
    *blake3::hash(layer).as_bytes()
}

/// A member's secret.
#[derive(Clone)]
pub struct OnionSecret {
    seed: [u8; 32],
}

impl OnionSecret {
    /// The chain that starts from `seed`.
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { seed }
    }

    /// The end of the chain, in hexadecimal: what the configuration names.
    pub fn anchor(&self) -> String {
        hex::encode(self.layer(0).unwrap_or_default())
    }

    /// What the member shows in `round`; `None` past the end of the chain. Showing it before its time breaks the
    /// draw, so the caller looks at the clock.
    pub fn layer(&self, round: u64) -> Option<Randomness> {
        let steps = ROUNDS_MAX.checked_sub(round)?;
        Some((0..steps).fold(self.seed, |layer, _| peel(&layer)))
    }
}

impl std::fmt::Debug for OnionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnionSecret(redacted)")
    }
}

/// The embedded beacon.
#[derive(Debug)]
pub struct Onion {
    anchors: Vec<Randomness>,
    clockwork: Clockwork,
    newest: Newest,
}

impl Onion {
    /// The beacon of members with these anchors in hexadecimal.
    ///
    /// # Errors
    /// [`BeaconError::Spec`] without members, with too many, or with what is no anchor.
    pub fn new(members: &[String], genesis_ms: u64, period_ms: u64) -> Result<Self, BeaconError> {
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return Err(BeaconError::Spec { detail: "an embedded beacon has 1 to 16 members" });
        }
        let anchor = |text: &String| {
            let mut anchor = [0u8; 32];
            hex::decode_to_slice(text, &mut anchor)
                .map_err(|_| BeaconError::Spec { detail: "an anchor has 64 hexadecimal digits" })?;
            Ok(anchor)
        };
        Ok(Self {
            anchors: members.iter().map(anchor).collect::<Result<_, BeaconError>>()?,
            clockwork: Clockwork::new(genesis_ms, period_ms)?,
            newest: Newest::default(),
        })
    }

    /// A round from what each member shows, in the order of the configuration.
    pub fn round(round: u64, layers: &[Randomness]) -> BeaconRound {
        BeaconRound { round, proof: ByteBuf::from(layers.concat()) }
    }
}

impl Beacon for Onion {
    fn name(&self) -> String {
        format!("embedded, of {} members: not independent", self.anchors.len())
    }

    fn is_independent(&self) -> bool {
        false
    }

    fn round_at(&self, ms: u64) -> u64 {
        self.clockwork.round_at(ms)
    }

    fn time_of(&self, round: u64) -> u64 {
        self.clockwork.time_of(round)
    }

    fn verify(&self, round: &BeaconRound) -> Result<Randomness, BeaconError> {
        let number = round.round;
        if number > ROUNDS_MAX {
            return Err(BeaconError::Ended { round: number, last: ROUNDS_MAX });
        }
        let (layers, surplus) = round.proof.as_chunks::<32>();
        if layers.len() != self.anchors.len() || !surplus.is_empty() || number == 0 {
            return Err(BeaconError::Length {
                round: number,
                expected: self.anchors.len() * 32,
                found: round.proof.len(),
            });
        }
        let (from, known) = self.newest.below(number).unwrap_or_else(|| (0, self.anchors.clone()));
        for (layer, known) in layers.iter().zip(&known) {
            let reached = (from..number).fold(*layer, |layer, _| peel(&layer));
            if reached != *known {
                return Err(BeaconError::Mismatch { round: number });
            }
        }
        self.newest.keep(number, layers.to_vec());
        let mut hasher = blake3::Hasher::new_derive_key("holdfast embedded beacon v1");
        hasher.update(&number.to_le_bytes()).update(&round.proof);
        Ok(*hasher.finalize().as_bytes())
    }
}
