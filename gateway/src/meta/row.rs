//! Rows: what each value of the schema holds, and its bytes.
//!
//! Every value starts with the version of its form. Rows of buckets, objects, parts and pages end with a seal
//! (a keyed hash over key and value); rows of blocks, stripes and queues need none: what they say is checked
//! against digests by whoever reads the blocks.

use cid::Cid;
use holdfast_protocol::digest::CODEC_RAW;
use holdfast_protocol::limits::{MANIFEST_PAGE_ENTRIES, SHARDS_MAX};
use holdfast_protocol::record::{Encryption, PolicyName, ScopeId, StripeId, WrappedKey};
use holdfast_protocol::{BlockLen, Digest};

use super::codec::{Reader, Writer};
use super::error::MetaError;
use super::features::{Features, features, lock, put_features, put_lock};
use super::model::{Attributes, Bucket, BucketId, Upload, VersionId};
use super::schema::INLINE_BLOCKS_MAX;
use crate::layout::{Entry, Layout, Page, PartLayout, Run};

mod object;
mod stripe;

pub(super) use object::{
    ObjectRow, PART_CHECKSUMS, PartRow, decode_object_part, decode_page, decode_upload, encode_object_part,
    encode_page, encode_upload, part, put_part,
};
pub(super) use stripe::{BlockRow, Origin, StripeRow, from_record};

/// Version of every row's first form.
const V1: u8 = 1;
/// Version of the second form: of a block's row, and of buckets, objects and uploads, which is the first with the fields of [`super::features`] behind it.
const V2: u8 = 2;

fn version(reader: &mut Reader<'_>) -> Result<(), MetaError> {
    if reader.u8()? == V1 { Ok(()) } else { Err(reader.corrupt()) }
}

/// The form of a row that may have either.
fn form(reader: &mut Reader<'_>) -> Result<u8, MetaError> {
    match reader.u8()? {
        form @ (V1 | V2) => Ok(form),
        _ => Err(reader.corrupt()),
    }
}

pub(super) fn encode_bucket(bucket: &Bucket) -> Vec<u8> {
    let mut out = Writer::default();
    let is_plain = bucket.features == Features::default();
    out.u8(if is_plain { V1 } else { V2 })
        .fixed(&bucket.id.0)
        .int(bucket.created_ms)
        .u8(u8::from(bucket.public));
    out.u8(encryption_code(bucket.encryption)).fixed(&bucket.scope.0);
    out.u8(policy_code(bucket.policy)).int(u64::from(bucket.key_epoch));
    if !is_plain {
        put_features(&mut out, &bucket.features);
    }
    out.0
}

pub(super) fn decode_bucket(name: &str, bytes: &[u8]) -> Result<Bucket, MetaError> {
    let mut row = Reader::new("bucket", bytes);
    let form = form(&mut row)?;
    let mut bucket = Bucket {
        name: name.to_owned(),
        id: BucketId(row.array()?),
        created_ms: row.int()?,
        public: row.u8()? != 0,
        encryption: encryption(&mut row)?,
        scope: ScopeId(row.array()?),
        policy: policy(&mut row)?,
        key_epoch: row.u32()?,
        features: Features::default(),
    };
    if form == V2 {
        bucket.features = features(&mut row)?;
    }
    row.end()?;
    Ok(bucket)
}

fn encryption_code(encryption: Encryption) -> u8 {
    match encryption {
        Encryption::None => 0,
        Encryption::Aes256Ctr => 1,
        Encryption::Dedup => 2,
    }
}

fn encryption(row: &mut Reader<'_>) -> Result<Encryption, MetaError> {
    match row.u8()? {
        0 => Ok(Encryption::None),
        1 => Ok(Encryption::Aes256Ctr),
        2 => Ok(Encryption::Dedup),
        _ => Err(row.corrupt()),
    }
}

fn policy_code(policy: PolicyName) -> u8 {
    match policy {
        PolicyName::Local => 0,
        PolicyName::Small => 1,
        PolicyName::Standard => 2,
        PolicyName::Journal => 3,
    }
}

fn policy(row: &mut Reader<'_>) -> Result<PolicyName, MetaError> {
    match row.u8()? {
        0 => Ok(PolicyName::Local),
        1 => Ok(PolicyName::Small),
        2 => Ok(PolicyName::Standard),
        3 => Ok(PolicyName::Journal),
        _ => Err(row.corrupt()),
    }
}

fn put_attributes(out: &mut Writer, attributes: &Attributes) {
    out.text(&attributes.etag)
        .pairs(&attributes.headers)
        .pairs(&attributes.user)
        .pairs(&attributes.checksums);
}

fn attributes(row: &mut Reader<'_>) -> Result<Attributes, MetaError> {
    Ok(Attributes {
        etag: row.text()?,
        headers: row.pairs()?,
        user: row.pairs()?,
        checksums: row.pairs()?,
        ..Attributes::default()
    })
}

/// Tags and lock, which only the second form has.
fn put_extras(out: &mut Writer, attributes: &Attributes) {
    out.pairs(&attributes.tags);
    put_lock(out, &attributes.lock);
}

fn extras(row: &mut Reader<'_>, attributes: &mut Attributes) -> Result<(), MetaError> {
    attributes.tags = row.pairs()?;
    attributes.lock = lock(row)?;
    Ok(())
}

fn has_extras(attributes: &Attributes) -> bool {
    !attributes.tags.is_empty() || attributes.lock != super::features::Lock::default()
}

/// Entries as run-length-coded lengths and then the digests: a page of 1 MiB blocks costs 32 bytes a block.
fn put_entries(out: &mut Writer, entries: &[Entry]) {
    out.len(entries.len());
    for same in entries.chunk_by(|a, b| a.len == b.len) {
        out.len(same.len()).int(u64::from(same[0].len.bytes()));
    }
    for entry in entries {
        out.fixed(&entry.digest.0);
    }
}

fn entries(row: &mut Reader<'_>, most: usize) -> Result<Vec<Entry>, MetaError> {
    let count = row.count(32)?;
    if count > most {
        return Err(row.corrupt());
    }
    let mut lengths = Vec::with_capacity(count);
    while lengths.len() < count {
        let same = row.count(0)?;
        let len = BlockLen::new(row.u32()?).map_err(|_| row.corrupt())?;
        if same == 0 || same > count - lengths.len() {
            return Err(row.corrupt());
        }
        lengths.resize(lengths.len() + same, len);
    }
    lengths.into_iter().map(|len| Ok(Entry { digest: Digest(row.array()?), len })).collect()
}

#[cfg(test)]
mod tests;
