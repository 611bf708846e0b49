//! Checksums that clients send with a body: read from headers or trailers, verified, kept and combined.
//!
//! The S3 library parses them and leaves the checking to us. A checksum that was promised in `x-amz-trailer` and
//! never came is an error, not a pass. MD5 costs ten times what storing costs, so it is computed only when a
//! client sends Content-MD5.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::HeaderMap;
use s3s::crypto::{Checksum as _, Md5};
use s3s::{S3Error, S3ErrorCode, s3_error};

/// The algorithms of `x-amz-checksum-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name in metadata and in header names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// The algorithm of this name, in any case.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    const fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    pub(crate) const fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }
}

/// The checksums a request announces, before its body is read.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// Values in the headers.
    values: Vec<(Algorithm, String)>,
    /// Algorithms whose values follow in trailers.
    trailers: Vec<Algorithm>,
    /// `x-amz-sdk-checksum-algorithm` without a value anywhere: computed and kept.
    wanted: Vec<Algorithm>,
    md5: Option<[u8; 16]>,
}

impl Announced {
    /// Reads the headers.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, S3Error> {
        let mut announced = Self::default();
        for algorithm in Algorithm::ALL {
            if let Some(value) = text(headers, algorithm.header())? {
                announced.values.push((algorithm, checked(algorithm, value)?));
            }
        }
        if announced.values.len() > 1 {
            return Err(s3_error!(InvalidRequest, "Expecting a single x-amz-checksum- header"));
        }
        if let Some(names) = text(headers, "x-amz-trailer")? {
            for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                let algorithm = name
                    .to_ascii_lowercase()
                    .strip_prefix("x-amz-checksum-")
                    .and_then(Algorithm::by_name)
                    .ok_or_else(|| {
                        s3_error!(
                            InvalidRequest,
                            "The value specified in the x-amz-trailer header is not supported"
                        )
                    })?;
                announced.trailers.push(algorithm);
            }
        }
        if let Some(value) = text(headers, "content-md5")? {
            let bytes = STANDARD.decode(value).ok().and_then(|bytes| bytes.try_into().ok());
            announced.md5 = Some(
                bytes
                    .ok_or_else(|| s3_error!(InvalidDigest, "The Content-MD5 you specified is not valid"))?,
            );
        }
        if let Some(name) = text(headers, "x-amz-sdk-checksum-algorithm")?
            && let Some(algorithm) = Algorithm::by_name(name)
        {
            announced.wanted.push(algorithm);
        }
        Ok(announced)
    }

    /// Hashers for everything announced, and for `kept` besides.
    pub(crate) fn hashers(self, kept: Option<Algorithm>) -> Hashers {
        let mut algorithms: Vec<Algorithm> = self.values.iter().map(|(algorithm, _)| *algorithm).collect();
        algorithms.extend(self.trailers.iter().chain(&self.wanted).copied());
        algorithms.extend(kept);
        let mut running: Vec<Running> = Vec::new();
        for algorithm in algorithms {
            if !running.iter().any(|hasher| hasher.algorithm == algorithm) {
                running.push(Running::new(algorithm));
            }
        }
        let md5 = self.md5.map(|expected| (expected, Md5::new()));
        Hashers { values: self.values, trailers: self.trailers, running, md5 }
    }
}

/// Checksums being computed over a body.
pub(crate) struct Hashers {
    values: Vec<(Algorithm, String)>,
    trailers: Vec<Algorithm>,
    running: Vec<Running>,
    md5: Option<([u8; 16], Md5)>,
}

impl Hashers {
    /// The next bytes of the body.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for hasher in &mut self.running {
            hasher.update(bytes);
        }
        if let Some((_, md5)) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    /// Compares with what the client sent; returns the checksums to keep: name and base64 value.
    pub(crate) fn finish(mut self, trailers: Option<&HeaderMap>) -> Result<Vec<(String, String)>, S3Error> {
        if let Some((expected, md5)) = self.md5.take()
            && md5.finalize().as_ref() != expected.as_slice()
        {
            return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received"));
        }
        let empty = HeaderMap::new();
        let trailers = trailers.unwrap_or(&empty);
        for algorithm in &self.trailers {
            let value = text(trailers, algorithm.header())?.ok_or_else(|| {
                s3_error!(
                    InvalidRequest,
                    "The trailer {} was announced and did not arrive",
                    algorithm.header()
                )
            })?;
            let value = checked(*algorithm, value)?;
            self.values.push((*algorithm, value));
        }
        let mut kept = Vec::with_capacity(self.running.len());
        for hasher in self.running {
            let algorithm = hasher.algorithm;
            let computed = hasher.finish();
            if let Some((_, sent)) = self.values.iter().find(|(sent, _)| *sent == algorithm)
                && *sent != computed
            {
                return Err(s3_error!(
                    BadDigest,
                    "The {} you specified did not match the calculated checksum",
                    algorithm.name().to_ascii_uppercase()
                ));
            }
            kept.push((algorithm.name().to_owned(), computed));
        }
        Ok(kept)
    }
}

struct Running {
    algorithm: Algorithm,
    state: State,
}

enum State {
    Crc(Box<crc_fast::Digest>),
    Sha(digest::Context),
}

impl Running {
    fn new(algorithm: Algorithm) -> Self {
        let state = match (algorithm.crc(), algorithm) {
            (Some(crc), _) => State::Crc(Box::new(crc_fast::Digest::new(crc))),
            (None, Algorithm::Sha1) => State::Sha(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)),
            (None, _) => State::Sha(digest::Context::new(&digest::SHA256)),
        };
        Self { algorithm, state }
    }

    fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Crc(crc) => crc.update(bytes),
            State::Sha(sha) => sha.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self.state {
            State::Crc(crc) => encode_crc(self.algorithm, crc.finalize()),
            State::Sha(sha) => STANDARD.encode(sha.finish()),
        }
    }
}

fn encode_crc(algorithm: Algorithm, crc: u64) -> String {
    let bytes = crc.to_be_bytes();
    STANDARD.encode(&bytes[8 - algorithm.len().min(8)..])
}

fn decode_crc(value: &str) -> Option<u64> {
    let bytes = STANDARD.decode(value).ok()?;
    (bytes.len() <= 8).then(|| bytes.iter().fold(0u64, |crc, byte| crc << 8 | u64::from(*byte)))
}

/// How the checksum of a multipart object is made of those of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combination {
    /// The checksum of the whole object; only CRCs can be combined so.
    FullObject,
    /// The checksum of the parts' checksums, with `-N` behind it.
    Composite,
}

impl Combination {
    /// The one a client gets that asks for none: what S3 does.
    pub(crate) const fn default_of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Crc64Nvme => Self::FullObject,
            _ => Self::Composite,
        }
    }

    /// The S3 name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }

    /// The combination of this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        [Self::FullObject, Self::Composite].into_iter().find(|kind| kind.name() == name)
    }
}

/// Combines the checksums of parts (base64, with each part's length) into the object's. `None` when one is not
/// a checksum of this algorithm, or a hash is asked for over the full object.
pub(crate) fn combine(
    algorithm: Algorithm,
    combination: Combination,
    parts: &[(String, u64)],
) -> Option<String> {
    match combination {
        Combination::FullObject => {
            let crc = algorithm.crc()?;
            let mut combined = None;
            for (value, len) in parts {
                let part = decode_crc(value)?;
                combined = Some(match combined {
                    None => part,
                    Some(before) => crc_fast::checksum_combine(crc, before, part, *len),
                });
            }
            Some(encode_crc(algorithm, combined?))
        }
        Combination::Composite => {
            let mut hasher = Running::new(algorithm);
            for (value, _) in parts {
                let bytes = STANDARD.decode(value).ok()?;
                if bytes.len() != algorithm.len() {
                    return None;
                }
                hasher.update(&bytes);
            }
            Some(format!("{}-{}", hasher.finish(), parts.len()))
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, S3Error> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let value = value
        .to_str()
        .map_err(|_| S3Error::with_message(S3ErrorCode::InvalidArgument, format!("{name} is not text")))?;
    Ok(Some(value.trim()))
}

fn checked(algorithm: Algorithm, value: &str) -> Result<String, S3Error> {
    match STANDARD.decode(value) {
        Ok(bytes) if bytes.len() == algorithm.len() => Ok(value.to_owned()),
        _ => Err(s3_error!(InvalidRequest, "Value for {} header is invalid.", algorithm.header())),
    }
}

#[cfg(test)]
mod tests;
