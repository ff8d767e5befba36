//! One upstream answer for many clients: the body that is shared while it comes in.
//!
//! The first who misses a key gets a [`Filler`] from [`Fills::turn`] and fetches; who misses it meanwhile gets a [`Reader`].
//!
//! ```text
//!                    begin            finish, length right
//! waiting for a head ------> filling ---------------------> complete
//!    |        |                 |
//!    |        | uncacheable     | fail, wrong length, dropped, nobody left
//!    |        v                 v
//!    |   uncacheable          failed     (fail or drop before a head leads here too)
//!    +-----------------------------^
//! ```
//!
//! **Speed.** While the body may be stored, all of it is kept: the driver may be 256 KiB ahead of the *fastest* reader, others
//! follow at their own pace, and late ones begin at the start. A body that grows beyond `Limits::object` or the pod's [`Budget`] is only passed on: chunks go as soon as
//! all readers have them, nobody joins any more, and the driver stays within 256 KiB of the *slowest* (beyond the budget: one chunk).
//!
//! **A slow client** then would hold up the others. It is given [`Limits::patience`] in all: the time in which it stood at the oldest chunk
//! while another reader had nothing to read. After that it is cut off with [`Failure::TooSlow`], which breaks its own connection. The other ways
//! are worse: a spill for it is unbounded memory, and a request of its own from where it stands needs a range of the same representation,
//! which an answer without a length seldom allows. Alone, or among equally slow ones, it is never cut off. A length known to be too
//! large never comes that far: the waiters are released at the head.
//!
//! **Truth.** A body that is shorter or longer than `Content-Length` is never complete; its readers get an error behind what came, never an
//! end. A driver that is dropped has failed.

mod budget;
mod driver;
mod reader;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use budget::Budget;
#[cfg(test)]
use driver::Done;
pub(crate) use driver::Filler;
pub(crate) use reader::{NoHead, Reader};
use state::State;
use table::Shared;
pub(crate) use table::{Alone, Counts, Fills, Mark, Turn};

/// Bounds of fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest body that is kept whole, in bytes.
    pub object: u64,
    /// How far the driver may be ahead, in bytes.
    pub window: u64,
    /// How long in all a reader may hold up others.
    pub patience: Duration,
    /// How long a fill without a head has readers join; after that the next one to come leads a fill of its own.
    pub wait: Duration,
    /// Readers of one fill.
    pub readers: usize,
    /// Fills at a time.
    pub fills: usize,
    /// Keys remembered as uncacheable.
    pub marks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            object: 1024 * 1024,
            window: 256 * 1024,
            patience: Duration::from_secs(2),
            wait: Duration::from_secs(3),
            readers: 16 * 1024,
            fills: 16 * 1024,
            marks: 64 * 1024,
        }
    }
}

/// Why a body doesn't come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The upstream's answer broke.
    #[error("the upstream failed")]
    Upstream,
    /// It ended before the length that it announced.
    #[error("the body is shorter than its Content-Length")]
    Short,
    /// It went on beyond the length that it announced.
    #[error("the body is longer than its Content-Length")]
    Long,
    /// Whoever fetched it is gone.
    #[error("the fetch was given up")]
    DriverGone,
    /// Nobody reads it, and it isn't to be stored.
    #[error("nobody reads it any more")]
    Abandoned,
    /// This reader held up others for too long.
    #[error("the client was too slow for the others")]
    TooSlow,
}

/// How many purges of all, and changes of the target, a fetch must have seen before it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// Place in the order of purges.
    pub purges: u128,
    /// Place in the order of changes.
    pub changes: u64,
}

impl Since {
    /// Whether what began then has seen all that `other` has.
    fn is_after(self, other: Self) -> bool {
        self.purges >= other.purges && self.changes >= other.changes
    }
}

/// What driver and readers share.
struct Fill {
    key: Box<[u8]>,
    /// By which its table finds it.
    hash: u64,
    since: Since,
    started: Instant,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

impl Fill {
    /// Held for a few reads and writes, never while something is waited for, woken or copied.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let kept = self.state().kept();
        self.shared.budget.give_back(kept);
    }
}
