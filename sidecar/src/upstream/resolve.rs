//! Names to addresses, by the system's resolver. It blocks a thread for each look-up and can't be told to stop, so the look-ups of
//! the pod are bounded together; whoever finds no place in time is refused.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::error::ForwardError;

/// Look-ups of the pod at a time, those included that nobody waits for any more.
const MAX_LOOKUPS: usize = 32;

type Lookup = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Looks up names; shared by the workers.
#[derive(Debug)]
pub(crate) struct Resolver {
    places: Arc<Semaphore>,
    look_up: Lookup,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(MAX_LOOKUPS, |host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }
}

impl Resolver {
    pub(super) fn new(places: usize, look_up: Lookup) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), look_up }
    }

    /// The addresses of a host, at least one, within `limit`.
    pub(super) async fn resolve(&self, host: &Arc<str>, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, ForwardError> {
        let deadline = Instant::now() + limit;
        let too_late = || ForwardError::ResolveTimeout { host: host.to_string(), limit };
        let failed = |source| ForwardError::Resolve { host: host.to_string(), source };
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await.map_err(|_| too_late())?;
        let (look_up, name) = (self.look_up, Arc::clone(host));
        let found = spawn_blocking(move || {
            let _place = place; // until the resolver is done, however long ago the caller left
            look_up(&name, port)
        });
        let found = timeout_at(deadline, found).await.map_err(|_| too_late())?;
        let addresses = found.map_err(io::Error::other).flatten().map_err(failed)?;
        if addresses.is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
    static ASKED: AtomicUsize = AtomicUsize::new(0);

    /// A resolver that answers nobody before it is told to.
    fn stuck(_: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        ASKED.fetch_add(1, Ordering::SeqCst);
        let _open = OPEN.1.wait_while(OPEN.0.lock().unwrap(), |open| !*open);
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }

    #[tokio::test]
    async fn look_ups_that_nobody_waits_for_still_count() {
        let resolver = Resolver::new(2, stuck);
        let host: Arc<str> = "slow.example".into();
        let asks = (0..10).map(|_| resolver.resolve(&host, 80, Duration::from_millis(100)));
        for refused in futures::future::join_all(asks).await {
            assert!(matches!(refused, Err(ForwardError::ResolveTimeout { .. })), "{refused:?}");
        }
        assert_eq!(ASKED.load(Ordering::SeqCst), 2, "no more than the places");
        *OPEN.0.lock().unwrap() = true;
        OPEN.1.notify_all();
        let found = resolver.resolve(&host, 80, Duration::from_secs(10)).await.unwrap();
        assert_eq!(found, ["127.0.0.1:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn name_without_addresses_is_an_error() {
        let resolver = Resolver::new(1, |_, _| Ok(Vec::new()));
        let failed = resolver.resolve(&"a.example".into(), 80, Duration::from_secs(10)).await;
        assert!(matches!(failed, Err(ForwardError::Resolve { .. })), "{failed:?}");
    }
}
