//! The decisions of a read, without I/O and without a clock: which shard to ask next, when one more is
//! worth asking, and when to stop. The runner feeds events in and carries effects out.
//!
//! Two small machines: [`Route`] decides between reading a block where it lies and rebuilding it;
//! [`Gather`] chooses which k of a stripe's shards to read for a rebuild.

use std::collections::VecDeque;

/// How often one shard may be asked within one gather. The second time only after all others were asked.
pub(crate) const ATTEMPTS_PER_SHARD: u8 = 2;

/// What [`Route`] wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteStep {
    /// Read the block (or its range) from this slot's node.
    Read(usize),
    /// Start rebuilding the block from its stripe.
    Rebuild,
    /// Nothing; something is still under way.
    Wait,
    /// Nothing is under way and nothing is left to try.
    GiveUp,
}

/// Where one block is read from: its own slot, slots with the same bytes, at last its stripe.
#[derive(Debug)]
pub(crate) struct Route {
    copies: VecDeque<usize>,
    last_resort: VecDeque<usize>,
    flying: usize,
    rebuild: Rebuild,
    rebuild_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rebuild {
    Untried,
    Running,
    Failed,
}

impl Route {
    /// A route over `copies`: the slots that hold the wanted bytes, the best first. Those of `last_resort`
    /// hold them too, on nodes that are believed to be down: asked when the stripe has not given the block.
    pub(crate) fn new(
        copies: impl IntoIterator<Item = usize>,
        last_resort: impl IntoIterator<Item = usize>,
    ) -> Self {
        let (copies, last_resort) = (copies.into_iter().collect(), last_resort.into_iter().collect());
        Self { copies, last_resort, flying: 0, rebuild: Rebuild::Untried, rebuild_first: false }
    }

    /// The first step is the rebuild; the copies are asked when it fails.
    pub(crate) fn prefer_rebuild(&mut self) {
        self.rebuild_first = true;
    }

    /// The first step.
    pub(crate) fn begin(&mut self) -> RouteStep {
        if self.rebuild_first {
            self.rebuild = Rebuild::Running;
            return RouteStep::Rebuild;
        }
        self.another()
    }

    /// A direct read failed.
    pub(crate) fn read_failed(&mut self) -> RouteStep {
        self.flying = self.flying.saturating_sub(1);
        self.another()
    }

    /// The newest direct read takes too long. It goes on; whoever comes first wins.
    pub(crate) fn overdue(&mut self) -> RouteStep {
        if self.rebuild == Rebuild::Untried { self.another() } else { RouteStep::Wait }
    }

    /// The stripe did not give the block back.
    pub(crate) fn rebuild_failed(&mut self) -> RouteStep {
        self.rebuild = Rebuild::Failed;
        self.another()
    }

    fn another(&mut self) -> RouteStep {
        // While a rebuild runs no further copy is tried: the rebuild asks their nodes too.
        if self.rebuild != Rebuild::Running {
            if let Some(slot) = self.copies.pop_front() {
                self.flying += 1;
                return RouteStep::Read(slot);
            }
            if self.rebuild == Rebuild::Untried {
                self.rebuild = Rebuild::Running;
                return RouteStep::Rebuild;
            }
            if let Some(slot) = self.last_resort.pop_front() {
                self.flying += 1;
                return RouteStep::Read(slot);
            }
        }
        if self.flying > 0 || self.rebuild == Rebuild::Running { RouteStep::Wait } else { RouteStep::GiveUp }
    }
}

/// What is known of one slot when a gather starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// A virtual block: zeros, stored nowhere, at hand without a request.
    Zeros,
    /// A shard that some node holds.
    Placed,
    /// Wanted itself, without a node, or not to be asked.
    Absent,
}

/// What [`Gather`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GatherStep {
    /// Read these slots; possibly none, when something is still under way.
    Read(Vec<usize>),
    /// k shards are at hand: decode, and drop what is still under way.
    Decode,
    /// k shards can no longer be had.
    GiveUp {
        /// Shards at hand, virtual ones included, and those that have not failed yet.
        have: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shard {
    Zeros,
    Absent,
    Idle { asked: u8 },
    Flying { asked: u8 },
    Held,
}

/// Gathers any k shards of a stripe: the quickest k first, one more for each that fails or lingers.
#[derive(Debug)]
pub(crate) struct Gather {
    k: usize,
    shards: Vec<Shard>,
    queue: VecDeque<usize>,
}

impl Gather {
    /// A gather of `k` of these slots. `order` names the placed slots, the quickest first; slots that it
    /// leaves out are not asked.
    pub(crate) fn new(k: usize, slots: &[SlotKind], order: &[usize]) -> Self {
        let mut shards: Vec<Shard> = slots
            .iter()
            .map(|kind| match kind {
                SlotKind::Zeros => Shard::Zeros,
                SlotKind::Placed | SlotKind::Absent => Shard::Absent,
            })
            .collect();
        let mut queue = VecDeque::new();
        for &slot in order {
            if slots.get(slot) == Some(&SlotKind::Placed) && shards[slot] == Shard::Absent {
                shards[slot] = Shard::Idle { asked: 0 };
                queue.push_back(slot);
            }
        }
        Self { k, shards, queue }
    }

    /// Asks the quickest shards, exactly as many as are missing.
    pub(crate) fn begin(&mut self) -> GatherStep {
        self.fill()
    }

    /// A shard arrived and its digest holds.
    pub(crate) fn verified(&mut self, slot: usize) -> GatherStep {
        self.shards[slot] = Shard::Held;
        self.fill()
    }

    /// A shard did not arrive. `again` says whether the same node may do better later.
    pub(crate) fn failed(&mut self, slot: usize, again: bool) -> GatherStep {
        self.shards[slot] = match self.shards[slot] {
            Shard::Flying { asked } if again && asked < ATTEMPTS_PER_SHARD => {
                self.queue.push_back(slot);
                Shard::Idle { asked }
            }
            _ => Shard::Absent,
        };
        self.fill()
    }

    /// What was asked takes too long: one more shard, if there is one that was never asked.
    pub(crate) fn overdue(&mut self) -> GatherStep {
        let fresh = self.queue.front().copied().filter(|&slot| self.shards[slot] == Shard::Idle { asked: 0 });
        match fresh {
            Some(_) => GatherStep::Read(self.ask().into_iter().collect()),
            None => GatherStep::Read(Vec::new()),
        }
    }

    /// Shards at hand, virtual ones included.
    pub(crate) fn have(&self) -> usize {
        self.count(|shard| matches!(shard, Shard::Held | Shard::Zeros))
    }

    fn fill(&mut self) -> GatherStep {
        let have = self.have();
        if have >= self.k {
            return GatherStep::Decode;
        }
        let flying = self.count(|shard| matches!(shard, Shard::Flying { .. }));
        let usable = have + flying + self.queue.len();
        if usable < self.k {
            return GatherStep::GiveUp { have: usable };
        }
        let missing = self.k.saturating_sub(have + flying);
        let mut slots = Vec::with_capacity(missing);
        for _ in 0..missing {
            slots.extend(self.ask());
        }
        GatherStep::Read(slots)
    }

    fn ask(&mut self) -> Option<usize> {
        let slot = self.queue.pop_front()?;
        let asked = match self.shards[slot] {
            Shard::Idle { asked } => asked + 1,
            _ => 1,
        };
        self.shards[slot] = Shard::Flying { asked };
        Some(slot)
    }

    fn count(&self, is: impl Fn(&Shard) -> bool) -> usize {
        self.shards.iter().filter(|shard| is(shard)).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACED: SlotKind = SlotKind::Placed;

    fn read(slots: &[usize]) -> GatherStep {
        GatherStep::Read(slots.to_vec())
    }

    #[test]
    fn a_healthy_read_asks_one_node_and_nothing_else() {
        let mut route = Route::new([2], []);
        assert_eq!(route.begin(), RouteStep::Read(2));
    }

    #[test]
    fn a_failed_read_tries_equal_bytes_then_the_stripe_then_gives_up() {
        let mut route = Route::new([0, 3], []);
        assert_eq!(route.begin(), RouteStep::Read(0));
        assert_eq!(route.read_failed(), RouteStep::Read(3));
        assert_eq!(route.read_failed(), RouteStep::Rebuild);
        assert_eq!(route.rebuild_failed(), RouteStep::GiveUp);
    }

    #[test]
    fn a_slow_read_goes_on_beside_the_rebuild() {
        let mut route = Route::new([0], []);
        assert_eq!(route.begin(), RouteStep::Read(0));
        assert_eq!(route.overdue(), RouteStep::Rebuild);
        assert_eq!(route.overdue(), RouteStep::Wait);
        assert_eq!(route.rebuild_failed(), RouteStep::Wait, "the slow read may still come");
        assert_eq!(route.read_failed(), RouteStep::GiveUp);
    }

    #[test]
    fn a_block_without_a_node_is_rebuilt_at_once() {
        assert_eq!(Route::new([], []).begin(), RouteStep::Rebuild);
    }

    #[test]
    fn a_node_that_is_down_is_asked_when_the_stripe_has_failed() {
        let mut route = Route::new([], [1]);
        assert_eq!(route.begin(), RouteStep::Rebuild);
        assert_eq!(route.rebuild_failed(), RouteStep::Read(1));
        assert_eq!(route.read_failed(), RouteStep::GiveUp);
    }

    #[test]
    fn a_rebuild_that_is_quicker_comes_first_and_the_copies_after_it() {
        let mut route = Route::new([0], [1]);
        route.prefer_rebuild();
        assert_eq!(route.begin(), RouteStep::Rebuild);
        assert_eq!(route.rebuild_failed(), RouteStep::Read(0));
        assert_eq!(route.read_failed(), RouteStep::Read(1));
        assert_eq!(route.read_failed(), RouteStep::GiveUp);
    }

    #[test]
    fn the_quickest_k_are_asked_and_no_more() {
        let mut plan = Gather::new(3, &[SlotKind::Absent, PLACED, PLACED, PLACED, PLACED], &[4, 2, 1, 3]);
        assert_eq!(plan.begin(), read(&[4, 2, 1]));
        assert_eq!(plan.verified(2), read(&[]));
        assert_eq!(plan.failed(4, false), read(&[3]));
        assert_eq!(plan.verified(1), read(&[]));
        assert_eq!(plan.verified(3), GatherStep::Decode);
    }

    #[test]
    fn virtual_blocks_cost_no_request() {
        let mut plan = Gather::new(
            4,
            &[SlotKind::Absent, SlotKind::Zeros, SlotKind::Zeros, SlotKind::Zeros, PLACED, PLACED],
            &[4, 5],
        );
        assert_eq!(plan.begin(), read(&[4]));
        assert_eq!(plan.verified(4), GatherStep::Decode);
    }

    #[test]
    fn hopeless_is_said_before_anything_is_asked() {
        let mut plan = Gather::new(3, &[SlotKind::Absent, PLACED, PLACED, SlotKind::Absent], &[1, 2]);
        assert_eq!(plan.begin(), GatherStep::GiveUp { have: 2 });
    }

    #[test]
    fn a_lingering_shard_gets_company_and_is_not_asked_twice() {
        let mut plan = Gather::new(2, &[PLACED, PLACED, PLACED], &[0, 1, 2]);
        assert_eq!(plan.begin(), read(&[0, 1]));
        assert_eq!(plan.overdue(), read(&[2]));
        assert_eq!(plan.overdue(), read(&[]));
    }

    #[test]
    fn a_busy_node_is_asked_once_more_after_the_others() {
        let mut plan = Gather::new(2, &[PLACED, PLACED, PLACED], &[0, 1, 2]);
        assert_eq!(plan.begin(), read(&[0, 1]));
        assert_eq!(plan.failed(0, true), read(&[2]));
        assert_eq!(plan.failed(1, false), read(&[0]));
        assert_eq!(plan.failed(0, true), GatherStep::GiveUp { have: 1 });
    }

    proptest! {
        /// Whatever fails, in whatever order: a gather ends, asks no slot too often, and decodes exactly
        /// when k good shards are among those that it may ask.
        #[test]
        fn a_gather_ends_and_is_right(
            k in 1usize..8, m in 0usize..6, good in any::<u64>(), zeros in any::<u64>(), late in any::<u64>(), pick in any::<u64>(),
        ) {
            let n = k + m;
            let bit = |mask: u64, index: usize| mask >> (index % 64) & 1 == 1;
            let slots: Vec<SlotKind> = (0..n)
                .map(|slot| if slot < k && bit(zeros, slot) { SlotKind::Zeros } else { SlotKind::Placed })
                .collect();
            let order: Vec<usize> = (0..n).filter(|&slot| slots[slot] == SlotKind::Placed).collect();
            let usable = (0..n).filter(|&slot| slots[slot] == SlotKind::Zeros || bit(good, slot)).count();
            let mut plan = Gather::new(k, &slots, &order);
            let mut asked = vec![0u8; n];
            let mut flying: Vec<usize> = Vec::new();
            let mut step = plan.begin();
            for turn in 0..(4 * n + 4) {
                match step {
                    GatherStep::Decode => {
                        prop_assert!(usable >= k);
                        return Ok(());
                    }
                    GatherStep::GiveUp { have } => {
                        prop_assert!(usable < k);
                        prop_assert!(have < k);
                        return Ok(());
                    }
                    GatherStep::Read(slots) => {
                        for slot in slots {
                            asked[slot] += 1;
                            prop_assert!(asked[slot] <= ATTEMPTS_PER_SHARD);
                            flying.push(slot);
                        }
                    }
                }
                if bit(late, turn) {
                    step = plan.overdue();
                    continue;
                }
                prop_assert!(!flying.is_empty(), "waiting for nothing");
                let slot = flying.swap_remove(usize::try_from(pick).unwrap_or(0).wrapping_add(turn) % flying.len());
                step = if bit(good, slot) { plan.verified(slot) } else { plan.failed(slot, bit(late, slot)) };
            }
            prop_assert!(late != 0, "the gather never ended");
        }
    }
}
