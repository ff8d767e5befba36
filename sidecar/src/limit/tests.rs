mod accuracy;

use std::time::{Duration, Instant};

use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan},
    policy::{
        Direction, Match, PolicyRule,
        matches::PathMatch,
        rate_limits::{self, Action, Algorithm, CalendarWindow, Cost, CostSource, Key, KeySource},
    },
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prometheus_client::registry::Registry;
use proptest::prelude::*;

use super::*;
use crate::{facts::Facts, route::Routes};

const SECOND: crds::scalar::Duration = crds::scalar::Duration::from_secs(1);

struct Limits(Vec<PolicyRule>);

fn rate(name: &str, requests: i64, burst: i64, key: &[KeySource]) -> RateLimit {
    let is_named = |source| matches!(source, KeySource::Header | KeySource::Cookie | KeySource::Query);
    let key = key.iter().map(|&source| Key { source, name: is_named(source).then(|| "x-user".to_owned()), cel: None });
    let limit = rate_limits::Limit::bucket(requests, SECOND, Some(burst));
    RateLimit { key: key.collect(), ..RateLimit::new(name, limit) }
}

impl Limits {
    fn of(limits: Vec<RateLimit>) -> Self {
        Self(vec![PolicyRule { name: "all".to_owned(), rate_limits: limits, ..PolicyRule::default() }])
    }

    fn routes(&self) -> Routes {
        self.routes_of("limits")
    }

    fn routes_of(&self, policy: &str) -> Routes {
        self.towards(Direction::Inbound, policy)
    }

    fn towards(&self, direction: Direction, policy: &str) -> Routes {
        let policy = AttachedPolicy {
            policy: ObjectRef::new("shop", policy),
            attachment: Attachment::Proxy,
            direction,
            rules: self.0.clone().into(),
        };
        let plan = Plan { policies: vec![policy], ..Plan::default() };
        Routes::build(&plan, &Identity::default(), direction).unwrap()
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
    fn facts(&self) -> Facts<'_> {
        Facts {
            method: &self.method,
            scheme: "http",
            host: self.host,
            path: self.path,
            query: self.query,
            headers: &self.headers,
            client: self.address.parse().unwrap(),
        }
    }

    fn ask(&self, limiter: &Limiter, routes: &Routes, now: Instant) -> Outcome {
        let facts = self.facts();
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

/// Decisions of a source, of whatever limit.
fn decided(limiter: &Limiter, source: &str) -> f64 {
    let mut registry = Registry::default();
    limiter.register(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    let labels = format!("source=\"{source}\"}} ");
    let lines = page.lines().filter(|line| line.starts_with("fetchr_ratelimit_decisions_total{") && line.contains(&labels));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
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
    assert_eq!(denied.retry_after, Some(Duration::from_millis(900)));
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

/// A limit of five in all by this algorithm.
fn five(algorithm: Algorithm) -> rate_limits::Limit {
    let bucket = rate_limits::Limit::bucket(5, SECOND, None);
    let (per, window) = match algorithm {
        Algorithm::TokenBucket | Algorithm::SlidingWindow => (Some(SECOND), None),
        Algorithm::FixedWindow => (None, Some(CalendarWindow::Month)),
        Algorithm::Concurrency => (None, None),
    };
    rate_limits::Limit { algorithm, per, window, ..bucket }
}

#[test]
fn each_algorithm_holds_its_limit_and_tells_of_it() {
    use Algorithm::{Concurrency, FixedWindow, SlidingWindow, TokenBucket};
    for (algorithm, policy) in [
        (TokenBucket, "\"one\";q=5;w=1"),
        (SlidingWindow, "\"one\";q=5;w=1"),
        (FixedWindow, "\"one\";q=5;w=2"),
        (Concurrency, "\"one\";q=5"),
    ] {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let routes = Limits::of(vec![RateLimit::new("one", five(algorithm))]).routes();
        let outcomes: Vec<_> = (0..8).map(|_| Client::default().ask(&limiter, &routes, now)).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.denied().is_none()).count(), 5, "{algorithm:?}");
        let told = fields(&outcomes[0]);
        assert!(told[0].1.starts_with("\"one\";r=4;t="), "{algorithm:?}: {told:?}");
        assert!(told[1].1.starts_with(policy), "{algorithm:?}: {told:?}");
        assert!(outcomes[7].denied().unwrap().retry_after.is_some(), "{algorithm:?}");
    }
}

#[test]
fn slot_is_free_again_when_its_request_has_ended() {
    let (limiter, now) = (Limiter::default(), Instant::now());
    let routes = Limits::of(vec![RateLimit::new("one", five(Algorithm::Concurrency))]).routes();
    let mut under_way: Vec<_> = (0..5).map(|_| Client::default().ask(&limiter, &routes, now)).collect();
    assert!(!Client::default().passes(&limiter, &routes, now));
    limiter.settle(&under_way[0].settlement().unwrap(), 0, 0);
    assert!(Client::default().passes(&limiter, &routes, now));
    assert!(!Client::default().passes(&limiter, &routes, now), "the one that was let in has not ended");
}

#[test]
fn request_under_way_keeps_its_slot_however_long_it_takes() {
    let (limiter, now) = (Limiter::default(), Instant::now());
    let routes = Limits::of(vec![RateLimit::new("one", five(Algorithm::Concurrency))]).routes();
    assert!((0..5).all(|_| Client::default().passes(&limiter, &routes, now)));
    assert!(!Client::default().passes(&limiter, &routes, now + Duration::from_secs(86_400)));
}

#[test]
fn slot_of_a_request_that_another_limit_denies_is_free_at_once() {
    let (limiter, now) = (Limiter::default(), Instant::now());
    let routes = Limits::of(vec![RateLimit::new("slots", five(Algorithm::Concurrency)), rate("narrow", 1, 1, &[])]).routes();
    let first = Client::default().ask(&limiter, &routes, now);
    (0..20).for_each(|_| assert_eq!(Client::default().ask(&limiter, &routes, now).denied().unwrap().limit, "narrow"));
    assert!(first.denied().is_none());
}

#[test]
fn costs_are_taken_whole_or_not_at_all() {
    let cost = |source, value: Option<i64>, cel: Option<&str>| Cost { source, value, cel: cel.map(str::to_owned), name: None };
    for (cost, method, passes) in [
        (cost(CostSource::Fixed, Some(4), None), Method::GET, 2),
        (cost(CostSource::Fixed, Some(11), None), Method::GET, 0),
        (cost(CostSource::CEL, None, Some("request.method == 'PUT' ? 5 : 1")), Method::PUT, 2),
        (cost(CostSource::CEL, None, Some("request.method == 'PUT' ? 5 : 1")), Method::GET, 10),
        // It fails, so each costs one.
        (cost(CostSource::CEL, None, Some("int(request.headers['x-cost'])")), Method::GET, 10),
        (cost(CostSource::CEL, None, Some("1 - 2")), Method::GET, 10),
    ] {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let routes = Limits::of(vec![RateLimit { cost: Some(cost.clone()), ..rate("one", 1, 10, &[]) }]).routes();
        let client = Client { method, ..Client::default() };
        assert_eq!((0..20).filter(|_| client.passes(&limiter, &routes, now)).count(), passes, "{cost:?}");
    }
}

#[test]
fn request_that_is_larger_than_the_limit_is_told_that_it_never_passes() {
    let limiter = Limiter::default();
    let cost = Cost { source: CostSource::Fixed, value: Some(11), cel: None, name: None };
    let routes = Limits::of(vec![RateLimit { cost: Some(cost), ..rate("one", 1, 10, &[]) }]).routes();
    let outcome = Client::default().ask(&limiter, &routes, Instant::now());
    assert_eq!(outcome.denied().unwrap().retry_after, None);
    assert!(fields(&outcome).iter().all(|(name, _)| name != "retry-after"));
}

#[test]
fn what_a_response_costs_is_charged_when_it_has_ended() {
    let named = |source, name: Option<&str>| Cost { source, value: None, cel: None, name: name.map(str::to_owned) };
    for (cost, said, units) in [
        (named(CostSource::RequestBytes, None), None, 300),
        (named(CostSource::ResponseBytes, None), None, 700),
        (named(CostSource::ResponseHeader, Some("x-cost")), Some("40"), 40),
        (named(CostSource::ResponseHeader, Some("x-cost")), Some("much"), 1),
        (named(CostSource::ResponseHeader, Some("x-cost")), None, 1),
    ] {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let routes = Limits::of(vec![RateLimit { cost: Some(cost.clone()), ..rate("one", 1, 1000, &[]) }]).routes();
        let mut outcome = Client::default().ask(&limiter, &routes, now);
        assert_eq!(fields(&outcome)[0].1, "\"one\";r=1000;t=0", "{cost:?}");
        let mut settlement = *outcome.settlement().unwrap();
        let mut headers = HeaderMap::new();
        headers.extend(
            said.map(|said| ("x-cost".parse().unwrap(), HeaderValue::from_static(said))).map(|(name, value)| (Some(name), value)),
        );
        limiter.answered(&mut settlement, StatusCode::OK, &mut headers);
        assert!(headers.is_empty(), "it is not for the client");
        limiter.settle(&settlement, 300, 700);
        let left = fields(&Client::default().ask(&limiter, &routes, now))[0].1.clone();
        assert!(left.starts_with(&format!("\"one\";r={};", 1000 - units)), "{cost:?}: {left}");
    }
}

#[test]
fn first_override_that_fits_holds() {
    let key = vec![
        Key { source: KeySource::Header, name: Some("x-user".to_owned()), cel: None },
        Key { source: KeySource::ClientIP, name: None, cel: None },
    ];
    let other = |values: [&str; 2], burst| Override {
        values: values.map(str::to_owned).into(),
        limit: rate_limits::Limit::bucket(1, SECOND, Some(burst)),
    };
    let overrides = vec![other(["gold", "10.0.0.0/8"], 7), other(["gold", "*"], 5), other(["*", "192.0.2.1"], 3)];
    let limit = RateLimit { key, overrides, ..rate("one", 1, 1, &[]) };
    let routes = Limits::of(vec![limit]).routes();
    for (user, address, burst) in [
        ("gold", "10.1.2.3", 7),
        ("gold", "192.0.2.9", 5),
        ("tin", "192.0.2.1", 3),
        ("tin", "10.1.2.3", 1),
        ("goldfish", "10.1.2.3", 1),
    ] {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let client = Client { address, ..Client::user(user) };
        assert_eq!((0..20).filter(|_| client.passes(&limiter, &routes, now)).count(), burst, "{user} {address}");
        let told = fields(&client.ask(&limiter, &routes, now));
        assert!(told.iter().any(|(_, value)| value.starts_with(&format!("\"one\";q={burst};"))), "{told:?}");
    }
}

#[test]
fn placeholder_of_a_path_and_an_expression_are_counted_apart() {
    let path = Key { source: KeySource::PathParameter, name: Some("id".to_owned()), cel: None };
    let cel = Key { source: KeySource::CEL, name: None, cel: Some("request.path.endsWith('x') ? 'x' : 'other'".to_owned()) };
    let template = |value: &str| Match {
        path: Some(PathMatch { kind: crds::policy::matches::PathKind::Template, value: value.to_owned() }),
        ..Match::default()
    };
    for (key, one, other, apart) in [
        (&path, "/items/1", "/items/2", true),
        (&path, "/items/1", "/items/1", false),
        (&path, "/files/a/b", "/files/a/c", true),
        (&path, "/files/a/b", "/files/a/b", false),
        (&cel, "/items/x", "/items/y", true),
        (&cel, "/items/z", "/items/y", false),
    ] {
        let mut limits = Limits::of(vec![RateLimit { key: vec![key.clone()], ..rate("one", 1, 1, &[]) }]);
        limits.0[0].matches = vec![template("/items/{id}"), template("/files/{*id}")];
        let (limiter, now, routes) = (Limiter::default(), Instant::now(), limits.routes());
        let at = |path| Client { path, ..Client::default() };
        assert!(at(one).passes(&limiter, &routes, now));
        assert_eq!(at(other).passes(&limiter, &routes, now), apart, "{one} {other}");
    }
}

#[tokio::test(start_paused = true)]
async fn delayed_requests_go_at_the_rate_and_in_order_until_the_wait_is_too_long() {
    let limiter = Limiter::default();
    let max_delay = Some(crds::scalar::Duration::from_secs(2));
    let limit = RateLimit { action: Action::Delay, max_delay, ..rate("one", 10, 1, &[]) };
    let routes = Limits::of(vec![limit]).routes();
    let (start, now) = (tokio::time::Instant::now(), Instant::now());
    let ask = async |limiter: &Limiter, routes: &Routes| {
        let client = Client::default();
        let facts = client.facts();
        (limiter.charge(&routes.select(&facts), &facts, now).await.denied().is_none(), start.elapsed())
    };
    let outcomes = futures::future::join_all((0..30).map(|_| ask(&limiter, &routes))).await;
    for (at, (passed, after)) in outcomes.iter().enumerate() {
        assert_eq!(*passed, at <= 20, "{at}");
        let due = Duration::from_millis(if at <= 20 { 100 * at as u64 } else { 0 });
        assert!(*after >= due && *after <= due + Duration::from_millis(2), "{at}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_leaves_while_it_is_delayed_takes_nothing() {
    let limiter = Limiter::default();
    let max_delay = Some(crds::scalar::Duration::from_secs(1));
    let limits = vec![
        RateLimit { action: Action::Delay, max_delay, ..rate("slow", 1, 1, &[]) },
        RateLimit::new("slots", five(Algorithm::Concurrency)),
        RateLimit { mode: Mode::Shadow, ..RateLimit::new("shadow", five(Algorithm::Concurrency)) },
    ];
    let routes = Limits::of(limits).routes();
    let now = Instant::now();
    let client = Client::default();
    let facts = client.facts();
    let first = limiter.charge(&routes.select(&facts), &facts, now).await;
    assert!(first.denied().is_none());
    for _ in 0..20 {
        let route = routes.select(&facts);
        let waiting = limiter.charge(&route, &facts, now);
        assert!(waiting.now_or_never().is_none(), "it is delayed each time, for the one before has gone");
    }
}

#[test]
fn upstream_that_wants_nothing_is_left_alone_by_those_that_count_together() {
    let (limiter, now) = (Limiter::default(), Instant::now());
    let limits = Limits::of(vec![rate("one", 100, 100, &[KeySource::Header])]);
    let (outbound, inbound) = (limits.towards(Direction::Outbound, "a"), limits.towards(Direction::Inbound, "a"));
    let (a, b) = (Client::user("a"), Client::user("b"));
    let mut outcome = a.ask(&limiter, &outbound, now);
    let mut settlement = outcome.settlement().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("retry-after", HeaderValue::from_static("30"));
    limiter.answered(&mut settlement, StatusCode::TOO_MANY_REQUESTS, &mut headers);
    let denied = a.ask(&limiter, &outbound, now);
    let left = denied.denied().unwrap().retry_after.unwrap();
    assert!(left > Duration::from_secs(28) && left <= Duration::from_secs(31), "{left:?}");
    assert!(b.passes(&limiter, &outbound, now), "it is counted apart");
    assert!(b.ask(&limiter, &inbound, now).settlement().is_none(), "the application's own word is its own business");
    assert!(a.passes(&limiter, &outbound, now + Duration::from_secs(32)));
}

#[test]
fn older_fields_tell_of_the_tightest() {
    let limiter = Limiter::default();
    let all = RateLimit { fields: LimitFields::All, ..rate("wide", 10, 10, &[]) };
    let old = RateLimit { fields: LimitFields::XRateLimit, ..rate("narrow", 1, 5, &[]) };
    let routes = Limits::of(vec![all, old]).routes();
    let told = fields(&Client::default().ask(&limiter, &routes, Instant::now()));
    assert_eq!(
        told,
        pairs(&[
            ("ratelimit", "\"wide\";r=9;t=1"),
            ("ratelimit-policy", "\"wide\";q=10;w=1"),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "4"),
            ("x-ratelimit-reset", "1"),
        ])
    );
}

#[test]
fn request_is_told_when_all_that_deny_it_allow_it() {
    let (limiter, now) = (Limiter::default(), Instant::now());
    let routes = Limits::of(vec![
        rate("soon", 10, 1, &[]),
        RateLimit::new("late", rate_limits::Limit::bucket(1, crds::scalar::Duration::from_secs(60), None)),
    ])
    .routes();
    assert!(Client::default().passes(&limiter, &routes, now));
    let outcome = Client::default().ask(&limiter, &routes, now);
    let denied = outcome.denied().unwrap();
    assert_eq!((denied.limit, denied.retry_after), ("soon", Some(Duration::from_secs(60))));
    let cost = Cost { source: CostSource::Fixed, value: Some(2), cel: None, name: None };
    let routes = Limits::of(vec![rate("soon", 10, 1, &[]), RateLimit { cost: Some(cost), ..rate("never", 10, 1, &[]) }]).routes();
    assert_eq!(Client::default().ask(&limiter, &routes, now).denied().unwrap().retry_after, None, "one never allows it");
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

/// `cargo test --release -p fetchr-sidecar --lib limit::tests::what_limits_cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn what_limits_cost() {
    const REQUESTS: i32 = 100_000;
    let limits = |count| (0..count).map(|at| rate(&format!("limit-{at}"), 1_000_000, 1_000_000, &[])).collect();
    for count in [1, 10, 50] {
        let (limiter, routes) = (Limiter::default(), Limits::of(limits(count)).routes());
        let begun = Instant::now();
        for _ in 0..REQUESTS {
            let mut headers = HeaderMap::new();
            Client::default().ask(&limiter, &routes, Instant::now()).write(&mut headers);
            assert!(headers.contains_key("ratelimit"));
        }
        println!("{count} limits: {:?} a request", begun.elapsed() / REQUESTS.unsigned_abs());
    }
}
