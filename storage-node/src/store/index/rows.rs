//! The index's rows: keys sort by what they are scanned by, values are fixed little-endian bytes.
//!
//! ```text
//! key                                               value
//! a                                                 accounts: used, trash, garbage, paid, blocks, claims (u64 each)
//! m                                                 meta: store id 16, next record, next group, newest extent (u64 each)
//! b digest                                          block: extent, offset, record (u64), len, provisional, live, trash (u32)
//! c digest agreement tag                            claim: target, sequence, lease, retain, created, changed, order (u64),
//!                                                   standing 1, has scope 1, scope 16
//! d bucket                                          changed bucket of the inventory: mark (u64)
//! g agreement                                       usage: claims, bytes, pages (u64); version 1 has no pages
//! i                                                 index: version, generation (u64)
//! l lease-until digest agreement tag                (provisional claims by lease)
//! n digest                                          lost: sequence, declared ms, len (u64); version 1 has no len
//! o agreement record                                order: extent, offset, kept ms (u64), len (u32)
//! p extent offset                                   hole to punch: bytes (u64)
//! t trashed-at digest agreement tag                 (claims in trash by time)
//! x extent                                          extent: synced offset, garbage, held records (u64), sealed 1
//! ```
//! Numbers inside keys are big-endian, so that they sort. `x` rows are the checkpoint: each is written in the
//! batch that holds everything up to its synced offset.

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::{AgreementId, ClaimRef, ClaimTag, ScopeId};

use crate::store::format::{ClaimEntry, Place, Standing};
use crate::store::types::{Accounts, AgreementUsage};

/// Reads fixed-width values off the front of a row.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn key_u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|byte| byte[0])
    }
    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

fn pack(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// What the whole store counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccountsRow {
    pub(crate) used: u64,
    pub(crate) trash: u64,
    pub(crate) garbage: u64,
    pub(crate) paid: u64,
    pub(crate) blocks: u64,
    pub(crate) claims: u64,
}

impl AccountsRow {
    pub(crate) const KEY: &'static [u8] = b"a";

    pub(crate) fn occupied(&self) -> u64 {
        self.used + self.trash + self.garbage
    }

    pub(crate) fn accounts(&self, capacity: u64) -> Accounts {
        let capacity = capacity.max(self.occupied());
        Accounts {
            capacity_bytes: capacity,
            used_bytes: self.used,
            trash_bytes: self.trash,
            garbage_bytes: self.garbage,
            free_bytes: capacity - self.occupied(),
            paid_bytes: self.paid,
            blocks: self.blocks,
            claims: self.claims,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        pack(&[self.used, self.trash, self.garbage, self.paid, self.blocks, self.claims])
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self {
            used: at.u64()?,
            trash: at.u64()?,
            garbage: at.u64()?,
            paid: at.u64()?,
            blocks: at.u64()?,
            claims: at.u64()?,
        };
        at.end(row)
    }
}

/// Which store the index belongs to, and the next numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetaRow {
    pub(crate) store: [u8; 16],
    pub(crate) next_record: u64,
    pub(crate) next_group: u64,
    pub(crate) newest_extent: u64,
}

impl MetaRow {
    pub(crate) const KEY: &'static [u8] = b"m";

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = self.store.to_vec();
        value.extend(pack(&[self.next_record, self.next_group, self.newest_extent]));
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self {
            store: at.array()?,
            next_record: at.u64()?,
            next_group: at.u64()?,
            newest_extent: at.u64()?,
        };
        at.end(row)
    }
}

/// A held block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub(crate) place: Place,
    pub(crate) record: u64,
    pub(crate) len: u32,
    pub(crate) provisional: u32,
    pub(crate) live: u32,
    pub(crate) trash: u32,
}

impl BlockRow {
    pub(crate) fn key(digest: &Digest) -> Vec<u8> {
        [b"b", &digest.0[..]].concat()
    }

    pub(crate) fn digest(key: &[u8]) -> Option<Digest> {
        let mut at = Cursor(key.get(1..)?);
        let digest = Digest(at.array()?);
        at.end(digest)
    }

    pub(crate) fn claims(&self) -> u32 {
        self.provisional + self.live + self.trash
    }

    pub(crate) fn kept(&self) -> bool {
        self.provisional + self.live > 0
    }

    /// The counter of claims in this standing.
    pub(crate) fn count_mut(&mut self, standing: Standing) -> Option<&mut u32> {
        match standing {
            Standing::Provisional => Some(&mut self.provisional),
            Standing::Live => Some(&mut self.live),
            Standing::Trash => Some(&mut self.trash),
            Standing::Gone => None,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = pack(&[self.place.extent, self.place.offset, self.record]);
        for number in [self.len, self.provisional, self.live, self.trash] {
            value.extend(number.to_le_bytes());
        }
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self {
            place: Place { extent: at.u64()?, offset: at.u64()? },
            record: at.u64()?,
            len: at.u32()?,
            provisional: at.u32()?,
            live: at.u32()?,
            trash: at.u32()?,
        };
        at.end(row)
    }
}

/// What names a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClaimKey {
    pub(crate) digest: Digest,
    pub(crate) agreement: AgreementId,
    pub(crate) tag: ClaimTag,
}

impl ClaimKey {
    pub(crate) fn of(entry: &ClaimEntry) -> Self {
        Self { digest: entry.digest, agreement: entry.agreement, tag: entry.tag }
    }

    pub(crate) fn new(agreement: AgreementId, claim: &ClaimRef) -> Self {
        Self { digest: claim.0, agreement, tag: claim.1 }
    }

    pub(crate) fn claim_ref(&self) -> ClaimRef {
        ClaimRef(self.digest, self.tag)
    }

    fn bytes(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[..32].copy_from_slice(&self.digest.0);
        bytes[32..64].copy_from_slice(&self.agreement.0);
        bytes[64..].copy_from_slice(&self.tag.0);
        bytes
    }

    pub(crate) fn decode_row(key: &[u8]) -> Option<Self> {
        let mut at = Cursor(key.get(1..)?);
        let name = Self::read(&mut at)?;
        at.end(name)
    }

    fn read(at: &mut Cursor<'_>) -> Option<Self> {
        Some(Self {
            digest: Digest(at.array()?),
            agreement: AgreementId(at.array()?),
            tag: ClaimTag(at.array()?),
        })
    }

    pub(crate) fn row(&self) -> Vec<u8> {
        [b"c", &self.bytes()[..]].concat()
    }

    pub(crate) fn rows_of(digest: &Digest) -> Vec<u8> {
        [b"c", &digest.0[..]].concat()
    }

    pub(crate) fn rows_of_agreement(digest: &Digest, agreement: &AgreementId) -> Vec<u8> {
        [b"c", &digest.0[..], &agreement.0[..]].concat()
    }

    /// The key in the time-ordered table `table`: `l` or `t`.
    pub(crate) fn timed(&self, table: u8, ms: u64) -> Vec<u8> {
        [&[table][..], &ms.to_be_bytes(), &self.bytes()].concat()
    }

    pub(crate) fn decode_timed(key: &[u8]) -> Option<(u64, Self)> {
        let mut at = Cursor(key.get(1..)?);
        let value = (at.key_u64()?, Self::read(&mut at)?);
        at.end(value)
    }
}

/// A claim's row holds its newest entry whole.
pub(crate) fn encode_claim(entry: &ClaimEntry) -> Vec<u8> {
    let mut value = pack(&[
        entry.target,
        entry.sequence,
        entry.lease_until_ms,
        entry.retain_until_ms,
        entry.created_ms,
        entry.changed_ms,
        entry.order,
    ]);
    value.push(entry.standing.code());
    value.push(u8::from(entry.scope.is_some()));
    value.extend(entry.scope.map_or([0; 16], |scope| scope.0));
    value
}

/// Reads a claim's row back.
pub(crate) fn decode_claim(key: &[u8], value: &[u8]) -> Option<ClaimEntry> {
    let name = ClaimKey::decode_row(key)?;
    let mut at = Cursor(value);
    let entry = ClaimEntry {
        digest: name.digest,
        agreement: name.agreement,
        tag: name.tag,
        target: at.u64()?,
        sequence: at.u64()?,
        lease_until_ms: at.u64()?,
        retain_until_ms: at.u64()?,
        created_ms: at.u64()?,
        changed_ms: at.u64()?,
        order: at.u64()?,
        standing: Standing::from_code(at.u8()?)?,
        scope: match (at.u8()?, at.array()?) {
            (1, scope) => Some(ScopeId(scope)),
            _ => None,
        },
    };
    at.end(entry)
}

/// An extent, and how far it is described by this index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtentRow {
    pub(crate) synced: u64,
    pub(crate) garbage: u64,
    pub(crate) held: u64,
    pub(crate) sealed: bool,
}

impl ExtentRow {
    pub(crate) fn key(extent: u64) -> Vec<u8> {
        [b"x", &extent.to_be_bytes()[..]].concat()
    }

    pub(crate) fn id(key: &[u8]) -> Option<u64> {
        let mut at = Cursor(key.get(1..)?);
        let id = at.key_u64()?;
        at.end(id)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = pack(&[self.synced, self.garbage, self.held]);
        value.push(u8::from(self.sealed));
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self { synced: at.u64()?, garbage: at.u64()?, held: at.u64()?, sealed: at.u8()? == 1 };
        at.end(row)
    }
}

/// Key of a hole to punch.
pub(crate) fn hole_key(place: Place) -> Vec<u8> {
    [b"p", &place.extent.to_be_bytes()[..], &place.offset.to_be_bytes()].concat()
}

/// Prefix of the holes of one extent.
pub(crate) fn holes_of(extent: u64) -> Vec<u8> {
    [b"p", &extent.to_be_bytes()[..]].concat()
}

/// Reads a hole's key back.
pub(crate) fn decode_hole_key(key: &[u8]) -> Option<Place> {
    let mut at = Cursor(key.get(1..)?);
    let place = Place { extent: at.key_u64()?, offset: at.key_u64()? };
    at.end(place)
}

/// A number as a row's whole value.
pub(crate) fn decode_number(value: &[u8]) -> Option<u64> {
    let mut at = Cursor(value);
    let number = at.u64()?;
    at.end(number)
}

/// A kept deletion order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrderRow {
    pub(crate) place: Place,
    pub(crate) kept_ms: u64,
    pub(crate) len: u32,
}

impl OrderRow {
    pub(crate) fn key(agreement: &AgreementId, record: u64) -> Vec<u8> {
        [b"o", &agreement.0[..], &record.to_be_bytes()].concat()
    }

    pub(crate) fn rows_of(agreement: &AgreementId) -> Vec<u8> {
        [b"o", &agreement.0[..]].concat()
    }

    pub(crate) fn record(key: &[u8]) -> Option<u64> {
        let mut at = Cursor(key.get(33..)?);
        let record = at.key_u64()?;
        at.end(record)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = pack(&[self.place.extent, self.place.offset, self.kept_ms]);
        value.extend(self.len.to_le_bytes());
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self {
            place: Place { extent: at.u64()?, offset: at.u64()? },
            kept_ms: at.u64()?,
            len: at.u32()?,
        };
        at.end(row)
    }
}

/// Key of an agreement's usage.
pub(crate) fn usage_key(agreement: &AgreementId) -> Vec<u8> {
    [b"g", &agreement.0[..]].concat()
}

/// Writes an agreement's usage.
pub(crate) fn encode_usage(usage: &AgreementUsage) -> Vec<u8> {
    pack(&[usage.claims, usage.bytes, usage.page_bytes])
}

/// Reads an agreement's usage. A row of version 1 has no pages; [`super::upgrade`] counts them before anybody asks.
pub(crate) fn decode_usage(value: &[u8]) -> Option<AgreementUsage> {
    let mut at = Cursor(value);
    let (claims, bytes) = (at.u64()?, at.u64()?);
    let page_bytes = if at.0.is_empty() { 0 } else { at.u64()? };
    at.end(AgreementUsage { claims, bytes, page_bytes })
}

/// Key of a declared loss.
pub(crate) fn lost_key(digest: &Digest) -> Vec<u8> {
    [b"n", &digest.0[..]].concat()
}

/// What is kept of a declared loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostRow {
    pub(crate) sequence: u64,
    pub(crate) declared_ms: u64,
    /// The block's length; 0 in rows of version 1, which did not keep it.
    pub(crate) len: u64,
}

impl LostRow {
    pub(crate) fn digest(key: &[u8]) -> Option<Digest> {
        let mut at = Cursor(key.get(1..)?);
        let digest = Digest(at.array()?);
        at.end(digest)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        pack(&[self.sequence, self.declared_ms, self.len])
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let (sequence, declared_ms) = (at.u64()?, at.u64()?);
        let len = if at.0.is_empty() { 0 } else { at.u64()? };
        at.end(Self { sequence, declared_ms, len })
    }
}

/// What the index says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexRow {
    pub(crate) version: u64,
    /// Drawn when the index was made: whoever derived something from another generation derives it anew.
    pub(crate) generation: u64,
}

impl IndexRow {
    pub(crate) const KEY: &'static [u8] = b"i";

    pub(crate) fn encode(&self) -> Vec<u8> {
        pack(&[self.version, self.generation])
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut at = Cursor(value);
        let row = Self { version: at.u64()?, generation: at.u64()? };
        at.end(row)
    }
}

/// Key of a changed bucket.
pub(crate) fn bucket_key(bucket: u16) -> Vec<u8> {
    [b"d", &bucket.to_be_bytes()[..]].concat()
}

/// Reads a changed bucket's key back.
pub(crate) fn decode_bucket_key(key: &[u8]) -> Option<u16> {
    let mut at = Cursor(key.get(1..)?);
    let bucket = at.array().map(u16::from_be_bytes)?;
    at.end(bucket)
}
