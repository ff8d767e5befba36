//! What to do about a Lease that was just read. Pure: time is an argument.

use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};
use tokio::time::Instant;

use super::DURATION;

/// What a lease said when this process last saw it change.
#[derive(Debug)]
pub(super) struct Observed {
    holder: Option<String>,
    renewed: Option<MicroTime>,
    since: Instant,
}

/// What is due.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Take the lease, or renew it.
    Hold {
        /// How often it has changed hands by then.
        transitions: i32,
    },
    /// Somebody else leads.
    Wait,
    /// This process led, and now another one does.
    Lost {
        /// Who.
        holder: String,
    },
}

/// Decides, and remembers what was read.
pub(super) fn decide(observed: &mut Option<Observed>, lease: &LeaseSpec, me: &str, leads: bool, now: Instant) -> Step {
    let unchanged = |seen: &Observed| seen.holder == lease.holder_identity && seen.renewed == lease.renew_time;
    let since = observed.take().filter(unchanged).map_or(now, |seen| seen.since);
    *observed = Some(Observed { holder: lease.holder_identity.clone(), renewed: lease.renew_time.clone(), since });
    let transitions = lease.lease_transitions.unwrap_or_default();
    match lease.holder_identity.as_deref().filter(|holder| !holder.is_empty()) {
        // Also what an earlier process of this pod held: it has ended.
        Some(holder) if holder == me => Step::Hold { transitions },
        Some(holder) if leads => Step::Lost { holder: holder.to_owned() },
        Some(_) if now.duration_since(since) < DURATION => Step::Wait,
        None if leads => Step::Lost { holder: "nobody".to_owned() },
        _ => Step::Hold { transitions: transitions.saturating_add(1) },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn lease(holder: Option<&str>, renewed: i64) -> LeaseSpec {
        let renewed = Timestamp::from_second(renewed).map(MicroTime).ok();
        LeaseSpec { holder_identity: holder.map(str::to_owned), renew_time: renewed, ..LeaseSpec::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn free_lease_is_taken_at_once() {
        for holder in [None, Some("")] {
            let step = decide(&mut None, &lease(holder, 0), "me", false, Instant::now());
            assert_eq!(step, Step::Hold { transitions: 1 }, "{holder:?}");
        }
    }

    #[test]
    fn lease_is_taken_only_after_nothing_changed_for_its_whole_time() {
        let (mut observed, start) = (None, Instant::now());
        let mut at =
            |seconds, renewed| decide(&mut observed, &lease(Some("other"), renewed), "me", false, start + SECOND * seconds);
        assert_eq!(at(0, 1), Step::Wait);
        assert_eq!(at(14, 1), Step::Wait);
        assert_eq!(at(16, 2), Step::Wait, "it was renewed");
        assert_eq!(at(30, 2), Step::Wait);
        assert_eq!(at(31, 2), Step::Hold { transitions: 1 });
    }

    #[test]
    fn times_in_the_lease_count_for_nothing() {
        for renewed in [0, 4_000_000_000] {
            let (mut observed, start) = (None, Instant::now());
            assert_eq!(decide(&mut observed, &lease(Some("other"), renewed), "me", false, start), Step::Wait);
            let later = decide(&mut observed, &lease(Some("other"), renewed), "me", false, start + SECOND * 15);
            assert_eq!(later, Step::Hold { transitions: 1 });
        }
    }

    #[test]
    fn own_lease_is_renewed_and_one_of_an_earlier_process_too() {
        for leads in [true, false] {
            assert_eq!(decide(&mut None, &lease(Some("me"), 0), "me", leads, Instant::now()), Step::Hold { transitions: 0 });
        }
    }

    #[test]
    fn leader_that_sees_another_holder_has_lost() {
        let step = decide(&mut None, &lease(Some("thief"), 0), "me", true, Instant::now());
        assert_eq!(step, Step::Lost { holder: "thief".to_owned() });
        assert_eq!(decide(&mut None, &lease(None, 0), "me", true, Instant::now()), Step::Lost { holder: "nobody".to_owned() });
    }
}
