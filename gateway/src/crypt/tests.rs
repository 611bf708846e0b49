use std::collections::HashSet;

use holdfast_protocol::PublicKey;
use proptest::prelude::*;

use super::*;

fn keys(root: u8) -> NamespaceKeys {
    NamespaceKeys::new(RootKey::from_bytes([root; 32]), NamespaceId(PublicKey([1; 32])))
}

fn context(object: &str) -> WrapContext<'_> {
    WrapContext { object, version: VersionId([7; 16]), offset: 0, size: 99, root_cid: b"cid" }
}

#[test]
fn ctr_agrees_with_the_nist_vector() {
    // SP 800-38A, F.5.5: its counter block splits into our nonce and block number.
    let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
    let secret = PartSecret::from_parts(key.try_into().unwrap(), 0xf0f1_f2f3_f4f5_f6f7);
    let first_block: u64 = 0xf8f9_fafb_fcfd_feff;
    let mut bytes = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap();
    secret.cipher().unwrap().apply_from_block(first_block, &mut bytes).unwrap();
    assert_eq!(hex::encode(bytes), "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5");
}

proptest! {
    #[test]
    fn any_range_deciphers_alone(len in 1usize..5000, cuts in prop::collection::vec(0usize..5000, 0..8)) {
        let secret = PartSecret::fresh().unwrap();
        let plain: Vec<u8> = (0u8..251).cycle().take(len).collect();
        let mut whole = plain.clone();
        secret.cipher().unwrap().apply(0, &mut whole).unwrap();
        prop_assert!(len < 32 || whole != plain);

        let mut edges: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).chain([0, len]).collect();
        edges.sort_unstable();
        for pair in edges.windows(2) {
            let mut piece = whole[pair[0]..pair[1]].to_vec();
            secret.cipher().unwrap().apply(pair[0] as u64, &mut piece).unwrap();
            prop_assert_eq!(&piece, &plain[pair[0]..pair[1]]);
        }
    }

    #[test]
    fn a_key_opens_only_where_it_belongs(
        field in 0usize..7,
        object in "[a-z]{1,20}",
    ) {
        let bucket = keys(1).bucket(BucketId([2; 8]), 1).unwrap();
        let secret = PartSecret::fresh().unwrap();
        let right = context(&object);
        let wrapped = bucket.wrap(&secret, &right).unwrap();
        let opened = bucket.unwrap(&wrapped, secret.nonce(), &right).unwrap();
        prop_assert_eq!(opened.expose(), secret.expose());

        let longer = format!("{object}x");
        let mut wrong = right;
        let mut nonce = secret.nonce();
        let mut other = keys(1).bucket(BucketId([2; 8]), 1).unwrap();
        match field {
            0 => wrong.object = &longer,
            1 => wrong.version = VersionId([8; 16]),
            2 => wrong.offset = 1,
            3 => wrong.size = 100,
            4 => wrong.root_cid = b"cie",
            5 => nonce ^= 1,
            _ => other = keys(1).bucket(BucketId([3; 8]), 1).unwrap(),
        }
        prop_assert!(other.unwrap(&wrapped, nonce, &wrong).is_err());
    }
}

/// Every attempt at a part, the same bytes or others, takes its keystream from where nobody took it before.
#[test]
fn no_key_and_counter_serve_twice() {
    let mut seen = HashSet::new();
    for _upload in 0..4 {
        for part in 0u64..50 {
            // Each part is sent again once, as clients do after a timeout.
            for _attempt in 0..2 {
                let secret = PartSecret::fresh().unwrap();
                for block in [0, 1, part] {
                    seen.insert((*secret.expose(), secret.nonce(), block));
                }
                assert!(seen.contains(&(*secret.expose(), secret.nonce(), 0)));
            }
        }
    }
    // Parts 0 and 1 repeat a block number within one attempt: 2 pairs instead of 3.
    assert_eq!(seen.len(), 4 * (48 * 3 + 2 * 2) * 2);
}

#[test]
fn an_epoch_or_root_of_another_kind_is_refused() {
    let secret = PartSecret::fresh().unwrap();
    let wrapped = keys(1).bucket(BucketId([2; 8]), 1).unwrap().wrap(&secret, &context("a")).unwrap();
    let other_epoch = keys(1).bucket(BucketId([2; 8]), 2).unwrap();
    assert!(matches!(
        other_epoch.unwrap(&wrapped, secret.nonce(), &context("a")),
        Err(CryptError::Epoch { found: 1, held: 2 })
    ));
    let other_root = keys(9).bucket(BucketId([2; 8]), 1).unwrap();
    assert!(matches!(other_root.unwrap(&wrapped, secret.nonce(), &context("a")), Err(CryptError::Unwrap)));
}

#[test]
fn a_seal_binds_key_and_value() {
    let bucket = keys(1).bucket(BucketId([2; 8]), 1).unwrap();
    let seal = bucket.seal(b"ab", b"c");
    assert!(bucket.check_seal(b"ab", b"c", &seal));
    assert!(!bucket.check_seal(b"a", b"bc", &seal));
    assert!(!bucket.check_seal(b"ab", b"d", &seal));
    assert!(!bucket.check_seal(b"ab", b"c", &seal[..15]));
}

#[test]
fn secrets_do_not_print() {
    let secret = PartSecret::from_parts([0xab; 32], 5);
    let printed = format!(
        "{secret:?} {:?} {:?} {:?}",
        secret.cipher().unwrap(),
        keys(0xab),
        keys(0xab).bucket(BucketId([2; 8]), 1).unwrap()
    );
    assert!(!printed.contains("abab") && !printed.contains("171"), "{printed}");
}

/// Enciphering must not be what a PUT waits for. Prints what this machine does; asserts a tenth of it.
#[test]
fn the_cipher_runs_at_gigabytes_a_second() {
    let cipher = PartSecret::fresh().unwrap().cipher().unwrap();
    let mut block = vec![0u8; 1 << 20];
    let best = (0..64u64)
        .map(|turn| {
            let began = std::time::Instant::now();
            cipher.apply(turn << 20, &mut block).unwrap();
            began.elapsed()
        })
        .min()
        .unwrap();
    let speed = block.len() as f64 / best.as_secs_f64() / 1e9;
    eprintln!("AES-256-CTR: {speed:.1} GB/s");
    assert!(speed > 0.5, "{speed} GB/s");
}
