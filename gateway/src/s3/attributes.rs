//! What S3 keeps beside an object's bytes: content headers, user metadata, checksums. Taken from requests here and
//! given back here, so that what comes out is what went in.

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES, HeaderName,
};
use http::{HeaderMap, HeaderValue};
use s3s::dto::{ChecksumType, Metadata};
use s3s::{S3Error, s3_error};

use super::checksum::{Algorithm, Combination};
use crate::meta::Attributes;

/// Bytes of all `x-amz-meta-*` names and values together: S3's limit.
const USER_METADATA_BYTES_MAX: usize = 2048;
/// Bytes of one content header.
const CONTENT_HEADER_BYTES_MAX: usize = 1024;
/// The content type of objects that came without one, as S3 gives it.
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";
/// Marks the algorithm whose multipart checksum is wanted, until the upload is completed.
const WANTED_PREFIX: &str = "wanted:";
/// Where an object's checksum type is kept when it is not that of a single PUT.
const TYPE_NAME: &str = "type";

const KEPT: [HeaderName; 6] =
    [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_DISPOSITION, CONTENT_LANGUAGE, CACHE_CONTROL, EXPIRES];

/// Reads what is kept from a PUT, a CreateMultipartUpload or a CopyObject that replaces metadata.
pub(crate) fn from_request(headers: &HeaderMap, metadata: Option<&Metadata>) -> Result<Attributes, S3Error> {
    let mut kept = Vec::new();
    for name in KEPT {
        let Some(value) = headers.get(&name) else { continue };
        let Ok(text) = value.to_str() else {
            return Err(s3_error!(InvalidArgument, "The header {name} is not text"));
        };
        if text.len() > CONTENT_HEADER_BYTES_MAX {
            return Err(s3_error!(InvalidArgument, "The header {name} is too long"));
        }
        let text = if name == CONTENT_ENCODING { without_aws_chunked(text) } else { text.to_owned() };
        if !text.is_empty() {
            kept.push((name.as_str().to_owned(), text));
        }
    }
    let mut user: Vec<(String, String)> = metadata
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect();
    user.sort();
    if user.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > USER_METADATA_BYTES_MAX {
        return Err(s3_error!(
            MetadataTooLarge,
            "Your metadata headers exceed the maximum allowed metadata size"
        ));
    }
    Ok(Attributes { headers: kept, user, ..Attributes::default() })
}

/// `aws-chunked` is how the body travelled, not how the object is encoded.
fn without_aws_chunked(value: &str) -> String {
    value
        .split(',')
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
        .collect::<Vec<_>>()
        .join(",")
}

/// One kept content header.
pub(crate) fn header(attributes: &Attributes, name: &HeaderName) -> Option<String> {
    attributes.headers.iter().find(|(kept, _)| kept == name.as_str()).map(|(_, value)| value.clone())
}

/// The content type, S3's default where none was given.
pub(crate) fn content_type(attributes: &Attributes) -> String {
    header(attributes, &CONTENT_TYPE).unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned())
}

/// `Expires` as it was sent, which need not be a date.
pub(crate) fn expires(attributes: &Attributes) -> Option<HeaderValue> {
    header(attributes, &EXPIRES).and_then(|value| HeaderValue::try_from(value).ok())
}

/// `x-amz-meta-*`.
pub(crate) fn user_metadata(attributes: &Attributes) -> Option<Metadata> {
    (!attributes.user.is_empty()).then(|| attributes.user.iter().cloned().collect())
}

/// The checksums of an object or part, by S3's field names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Checksums {
    pub(crate) crc32: Option<String>,
    pub(crate) crc32c: Option<String>,
    pub(crate) crc64nvme: Option<String>,
    pub(crate) sha1: Option<String>,
    pub(crate) sha256: Option<String>,
    pub(crate) kind: Option<ChecksumType>,
}

impl Checksums {
    /// Those kept in metadata.
    pub(crate) fn of(kept: &[(String, String)]) -> Self {
        let mut checksums = Self::default();
        let mut combination = Combination::FullObject;
        for (name, value) in kept {
            if name == TYPE_NAME {
                combination = Combination::by_name(value).unwrap_or(combination);
                continue;
            }
            let Some(algorithm) = Algorithm::by_name(name) else { continue };
            let field = match algorithm {
                Algorithm::Crc32 => &mut checksums.crc32,
                Algorithm::Crc32c => &mut checksums.crc32c,
                Algorithm::Crc64Nvme => &mut checksums.crc64nvme,
                Algorithm::Sha1 => &mut checksums.sha1,
                Algorithm::Sha256 => &mut checksums.sha256,
            };
            *field = Some(value.clone());
            checksums.kind = Some(ChecksumType::from_static(combination.name()));
        }
        if checksums.kind.is_some() {
            checksums.kind = Some(ChecksumType::from_static(combination.name()));
        }
        checksums
    }
}

impl Checksums {
    /// The checksum of one part, with the type of its object's.
    pub(crate) fn of_part(part: (String, String), of_object: &[(String, String)]) -> Self {
        Self { kind: Self::of(of_object).kind, ..Self::of(&[part]) }
    }
}

/// What a multipart upload keeps of the checksum that its object shall have.
pub(crate) fn wanted_checksum(algorithm: Algorithm, combination: Combination) -> (String, String) {
    (format!("{WANTED_PREFIX}{}", algorithm.name()), combination.name().to_owned())
}

/// The reverse of [`wanted_checksum`].
pub(crate) fn wanted_of(kept: &[(String, String)]) -> Option<(Algorithm, Combination)> {
    kept.iter().find_map(|(name, value)| {
        let algorithm = Algorithm::by_name(name.strip_prefix(WANTED_PREFIX)?)?;
        Some((algorithm, Combination::by_name(value)?))
    })
}

/// What is kept of a completed object's checksum.
pub(crate) fn completed_checksum(
    algorithm: Algorithm,
    combination: Combination,
    value: String,
) -> Vec<(String, String)> {
    vec![(algorithm.name().to_owned(), value), (TYPE_NAME.to_owned(), combination.name().to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn content_headers_are_kept_and_the_transfer_coding_is_not() {
        let headers = request(&[
            ("content-type", "image/jpeg"),
            ("content-encoding", "aws-chunked, gzip"),
            ("cache-control", "max-age=60"),
            ("expires", "tomorrow"),
            ("x-other", "dropped"),
        ]);
        let attributes = from_request(&headers, None).unwrap();
        assert_eq!(content_type(&attributes), "image/jpeg");
        assert_eq!(header(&attributes, &CONTENT_ENCODING).as_deref(), Some("gzip"));
        assert_eq!(expires(&attributes).unwrap(), "tomorrow");
        assert_eq!(attributes.headers.len(), 4);
        let only_chunked = from_request(&request(&[("content-encoding", "aws-chunked")]), None).unwrap();
        assert!(only_chunked.headers.is_empty());
        assert_eq!(content_type(&only_chunked), DEFAULT_CONTENT_TYPE);
    }

    #[test]
    fn user_metadata_is_bounded_and_comes_back() {
        let mut metadata = Metadata::new();
        metadata.insert("Colour".into(), "blé".into());
        let attributes = from_request(&HeaderMap::new(), Some(&metadata)).unwrap();
        assert_eq!(user_metadata(&attributes).unwrap()["colour"], "blé");
        metadata.insert("big".into(), "x".repeat(USER_METADATA_BYTES_MAX));
        assert!(from_request(&HeaderMap::new(), Some(&metadata)).is_err());
    }

    #[test]
    fn the_wanted_checksum_of_an_upload_survives_the_table() {
        let kept = [wanted_checksum(Algorithm::Crc32, Combination::Composite)];
        assert_eq!(wanted_of(&kept), Some((Algorithm::Crc32, Combination::Composite)));
        assert_eq!(Checksums::of(&kept), Checksums::default());
        let done = completed_checksum(Algorithm::Crc32, Combination::Composite, "AAAA-2".to_owned());
        let checksums = Checksums::of(&done);
        assert_eq!(checksums.crc32.as_deref(), Some("AAAA-2"));
        assert_eq!(checksums.kind.unwrap().as_str(), "COMPOSITE");
    }
}
