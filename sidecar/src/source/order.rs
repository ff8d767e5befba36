//! Which of the plans that are offered is taken. Pure: streams are numbers, time is an argument.
//!
//! A plan is taken only if its position is lower in no component than that of the plan in force: a replica with a stalled watch
//! can't take a sidecar back. If for [`PATIENCE`] every live stream that has a plan offers only lower ones, the cluster itself
//! went back (a restored etcd), and the best of them is taken.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crds::plan::Position;

/// How long every stream has to offer only lower plans before one is taken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Number of a stream.
pub type StreamId = u64;

/// What to do with a plan that was just offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Take it; then tell [`Order::took`].
    Take,
    /// It is in force already.
    InForce,
    /// It is older than the plan in force.
    Behind,
}

/// The offers of all live streams, held against the plan in force. `P` is whatever makes a plan.
#[derive(Debug)]
pub struct Order<P> {
    current: Option<Current>,
    offers: BTreeMap<StreamId, Offer<P>>,
    /// Since when every offer is lower.
    stuck: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    digest: String,
    position: Position,
    /// Whether it came from an authenticated stream, and not from a cold start.
    authenticated: bool,
}

#[derive(Debug)]
struct Offer<P> {
    digest: String,
    position: Position,
    plan: P,
}

impl<P> Default for Order<P> {
    fn default() -> Self {
        Self { current: None, offers: BTreeMap::new(), stuck: None }
    }
}

impl<P> Order<P> {
    /// Notes a plan that is in force from a cold start. The first plan of a stream wins over it, whatever its position.
    pub fn cold_start(&mut self, digest: String, position: Position) {
        self.current = Some(Current { digest, position, authenticated: false });
    }

    /// A stream offers a plan; it replaces what the stream offered before.
    pub fn offer(&mut self, stream: StreamId, digest: String, position: Position, plan: P, now: Instant) -> Verdict {
        let verdict = self.judge(&digest, &position);
        self.offers.insert(stream, Offer { digest, position, plan });
        self.look(now);
        verdict
    }

    /// The streams whose last offer is this document, at whatever position.
    pub fn offering<'a>(&'a self, digest: &'a str) -> impl Iterator<Item = StreamId> + 'a {
        self.offers.iter().filter(move |(_, offer)| offer.digest == digest).map(|(&stream, _)| stream)
    }

    /// A plan was taken and is in force.
    pub fn took(&mut self, digest: String, position: Position, now: Instant) {
        self.current = Some(Current { digest, position, authenticated: true });
        self.look(now);
    }

    /// A stream has ended; what it offered counts no more.
    pub fn closed(&mut self, stream: StreamId, now: Instant) {
        self.offers.remove(&stream);
        self.look(now);
    }

    /// When [`restored`](Self::restored) has to be asked next.
    pub fn deadline(&self) -> Option<Instant> {
        self.stuck.map(|since| since + PATIENCE)
    }

    /// The best of the lower plans, if all streams have offered only lower ones for long enough. To be put in force, and then told
    /// to [`took`](Self::took).
    pub fn restored(&mut self, now: Instant) -> Option<(StreamId, &P)> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        // If the plan can't be applied, the next try is a while away, not at once.
        self.stuck = Some(now);
        let best = |offer: &Offer<P>| !self.offers.values().any(|other| other.position > offer.position);
        self.offers.iter().find(|(_, offer)| best(offer)).map(|(&stream, offer)| (stream, &offer.plan))
    }

    fn judge(&self, digest: &str, position: &Position) -> Verdict {
        match &self.current {
            Some(current) if !current.authenticated => Verdict::Take,
            Some(current) if !position.may_follow(&current.position) => Verdict::Behind,
            // The same document at a later position: the position counts from now on.
            Some(current) if current.digest == digest && current.position == *position => Verdict::InForce,
            _ => Verdict::Take,
        }
    }

    fn look(&mut self, now: Instant) {
        let behind = |offer: &Offer<P>| self.judge(&offer.digest, &offer.position) == Verdict::Behind;
        let stuck = !self.offers.is_empty() && self.offers.values().all(behind);
        self.stuck = stuck.then(|| self.stuck.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(policies: u64, proxies: u64) -> Position {
        [("policies", policies.to_string()), ("proxies", proxies.to_string())].into_iter().collect()
    }

    struct Sidecar {
        order: Order<String>,
        start: Instant,
    }

    impl Sidecar {
        fn new() -> Self {
            Self { order: Order::default(), start: Instant::now() }
        }

        fn now(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        /// Takes the plan if it may.
        fn offer(&mut self, second: u64, stream: StreamId, digest: &str, position: &Position) -> Verdict {
            let now = self.now(second);
            let verdict = self.order.offer(stream, digest.to_owned(), position.clone(), digest.to_owned(), now);
            if verdict == Verdict::Take {
                self.order.took(digest.to_owned(), position.clone(), now);
            }
            verdict
        }

        fn restored(&mut self, second: u64) -> Option<String> {
            let now = self.now(second);
            self.order.restored(now).map(|(_, plan)| plan.clone())
        }
    }

    #[test]
    fn newer_plan_is_taken_and_older_is_not() {
        let mut sidecar = Sidecar::new();
        assert_eq!(sidecar.offer(0, 1, "a", &at(10, 10)), Verdict::Take);
        assert_eq!(sidecar.offer(0, 2, "a", &at(10, 10)), Verdict::InForce);
        assert_eq!(sidecar.offer(1, 1, "b", &at(11, 10)), Verdict::Take);
        assert_eq!(sidecar.offer(1, 2, "c", &at(12, 9)), Verdict::Behind, "one lower component is enough");
    }

    #[test]
    fn streams_that_offered_what_is_in_force_are_known_wherever_they_stand() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "a", &at(10, 10));
        assert_eq!(sidecar.offer(1, 2, "b", &at(11, 9)), Verdict::Behind);
        assert_eq!(sidecar.offer(1, 3, "b", &at(11, 11)), Verdict::Take);
        assert_eq!(sidecar.order.offering("b").collect::<Vec<_>>(), [2, 3]);
        sidecar.order.closed(2, sidecar.now(2));
        assert_eq!(sidecar.order.offering("b").collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn replica_with_a_stalled_watch_never_takes_a_sidecar_back() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "new", &at(20, 20));
        assert_eq!(sidecar.offer(1, 2, "old", &at(10, 20)), Verdict::Behind);
        assert_eq!(sidecar.order.deadline(), None, "the other stream has the plan in force");
        assert_eq!(sidecar.restored(3600), None);
    }

    #[test]
    fn restored_cluster_is_believed_after_a_minute() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "before", &at(100, 100));
        sidecar.offer(0, 2, "before", &at(100, 100));
        assert_eq!(sidecar.offer(10, 1, "after", &at(50, 50)), Verdict::Behind);
        assert_eq!(sidecar.order.deadline(), None);
        sidecar.offer(15, 2, "later", &at(51, 50));
        assert_eq!(sidecar.order.deadline(), Some(sidecar.now(75)));
        assert_eq!(sidecar.restored(74), None);
        assert_eq!(sidecar.restored(75).as_deref(), Some("later"), "the best of them");
        let now = sidecar.now(75);
        sidecar.order.took("later".to_owned(), at(51, 50), now);
        assert_eq!(sidecar.order.deadline(), None);
        assert_eq!(sidecar.offer(76, 1, "newest", &at(52, 51)), Verdict::Take);
    }

    #[test]
    fn one_stream_that_recovers_ends_the_wait() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "a", &at(100, 100));
        sidecar.offer(1, 1, "old", &at(50, 50));
        assert!(sidecar.order.deadline().is_some());
        sidecar.offer(30, 1, "b", &at(101, 100));
        assert_eq!(sidecar.restored(90), None);
        sidecar.offer(100, 1, "old", &at(50, 50));
        assert_eq!(sidecar.order.deadline(), Some(sidecar.now(160)), "a new wait begins at its own time");
    }

    #[test]
    fn wait_ends_with_the_last_stream() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "a", &at(100, 100));
        sidecar.offer(1, 1, "old", &at(50, 50));
        let now = sidecar.now(2);
        sidecar.order.closed(1, now);
        assert_eq!(sidecar.restored(100), None, "no stream offers anything");
    }

    #[test]
    fn first_plan_of_a_stream_beats_a_cold_start() {
        let mut sidecar = Sidecar::new();
        sidecar.order.cold_start("forged".to_owned(), at(u64::MAX, u64::MAX));
        assert_eq!(sidecar.offer(0, 1, "true", &at(5, 5)), Verdict::Take);
        assert_eq!(sidecar.offer(1, 2, "older", &at(4, 5)), Verdict::Behind);
    }

    #[test]
    fn plan_that_could_not_be_applied_is_not_tried_without_pause() {
        let mut sidecar = Sidecar::new();
        sidecar.offer(0, 1, "a", &at(100, 100));
        sidecar.offer(0, 1, "broken", &at(50, 50));
        assert_eq!(sidecar.restored(60).as_deref(), Some("broken"));
        assert_eq!(sidecar.restored(61), None);
        assert_eq!(sidecar.restored(120).as_deref(), Some("broken"));
    }

    proptest! {
        #[test]
        fn position_in_force_never_falls_within_a_minute(
            offers in proptest::collection::vec((0_u64..3, 0_u64..6, 0_u64..6), 1..40),
        ) {
            let mut sidecar = Sidecar::new();
            let mut current: Option<Position> = None;
            for (second, (stream, policies, proxies)) in offers.into_iter().enumerate() {
                let position = at(policies, proxies);
                let digest = format!("{policies}.{proxies}");
                if sidecar.offer(second as u64, stream, &digest, &position) == Verdict::Take {
                    prop_assert!(current.as_ref().is_none_or(|current| position.may_follow(current)));
                    current = Some(position);
                }
            }
        }
    }
}
