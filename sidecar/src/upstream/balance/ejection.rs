//! Addresses that fail are left out for a time. Counts are atomics that all workers share; the decision to leave one out is made under a
//! lock of the name, so that never too many are.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use crds::policy::load_balancing::Ejection;

use crate::upstream::standing::{Counts, Millis};

/// The time for which an address is left out grows up to so many times the first.
const MAX_TIMES: u32 = 10;

/// The settings, compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ejecting {
    row: u32,
    time: u64,
    max_percent: usize,
}

impl Ejecting {
    pub(super) fn new(settings: &Ejection) -> Self {
        Self {
            row: u32::try_from(settings.consecutive_failures).unwrap_or(1),
            time: u64::try_from(settings.time.0.as_millis()).unwrap_or(u64::MAX / 64),
            max_percent: usize::try_from(settings.max_ejected_percent).unwrap_or_default(),
        }
    }

    /// How many of so many addresses may be left out.
    fn allowed(&self, addresses: usize) -> usize {
        let share = addresses * self.max_percent / 100;
        let at_least = usize::from(self.max_percent > 0);
        share.max(at_least).min(addresses.saturating_sub(1))
    }
}

/// How one address stands.
#[derive(Debug, Default)]
pub(super) struct Health {
    row: AtomicU32,
    ejected_until: AtomicU64,
    /// How often in a row it was left out.
    times: AtomicU32,
}

impl Health {
    /// Whether it is left out at `now`.
    pub(super) fn is_ejected(&self, now: Millis) -> bool {
        now.0 < self.ejected_until.load(Relaxed)
    }

    /// A try succeeded.
    pub(super) fn succeeded(&self) {
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        if self.times.load(Relaxed) != 0 {
            self.times.store(0, Relaxed);
        }
    }
}

/// The addresses of a name.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    addresses: Mutex<HashMap<SocketAddr, Arc<Health>>>,
}

impl Cluster {
    /// The health of these addresses, which are in ascending order; others are forgotten.
    pub(super) fn follow(&self, addresses: &[SocketAddr]) -> Vec<Arc<Health>> {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|address, _| addresses.binary_search(address).is_ok());
        addresses.iter().map(|address| Arc::clone(known.entry(*address).or_default())).collect()
    }

    /// A try failed. Tells whether the address is left out from now on.
    pub(super) fn failed(&self, health: &Health, settings: &Ejecting, now: Millis) -> bool {
        if health.row.fetch_add(1, Relaxed) + 1 < settings.row || health.is_ejected(now) {
            return false;
        }
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let ejected = addresses.values().filter(|health| health.is_ejected(now)).count();
        if health.is_ejected(now) || ejected >= settings.allowed(addresses.len()) {
            return false;
        }
        let times = (health.times.load(Relaxed) + 1).min(MAX_TIMES);
        health.times.store(times, Relaxed);
        health.row.store(0, Relaxed);
        health.ejected_until.store(now.0 + settings.time.saturating_mul(times.into()), Relaxed);
        true
    }
}

impl Counts for Cluster {
    fn is_blank(&self) -> bool {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.values().all(|health| health.row.load(Relaxed) == 0 && health.times.load(Relaxed) == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ejecting(row: u32, max_percent: usize) -> Ejecting {
        Ejecting { row, time: 1000, max_percent }
    }

    fn cluster(count: u8) -> (Cluster, Vec<Arc<Health>>) {
        let cluster = Cluster::default();
        let addresses: Vec<SocketAddr> = (0..count).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect();
        let healths = cluster.follow(&addresses);
        (cluster, healths)
    }

    #[test]
    fn share_allows_one_at_least_and_never_all() {
        let cases = [(1, 33, 0), (2, 33, 1), (3, 33, 1), (10, 33, 3), (10, 100, 9), (10, 0, 0), (1, 100, 0), (0, 100, 0)];
        for (addresses, percent, allowed) in cases {
            assert_eq!(ejecting(1, percent).allowed(addresses), allowed, "{percent} % of {addresses}");
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_begins_anew() {
        let ((cluster, healths), settings) = (cluster(3), ejecting(3, 33));
        let fails = |at| cluster.failed(&healths[0], &settings, Millis(at));
        assert!(!fails(0) && !fails(0));
        healths[0].succeeded();
        assert!(!fails(0) && !fails(0) && fails(0));
        assert!(healths[0].is_ejected(Millis(999)) && !healths[0].is_ejected(Millis(1000)));
    }

    #[test]
    fn address_that_fails_again_is_left_out_for_longer_and_then_forgiven() {
        let ((cluster, healths), settings) = (cluster(3), ejecting(1, 33));
        assert!(cluster.failed(&healths[0], &settings, Millis(0)));
        assert!(cluster.failed(&healths[0], &settings, Millis(1000)));
        assert!(healths[0].is_ejected(Millis(2999)) && !healths[0].is_ejected(Millis(3000)));
        healths[0].succeeded();
        assert!(cluster.failed(&healths[0], &settings, Millis(3000)));
        assert!(!healths[0].is_ejected(Millis(4000)));
    }

    proptest! {
        #[test]
        fn never_more_are_left_out_than_allowed(
            count in 1..12u8, percent in 0..=100usize,
            events in proptest::collection::vec((any::<prop::sample::Index>(), 0..5000u64, any::<bool>()), 0..300),
        ) {
            let ((cluster, healths), settings) = (cluster(count), ejecting(2, percent));
            let mut events = events;
            events.sort_by_key(|(_, at, _)| *at);
            for (which, at, fails) in events {
                let health = &healths[which.index(healths.len())];
                if fails { cluster.failed(health, &settings, Millis(at)); } else { health.succeeded(); }
                let ejected = healths.iter().filter(|health| health.is_ejected(Millis(at))).count();
                prop_assert!(ejected <= settings.allowed(healths.len()) && ejected < healths.len());
            }
        }
    }
}
