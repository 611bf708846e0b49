//! What lets a peer notice at once that we were killed and started again: stateless resets.
//!
//! A packet of a connection that this process does not know is answered with a token that only the holder of our key
//! can make. The token's key comes from that key, so it outlives the process: the peer's next packet, a keep-alive at
//! the latest, ends the old connection instead of its idle timeout.

use std::sync::Arc;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

use crate::key::SigningKey;

const RESET_CONTEXT: &str = "holdfast quic stateless reset v1";
/// Bytes of a connection id.
const ID_LEN: usize = 8;

/// An endpoint's configuration that is the same after every start with the same key.
pub(super) fn endpoint_config(key: &SigningKey) -> EndpointConfig {
    let reset = ResetKey(blake3::derive_key(RESET_CONTEXT, key.seed()));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(|| Box::new(Ids));
    config
}

/// Makes reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = blake3::keyed_hash(&self.0, data);
        for (out, byte) in signature_out.iter_mut().zip(signature.as_bytes()) {
            *out = *byte;
        }
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        // Compared in constant time.
        let given: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        if expected == given { Ok(()) } else { Err(CryptoError) }
    }
}

/// Random connection ids. Quinn's own bear a mark that changes with every start, and packets with another mark are
/// answered with nothing.
struct Ids;

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN];
        // Without random bytes there was no handshake; ids must differ, not be secret.
        let _no_random = getrandom::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
