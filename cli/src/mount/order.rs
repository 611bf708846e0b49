//! The order of an epoch, from a file: which blocks will be read when, told to the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use holdfast_retrieval::cache::{BlockCache, EPOCH_ORDER_MAX};
use holdfast_retrieval::mount::BackendError;
use tokio_util::sync::CancellationToken;

use super::direct::DirectBackend;

/// How often it is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Files whose blocks are asked for at once.
const ASKED_AT_ONCE: usize = 8;
/// The longest file of an order: a million names of 64 bytes.
const ORDER_LEN_MAX: u64 = 64 << 20;

/// Follows the order in `path` until `stop`, and each that replaces it.
pub(super) async fn follow(
    path: PathBuf,
    prefix: String,
    backend: Arc<DirectBackend>,
    cache: Arc<BlockCache>,
    stop: CancellationToken,
) {
    let mut seen = None;
    while !stop.is_cancelled() {
        match written(&path) {
            Ok(at) if seen != Some(at) => {
                seen = Some(at);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = follow_once(&path, &prefix, &backend, &cache) => {}
                }
            }
            Ok(_) => {}
            Err(error) => {
                if seen.take().is_some() {
                    tracing::warn!(%error, path = %path.display(), "the order cannot be read any more");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn written(path: &Path) -> std::io::Result<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len()))
}

async fn follow_once(path: &Path, prefix: &str, backend: &Arc<DirectBackend>, cache: &BlockCache) {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the order cannot be read");
            return;
        }
    };
    let names = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(EPOCH_ORDER_MAX);
    let keys: Vec<String> = names.map(|name| format!("{prefix}{}", name.trim_start_matches('/'))).collect();
    let asked = stream::iter(keys)
        .map(|key| async move {
            match backend.blocks(&key).await {
                // A name that leads nowhere will not be read.
                Err(BackendError::NotFound { .. }) => Ok((Vec::new(), 1)),
                Err(error) => Err(error),
                Ok(blocks) => Ok((blocks, 0)),
            }
        })
        .buffered(ASKED_AT_ONCE);
    let gathered = asked.try_fold((Vec::new(), 0), |(mut order, missing), (blocks, more)| async move {
        order.extend(blocks);
        Ok((order, missing + more))
    });
    match gathered.await {
        Ok((order, missing)) => {
            tracing::info!(blocks = order.len(), missing, path = %path.display(), "the cache follows an order");
            cache.follow(order);
        }
        Err(error) => tracing::warn!(%error, path = %path.display(), "the order is not followed"),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > ORDER_LEN_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "an order has at most 64 MiB"));
    }
    std::fs::read_to_string(path)
}
