//! Opens connections.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{Endpoint, resolve::Resolver};
use crate::{error::ForwardError, own::Own};

/// A peer that is gone without a word is found within 30 s: 15 s of silence, then three probes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);

/// Opens connections for all workers, but none to the sidecar itself.
#[derive(Debug)]
pub(crate) struct Connector {
    resolver: Resolver,
    own: Arc<Own>,
}

impl Connector {
    /// A connector that refuses the addresses of `own`.
    pub(crate) fn new(resolver: Resolver, own: Arc<Own>) -> Self {
        Self { resolver, own }
    }

    /// Opens a connection within `limit`. A name's addresses are tried in turn, each with an equal share of the time left.
    pub(crate) async fn connect(&self, endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ForwardError> {
        let deadline = Instant::now() + limit;
        let too_late = || ForwardError::ConnectTimeout { upstream: endpoint.to_string(), limit };
        let addresses = match endpoint {
            Endpoint::Address(address) => vec![*address],
            Endpoint::Name(host, port) => self.resolver.resolve(host, *port, limit).await?,
        };
        let mut last = too_late();
        for (tried, address) in addresses.iter().enumerate() {
            // Only an address tells: a name may mean anything, and something else by now.
            if self.own.has(*address) {
                last = ForwardError::OwnPort(endpoint.to_string());
                continue;
            }
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
}

fn prepared(stream: TcpStream, address: SocketAddr) -> Result<TcpStream, ForwardError> {
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE));
    set.map_err(|source| ForwardError::Connect { address, source })?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn name_that_means_a_port_of_our_own_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Arc::new(Own::default());
        let resolver = Resolver::new(1, |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]));
        let connector = Connector::new(resolver, Arc::clone(&own));
        let endpoint = Endpoint::Name("innocent.example".into(), address.port());
        let limit = Duration::from_secs(10);
        connector.connect(&endpoint, limit).await.unwrap();
        own.add(address);
        let refused = connector.connect(&endpoint, limit).await;
        assert!(matches!(refused, Err(ForwardError::OwnPort(_))), "{refused:?}");
    }
}
