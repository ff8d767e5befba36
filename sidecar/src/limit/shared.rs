//! Limits that hold across pods, by counts in Redis.
//!
//! All limits of a pass are decided by one script, which checks all and then charges all, or none ([`Store::pass`]). What the script
//! computes is exact, and is written a second time in Rust ([`model`]): there it is the oracle of the script's tests, and the
//! arithmetic of counts that a pod keeps for itself. Both are functions of a stored count and a time.
//!
//! - **Time** is the server's. A count has a time of its own that never goes back: where the server's clock steps back, by
//!   however much, nobody is denied who would not have been, and where it steps forward, a count is at most full again. Windows of
//!   a calendar are of the server's time as it is.
//! - **A charge has an id.** What a pass charged is given back once, by its [`Ticket`], however often that is tried; and never more
//!   than would be there by now if it had not been charged, so refunds let nobody over a limit.
//! - **Shadow.** A limit in Shadow has a count of its own and decides on it as if it were in force: it is charged when it allows a
//!   request that is not denied otherwise. It denies nothing, and no other count knows of it.
//! - **A charge that nobody answered counts as charged.** It is in no ticket.
//! - **Redis Cluster.** Counts in different slots can't be charged at once, so it is group after group, in the order in which
//!   their first limits come: the tightest belong first. When a later group denies, the earlier ones are refunded, so for a moment they may deny a request that
//!   could have passed, and never the other way round.
//! - **Leases** ([`Store::lease`]) are tokens of a bucket taken ahead. They are reserved out of its burst until they end, so that never more than burst
//!   and rate are admitted, whenever they are spent.
//!
//! Every count expires a second after there is nothing in it that its absence would not say as well.

mod model;
mod rule;
mod script;
mod store;
#[cfg(test)]
mod tests;

pub(in crate::limit) use self::model::{Count, Mark, pass as decide};
pub(crate) use self::{
    model::{Answer, Verdict},
    rule::{Bucket, Charge, ChargeId, Fixed, Micros, Part, Rule, Sliding, Slots, Treatment},
    store::{Decision, Failure, Held, Lease, Leased, Pass, Store, Ticket},
};
