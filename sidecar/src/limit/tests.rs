use std::time::{Duration, Instant};

use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan},
    policy::{
        Direction, Match, PolicyRule,
        matches::PathMatch,
        rate_limits::{self, Key, KeySource},
    },
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method};
use prometheus_client::registry::Registry;
use proptest::prelude::*;

use super::*;
use crate::{facts::Facts, route::Routes};

struct Limits(Vec<PolicyRule>);

fn rate(name: &str, requests: i64, burst: i64, key: &[KeySource]) -> RateLimit {
    let is_named = |source| matches!(source, KeySource::Header | KeySource::Cookie | KeySource::Query);
    let key = key.iter().map(|&source| Key { source, name: is_named(source).then(|| "x-user".to_owned()) });
    RateLimit {
        name: name.to_owned(),
        mode: Mode::Enforce,
        limit: rate_limits::Limit { requests, per: crds::scalar::Duration::from_secs(1), burst: Some(burst) },
        key: key.collect(),
        scope: Scope::Pod,
        on_store_failure: None,
        fields: LimitFields::Draft,
    }
}

impl Limits {
    fn of(limits: Vec<RateLimit>) -> Self {
        Self(vec![PolicyRule { name: "all".to_owned(), rate_limits: limits, ..PolicyRule::default() }])
    }

    fn routes(&self) -> Routes {
        self.routes_of("limits")
    }

    fn routes_of(&self, policy: &str) -> Routes {
        let policy = AttachedPolicy {
            policy: ObjectRef::new("shop", policy),
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
    query: Option<&'static str>,
    headers: HeaderMap,
    address: &'static str,
}

impl Default for Client {
    fn default() -> Self {
        Self { method: Method::GET, path: "/", host: "a", query: None, headers: HeaderMap::new(), address: "10.0.0.1" }
    }
}

impl Client {
    fn ask(&self, limiter: &Limiter, routes: &Routes, now: Instant) -> Outcome {
        let facts = Facts {
            method: &self.method,
            scheme: "http",
            host: self.host,
            path: self.path,
            query: self.query,
            headers: &self.headers,
            client: self.address.parse().unwrap(),
        };
        limiter.charge(&routes.select(&facts), &facts, now).now_or_never().unwrap()
    }

    fn passes(&self, limiter: &Limiter, routes: &Routes, now: Instant) -> bool {
        self.ask(limiter, routes, now).denied().is_none()
    }

    fn asking(query: &'static str) -> Self {
        Self { query: Some(query), ..Self::default() }
    }

    fn cookies(pairs: &'static str) -> Self {
        let mut client = Self::default();
        client.headers.insert(http::header::COOKIE, HeaderValue::from_static(pairs));
        client
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
    let told = [("retry-after", "1"), ("ratelimit", "\"per-client\";r=0;t=1"), ("ratelimit-policy", "\"per-client\";q=2;w=2")];
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
            "fetchr_ratelimit_decisions_total{{policy=\"shop/limits\",rule=\"all\",limit=\"shadow\",decision=\"{decision}\",mode=\"shadow\",source=\"pod\"}} {n}"
        )
    };
    assert!(page.contains(&series("allow", 1)) && page.contains(&series("deny", 4)), "{page}");
    assert!(!page.contains("disabled"));
}

#[test]
fn limits_of_one_name_have_series_of_their_own() {
    let limiter = Limiter::default();
    let mut limits = Limits::of(vec![rate("same", 1, 1, &[])]);
    limits.0.push(PolicyRule { name: "other".to_owned(), rate_limits: vec![rate("same", 9, 9, &[])], ..PolicyRule::default() });
    Client::default().ask(&limiter, &limits.routes_of("a"), Instant::now());
    Client::default().ask(&limiter, &limits.routes_of("b"), Instant::now());
    let mut registry = Registry::default();
    limiter.register(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    for (policy, rule) in [("a", "all"), ("a", "other"), ("b", "all"), ("b", "other")] {
        let series = format!(
            "{{policy=\"shop/{policy}\",rule=\"{rule}\",limit=\"same\",decision=\"allow\",mode=\"enforce\",source=\"pod\"}} 1"
        );
        assert!(page.contains(&series), "{series} in {page}");
    }
}

#[test]
fn each_key_is_counted_apart() {
    let cases: [(KeySource, Client, Client, bool); 13] = [
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
        (KeySource::Cookie, Client::cookies("x-user=a; b=c"), Client::cookies("x-user=b"), true),
        (KeySource::Cookie, Client::cookies("x-user=a; b=c"), Client::cookies("b=d;x-user=a"), false),
        (KeySource::Query, Client::asking("page=1&x-user=a"), Client::asking("x-user=b"), true),
        (KeySource::Query, Client::asking("page=1&x-user=a"), Client::asking("x-user=a&page=2"), false),
        (KeySource::Query, Client::asking("x-user=a"), Client::asking("x-user=a&x-user=b"), true),
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
