//! Snapshots: immutable, named versions of a bucket or prefix.
//!
//! A snapshot is a bucket of links, named after the root CID of its UnixFS directory (`cid-bafy…`), and a row that
//! gives the CID a name of its own. The links hold references, so the snapshot's blocks stay whatever becomes of the
//! source; S3 reads it like any bucket, and every change is refused. Snapshots with the same content share the bucket.
//!
//! Each object is linked in one transaction as it is at that moment; the snapshot of a bucket that is written to
//! meanwhile has some objects from before a write and some from after it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use holdfast_protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::crypt::SEAL_LEN;
use crate::gateway::Core;
use crate::meta::{Bucket, BucketError, LinkError, ListQuery, Meta, MetaError, ObjectSummary};
use crate::unixfs::{Link, TreeBuilder, TreeError};
use crate::web::api::SnapshotRow;

/// What the names of snapshot buckets begin with.
const BUCKET_PREFIX: &str = "cid-";
/// What follows while one is being made.
const PENDING: &str = "pending-";
/// One left behind by a crash is removed when it is older than this; nothing takes so long to make.
const ABANDONED_MS: u64 = 24 * 3600 * 1000;
/// Objects linked at once: their transactions share one sync.
const LINKS_IN_FLIGHT: usize = 64;
/// How often an object that changes under our hands is read again.
const LINK_ATTEMPTS: usize = 8;
const PAGE: usize = 1000;
const SETTING_PREFIX: &str = "snapshot/";
const NAME_LEN_MAX: usize = 128;
/// Snapshots of a namespace; the list is read whole.
const SNAPSHOTS_MAX: usize = 10_000;

/// Creating and removing take turns, so that a removal never takes the bucket that a creation just found.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Why a snapshot could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SnapshotError {
    #[error("`{name}` is no snapshot's name: 1 to 128 letters, digits, `.`, `_` and `-`")]
    Name { name: String },
    #[error("there is a snapshot named {name} already; remove it first, or take another name")]
    Exists { name: String },
    #[error("there is no snapshot named {name}")]
    NotFound { name: String },
    #[error("there is no bucket {bucket}")]
    NoSuchBucket { bucket: String },
    #[error("there is nothing under {bucket}/{prefix}")]
    Empty { bucket: String, prefix: String },
    #[error("this namespace has {SNAPSHOTS_MAX} snapshots already")]
    TooMany,
    #[error("{key} changed again and again while it was linked")]
    Restless { key: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("{key}: {source}")]
    Link { key: String, source: LinkError },
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// Whether a bucket's name belongs to snapshots.
pub(crate) fn is_snapshot_bucket(name: &str) -> bool {
    name.strip_prefix(BUCKET_PREFIX)
        .is_some_and(|rest| rest.starts_with(PENDING) || rest.parse::<Digest>().is_ok())
}

/// What is kept of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    v: u16,
    cid: String,
    bucket: String,
    prefix: String,
    objects: u64,
    bytes: u64,
    created_ms: u64,
}

impl Kept {
    fn row(self, name: String) -> SnapshotRow {
        SnapshotRow {
            name,
            read_bucket: format!("{BUCKET_PREFIX}{}", self.cid),
            cid: self.cid,
            bucket: self.bucket,
            prefix: self.prefix,
            objects: self.objects,
            bytes: self.bytes,
            created_ms: self.created_ms,
        }
    }
}

const KEPT_V: u16 = 1;

/// All snapshots by name.
pub(crate) async fn list(core: &Core) -> Result<Vec<SnapshotRow>, SnapshotError> {
    let rows = core.meta.settings(SETTING_PREFIX, None, SNAPSHOTS_MAX).await?;
    rows.into_iter()
        .map(|(setting, value)| {
            let kept = open(&core.meta, &setting, &value)?;
            Ok(kept.row(setting[SETTING_PREFIX.len()..].to_owned()))
        })
        .collect()
}

/// The snapshot of this name.
pub(crate) async fn find(core: &Core, name: &str) -> Result<Option<SnapshotRow>, SnapshotError> {
    check_name(name)?;
    let setting = format!("{SETTING_PREFIX}{name}");
    let Some(value) = core.meta.setting(&setting).await? else { return Ok(None) };
    Ok(Some(open(&core.meta, &setting, &value)?.row(name.to_owned())))
}

fn seal(meta: &Meta, setting: &str, kept: &Kept) -> Result<Vec<u8>, MetaError> {
    let mut value = serde_json::to_vec(kept).map_err(|_| MetaError::Corrupt { what: "snapshot" })?;
    let seal = meta.keys().seal(setting.as_bytes(), &value)?;
    value.extend_from_slice(&seal);
    Ok(value)
}

fn open(meta: &Meta, setting: &str, value: &[u8]) -> Result<Kept, MetaError> {
    let corrupt = MetaError::Corrupt { what: "snapshot" };
    let at = value.len().checked_sub(SEAL_LEN).ok_or(corrupt)?;
    let (body, found) = value.split_at(at);
    if !meta.keys().check_seal(setting.as_bytes(), body, found)? {
        return Err(MetaError::Forged { what: "snapshot" });
    }
    let kept: Kept = serde_json::from_slice(body).map_err(|_| MetaError::Corrupt { what: "snapshot" })?;
    if kept.v == KEPT_V { Ok(kept) } else { Err(MetaError::Corrupt { what: "snapshot" }) }
}

/// Makes a snapshot of what is under `prefix`.
///
/// # Cancel safety
/// Not cancel-safe: its caller spawns it. What a crash leaves behind is removed a day later.
pub(crate) async fn create(
    core: Arc<Core>,
    name: String,
    bucket: String,
    prefix: String,
) -> Result<SnapshotRow, SnapshotError> {
    check_name(&name)?;
    let _turn = TURN.lock().await;
    let setting = format!("{SETTING_PREFIX}{name}");
    if core.meta.setting(&setting).await?.is_some() {
        return Err(SnapshotError::Exists { name });
    }
    if core.meta.settings(SETTING_PREFIX, None, SNAPSHOTS_MAX).await?.len() >= SNAPSHOTS_MAX {
        return Err(SnapshotError::TooMany);
    }
    let source = core.meta.bucket(&bucket).await?;
    let source = source.ok_or_else(|| SnapshotError::NoSuchBucket { bucket: bucket.clone() })?;
    sweep(&core).await?;
    let pending = core.meta.create_bucket_like(&source, pending_name()?).await?;
    let linked = match link_all(&core.meta, &source, &prefix, &pending).await {
        Ok(linked) => linked,
        Err(error) => {
            purge(&core, &pending).await?;
            return Err(error);
        }
    };
    let cid = linked.root.cid.to_string();
    let read_bucket = format!("{BUCKET_PREFIX}{cid}");
    if core.meta.bucket(&read_bucket).await?.is_some() {
        // The same content was pinned before.
        purge(&core, &pending).await?;
    } else {
        core.meta.rename_bucket(&pending.name, &read_bucket).await?;
    }
    let created_ms = core.config.clock.now_ms();
    let kept =
        Kept { v: KEPT_V, cid, bucket, prefix, objects: linked.objects, bytes: linked.bytes, created_ms };
    let value = seal(&core.meta, &setting, &kept)?;
    if !core.meta.put_setting(&setting, None, Some(value)).await? {
        return Err(SnapshotError::Exists { name });
    }
    Ok(kept.row(name))
}

/// Removes a snapshot's name, and its links unless another name has the same content.
pub(crate) async fn remove(core: Arc<Core>, name: String) -> Result<(), SnapshotError> {
    let _turn = TURN.lock().await;
    let setting = format!("{SETTING_PREFIX}{name}");
    let Some(value) = core.meta.setting(&setting).await? else {
        return Err(SnapshotError::NotFound { name });
    };
    let kept = open(&core.meta, &setting, &value)?;
    if !core.meta.put_setting(&setting, Some(value), None).await? {
        return Err(SnapshotError::NotFound { name });
    }
    if list(&core).await?.iter().all(|other| other.cid != kept.cid)
        && let Some(bucket) = core.meta.bucket(&format!("{BUCKET_PREFIX}{}", kept.cid)).await?
    {
        purge(&core, &bucket).await?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), SnapshotError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(is_fine) {
        return Err(SnapshotError::Name { name: name.to_owned() });
    }
    Ok(())
}

fn pending_name() -> Result<String, MetaError> {
    let mut bytes = [0u8; 12];
    getrandom::fill(&mut bytes).map_err(|_| MetaError::Crypt(crate::crypt::CryptError::Random))?;
    Ok(format!("{BUCKET_PREFIX}{PENDING}{}", hex::encode(bytes)))
}

/// What was linked.
struct Linked {
    root: Link,
    objects: u64,
    bytes: u64,
}

async fn link_all(
    meta: &Arc<Meta>,
    source: &Bucket,
    prefix: &str,
    to: &Bucket,
) -> Result<Linked, SnapshotError> {
    let mut tree = TreeBuilder::new();
    let (mut objects, mut bytes, mut token) = (0, 0, None);
    loop {
        let query = ListQuery {
            prefix: prefix.to_owned(),
            delimiter: String::new(),
            start_after: String::new(),
            token: token.take(),
            max_keys: PAGE,
        };
        let page = meta.list_objects(source, &query).await?;
        let mut linked = stream::iter(page.objects)
            .map(|summary| link_one(meta, source, prefix, to, summary))
            .buffered(LINKS_IN_FLIGHT);
        while let Some(next) = linked.try_next().await? {
            let Some((key, size, link)) = next else { continue };
            if key.ends_with('/') && size == 0 {
                tree.directory(&key)?;
            } else {
                tree.file(&key, &link)?;
            }
            objects += 1;
            bytes += size;
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    if objects == 0 {
        return Err(SnapshotError::Empty { bucket: source.name.clone(), prefix: prefix.to_owned() });
    }
    Ok(Linked { root: tree.finish()?, objects, bytes })
}

/// Links one object under its key without the prefix; `None` when it was deleted meanwhile, or is the prefix itself.
async fn link_one(
    meta: &Arc<Meta>,
    source: &Bucket,
    prefix: &str,
    to: &Bucket,
    summary: ObjectSummary,
) -> Result<Option<(String, u64, Link)>, SnapshotError> {
    let key = summary.key;
    let short = key.strip_prefix(prefix).unwrap_or(&key).to_owned();
    if short.is_empty() {
        return Ok(None);
    }
    for _ in 0..LINK_ATTEMPTS {
        let Some(object) = meta.object(source, &key).await? else { return Ok(None) };
        match meta.link_object(&object, to, &short).await {
            Ok(link) => return Ok(Some((short, object.size, link))),
            Err(LinkError::Gone) => {}
            Err(source) => return Err(SnapshotError::Link { key, source }),
        }
    }
    Err(SnapshotError::Restless { key })
}

/// Removes a bucket of links with all that is in it.
async fn purge(core: &Core, bucket: &Bucket) -> Result<(), SnapshotError> {
    let meta = &core.meta;
    loop {
        let query = ListQuery {
            prefix: String::new(),
            delimiter: String::new(),
            start_after: String::new(),
            token: None,
            max_keys: PAGE,
        };
        let page = meta.list_objects(bucket, &query).await?;
        if page.objects.is_empty() {
            break;
        }
        stream::iter(page.objects.iter().map(Ok::<_, MetaError>))
            .try_for_each_concurrent(LINKS_IN_FLIGHT, |object| async {
                meta.delete_object(bucket, &object.key).await.map(drop)
            })
            .await?;
    }
    loop {
        let page = meta.list_uploads(bucket, "", "", ("", None), PAGE).await?;
        if page.uploads.is_empty() {
            break;
        }
        for upload in page.uploads {
            match meta.abort_upload(bucket, &upload.key, upload.id).await {
                Ok(()) | Err(crate::meta::UploadError::NoSuchUpload) => {}
                Err(error) => {
                    return Err(SnapshotError::Link { key: upload.key, source: error.into() });
                }
            }
        }
    }
    meta.delete_bucket(&bucket.name).await?;
    core.wake_deliveries();
    Ok(())
}

/// Removes what crashes left behind: buckets of links without a name.
async fn sweep(core: &Arc<Core>) -> Result<(), SnapshotError> {
    let named: Vec<String> = list(core).await?.into_iter().map(|row| row.read_bucket).collect();
    let now_ms = core.config.clock.now_ms();
    for bucket in core.meta.buckets().await? {
        let is_old = now_ms.saturating_sub(bucket.created_ms) > ABANDONED_MS;
        if is_snapshot_bucket(&bucket.name) && is_old && !named.contains(&bucket.name) {
            tracing::info!(bucket = bucket.name, "removing a snapshot that was never finished");
            purge(core, &bucket).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_snapshot_buckets_are_told_from_others() {
        let cid = Digest::of(b"x").cid(holdfast_protocol::digest::CODEC_DAG_PB);
        assert!(is_snapshot_bucket(&format!("cid-{cid}")));
        assert_eq!(format!("cid-{cid}").len(), 63, "as long as a bucket's name may be");
        assert!(is_snapshot_bucket("cid-pending-00"));
        for other in ["cid-", "cid-data", "data", "cid-bafy", &cid.to_string()] {
            assert!(!is_snapshot_bucket(other), "{other}");
        }
    }

    #[test]
    fn names_are_plain() {
        assert!(check_name("run-42_v1.0").is_ok());
        for name in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
