//! Canonical DAG-CBOR: one byte string per value, and no other accepted.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes `value` canonically.
///
/// # Panics
/// Never for the types of this crate: their fields all have a DAG-CBOR form and memory is the only sink.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("every protocol type has a DAG-CBOR form")
}

/// Decodes `bytes`, which must be the canonical encoding of what they say, with nothing behind it.
///
/// Re-encoding is the check: unknown fields, unsorted keys, long integers and trailing bytes all make
/// the bytes differ, so two different byte strings never carry one signed meaning.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let value: T = serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|error| DecodeError::Malformed { detail: clip(error) })?;
    if encode(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

fn clip(error: impl std::fmt::Display) -> String {
    let mut text = error.to_string();
    if text.len() > 200 {
        text = text.chars().take(200).collect();
    }
    text
}

/// Why bytes are not a record or message.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not DAG-CBOR, or not of this type.
    #[error("malformed DAG-CBOR: {detail}")]
    Malformed {
        /// What the decoder said.
        detail: String,
    },
    /// The same value has another, canonical encoding.
    #[error("not canonical DAG-CBOR (unknown fields, unsorted keys, long integers or trailing bytes)")]
    NotCanonical,
    /// A field lies outside its bound.
    #[error("{field} is out of bounds")]
    OutOfBounds {
        /// The field.
        field: &'static str,
    },
    /// A version that this release does not read.
    #[error("version {found} of {record} is not readable by this release (it reads up to {newest})")]
    Version {
        /// The record.
        record: &'static str,
        /// The version found.
        found: u16,
        /// The newest version read.
        newest: u16,
    },
}
