//! Sockets that connections come in by: the redirected ports and the listeners of mode Explicit.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use crds::{policy::Direction, proxy::UpstreamTls};
use socket2::SockRef;
use tokio::{net, runtime::Handle, time::sleep};

use crate::{
    connection::{Arrival, Entry, Preamble},
    metrics::Metrics,
    pressure::Step,
    reply::NoRoom,
    sockets::{Role, Socket, Sockets},
    upstream::Key,
    worker::{self, Pod, Workers},
};

mod explicit;
#[cfg_attr(not(feature = "http3"), path = "listen/quic/absent.rs")]
mod quic;
mod refusal;

pub(crate) use explicit::{Explicit, ListenError};

/// How long accepting pauses when the process has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Clients of a direction that are told at a time that there is no room. Those beyond are reset.
const TOLD: usize = 32;

/// A bound on the open connections of each direction: one must not starve the other.
#[derive(Clone, Debug)]
pub(crate) struct Cap {
    inbound: Arc<AtomicUsize>,
    outbound: Arc<AtomicUsize>,
    max: usize,
}

/// An open connection under the cap.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Cap {
    pub(crate) fn new(max: usize) -> Self {
        Self { inbound: Arc::default(), outbound: Arc::default(), max }
    }

    fn enter(&self, direction: Direction) -> Option<Counted> {
        let open = match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        let counted = Counted(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < self.max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How the connections of a socket are to be served.
#[derive(Clone)]
pub(crate) enum Mode {
    /// They were redirected; the kernel knows where to.
    Intercept,
    /// They go to an upstream.
    Reverse(Arc<ArcSwap<Key>>),
    /// They say themselves; this is the TLS to hosts of `https`.
    Forward(Arc<ArcSwap<UpstreamTls>>),
}

impl Mode {
    /// How a connection came; none if the kernel has to be asked.
    fn entry(&self) -> Option<Entry> {
        match self {
            Self::Reverse(upstream) => Some(Entry::Reverse(Arc::clone(upstream))),
            Self::Forward(tls) => Some(Entry::Forward(Arc::clone(tls))),
            Self::Intercept => None,
        }
    }
}

/// A socket to accept from.
pub(crate) struct Listening {
    socket: Socket,
    direction: Direction,
    mode: Mode,
    preamble: Preamble,
}

impl Listening {
    /// Inbound interception: all addresses, IPv6 with IPv4 inside, or IPv4 alone where there is no IPv6.
    pub(crate) fn inbound(sockets: &Sockets, port: u16) -> io::Result<Self> {
        let open = |ip: IpAddr| sockets.open(Role::Inbound, SocketAddr::new(ip, port));
        let socket = open(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| open(Ipv4Addr::UNSPECIFIED.into()))?;
        Ok(Self::in_clear(socket, Direction::Inbound, Mode::Intercept))
    }

    /// Outbound interception on a loopback address.
    pub(crate) fn outbound(sockets: &Sockets, address: SocketAddr) -> io::Result<Self> {
        Ok(Self::in_clear(sockets.open(Role::Outbound, address)?, Direction::Outbound, Mode::Intercept))
    }

    /// A forward proxy.
    pub(crate) fn forward(sockets: &Sockets, address: SocketAddr) -> io::Result<Self> {
        Ok(Self::in_clear(sockets.open(Role::Forward, address)?, Direction::Outbound, Mode::Forward(Arc::default())))
    }

    fn explicit(socket: Socket, direction: Direction, mode: Mode, preamble: Preamble) -> Self {
        Self { socket, direction, mode, preamble }
    }

    fn in_clear(socket: Socket, direction: Direction, mode: Mode) -> Self {
        Self { socket, direction, mode, preamble: Preamble::default() }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.address()
    }
}

/// Accepts from sockets and hands what comes to the workers.
#[derive(Clone)]
pub(crate) struct Acceptor {
    pub(crate) pod: Pod,
    pub(crate) workers: Workers,
    cap: Cap,
    told: Cap,
    /// Where those are told that there is no room for.
    aside: Handle,
}

impl Acceptor {
    /// For so many connections of each direction. Clients that find no room are told so on the runtime of now.
    pub(crate) fn new(pod: Pod, workers: Workers, max_connections: usize) -> Self {
        Self { pod, workers, cap: Cap::new(max_connections), told: Cap::new(TOLD), aside: Handle::current() }
    }

    /// Where to accept: on the worker if there is but one, which saves waking it for each connection.
    pub(crate) fn home(&self) -> &Handle {
        self.workers.only().unwrap_or(&self.aside)
    }

    /// Accepts until the drain closes the direction; then the kernel refuses. If this is dropped before that, the socket is let go of.
    pub(crate) async fn accept(self, listening: Listening) {
        let Listening { socket, direction, mode, preamble } = listening;
        let drain = self.pod.drain.clone();
        tokio::select! {
            biased;
            () = drain.accepts_no_more(direction) => {}
            () = self.accept_all(&socket, direction, &mode, &preamble) => {}
        }
        socket.close();
    }

    async fn accept_all(&self, socket: &Socket, direction: Direction, mode: &Mode, preamble: &Preamble) {
        let accepting = match socket.accepting() {
            Ok(accepting) => accepting,
            Err(error) => return tracing::error!(%error, ?direction, "A listening socket can't be accepted from."),
        };
        let mut complained: Option<std::time::Instant> = None;
        loop {
            match accepting.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer, direction, mode, preamble),
                Err(error) if is_exhausted(&error) => {
                    self.pod.metrics.drop_counted(direction, "no_descriptors");
                    if complained.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
                        complained = Some(std::time::Instant::now());
                        tracing::warn!(%error, "Accepting pauses: there are no file descriptors left.");
                    }
                    sleep(EXHAUSTED).await;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    // Another process has closed it for all.
                    return tracing::error!(?direction, "A listening socket does not listen any more.");
                }
                Err(_) => {} // the client left before it was accepted
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, direction: Direction, mode: &Mode, preamble: &Preamble) {
        if self.pod.pressure.is(Step::Refuse) {
            return self.turn_away(stream, direction, preamble, NoRoom::Memory);
        }
        let Some(counted) = self.cap.enter(direction) else {
            return self.turn_away(stream, direction, preamble, NoRoom::Connections);
        };
        let entry = match mode.entry().map_or_else(|| self.destination(&stream).map(Entry::Intercepted), Ok) {
            Ok(entry) => entry,
            Err(reason) => return refuse(&self.pod.metrics, &stream, direction, reason),
        };
        let held = (self.pod.drain.track(direction), counted);
        let arrival = Arrival { peer, direction, entry, preamble: preamble.clone(), held };
        self.workers.serve(worker::Socket::Tcp(stream), arrival);
    }

    /// Tells a client that there is no room, as far as that costs little. It is not for the workers, which have enough to do then.
    fn turn_away(&self, stream: TcpStream, direction: Direction, preamble: &Preamble, why: NoRoom) {
        self.pod.metrics.drop_counted(direction, why.reason());
        // A handshake costs more than most requests.
        let told = if preamble.tls.is_some() { None } else { self.told.enter(direction) };
        let Some(told) = told else { return reset(&stream) };
        let begins_with_header = preamble.proxy_protocol;
        self.aside.spawn(async move {
            if let Ok(stream) = net::TcpStream::from_std(stream) {
                refusal::tell(stream, begins_with_header, why).await;
            }
            drop(told);
        });
    }

    /// Where an intercepted connection was to go. One that was not redirected, or that was to reach the sidecar, would come
    /// back here for ever.
    fn destination(&self, stream: &TcpStream) -> Result<SocketAddr, &'static str> {
        let destination = original_destination(stream).map_err(|_| "not_redirected")?;
        let local = stream.local_addr().map_err(|_| "not_redirected")?;
        if canonical(local) == destination {
            return Err("not_redirected");
        }
        if self.pod.own.has(destination) {
            return Err("own_port");
        }
        Ok(destination)
    }
}

/// Closes with a reset, and counts why.
fn refuse(metrics: &Metrics, stream: &TcpStream, direction: Direction, reason: &'static str) {
    metrics.drop_counted(direction, reason);
    reset(stream);
}

/// Has a reset close a connection, so that nothing is kept for a client that gets nothing.
fn reset(stream: &impl AsFd) {
    // It is closed either way.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// The destination before the redirect (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`).
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let v4 = matches!(stream.local_addr()?.ip().to_canonical(), IpAddr::V4(_));
    let address = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    let address = address.as_socket().ok_or_else(|| io::Error::other("the destination is no IP address"))?;
    Ok(canonical(address))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_frees_a_place_when_a_connection_ends() {
        let cap = Cap::new(1);
        let first = cap.enter(Direction::Inbound);
        assert!(first.is_some() && cap.enter(Direction::Inbound).is_none());
        assert!(cap.enter(Direction::Outbound).is_some());
        drop(first);
        assert!(cap.enter(Direction::Inbound).is_some());
    }
}
