//! Rows of objects: heads, parts, pages, unfinished uploads.

use super::{
    Attributes, CODEC_RAW, Cid, Digest, Encryption, Entry, INLINE_BLOCKS_MAX, Layout, MANIFEST_PAGE_ENTRIES,
    MetaError, Page, PartLayout, Reader, Run, Upload, V1, V2, VersionId, WrappedKey, Writer, attributes,
    encryption, encryption_code, entries, extras, form, has_extras, put_attributes, put_entries, put_extras,
    version,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_bytes::ByteBuf;

/// The head of an object. Bucket and key are the row's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::meta) struct ObjectRow {
    pub(in crate::meta) version: VersionId,
    /// Whether it was written while its bucket kept no versions; S3 calls such a version `null`.
    pub(in crate::meta) is_null: bool,
    pub(in crate::meta) size: u64,
    pub(in crate::meta) block_count: u64,
    pub(in crate::meta) modified_ms: u64,
    pub(in crate::meta) part_count: u32,
    pub(in crate::meta) encryption: Encryption,
    pub(in crate::meta) root_cid: Cid,
    pub(in crate::meta) attributes: Attributes,
    pub(in crate::meta) layout: Layout,
}

/// A finished part of an unfinished upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::meta) struct PartRow {
    pub(in crate::meta) modified_ms: u64,
    pub(in crate::meta) attributes: Attributes,
    /// `None` when it has no bytes.
    pub(in crate::meta) layout: Option<PartLayout>,
}

const EMPTY: u8 = 0;
const SINGLE: u8 = 1;
const PARTS: u8 = 2;

impl ObjectRow {
    pub(in crate::meta) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(320));
        let is_plain = self.is_null && !has_extras(&self.attributes);
        out.u8(if is_plain { V1 } else { V2 })
            .fixed(&self.version.0)
            .int(self.size)
            .int(self.block_count)
            .int(self.modified_ms);
        out.int(u64::from(self.part_count)).u8(encryption_code(self.encryption));
        put_cid(&mut out, &self.root_cid);
        put_attributes(&mut out, &self.attributes);
        match &self.layout {
            Layout::Empty => out.u8(EMPTY),
            Layout::Single(part) => {
                out.u8(SINGLE);
                put_part(&mut out, part);
                &mut out
            }
            Layout::Parts => out.u8(PARTS),
        };
        if !is_plain {
            out.u8(u8::from(self.is_null));
            put_extras(&mut out, &self.attributes);
        }
        out.0
    }

    pub(in crate::meta) fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut row = Reader::new("object", bytes);
        let form = form(&mut row)?;
        let mut object = Self {
            version: VersionId(row.array()?),
            is_null: true,
            size: row.int()?,
            block_count: row.int()?,
            modified_ms: row.int()?,
            part_count: row.u32()?,
            encryption: encryption(&mut row)?,
            root_cid: cid(&mut row)?,
            attributes: attributes(&mut row)?,
            layout: match row.u8()? {
                EMPTY => Layout::Empty,
                SINGLE => Layout::Single(part(&mut row)?),
                PARTS => Layout::Parts,
                _ => return Err(row.corrupt()),
            },
        };
        if form == V2 {
            object.is_null = row.u8()? != 0;
            extras(&mut row, &mut object.attributes)?;
        }
        row.end()?;
        Ok(object)
    }
}

impl PartRow {
    pub(in crate::meta) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(V1).int(self.modified_ms);
        put_attributes(&mut out, &self.attributes);
        out.u8(u8::from(self.layout.is_some()));
        if let Some(layout) = &self.layout {
            put_part(&mut out, layout);
        }
        out.0
    }

    pub(in crate::meta) fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut row = Reader::new("part", bytes);
        version(&mut row)?;
        let modified_ms = row.int()?;
        let attributes = attributes(&mut row)?;
        let layout = if row.u8()? == 0 { None } else { Some(part(&mut row)?) };
        row.end()?;
        Ok(Self { modified_ms, attributes, layout })
    }

    pub(in crate::meta) fn size(&self) -> u64 {
        self.layout.as_ref().map_or(0, |layout| layout.len)
    }
}

/// Root CIDs are raw or dag-pb with BLAKE3: one byte and the digest. Anything else is kept as it is.
fn put_cid(out: &mut Writer, cid: &Cid) {
    match Digest::from_cid(cid) {
        Ok(digest) if cid.codec() == CODEC_RAW => out.u8(1).fixed(&digest.0),
        Ok(digest) if cid.codec() == holdfast_protocol::digest::CODEC_DAG_PB => out.u8(2).fixed(&digest.0),
        _ => out.u8(0).bytes(&cid.to_bytes()),
    };
}

fn cid(row: &mut Reader<'_>) -> Result<Cid, MetaError> {
    match row.u8()? {
        1 => Ok(Digest(row.array()?).raw_cid()),
        2 => Ok(Digest(row.array()?).cid(holdfast_protocol::digest::CODEC_DAG_PB)),
        0 => Cid::try_from(row.bytes()?).map_err(|_| row.corrupt()),
        _ => Err(row.corrupt()),
    }
}

pub(in crate::meta) fn put_part(out: &mut Writer, part: &PartLayout) {
    out.int(part.offset).int(part.len).u8(u8::from(part.key.is_some()));
    if let Some(key) = &part.key {
        out.int(u64::from(key.epoch))
            .fixed(&key.nonce)
            .bytes(&key.sealed)
            .fixed(&part.iv_nonce.to_be_bytes());
    }
    match &part.blocks {
        Run::Inline(list) => {
            out.u8(0);
            put_entries(out, list);
        }
        Run::Pages { run, count } => {
            out.u8(1).fixed(&run.0).int(*count);
        }
    }
}

pub(in crate::meta) fn part(row: &mut Reader<'_>) -> Result<PartLayout, MetaError> {
    let (offset, len) = (row.int()?, row.int()?);
    let (key, iv_nonce) = match row.u8()? {
        0 => (None, 0),
        _ => {
            let key = WrappedKey {
                epoch: row.u32()?,
                nonce: row.array()?,
                sealed: ByteBuf::from(row.bytes()?.to_vec()),
            };
            (Some(key), u64::from_be_bytes(row.array()?))
        }
    };
    let blocks = match row.u8()? {
        0 => Run::Inline(entries(row, INLINE_BLOCKS_MAX)?),
        _ => Run::Pages { run: VersionId(row.array()?), count: row.int()? },
    };
    Ok(PartLayout { offset, len, key, iv_nonce, blocks, checksum: None })
}

/// Names of the checksums that a part's row can hold; a row has the place in this list.
pub(in crate::meta) const PART_CHECKSUMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

/// The place of a part's checksum in [`PART_CHECKSUMS`], and its bytes.
fn checksum_bytes(part: &PartLayout) -> Option<(u8, Vec<u8>)> {
    let (name, value) = part.checksum.as_ref()?;
    let place = PART_CHECKSUMS.iter().position(|known| known == name)?;
    Some((u8::try_from(place).ok()?, STANDARD.decode(value).ok()?))
}

/// A part of a finished object, as a row of its own. The second form has the part's checksum behind the first.
pub(in crate::meta) fn encode_object_part(part: &PartLayout) -> Vec<u8> {
    let mut out = Writer::default();
    let checksum = checksum_bytes(part);
    out.u8(if checksum.is_some() { V2 } else { V1 });
    put_part(&mut out, part);
    if let Some((place, bytes)) = checksum {
        out.u8(place).bytes(&bytes);
    }
    out.0
}

/// The other way round.
pub(in crate::meta) fn decode_object_part(bytes: &[u8]) -> Result<PartLayout, MetaError> {
    let mut row = Reader::new("object part", bytes);
    let form = form(&mut row)?;
    let mut layout = part(&mut row)?;
    if form == V2 {
        let name = PART_CHECKSUMS.get(usize::from(row.u8()?)).ok_or_else(|| row.corrupt())?;
        layout.checksum = Some(((*name).to_owned(), STANDARD.encode(row.bytes()?)));
    }
    row.end()?;
    Ok(layout)
}

pub(in crate::meta) fn encode_page(page: &Page) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(32 + page.entries.len() * 33));
    out.u8(V1).int(page.start);
    put_entries(&mut out, &page.entries);
    out.0
}

pub(in crate::meta) fn decode_page(bytes: &[u8]) -> Result<Page, MetaError> {
    let mut row = Reader::new("manifest page", bytes);
    version(&mut row)?;
    let page = Page { start: row.int()?, entries: page_entries(&mut row)? };
    row.end()?;
    Ok(page)
}

fn page_entries(row: &mut Reader<'_>) -> Result<Vec<Entry>, MetaError> {
    let list = entries(row, MANIFEST_PAGE_ENTRIES)?;
    if list.is_empty() { Err(row.corrupt()) } else { Ok(list) }
}

pub(in crate::meta) fn encode_upload(upload: &Upload) -> Vec<u8> {
    let mut out = Writer::default();
    let is_plain = !has_extras(&upload.attributes);
    out.u8(if is_plain { V1 } else { V2 }).int(upload.created_ms);
    put_attributes(&mut out, &upload.attributes);
    if !is_plain {
        put_extras(&mut out, &upload.attributes);
    }
    out.0
}

pub(in crate::meta) fn decode_upload(key: &str, id: VersionId, bytes: &[u8]) -> Result<Upload, MetaError> {
    let mut row = Reader::new("upload", bytes);
    let form = form(&mut row)?;
    let mut upload =
        Upload { key: key.to_owned(), id, created_ms: row.int()?, attributes: attributes(&mut row)? };
    if form == V2 {
        extras(&mut row, &mut upload.attributes)?;
    }
    row.end()?;
    Ok(upload)
}
