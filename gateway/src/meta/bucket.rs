//! Buckets.

use bytes::Bytes;
use holdfast_protocol::record::{Encryption, ScopeId};

use super::error::{Attempt, BucketError, MetaError};
use super::model::{Bucket, BucketId, NewBucket, Usage};
use super::row::{decode_bucket, encode_bucket};
use super::store::{PAGE_ROWS_MAX, Precondition, Transaction, counters, prefix_end};
use super::{Meta, SEAL_LEN, next_key, random, schema};

/// Counters of a bucket's usage row, in order.
pub(super) const USAGE_OBJECTS: usize = 0;
pub(super) const USAGE_BYTES: usize = 1;
pub(super) const USAGE_UPLOAD_BYTES: usize = 2;

impl Meta {
    /// Makes a bucket.
    pub async fn create_bucket(&self, new: NewBucket) -> Result<Bucket, BucketError> {
        let encryption = if new.public { Encryption::None } else { Encryption::Aes256Ctr };
        let bucket = Bucket {
            name: new.name,
            id: BucketId(random()?),
            created_ms: self.now_ms(),
            public: new.public,
            encryption,
            scope: ScopeId(random()?),
            policy: new.policy,
            key_epoch: 1,
            features: new.features,
        };
        let key = schema::bucket(&bucket.name);
        let mut value = encode_bucket(&bucket);
        value.extend_from_slice(&self.keys.seal(&key, &value).map_err(MetaError::from)?);
        let mut transaction = Transaction::default();
        transaction.expect(key.clone(), None);
        // 64 random bits may, once in a very long while, name a bucket that was there before.
        transaction.preconditions.push(Precondition::Absent(schema::usage(bucket.id)));
        transaction.put(key, value);
        transaction.put(schema::usage(bucket.id), Vec::new());
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(bucket),
            Err(Attempt::Failed(error)) => Err(error.into()),
            Err(Attempt::Conflict) => Err(BucketError::Exists { name: bucket.name }),
        }
    }

    /// The bucket of this name.
    pub async fn bucket(&self, name: &str) -> Result<Option<Bucket>, MetaError> {
        Ok(self.bucket_row(name).await?.map(|(bucket, _)| bucket))
    }

    /// The bucket of this name with its row as it is.
    pub(super) async fn bucket_row(&self, name: &str) -> Result<Option<(Bucket, Bytes)>, MetaError> {
        let key = schema::bucket(name);
        match self.store.get(&key).await? {
            None => Ok(None),
            Some(value) => Ok(Some((self.open_bucket(&key, &value)?, value))),
        }
    }

    pub(super) fn open_bucket(&self, key: &[u8], value: &[u8]) -> Result<Bucket, MetaError> {
        let corrupt = || MetaError::Corrupt { what: "bucket" };
        let name = std::str::from_utf8(&key[1..]).map_err(|_| corrupt())?;
        let (body, seal) = value.split_at_checked(value.len().wrapping_sub(SEAL_LEN)).ok_or_else(corrupt)?;
        if !self.keys.check_seal(key, body, seal)? {
            return Err(MetaError::Forged { what: "bucket" });
        }
        decode_bucket(name, body)
    }

    /// All buckets by name.
    pub async fn buckets(&self) -> Result<Vec<Bucket>, MetaError> {
        let mut buckets = Vec::new();
        let end = prefix_end(&schema::buckets());
        let mut start = schema::buckets();
        loop {
            let page = self.store.page(&start, &end, PAGE_ROWS_MAX).await?;
            let Some(last) = page.last() else { return Ok(buckets) };
            start = next_key(last.key.clone());
            for row in &page {
                buckets.push(self.open_bucket(&row.key, &row.value)?);
            }
        }
    }

    /// Removes an empty bucket.
    pub async fn delete_bucket(&self, name: &str) -> Result<(), BucketError> {
        self.retry(|| self.try_delete_bucket(name)).await
    }

    async fn try_delete_bucket(&self, name: &str) -> Result<(), Attempt<BucketError>> {
        let Some((bucket, row)) = self.bucket_row(name).await? else {
            return Err(Attempt::Failed(BucketError::NotFound { name: name.to_owned() }));
        };
        let tables = [schema::objects(bucket.id), schema::uploads(bucket.id), schema::history(bucket.id)];
        for table in tables {
            if !self.store.page(&table, &prefix_end(&table), 1).await?.is_empty() {
                return Err(Attempt::Failed(BucketError::NotEmpty { name: name.to_owned() }));
            }
        }
        let mut transaction = Transaction::default();
        transaction.expect(schema::bucket(name), Some(row));
        transaction.preconditions.push(Precondition::PrefixEmpty(schema::objects(bucket.id)));
        transaction.preconditions.push(Precondition::PrefixEmpty(schema::uploads(bucket.id)));
        transaction.preconditions.push(Precondition::PrefixEmpty(schema::history(bucket.id)));
        self.forget_settings(&bucket, &mut transaction);
        transaction.delete(schema::bucket(name));
        transaction.delete(schema::usage(bucket.id));
        Ok(self.store.transact(transaction).await?)
    }

    /// Raises the epoch of a bucket's key: what is written from now on is enciphered and sealed under the next one. What
    /// was written before says its own epoch and stays readable.
    pub async fn rotate_bucket(&self, name: &str) -> Result<Bucket, BucketError> {
        self.retry(|| self.try_rotate_bucket(name)).await
    }

    async fn try_rotate_bucket(&self, name: &str) -> Result<Bucket, Attempt<BucketError>> {
        let Some((mut bucket, row)) = self.bucket_row(name).await? else {
            return Err(Attempt::Failed(BucketError::NotFound { name: name.to_owned() }));
        };
        bucket.key_epoch =
            bucket.key_epoch.checked_add(1).ok_or(MetaError::Bounds { what: "epochs of a bucket's key" })?;
        let key = schema::bucket(name);
        let mut value = encode_bucket(&bucket);
        value.extend_from_slice(&self.keys.seal(&key, &value).map_err(MetaError::from)?);
        let mut transaction = Transaction::default();
        transaction.expect(key.clone(), Some(row));
        transaction.put(key, value);
        self.store.transact(transaction).await?;
        Ok(bucket)
    }

    /// What a bucket holds.
    pub async fn usage(&self, bucket: &Bucket) -> Result<Usage, MetaError> {
        let row = self.store.get(&schema::usage(bucket.id)).await?;
        let counts = row.map(|value| counters(&value)).unwrap_or_default();
        let count =
            |index: usize| counts.get(index).map_or(0, |count| u64::try_from(*count).unwrap_or_default());
        Ok(Usage {
            objects: count(USAGE_OBJECTS),
            bytes: count(USAGE_BYTES),
            upload_bytes: count(USAGE_UPLOAD_BYTES),
        })
    }
}

/// A size as a counter's delta. Sizes are far below 2^63.
pub(super) fn delta(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
