//! Who speaks first where: as the ports' names say, and as connections have shown.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crds::policy::Direction;
use tokio::time::Instant;
use wire::speaker::{Speaker, Speakers as Declared};

/// Destinations that are remembered, at most.
const MAX: usize = 1024;

/// How long one is. It may be another application by then.
const KEPT: Duration = Duration::from_secs(600);

/// What is known, for all workers.
#[derive(Debug, Default)]
pub(crate) struct Speakers {
    declared: Declared,
    /// Until when the server is known to speak first.
    found: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Speakers {
    /// With what the names of the pod's ports say.
    pub(crate) fn new(declared: Declared) -> Self {
        Self { declared, found: Mutex::default() }
    }

    /// Who speaks first at a destination, if that is known.
    pub(super) fn first(&self, direction: Direction, destination: SocketAddr, now: Instant) -> Option<Speaker> {
        let declared = self.declared.0.get(&destination.port()).filter(|_| direction == Direction::Inbound);
        let found = || self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).copied();
        declared.copied().or_else(|| found().is_some_and(|until| now < until).then_some(Speaker::Server))
    }

    /// The server was heard to speak first. Of too many the oldest is forgotten.
    pub(super) fn remember(&self, destination: SocketAddr, now: Instant) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MAX && !found.contains_key(&destination) {
            found.retain(|_, until| now < *until);
            let oldest = found.iter().min_by_key(|(_, until)| **until).map(|(oldest, _)| *oldest);
            if let Some(oldest) = oldest.filter(|_| found.len() >= MAX) {
                found.remove(&oldest);
            }
        }
        found.insert(destination, now + KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 3306))
    }

    #[tokio::test]
    async fn server_that_spoke_first_is_remembered_for_a_while() {
        let (speakers, now) = (Speakers::default(), Instant::now());
        assert_eq!(speakers.first(Direction::Outbound, address(1), now), None);
        speakers.remember(address(1), now);
        assert_eq!(speakers.first(Direction::Outbound, address(1), now + KEPT / 2), Some(Speaker::Server));
        assert_eq!(speakers.first(Direction::Outbound, address(2), now), None);
        assert_eq!(speakers.first(Direction::Outbound, address(1), now + KEPT), None);
    }

    #[tokio::test]
    async fn memory_is_bounded_and_forgets_the_oldest() {
        let (speakers, now) = (Speakers::default(), Instant::now());
        for n in 0..=MAX {
            speakers.remember(address(n), now + Duration::from_millis(n as u64));
        }
        assert_eq!(speakers.found.lock().unwrap().len(), MAX);
        assert_eq!(speakers.first(Direction::Inbound, address(0), now), None);
        assert_eq!(speakers.first(Direction::Inbound, address(MAX), now), Some(Speaker::Server));
    }

    #[tokio::test]
    async fn name_of_a_port_holds_for_the_application_only() {
        let speakers = Speakers::new("3306=client".parse().unwrap());
        speakers.remember(address(1), Instant::now());
        assert_eq!(speakers.first(Direction::Inbound, address(1), Instant::now()), Some(Speaker::Client));
        assert_eq!(speakers.first(Direction::Outbound, address(1), Instant::now()), Some(Speaker::Server));
    }
}
