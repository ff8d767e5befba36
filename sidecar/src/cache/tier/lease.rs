//! The right to fetch an answer for all pods.

use super::{
    commands::Key,
    writer::{Queue, Write},
};

/// Stands in the place of a holder for a while after an answer turned out to be for one client alone: nobody waits for others meanwhile.
pub(super) const UNCACHEABLE: &str = "-";

/// A lease on fetching what a key leads to. Dropped, it is released, and another pod's request may fetch; in any case it runs out.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Name of the lease in Redis.
    fill: String,
    token: String,
    /// Whether there is something to release.
    held: bool,
    queue: Queue,
}

impl Lease {
    /// To be taken.
    pub(super) fn new(key: &Key, queue: Queue) -> Self {
        Self { fill: key.fill.clone(), token: format!("{:032x}", fastrand::u128(..)), held: true, queue }
    }

    /// What tells it from others on the same key, also from one that this pod had before: a late answer under an old lease replaces
    /// none that was fetched after it.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Whether it is one on fetching what this key leads to.
    pub(super) fn is_on(&self, key: &Key) -> bool {
        self.fill == key.fill
    }

    /// It was another one's.
    pub(super) fn not_taken(mut self) {
        self.held = false;
    }

    /// What was fetched is for one client alone: for a while, requests wait for none of this key.
    pub(crate) fn uncacheable(mut self) {
        self.held = false;
        self.queue.add(Write::Mark { fill: self.fill.clone(), token: self.token.clone() });
    }

    /// It goes over to the one who stores what was fetched.
    pub(super) fn spend(mut self) -> (String, String) {
        self.held = false;
        (std::mem::take(&mut self.fill), std::mem::take(&mut self.token))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            // If there is no room, it runs out by itself.
            self.queue.add(Write::Release { fill: self.fill.clone(), token: self.token.clone() });
        }
    }
}
