//! Sockets that connections come in by: the redirected ports and the listeners of mode Explicit.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use crds::{policy::Direction, proxy::Listener as ListenerSpec};
use http::{Uri, uri::Authority};
use socket2::{Domain, Protocol as SocketProtocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    connection::{Arrival, Entry},
    drain::Phase,
    metrics::Metrics,
    upstream::{Endpoint, Key, Protocol},
    worker::{Pod, Workers},
};

/// Connections that wait to be accepted; more than a burst of clients of one pod.
const BACKLOG: i32 = 1024;

/// How long accepting pauses when the process has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

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
    /// They say themselves.
    Forward,
}

/// A socket to accept from.
pub(crate) struct Listening {
    socket: TcpListener,
    direction: Direction,
    mode: Mode,
}

impl Listening {
    /// Inbound interception: all addresses, IPv6 with IPv4 inside, or IPv4 alone where there is no IPv6.
    pub(crate) fn inbound(port: u16) -> io::Result<Self> {
        let socket = bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
            .or_else(|_| bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)))?;
        Ok(Self { socket, direction: Direction::Inbound, mode: Mode::Intercept })
    }

    /// Outbound interception on a loopback address.
    pub(crate) fn outbound(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: bind(address)?, direction: Direction::Outbound, mode: Mode::Intercept })
    }

    /// A forward proxy.
    pub(crate) fn forward(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: bind(address)?, direction: Direction::Outbound, mode: Mode::Forward })
    }

    fn explicit(address: SocketAddr, direction: Direction, mode: Mode) -> io::Result<Self> {
        Ok(Self { socket: bind(address)?, direction, mode })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(SocketProtocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts from sockets and hands what comes to the workers.
#[derive(Clone)]
pub(crate) struct Acceptor {
    pub(crate) pod: Pod,
    pub(crate) workers: Workers,
    pub(crate) cap: Cap,
}

impl Acceptor {
    /// Accepts until the drain closes the direction.
    pub(crate) async fn accept(self, listening: Listening) {
        let Listening { socket, direction, mode } = listening;
        let drain = self.pod.drain.clone();
        let closing = drain.reached(match direction {
            Direction::Inbound => Phase::Closing,
            Direction::Outbound => Phase::Stopping,
        });
        tokio::select! {
            () = closing => {}
            () = self.accept_all(&socket, direction, &mode) => {}
        }
    }

    async fn accept_all(&self, socket: &TcpListener, direction: Direction, mode: &Mode) {
        let mut complained: Option<std::time::Instant> = None;
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer, direction, mode),
                Err(error) if is_exhausted(&error) => {
                    self.pod.metrics.drop_counted(direction, "no_descriptors");
                    if complained.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
                        complained = Some(std::time::Instant::now());
                        tracing::warn!(%error, "Accepting pauses: there are no file descriptors left.");
                    }
                    sleep(EXHAUSTED).await;
                }
                Err(_) => {} // the client left before it was accepted
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, direction: Direction, mode: &Mode) {
        let Some(counted) = self.cap.enter(direction) else {
            return refuse(&self.pod.metrics, &stream, direction, "connection_limit");
        };
        let entry = match mode {
            Mode::Reverse(upstream) => Entry::Reverse(Arc::clone(upstream)),
            Mode::Forward => Entry::Forward,
            Mode::Intercept => match self.destination(&stream) {
                Ok(destination) => Entry::Intercepted(destination),
                Err(reason) => return refuse(&self.pod.metrics, &stream, direction, reason),
            },
        };
        let held = (self.pod.drain.track(direction), counted);
        match stream.into_std() {
            Ok(stream) => self.workers.serve(stream, Arrival { peer, direction, entry, held }),
            Err(error) => tracing::warn!(%error, "A socket could not be handed over."),
        }
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

/// Closes with a reset, so that nothing is kept for a client that gets nothing.
fn refuse(metrics: &Metrics, stream: &TcpStream, direction: Direction, reason: &'static str) {
    metrics.drop_counted(direction, reason);
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

/// The listeners of mode Explicit. They follow the configuration: new ones are opened, old ones are closed, and one that keeps its
/// address keeps its connections even if its upstream changes.
pub(crate) struct Explicit {
    acceptor: Acceptor,
    open: Vec<OpenListener>,
}

struct OpenListener {
    spec: ListenerSpec,
    address: SocketAddr,
    upstream: Option<Arc<ArcSwap<Key>>>,
    task: JoinHandle<()>,
}

/// A listener that can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Its document is wrong.
    #[error("listener {name}: {problem}")]
    Spec {
        /// Name of the listener.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The system refused.
    #[error("could not listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl Explicit {
    pub(crate) fn new(acceptor: Acceptor) -> Self {
        Self { acceptor, open: Vec::new() }
    }

    /// Stops the listeners that are not among `specs`. Their ports are free when the tasks have ended.
    pub(crate) fn close_others(&mut self, specs: &[ListenerSpec]) -> Vec<JoinHandle<()>> {
        let gone = self.open.extract_if(.., |open| !specs.iter().any(|spec| open.continues_as(spec)));
        let own = &self.acceptor.pod.own;
        gone.map(|open| {
            open.task.abort();
            own.remove(&open.address);
            open.task
        })
        .collect()
    }

    /// Opens the listeners of `specs` that are not open. What can't be opened is reported; the others are served.
    pub(crate) fn open(&mut self, specs: &[ListenerSpec]) -> Vec<ListenError> {
        specs.iter().filter_map(|spec| self.open_or_update(spec).err()).collect()
    }

    /// Addresses that are listened on, by name.
    pub(crate) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.open.iter().map(|open| (open.spec.name.clone(), open.address)).collect()
    }

    fn open_or_update(&mut self, spec: &ListenerSpec) -> Result<(), ListenError> {
        let wrong = |problem: String| ListenError::Spec { name: spec.name.clone(), problem };
        let upstream = spec.upstream.as_deref().map(parse_upstream).transpose().map_err(wrong)?;
        if let Some(open) = self.open.iter_mut().find(|open| open.continues_as(spec)) {
            if let (Some(current), Some(upstream)) = (&open.upstream, upstream) {
                current.store(Arc::new(upstream));
            }
            open.spec = spec.clone();
            return Ok(());
        }
        let ip: IpAddr = spec.address.parse().map_err(|_| wrong(format!("{:?} is no IP address", spec.address)))?;
        let port = u16::try_from(spec.port).map_err(|_| wrong(format!("{} is no port", spec.port)))?;
        if upstream.is_none() && spec.direction == Direction::Inbound {
            return Err(wrong("without an upstream it is a forward proxy, and needs direction Outbound".to_owned()));
        }
        let upstream = upstream.map(|upstream| Arc::new(ArcSwap::from_pointee(upstream)));
        let mode = upstream.clone().map_or(Mode::Forward, Mode::Reverse);
        let wanted = SocketAddr::new(ip, port);
        let refused = |source| ListenError::Bind { address: wanted, source };
        let listening = Listening::explicit(wanted, spec.direction, mode).map_err(refused)?;
        let address = listening.address().map_err(refused)?;
        self.acceptor.pod.own.add(address);
        tracing::info!(listener = spec.name, %address, "Listening.");
        let task = tokio::spawn(self.acceptor.clone().accept(listening));
        self.open.push(OpenListener { spec: spec.clone(), address, upstream, task });
        Ok(())
    }
}

impl OpenListener {
    fn continues_as(&self, spec: &ListenerSpec) -> bool {
        let place = |spec: &ListenerSpec| (spec.address.clone(), spec.port, spec.direction, spec.upstream.is_some());
        place(&self.spec) == place(spec)
    }
}

/// Reads `http://host:port` or `h2c://host:port`.
pub(crate) fn parse_upstream(text: &str) -> Result<Key, String> {
    let wrong = || format!("{text:?} is no upstream: write http://host:port or h2c://host:port");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let protocol = match uri.scheme_str() {
        Some("http") => Protocol::Http1,
        Some("h2c") => Protocol::Http2,
        _ => return Err(wrong()),
    };
    let authority: &Authority = uri.authority().ok_or_else(wrong)?;
    if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong());
    }
    Ok(Key { endpoint: Endpoint::parse(authority, 80).ok_or_else(wrong)?, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_hosts_with_a_protocol() {
        let key = parse_upstream("h2c://App.example:9000/").unwrap();
        assert_eq!((key.protocol, key.endpoint.to_string()), (Protocol::Http2, "app.example:9000".to_owned()));
        assert_eq!(parse_upstream("http://[::1]:9000").unwrap().endpoint.to_string(), "[::1]:9000");
        for wrong in ["https://a", "a:80", "http://", "http://a/path", "http://u@a", "http://a:99999", "http://a:"] {
            assert!(parse_upstream(wrong).is_err(), "{wrong}");
        }
    }

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
