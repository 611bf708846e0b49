//! Packing: the queue of stripes that are short or have dead blocks, and the transaction that merges them.
//!
//! The transaction relies on every row that decided it: the merged stripes' rows, the rows of their live blocks,
//! and the absence of rows of their dead ones. A DELETE, a PUT of the same bytes or a repair that comes between
//! makes it fail, and nothing has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use holdfast_protocol::record::{Stripe, StripeId};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::pack::{PackCandidate, PackChange};

use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError, PlacementError};
use super::queue::{enqueue, stripe_of};
use super::row::{BlockRow, Origin, StripeRow, from_record};
use super::store::{TransactError, Transaction, prefix_end};
use super::{Bucket, Meta, next_key, schema};

/// Claims that one intent names: the data slots of the widest code, many times over.
const INTENT_CLAIMS_MAX: usize = 1024;

/// Where the live data blocks of some stripes came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// For each data shard that lives in its stripe: its bucket, when that is known and still there.
    pub live: HashMap<Digest, Option<Bucket>>,
}

impl Meta {
    /// Up to `limit` queued stripes after `after`, and where to go on. Stripes that are gone, or full with most of
    /// their bytes alive, leave the queue on the way: a later deletion queues them again.
    pub async fn pack_candidates(
        &self,
        after: Option<StripeId>,
        limit: usize,
    ) -> Result<(Vec<PackCandidate>, Option<StripeId>), MetaError> {
        let start = after.map_or_else(|| schema::PACKING.to_vec(), |id| next_key(schema::packing(id)));
        let rows = self.store.page(&start, &prefix_end(&schema::PACKING), limit).await?;
        let mut found = Vec::with_capacity(rows.len());
        let mut last = None;
        for row in &rows {
            let id = stripe_of(&row.key[2..], "packing")?;
            last = Some(id);
            let since = row.value[..].try_into().map(u64::from_le_bytes);
            let since_ms = since.map_err(|_| MetaError::Corrupt { what: "packing" })?;
            let value = self.store.get(&schema::stripe(id)).await?;
            if let Some(candidate) = self.pack_candidate(id, since_ms, value.as_ref()).await?
                && (candidate.is_short() || candidate.is_mostly_dead())
            {
                found.push(candidate);
                continue;
            }
            let mut transaction = Transaction::default();
            transaction.expect(schema::stripe(id), value);
            transaction.expect(row.key.clone(), Some(row.value.clone()));
            transaction.delete(row.key.clone());
            match self.store.transact(transaction).await {
                Ok(()) | Err(TransactError::Conflict) => {}
                Err(TransactError::Store(error)) => return Err(error.into()),
            }
        }
        Ok((found, last.filter(|_| rows.len() == limit)))
    }

    async fn pack_candidate(
        &self,
        id: StripeId,
        since_ms: UnixMs,
        value: Option<&Bytes>,
    ) -> Result<Option<PackCandidate>, MetaError> {
        let Some(value) = value else { return Ok(None) };
        // Holders of a locked object's shards would refuse to let the old parity go.
        if self.stripe_retained_until(id).await? > self.now_ms() {
            return Ok(None);
        }
        let row = StripeRow::decode(value)?;
        let stripe = self.stripe_record(id, &row).await?;
        let live = self.lives(id, &row).await?;
        Ok(Some(PackCandidate { stripe, live, since_ms }))
    }

    /// For each data slot of a stripe: whether its block lives there.
    async fn lives(&self, id: StripeId, row: &StripeRow) -> Result<Vec<bool>, MetaError> {
        let mut live = vec![false; usize::from(row.k)];
        let keys: Vec<Vec<u8>> = row.data().map(|(_, shard)| schema::block(&shard.digest)).collect();
        let blocks = self.store.get_many(&keys).await?;
        for ((slot, _), block) in row.data().zip(blocks) {
            let Some(block) = block else { continue };
            let block = BlockRow::decode(&block)?;
            if let Some(live) = live.get_mut(usize::from(slot)) {
                *live = block.stripe == id && block.slot == slot;
            }
        }
        Ok(live)
    }

    /// Queues stripes for the packer that are short and not queued: those written before there was a queue, and
    /// those whose row was lost with a crash of an older release. Looks at `stripes` only.
    pub async fn queue_short(&self, stripes: &[Stripe]) -> Result<usize, MetaError> {
        let short = |stripe: &&Stripe| {
            let data = stripe.shards.iter().take(usize::from(stripe.k)).flatten().count();
            stripe.k > 1 && data < usize::from(stripe.k)
        };
        let keys: Vec<Vec<u8>> =
            stripes.iter().filter(short).map(|stripe| schema::packing(stripe.id)).collect();
        let found = self.store.get_many(&keys).await?;
        let mut transaction = Transaction::default();
        for (key, row) in keys.into_iter().zip(found) {
            if row.is_none() {
                transaction.put_if_absent(key, self.now_ms().to_le_bytes().to_vec());
            }
        }
        let queued = transaction.writes.len();
        if queued > 0 {
            match self.store.transact(transaction).await {
                Ok(()) | Err(TransactError::Conflict) => {}
                Err(TransactError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(queued)
    }

    /// Bytes of live blocks, and of all shards, of one stripe as the queue knows it: a stripe that is not queued is
    /// taken to live wholly.
    pub async fn stripe_bytes(&self, stripe: &Stripe) -> Result<(u64, u64), MetaError> {
        let of = |shards: &mut dyn Iterator<Item = u32>| shards.map(u64::from).sum::<u64>();
        let stored = of(&mut stripe.shards.iter().flatten().map(|shard| shard.len.bytes()));
        let k = usize::from(stripe.k);
        let data = of(&mut stripe.shards.iter().take(k).flatten().map(|shard| shard.len.bytes()));
        if self.store.get(&schema::packing(stripe.id)).await?.is_none() {
            return Ok((data, stored));
        }
        let Some(value) = self.store.get(&schema::stripe(stripe.id)).await? else { return Ok((0, 0)) };
        let live = self.lives(stripe.id, &StripeRow::decode(&value)?).await?;
        let living = stripe.shards.iter().zip(live).filter(|(_, live)| *live);
        Ok((of(&mut living.filter_map(|(shard, _)| Some(shard.as_ref()?.len.bytes()))), stored))
    }

    /// Where the live blocks of these stripes came from. Blocks that are dead, or live elsewhere, are left out.
    pub async fn origins(&self, stripes: &[Stripe]) -> Result<Origins, MetaError> {
        let buckets: Vec<Bucket> = self.buckets().await?;
        let by_origin = |origin: Origin| {
            let mut found = buckets.iter().filter(|bucket| Origin::of(bucket.id) == origin);
            // Two buckets whose random ids begin alike cannot be told apart: neither is believed.
            found.next().filter(|_| found.next().is_none()).cloned()
        };
        let mut origins = Origins::default();
        for stripe in stripes {
            let data: Vec<_> = stripe.shards.iter().take(usize::from(stripe.k)).flatten().collect();
            let keys: Vec<_> = data.iter().map(|shard| schema::block(&shard.digest)).collect();
            for (shard, row) in data.into_iter().zip(self.store.get_many(&keys).await?) {
                let Some(row) = row else { continue };
                let block = BlockRow::decode(&row)?;
                if block.stripe == stripe.id {
                    origins.live.insert(shard.digest, block.origin.and_then(by_origin));
                }
            }
        }
        Ok(origins)
    }

    /// Remembers that claims will be made for `packed`; false when a release of one of them is still to be
    /// delivered, and then nothing is remembered.
    pub async fn intend_packing(
        &self,
        packed: StripeId,
        claims: &[(NodeId, Digest)],
    ) -> Result<bool, MetaError> {
        if claims.len() > INTENT_CLAIMS_MAX {
            return Err(MetaError::Bounds { what: "claims of one merge" });
        }
        let mut value = Writer::default();
        value.len(claims.len());
        for (node, digest) in claims {
            let number = self.intern(*node).await?;
            if self.releasing(number, packed).await?.contains(digest) {
                return Ok(false);
            }
            value.int(u64::from(number)).fixed(&digest.0);
        }
        let key = schema::pack_intent(packed);
        let mut transaction = Transaction::default();
        // Another intent for the same stripe would be another packer's.
        transaction.expect(key.clone(), None);
        transaction.put(key, value.0);
        self.guard_owned(&mut transaction);
        match self.store.transact(transaction).await {
            Ok(()) => Ok(true),
            Err(TransactError::Conflict) => Ok(false),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    /// Intents that stand.
    pub async fn pack_intents(&self, limit: usize) -> Result<Vec<StripeId>, MetaError> {
        let rows = self.store.page(&schema::PACK_INTENTS, &prefix_end(&schema::PACK_INTENTS), limit).await?;
        rows.iter().map(|row| stripe_of(&row.key[2..], "pack intent")).collect()
    }

    /// Queues the release of what an intent names and the stripe's row does not hold, and forgets the intent.
    pub async fn abandon_packing(&self, packed: StripeId) -> Result<(), MetaError> {
        self.retry(|| self.try_abandon(packed)).await
    }

    async fn try_abandon(&self, packed: StripeId) -> Result<(), Attempt<MetaError>> {
        let key = schema::pack_intent(packed);
        let Some(value) = self.store.get(&key).await? else { return Ok(()) };
        let mut row = Reader::new("pack intent", &value);
        let count = row.count(33)?;
        let mut claims: BTreeMap<u32, BTreeSet<Digest>> = BTreeMap::new();
        for _ in 0..count {
            let number = row.u32()?;
            claims.entry(number).or_default().insert(Digest(row.array()?));
        }
        row.end()?;
        let stripe_key = schema::stripe(packed);
        let standing = self.store.get(&stripe_key).await?;
        if let Some(standing) = &standing {
            for (node, digests) in StripeRow::decode(standing)?.by_node() {
                if let Some(claims) = claims.get_mut(&node) {
                    claims.retain(|digest| !digests.contains(digest));
                }
            }
        }
        let mut transaction = Transaction::default();
        transaction.expect(key.clone(), Some(value));
        transaction.expect(stripe_key, standing);
        transaction.delete(key);
        for (node, digests) in claims {
            self.add_releases(node, packed, digests, &mut transaction).await?;
        }
        self.guard_owned(&mut transaction);
        Ok(self.store.transact(transaction).await?)
    }

    /// The digests that a node has yet to be told to let go for a stripe.
    pub(super) async fn releasing(&self, node: u32, stripe: StripeId) -> Result<Vec<Digest>, MetaError> {
        match self.store.get(&schema::queued(schema::RELEASES, node, stripe)).await? {
            None => Ok(Vec::new()),
            Some(value) => Ok(queued_digests(&value)?.1),
        }
    }

    /// Adds digests to the release row of a node and a stripe, beside what it names already.
    pub(super) async fn add_releases(
        &self,
        node: u32,
        stripe: StripeId,
        digests: BTreeSet<Digest>,
        transaction: &mut Transaction,
    ) -> Result<(), MetaError> {
        if digests.is_empty() {
            return Ok(());
        }
        let key = schema::queued(schema::RELEASES, node, stripe);
        let before = self.store.get(&key).await?;
        let mut all = digests;
        if let Some(before) = &before {
            all.extend(queued_digests(before)?.1);
        }
        transaction.expect(key, before);
        let holders = BTreeMap::from([(node, all.into_iter().collect())]);
        enqueue(schema::RELEASES, stripe, &holders, self.now_ms(), transaction);
        Ok(())
    }

    /// Merges stripes: see [`PackChange`].
    pub async fn pack(&self, change: &PackChange) -> Result<(), PlacementError> {
        self.intern_nodes(&change.packed).await?;
        self.retry(|| self.try_pack(change)).await
    }

    async fn try_pack(&self, change: &PackChange) -> Result<(), Attempt<PlacementError>> {
        let packed = &change.packed;
        let shape = || Attempt::Failed(PlacementError::Shape { stripe: packed.id });
        let new = from_record(packed, |node| self.nodes.number(node)).ok_or_else(shape)?;
        let mut transaction = Transaction::default();
        let mut unplaced: BTreeMap<Digest, u8> =
            new.data().map(|(slot, shard)| (shard.digest, slot)).collect();
        let survivor = self.pack_survivor(change, &new, &mut unplaced, &mut transaction).await?;
        for absorbed in &change.absorbed {
            self.absorb(absorbed, packed.id, &mut unplaced, &mut transaction).await?;
        }
        // Every block of the new row is the survivor's own or passed into it alive.
        if !unplaced.is_empty() {
            return Err(conflict(packed));
        }
        self.pass_claims(packed.id, survivor.as_ref(), &new, &mut transaction).await?;
        transaction.put(schema::stripe(packed.id), new.encode());
        if new.incomplete() {
            transaction.put(schema::completion(packed.id), Vec::new());
        } else {
            transaction.delete(schema::completion(packed.id));
        }
        if new.is_short() {
            // It waits anew for partners that fill it.
            transaction.put(schema::packing(packed.id), self.now_ms().to_le_bytes().to_vec());
        } else {
            transaction.delete(schema::packing(packed.id));
        }
        transaction.delete(schema::pack_intent(packed.id));
        self.guard_owned(&mut transaction);
        Ok(self.store.transact(transaction).await?)
    }

    /// Checks that the survivor is as it was read and keeps its slots; its blocks count as placed.
    async fn pack_survivor(
        &self,
        change: &PackChange,
        new: &StripeRow,
        unplaced: &mut BTreeMap<Digest, u8>,
        transaction: &mut Transaction,
    ) -> Result<Option<StripeRow>, Attempt<PlacementError>> {
        let packed = &change.packed;
        let key = schema::stripe(packed.id);
        let Some(survivor) = &change.survivor else {
            transaction.expect(key, None);
            transaction.expect(schema::tombstone(packed.id), None);
            return Ok(None);
        };
        let old = self.expect_stripe(survivor, transaction).await?;
        let same_code = (old.policy, old.k, old.m) == (new.policy, new.k, new.m);
        if survivor.id != packed.id || new.version != old.version + 1 || !same_code {
            return Err(Attempt::Failed(PlacementError::Shape { stripe: packed.id }));
        }
        for (slot, shard) in old.data() {
            if new.shards.get(usize::from(slot)).copied().flatten() != Some(*shard) {
                return Err(Attempt::Failed(PlacementError::Shape { stripe: packed.id }));
            }
            unplaced.remove(&shard.digest);
        }
        Ok(Some(old))
    }

    /// The row of a stripe as it was read; relied on.
    async fn expect_stripe(
        &self,
        stripe: &Stripe,
        transaction: &mut Transaction,
    ) -> Result<StripeRow, Attempt<PlacementError>> {
        let key = schema::stripe(stripe.id);
        let Some(value) = self.store.get(&key).await? else {
            return Err(Attempt::Failed(PlacementError::Gone { stripe: stripe.id }));
        };
        let row = StripeRow::decode(&value)?;
        if row.version != stripe.version {
            let (found, expected) = (row.version, stripe.version);
            return Err(Attempt::Failed(PlacementError::Version { stripe: stripe.id, found, expected }));
        }
        transaction.expect(key, Some(value));
        Ok(row)
    }

    /// Ends a stripe whose live blocks pass into `into`, at the slots that `unplaced` gives them.
    async fn absorb(
        &self,
        stripe: &Stripe,
        into: StripeId,
        unplaced: &mut BTreeMap<Digest, u8>,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PlacementError>> {
        let id = stripe.id;
        let old = self.expect_stripe(stripe, transaction).await?;
        let keys: Vec<_> = old.data().map(|(_, shard)| schema::block(&shard.digest)).collect();
        let rows = self.store.get_many(&keys).await?;
        for (((slot, shard), key), row) in old.data().zip(keys).zip(rows) {
            let block = row.as_ref().map(|row| BlockRow::decode(row)).transpose()?;
            let alive = block.filter(|block| block.stripe == id && block.slot == slot);
            transaction.expect(key.clone(), row);
            if let Some(alive) = alive {
                let slot = unplaced.remove(&shard.digest).ok_or_else(|| conflict(stripe))?;
                transaction.put(key, BlockRow { stripe: into, slot, ..alive }.encode());
            }
        }
        transaction.delete(schema::stripe(id));
        transaction.delete(schema::completion(id));
        transaction.delete(schema::packing(id));
        transaction.put(schema::tombstone(id), self.now_ms().to_le_bytes().to_vec());
        for (node, digests) in old.by_node() {
            transaction.delete(schema::queued(schema::COMMITS, node, id));
            self.add_releases(node, id, digests.into_iter().collect(), transaction).await?;
        }
        Ok(())
    }

    /// Queues commits for what nodes newly hold of `stripe`, and releases of what they hold no longer. A claim whose
    /// release is not delivered yet must not be made anew: the late order would hit it.
    pub(super) async fn pass_claims(
        &self,
        stripe: StripeId,
        old: Option<&StripeRow>,
        new: &StripeRow,
        transaction: &mut Transaction,
    ) -> Result<(), Attempt<PlacementError>> {
        let before = old.map(StripeRow::by_node).unwrap_or_default();
        let mut after = new.by_node();
        for (node, digests) in &before {
            let kept = after.get(node).map_or(&[][..], Vec::as_slice);
            let gone = digests.iter().filter(|digest| !kept.contains(digest)).copied().collect();
            self.add_releases(*node, stripe, gone, transaction).await?;
            if kept.is_empty() {
                transaction.delete(schema::queued(schema::COMMITS, *node, stripe));
            }
        }
        after.retain(|node, digests| before.get(node) != Some(digests));
        for (node, digests) in &after {
            let old = before.get(node).map_or(&[][..], Vec::as_slice);
            let mut fresh = digests.iter().filter(|digest| !old.contains(digest));
            let releasing = self.releasing(*node, stripe).await?;
            if fresh.any(|digest| releasing.contains(digest)) {
                return Err(Attempt::Failed(PlacementError::Releasing { stripe }));
            }
        }
        enqueue(schema::COMMITS, stripe, &after, self.now_ms(), transaction);
        Ok(())
    }

    /// Whether a node has yet to be told to let go a claim of this stripe.
    pub async fn is_releasing(&self, node: NodeId, stripe: StripeId) -> Result<bool, MetaError> {
        let Some(number) = self.nodes.number(&node) else { return Ok(false) };
        Ok(self.store.get(&schema::queued(schema::RELEASES, number, stripe)).await?.is_some())
    }
}

/// What a commit or release row says.
pub(super) fn queued_digests(value: &[u8]) -> Result<(UnixMs, Vec<Digest>), MetaError> {
    let mut row = Reader::new("queue", value);
    let queued_ms = row.int()?;
    let count = row.count(32)?;
    let digests = (0..count).map(|_| Ok(Digest(row.array()?))).collect::<Result<_, MetaError>>()?;
    Ok((queued_ms, digests))
}

/// The rows are not what the merge was planned on.
fn conflict(stripe: &Stripe) -> Attempt<PlacementError> {
    let expected = stripe.version;
    Attempt::Failed(PlacementError::Version { stripe: stripe.id, found: expected, expected })
}
