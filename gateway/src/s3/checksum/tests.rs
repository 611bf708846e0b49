use http::HeaderValue;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

fn verify(pairs: &[(&'static str, &str)], body: &[u8]) -> Result<Vec<(String, String)>, S3Error> {
    let mut hashers = Announced::from_headers(&headers(pairs))?.hashers(None);
    for piece in body.chunks(3) {
        hashers.update(piece);
    }
    hashers.finish(None)
}

// Check values of "123456789" from the CRC catalogue; the hashes are those of RFC 3174 and FIPS 180 tools.
const CHECK: &[u8] = b"123456789";

#[test]
fn every_algorithm_agrees_with_its_published_check_value() {
    for (algorithm, hexadecimal) in [
        (Algorithm::Crc32, "cbf43926"),
        (Algorithm::Crc32c, "e3069283"),
        (Algorithm::Crc64Nvme, "ae8b14860a799888"),
        (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    ] {
        let expected = STANDARD.encode(hex::decode(hexadecimal).unwrap());
        let kept = verify(&[(algorithm.header(), &expected)], CHECK).unwrap();
        assert_eq!(kept, [(algorithm.name().to_owned(), expected)]);
    }
}

#[test]
fn a_wrong_checksum_is_a_bad_digest() {
    let error = verify(&[("x-amz-checksum-crc32", "AAAAAA==")], CHECK).unwrap_err();
    assert_eq!(error.code(), &S3ErrorCode::BadDigest);
}

#[test]
fn content_md5_is_checked_and_must_be_one() {
    let right = STANDARD.encode(hex::decode("25f9e794323b453885f5181f1b624d0b").unwrap());
    assert!(verify(&[("content-md5", &right)], CHECK).unwrap().is_empty());
    let wrong = STANDARD.encode([0u8; 16]);
    assert_eq!(verify(&[("content-md5", &wrong)], CHECK).unwrap_err().code(), &S3ErrorCode::BadDigest);
    for malformed in ["", "abc", "not base64 at all", &STANDARD.encode([0u8; 15])] {
        let error = verify(&[("content-md5", malformed)], CHECK).unwrap_err();
        assert_eq!(error.code(), &S3ErrorCode::InvalidDigest, "{malformed}");
    }
}

#[test]
fn a_malformed_checksum_header_is_refused_before_the_body() {
    for value in ["", "AA", "AAAAAAAA", "?"] {
        let error = Announced::from_headers(&headers(&[("x-amz-checksum-crc32", value)])).unwrap_err();
        assert_eq!(error.code(), &S3ErrorCode::InvalidRequest, "{value}");
    }
}

#[test]
fn a_trailer_is_verified_and_its_absence_is_an_error() {
    let announced = || {
        let mut hashers = Announced::from_headers(&headers(&[("x-amz-trailer", "x-amz-checksum-crc32")]))
            .unwrap()
            .hashers(None);
        hashers.update(CHECK);
        hashers
    };
    let right = headers(&[("x-amz-checksum-crc32", "y/Q5Jg==")]);
    assert_eq!(announced().finish(Some(&right)).unwrap(), [("crc32".to_owned(), "y/Q5Jg==".to_owned())]);
    let wrong = headers(&[("x-amz-checksum-crc32", "AAAAAA==")]);
    assert_eq!(announced().finish(Some(&wrong)).unwrap_err().code(), &S3ErrorCode::BadDigest);
    assert_eq!(announced().finish(None).unwrap_err().code(), &S3ErrorCode::InvalidRequest);
}

#[test]
fn full_object_crcs_of_parts_combine_to_the_crc_of_the_whole() {
    let body: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
        let of = |bytes: &[u8]| {
            let mut hasher = Running::new(algorithm);
            hasher.update(bytes);
            hasher.finish()
        };
        let parts: Vec<_> = body.chunks(77_777).map(|part| (of(part), part.len() as u64)).collect();
        assert_eq!(combine(algorithm, Combination::FullObject, &parts), Some(of(&body)));
    }
    assert_eq!(combine(Algorithm::Sha256, Combination::FullObject, &[]), None);
}

#[test]
fn a_composite_checksum_carries_the_number_of_parts() {
    let part = STANDARD.encode(digest::digest(&digest::SHA256, CHECK));
    let parts = [(part.clone(), 9), (part.clone(), 9)];
    let mut both = STANDARD.decode(&part).unwrap();
    both.extend(both.clone());
    let expected = format!("{}-2", STANDARD.encode(digest::digest(&digest::SHA256, &both)));
    assert_eq!(combine(Algorithm::Sha256, Combination::Composite, &parts), Some(expected));
}
