//! The aws-chunked body with a CRC64NVME trailer, as AWS clients send it since 2025: chunks of 1 MiB, each
//! behind its length in hex, then the checksum of the whole.

use base64::Engine;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::pattern::Frames;

/// The trailer's name.
pub(crate) const TRAILER: &str = "x-amz-checksum-crc64nvme";

/// Bytes of a chunk: botocore's choice.
const CHUNK_LEN: u64 = 1024 * 1024;
/// Characters of a CRC64 in base64.
const CHECKSUM_LEN: u64 = 12;

/// The length on the wire of a body of `len` bytes.
pub(crate) fn encoded_len(len: u64) -> u64 {
    let chunk = |len: u64| head(len).len() as u64 + len + 2;
    let last = match len % CHUNK_LEN {
        0 => 0,
        rest => chunk(rest),
    };
    let trailer = head(0).len() + TRAILER.len() + ":\r\n\r\n".len();
    (len / CHUNK_LEN) * chunk(CHUNK_LEN) + last + trailer as u64 + CHECKSUM_LEN
}

fn head(len: u64) -> String {
    format!("{len:x}\r\n")
}

/// The frames of an aws-chunked body.
pub(crate) struct Chunks {
    frames: Frames,
    /// A frame cut by the end of a chunk.
    rest: Bytes,
    digest: Digest,
    left_in_chunk: u64,
    left: u64,
    state: State,
}

enum State {
    Head,
    Data,
    DataEnd,
    Done,
}

impl Chunks {
    /// Wraps `frames`, which have `len` bytes.
    pub(crate) fn new(frames: Frames, len: u64) -> Self {
        let digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        Self { frames, rest: Bytes::new(), digest, left_in_chunk: 0, left: len, state: State::Head }
    }

    fn data(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            self.rest = self.frames.next()?;
        }
        let len = (self.rest.len() as u64).min(self.left_in_chunk);
        let data = self.rest.split_to(usize::try_from(len).ok()?);
        self.digest.update(&data);
        self.left_in_chunk -= len;
        self.left -= len;
        Some(data)
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        match self.state {
            State::Head if self.left == 0 => {
                self.state = State::Done;
                let checksum = self.digest.finalize().to_be_bytes();
                let checksum = base64::engine::general_purpose::STANDARD.encode(checksum);
                Some(Bytes::from(format!("{}{TRAILER}:{checksum}\r\n\r\n", head(0))))
            }
            State::Head => {
                self.left_in_chunk = self.left.min(CHUNK_LEN);
                self.state = State::Data;
                Some(Bytes::from(head(self.left_in_chunk)))
            }
            State::Data => {
                let data = self.data()?;
                if self.left_in_chunk == 0 {
                    self.state = State::DataEnd;
                }
                Some(data)
            }
            State::DataEnd => {
                self.state = State::Head;
                Some(Bytes::from_static(b"\r\n"))
            }
            State::Done => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    #[test]
    fn the_length_is_known_before_the_body_is_made() {
        let pattern = Pattern::new(3);
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3_500_000] {
            let encoded: Vec<u8> = Chunks::new(pattern.frames("k", 0, len), len).flatten().collect();
            assert_eq!(encoded.len() as u64, encoded_len(len), "{len}");
        }
    }

    #[test]
    fn chunks_carry_the_bytes_and_their_checksum() {
        let pattern = Pattern::new(3);
        let len = CHUNK_LEN + 100;
        let body: Vec<u8> = pattern.frames("k", 0, len).flatten().collect();
        let encoded: Vec<u8> = Chunks::new(pattern.frames("k", 0, len), len).flatten().collect();
        let first = b"100000\r\n".len();
        let cut = body.len() - 100;
        assert_eq!(&encoded[first..first + cut], &body[..cut]);
        let tail = &encoded[first + cut..];
        assert_eq!(&tail[..6], b"\r\n64\r\n");
        assert_eq!(&tail[6..106], &body[cut..]);
        let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &body).to_be_bytes();
        let checksum = base64::engine::general_purpose::STANDARD.encode(checksum);
        let end = format!("\r\n0\r\n{TRAILER}:{checksum}\r\n\r\n");
        assert_eq!(&tail[106..], end.as_bytes());
    }

    /// The check value of CRC-64/NVME, from the catalogue of parametrised CRC algorithms.
    #[test]
    fn the_checksum_is_crc64nvme() {
        assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"123456789"), 0xae8b_1486_0a79_9888);
    }
}
