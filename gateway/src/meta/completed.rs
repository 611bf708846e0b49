//! Completed uploads, remembered for a week: a client whose connection broke while it completed an upload completes it
//! again, and must hear what it would have heard.

use cid::Cid;
use holdfast_protocol::time::UnixMs;

use super::codec::{Reader, Writer};
use super::error::MetaError;
use super::history::{VersionName, name_of};
use super::model::{Bucket, Completion, VersionId};
use super::row::ObjectRow;
use super::store::{Transaction, prefix_end};
use super::{Meta, Sealer, schema};

const FORM: u8 = 1;

/// What a completed upload became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedUpload {
    /// The entity tag, without quotes.
    pub etag: String,
    /// Checksums of the object.
    pub checksums: Vec<(String, String)>,
    /// The root CID.
    pub root_cid: Cid,
    /// What clients call the version that it made.
    pub version: VersionName,
}

impl Meta {
    pub(super) fn remember_completed(
        &self,
        bucket: &Bucket,
        completion: &Completion,
        row: &ObjectRow,
        transaction: &mut Transaction,
    ) -> Result<(), MetaError> {
        let key = schema::completed(completion.upload);
        let mut body = Writer::default();
        body.u8(FORM).text(&completion.key).fixed(&parts_digest(&completion.parts));
        body.text(&row.attributes.etag).pairs(&row.attributes.checksums).bytes(&row.root_cid.to_bytes());
        body.u8(u8::from(row.is_null)).int(row.modified_ms).fixed(&row.version.0);
        // The time and the bucket come first and in the clear: the sweep reads nothing else.
        let mut value = self.now_ms().to_be_bytes().to_vec();
        value.extend_from_slice(&bucket.id.0);
        value.extend_from_slice(&self.seal(&Sealer::from(bucket), &key, body.0)?);
        transaction.put(key, value);
        Ok(())
    }

    /// What the upload became, if it was completed with just these parts.
    pub async fn completed_upload(
        &self,
        bucket: &Bucket,
        object_key: &str,
        upload: VersionId,
        parts: &[(u16, String)],
    ) -> Result<Option<CompletedUpload>, MetaError> {
        let key = schema::completed(upload);
        let Some(value) = self.store.get(&key).await? else { return Ok(None) };
        let corrupt = MetaError::Corrupt { what: "completed upload" };
        let sealed = value.get(16..).ok_or_else(|| corrupt.clone())?;
        if value[8..16] != bucket.id.0 {
            return Ok(None);
        }
        let mut body =
            Reader::new("completed upload", self.unseal(bucket.id, "completed upload", &key, sealed)?);
        if body.u8()? != FORM {
            return Err(corrupt);
        }
        let is_the_same = body.text()? == object_key && body.array::<32>()? == parts_digest(parts);
        let (etag, checksums) = (body.text()?, body.pairs()?);
        let root_cid = Cid::try_from(body.bytes()?).map_err(|_| corrupt)?;
        let is_null = body.u8()? != 0;
        let modified_ms: UnixMs = body.int()?;
        let version = name_of(is_null, modified_ms, VersionId(body.array()?));
        body.end()?;
        Ok(is_the_same.then_some(CompletedUpload { etag, checksums, root_cid, version }))
    }

    /// Forgets uploads that were completed long ago. Looks at one page a call and goes on behind it at the next.
    pub(super) async fn sweep_completed(&self, now_ms: UnixMs, limit: usize) -> Result<(), MetaError> {
        let table = schema::sub_table(schema::COMPLETED);
        let start = self.completed_from.lock().take().unwrap_or_else(|| table.clone());
        let rows = self.store.page(&start, &prefix_end(&table), limit).await?;
        *self.completed_from.lock() = rows.last().map(|row| super::next_key(row.key.clone()));
        let mut transaction = Transaction::default();
        for row in rows {
            let at_ms = row.value.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let at_ms = at_ms.ok_or(MetaError::Corrupt { what: "completed upload" })?;
            if at_ms.saturating_add(schema::COMPLETED_MS) <= now_ms {
                transaction.delete(row.key);
            }
        }
        if transaction.writes.is_empty() {
            return Ok(());
        }
        match self.store.transact(transaction).await {
            Ok(()) | Err(super::TransactError::Conflict) => Ok(()),
            Err(super::TransactError::Store(error)) => Err(error.into()),
        }
    }
}

fn parts_digest(parts: &[(u16, String)]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (number, etag) in parts {
        hasher
            .update(&number.to_be_bytes())
            .update(&(etag.len() as u64).to_be_bytes())
            .update(etag.as_bytes());
    }
    *hasher.finalize().as_bytes()
}
