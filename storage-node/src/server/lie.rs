//! The lies of a node that was told to misbehave, for tests of readers.
//!
//! Only answers to ReadBlock pass through here, after every check was made and every permission decided. A lie can make
//! a reader's life hard; it can never make this node accept, keep, sign or reveal anything that it otherwise would not.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_proofs::hash_block;
use holdfast_protocol::Digest;
use holdfast_protocol::digest::BlockLen;
use holdfast_protocol::framing::encode_frame;
use holdfast_protocol::message::Reply;
use holdfast_protocol::rpc;
use holdfast_protocol::transport::{SendHalf, TransportError};

use super::link::Link;
use super::read::Source;
use crate::node::config::Misbehaviour;

/// Another block of the same length, with a tree that is its own.
pub(crate) fn another_block(digest: &Digest, len: BlockLen) -> Source<'static> {
    let mut bytes = vec![0u8; len.as_usize()];
    blake3::Hasher::new_keyed(digest.as_bytes()).finalize_xof().fill(&mut bytes);
    let (_, tree) = hash_block(&bytes);
    Source::Memory { bytes: Bytes::from(bytes), tree: Arc::new(tree) }
}

/// Writes a spoilt answer.
pub(crate) async fn write(
    lie: Misbehaviour,
    link: &Link,
    send: &mut dyn SendHalf,
    reply: &Reply,
    mut body: Vec<Bytes>,
) -> Result<(), TransportError> {
    match lie {
        // Its bytes were exchanged where they were read.
        Misbehaviour::OtherBlock => rpc::write_reply_with_body(send, reply, body).await,
        Misbehaviour::FlipBit => {
            if let Some(piece) = body.iter_mut().find(|piece| !piece.is_empty()) {
                let mut changed = BytesMut::from(&piece[..]);
                let middle = changed.len() / 2;
                changed[middle] ^= 0x10;
                *piece = changed.freeze();
            }
            rpc::write_reply_with_body(send, reply, body).await
        }
        Misbehaviour::Truncate => {
            if let Some(piece) = body.iter_mut().rev().find(|piece| !piece.is_empty()) {
                piece.truncate(piece.len() / 2);
            }
            rpc::write_reply_with_body(send, reply, body).await
        }
        Misbehaviour::Stall => {
            tokio::select! {
                () = link.connection.closed() => {}
                () = link.stop.cancelled() => {}
            }
            send.reset();
            Ok(())
        }
        Misbehaviour::Garbage => {
            let honest = encode_frame(reply).map(|frame| frame.len()).unwrap_or(64);
            let mut junk = vec![0u8; honest.max(64)];
            blake3::Hasher::new().update(b"garbage").finalize_xof().fill(&mut junk);
            // A plausible length, so that the reader gets as far as the nonsense behind it.
            let len = u32::try_from(junk.len() - 4).unwrap_or(60);
            junk[..4].copy_from_slice(&len.to_le_bytes());
            send.write(Bytes::from(junk)).await?;
            send.finish()
        }
    }
}
