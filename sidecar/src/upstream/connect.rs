//! Opens connections.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::Endpoint;
use crate::error::ForwardError;

/// A peer that is gone without a word is found within 30 s: 15 s of silence, then three probes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);

/// Opens a connection within `limit`. A name's addresses are tried in turn, each with an equal share of the time left.
pub(crate) async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ForwardError> {
    let deadline = Instant::now() + limit;
    let too_late = || ForwardError::ConnectTimeout { upstream: endpoint.to_string(), limit };
    let addresses = timeout_at(deadline, resolve(endpoint)).await.map_err(|_| too_late())??;
    let mut last = too_late();
    for (tried, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        last = match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return prepared(stream, *address),
            Ok(Err(source)) => ForwardError::Connect { address: *address, source },
            Err(_) => too_late(),
        };
    }
    Err(last)
}

async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, ForwardError> {
    let (host, port) = match endpoint {
        Endpoint::Address(address) => return Ok(vec![*address]),
        Endpoint::Name(host, port) => (host, *port),
    };
    let failed = |source| ForwardError::Resolve { host: host.to_string(), source };
    let addresses: Vec<_> = tokio::net::lookup_host((&**host, port)).await.map_err(failed)?.collect();
    if addresses.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(addresses)
}

fn prepared(stream: TcpStream, address: SocketAddr) -> Result<TcpStream, ForwardError> {
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE));
    set.map_err(|source| ForwardError::Connect { address, source })?;
    Ok(stream)
}
