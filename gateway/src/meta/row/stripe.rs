//! Rows of the placement: blocks and stripes, the two tables that there are most of.

use holdfast_protocol::NodeId;

use super::{
    BlockLen, BucketId, Digest, MetaError, PolicyName, Reader, SHARDS_MAX, StripeId, V1, V2, Writer, policy,
    policy_code, version,
};

/// The bucket that a block was uploaded to, as the first four bytes of its random id: enough to tell a namespace's
/// buckets apart, and within the budget of metadata per terabyte, which eight would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) struct Origin(pub(in crate::meta) [u8; 4]);

impl Origin {
    pub(in crate::meta) fn of(bucket: BucketId) -> Self {
        let [a, b, c, d, ..] = bucket.0;
        Self([a, b, c, d])
    }
}

/// Where a block is, how many manifests refer to it, and where it came from: what a rebuilt copy may be read by.
///
/// ```text
/// u8 version 1 | 16 stripe | u8 slot | LEB128 references
/// u8 version 2 | 16 stripe | u8 slot | LEB128 references | 4 origin
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) struct BlockRow {
    pub(in crate::meta) stripe: StripeId,
    pub(in crate::meta) slot: u8,
    pub(in crate::meta) refs: u64,
    pub(in crate::meta) origin: Option<Origin>,
}

impl BlockRow {
    pub(in crate::meta) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(24));
        out.u8(if self.origin.is_some() { V2 } else { V1 });
        out.fixed(&self.stripe.0).u8(self.slot).int(self.refs);
        if let Some(origin) = self.origin {
            out.fixed(&origin.0);
        }
        out.0
    }

    pub(in crate::meta) fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut row = Reader::new("block", bytes);
        let version = row.u8()?;
        if version != V1 && version != V2 {
            return Err(row.corrupt());
        }
        let (stripe, slot, refs) = (StripeId(row.array()?), row.u8()?, row.int()?);
        let origin = if version == V2 { Some(Origin(row.array()?)) } else { None };
        let block = Self { stripe, slot, refs, origin };
        row.end()?;
        if block.refs == 0 {
            return Err(row.corrupt());
        }
        Ok(block)
    }
}

/// One shard of a stripe, with the node's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) struct ShardRow {
    pub(in crate::meta) digest: Digest,
    pub(in crate::meta) len: BlockLen,
    pub(in crate::meta) node: Option<u32>,
}

/// A stripe. The id is the row's key.
///
/// ```text
/// u8 version | LEB128 stripe version | u8 policy | u8 k | u8 m | LEB128 block_len |
/// k + m times: LEB128 tag, and unless it is 0: 32 digest, and if the tag says so LEB128 length
/// ```
///
/// A tag is 0 for a virtual zero block, else `1 + 2 * (0 if the shard waits for a node, else number + 1) +
/// (1 if a length follows)`; a shard without a length is as long as the stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::meta) struct StripeRow {
    pub(in crate::meta) version: u64,
    pub(in crate::meta) policy: PolicyName,
    pub(in crate::meta) k: u8,
    pub(in crate::meta) m: u8,
    pub(in crate::meta) block_len: BlockLen,
    pub(in crate::meta) shards: Vec<Option<ShardRow>>,
}

impl StripeRow {
    /// Shards that hold data, with their slots.
    pub(in crate::meta) fn data(&self) -> impl Iterator<Item = (u8, &ShardRow)> {
        (0u8..self.k).zip(&self.shards).filter_map(|(slot, shard)| Some((slot, shard.as_ref()?)))
    }

    /// Whether data slots are still virtual zeros.
    pub(in crate::meta) fn is_short(&self) -> bool {
        self.k > 1 && self.data().count() < usize::from(self.k)
    }

    /// Whether a shard waits for a node.
    pub(in crate::meta) fn incomplete(&self) -> bool {
        self.shards.iter().flatten().any(|shard| shard.node.is_none())
    }

    /// The digests that each node holds, by ascending number.
    pub(in crate::meta) fn by_node(&self) -> std::collections::BTreeMap<u32, Vec<Digest>> {
        let mut nodes = std::collections::BTreeMap::<u32, Vec<Digest>>::new();
        for shard in self.shards.iter().flatten() {
            if let Some(node) = shard.node {
                nodes.entry(node).or_default().push(shard.digest);
            }
        }
        nodes
    }

    pub(in crate::meta) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(16 + self.shards.len() * 36));
        out.u8(V1).int(self.version).u8(policy_code(self.policy)).u8(self.k).u8(self.m);
        out.int(u64::from(self.block_len.bytes()));
        for shard in &self.shards {
            let Some(shard) = shard else {
                out.int(0);
                continue;
            };
            let odd = shard.len != self.block_len;
            let node = shard.node.map_or(0, |number| u64::from(number) + 1);
            out.int(1 + 2 * node + u64::from(odd)).fixed(&shard.digest.0);
            if odd {
                out.int(u64::from(shard.len.bytes()));
            }
        }
        out.0
    }

    pub(in crate::meta) fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut row = Reader::new("stripe", bytes);
        version(&mut row)?;
        let (stripe_version, policy) = (row.int()?, policy(&mut row)?);
        let (k, m) = (row.u8()?, row.u8()?);
        let n = usize::from(k) + usize::from(m);
        if k == 0 || n > SHARDS_MAX {
            return Err(row.corrupt());
        }
        let block_len = BlockLen::new(row.u32()?).map_err(|_| row.corrupt())?;
        let shards = (0..n).map(|_| shard(&mut row, block_len)).collect::<Result<_, _>>()?;
        row.end()?;
        Ok(Self { version: stripe_version, policy, k, m, block_len, shards })
    }
}

fn shard(row: &mut Reader<'_>, block_len: BlockLen) -> Result<Option<ShardRow>, MetaError> {
    let Some(tag) = row.int()?.checked_sub(1) else { return Ok(None) };
    let node = match tag / 2 {
        0 => None,
        number => Some(u32::try_from(number - 1).map_err(|_| row.corrupt())?),
    };
    let digest = Digest(row.array()?);
    let len = if tag % 2 == 1 { BlockLen::new(row.u32()?).map_err(|_| row.corrupt())? } else { block_len };
    Ok(Some(ShardRow { digest, len, node }))
}

/// A stripe row from the record that retrieval made, with `number` naming its nodes.
pub(in crate::meta) fn from_record(
    stripe: &holdfast_protocol::record::Stripe,
    number: impl Fn(&NodeId) -> Option<u32>,
) -> Option<StripeRow> {
    let shards = stripe
        .shards
        .iter()
        .map(|shard| match shard {
            None => Some(None),
            Some(shard) => {
                let node = match &shard.node {
                    None => None,
                    Some(id) => Some(number(id)?),
                };
                Some(Some(ShardRow { digest: shard.digest, len: shard.len, node }))
            }
        })
        .collect::<Option<Vec<_>>>()?;
    Some(StripeRow {
        version: stripe.version,
        policy: stripe.policy,
        k: stripe.k,
        m: stripe.m,
        block_len: stripe.block_len,
        shards,
    })
}
