//! The bytes on disk. Everything is little-endian and begins on a page of 4,096 bytes.
//!
//! ```text
//! extent file:  head page | record | record | ... | (reserved room, zeros)
//! record:       page | data, padded with zeros to whole pages (kinds block and order only)
//!
//! head page                                page of a record
//!    0   8  magic "HFEXTENT"                  0   8  magic "HFRECORD"
//!    8   2  version, 1                        8   2  version, 1
//!   10   6  zero                             10   1  kind: 1 block, 2 entries, 3 order
//!   16   8  extent id                        11   1  zero
//!   24  16  store id                         12   4  data length in bytes
//!   40   8  created, Unix ms                 16   8  record id
//!   48   8  length limit of the file         24   8  commit group
//!   56 168  zero                             32   8  extent id
//!  224  32  checksum                         40   8  offset of this page in its file
//!  256      zero to the end                  48   8  written, Unix ms
//!                                            56   2  count: chaining values, or entries
//!                                            58   6  zero
//!                                            64   2  multihash code and length: 0x1e 0x20
//!                                            66  32  digest of the data
//!                                            98   6  zero
//!                                           104  32  agreement (orders only)
//!                                           136  88  reserved, zero
//!                                           224  32  checksum
//!                                           256 192  first claim, as an entry (blocks only)
//!                                           448 ...  reserved, zero
//!                                          2048 ...  chaining values of the 16 KiB groups, 32 each
//!
//! page of entries: 20 entries of 192 bytes from byte 256
//!    0   1  kind: 1 claim, 2 tombstone        80  32  agreement (claims)
//!    1   1  state, or cause                  112  16  tag
//!    2   1  1 when there is a scope          128  16  scope
//!    3   1  zero                             144   8  lease until, Unix ms
//!    4   4  data length of the block         152   8  retain until, Unix ms
//!    8   8  sequence                         160   8  created, Unix ms
//!   16   8  record id of the block           168   8  changed, Unix ms
//!   24   8  extent of the block              176   8  record id of the order that did it, or 0
//!   32   8  offset of the block's page       184   8  reserved, zero
//!   40   8  zero
//!   48  32  digest of the block
//! ```
//!
//! The checksum is BLAKE3, keyed by the store's secret, over extent id, offset and the page without the
//! checksum. It binds a page to its place, and nobody without the secret can make one: bytes of a block that
//! imitate a page fail it. The version comes before everything that a later version may move.

use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::limits::GROUPS_MAX;
use holdfast_protocol::record::{AgreementId, Claim, ClaimState, ClaimTag, ScopeId};
use zeroize::Zeroizing;

use crate::disk::PAGE;

const EXTENT_MAGIC: &[u8; 8] = b"HFEXTENT";
const RECORD_MAGIC: &[u8; 8] = b"HFRECORD";
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 224;
const PREFIX_LEN: usize = 256;
const ENTRY_LEN: usize = 192;
const CHAIN_AT: usize = 2048;
/// BLAKE3-256 as a multihash: its code and its length.
const MULTIHASH: [u8; 2] = [0x1e, 0x20];
/// Entries of one page.
pub(crate) const ENTRIES_PER_PAGE: usize = (PAGE - PREFIX_LEN) / ENTRY_LEN;
/// A page in bytes, as offsets count.
pub(crate) const PAGE_BYTES: u64 = PAGE as u64;

const _: () = assert!(ENTRIES_PER_PAGE == 20);
const _: () = assert!(PREFIX_LEN + ENTRY_LEN <= CHAIN_AT);
const _: () = assert!(CHAIN_AT + GROUPS_MAX * 32 == PAGE);

/// The key of every checksum. Never leaves the store's directory.
pub(crate) struct Secret(pub(crate) Zeroizing<[u8; 32]>);

impl Secret {
    fn checksum(&self, page: &[u8], extent: u64, offset: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&extent.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(&page[..CHECKSUM_AT]);
        hasher.update(&page[PREFIX_LEN..PAGE]);
        hasher.finalize()
    }

    fn seal(&self, page: &mut [u8], extent: u64, offset: u64) {
        let checksum = self.checksum(page, extent, offset);
        page[CHECKSUM_AT..PREFIX_LEN].copy_from_slice(checksum.as_bytes());
    }

    fn holds(&self, page: &[u8], extent: u64, offset: u64) -> bool {
        // `blake3::Hash` compares in constant time.
        page.len() >= PAGE
            && self.checksum(page, extent, offset)
                == blake3::Hash::from_bytes(array(&page[CHECKSUM_AT..PREFIX_LEN]))
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) extent: u64,
    pub(crate) offset: u64,
}

/// What the page of every record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) record: u64,
    pub(crate) group: u64,
    pub(crate) place: Place,
    pub(crate) written_ms: u64,
}

/// Where a claim stands on disk: `Gone` is how the end of one is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Provisional,
    Live,
    Trash,
    Gone,
}

impl Standing {
    pub(crate) fn state(self) -> Option<ClaimState> {
        match self {
            Self::Provisional => Some(ClaimState::Provisional),
            Self::Live => Some(ClaimState::Live),
            Self::Trash => Some(ClaimState::Trash),
            Self::Gone => None,
        }
    }

    /// The standing as people read it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Provisional => "provisional",
            Self::Live => "live",
            Self::Trash => "trash",
            Self::Gone => "gone",
        }
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Provisional => 1,
            Self::Live => 2,
            Self::Trash => 3,
            Self::Gone => 4,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Provisional),
            2 => Some(Self::Live),
            3 => Some(Self::Trash),
            4 => Some(Self::Gone),
            _ => None,
        }
    }
}

impl From<ClaimState> for Standing {
    fn from(state: ClaimState) -> Self {
        match state {
            ClaimState::Provisional => Self::Provisional,
            ClaimState::Live => Self::Live,
            ClaimState::Trash => Self::Trash,
        }
    }
}

/// The whole state of a claim after a change: applying it twice is applying it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClaimEntry {
    pub(crate) sequence: u64,
    /// The block's record: an entry never applies to a later record of the same digest.
    pub(crate) target: u64,
    pub(crate) digest: Digest,
    pub(crate) agreement: AgreementId,
    pub(crate) tag: ClaimTag,
    pub(crate) scope: Option<ScopeId>,
    pub(crate) standing: Standing,
    pub(crate) lease_until_ms: u64,
    pub(crate) retain_until_ms: u64,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
    pub(crate) order: u64,
}

impl ClaimEntry {
    /// The claim as the rest of the node knows it; `None` when it is gone.
    pub(crate) fn claim(&self) -> Option<Claim> {
        Some(Claim {
            v: 1,
            agreement: self.agreement,
            digest: self.digest,
            tag: self.tag,
            scope: self.scope,
            state: self.standing.state()?,
            lease_until_ms: self.lease_until_ms,
            retain_until_ms: self.retain_until_ms,
            created_ms: self.created_ms,
        })
    }
}

/// Why a record's data went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No claim keeps it.
    Released,
    /// The node declared it lost.
    Lost,
    /// It is a deletion order of this agreement, whose term is over.
    OrderDropped(AgreementId),
}

/// The end of a record: its data pages may be punched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) sequence: u64,
    pub(crate) target: u64,
    pub(crate) place: Place,
    pub(crate) digest: Digest,
    pub(crate) len: u32,
    pub(crate) cause: Cause,
    pub(crate) changed_ms: u64,
}

/// A small record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Claim(ClaimEntry),
    Tombstone(Tombstone),
}

/// The page of a block's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockPage {
    pub(crate) digest: Digest,
    pub(crate) len: BlockLen,
    pub(crate) chain: Vec<[u8; 32]>,
    pub(crate) claim: ClaimEntry,
}

/// The page of a kept deletion order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrderPage {
    pub(crate) digest: Digest,
    pub(crate) len: u32,
    pub(crate) agreement: AgreementId,
}

/// What a record's page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecordPage {
    Block(BlockPage),
    Entries(Vec<Entry>),
    Order(OrderPage),
}

impl RecordPage {
    /// Bytes of data behind the page, unpadded, and their digest.
    pub(crate) fn data(&self) -> Option<(u32, Digest)> {
        match self {
            Self::Block(page) => Some((page.len.bytes(), page.digest)),
            Self::Order(page) => Some((page.len, page.digest)),
            Self::Entries(_) => None,
        }
    }

    /// Bytes of the whole record on disk.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(self.data().map_or(0, |(len, _)| len))
    }
}

/// Bytes on disk of a record with `len` bytes of data.
pub(crate) fn record_bytes(len: u32) -> u64 {
    PAGE_BYTES + u64::from(len).next_multiple_of(PAGE_BYTES)
}

/// The head of an extent file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtentHead {
    pub(crate) extent: u64,
    pub(crate) store: [u8; 16],
    pub(crate) created_ms: u64,
    pub(crate) limit: u64,
}

/// Why a page is not a head or a record of this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFault {
    /// All zeros: nothing was ever written here.
    Blank,
    /// The checksum, or the shape beneath a good checksum, does not hold.
    Damaged,
    /// A good page of a version that this release does not read.
    Newer,
}

pub(crate) fn write_head(page: &mut [u8], head: &ExtentHead, secret: &Secret) {
    page[..PAGE].fill(0);
    page[..8].copy_from_slice(EXTENT_MAGIC);
    page[8..10].copy_from_slice(&VERSION.to_le_bytes());
    put_u64(page, 16, head.extent);
    page[24..40].copy_from_slice(&head.store);
    put_u64(page, 40, head.created_ms);
    put_u64(page, 48, head.limit);
    secret.seal(&mut page[..PAGE], head.extent, 0);
}

pub(crate) fn read_head(page: &[u8], extent: u64, secret: &Secret) -> Result<ExtentHead, PageFault> {
    check(page, EXTENT_MAGIC, Place { extent, offset: 0 }, secret)?;
    let head = ExtentHead {
        extent: u64_at(page, 16),
        store: array(&page[24..40]),
        created_ms: u64_at(page, 40),
        limit: u64_at(page, 48),
    };
    if head.extent == extent { Ok(head) } else { Err(PageFault::Damaged) }
}

/// Writes the page of a record in front of its data.
pub(crate) fn write_record(page: &mut [u8], stamp: &Stamp, record: &RecordPage, secret: &Secret) {
    let page = &mut page[..PAGE];
    page.fill(0);
    page[..8].copy_from_slice(RECORD_MAGIC);
    page[8..10].copy_from_slice(&VERSION.to_le_bytes());
    put_u64(page, 16, stamp.record);
    put_u64(page, 24, stamp.group);
    put_u64(page, 32, stamp.place.extent);
    put_u64(page, 40, stamp.place.offset);
    put_u64(page, 48, stamp.written_ms);
    let (kind, count) = match record {
        RecordPage::Block(block) => {
            write_entry(&mut page[PREFIX_LEN..], &Entry::Claim(block.claim));
            for (slot, value) in page[CHAIN_AT..].chunks_exact_mut(32).zip(&block.chain) {
                slot.copy_from_slice(value);
            }
            (1u8, block.chain.len())
        }
        RecordPage::Entries(entries) => {
            for (slot, entry) in page[PREFIX_LEN..].chunks_exact_mut(ENTRY_LEN).zip(entries) {
                write_entry(slot, entry);
            }
            (2, entries.len())
        }
        RecordPage::Order(order) => {
            page[104..136].copy_from_slice(&order.agreement.0);
            (3, 0)
        }
    };
    page[10] = kind;
    if let Some((len, digest)) = record.data() {
        page[12..16].copy_from_slice(&len.to_le_bytes());
        page[64..66].copy_from_slice(&MULTIHASH);
        page[66..98].copy_from_slice(&digest.0);
    }
    let count = u16::try_from(count).expect("at most 64 chaining values or 20 entries");
    page[56..58].copy_from_slice(&count.to_le_bytes());
    secret.seal(page, stamp.place.extent, stamp.place.offset);
}

/// Reads the page of the record at `place`.
pub(crate) fn read_record(
    page: &[u8],
    place: Place,
    secret: &Secret,
) -> Result<(Stamp, RecordPage), PageFault> {
    check(page, RECORD_MAGIC, place, secret)?;
    let stamp = Stamp {
        record: u64_at(page, 16),
        group: u64_at(page, 24),
        place: Place { extent: u64_at(page, 32), offset: u64_at(page, 40) },
        written_ms: u64_at(page, 48),
    };
    let count = usize::from(u16::from_le_bytes(array(&page[56..58])));
    let len = u32::from_le_bytes(array(&page[12..16]));
    let digest = Digest(array(&page[66..98]));
    let record = match page[10] {
        1 if count <= GROUPS_MAX => {
            let Some(Entry::Claim(claim)) = read_entry(&page[PREFIX_LEN..PREFIX_LEN + ENTRY_LEN]) else {
                return Err(PageFault::Damaged);
            };
            let len = BlockLen::new(len).map_err(|_| PageFault::Damaged)?;
            let chain = page[CHAIN_AT..].chunks_exact(32).take(count).map(array).collect();
            RecordPage::Block(BlockPage { digest, len, chain, claim })
        }
        2 if count <= ENTRIES_PER_PAGE => {
            let slots = page[PREFIX_LEN..].chunks_exact(ENTRY_LEN).take(count);
            let entries: Option<Vec<Entry>> = slots.map(read_entry).collect();
            RecordPage::Entries(entries.ok_or(PageFault::Damaged)?)
        }
        3 => RecordPage::Order(OrderPage { digest, len, agreement: AgreementId(array(&page[104..136])) }),
        _ => return Err(PageFault::Damaged),
    };
    if stamp.place == place { Ok((stamp, record)) } else { Err(PageFault::Damaged) }
}

fn check(page: &[u8], magic: &[u8; 8], place: Place, secret: &Secret) -> Result<(), PageFault> {
    let Some(page) = page.get(..PAGE) else { return Err(PageFault::Damaged) };
    if page.iter().all(|byte| *byte == 0) {
        return Err(PageFault::Blank);
    }
    if page[..8] != *magic || !secret.holds(page, place.extent, place.offset) {
        return Err(PageFault::Damaged);
    }
    // Only the keyed checksum makes a version worth believing.
    if u16::from_le_bytes(array(&page[8..10])) == VERSION { Ok(()) } else { Err(PageFault::Newer) }
}

fn write_entry(slot: &mut [u8], entry: &Entry) {
    match entry {
        Entry::Claim(claim) => {
            slot[0] = 1;
            slot[1] = claim.standing.code();
            slot[2] = u8::from(claim.scope.is_some());
            put_u64(slot, 8, claim.sequence);
            put_u64(slot, 16, claim.target);
            slot[48..80].copy_from_slice(&claim.digest.0);
            slot[80..112].copy_from_slice(&claim.agreement.0);
            slot[112..128].copy_from_slice(&claim.tag.0);
            slot[128..144].copy_from_slice(&claim.scope.map_or([0; 16], |scope| scope.0));
            put_u64(slot, 144, claim.lease_until_ms);
            put_u64(slot, 152, claim.retain_until_ms);
            put_u64(slot, 160, claim.created_ms);
            put_u64(slot, 168, claim.changed_ms);
            put_u64(slot, 176, claim.order);
        }
        Entry::Tombstone(tombstone) => {
            slot[0] = 2;
            slot[1] = match tombstone.cause {
                Cause::Released => 1,
                Cause::Lost => 2,
                Cause::OrderDropped(agreement) => {
                    slot[80..112].copy_from_slice(&agreement.0);
                    3
                }
            };
            slot[4..8].copy_from_slice(&tombstone.len.to_le_bytes());
            put_u64(slot, 8, tombstone.sequence);
            put_u64(slot, 16, tombstone.target);
            put_u64(slot, 24, tombstone.place.extent);
            put_u64(slot, 32, tombstone.place.offset);
            slot[48..80].copy_from_slice(&tombstone.digest.0);
            put_u64(slot, 168, tombstone.changed_ms);
        }
    }
}

fn read_entry(slot: &[u8]) -> Option<Entry> {
    let digest = Digest(array(&slot[48..80]));
    match slot[0] {
        1 => Some(Entry::Claim(ClaimEntry {
            sequence: u64_at(slot, 8),
            target: u64_at(slot, 16),
            digest,
            agreement: AgreementId(array(&slot[80..112])),
            tag: ClaimTag(array(&slot[112..128])),
            scope: (slot[2] == 1).then(|| ScopeId(array(&slot[128..144]))),
            standing: Standing::from_code(slot[1])?,
            lease_until_ms: u64_at(slot, 144),
            retain_until_ms: u64_at(slot, 152),
            created_ms: u64_at(slot, 160),
            changed_ms: u64_at(slot, 168),
            order: u64_at(slot, 176),
        })),
        2 => Some(Entry::Tombstone(Tombstone {
            sequence: u64_at(slot, 8),
            target: u64_at(slot, 16),
            place: Place { extent: u64_at(slot, 24), offset: u64_at(slot, 32) },
            digest,
            len: u32::from_le_bytes(array(&slot[4..8])),
            cause: match slot[1] {
                1 => Cause::Released,
                2 => Cause::Lost,
                3 => Cause::OrderDropped(AgreementId(array(&slot[80..112]))),
                _ => return None,
            },
            changed_ms: u64_at(slot, 168),
        })),
        _ => None,
    }
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(&bytes[at..at + 8]))
}

/// The first `N` bytes of a slice that the caller cut to that length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret(Zeroizing::new([7; 32]))
    }

    fn stamp() -> Stamp {
        let place = Place { extent: 3, offset: 8192 };
        Stamp { record: 11, group: 5, place, written_ms: 1_700_000_000_000 }
    }

    fn claim() -> ClaimEntry {
        ClaimEntry {
            sequence: 11,
            target: 11,
            digest: Digest([1; 32]),
            agreement: AgreementId([2; 32]),
            tag: ClaimTag([3; 16]),
            scope: Some(ScopeId([4; 16])),
            standing: Standing::Provisional,
            lease_until_ms: 6,
            retain_until_ms: 7,
            created_ms: 8,
            changed_ms: 9,
            order: 10,
        }
    }

    fn records() -> [RecordPage; 3] {
        let len = BlockLen::new(40_000).unwrap();
        let chain = vec![[5; 32], [6; 32], [7; 32]];
        let tombstone = |cause| {
            Entry::Tombstone(Tombstone {
                sequence: 12,
                target: 11,
                place: stamp().place,
                digest: Digest([1; 32]),
                len: 40_000,
                cause,
                changed_ms: 13,
            })
        };
        let gone = ClaimEntry { scope: None, standing: Standing::Gone, ..claim() };
        let entries = vec![
            Entry::Claim(gone),
            tombstone(Cause::Released),
            tombstone(Cause::Lost),
            tombstone(Cause::OrderDropped(AgreementId([2; 32]))),
        ];
        [
            RecordPage::Block(BlockPage { digest: Digest([1; 32]), len, chain, claim: claim() }),
            RecordPage::Entries(entries),
            RecordPage::Order(OrderPage {
                digest: Digest([9; 32]),
                len: 300,
                agreement: AgreementId([2; 32]),
            }),
        ]
    }

    #[test]
    fn records_read_back_as_written() {
        for record in records() {
            let mut page = vec![0xaa; PAGE];
            write_record(&mut page, &stamp(), &record, &secret());
            assert_eq!(read_record(&page, stamp().place, &secret()), Ok((stamp(), record)));
        }
        let head = ExtentHead { extent: 3, store: [8; 16], created_ms: 1, limit: 1 << 30 };
        let mut page = vec![0xaa; PAGE];
        write_head(&mut page, &head, &secret());
        assert_eq!(read_head(&page, 3, &secret()), Ok(head));
        assert_eq!(read_head(&page, 4, &secret()), Err(PageFault::Damaged));
        assert_eq!(read_head(&[0; PAGE], 3, &secret()), Err(PageFault::Blank));
    }

    #[test]
    fn a_page_counts_only_whole_in_its_place_and_under_its_secret() {
        let mut page = vec![0; PAGE];
        write_record(&mut page, &stamp(), &records()[0], &secret());
        let place = stamp().place;
        let elsewhere = [
            Place { offset: place.offset + PAGE_BYTES, ..place },
            Place { extent: place.extent + 1, ..place },
        ];
        for other in elsewhere {
            assert_eq!(read_record(&page, other, &secret()), Err(PageFault::Damaged));
        }
        let stranger = Secret(Zeroizing::new([8; 32]));
        assert_eq!(read_record(&page, place, &stranger), Err(PageFault::Damaged));
        for at in 0..PAGE {
            page[at] ^= 1;
            assert_eq!(read_record(&page, place, &secret()), Err(PageFault::Damaged), "byte {at}");
            page[at] ^= 1;
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut page = vec![0; PAGE];
        write_record(&mut page, &stamp(), &records()[0], &secret());
        page[8] = 2;
        assert_eq!(read_record(&page, stamp().place, &secret()), Err(PageFault::Damaged));
        secret().seal(&mut page, stamp().place.extent, stamp().place.offset);
        assert_eq!(read_record(&page, stamp().place, &secret()), Err(PageFault::Newer));
    }

    /// The format is final: these digests change only with a new version of it.
    #[test]
    fn pages_are_byte_for_byte_those_of_version_one() {
        let mut seen = Vec::new();
        for record in records() {
            let mut page = vec![0; PAGE];
            write_record(&mut page, &stamp(), &record, &secret());
            seen.push(blake3::hash(&page).to_hex()[..16].to_owned());
        }
        let head = ExtentHead { extent: 3, store: [8; 16], created_ms: 1, limit: 1 << 30 };
        let mut page = vec![0; PAGE];
        write_head(&mut page, &head, &secret());
        seen.push(blake3::hash(&page).to_hex()[..16].to_owned());
        assert_eq!(seen, GOLDEN);
    }

    const GOLDEN: [&str; 4] =
        ["a3d2518fa75f92cc", "ff0f9eefc4f57631", "c8ab6efc19b8a889", "83d5bc1e9f48524f"];
}
