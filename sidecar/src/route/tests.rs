use std::net::IpAddr;

use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan},
    policy::{
        CircuitBreaker, Headers, Match, PolicyRule, RateLimit,
        headers::{Edits, Field},
        matches::{PathKind, PathMatch, ValueKind, ValueMatch},
        rate_limits,
    },
    scalar::Duration,
};
use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;

use super::*;

fn headers(value: &str) -> Option<Headers> {
    let set = vec![Field { name: "x-rule".to_owned(), value: value.to_owned() }];
    Some(Headers { request: Some(Edits { set, ..Edits::default() }), ..Headers::default() })
}

fn limit(name: &str) -> RateLimit {
    RateLimit::new(name, rate_limits::Limit::bucket(1, Duration::from_secs(1), None))
}

/// A rule that sets `x-rule` to its name and has a limit of its name.
fn rule(name: &str, matches: Vec<Match>) -> PolicyRule {
    PolicyRule { name: name.to_owned(), matches, headers: headers(name), rate_limits: vec![limit(name)], ..PolicyRule::default() }
}

fn path(kind: PathKind, value: &str) -> Match {
    Match { path: Some(PathMatch { kind, value: value.to_owned() }), ..Match::default() }
}

fn prefix(value: &str) -> Match {
    path(PathKind::Prefix, value)
}

fn value(kind: ValueKind, name: &str, value: Option<&str>) -> ValueMatch {
    ValueMatch { kind, name: name.to_owned(), value: value.map(str::to_owned) }
}

fn attached(name: &str, attachment: Attachment, rules: Vec<PolicyRule>) -> AttachedPolicy {
    AttachedPolicy { policy: ObjectRef::new("shop", name), attachment, direction: Direction::Inbound, rules: rules.into() }
}

fn routes(policies: Vec<AttachedPolicy>) -> Routes {
    let plan = Plan { policies, ..Plan::default() };
    Routes::build(&plan, &Identity::default(), Direction::Inbound).unwrap()
}

/// One policy with these rules.
fn policy(rules: Vec<PolicyRule>) -> Routes {
    routes(vec![attached("p", Attachment::Proxy, rules)])
}

struct Request {
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

fn get(path_and_query: &str) -> Request {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (path_and_query, None),
    };
    Request { method: Method::GET, host: "shop.example".to_owned(), path: path.to_owned(), query, headers: HeaderMap::new() }
}

impl Request {
    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            method: &self.method,
            scheme: "http",
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            client: IpAddr::from([10, 0, 0, 1]),
        }
    }

    /// The rule whose headers won, and the rules whose limits hold, sorted.
    fn at(&self, routes: &Routes) -> (Option<String>, Vec<String>) {
        let route = routes.select(&self.facts());
        let mut edited = HeaderMap::new();
        if let Some(edits) = route.headers() {
            edits.edit_request(&mut edited);
        }
        let won = edited.get("x-rule").map(|value| value.to_str().unwrap().to_owned());
        let mut limits: Vec<_> = route.limits().map(|(limit, _)| limit.name().to_owned()).collect();
        limits.sort();
        (won, limits)
    }

    fn won(&self, routes: &Routes) -> String {
        self.at(routes).0.unwrap_or_default()
    }
}

#[test]
fn best_match_shapes_and_all_matches_protect() {
    let routes = policy(vec![
        rule("defaults", vec![]),
        rule("products", vec![prefix("/products")]),
        rule("one", vec![path(PathKind::Exact, "/products/1")]),
        rule("template", vec![path(PathKind::Template, "/products/{id}")]),
        rule("expression", vec![path(PathKind::Regex, "/products/[0-9]+")]),
    ]);
    let all = ["defaults", "expression", "one", "products", "template"].map(str::to_owned).to_vec();
    assert_eq!(get("/products/1").at(&routes), (Some("one".to_owned()), all));
    assert_eq!(get("/products/2").won(&routes), "products");
    assert_eq!(get("/orders").at(&routes), (Some("defaults".to_owned()), vec!["defaults".to_owned()]));
}

#[test]
fn most_specific_policy_with_the_section_wins() {
    let bare = PolicyRule { name: "bare".to_owned(), rate_limits: vec![limit("bare")], ..PolicyRule::default() };
    let workload = Attachment::Workload { workload_kind: "Deployment".to_owned(), name: "web".to_owned() };
    let plan = Plan {
        policies: vec![
            attached("a", workload, vec![bare]),
            attached("b", Attachment::Proxy, vec![rule("proxy", vec![prefix("/x")])]),
            attached("c", Attachment::Namespace, vec![rule("namespace", vec![])]),
        ],
        ..Plan::default()
    };
    let web = Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
    let routes = Routes::build(&plan, &web, Direction::Inbound).unwrap();
    assert_eq!(get("/x").at(&routes).0.unwrap(), "proxy");
    assert_eq!(get("/y").at(&routes), (Some("namespace".to_owned()), vec!["bare".to_owned(), "namespace".to_owned()]));
    let other = Routes::build(&plan, &Identity::default(), Direction::Inbound).unwrap();
    assert_eq!(get("/y").at(&other).1, ["namespace"]);
    let outbound = Routes::build(&plan, &web, Direction::Outbound).unwrap();
    assert_eq!(get("/x").at(&outbound), (None, Vec::new()));
}

#[test]
fn policy_attached_twice_counts_once() {
    let rules = || vec![rule("r", vec![])];
    let routes = routes(vec![attached("p", Attachment::Proxy, rules()), attached("p", Attachment::Namespace, rules())]);
    assert_eq!(get("/").at(&routes).1, ["r"]);
    assert_eq!(routes.rules(), 1);
}

#[test]
fn disabled_section_still_takes_its_place() {
    let off = Headers { mode: Mode::Disabled, ..headers("off").unwrap() };
    let disabled = PolicyRule { name: "off".to_owned(), headers: Some(off), ..PolicyRule::default() };
    let routes = routes(vec![
        attached("near", Attachment::Proxy, vec![disabled]),
        attached("wide", Attachment::Namespace, vec![rule("wide", vec![])]),
    ]);
    assert_eq!(get("/").at(&routes), (None, vec!["wide".to_owned()]));
}

#[test]
fn external_host_holds_for_its_host_only() {
    let host = |host: &str| Attachment::ExternalHost { host: host.to_owned() };
    let rules = || vec![rule("r", vec![])];
    let routes = routes(vec![attached("p", host("api.example.org"), rules()), attached("p", host("*.example.net"), rules())]);
    for (name, held) in [("api.example.org", true), ("a.example.net", true), ("example.net", false), ("other", false)] {
        let request = Request { host: name.to_owned(), ..get("/") };
        assert_eq!(request.at(&routes).1.len(), usize::from(held), "{name}");
    }
}

#[test]
fn skipped_hosts_pass_without_policy() {
    let mut plan = Plan { policies: vec![attached("p", Attachment::Proxy, vec![rule("r", vec![])])], ..Plan::default() };
    plan.policies[0].direction = Direction::Outbound;
    plan.settings.interception.outbound.skip_hosts = vec!["*.internal".to_owned()];
    let routes = Routes::build(&plan, &Identity::default(), Direction::Outbound).unwrap();
    assert_eq!(get("/").won(&routes), "r");
    assert_eq!(Request { host: "db.internal".to_owned(), ..get("/") }.won(&routes), "");
}

#[test]
fn all_conditions_of_a_match_have_to_hold() {
    let one = Match {
        hosts: vec!["*.example".to_owned()],
        methods: vec!["GET".to_owned(), "PURGE".to_owned()],
        headers: vec![value(ValueKind::Exact, "X-Tier", Some("gold")), value(ValueKind::Absent, "x-debug", None)],
        query: vec![value(ValueKind::Regex, "page", Some("[0-9]+")), value(ValueKind::Present, "q", None)],
        cel: Some("request.headers['x-tier'] == 'gold' && source.address.startsWith('10.')".to_owned()),
        ..prefix("/a")
    };
    let routes = policy(vec![rule("r", vec![one])]);
    let good = || get("/a/b?page=%31&q").header("x-tier", "silver").header("x-tier", "gold");
    // Two lines of a field are one value to CEL, which therefore says no.
    assert_eq!(good().won(&routes), "");
    let good = || get("/a/b?page=%31&q").header("x-tier", "gold");
    assert_eq!(good().won(&routes), "r");
    assert_eq!(Request { method: Method::from_bytes(b"PURGE").unwrap(), ..good() }.won(&routes), "r");
    for bad in [
        Request { method: Method::POST, ..good() },
        Request { host: "example".to_owned(), ..good() },
        Request { path: "/b".to_owned(), ..good() },
        Request { query: Some("page=x&page=1&q".to_owned()), ..good() },
        Request { query: Some("page=1".to_owned()), ..good() },
        Request { query: None, ..good() },
        good().header("x-debug", "1"),
        get("/a?page=1&q").header("x-tier", "silver"),
    ] {
        assert_eq!(bad.won(&routes), "");
    }
}

#[test]
fn expression_that_fails_does_not_match_and_is_counted() {
    let one = Match { cel: Some("request.headers['x-tier'] == 'gold'".to_owned()), ..Match::default() };
    let routes = policy(vec![rule("r", vec![one])]);
    let before = CEL_ERRORS.get();
    assert_eq!(get("/").won(&routes), "");
    assert!(CEL_ERRORS.get() > before);
}

#[test]
fn expression_sees_the_whole_request() {
    let cel = "request.method == 'GET' && request.path == '/b' && request.host == 'shop.example' && request.scheme == 'http' \
               && request.query['q'] == 'a b' && request.headers['accept'] == 'x, y'";
    let routes = policy(vec![rule("r", vec![Match { cel: Some(cel.to_owned()), ..Match::default() }])]);
    let request = get("/a/../b?q=a%20b&q=c").header("accept", "x").header("accept", "y");
    assert_eq!(request.won(&routes), "r");
}

#[test]
fn other_spelling_of_a_path_meets_the_same_rule() {
    let routes = policy(vec![rule("admin", vec![prefix("/admin")])]);
    for spelled in [
        "/admin",
        "//admin/x",
        "/./admin",
        "/x/../admin/y",
        "/%61dmin",
        "/%41/../admin",
        "/a/%2e%2e/admin",
        "/admin%2Fx",
        "/x/..;/admin",
    ] {
        assert_eq!(get(spelled).won(&routes), "admin", "{spelled}");
    }
    for other in ["/Admin", "/administrator", "/x%2Fadmin", "/x;/admin"] {
        assert_eq!(get(other).won(&routes), "", "{other}");
    }
}

#[test]
fn config_error_names_policy_and_rule() {
    let wrong: [(Match, &str); 3] = [
        (path(PathKind::Regex, "("), "matches[0]"),
        (Match { cel: Some("1 +".to_owned()), ..Match::default() }, "CEL"),
        (Match { headers: vec![value(ValueKind::Exact, "a b", Some("x"))], ..Match::default() }, "field name"),
    ];
    for (one, what) in wrong {
        let plan = Plan { policies: vec![attached("p", Attachment::Proxy, vec![rule("r", vec![one])])], ..Plan::default() };
        let refused = Routes::build(&plan, &Identity::default(), Direction::Inbound).unwrap_err();
        assert_eq!(refused.policy, Some(ObjectRef::new("shop", "p")));
        assert_eq!(refused.rule.as_deref(), Some("r"));
        assert!(refused.to_string().contains(what), "{refused}");
    }
}

#[test]
fn explanation_names_winner_loser_and_reason() {
    let routes = routes(vec![
        attached("near", Attachment::Proxy, vec![rule("near", vec![prefix("/a"), prefix("/b")])]),
        attached("wide", Attachment::Namespace, vec![rule("wide", vec![])]),
    ]);
    let at_b = routes.explain(&get("/b").facts());
    assert_eq!(at_b.rules[0].matched.as_deref(), Some("matches[1]"));
    assert!(at_b.rules[0].sections.iter().all(|section| section.applies));
    let lost = &at_b.rules[1].sections[0];
    assert_eq!((lost.section.as_str(), lost.applies, lost.lost_to.as_deref()), ("headers", false, Some("shop/near/near")));
    assert!(at_b.rules[1].sections[1].applies, "limits add up");
    let at_c = routes.explain(&get("/c").facts());
    let why = ["matches[0]: path /c is not /a and not below it", "matches[1]: path /c is not /b and not below it"];
    assert_eq!(at_c.rules[0].why_not, why);
}

#[test]
fn explanation_tells_of_policies_for_other_pods() {
    let service = Attachment::Service { name: "api".to_owned() };
    let explained = routes(vec![attached("p", service, vec![rule("r", vec![])])]).explain(&get("/").facts());
    assert_eq!(explained.rules[0].attached_to, "Service api");
    assert_eq!(explained.rules[0].why_not, ["the pod has no workload and behind no Service"]);
}

fn any_match() -> impl Strategy<Value = Match> {
    let paths = prop_oneof![
        Just(None),
        prop::sample::select(vec!["/", "/a", "/a/b"]).prop_map(|value| Some((PathKind::Prefix, value))),
        prop::sample::select(vec!["/a", "/a/b", "/c"]).prop_map(|value| Some((PathKind::Exact, value))),
        prop::sample::select(vec!["/{x}", "/a/{x}", "/{*x}"]).prop_map(|value| Some((PathKind::Template, value))),
        prop::sample::select(vec!["/a.*", "/[ab]/b"]).prop_map(|value| Some((PathKind::Regex, value))),
    ];
    let methods = proptest::collection::vec(prop::sample::select(vec!["GET", "POST"]), 0..2);
    let cel = prop::option::of(prop::sample::select(vec!["'q' in request.query", "request.headers['h'] == '1'"]));
    let header = prop::option::of(prop::sample::select(vec![ValueKind::Present, ValueKind::Absent]));
    (paths, methods, cel, header).prop_map(|(found, methods, cel, header)| Match {
        path: found.map(|(kind, value)| PathMatch { kind, value: value.to_owned() }),
        methods: methods.into_iter().map(str::to_owned).collect(),
        headers: header.map(|kind| value(kind, "h", None)).into_iter().collect(),
        cel: cel.map(str::to_owned),
        ..Match::default()
    })
}

fn any_rule() -> impl Strategy<Value = (Vec<Match>, [bool; 4])> {
    (proptest::collection::vec(any_match(), 0..3), any::<[bool; 4]>())
}

fn any_policies() -> impl Strategy<Value = Vec<AttachedPolicy>> {
    let attachments = prop::sample::select(vec![
        Attachment::ExternalHost { host: "*.example".to_owned() },
        Attachment::ExternalHost { host: "other".to_owned() },
        Attachment::Proxy,
        Attachment::Namespace,
    ]);
    proptest::collection::vec((attachments, proptest::collection::vec(any_rule(), 1..4)), 0..4).prop_map(|policies| {
        let numbered = policies.into_iter().enumerate();
        numbered
            .map(|(at, (attachment, rules))| {
                let rules = rules.into_iter().enumerate().map(
                    |(number, (matches, [with_headers, with_limits, with_timeouts, with_breaker]))| {
                        let name = format!("p{at}-r{number}");
                        PolicyRule {
                            headers: headers(&name).filter(|_| with_headers),
                            rate_limits: with_limits.then(|| limit(&name)).into_iter().collect(),
                            timeouts: with_timeouts.then(Timeouts::default),
                            circuit_breaker: with_breaker
                                .then(|| serde_json::from_str::<CircuitBreaker>(r#"{"consecutiveFailures": 5}"#).unwrap()),
                            matches,
                            name,
                            ..PolicyRule::default()
                        }
                    },
                );
                attached(&format!("p{at}"), attachment, rules.collect())
            })
            .collect()
    })
}

/// Names of the rules whose section holds, by the explanation.
fn holding(explained: &Explanation, section: &str) -> Vec<String> {
    let holds = |rule: &&RuleVerdict| rule.sections.iter().any(|found| found.section == section && found.applies);
    let mut names: Vec<_> = explained.rules.iter().filter(holds).filter_map(|rule| rule.rule.clone()).collect();
    names.sort();
    names
}

proptest! {
    #[test]
    fn explanation_agrees_with_selection(
        policies in any_policies(),
        target in prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/c", "/c?q=1", "/a?q", "//a"]),
        post: bool, header: bool,
    ) {
        let routes = routes(policies);
        let mut request = get(target);
        if post {
            request.method = Method::POST;
        }
        if header {
            request = request.header("h", "1");
        }
        let route = routes.select(&request.facts());
        let explained = routes.explain(&request.facts());
        let (won, limits) = request.at(&routes);
        prop_assert_eq!(holding(&explained, "headers"), won.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(holding(&explained, "rateLimits"), limits);
        for kind in [Kind::Timeouts, Kind::CircuitBreaker] {
            let winner: Vec<_> = route.winner(kind).map(|rule| rule.name.clone()).into_iter().collect();
            prop_assert_eq!(holding(&explained, kind.name()), winner);
        }
        prop_assert_eq!(route.label().to_string(), explained.route.clone().unwrap_or_default());
        for rule in &explained.rules {
            prop_assert_eq!(rule.matched.is_some(), rule.why_not.is_empty());
        }
    }
}
