//! Co-signing: an auditor's word that another's log only ever grows.
//!
//! The last checkpoint that was cosigned of each log is kept, with the cosignature, in `cosigned/<origin hash>`; the
//! next one is cosigned only when its tiles prove that it extends that one. A log that was rolled back or forked
//! is never cosigned again until somebody looks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use holdfast_proofs::log::{
    SignedCheckpoint, TILE_WIDTH, check_extension, cosign as add_signature, tile_path,
};
use holdfast_protocol::SigningKey;
use holdfast_protocol::time::{Clock, SystemClock};

use super::logdir::{CHECKPOINT, LogSource};
use crate::network::write_private;

/// Cosigns the newest state of a log, as `name`.
pub(super) async fn cosign(source: &LogSource, dir: &Path, name: &str, key: &Arc<SigningKey>) -> Result<()> {
    let note = source.read(CHECKPOINT).await?.context("there is no checkpoint")?;
    let note = String::from_utf8(note).context("the checkpoint is not text")?;
    let checkpoint = SignedCheckpoint::parse(&note)?;
    let signer = opening_key(source, checkpoint.size).await?;
    checkpoint.verify(&signer).context("the checkpoint is not signed by the log's auditor")?;
    std::fs::create_dir_all(dir)?;
    let path = dir.join(&blake3::hash(checkpoint.origin.as_bytes()).to_hex()[..32]);
    if let Ok(known) = std::fs::read_to_string(&path) {
        let known = SignedCheckpoint::parse(&known)?;
        if (known.size, known.root) == (checkpoint.size, checkpoint.root) {
            return Ok(());
        }
        let files = tiles(source, checkpoint.size).await?;
        let (old, new) = ((known.size, known.root), (checkpoint.size, checkpoint.root));
        check_extension(old, new, &|path| files.get(path).cloned())
            .with_context(|| format!("the log {} does not extend what we cosigned", checkpoint.origin))?;
    }
    let cosigned =
        add_signature(&note, name, key, SystemClock.now_ms()).context("the checkpoint is no note")?;
    write_private(&path, cosigned.as_bytes())
}

/// The key that the log's first entry names.
async fn opening_key(source: &LogSource, size: u64) -> Result<holdfast_protocol::PublicKey> {
    let width = usize::try_from(size)?.min(TILE_WIDTH);
    let bundle = source.tile("entries", 0, width).await?.context("the log has no entries")?;
    let entries =
        holdfast_proofs::log::bundle_entries(&bundle).context("the log's first bundle is damaged")?;
    let first = entries.first().context("the log has no entries")?;
    match holdfast_proofs::log::LogEntry::decode(first)? {
        holdfast_proofs::log::LogEntry::Opened(opening) => Ok(opening.verify()?.into_record().auditor.key()),
        _ => bail!("the log does not begin with its opening"),
    }
}

/// Every hash tile of a log of `size`: 8 KiB for 256 entries, so 8 MB for a quarter of a million.
async fn tiles(source: &LogSource, size: u64) -> Result<HashMap<String, Vec<u8>>> {
    let mut files = HashMap::new();
    let (mut hashes, mut level) = (size, 0);
    while hashes > 0 {
        for index in 0..hashes.div_ceil(TILE_WIDTH as u64) {
            let left = usize::try_from(hashes - index * TILE_WIDTH as u64)?.min(TILE_WIDTH);
            let name = level.to_string();
            if let Some(bytes) = source.tile(&name, index, left).await? {
                files.insert(tile_path(&name, index, left), bytes);
            }
        }
        hashes /= TILE_WIDTH as u64;
        level += 1;
    }
    Ok(files)
}
