//! How many connections there may be, in all and from one address, so that no peer keeps the others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a server takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time from one address.
    pub per_peer: usize,
}

/// The places for connections of one server.
#[derive(Debug)]
pub(super) struct Places {
    limits: Limits,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    /// A place for a connection of this peer, or why there is none.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, &'static str> {
        let peer = peer.to_canonical();
        let mut taken = self.lock();
        if taken.values().sum::<usize>() >= self.limits.connections {
            return Err("too_many");
        }
        let own = taken.entry(peer).or_default();
        if *own >= self.limits.per_peer {
            return Err("too_many_of_one_peer");
        }
        *own += 1;
        Ok(Place { places: self.clone(), peer })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_places_for_others_and_gives_its_own_back() {
        let places = Places::new(Limits { connections: 3, per_peer: 2 });
        let [one, other, third] = ["10.0.0.1", "::ffff:10.0.0.2", "10.0.0.3"].map(|address| address.parse::<IpAddr>().unwrap());
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert_eq!(places.take(one).unwrap_err(), "too_many_of_one_peer");
        let _other = places.take(other).unwrap();
        assert_eq!(places.take(third).unwrap_err(), "too_many");
        drop(first);
        assert!(places.take(third).is_ok());
    }
}
