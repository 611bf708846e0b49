//! Where packets are handled: quinn's tasks, timers and socket on a runtime of our choice.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::socket::BatchedSocket;
use super::tuning;
use crate::key::SigningKey;

/// Starts a thread with a runtime of its own. The thread ends when `closing` and then `closed` are
/// cancelled: after the endpoint has said goodbye.
pub(super) fn own_thread(
    address: SocketAddr,
    closing: CancellationToken,
    closed: CancellationToken,
) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name(format!("quic-{}", address.port())).spawn(move || {
        runtime.block_on(async {
            closing.cancelled().await;
            closed.cancelled().await;
        });
    })?;
    Ok(handle)
}

/// Makes the endpoint on the given runtime.
pub(super) fn endpoint(
    socket: UdpSocket,
    server: Arc<quinn::ServerConfig>,
    handle: &Handle,
    key: &SigningKey,
) -> io::Result<quinn::Endpoint> {
    let runtime = Arc::new(On { handle: handle.clone() });
    let socket = runtime.wrap_udp_socket(socket)?;
    let server = Some((*server).clone());
    quinn::Endpoint::new_with_abstract_socket(tuning::endpoint_config(key), server, socket, runtime)
}

/// Quinn's tokio runtime, entered on a given handle: dialling from another runtime then leaves the
/// connection's task and timers where the socket is.
#[derive(Debug)]
struct On {
    handle: Handle,
}

impl Runtime for On {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.handle.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.handle.enter();
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(BatchedSocket::new(socket, usize::from(tuning::PACKET_LEN_MAX))))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}
