//! `GET /BUCKET/KEY?holdfast-ticket&holder=KEY[&offset=N][&version=HEX]`: what a client needs to read the object
//! straight from the nodes. Signed like any GET; the answer is a [`ReadTicket`] in DAG-CBOR.
//!
//! It hands out the keys of the plaintext, which whoever may GET the object may have, and a grant that only the
//! named holder can use, for an hour. It never hands out a key of a bucket or of the namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Grant, GrantOps, PresentedGrant, Record, Signed};
use holdfast_retrieval::direct::{NodeAddress, ReadTicket};
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri, header};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::access::Gatekeeper;
use super::error;
use crate::gateway::Core;
use crate::meta::Bucket;

/// The query parameter that makes a GET one for a ticket.
const MARK: &str = "holdfast-ticket";
/// How long a grant runs. A client that reads for longer is given another with its next page.
const GRANT_MS: u64 = 3600 * 1000;
/// Bytes that each node may serve under one grant: what a fast client reads in an hour from one node.
const GRANT_BYTES: u64 = 4 << 40;

/// The route of tickets.
#[derive(Clone)]
pub(super) struct TicketRoute {
    pub(super) core: Arc<Core>,
}

#[async_trait::async_trait]
impl S3Route for TicketRoute {
    fn is_match(&self, method: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        method == Method::GET && parameter(uri, MARK).is_some()
    }

    /// Whoever may GET the object by a key of its own, and anybody where the bucket is public.
    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let (bucket, key) = target(&request.uri)?;
        let access_key = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        Gatekeeper { core: Arc::clone(&self.core) }.check_ticket(access_key, &bucket, &key).await
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let core = &self.core;
        let (bucket, key) = target(&request.uri)?;
        let holder = parameter(&request.uri, "holder").and_then(|text| text.parse::<NodeId>().ok());
        let holder =
            holder.ok_or_else(|| s3_error!(InvalidArgument, "`holder` is not a public key (z6Mk…)"))?;
        let offset = parameter(&request.uri, "offset").map_or(Ok(0), |text| text.parse::<u64>());
        let offset = offset.map_err(|_| s3_error!(InvalidArgument, "`offset` is not a number"))?;
        let bucket = core.meta.bucket(&bucket).await.map_err(error::meta)?;
        let bucket = bucket.ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))?;
        let object = core.meta.object(&bucket, &key).await.map_err(error::meta)?;
        let object = object.ok_or_else(|| error::no_such_key(&key))?;
        let version = parameter(&request.uri, "version");
        if version.is_some_and(|version| version != hex::encode(object.version.0)) {
            return Err(s3_error!(PreconditionFailed, "The object was replaced by another version"));
        }
        if offset > 0 && offset >= object.size {
            return Err(s3_error!(InvalidArgument, "`offset` lies behind the object's end"));
        }
        let mut ticket = core.meta.ticket_page(&bucket, &object, offset).await.map_err(error::meta)?;
        ticket.nodes = addresses(core, &ticket);
        ticket.grant = Some(grant(core, &bucket, holder)?);
        let mut response = S3Response::new(Body::from(bytes::Bytes::from(ticket.encode())));
        let headers = &mut response.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.ipld.dag-cbor"));
        // It holds keys.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// Where the nodes of the ticket's stripes are.
fn addresses(core: &Core, ticket: &ReadTicket) -> Vec<NodeAddress> {
    let shards = ticket.stripes.iter().flat_map(|stripe| stripe.shards.iter().flatten());
    let nodes: BTreeSet<NodeId> = shards.filter_map(|shard| shard.node).collect();
    nodes
        .into_iter()
        .filter_map(|id| Some(NodeAddress { id, addresses: core.pool.node(id)?.known.addresses }))
        .collect()
}

/// Opens the bucket's blocks, and shards that a repair put elsewhere, to the holder alone.
fn grant(core: &Core, bucket: &Bucket, holder: NodeId) -> S3Result<PresentedGrant> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|_| s3_error!(InternalError, "The system's random source failed"))?;
    let now_ms = core.config.clock.now_ms();
    let grant = Grant {
        v: Grant::VERSION,
        namespace: core.config.keys.namespace_id(),
        holder,
        scopes: vec![bucket.scope, core.repair_scope()],
        ops: GrantOps { read: true, list: false },
        not_before_ms: now_ms,
        expires_ms: now_ms + GRANT_MS,
        byte_budget: GRANT_BYTES,
        nonce,
    };
    Ok(PresentedGrant {
        grant: Signed::sign(grant, core.config.keys.namespace()).to_wire(),
        delegation: None,
    })
}

/// Bucket and key of a path-style URL.
fn target(uri: &Uri) -> S3Result<(String, String)> {
    let path = uri.path().trim_start_matches('/');
    let decoded = percent(path);
    match decoded.as_deref().and_then(|path| path.split_once('/')) {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok((bucket.to_owned(), key.to_owned()))
        }
        _ => Err(s3_error!(InvalidArgument, "A ticket is for one object: /BUCKET/KEY?holdfast-ticket")),
    }
}

/// The first value of a query parameter, decoded.
pub(super) fn parameter(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (found == name).then(|| percent(value)).flatten()
    })
}

/// Percent-decodes; `None` when that gives no UTF-8 or an escape is cut short.
fn percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_parameters_are_decoded() {
        let uri: Uri = "/data/a%20b/c%C3%A9?holdfast-ticket&holder=z6Mk&offset=7".parse().unwrap();
        assert_eq!(target(&uri).unwrap(), ("data".to_owned(), "a b/cé".to_owned()));
        assert_eq!(parameter(&uri, "offset").as_deref(), Some("7"));
        assert_eq!(parameter(&uri, MARK).as_deref(), Some(""));
        assert_eq!(parameter(&uri, "version"), None);
        for bad in ["/", "/data", "/data/", "/data/%ff", "/data/%4"] {
            assert!(target(&bad.parse::<Uri>().unwrap()).is_err(), "{bad}");
        }
    }
}
