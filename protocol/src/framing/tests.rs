//! Framing, piece by piece and under attack.

use async_trait::async_trait;

use super::*;
use crate::key::{NodeId, PublicKey};
use crate::message::{HeadSeq, StatusQuery};

/// A stream that yields prepared pieces, and remembers the most that was asked of it at once.
#[derive(Default)]
struct Script {
    pieces: VecDeque<Bytes>,
    failure: Option<TransportError>,
}

impl Script {
    fn of(bytes: &[u8], piece_len: usize) -> Self {
        let pieces = bytes.chunks(piece_len).map(Bytes::copy_from_slice).collect();
        Self { pieces, failure: None }
    }
}

#[async_trait]
impl RecvHalf for Script {
    async fn read(&mut self, max: usize) -> Result<Option<Bytes>, TransportError> {
        let Some(front) = self.pieces.front_mut() else {
            return self.failure.clone().map_or(Ok(None), Err);
        };
        let piece = front.split_to(front.len().min(max));
        if front.is_empty() {
            self.pieces.pop_front();
        }
        Ok(Some(piece))
    }

    async fn read_many(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, TransportError> {
        let mut count = 0;
        for chunk in chunks {
            let Some(piece) = self.pieces.pop_front() else { break };
            *chunk = piece;
            count += 1;
        }
        if count == 0 { self.failure.clone().map_or(Ok(None), Err) } else { Ok(Some(count)) }
    }

    fn stop(&mut self) {}
}

fn reset() -> TransportError {
    TransportError::Reset { peer: NodeId(PublicKey([0; 32])) }
}

#[tokio::test]
async fn a_frame_is_read_however_it_is_cut() {
    let message = Reply::PutHead(HeadSeq { seq: 1 << 40 });
    let mut bytes = encode_frame(&message).unwrap().to_vec();
    bytes.extend_from_slice(b"body");
    for piece_len in 1..=bytes.len() {
        let mut recv = Script::of(&bytes, piece_len);
        let mut buffered = ByteQueue::new();
        let read: Reply = read_frame(&mut recv, &mut buffered).await.unwrap().unwrap();
        assert_eq!(read, message);
        assert_eq!(&buffered.read_exact(&mut recv, 4).await.unwrap()[..], b"body");
        assert_eq!(buffered.next(&mut recv, 10).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_stream_without_a_byte_is_no_error() {
    let read = read_frame::<Request>(&mut Script::default(), &mut ByteQueue::new()).await;
    assert!(matches!(read, Ok(None)));
}

#[tokio::test]
async fn a_frame_cut_short_says_how_much_is_missing() {
    let bytes = encode_frame(&Request::Status(StatusQuery {})).unwrap();
    for end in 1..bytes.len() {
        let mut recv = Script::of(&bytes[..end], 3);
        let error = read_frame::<Request>(&mut recv, &mut ByteQueue::new()).await.unwrap_err();
        let missing = if end < 4 { 4 - end } else { bytes.len() - end };
        assert!(matches!(error, FrameError::Truncated { missing: found } if found == missing), "{error}");
        assert!(!error.is_peer_fault());
    }
}

#[tokio::test]
async fn a_length_past_the_limit_is_refused_before_its_bytes_are_read() {
    for len in [u32::MAX, 1 << 31, u32::try_from(HEADER_LEN_MAX).unwrap() + 1] {
        let mut recv = Script::of(&len.to_le_bytes(), 4);
        // Reading on would run into this.
        recv.failure = Some(reset());
        let error = read_frame::<Request>(&mut recv, &mut ByteQueue::new()).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong { len: found } if found == len as usize), "{error}");
        assert!(error.is_peer_fault());
    }
}

#[tokio::test]
async fn an_empty_header_is_no_message() {
    let error = read_frame::<Request>(&mut Script::of(&[0; 4], 4), &mut ByteQueue::new()).await.unwrap_err();
    assert!(matches!(error, FrameError::Decode(_)), "{error}");
}

#[tokio::test]
async fn the_streams_own_failure_is_told() {
    let mut recv = Script { failure: Some(reset()), ..Script::of(&[9, 0], 1) };
    let error = read_frame::<Request>(&mut recv, &mut ByteQueue::new()).await.unwrap_err();
    assert!(matches!(error, FrameError::Transport(TransportError::Reset { .. })), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_body_in_one_piece_is_not_copied() {
    let body = Bytes::from(vec![7u8; 100_000]);
    let mut recv = Script { pieces: VecDeque::from([body.clone()]), failure: None };
    let read = ByteQueue::new().read_exact(&mut recv, body.len()).await.unwrap();
    assert_eq!(read.as_ptr(), body.as_ptr());
}

#[tokio::test]
async fn a_body_in_pieces_becomes_contiguous_and_leaves_the_rest() {
    let bytes: Vec<u8> = (0..=255u8).cycle().take(50_000).collect();
    for piece_len in [1, 7, 1400, 49_999] {
        let mut recv = Script::of(&bytes, piece_len);
        let mut buffered = ByteQueue::new();
        assert_eq!(&buffered.read_exact(&mut recv, 40_000).await.unwrap()[..], &bytes[..40_000]);
        let rest = buffered.read_exact(&mut recv, 10_000).await.unwrap();
        assert_eq!(&rest[..], &bytes[40_000..]);
        assert!(buffered.is_empty());
    }
}

#[tokio::test]
async fn a_body_cut_short_is_told() {
    let mut recv = Script::of(&[1; 10], 3);
    let error = ByteQueue::new().read_exact(&mut recv, 11).await.unwrap_err();
    assert!(matches!(error, FrameError::Truncated { missing: 1 }), "{error}");
}

#[test]
fn our_own_message_past_a_bound_is_not_sent() {
    let outcomes = vec![crate::message::BlockOutcome::Done; crate::limits::CLAIMS_PER_REQUEST_MAX + 1];
    let reply = Reply::Outcomes(crate::message::Outcomes { outcomes });
    let error = encode_frame(&reply).unwrap_err();
    assert!(matches!(error, FrameError::Unsendable { message: "Outcomes", .. }));
    assert!(!error.is_peer_fault());
}
