//! Graves: versions that were deleted while somebody read them. A grave holds the references; it is buried (they are
//! dropped) when the last reader has left.

use super::bucket::{USAGE_BYTES, USAGE_OBJECTS, delta};
use super::codec::{Reader, Writer};
use super::error::{Attempt, MetaError, PutError};
use super::model::{BucketId, VersionId};
use super::object::Place;
use super::refs::{Brought, RefChanges};
use super::row::ObjectRow;
use super::store::{Row, Transaction, prefix_end};
use super::{Meta, Sealer, next_key, schema};

const FORM: u8 = 1;

struct Grave {
    bucket: BucketId,
    epoch: u32,
    key: String,
    object: ObjectRow,
}

impl Meta {
    /// Takes a version out of the count: at once, or by a grave while somebody reads it.
    pub(super) async fn retire(
        &self,
        at: &Place<'_>,
        old: &ObjectRow,
        usage: &mut [i64; 2],
        (changes, transaction): (&mut RefChanges, &mut Transaction),
    ) -> Result<(), MetaError> {
        usage[USAGE_OBJECTS] -= 1;
        usage[USAGE_BYTES] -= delta(old.size);
        let sealer = Sealer::from(at.bucket);
        if !at.is_read {
            return self.unlink_object(&sealer, old, changes, transaction).await;
        }
        let key = schema::grave(old.version);
        let mut body = Writer::default();
        body.u8(FORM).int(u64::from(at.bucket.key_epoch)).text(at.key).bytes(&old.encode());
        let mut value = at.bucket.id.0.to_vec();
        value.extend_from_slice(&self.seal(&sealer, &key, body.0)?);
        transaction.put(key, value);
        Ok(())
    }

    fn open_grave(&self, row: &Row) -> Result<Grave, MetaError> {
        let corrupt = MetaError::Corrupt { what: "grave" };
        let (bucket, sealed) = row.value.split_at_checked(8).ok_or(corrupt)?;
        let bucket = BucketId(bucket.try_into().unwrap_or_default());
        let mut body = Reader::new("grave", self.unseal(bucket, "grave", &row.key, sealed)?);
        if body.u8()? != FORM {
            return Err(body.corrupt());
        }
        let (epoch, key) = (body.u32()?, body.text()?);
        let object = ObjectRow::decode(body.bytes()?)?;
        body.end()?;
        Ok(Grave { bucket, epoch, key, object })
    }

    /// Buries up to `limit` graves that nobody reads in.
    pub(super) async fn sweep_graves(&self, limit: usize) -> Result<usize, MetaError> {
        let table = schema::sub_table(schema::GRAVES);
        let (mut start, mut done) = (table.clone(), 0);
        loop {
            let rows = self.store.page(&start, &prefix_end(&table), limit).await?;
            let Some(last) = rows.last() else { return Ok(done) };
            start = next_key(last.key.clone());
            for row in &rows {
                let grave = self.open_grave(row)?;
                if self.reads.is_read(grave.bucket, &grave.key, grave.object.version) {
                    continue;
                }
                match self.retry(|| self.try_bury(row, &grave)).await {
                    Ok(()) => done += 1,
                    Err(PutError::Meta(error)) => return Err(error),
                    Err(_) => return Err(MetaError::Corrupt { what: "grave" }),
                }
                if done >= limit {
                    return Ok(done);
                }
            }
        }
    }

    async fn try_bury(&self, row: &Row, grave: &Grave) -> Result<(), Attempt<PutError>> {
        // Whoever else buries it makes this one fail.
        if self.store.get(&row.key).await?.is_none() {
            return Ok(());
        }
        let mut transaction = Transaction::default();
        let mut changes = RefChanges::default();
        transaction.expect(row.key.clone(), Some(row.value.clone()));
        transaction.delete(row.key.clone());
        let sealer = Sealer { id: grave.bucket, epoch: grave.epoch };
        self.unlink_object(&sealer, &grave.object, &mut changes, &mut transaction).await?;
        self.change_refs(&changes, &Brought::new(), &mut transaction).await?;
        Ok(self.store.transact(transaction).await?)
    }

    /// Every grave's bucket, version and layout, for the self-check.
    pub(super) async fn graves(&self) -> Result<Vec<(BucketId, VersionId, ObjectRow)>, MetaError> {
        let table = schema::sub_table(schema::GRAVES);
        let (mut start, mut all) = (table.clone(), Vec::new());
        loop {
            let rows = self.store.page(&start, &prefix_end(&table), 64).await?;
            let Some(last) = rows.last() else { return Ok(all) };
            start = next_key(last.key.clone());
            for row in &rows {
                let grave = self.open_grave(row)?;
                all.push((grave.bucket, grave.object.version, grave.object));
            }
        }
    }
}
