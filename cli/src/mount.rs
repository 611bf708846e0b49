//! `holdfast mount`: a bucket, a prefix, or a snapshot as a directory. What it means is in `docs/MOUNT.md`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use holdfast_retrieval::mount::fuse::{FuseOptions, Mounted};
use holdfast_retrieval::mount::{
    Backend, BackendError, FileSystem, Finished, Leftover, ListRequest, MountConfig, Patience,
};
use tokio_util::sync::CancellationToken;

use crate::args::{DirectArgs, MountArgs};
use crate::client::S3;
use crate::direct::Direct;
use crate::network::Access;
use crate::output::Output;
use crate::periods::Period;
use crate::signals;

mod buffers;
mod dead;
mod direct;
mod gateway;
mod order;
mod ranges;

use direct::DirectBackend;
use gateway::GatewayBackend;

/// Snapshots are read as buckets of this name and their CID.
pub(crate) const SNAPSHOT_BUCKET_PREFIX: &str = "cid-";
/// How long open files may hold up the end after a signal. Then the mount goes, and they get ENOTCONN.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// When a block that no node gives is given up, before it is tried anew: sooner than the mount's own patience with
/// one attempt, so that it is known which block it was.
const BLOCK_PATIENCE: Duration = Duration::from_secs(15);

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    bucket: String,
    prefix: String,
    is_snapshot: bool,
}

impl Target {
    fn parse(text: &str) -> Result<Self> {
        let text = text.strip_prefix("s3://").unwrap_or(text);
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        let is_cid = first.parse::<holdfast_protocol::Digest>().is_ok();
        let bucket = if is_cid { format!("{SNAPSHOT_BUCKET_PREFIX}{first}") } else { first.to_owned() };
        if bucket.is_empty() {
            bail!("`{text}` names nothing to mount; write BUCKET, BUCKET/PREFIX or a snapshot's CID");
        }
        let is_snapshot = is_snapshot_bucket(&bucket);
        let rest = rest.trim_end_matches('/');
        let prefix = if rest.is_empty() { String::new() } else { format!("{rest}/") };
        Ok(Self { bucket, prefix, is_snapshot })
    }
}

/// Whether a bucket is a snapshot: `cid-` and a CID.
pub(crate) fn is_snapshot_bucket(bucket: &str) -> bool {
    bucket
        .strip_prefix(SNAPSHOT_BUCKET_PREFIX)
        .is_some_and(|cid| cid.parse::<holdfast_protocol::Digest>().is_ok())
}

/// `holdfast mount`.
pub(crate) async fn run(args: MountArgs, output: Output) -> Result<ExitCode> {
    let target = Target::parse(&args.target)?;
    let access = Access::resolve(&args.network)?;
    dead::clear(&args.dir, output).await?;
    let dir = std::fs::canonicalize(&args.dir)
        .with_context(|| format!("cannot mount on {}; it must be a directory", args.dir.display()))?;
    let owner = std::fs::metadata(&dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    if !owner.is_dir() {
        bail!("{} is not a directory", dir.display());
    }
    let gateway = Arc::new(GatewayBackend::new(&access, &target.bucket)?);
    check_target(&gateway, &target, args.timeout.0).await?;
    let (staging, _lock) = staging(&args, &access, &target, &dir)?;
    let read_only = args.read_only || target.is_snapshot;
    let config = MountConfig {
        prefix: target.prefix.clone(),
        read_only,
        immutable: target.is_snapshot,
        ttl: Duration::from_millis(args.metadata_ttl_ms),
        staging,
        memory_bytes: args.memory.0.max(32 << 20),
        patience: args.timeout.0,
    };
    let straight = straight(&args, access).await?;
    let following = CancellationToken::new();
    let _stopped = following.clone().drop_guard();
    let backend = backend(&args, &target, gateway, straight.as_ref(), following);
    let (files, leftovers) =
        FileSystem::new(config, backend).context("the staging directory cannot be used")?;
    tell_leftovers(&leftovers, output);
    let options = FuseOptions {
        source: format!("holdfast:{}", args.target),
        allow_other: args.allow_other,
        uid: args.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: args.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
    };
    let mounted = Mounted::new(Arc::clone(&files), &dir, &options).map_err(explain_fuse)?;
    let stop = signals::stop_token(args.stop_on_stdin_eof)?;
    let (mounted, far) = raise_read_ahead(mounted).await?;
    output.value(&serde_json::json!({
        "event": "ready", "dir": dir, "bucket": target.bucket, "prefix": target.prefix,
        "read_only": read_only, "pid": std::process::id(), "reads_far_ahead": far,
    }));
    let mode = if read_only { "read-only" } else { "read-write" };
    output.say(format!("{} is mounted on {}, {mode}; Ctrl-C unmounts", args.target, dir.display()));
    let code = serve(&files, mounted, &dir, stop, output).await?;
    if let Some(direct) = straight {
        direct.finish(output).await?;
    }
    Ok(code)
}

/// The way to the nodes, if an option asks for it.
async fn straight(args: &MountArgs, access: Access) -> Result<Option<Arc<Direct>>> {
    let options = DirectArgs {
        direct: args.direct || args.cache.is_some() || args.transcript.is_some(),
        cache: args.cache.clone(),
        cache_size: args.cache_size,
        give_up_after: Period(args.timeout.0.min(BLOCK_PATIENCE)),
        transcript: args.transcript.clone(),
        label: args.label.clone(),
        ..DirectArgs::default()
    };
    Direct::start(&options, &S3::new(access)).await
}

/// Where bytes come from.
fn backend(
    args: &MountArgs,
    target: &Target,
    gateway: Arc<GatewayBackend>,
    straight: Option<&Arc<Direct>>,
    following: CancellationToken,
) -> Arc<dyn Backend> {
    let Some(direct) = straight else { return gateway };
    let backend = Arc::new(DirectBackend::new(gateway, Arc::clone(direct), &target.bucket));
    if let (Some(order), Some(cache)) = (&args.order, direct.cache()) {
        let (backend, cache) = (Arc::clone(&backend), Arc::clone(cache));
        tokio::spawn(order::follow(order.clone(), target.prefix.clone(), backend, cache, following));
    }
    backend
}

/// A bucket that is not there is said before anything is mounted.
async fn check_target(backend: &GatewayBackend, target: &Target, limit: Duration) -> Result<()> {
    let request = || ListRequest { prefix: &target.prefix, one_level: false, after: None, max: 1 };
    match Patience::new(limit).run(|_| backend.list(request())).await {
        Ok(page) if target.is_snapshot && page.objects.is_empty() && !target.prefix.is_empty() => {
            bail!("the snapshot has nothing under {}", target.prefix)
        }
        Ok(_) => Ok(()),
        Err(BackendError::NotFound { .. }) if target.is_snapshot => {
            bail!("this gateway has no snapshot {}; see `holdfast snapshot list`", target.bucket)
        }
        Err(BackendError::NotFound { .. }) => {
            bail!("there is no bucket {}; `holdfast put` and any S3 client create one", target.bucket)
        }
        Err(error) => Err(error).with_context(|| format!("cannot list {}", target.bucket)),
    }
}

/// The staging directory of this mount, and the lock that keeps a second one out of it.
fn staging(
    args: &MountArgs,
    access: &Access,
    target: &Target,
    dir: &Path,
) -> Result<(PathBuf, std::fs::File)> {
    let path = args.staging.clone().unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/var/tmp".into())).join(".cache"),
            PathBuf::from,
        );
        let identity = format!("{}\n{}\n{}\n{}", access.s3, target.bucket, target.prefix, dir.display());
        let name = blake3::hash(identity.as_bytes()).to_hex();
        cache.join("holdfast").join(format!("mount-{}", &name[..16]))
    });
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let lock_path = path.join("lock");
    let lock = std::fs::File::create(&lock_path)
        .with_context(|| format!("cannot create {}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok((path, lock)),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another mount uses {}; give this one its own with --staging", path.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", lock_path.display()))
        }
    }
}

fn tell_leftovers(leftovers: &[Leftover], output: Output) {
    for left in leftovers {
        output.value(&serde_json::json!({ "event": "leftover", "key": left.key, "path": left.path }));
        output.say(format!(
            "an earlier mount could not upload {}; what was written is in {}",
            left.key,
            left.path.display()
        ));
    }
}

fn explain_fuse(error: std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "FUSE is not available here: /dev/fuse or fusermount3 is missing (Debian: apt install fuse3)"
        }
        std::io::ErrorKind::PermissionDenied => {
            "mounting was refused; --allow-other needs `user_allow_other` in /etc/fuse.conf, containers need /dev/fuse"
        }
        _ => "cannot mount",
    };
    anyhow::Error::new(error).context(hint)
}

/// Far read-ahead takes root; without it the kernel's own 128 KiB stays.
async fn raise_read_ahead(mounted: Mounted) -> Result<(Mounted, bool)> {
    // It looks at the mount, which we serve: never from a thread that the mount needs.
    tokio::task::spawn_blocking(move || {
        let raised = mounted.raise_read_ahead();
        if let Err(error) = &raised {
            tracing::info!(%error, "the kernel's read-ahead stays short");
        }
        (mounted, raised.is_ok())
    })
    .await
    .context("the mount could not be set up")
}

/// Serves until somebody unmounts or a signal comes; then everything dirty is uploaded.
async fn serve(
    files: &Arc<FileSystem>,
    mounted: Mounted,
    dir: &Path,
    stop: tokio_util::sync::CancellationToken,
    output: Output,
) -> Result<ExitCode> {
    let mut poll = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = poll.tick() => if mounted.is_over() { break },
        }
    }
    let mut uploaded = files.finish().await.uploaded;
    output.value(&serde_json::json!({ "event": "unmounting" }));
    if !mounted.is_over() {
        dead::detach(dir).await?;
        let until = Instant::now() + GRACE;
        while !mounted.is_over() && Instant::now() < until {
            poll.tick().await;
        }
    }
    if mounted.is_over() {
        mounted.join().context("the mount ended with an error")?;
    } else {
        // Files are still open: dropping it aborts the connection, which ends their waiting.
        tracing::warn!("files were still open at the end of the mount");
        std::mem::forget(mounted);
    }
    let finished = files.finish().await;
    uploaded += finished.uploaded;
    tell_end(&finished, uploaded, output);
    Ok(if finished.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell_end(finished: &Finished, uploaded: usize, output: Output) {
    let failed: Vec<_> = finished
        .failed
        .iter()
        .map(|(key, error)| serde_json::json!({ "key": key, "error": error.to_string() }))
        .collect();
    output.value(
        &serde_json::json!({ "event": "unmounted", "uploaded_at_the_end": uploaded, "failed": failed }),
    );
    for (key, error) in &finished.failed {
        output.say(format!("{key} was not uploaded: {error}; its bytes stay in the staging directory"));
    }
    output.say("unmounted");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_buckets_prefixes_and_cids() -> Result<()> {
        let target = |bucket: &str, prefix: &str, is_snapshot| Target {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            is_snapshot,
        };
        assert_eq!(Target::parse("data")?, target("data", "", false));
        assert_eq!(Target::parse("s3://data/v1/train/")?, target("data", "v1/train/", false));
        let cid =
            holdfast_protocol::Digest::of(b"x").cid(holdfast_protocol::digest::CODEC_DAG_PB).to_string();
        assert_eq!(Target::parse(&cid)?, target(&format!("cid-{cid}"), "", true));
        assert_eq!(Target::parse(&format!("{cid}/a"))?, target(&format!("cid-{cid}"), "a/", true));
        assert!(Target::parse("/x").is_err());
        Ok(())
    }
}
