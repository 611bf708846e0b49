//! `inspect`: what an id, a CID, a record or an extent file says.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base64::Engine;
use holdfast_protocol::record::{
    Agreement, Delegation, Disclaimer, Grant, Head, Manifest, ManifestPage, NodeRecord, Receipt, Record,
    Stripe, Unverified, UnverifiedAgreement,
};
use holdfast_protocol::{Digest, PublicKey, cbor};
use holdfast_storage_node::store::inspect::ExtentReader;
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::output::Output;

/// A record file is read up to this size; the largest record is a manifest of 10,000 parts.
const FILE_LEN_MAX: u64 = 8 * 1024 * 1024;
/// Records of an extent that are shown; a GiB of the smallest has as many.
const RECORDS_MAX: usize = 131_072;

/// `holdfast inspect`.
pub(crate) fn run(args: &InspectArgs, output: Output) -> Result<ExitCode> {
    let found = describe(&args.what)?;
    output.value(&found);
    output.say(serde_json::to_string_pretty(&found)?);
    Ok(ExitCode::SUCCESS)
}

fn describe(what: &str) -> Result<Value> {
    if let Ok(key) = what.parse::<PublicKey>() {
        return Ok(json!({ "kind": "public key", "key": key.to_string(), "hex": hex::encode(key.0) }));
    }
    let path = std::path::Path::new(what);
    if path.is_file() {
        return match path.extension().is_some_and(|extension| extension == "extent") {
            true => describe_extent(path),
            false => describe_file(what),
        };
    }
    match what.parse::<Digest>() {
        Ok(digest) => Ok(json!({
            "kind": "content address",
            "digest": hex::encode(digest.as_bytes()),
            "raw_cid": digest.raw_cid().to_string(),
            "multihash": "blake3-256",
        })),
        Err(error) => bail!("`{what}` is no file, no public key and no CID: {error}"),
    }
}

/// An extent file of a node's store, record by record.
fn describe_extent(path: &std::path::Path) -> Result<Value> {
    let mut reader = ExtentReader::open(path)?;
    let mut records = Vec::new();
    while let Some(record) = reader.read_next()? {
        if records.len() >= RECORDS_MAX {
            records.push(
                json!({ "kind": "cut", "detail": format!("only the first {RECORDS_MAX} records are shown") }),
            );
            break;
        }
        records.push(serde_json::to_value(&record)?);
    }
    Ok(json!({ "kind": "extent", "bytes": reader.size(), "records": records }))
}

fn describe_file(path: &str) -> Result<Value> {
    let len = std::fs::metadata(path).with_context(|| format!("cannot read {path}"))?.len();
    if len > FILE_LEN_MAX {
        bail!("{path} has {len} bytes; no record is longer than {FILE_LEN_MAX}");
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
    signed(&bytes)
        .or_else(|| plain(&bytes))
        .with_context(|| format!("{path} holds no record that this release knows"))
}

/// The kinds that travel signed. The domain in the signature tells which it is.
fn signed(bytes: &[u8]) -> Option<Value> {
    if let Ok(agreement) = cbor::decode::<UnverifiedAgreement>(bytes) {
        return Some(match agreement.verify() {
            Ok(agreement) => {
                json!({ "kind": "agreement", "signatures": "both hold", "id": agreement.id().to_string(), "record": readable(agreement.terms()) })
            }
            Err(error) => json!({ "kind": "agreement", "signatures": error.to_string() }),
        });
    }
    one::<Delegation>(bytes)
        .or_else(|| one::<Agreement>(bytes))
        .or_else(|| one::<Receipt>(bytes))
        .or_else(|| one::<Grant>(bytes))
        .or_else(|| one::<NodeRecord>(bytes))
        .or_else(|| one::<Head>(bytes))
        .or_else(|| one::<Disclaimer>(bytes))
}

fn one<R: Record>(bytes: &[u8]) -> Option<Value> {
    let unverified = cbor::decode::<Unverified<R>>(bytes).ok()?;
    let signed = unverified.verify().ok()?;
    Some(json!({
        "kind": R::NAME,
        "signature": "holds",
        "signer": signed.signer().to_string(),
        "record": readable(signed.record()),
    }))
}

fn plain(bytes: &[u8]) -> Option<Value> {
    if let Ok(manifest) = Manifest::decode(bytes) {
        return Some(json!({ "kind": Manifest::NAME, "record": readable(&manifest) }));
    }
    if let Ok(page) = ManifestPage::decode(bytes) {
        return Some(json!({ "kind": ManifestPage::NAME, "record": readable(&page) }));
    }
    let stripe = Stripe::decode(bytes).ok()?;
    Some(json!({ "kind": Stripe::NAME, "record": readable(&stripe) }))
}

/// JSON of a record, with byte strings as base64 (JSON has none).
fn readable(record: &impl serde::Serialize) -> Value {
    let Ok(value) = serde_json::to_value(record) else { return Value::Null };
    bytes_to_text(value)
}

fn bytes_to_text(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let bytes: Option<Vec<u8>> =
                items.iter().map(|item| item.as_u64().and_then(|number| u8::try_from(number).ok())).collect();
            match bytes {
                Some(bytes) if bytes.len() >= 12 => {
                    Value::String(base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes))
                }
                _ => Value::Array(items.into_iter().map(bytes_to_text).collect()),
            }
        }
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, bytes_to_text(value))).collect())
        }
        other => other,
    }
}
