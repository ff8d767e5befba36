//! The stage of the section `rateLimits`: all limits of a request are charged, or none is.

pub mod gcra;
mod local;

use std::{
    fmt::Write as _,
    hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crds::policy::{
    Mode, RateLimit,
    rate_limits::{Key, KeySource, LimitFields},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use smallvec::SmallVec;

use self::gcra::{Gcra, Level, Nanos};
use crate::{facts::Facts, route::Route};

/// Counts that one pod holds at most; a count takes about 90 bytes.
pub const CAPACITY: usize = 100_000;
/// Series of decisions in the metrics; what comes later is counted under `_OTHER`.
const MAX_SERIES: usize = 2000;
const OTHER: &str = "_OTHER";

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A limit of a rule, compiled.
#[derive(Debug)]
pub struct Limit {
    policy: Arc<str>,
    rule: Arc<str>,
    name: Arc<str>,
    mode: Mode,
    gcra: Gcra,
    key: Box<[KeyPart]>,
    fields: LimitFields,
    counters: OnceLock<Counters>,
}

#[derive(Debug)]
enum KeyPart {
    Client,
    Header(HeaderName),
    Route,
    Host,
    Method,
}

#[derive(Debug)]
struct Counters {
    allowed: Counter,
    denied: Counter,
}

impl Limit {
    /// Compiles a limit of a rule; `policy` is `namespace/name`.
    pub fn build(policy: &Arc<str>, rule: &Arc<str>, limit: &RateLimit) -> Result<Self, String> {
        let number = |value: i64| u32::try_from(value).ok();
        let requests = number(limit.limit.requests);
        let burst = number(limit.limit.burst.unwrap_or(limit.limit.requests));
        let gcra = requests.zip(burst).and_then(|(requests, burst)| Gcra::new(requests, limit.limit.per.0, burst));
        Ok(Self {
            policy: Arc::clone(policy),
            rule: Arc::clone(rule),
            name: limit.name.as_str().into(),
            mode: limit.mode,
            gcra: gcra.ok_or_else(|| format!("limit {}: requests, per and burst have to be greater than zero", limit.name))?,
            key: limit.key.iter().map(KeyPart::build).collect::<Result<_, _>>()?,
            fields: limit.fields,
            counters: OnceLock::new(),
        })
    }

    /// Name of the limit, as clients see it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it acts.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl KeyPart {
    fn build(key: &Key) -> Result<Self, String> {
        Ok(match key.source {
            KeySource::ClientIP => Self::Client,
            KeySource::Header => {
                let name = key.name.as_deref().unwrap_or_default();
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?)
            }
            KeySource::Route => Self::Route,
            KeySource::Host => Self::Host,
            KeySource::Method => Self::Method,
        })
    }

    fn hash(&self, facts: &Facts<'_>, matched: Option<u8>, state: &mut impl std::hash::Hasher) {
        match self {
            Self::Client => match facts.client.to_canonical() {
                IpAddr::V4(address) => address.octets().hash(state),
                // A host owns its whole /64, so a longer part would give it as many counts as it likes.
                IpAddr::V6(address) => address.octets()[..8].hash(state),
            },
            Self::Header(name) => {
                let lines = facts.headers.get_all(name);
                lines.iter().count().hash(state);
                lines.iter().for_each(|line| line.as_bytes().hash(state));
            }
            Self::Route => matched.hash(state),
            Self::Host => facts.host.hash(state),
            Self::Method => facts.method.as_str().hash(state),
        }
    }
}

/// The limits of a pod: one store for all policies and both directions. It outlives reloads.
#[derive(Debug)]
pub struct Limiter {
    store: local::Store,
    hasher: RandomState,
    epoch: Instant,
    decisions: Family<DecisionLabels, Counter>,
    series: AtomicUsize,
    evicted: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DecisionLabels {
    policy: Arc<str>,
    limit: Arc<str>,
    decision: &'static str,
    mode: &'static str,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Limiter {
    /// A limiter that holds at most `capacity` counts.
    pub fn new(capacity: usize) -> Self {
        let evicted = Counter::default();
        Self {
            store: local::Store::new(capacity, evicted.clone()),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            decisions: Family::default(),
            series: AtomicUsize::new(0),
            evicted,
        }
    }

    /// Adds the limiter's figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_ratelimit_decisions", "Decisions of rate limits", self.decisions.clone());
        registry.register(
            "fetchr_ratelimit_evictions",
            "Counts that were forgotten before they were full again, for want of room",
            self.evicted.clone(),
        );
    }

    /// Counts that are held now.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether no count is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Charges all limits that hold for a request. If one denies, those charged before get their token back.
    pub fn charge(&self, route: &Route, facts: &Facts<'_>, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if !route.has_limits() {
            return outcome;
        }
        let now = Nanos::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(Nanos::MAX);
        self.enforce(route, facts, now, &mut outcome);
        self.shadow(route, facts, now, outcome.denied.is_none());
        outcome
    }

    fn enforce(&self, route: &Route, facts: &Facts<'_>, now: Nanos, outcome: &mut Outcome) {
        let mut charged: SmallVec<[u64; 4]> = SmallVec::new();
        for (limit, matched) in route.limits().filter(|(limit, _)| limit.mode == Mode::Enforce) {
            let key = self.key(limit, facts, matched);
            let decision = self.store.charge(&limit.gcra, key, now);
            let (Ok(level) | Err(level)) = decision;
            outcome.told.push(Told { limit: Arc::clone(limit), level });
            if decision.is_err() {
                charged.iter().for_each(|&key| self.store.refund(key));
                // What the others still have is told after the refund.
                outcome.told.iter_mut().zip(&charged).for_each(|(told, &key)| {
                    told.level = self.store.peek(&told.limit.gcra, key, now);
                });
                outcome.denied = outcome.told.len().checked_sub(1);
                self.counters(limit).denied.inc();
                return;
            }
            charged.push(key);
        }
        outcome.told.iter().for_each(|told| {
            self.counters(&told.limit).allowed.inc();
        });
    }

    /// Counts what limits in Shadow would have decided. A request that is denied anyway takes nothing from them.
    fn shadow(&self, route: &Route, facts: &Facts<'_>, now: Nanos, charge: bool) {
        for (limit, matched) in route.limits().filter(|(limit, _)| limit.mode == Mode::Shadow) {
            let key = self.key(limit, facts, matched);
            let allowed = if charge {
                self.store.charge(&limit.gcra, key, now).is_ok()
            } else {
                self.store.peek(&limit.gcra, key, now).remaining > 0
            };
            let counters = self.counters(limit);
            if allowed {
                counters.allowed.inc();
            } else {
                counters.denied.inc();
                // Not louder: it may be true of every request.
                tracing::debug!(policy = %limit.policy, limit = %limit.name, "A limit in Shadow would have denied a request.");
            }
        }
    }

    fn key(&self, limit: &Limit, facts: &Facts<'_>, matched: Option<u8>) -> u64 {
        let mut state = self.hasher.build_hasher();
        (&limit.policy, &limit.rule, &limit.name).hash(&mut state);
        limit.key.iter().for_each(|part| part.hash(facts, matched, &mut state));
        state.finish()
    }

    fn counters<'a>(&self, limit: &'a Limit) -> &'a Counters {
        limit.counters.get_or_init(|| {
            let mode = if limit.mode == Mode::Shadow { "shadow" } else { "enforce" };
            let series = |decision| {
                let mut labels =
                    DecisionLabels { policy: Arc::clone(&limit.policy), limit: Arc::clone(&limit.name), decision, mode };
                let known = self.decisions.get(&labels).is_some();
                if !known && self.series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
                    (labels.policy, labels.limit) = (OTHER.into(), OTHER.into());
                }
                self.decisions.get_or_create_owned(&labels)
            };
            Counters { allowed: series("allow"), denied: series("deny") }
        })
    }
}

/// What the limits say to a request, and to its client.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    told: SmallVec<[Told; 2]>,
    /// Which of `told` denied.
    denied: Option<usize>,
}

#[derive(Clone, Debug)]
struct Told {
    limit: Arc<Limit>,
    level: Level,
}

/// The limit that denied a request.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    /// `namespace/name` of its policy.
    pub policy: &'a str,
    /// Its rule.
    pub rule: &'a str,
    /// Its name.
    pub limit: &'a str,
    /// When a next try may pass.
    pub retry_after: Duration,
}

impl Outcome {
    /// The limit that denied, if one did: the request is to be answered with 429.
    pub fn denied(&self) -> Option<Denied<'_>> {
        let Told { limit, level } = self.told.get(self.denied?)?;
        Some(Denied { policy: &limit.policy, rule: &limit.rule, limit: &limit.name, retry_after: level.next })
    }

    /// Writes `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), and `Retry-After` (RFC 9110 10.2.3) if
    /// the request was denied.
    ///
    /// `q` is the burst and `w` the seconds in which an empty bucket is full again; `r` are the requests that may come at once and
    /// `t` the seconds until there is one more. The tightest limit comes first. All seconds are rounded up.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(denied) = self.denied() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(denied.retry_after).max(1)));
        }
        let mut told: SmallVec<[&Told; 2]> = self.told.iter().filter(|told| told.limit.fields == LimitFields::Draft).collect();
        if told.is_empty() {
            return;
        }
        told.sort_by_key(|told| told.level.remaining);
        let (mut state, mut policy) = (String::new(), String::new());
        for (at, Told { limit, level }) in told.into_iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            // The name is of `[a-z0-9-]`, so it needs no escapes in a structured string. Writing to a String can't fail.
            let _ = write!(state, "{comma}\"{}\";r={};t={}", limit.name, level.remaining, seconds(level.next));
            let _ = write!(policy, "{comma}\"{}\";q={};w={}", limit.name, limit.gcra.burst(), seconds(limit.gcra.window()));
        }
        for (name, value) in [(RATE_LIMIT, state), (RATE_LIMIT_POLICY, policy)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(name, value);
            }
        }
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use crds::{
        plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan},
        policy::{Direction, Match, PolicyRule, matches::PathMatch, rate_limits},
    };
    use http::Method;
    use proptest::prelude::*;

    use super::*;
    use crate::route::Routes;

    struct Limits(Vec<PolicyRule>);

    fn rate(name: &str, requests: i64, burst: i64, key: &[KeySource]) -> RateLimit {
        let key = key.iter().map(|&source| Key { source, name: (source == KeySource::Header).then(|| "x-user".to_owned()) });
        RateLimit {
            name: name.to_owned(),
            mode: Mode::Enforce,
            limit: rate_limits::Limit { requests, per: crds::scalar::Duration::from_secs(1), burst: Some(burst) },
            key: key.collect(),
            scope: rate_limits::Scope::Pod,
            fields: LimitFields::Draft,
        }
    }

    impl Limits {
        fn of(limits: Vec<RateLimit>) -> Self {
            Self(vec![PolicyRule { name: "all".to_owned(), rate_limits: limits, ..PolicyRule::default() }])
        }

        fn routes(&self) -> Routes {
            let policy = AttachedPolicy {
                policy: ObjectRef::new("shop", "limits"),
                attachment: Attachment::Proxy,
                direction: Direction::Inbound,
                rules: self.0.clone().into(),
            };
            let plan = Plan { policies: vec![policy], ..Plan::default() };
            Routes::build(&plan, &Identity::default(), Direction::Inbound).unwrap()
        }
    }

    struct Client {
        method: Method,
        path: &'static str,
        host: &'static str,
        headers: HeaderMap,
        address: &'static str,
    }

    impl Default for Client {
        fn default() -> Self {
            Self { method: Method::GET, path: "/", host: "a", headers: HeaderMap::new(), address: "10.0.0.1" }
        }
    }

    impl Client {
        fn ask(&self, limiter: &Limiter, routes: &Routes, now: Instant) -> Outcome {
            let facts = Facts {
                method: &self.method,
                scheme: "http",
                host: self.host,
                path: self.path,
                query: None,
                headers: &self.headers,
                client: self.address.parse().unwrap(),
            };
            limiter.charge(&routes.select(&facts), &facts, now)
        }

        fn passes(&self, limiter: &Limiter, routes: &Routes, now: Instant) -> bool {
            self.ask(limiter, routes, now).denied().is_none()
        }

        fn user(name: &'static str) -> Self {
            let mut client = Self::default();
            client.headers.insert("x-user", HeaderValue::from_static(name));
            client
        }
    }

    fn fields(outcome: &Outcome) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        outcome.write(&mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn request_over_the_limit_is_told_when_to_come_again() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let routes = Limits::of(vec![rate("per-client", 1, 2, &[KeySource::ClientIP])]).routes();
        let first = Client::default().ask(&limiter, &routes, now);
        let told = [("ratelimit", "\"per-client\";r=1;t=1"), ("ratelimit-policy", "\"per-client\";q=2;w=2")];
        assert_eq!(fields(&first), pairs(&told));
        assert!(Client::default().passes(&limiter, &routes, now));
        let third = Client::default().ask(&limiter, &routes, now + Duration::from_millis(100));
        let denied = third.denied().unwrap();
        assert_eq!((denied.policy, denied.rule, denied.limit), ("shop/limits", "all", "per-client"));
        assert_eq!(denied.retry_after, Duration::from_millis(900));
        let told =
            [("retry-after", "1"), ("ratelimit", "\"per-client\";r=0;t=1"), ("ratelimit-policy", "\"per-client\";q=2;w=2")];
        assert_eq!(fields(&third), pairs(&told));
    }

    #[test]
    fn fields_are_structured_and_the_tightest_comes_first() {
        use sfv::{ListEntry, Parser};
        let limiter = Limiter::default();
        let routes = Limits::of(vec![rate("wide", 100, 100, &[]), rate("narrow", 5, 5, &[])]).routes();
        let mut headers = HeaderMap::new();
        Client::default().ask(&limiter, &routes, Instant::now()).write(&mut headers);
        for (field, parameters) in [("ratelimit", ["r", "t"]), ("ratelimit-policy", ["q", "w"])] {
            let list: sfv::List = Parser::new(headers[field].to_str().unwrap()).parse().unwrap();
            let names: Vec<_> = list
                .iter()
                .map(|entry| {
                    let ListEntry::Item(item) = entry else { panic!("an item is expected") };
                    for parameter in parameters {
                        assert!(item.params.get(parameter).unwrap().as_integer().is_some());
                    }
                    item.bare_item.as_string().unwrap().as_str().to_owned()
                })
                .collect();
            assert_eq!(names, ["narrow", "wide"]);
        }
    }

    #[test]
    fn denied_request_costs_the_other_limits_nothing() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let routes = Limits::of(vec![rate("wide", 1, 10, &[]), rate("narrow", 1, 1, &[])]).routes();
        assert!(Client::default().passes(&limiter, &routes, now));
        for _ in 0..50 {
            let denied = Client::default().ask(&limiter, &routes, now);
            assert_eq!(denied.denied().unwrap().limit, "narrow");
            assert!(fields(&denied)[1].1.contains("\"wide\";r=9"), "{:?}", fields(&denied));
        }
    }

    #[test]
    fn shadow_counts_and_lets_pass() {
        let limiter = Limiter::default();
        let shadow = RateLimit { mode: Mode::Shadow, ..rate("shadow", 1, 1, &[]) };
        let disabled = RateLimit { mode: Mode::Disabled, ..rate("disabled", 1, 1, &[]) };
        let routes = Limits::of(vec![shadow, disabled]).routes();
        let now = Instant::now();
        for _ in 0..5 {
            let outcome = Client::default().ask(&limiter, &routes, now);
            assert!(outcome.denied().is_none() && fields(&outcome).is_empty());
        }
        let mut registry = Registry::default();
        limiter.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let series = |decision, n| {
            format!(
                "fetchr_ratelimit_decisions_total{{policy=\"shop/limits\",limit=\"shadow\",decision=\"{decision}\",mode=\"shadow\"}} {n}"
            )
        };
        assert!(page.contains(&series("allow", 1)) && page.contains(&series("deny", 4)), "{page}");
        assert!(!page.contains("disabled"));
    }

    #[test]
    fn each_key_is_counted_apart() {
        let cases: [(KeySource, Client, Client, bool); 8] = [
            (KeySource::ClientIP, Client::default(), Client { address: "10.0.0.2", ..Client::default() }, true),
            (KeySource::ClientIP, Client::default(), Client { address: "::ffff:10.0.0.1", ..Client::default() }, false),
            (
                KeySource::ClientIP,
                Client { address: "2001:db8::1", ..Client::default() },
                Client { address: "2001:db8::ffff:2", ..Client::default() },
                false,
            ),
            (KeySource::Header, Client::user("a"), Client::user("b"), true),
            (KeySource::Header, Client::default(), Client::default(), false),
            (KeySource::Host, Client::default(), Client { host: "b", ..Client::default() }, true),
            (KeySource::Method, Client::default(), Client { method: Method::PUT, ..Client::default() }, true),
            (KeySource::Host, Client::default(), Client { method: Method::PUT, ..Client::default() }, false),
        ];
        for (at, (source, one, other, apart)) in cases.into_iter().enumerate() {
            let (limiter, now) = (Limiter::default(), Instant::now());
            let routes = Limits::of(vec![rate("one", 1, 1, &[source])]).routes();
            assert!(one.passes(&limiter, &routes, now));
            assert_eq!(other.passes(&limiter, &routes, now), apart, "case {at}");
        }
    }

    #[test]
    fn route_key_counts_each_match_of_the_rule_apart() {
        let path = |value: &str| Match {
            path: Some(PathMatch { kind: crds::policy::matches::PathKind::Prefix, value: value.to_owned() }),
            ..Match::default()
        };
        let mut limits = Limits::of(vec![rate("one", 1, 1, &[KeySource::Route])]);
        limits.0[0].matches = vec![path("/a"), path("/b")];
        let (limiter, now, routes) = (Limiter::default(), Instant::now(), limits.routes());
        let at = |path| Client { path, ..Client::default() };
        assert!(at("/a/1").passes(&limiter, &routes, now));
        assert!(!at("/a/2").passes(&limiter, &routes, now));
        assert!(at("/b/1").passes(&limiter, &routes, now));
    }

    #[test]
    fn count_survives_a_reload() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let before = Limits::of(vec![rate("one", 10, 10, &[])]).routes();
        for _ in 0..10 {
            assert!(Client::default().passes(&limiter, &before, now));
        }
        assert!(!Client::default().passes(&limiter, &Limits::of(vec![rate("one", 10, 10, &[])]).routes(), now));
        let raised = Limits::of(vec![rate("one", 10, 12, &[])]).routes();
        assert!(Client::default().passes(&limiter, &raised, now));
        assert!(Client::default().passes(&limiter, &raised, now));
        assert!(!Client::default().passes(&limiter, &raised, now));
    }

    proptest! {
        #[test]
        fn denied_requests_leave_no_trace(
            bursts in proptest::collection::vec(1_i64..6, 1..5), requests in 1_usize..30,
        ) {
            let (limiter, now) = (Limiter::default(), Instant::now());
            let limits = bursts.iter().enumerate().map(|(at, &burst)| rate(&format!("l{at}"), 1, burst, &[])).collect();
            let routes = Limits::of(limits).routes();
            let passed = (0..requests).filter(|_| Client::default().passes(&limiter, &routes, now)).count();
            let tightest = usize::try_from(*bursts.iter().min().unwrap()).unwrap();
            prop_assert_eq!(passed, requests.min(tightest));
        }
    }
}
