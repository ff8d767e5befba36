//! Limits in a time of their own: what they would do to requests that nobody sends. The code that decides is that of the proxy.
//!
//! Pods take requests in turn. What pods share is one count, exact also where the limit is Leased. Costs that only an answer tells are not
//! charged.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crds::{
    plan::{AttachedPolicy, Identity, Plan},
    policy::{Direction, Mode},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    Limiter,
    counted::Metrics,
    local::{Charged, Now},
    shared::Micros,
};
use crate::{ask::ExplainRequest, config::ConfigError, route::Routes};

/// Limits, with time standing still between two requests.
#[derive(Debug)]
pub struct Simulation {
    routes: Routes,
    metrics: Metrics,
    pods: Vec<Limiter>,
    /// The counts that pods share.
    store: Limiter,
    turn: usize,
    /// How long a request takes when it is forwarded.
    took: Duration,
    /// Requests that have slots, by when they end, and in their order.
    under_way: BTreeMap<(Micros, u64), (usize, Slots)>,
    asked: u64,
}

type Slots = [SmallVec<[Charged; 1]>; 2];

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Simulated {
    /// It is forwarded, after so long.
    Admitted {
        /// Zero unless a limit delays it.
        after: Duration,
    },
    /// It is answered with 429.
    Denied {
        /// `namespace/policy/rule/limit`.
        by: String,
    },
}

/// What a limit decided.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitTotal {
    /// `namespace/policy/rule/limit`.
    pub name: String,
    /// Whether it acts.
    pub mode: Mode,
    /// Requests that it allowed; in Shadow, would have.
    pub allowed: u64,
    /// Requests that it denied, likewise.
    pub denied: u64,
}

/// A line of a log of requests.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    time: Time,
    #[serde(default)]
    method: Option<String>,
    path: String,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    client: Option<IpAddr>,
}

/// A time of RFC 3339, or seconds since the epoch of Unix.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Time {
    Text(Timestamp),
    Seconds(f64),
}

impl LogLine {
    /// Reads a line: `{"time": "2026-01-01T00:00:00Z", "method": "GET", "host": "shop", "path": "/a?b", "headers": {}, "client": "10.0.0.1"}`.
    /// Only `time` and `path` have to be there. The error says what is wrong.
    pub fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| error.to_string())
    }

    /// When the request came, since the epoch of Unix. None if that is before it, or beyond all calendars.
    pub fn time(&self) -> Option<Duration> {
        match &self.time {
            Time::Text(time) => Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).ok(),
            Time::Seconds(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        }
    }

    /// The request.
    pub fn request(&self, direction: Direction) -> ExplainRequest {
        let url = format!("http://{}{}", self.host.as_deref().unwrap_or("localhost"), self.path);
        ExplainRequest {
            direction,
            method: self.method.clone().unwrap_or_else(|| "GET".to_owned()),
            url,
            headers: self.headers.clone(),
            client: self.client.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        }
    }
}

impl Simulation {
    /// The limits of these policies in so many pods, for requests that take so long.
    ///
    /// # Errors
    /// A policy can't be compiled.
    pub fn new(policies: Vec<AttachedPolicy>, direction: Direction, pods: usize, took: Duration) -> Result<Self, ConfigError> {
        let plan = Plan { policies, ..Plan::default() };
        let metrics = Metrics::default();
        Ok(Self {
            routes: Routes::build(&plan, &Identity::default(), direction)?,
            pods: (0..pods.max(1)).map(|_| Limiter::counting_in(&metrics)).collect(),
            store: Limiter::counting_in(&metrics),
            metrics,
            turn: 0,
            took,
            under_way: BTreeMap::new(),
            asked: 0,
        })
    }

    /// What becomes of a request that comes at a time since the epoch of Unix, which is never before that of the request before.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn ask(&mut self, request: &ExplainRequest, time: Duration) -> Result<Simulated, String> {
        let now = at(time);
        self.end_until(now);
        let pod = self.turn;
        self.turn = (pod + 1) % self.pods.len();
        let (routes, pods, store) = (&self.routes, &self.pods, &self.store);
        let replayed = request.with_facts(|facts, _| pods[pod].replay(store, &routes.select(facts), facts, now))?;
        if let Some(by) = replayed.denied {
            return Ok(Simulated::Denied { by });
        }
        if replayed.slots.iter().any(|slots| !slots.is_empty()) {
            let ends = at(time.saturating_add(replayed.wait).saturating_add(self.took));
            self.asked += 1;
            self.under_way.insert((ends.steady, self.asked), (pod, replayed.slots));
        }
        Ok(Simulated::Admitted { after: replayed.wait })
    }

    /// What each limit decided by now.
    pub fn totals(&self) -> Vec<LimitTotal> {
        let total = |limit: &Arc<super::Limit>| {
            let decisions = self.metrics.decisions(limit);
            let (allowed, denied) =
                decisions.iter().fold((0, 0), |(allowed, denied), one| (allowed + one.allowed, denied + one.denied));
            LimitTotal { name: limit.full_name(), mode: limit.mode, allowed, denied }
        };
        self.routes.every_limit().map(total).collect()
    }

    /// Requests that have ended by now give back what they had.
    fn end_until(&mut self, now: Now) {
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= now.steady) {
            let ((time, _), (pod, [own, shared])) = entry.remove_entry();
            let then = Now { steady: time, wall: time };
            self.pods[pod].replay_end(&own, then);
            self.store.replay_end(&shared, then);
        }
    }
}

/// Both clocks go as that of Unix does.
fn at(time: Duration) -> Now {
    let micros = Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX);
    Now { steady: micros, wall: micros }
}

/// Now, since the epoch of Unix.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use crds::{
        plan::{Attachment, ObjectRef},
        policy::PolicyRule,
    };
    use serde_json::{Value, json};

    use super::*;

    fn simulation(limits: &Value, pods: usize, took: Duration) -> Simulation {
        let rules: Vec<PolicyRule> = serde_json::from_value(json!([{"name": "all", "rateLimits": limits}])).unwrap();
        let (policy, direction) = (ObjectRef::new("shop", "api"), Direction::Inbound);
        let policy = AttachedPolicy { policy, attachment: Attachment::Proxy, direction, rules: rules.into() };
        Simulation::new(vec![policy], direction, pods, took).unwrap()
    }

    /// How many of so many requests pass, of which one comes every `millis`.
    fn passed(simulation: &mut Simulation, requests: u32, millis: u64) -> usize {
        let start = Duration::from_secs(1_800_000_000);
        let time = |number: u32| start + Duration::from_millis(millis) * number;
        let asked = (0..requests).map(|number| simulation.ask(&ExplainRequest::to("http://a/"), time(number)).unwrap());
        asked.filter(|asked| matches!(asked, Simulated::Admitted { .. })).count()
    }

    #[test]
    fn pods_count_for_themselves_or_together() {
        for (scope, pods, expected) in [("Pod", 1, 20), ("Pod", 3, 60), ("Shared", 3, 20)] {
            let limit = json!([{"name": "rate", "scope": scope, "limit": {"requests": 1, "per": "1s", "burst": 11}}]);
            let mut simulation = simulation(&limit, pods, Duration::ZERO);
            // Ten seconds, without the one at its end: 11 at once, and one a second after.
            assert_eq!(passed(&mut simulation, 1000, 10), expected, "{scope} {pods}");
            let total = LimitTotal {
                name: "shop/api/all/rate".to_owned(),
                mode: Mode::Enforce,
                allowed: expected as u64,
                denied: 1000 - expected as u64,
            };
            assert_eq!(simulation.totals(), [total], "{scope} {pods}");
        }
    }

    #[test]
    fn slots_are_free_when_requests_have_ended() {
        let limit = json!([{"name": "slots", "limit": {"algorithm": "Concurrency", "requests": 2}}]);
        // Two of the ten that come in the 100 ms that one takes.
        assert_eq!(passed(&mut simulation(&limit, 1, Duration::from_millis(100)), 100, 10), 20);
        assert_eq!(passed(&mut simulation(&limit, 1, Duration::from_millis(20)), 100, 10), 100);
    }

    #[test]
    fn shadow_denies_nothing_and_says_what_it_would_have() {
        let limits = json!([{"name": "rate", "limit": {"requests": 50, "per": "1s", "burst": 1}},
            {"name": "shadow", "mode": "Shadow", "scope": "Shared", "limit": {"requests": 1, "per": "1h", "burst": 5}}]);
        let mut simulation = simulation(&limits, 1, Duration::ZERO);
        assert_eq!(passed(&mut simulation, 100, 10), 50);
        let totals = simulation.totals();
        assert_eq!((totals[0].allowed, totals[0].denied), (50, 50));
        // Every other one is denied: five that are not take what there is, and the four between them would have been allowed.
        assert_eq!((totals[1].mode, totals[1].allowed), (Mode::Shadow, 9));
        assert_eq!(totals[1].allowed + totals[1].denied, 100);
    }

    #[test]
    fn lines_of_logs_have_a_time_and_a_path() {
        let line =
            LogLine::parse(r#"{"time": "2026-01-01T00:00:00.5Z", "path": "/a?b", "client": "10.0.0.7", "took": 3}"#).unwrap();
        assert_eq!(line.time(), Some(Duration::from_millis(1_767_225_600_500)));
        let request = line.request(Direction::Inbound);
        assert_eq!(
            (request.url.as_str(), request.method.as_str(), request.client),
            ("http://localhost/a?b", "GET", [10, 0, 0, 7].into())
        );
        assert_eq!(LogLine::parse(r#"{"time": 1.5, "path": "/"}"#).unwrap().time(), Some(Duration::from_millis(1500)));
        assert_eq!(LogLine::parse(r#"{"time": -1, "path": "/"}"#).unwrap().time(), None);
        for wrong in
            ["", "{}", r#"{"time": "noon", "path": "/"}"#, r#"{"time": 1}"#, r#"{"time": 1, "path": "/", "client": "me"}"#]
        {
            assert!(LogLine::parse(wrong).is_err(), "{wrong}");
        }
    }
}
