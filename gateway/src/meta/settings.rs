//! What a bucket is told beyond its row: documents that only the S3 side reads, sealed under the bucket's key, and the
//! switches in the bucket's own row.

use super::error::{Attempt, BucketError, MetaError};
use super::features::Features;
use super::model::{Bucket, BucketId};
use super::row::encode_bucket;
use super::store::Transaction;
use super::{Meta, Sealer, schema};

/// Bytes of one document: S3 allows policies of 20 KB and a thousand lifecycle rules.
const DOCUMENT_LEN_MAX: usize = 256 * 1024;

/// A document that a bucket may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketSetting {
    /// Which origins' pages may read answers.
    Cors,
    /// Who may do what.
    Policy,
    /// What is deleted when.
    Lifecycle,
    /// Tags.
    Tags,
    /// What policies may open to anybody.
    PublicAccess,
}

impl BucketSetting {
    const ALL: [Self; 5] = [Self::Cors, Self::Policy, Self::Lifecycle, Self::Tags, Self::PublicAccess];

    const fn number(self) -> u8 {
        match self {
            Self::Cors => 0,
            Self::Policy => 1,
            Self::Lifecycle => 2,
            Self::Tags => 3,
            Self::PublicAccess => 4,
        }
    }

    /// Its bit in [`Features::settings`].
    pub const fn bit(self) -> u8 {
        1 << self.number()
    }
}

impl Meta {
    /// A document of a bucket's, if it has it.
    pub async fn bucket_setting(
        &self,
        bucket: &Bucket,
        setting: BucketSetting,
    ) -> Result<Option<Vec<u8>>, MetaError> {
        if bucket.features.settings & setting.bit() == 0 {
            return Ok(None);
        }
        let key = schema::bucket_setting(bucket.id, setting.number());
        let Some(value) = self.store.get(&key).await? else { return Ok(None) };
        Ok(Some(self.unseal(bucket.id, "bucket setting", &key, &value)?.to_vec()))
    }

    /// Sets or removes a document.
    pub async fn put_bucket_setting(
        &self,
        bucket: &Bucket,
        setting: BucketSetting,
        document: Option<&[u8]>,
    ) -> Result<(), BucketError> {
        if document.is_some_and(|document| document.len() > DOCUMENT_LEN_MAX) {
            return Err(MetaError::Bounds { what: "bucket setting" }.into());
        }
        self.retry(|| self.try_put_setting(bucket, setting, document)).await
    }

    async fn try_put_setting(
        &self,
        bucket: &Bucket,
        setting: BucketSetting,
        document: Option<&[u8]>,
    ) -> Result<(), Attempt<BucketError>> {
        let mut transaction = Transaction::default();
        let mut found = self.standing_bucket(&bucket.name, bucket.id, &mut transaction).await?;
        let key = schema::bucket_setting(bucket.id, setting.number());
        match document {
            Some(document) => {
                found.features.settings |= setting.bit();
                let value = self.seal(&Sealer::from(&found), &key, document.to_vec())?;
                transaction.put(key, value);
            }
            None => {
                found.features.settings &= !setting.bit();
                transaction.delete(key);
            }
        }
        self.put_bucket_row(&found, &mut transaction)?;
        Ok(self.store.transact(transaction).await?)
    }

    /// Changes a bucket's switches. `change` is called again when another writer was faster; it may say no.
    pub async fn update_features<E: From<BucketError> + Send>(
        &self,
        bucket: &Bucket,
        change: impl Fn(&mut Features) -> Result<(), E> + Send + Sync,
    ) -> Result<(), E> {
        for _ in 0..super::ATTEMPTS_MAX {
            let mut transaction = Transaction::default();
            let found = self.standing_bucket(&bucket.name, bucket.id, &mut transaction).await;
            let mut found = match found {
                Ok(found) => found,
                Err(Attempt::Conflict) => continue,
                Err(Attempt::Failed(error)) => return Err(error.into()),
            };
            change(&mut found.features)?;
            self.put_bucket_row(&found, &mut transaction).map_err(BucketError::from)?;
            match self.store.transact(transaction).await.map_err(Attempt::<BucketError>::from) {
                Ok(()) => return Ok(()),
                Err(Attempt::Conflict) => {}
                Err(Attempt::Failed(error)) => return Err(error.into()),
            }
        }
        Err(BucketError::Meta(MetaError::Contended).into())
    }

    async fn standing_bucket(
        &self,
        name: &str,
        id: BucketId,
        transaction: &mut Transaction,
    ) -> Result<Bucket, Attempt<BucketError>> {
        match self.bucket_row(name).await? {
            Some((found, row)) if found.id == id => {
                transaction.expect(schema::bucket(name), Some(row));
                Ok(found)
            }
            _ => Err(Attempt::Failed(BucketError::NotFound { name: name.to_owned() })),
        }
    }

    fn put_bucket_row(&self, bucket: &Bucket, transaction: &mut Transaction) -> Result<(), MetaError> {
        let key = schema::bucket(&bucket.name);
        let mut value = encode_bucket(bucket);
        value.extend_from_slice(&self.keys.seal(&key, &value)?);
        transaction.put(key, value);
        Ok(())
    }

    /// Removes all documents of a bucket that is being deleted.
    pub(super) fn forget_settings(&self, bucket: &Bucket, transaction: &mut Transaction) {
        for setting in BucketSetting::ALL {
            if bucket.features.settings & setting.bit() != 0 {
                transaction.delete(schema::bucket_setting(bucket.id, setting.number()));
            }
        }
    }
}
