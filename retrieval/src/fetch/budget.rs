//! What hedges may cost: a share of what was read without them, in bytes and in requests. Pure.
//!
//! Without a bound, a network that is slow as a whole is made slower by everybody asking for everything
//! several times. The burst at the start is what recognising a stalled node costs.

/// The shares and bursts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeLimits {
    /// Bytes of hedges for each 100 bytes read directly.
    pub bytes_percent: u64,
    /// Bytes of hedges at once, and at most saved up.
    pub bytes_burst: u64,
    /// Hedges for each 100 direct reads.
    pub requests_percent: u64,
    /// Hedges at once, and at most saved up.
    pub requests_burst: u64,
}

impl Default for HedgeLimits {
    /// A tenth more; the burst lets sixteen readers that are stuck on one node rebuild a 4+2 block each.
    fn default() -> Self {
        Self { bytes_percent: 10, bytes_burst: 64 << 20, requests_percent: 10, requests_burst: 32 }
    }
}

/// What may still be spent. In hundredths, so that a percentage is a whole number.
#[derive(Debug)]
pub(crate) struct HedgeBudget {
    limits: HedgeLimits,
    bytes: u64,
    requests: u64,
}

impl HedgeBudget {
    pub(crate) fn new(limits: HedgeLimits) -> Self {
        Self {
            limits,
            bytes: limits.bytes_burst.saturating_mul(100),
            requests: limits.requests_burst.saturating_mul(100),
        }
    }

    /// A direct read of `bytes` was answered.
    pub(crate) fn earn(&mut self, bytes: u64) {
        let HedgeLimits { bytes_percent, bytes_burst, requests_percent, requests_burst } = self.limits;
        let earned = bytes.saturating_mul(bytes_percent);
        self.bytes = self.bytes.saturating_add(earned).min(bytes_burst.saturating_mul(100));
        self.requests =
            self.requests.saturating_add(requests_percent).min(requests_burst.saturating_mul(100));
    }

    /// Takes a hedge that may cost `bytes`; false when that is too much, and nothing was taken.
    pub(crate) fn spend(&mut self, bytes: u64) -> bool {
        let cost = bytes.saturating_mul(100);
        if self.bytes < cost || self.requests < 100 {
            return false;
        }
        self.bytes -= cost;
        self.requests -= 100;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HedgeLimits =
        HedgeLimits { bytes_percent: 10, bytes_burst: 1000, requests_percent: 5, requests_burst: 3 };

    #[test]
    fn the_burst_is_spent_and_earned_again() {
        let mut budget = HedgeBudget::new(LIMITS);
        assert_eq!((0..5).filter(|_| budget.spend(100)).count(), 3, "three requests");
        for _ in 0..20 {
            budget.earn(0);
        }
        assert!(budget.spend(700) && !budget.spend(1), "the bytes are spent, though a request would be left");
    }

    proptest! {
        #[test]
        fn hedges_never_cost_more_than_their_share_and_the_burst(
            steps in prop::collection::vec((any::<bool>(), 0u64..2000), 1..200),
        ) {
            let mut budget = HedgeBudget::new(LIMITS);
            let (mut read, mut reads, mut hedged, mut hedges) = (0, 0, 0, 0);
            for (earns, bytes) in steps {
                if earns {
                    budget.earn(bytes);
                    (read, reads) = (read + bytes, reads + 1);
                } else if budget.spend(bytes) {
                    (hedged, hedges) = (hedged + bytes, hedges + 1);
                }
                prop_assert!(hedged * 100 <= read * 10 + 1000 * 100);
                prop_assert!(hedges * 100 <= reads * 5 + 3 * 100);
            }
        }
    }
}
