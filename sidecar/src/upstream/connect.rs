//! Opens connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Endpoint, Key, Protocol,
    race::{ordered, race},
    resolve::Resolver,
};
use crate::{
    error::ForwardError,
    io::Stream,
    own::Own,
    tls::{Offer, Origination},
};

/// A peer that is gone without a word is found within 30 s: 15 s of silence, then three probes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);

/// How long IPv4 comes first after it won, since IPv6 had been tried before.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Opens connections for all workers, but none to the sidecar itself.
#[derive(Debug)]
pub(crate) struct Connector {
    resolver: Resolver,
    own: Arc<Own>,
    /// Connections that were opened to names.
    turn: AtomicUsize,
    /// Until when IPv4 comes first.
    v4_first: Mutex<Option<Instant>>,
}

impl Connector {
    /// A connector that refuses the addresses of `own`.
    pub(crate) fn new(resolver: Resolver, own: Arc<Own>) -> Self {
        Self { resolver, own, turn: AtomicUsize::new(0), v4_first: Mutex::default() }
    }

    /// The addresses of a host, within `limit`.
    pub(crate) async fn resolve(&self, host: &Arc<str>, limit: Duration) -> Result<Arc<[IpAddr]>, ForwardError> {
        self.resolver.resolve(host, limit).await
    }

    /// Opens a connection of a kind within `limit`, with TLS where the key says so.
    pub(crate) async fn open(&self, key: &Key, limit: Duration) -> Result<Stream, ForwardError> {
        match &key.tls {
            None => Ok(self.connect(&key.endpoint, limit).await?.into()),
            Some(tls) => {
                let deadline = Instant::now() + limit;
                Box::pin(self.open_tls(&key.endpoint, tls, Offer::Only(key.protocol), deadline, limit)).await
            }
        }
    }

    /// What is spoken with an upstream under TLS, which chooses. It is asked once, by a connection of its own.
    pub(crate) async fn protocol(
        self: &Arc<Self>,
        key: &Key,
        tls: &Origination,
        limit: Duration,
    ) -> Result<Protocol, ForwardError> {
        if let Some(known) = tls.known() {
            return Ok(known);
        }
        let deadline = Instant::now() + limit;
        let ask = || {
            let (connector, endpoint, tls) = (Arc::clone(self), key.endpoint.clone(), tls.clone());
            async move {
                drop(connector.open_tls(&endpoint, &tls, Offer::Either, deadline, limit).await?);
                Ok(tls.known().unwrap_or(Protocol::Http1))
            }
        };
        let answer = tls.questions().answer(&key.endpoint, deadline, ask).await;
        answer.map_err(|error| error.unwrap_or(ForwardError::ConnectTimeout { upstream: key.endpoint.to_string(), limit }))
    }

    async fn open_tls(
        &self,
        endpoint: &Endpoint,
        tls: &Origination,
        offer: Offer,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Stream, ForwardError> {
        let socket = self.connect(endpoint, deadline.saturating_duration_since(Instant::now())).await?;
        match timeout_at(deadline, tls.connect(socket, offer)).await {
            Ok(connected) => connected.map_err(|source| ForwardError::Tls { upstream: endpoint.to_string(), source }),
            Err(_) => {
                tls.late();
                Err(ForwardError::ConnectTimeout { upstream: endpoint.to_string(), limit })
            }
        }
    }

    /// Opens a connection within `limit`. The addresses of a name race.
    pub(crate) async fn connect(&self, endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ForwardError> {
        let deadline = Instant::now() + limit;
        let too_late = || ForwardError::ConnectTimeout { upstream: endpoint.to_string(), limit };
        let addresses = match endpoint {
            Endpoint::Address(address) => vec![*address],
            Endpoint::Name(host, port) => self.addresses(host, *port, limit).await?,
        };
        // Only an address tells: a name may mean anything, and something else by now.
        let allowed: Vec<SocketAddr> = addresses.iter().copied().filter(|address| !self.own.has(*address)).collect();
        if allowed.is_empty() {
            return Err(ForwardError::OwnPort(endpoint.to_string()));
        }
        let attempt = async |address| {
            let stream = TcpStream::connect(address).await.and_then(prepared);
            stream.map_err(|source| ForwardError::Connect { address, source })
        };
        match race(allowed, deadline, attempt).await {
            Ok(stream) => {
                self.remember(&addresses, &stream);
                Ok(stream)
            }
            Err(error) => Err(error.unwrap_or_else(too_late)),
        }
    }

    /// The addresses of a name in the order in which they are tried.
    async fn addresses(&self, host: &Arc<str>, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, ForwardError> {
        let known = self.resolver.resolve(host, limit).await?;
        let known: Vec<SocketAddr> = known.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let v4_first = self.v4_first.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until);
        Ok(ordered(&known, self.turn.fetch_add(1, Ordering::Relaxed), v4_first))
    }

    /// Remembers that IPv6 was tried first and IPv4 won.
    fn remember(&self, tried: &[SocketAddr], stream: &TcpStream) {
        if tried.first().is_some_and(SocketAddr::is_ipv6) && stream.peer_addr().is_ok_and(|peer| peer.is_ipv4()) {
            *self.v4_first.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REMEMBERED);
        }
    }
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn upstream_that_has_died_is_found_out_within_half_a_minute() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connector = Connector::new(Resolver::knowing("a.example", &[]), Arc::default());
        let stream =
            connector.connect(&Endpoint::Address(listener.local_addr().unwrap()), Duration::from_secs(10)).await.unwrap();
        let socket = SockRef::from(&stream);
        let (quiet, between) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        assert!(
            socket.keepalive().unwrap() && quiet + between * socket.tcp_keepalive_retries().unwrap() <= Duration::from_secs(30)
        );
    }

    #[tokio::test]
    async fn name_that_means_a_port_of_our_own_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Arc::new(Own::default());
        let resolver = Resolver::knowing("innocent.example", &[[127, 0, 0, 1].into()]);
        let connector = Connector::new(resolver, Arc::clone(&own));
        let endpoint = Endpoint::Name("innocent.example".into(), address.port());
        let limit = Duration::from_secs(10);
        connector.connect(&endpoint, limit).await.unwrap();
        own.add(address);
        let refused = connector.connect(&endpoint, limit).await;
        assert!(matches!(refused, Err(ForwardError::OwnPort(_))), "{refused:?}");
    }
}
