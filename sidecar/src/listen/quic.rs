//! Sockets of QUIC, each at the port of a listener that speaks TLS.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use crds::policy::Direction;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, crypto::rustls::QuicServerConfig,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinHandle;

use super::{Acceptor, Mode};
use crate::{
    connection::{Arrival, Preamble},
    h3::MAX_STREAMS,
    pressure::Step,
    reply::NoRoom,
    worker,
};

/// How long a connection may be idle. Clients of QUIC open another one without a loss.
const IDLE: Duration = Duration::from_secs(60);

/// Bytes that are under way to us on a stream and on a connection; and from us on a connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Handshakes of a listener that are under way before clients have to show that they are where they say.
const UNSURE: usize = 64;

/// Handshakes of a listener that nobody has looked at yet; bytes that each of them may send meanwhile, and all of them.
const MAX_WAITING: usize = 1 << 10;
const WAITING_BUFFER: u64 = 16 << 10;
const WAITING_BUFFERS: u64 = 1 << 20;

/// HTTP/3 in the names of ALPN.
const HTTP3: &[u8] = b"h3";

/// An open socket.
pub(super) struct Quic {
    endpoint: Endpoint,
    task: JoinHandle<()>,
}

impl Quic {
    /// Whether this build speaks it.
    pub(super) const SPOKEN: bool = true;

    /// Opens a socket with the TLS of its listener.
    pub(super) fn open(
        acceptor: &Acceptor,
        address: SocketAddr,
        direction: Direction,
        mode: Mode,
        tls: &rustls::ServerConfig,
    ) -> io::Result<Self> {
        let (runtime, config) = (Arc::new(TokioRuntime), EndpointConfig::default());
        let endpoint = Endpoint::new(config, Some(server_config(tls)?), bind(address)?, runtime)?;
        let task = tokio::spawn(accept(acceptor.clone(), endpoint.clone(), direction, mode));
        Ok(Self { endpoint, task })
    }

    /// From now on handshakes use this.
    pub(super) fn replace(&self, tls: &rustls::ServerConfig) {
        match server_config(tls) {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(error) => tracing::error!(%error, "The certificates of a listener can't be used for QUIC."),
        }
    }
}

impl Drop for Quic {
    /// Open connections go on, and hold the port for as long as they do.
    fn drop(&mut self) {
        self.endpoint.set_server_config(None);
        self.task.abort();
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn server_config(tls: &rustls::ServerConfig) -> io::Result<ServerConfig> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![HTTP3.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(8_u32.into()) // three of them are of use
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).map_err(io::Error::other)?));
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(MAX_WAITING)
        .incoming_buffer_size(WAITING_BUFFER)
        .incoming_buffer_size_total(WAITING_BUFFERS);
    Ok(config)
}

/// Hands connections to the workers until no more of the direction are accepted.
async fn accept(acceptor: Acceptor, endpoint: Endpoint, direction: Direction, mode: Mode) {
    let drain = acceptor.pod.drain.clone();
    let closing = drain.accepts_no_more(direction);
    tokio::pin!(closing);
    let turn_away = |incoming: quinn::Incoming, why: NoRoom| {
        acceptor.pod.metrics.drop_counted(direction, why.reason());
        incoming.refuse();
    };
    let shaking = Arc::new(());
    loop {
        let incoming = tokio::select! {
            biased;
            () = &mut closing => break,
            Some(incoming) = endpoint.accept() => incoming,
            else => break,
        };
        if acceptor.pod.pressure.is(Step::Refuse) {
            turn_away(incoming, NoRoom::Memory);
            continue;
        }
        let Some(counted) = acceptor.cap.enter(direction) else {
            turn_away(incoming, NoRoom::Connections);
            continue;
        };
        if Arc::strong_count(&shaking) > UNSURE && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry(); // it may, as was just asked
            continue;
        }
        let Some(entry) = mode.entry() else { break };
        let peer = incoming.remote_address();
        let held = (acceptor.pod.drain.track(direction), counted);
        let arrival = Arrival { peer, direction, entry, preamble: Preamble::default(), held };
        acceptor.workers.serve(worker::Socket::Quic(Box::new(incoming), Arc::clone(&shaking)), arrival);
    }
    endpoint.set_server_config(None);
}
