//! Decoders under attack: whatever arrives is refused or understood, never a panic and never a large
//! allocation.

use holdfast_protocol::cbor;
use holdfast_protocol::framing::encode_frame;
use holdfast_protocol::limits::{BLOCK_LEN_MAX, CLAIMS_PER_REQUEST_MAX, HEADER_LEN_MAX};
use holdfast_protocol::message::*;
use holdfast_protocol::record::*;
use proptest::prelude::*;

use crate::audit;
use crate::samples::{self, *};

/// Decodes `bytes` as everything that a peer may send. Returns how many readings they have.
fn decode_as_everything(bytes: &[u8]) -> usize {
    fn message<M: holdfast_protocol::framing::Message>(bytes: &[u8]) -> usize {
        cbor::decode::<M>(bytes).is_ok_and(|message| message.message_bounds().is_ok()).into()
    }
    fn record<R: Record>(bytes: &[u8]) -> usize {
        let signed = cbor::decode::<Unverified<R>>(bytes).is_ok_and(|record| record.verify().is_ok());
        usize::from(signed) + usize::from(R::decode(bytes).is_ok())
    }
    message::<Request>(bytes)
        + message::<Reply>(bytes)
        + record::<Agreement>(bytes)
        + record::<Delegation>(bytes)
        + record::<Receipt>(bytes)
        + record::<Claim>(bytes)
        + record::<Grant>(bytes)
        + record::<NodeRecord>(bytes)
        + record::<Head>(bytes)
        + record::<Manifest>(bytes)
        + record::<ManifestPage>(bytes)
        + record::<Stripe>(bytes)
        + record::<Disclaimer>(bytes)
        + record::<DeletionOrder>(bytes)
        + record::<DenyList>(bytes)
        + record::<DeclaredPage>(bytes)
        + record::<Invite>(bytes)
        + record::<ReadTranscript>(bytes)
        + record::<InventoryPage>(bytes)
        + record::<Commitment>(bytes)
        + record::<Countersignature>(bytes)
        + record::<Declaration>(bytes)
        + record::<AuditAnswer>(bytes)
        + record::<Verdict>(bytes)
        + record::<Standing>(bytes)
}

/// The header bytes of every sample message and the bytes of every sample record.
fn seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    all.extend(samples::requests().iter().map(|(_, request)| encode_frame(request).unwrap()[4..].to_vec()));
    all.extend(samples::replies().iter().map(|(_, reply)| encode_frame(reply).unwrap()[4..].to_vec()));
    all.extend(audit::requests().iter().map(|(_, request)| encode_frame(request).unwrap()[4..].to_vec()));
    all.extend(audit::replies().iter().map(|(_, reply)| encode_frame(reply).unwrap()[4..].to_vec()));
    all.extend([
        agreement().encode(),
        delegation().encode(),
        receipt().encode(),
        claim().encode(),
        grant().encode(),
        node_record().encode(),
        head().encode(),
        manifest().encode(),
        manifest_page().encode(),
        stripe().encode(),
        disclaimer().encode(),
        deletion_order().encode(),
        deny_list().encode(),
        declared_page().encode(),
        invite().encode(),
        read_transcript().encode(),
        audit::inventory_page().encode(),
        audit::commitment().encode(),
        audit::countersignature().encode(),
        audit::declaration().encode(),
        audit::audit_answer().encode(),
        audit::verdict().encode(),
        audit::standing().encode(),
        cbor::encode(&Signed::sign(receipt(), &node_key()).to_wire()),
        cbor::encode(&Signed::sign(delegation(), &namespace_key()).to_wire()),
    ]);
    all
}

/// CBOR heads that promise far more than any message holds.
fn huge_heads() -> Vec<Vec<u8>> {
    let mut heads = Vec::new();
    // Byte string, text, array, map, each with 32-bit and 64-bit lengths; indefinite forms; a CID tag.
    for major in [0x40u8, 0x60, 0x80, 0xa0] {
        heads.push([&[major | 26][..], &[0xff; 4]].concat());
        heads.push([&[major | 27][..], &[0xff; 8]].concat());
        heads.push([&[major | 27][..], &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat());
        heads.push(vec![major | 31]);
    }
    heads.push(vec![0xd8, 0x2a, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    heads
}

#[test]
fn every_sample_is_understood() {
    for seed in seeds() {
        assert!(decode_as_everything(&seed) >= 1, "{}", hex::encode(&seed));
    }
}

#[test]
fn no_truncation_of_a_sample_is_understood() {
    for seed in seeds() {
        for end in 0..seed.len() {
            assert_eq!(decode_as_everything(&seed[..end]), 0, "{} of {}", end, hex::encode(&seed));
        }
    }
}

#[test]
fn nothing_may_follow_a_value() {
    for mut seed in seeds() {
        seed.push(0xf6);
        assert_eq!(decode_as_everything(&seed), 0);
    }
}

#[test]
fn promised_lengths_are_not_allocated() {
    for head in huge_heads() {
        assert_eq!(decode_as_everything(&head), 0);
        for seed in seeds() {
            // Every position of every sample, the promise put in place of what was there.
            for at in (0..seed.len()).step_by(3) {
                let attack = [&seed[..at], &head, &seed[at..]].concat();
                let largest = largest_allocation(|| {
                    decode_as_everything(&attack);
                });
                assert!(largest <= ALLOCATION_MAX, "{largest} bytes for {}", hex::encode(&attack));
            }
        }
    }
}

#[test]
fn deep_nesting_is_refused_without_a_deep_stack() {
    for opening in [&[0x81u8][..], &[0xa1, 0x61, 0x61], &[0xd8, 0x2a], &[0x9f], &[0xbf, 0x61, 0x61]] {
        let attack = opening.repeat(HEADER_LEN_MAX / opening.len());
        assert_eq!(decode_as_everything(&attack), 0);
        for wrapper in ["Hello", "PutBlock", "ReadBlock", "Refused"] {
            // Inside a known variant, so that the decoder is on its way into a struct.
            let key = u8::try_from(wrapper.len()).unwrap();
            let wrapped = [&[0xa1, 0x60 | key][..], wrapper.as_bytes(), &attack].concat();
            assert_eq!(decode_as_everything(&wrapped), 0);
        }
    }
}

#[test]
fn other_encodings_of_the_same_value_are_refused() {
    // {"seq": 99} as the canonical encoding has it, then with a long integer, with an unknown field, with an
    // indefinite map, and with a tag in front.
    let good = cbor::encode(&HeadSeq { seq: 99 });
    assert_eq!(good, [&[0xa1, 0x63][..], b"seq", &[0x18, 99]].concat());
    assert!(cbor::decode::<HeadSeq>(&good).is_ok());
    let long = [&[0xa1, 0x63][..], b"seq", &[0x19, 0, 99]].concat();
    let unknown = [&[0xa2, 0x61][..], b"a", &[0x01, 0x63], b"seq", &[0x18, 99]].concat();
    let indefinite = [&[0xbf, 0x63][..], b"seq", &[0x18, 99, 0xff]].concat();
    let tagged = [&[0xc1][..], &good].concat();
    let twice = [&[0xa2, 0x63][..], b"seq", &[0x18, 99, 0x63], b"seq", &[0x18, 99]].concat();
    for bad in [long, unknown, indefinite, tagged, twice] {
        assert!(cbor::decode::<HeadSeq>(&bad).is_err(), "{}", hex::encode(bad));
    }
}

#[test]
fn bounds_are_refused_one_past_them() {
    let claims = vec![claim_ref(1); CLAIMS_PER_REQUEST_MAX + 1];
    let request = HasBlocks { agreement: agreement_id(), claims };
    assert!(Request::HasBlocks(request.clone()).check_bounds().is_err());
    let fewer = HasBlocks { claims: request.claims[1..].to_vec(), ..request };
    assert!(Request::HasBlocks(fewer.clone()).check_bounds().is_ok());
    assert!(encode_frame(&Request::HasBlocks(fewer)).is_ok(), "the largest allowed request fits a header");
    let read = |ranges| {
        let part = ReadPart::Leaves { unit: LeafUnit::Group, ranges };
        Request::ReadBlock(ReadBlock { digest: digest(1), part, grant: None }).check_bounds().is_ok()
    };
    assert!(read(vec![ByteRange { start: 0, len: BLOCK_LEN_MAX }]));
    assert!(!read(vec![ByteRange { start: 1, len: BLOCK_LEN_MAX }]));
    assert!(!read(vec![ByteRange { start: u32::MAX, len: u32::MAX }]));
    assert!(!read(vec![ByteRange { start: 5, len: 0 }]));
    assert!(!read(Vec::new()));
    // Two ranges in one leaf would send it twice.
    assert!(!read(vec![ByteRange { start: 0, len: 1 }, ByteRange { start: 9, len: 1 }]));
    assert!(!read(vec![ByteRange { start: 65_536, len: 1 }, ByteRange { start: 0, len: 1 }]));
    let reply = |body_len| Reply::ReadBlock(ReadBlockReply { body_len, paths: Vec::new() });
    assert!(reply(BLOCK_LEN_MAX).check_bounds().is_ok());
    assert!(reply(BLOCK_LEN_MAX + 1).check_bounds().is_err());
}

#[test]
fn a_changed_signed_record_never_verifies() {
    let wire = cbor::encode(&Signed::sign(receipt(), &node_key()).to_wire());
    for at in 0..wire.len() {
        for bit in 0..8 {
            let mut changed = wire.clone();
            changed[at] ^= 1 << bit;
            let verified = cbor::decode::<Unverified<Receipt>>(&changed).ok().and_then(|w| w.verify().ok());
            assert!(verified.is_none(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn one_kind_of_signature_never_stands_for_another() {
    // A disclaimer and a deletion order have the same fields; only the domain tells them apart.
    let no = disclaimer();
    let order = DeletionOrder {
        v: no.v,
        agreement: no.agreement,
        claims: no.claims.clone(),
        issued_ms: no.issued_ms,
    };
    assert_eq!(no.encode(), order.encode());
    let signed = cbor::encode(&Signed::sign(no, &gateway_key()).to_wire());
    assert!(cbor::decode::<Unverified<Disclaimer>>(&signed).unwrap().verify().is_ok());
    assert!(matches!(
        cbor::decode::<Unverified<DeletionOrder>>(&signed).unwrap().verify(),
        Err(SignatureError::Forged { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let largest = largest_allocation(|| { decode_as_everything(&bytes); });
        prop_assert!(largest <= ALLOCATION_MAX);
    }

    #[test]
    fn mutated_samples_do_no_harm(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let all = seeds();
        let mut bytes = which.get(&all).clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let largest = largest_allocation(|| { decode_as_everything(&bytes); });
        prop_assert!(largest <= ALLOCATION_MAX);
    }
}

/// No decoder asks for more at once: sixteen headers.
const ALLOCATION_MAX: usize = 16 * HEADER_LEN_MAX;

use counting::largest_allocation;

/// A system allocator that remembers the largest request of each thread.
#[allow(unsafe_code, reason = "a global allocator cannot be written without")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static LARGEST: Cell<usize> = const { Cell::new(0) };
    }

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn note(size: usize) {
        // Fails only while the thread ends.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    }

    // SAFETY: every call is passed on to the system allocator as it came; the cell allocates nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            note(layout.size());
            // SAFETY: the caller's promises are passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's promises are passed on.
            unsafe { System.dealloc(pointer, layout) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            note(new_size);
            // SAFETY: the caller's promises are passed on.
            unsafe { System.realloc(pointer, layout, new_size) }
        }
    }

    /// Runs `work` and returns the largest single allocation that it asked for.
    pub(super) fn largest_allocation(work: impl FnOnce()) -> usize {
        LARGEST.with(|largest| largest.set(0));
        work();
        LARGEST.with(Cell::get)
    }
}
