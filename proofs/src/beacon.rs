//! Beacons: public randomness that nobody knows before its time and everybody can check afterwards.
//!
//! [`Drand`] is the League of Entropy's quicknet: a threshold signature every 3 seconds, checked offline from the
//! chain's public key. [`Onion`] is embedded, for networks of one machine and for tests: each member commits to the
//! end of a chain of hashes and peels it off round by round. Its members know their rounds beforehand, so what
//! it draws is *not independent* of them, and every report says so.

use std::sync::Mutex;

use holdfast_protocol::record::BeaconRound;
use serde::{Deserialize, Serialize};

use crate::draw::Randomness;

pub mod drand;
pub mod onion;

pub use drand::Drand;
pub use onion::{Onion, OnionSecret};

/// Public randomness by rounds. Pure: rounds are brought by whoever has them, and nobody is believed.
pub trait Beacon: Send + Sync {
    /// For people and reports.
    fn name(&self) -> String;

    /// Whether nobody who takes part in the network can know or bias a round.
    fn is_independent(&self) -> bool;

    /// The first round that becomes public at or after `ms`.
    fn round_at(&self, ms: u64) -> u64;

    /// When a round becomes public.
    fn time_of(&self, round: u64) -> u64;

    /// Checks a round and gives its randomness.
    ///
    /// # Errors
    /// [`BeaconError`] when the proof is not that round's.
    fn verify(&self, round: &BeaconRound) -> Result<Randomness, BeaconError>;
}

/// Which beacon a network uses, as its configuration and its logs say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeaconSpec {
    /// A drand network with scheme `bls-unchained-g1-rfc9380`.
    Drand {
        /// The chain's public key, 192 hexadecimal digits.
        public_key: String,
        /// When round 1 became public.
        genesis_ms: u64,
        /// Between rounds.
        period_ms: u64,
    },
    /// The embedded beacon.
    Onion {
        /// Each member's anchor, 64 hexadecimal digits.
        members: Vec<String>,
        /// When round 1 becomes public.
        genesis_ms: u64,
        /// Between rounds.
        period_ms: u64,
    },
}

impl BeaconSpec {
    /// drand's quicknet.
    pub fn quicknet() -> Self {
        Self::Drand {
            public_key: drand::QUICKNET_PUBLIC_KEY.to_owned(),
            genesis_ms: drand::QUICKNET_GENESIS_MS,
            period_ms: drand::QUICKNET_PERIOD_MS,
        }
    }

    /// The beacon that is meant.
    ///
    /// # Errors
    /// [`BeaconError::Spec`] when the keys or times make no sense.
    pub fn open(&self) -> Result<Box<dyn Beacon>, BeaconError> {
        match self {
            Self::Drand { public_key, genesis_ms, period_ms } => {
                Ok(Box::new(Drand::new(public_key, *genesis_ms, *period_ms)?))
            }
            Self::Onion { members, genesis_ms, period_ms } => {
                Ok(Box::new(Onion::new(members, *genesis_ms, *period_ms)?))
            }
        }
    }
}

/// Rounds at fixed times: round 1 at the genesis, then one a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clockwork {
    genesis_ms: u64,
    period_ms: u64,
}

impl Clockwork {
    fn new(genesis_ms: u64, period_ms: u64) -> Result<Self, BeaconError> {
        if period_ms == 0 {
            return Err(BeaconError::Spec { detail: "the period is zero" });
        }
        Ok(Self { genesis_ms, period_ms })
    }

    fn round_at(&self, ms: u64) -> u64 {
        ms.saturating_sub(self.genesis_ms).div_ceil(self.period_ms).saturating_add(1)
    }

    fn time_of(&self, round: u64) -> u64 {
        self.genesis_ms.saturating_add(round.saturating_sub(1).saturating_mul(self.period_ms))
    }
}

/// The newest round that held, so that the next one costs few hashes.
#[derive(Debug, Default)]
pub(crate) struct Newest(Mutex<Option<(u64, Vec<Randomness>)>>);

impl Newest {
    fn below(&self, round: u64) -> Option<(u64, Vec<Randomness>)> {
        let held = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.clone().filter(|(newest, _)| *newest <= round)
    }

    fn keep(&self, round: u64, layers: Vec<Randomness>) {
        let mut held = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if held.as_ref().is_none_or(|(newest, _)| *newest < round) {
            *held = Some((round, layers));
        }
    }
}

/// Why a round or a beacon is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeaconError {
    /// The configuration makes no sense.
    #[error("the beacon's configuration is wrong: {detail}")]
    Spec {
        /// How.
        detail: &'static str,
    },
    /// The proof does not have its shape.
    #[error("the proof of round {round} has {found} bytes instead of {expected}")]
    Length {
        /// The round.
        round: u64,
        /// Bytes that it has.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The proof is not that round's.
    #[error("the proof of round {round} does not hold")]
    Mismatch {
        /// The round.
        round: u64,
    },
    /// The chains of an embedded beacon have ended.
    #[error("round {round} lies past the end of the beacon's chains, {last}")]
    Ended {
        /// The round.
        round: u64,
        /// The last one.
        last: u64,
    },
}

impl BeaconError {
    /// Never with the same proof.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
