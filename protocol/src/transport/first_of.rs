//! A transport that prefers memory: peers of the same process are reached without a socket, all others by
//! QUIC. It accepts from both.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::memory::{MemoryNetwork, MemoryTransport};
use super::{Connection, DialError, Transport};
use crate::key::NodeId;

/// Dials in memory if the peer is there, else over the socket transport.
pub struct FirstOf {
    network: MemoryNetwork,
    memory: Arc<MemoryTransport>,
    socket: Arc<dyn Transport>,
}

impl FirstOf {
    /// Joins `network` under the id of `socket`.
    pub fn new(network: MemoryNetwork, socket: Arc<dyn Transport>) -> Arc<Self> {
        let memory = network.join(socket.local_id());
        Arc::new(Self { network, memory, socket })
    }
}

#[async_trait]
impl Transport for FirstOf {
    async fn dial(&self, peer: NodeId, addresses: &[SocketAddr]) -> Result<Arc<dyn Connection>, DialError> {
        if self.network.contains(&peer) {
            match self.memory.dial(peer, addresses).await {
                // It left between the look and the call; it may still answer on its socket.
                Err(DialError::NoAddress { .. }) => {}
                outcome => return outcome,
            }
        }
        self.socket.dial(peer, addresses).await
    }

    async fn accept(&self) -> Option<Arc<dyn Connection>> {
        tokio::select! {
            connection = self.memory.accept() => connection,
            connection = self.socket.accept() => connection,
        }
    }

    fn local_id(&self) -> NodeId {
        self.socket.local_id()
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr()
    }

    async fn close(&self) {
        self.memory.close().await;
        self.socket.close().await;
    }
}
