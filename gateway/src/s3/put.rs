//! From a request body to stored blocks: fixed blocks, checksums on the way, enciphered in place, written in stripes.
//!
//! Nothing here is visible to readers; the caller commits what [`receive`] returns. A body that ends early, a checksum
//! that does not hold or a write that finds too few nodes leaves only provisional blocks, which lapse.

use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, StreamExt};
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::record::Policy;
use http::HeaderMap;
use http::header::EXPECT;
use s3s::dto::StreamingBlob;
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::checksum::{Algorithm, Announced, Hashers};
use super::error;
use crate::crypt::{PartCipher, PartSecret};
use crate::gateway::Core;
use crate::gateway::buffers::{Buffer, Lease};
use crate::gateway::plane::PlaneWriter;
use crate::layout::Entry;
use crate::meta::{Bucket, Stored};
use crate::unixfs::RootBuilder;

const BLOCK_BYTES: u64 = BLOCK_LEN_MAX as u64;
/// S3's limit for one PUT or part.
pub(crate) const PUT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// After an early error we read on this much, so that the client gets to see the answer instead of a reset.
const DRAIN_BYTES_MAX: u64 = 16 * 1024 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// Any failure of a body stream.
pub(crate) type BodyStreamError = Box<dyn std::error::Error + Send + Sync>;

/// A body that was stored and is to be committed.
pub(crate) struct Received {
    /// For the metadata.
    pub(crate) stored: Stored,
    /// Over its blocks.
    pub(crate) root_cid: Cid,
    /// Checksums to keep.
    pub(crate) checksums: Vec<(String, String)>,
}

/// What a request says of its body.
pub(crate) struct BodyFacts<'a> {
    /// Bytes promised.
    pub(crate) content_length: Option<i64>,
    /// The request's headers, for checksums.
    pub(crate) headers: &'a HeaderMap,
    /// Where trailers will be, once the body has been read.
    pub(crate) trailers: Option<TrailingHeaders>,
    /// The checksum to keep whether or not the client sends it.
    pub(crate) kept: Option<Algorithm>,
}

/// Stores a request's body.
pub(crate) async fn receive(
    core: &Core,
    bucket: &Bucket,
    body: Option<StreamingBlob>,
    facts: BodyFacts<'_>,
) -> S3Result<Received> {
    let size = body_size(facts.content_length, facts.headers, body.is_some())?;
    let hashers = Announced::from_headers(facts.headers)?.hashers(facts.kept);
    let policy = error::policy_of(bucket)?;
    // Before the first byte is asked for: a client that waits for "100 Continue" then keeps its body.
    let writable = core.plane.writable(&policy).map_err(error::not_writable);
    let Some(mut body) = body else {
        writable?;
        return store(core, bucket, futures::stream::empty(), size, hashers, None).await;
    };
    let result = match writable {
        Ok(()) => store(core, bucket, &mut body, size, hashers, facts.trailers).await,
        Err(error) if facts.headers.contains_key(EXPECT) => return Err(error),
        Err(error) => Err(error),
    };
    if result.is_err() {
        drain(&mut body).await;
    }
    result
}

/// [`store_all`] within the time that the blocks are sure to be kept: a node may let an uncommitted block go when
/// its lease ends, and the first block's lease began with the upload.
pub(crate) async fn store<S>(
    core: &Core,
    bucket: &Bucket,
    body: S,
    size: u64,
    hashers: Hashers,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Received>
where
    S: Stream<Item = Result<Bytes, BodyStreamError>> + Unpin,
{
    let within = core.config.timing.lease / 6 * 5;
    let storing = store_all(core, bucket, body, size, hashers, trailers);
    tokio::time::timeout(within, storing).await.unwrap_or_else(|_| {
        Err(s3_error!(
            RequestTimeout,
            "The upload took longer than {} minutes; upload large objects in parts",
            within.as_secs() / 60
        ))
    })
}

/// Stores `size` bytes of `body`.
async fn store_all<S>(
    core: &Core,
    bucket: &Bucket,
    mut body: S,
    size: u64,
    mut hashers: Hashers,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Received>
where
    S: Stream<Item = Result<Bytes, BodyStreamError>> + Unpin,
{
    let mut blocks = BlockWriter::new(core, bucket, size)?;
    let mut received = 0u64;
    while let Some(frame) = body.next().await {
        let frame = frame.map_err(|source| error::body(source.as_ref()))?;
        received = received.saturating_add(frame.len() as u64);
        if received > size {
            return Err(s3_error!(
                InvalidRequest,
                "The body is longer than the {size} bytes that were announced"
            ));
        }
        hashers.update(&frame);
        blocks.write(frame).await?;
    }
    if received < size {
        return Err(s3_error!(
            IncompleteBody,
            "The body ended after {received} of the {size} bytes that were announced"
        ));
    }
    let trailers = trailers.and_then(|trailers| trailers.take());
    // Checked while the last block is still here: a small object with a wrong checksum never leaves the gateway.
    let checksums = hashers.finish(trailers.as_ref())?;
    let (stored, root_cid) = blocks.finish().await?;
    Ok(Received { stored, root_cid, checksums })
}

/// Bytes of the object that the client announced. Over TLS clients send aws-chunked bodies without a Content-Length
/// and say the length of what is inside the chunks.
fn body_size(content_length: Option<i64>, headers: &HeaderMap, has_body: bool) -> S3Result<u64> {
    let decoded = headers.get("x-amz-decoded-content-length").filter(|_| content_length.is_none());
    let length = match decoded {
        None => content_length,
        Some(text) => Some(text.to_str().ok().and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1)),
    };
    let Some(length) = length else {
        if has_body {
            return Err(s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."));
        }
        return Ok(0);
    };
    let size = u64::try_from(length)
        .map_err(|_| s3_error!(InvalidRequest, "The announced length is not a number of bytes"))?;
    if size > PUT_BYTES_MAX {
        return Err(s3_error!(EntityTooLarge, "One PUT takes at most 5 GiB; upload larger objects in parts"));
    }
    Ok(size)
}

/// Reads on for a while, so that the client has sent its body when the answer arrives.
async fn drain(body: &mut StreamingBlob) {
    let read_on = async {
        let mut drained = 0u64;
        while let Some(Ok(frame)) = body.next().await {
            drained = drained.saturating_add(frame.len() as u64);
            if drained > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    // Past the deadline the client meets a closed connection, which is all we owe it.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, read_on).await;
}

/// Cuts a body into blocks and hands them on.
struct BlockWriter<'a> {
    core: &'a Core,
    policy: Policy,
    writer: Box<dyn PlaneWriter>,
    cipher: Option<PartCipher>,
    secret: Option<PartSecret>,
    /// Bytes of the body that no buffer was made for yet.
    unbuffered: u64,
    size: u64,
    /// Bytes enciphered.
    offset: u64,
    lease: Option<Lease>,
    /// Blocks that the lease still covers.
    leased_blocks: usize,
    buffer: Option<Buffer>,
}

impl<'a> BlockWriter<'a> {
    fn new(core: &'a Core, bucket: &Bucket, size: u64) -> S3Result<Self> {
        let policy = error::policy_of(bucket)?;
        let (secret, scope) = if bucket.public {
            (None, None)
        } else {
            (Some(PartSecret::fresh().map_err(error::crypt)?), Some(bucket.scope))
        };
        Ok(Self {
            core,
            policy,
            writer: core.plane.begin(policy, scope, size),
            cipher: secret.as_ref().map(PartSecret::cipher).transpose().map_err(error::crypt)?,
            secret,
            unbuffered: size,
            size,
            offset: 0,
            lease: None,
            leased_blocks: 0,
            buffer: None,
        })
    }

    async fn write(&mut self, frame: Bytes) -> S3Result<()> {
        let mut rest = &frame[..];
        while !rest.is_empty() {
            if self.buffer.as_ref().is_some_and(Buffer::is_full) {
                self.push().await?;
            }
            let buffer = match &mut self.buffer {
                Some(buffer) => buffer,
                None => {
                    let fresh = self.next_buffer().await;
                    self.buffer.insert(fresh)
                }
            };
            rest = &rest[buffer.fill(rest)..];
        }
        Ok(())
    }

    /// A buffer for the next block, under a lease for the whole of its stripe.
    async fn next_buffer(&mut self) -> Buffer {
        let len = self.unbuffered.min(BLOCK_BYTES);
        let lease = match self.lease.take() {
            Some(lease) if self.leased_blocks > 0 => lease,
            _ => {
                let blocks = self.unbuffered.div_ceil(BLOCK_BYTES).min(self.policy.k as u64).max(1);
                let data = self.unbuffered.min(blocks * BLOCK_BYTES);
                // Parity is as long as the longest block, whatever the others are.
                let parity = len * self.policy.m as u64;
                self.leased_blocks = usize::try_from(blocks).unwrap_or(1);
                self.core.uploads.lease(usize::try_from(data + parity).unwrap_or(usize::MAX)).await
            }
        };
        self.unbuffered -= len;
        self.leased_blocks -= 1;
        let buffer = lease.buffer(usize::try_from(len).unwrap_or(0));
        self.lease = Some(lease);
        buffer
    }

    async fn push(&mut self) -> S3Result<()> {
        let Some(mut buffer) = self.buffer.take() else { return Ok(()) };
        let bytes = buffer.filled_mut();
        if let Some(cipher) = &self.cipher {
            cipher.apply(self.offset, bytes).map_err(|error| error::crypt(error.into()))?;
        }
        self.offset += bytes.len() as u64;
        if self.leased_blocks == 0 {
            self.lease = None;
        }
        self.writer.push(buffer.freeze()).await.map_err(error::write)
    }

    async fn finish(mut self) -> S3Result<(Stored, Cid)> {
        self.push().await?;
        self.lease = None;
        let written = self.writer.finish().await.map_err(error::write)?;
        let mut root = RootBuilder::new();
        let mut blocks = Vec::with_capacity(written.blocks.len());
        for block in &written.blocks {
            root.push(block.digest, block.len);
            blocks.push(Entry { digest: block.digest, len: block.len });
        }
        let stored = Stored { size: self.size, blocks, secret: self.secret, stripes: written.stripes };
        Ok((stored, root.finish()))
    }
}
