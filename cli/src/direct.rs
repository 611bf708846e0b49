//! `get --direct` and `cat --direct`: objects straight from the nodes, verified here; and transcripts of what was read.
//!
//! The gateway is asked for a ticket (blocks, places, keys, a grant for the key that this process draws for itself)
//! and for nothing else, unless the nodes do not give a block. What it says is checked: the blocks of an object must
//! make its root CID, and `--cid` says which that must be.

use std::io::Write;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_gateway::unixfs::RootBuilder;
use holdfast_protocol::time::SystemClock;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{NodeId, SigningKey};
use holdfast_retrieval::cache::{BlockCache, CacheConfig, DiskConfig};
use holdfast_retrieval::direct::{
    DirectClient, DirectConfig, DirectObject, ReadTicket, TicketFailure, Tickets,
};
use holdfast_retrieval::fetch::ReadObserver;
use holdfast_retrieval::object::{AheadBudget, AheadConfig, ObjectReader, ObjectSource};
use holdfast_retrieval::pool::{NodePool, PoolConfig};
use holdfast_retrieval::transcript::{Recorder, verify_transcript};
use indicatif::ProgressBar;
use tokio::io::AsyncWriteExt;

use crate::args::{DirectArgs, TranscriptVerifyArgs};
use crate::client::S3;
use crate::network::Access;
use crate::objects::Transferred;
use crate::output::Output;
use crate::periods::Period;

/// Bytes that all objects of one command may hold ahead of their readers.
const AHEAD_BYTES: usize = 128 << 20;
/// Blocks kept in memory; the rest of a cache is on the disk.
const MEMORY_BYTES: usize = 64 << 20;
/// When the check of a transcript gives up; it reads no block.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// What is asked of a reader at once.
const READ_LEN: usize = 1 << 20;

/// A connection of this process to the nodes.
pub(crate) struct Direct {
    s3: S3,
    holder: NodeId,
    transport: Arc<dyn Transport>,
    client: Arc<DirectClient>,
    budget: AheadBudget,
    recorder: Option<Arc<Recorder>>,
    cid: Option<String>,
}

impl Direct {
    /// Starts, if the options ask for it.
    pub(crate) async fn start(args: &DirectArgs, s3: &S3) -> Result<Option<Arc<Self>>> {
        if !args.direct {
            return Ok(None);
        }
        let key = Arc::new(SigningKey::generate()?);
        let holder = NodeId(key.public());
        let transport =
            QuicTransport::bind(QuicConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)), Arc::clone(&key)))
                .context("cannot open a QUIC socket")?;
        let transport: Arc<dyn Transport> = transport;
        let software = concat!("holdfast-client/", env!("CARGO_PKG_VERSION"));
        let pool = NodePool::new(PoolConfig::new(Arc::clone(&transport), software, Arc::new(SystemClock)));
        let recorder = match &args.transcript {
            Some(path) => Some(Recorder::create(path, &args.label, key, Arc::new(SystemClock))?),
            None => None,
        };
        let observer = recorder.clone().map(|recorder| recorder as Arc<dyn ReadObserver>);
        let cache = open_cache(args).await?;
        let deadline = args.give_up_after.0;
        let config = DirectConfig { deadline, cache, observer, ..DirectConfig::default() };
        let client = DirectClient::new(pool, config);
        let (s3, cid) = (s3.clone(), args.cid.clone());
        let budget = AheadBudget::new(AHEAD_BYTES);
        Ok(Some(Arc::new(Self { s3, holder, transport, client, budget, recorder, cid })))
    }

    /// Opens an object and checks that its blocks make its root CID, which is returned.
    pub(crate) async fn open(&self, bucket: &str, key: &str) -> Result<(Arc<DirectObject>, String)> {
        let tickets = GatewayTickets {
            s3: self.s3.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            holder: self.holder,
        };
        let object = Arc::new(DirectObject::open(Arc::clone(&self.client), Arc::new(tickets)).await?);
        let mut root = RootBuilder::new();
        for block in object.blocks(0..object.size()).await? {
            root.push(block.digest, block.len);
        }
        let root = root.finish();
        ensure!(
            root.to_bytes() == object.root_cid(),
            "the gateway's list of blocks of {bucket}/{key} does not make the root CID that it names"
        );
        let root = root.to_string();
        if let Some(wanted) = self.cid.as_ref().filter(|wanted| **wanted != root) {
            bail!("{bucket}/{key} is {root} now, not {wanted}");
        }
        Ok((object, root))
    }

    /// Hands an object's bytes to `sink`, in order; returns how many and its root CID.
    pub(crate) async fn stream(
        &self,
        bucket: &str,
        key: &str,
        mut sink: impl AsyncFnMut(Bytes) -> Result<()>,
    ) -> Result<(u64, String)> {
        let (object, root) = self.open(bucket, key).await?;
        let reader = ObjectReader::new(object, self.budget.clone(), AheadConfig::default());
        let mut at = 0;
        while at < reader.size() {
            let bytes = reader.read(at, READ_LEN).await?;
            at += bytes.len() as u64;
            sink(bytes).await?;
        }
        Ok((at, root))
    }

    /// Writes an object to a file that is whole under its name or not there.
    pub(crate) async fn download(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        bar: &ProgressBar,
    ) -> Result<Transferred> {
        let (mut file, partial) = crate::objects::partial_file(path).await?;
        let (bytes, cid) = self
            .stream(bucket, key, async |bytes| {
                bar.inc(bytes.len() as u64);
                file.write_all(&bytes).await.with_context(|| format!("cannot write {}", partial.display()))
            })
            .await?;
        crate::objects::complete_file(file, &partial, path).await?;
        Ok(Transferred { key: key.to_owned(), bytes, cid: Some(cid), resumed_bytes: 0 })
    }

    /// The cache of verified blocks, if there is one.
    pub(crate) fn cache(&self) -> Option<&Arc<BlockCache>> {
        self.client.cache()
    }

    /// Ends the transcript and the connections.
    pub(crate) async fn finish(&self, output: Output) -> Result<()> {
        if let Some(cache) = self.client.cache() {
            cache.flush().await;
        }
        self.transport.close().await;
        if let Some(recorder) = &self.recorder {
            let summary = recorder.finish()?;
            output.say(format!(
                "transcript: {} reads, {} bytes, {} bytes long, signed by {}",
                summary.reads, summary.bytes, summary.file_bytes, self.holder
            ));
        }
        Ok(())
    }
}

async fn open_cache(args: &DirectArgs) -> Result<Option<Arc<BlockCache>>> {
    let Some(dir) = &args.cache else { return Ok(None) };
    let disk = Some(DiskConfig { dir: dir.clone(), bytes: args.cache_size.0 });
    let config = CacheConfig { memory_bytes: MEMORY_BYTES, disk, ..CacheConfig::default() };
    Ok(Some(BlockCache::open(config).await?))
}

/// Tickets for one object from a gateway's S3 side.
struct GatewayTickets {
    s3: S3,
    bucket: String,
    key: String,
    holder: NodeId,
}

#[async_trait]
impl Tickets for GatewayTickets {
    async fn page(&self, offset: u64, version: Option<&[u8]>) -> Result<ReadTicket, TicketFailure> {
        let version = version.map(hex::encode);
        let asked = self.s3.ticket((&self.bucket, &self.key), self.holder, offset, version.as_deref());
        let bytes = asked.await.map_err(|error| failure(&error))?;
        ReadTicket::decode(&bytes)
            .map_err(|error| TicketFailure { message: error.to_string(), retryable: false })
    }

    async fn plaintext(&self, range: Range<u64>, _version: &[u8]) -> Option<Result<Bytes, TicketFailure>> {
        Some(self.s3.range((&self.bucket, &self.key), range).await.map_err(|error| failure(&error)))
    }
}

fn failure(error: &anyhow::Error) -> TicketFailure {
    TicketFailure { message: format!("{error:#}"), retryable: true }
}

/// `holdfast transcript verify`.
pub(crate) async fn verify(args: &TranscriptVerifyArgs, output: Output) -> Result<ExitCode> {
    let found = verify_transcript(&args.file, |_, _, _| {})?;
    let mut foreign = None;
    if let Some(target) = &args.against {
        let s3 = S3::new(Access::resolve(&args.network)?);
        let mut blocks = found.blocks.clone();
        let direct =
            DirectArgs { direct: true, give_up_after: Period(GIVE_UP_AFTER), ..DirectArgs::default() };
        let direct = Direct::start(&direct, &s3).await?.context("direct reads were asked for")?;
        let (bucket, key) = crate::objects::split(target)?;
        let keys = if key.is_empty() || key.ends_with('/') {
            s3.list_all(bucket, key).await?.into_iter().map(|object| object.key).collect()
        } else {
            vec![key.to_owned()]
        };
        for key in keys {
            let (object, _) = direct.open(bucket, &key).await?;
            for block in object.blocks(0..object.size()).await? {
                blocks.remove(&block.digest);
            }
        }
        foreign = Some(blocks.len());
    }
    let holds = found.is_complete && foreign.unwrap_or(0) == 0;
    output.value(&serde_json::json!({
        "run": found.run.to_string(),
        "label": found.label,
        "signer": found.signer.to_string(),
        "from_ms": found.from_ms,
        "to_ms": found.to_ms,
        "records": found.summary.records,
        "reads": found.summary.reads,
        "bytes": found.summary.bytes,
        "blocks": found.blocks.len(),
        "nodes": found.nodes.len(),
        "complete": found.is_complete,
        "foreign_blocks": foreign,
        "holds": holds,
    }));
    output.say(format!(
        "run {} ({}), signed by {}: {} reads of {} blocks, {} bytes, from {} nodes; every signature holds",
        found.run,
        found.label,
        found.signer,
        found.summary.reads,
        found.blocks.len(),
        found.summary.bytes,
        found.nodes.len()
    ));
    if !found.is_complete {
        output.say("the transcript has no end: the run was cut off, or the file was");
    }
    match foreign {
        Some(0) => output.say("every block served is a block of the objects named"),
        Some(count) => output.say(format!("{count} blocks served are none of the objects named")),
        None => {}
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Streams an object to standard output.
pub(crate) async fn cat(direct: &Direct, bucket: &str, key: &str) -> Result<()> {
    direct
        .stream(bucket, key, async |bytes| {
            std::io::stdout().write_all(&bytes).context("cannot write to standard output")
        })
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        direct: DirectArgs,
    }

    /// Parts of the program make these options themselves. With a deadline of zero, as a derived default had it, no
    /// read ever ended well, and a mount tried each again until its own patience was over.
    #[test]
    fn options_that_were_not_given_are_those_of_an_empty_command_line() {
        let parsed = Line::try_parse_from(["x"]).expect("no option is required").direct;
        let default = DirectArgs::default();
        assert_eq!(default.give_up_after, parsed.give_up_after);
        assert_eq!(default.cache_size, parsed.cache_size);
        assert_eq!(
            (default.direct, default.cache, default.label),
            (parsed.direct, parsed.cache, parsed.label)
        );
    }
}
