//! What matching and limits cost a request: `cargo bench -p fetchr-sidecar --bench policy`. One line a case, the best of ten rounds.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use crds::{
    plan::{Identity, Plan},
    policy::Direction,
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use sidecar::{facts::Facts, limit::Limiter, route::Routes};

const ROUNDS: usize = 10;
const CALLS: u32 = 20_000;

fn main() {
    let table = rules(50);
    let routes = compile(&table);
    for path in ["/exact/25", "/prefix/25/a/b", "/template/25/x", "/nothing", "/a/../exact/%32%35"] {
        measure(&format!("select of 150 rules: {path}"), || drop(black_box(routes.select(&facts(path, 1)))));
    }
    let regexes: Vec<_> = (0..50)
        .map(|n| json!({"name": format!("r{n}"), "matches": [{"path": {"type": "Regex", "value": format!("/x{n}/[0-9]+")}}]}))
        .collect();
    let routes = compile(&regexes);
    measure("select of 50 regular expressions: /x25/7", || drop(black_box(routes.select(&facts("/x25/7", 1)))));
    let cel = compile(&[
        json!({"name": "cel", "matches": [{"cel": "request.headers['x-tier'] == 'gold' && request.path.startsWith('/a')"}]}),
    ]);
    measure("select with one CEL condition", || drop(black_box(cel.select(&facts("/a", 1)))));

    for limits in [1, 3] {
        let limiter = Limiter::default();
        let rule = json!({"name": "all", "rateLimits": (0..limits).map(limit).collect::<Vec<_>>()});
        let routes = compile(&[rule]);
        let mut client = 0_u32;
        measure(&format!("charge of {limits} limits by client, 50,000 clients"), || {
            client = (client + 1) % 50_000;
            let facts = facts("/", client);
            let route = routes.select(&facts);
            black_box(limiter.charge(&route, &facts, Instant::now()).now_or_never());
        });
    }
}

fn measure(name: &str, mut work: impl FnMut()) {
    let best = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            (0..CALLS).for_each(|_| work());
            began.elapsed() / CALLS
        })
        .min()
        .unwrap_or_default();
    println!("{name:<55} {best:>10.1?}");
}

fn facts(path: &str, client: u32) -> Facts<'_> {
    static HEADERS: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(|| {
        [("x-tier", "gold"), ("accept", "*/*"), ("user-agent", "bench")].into_iter().map(field).collect()
    });
    Facts {
        method: &Method::GET,
        scheme: "http",
        host: "shop.example",
        path,
        query: Some("page=1"),
        headers: &HEADERS,
        client: IpAddr::V4(Ipv4Addr::from(client)),
    }
}

fn field((name, value): (&'static str, &'static str)) -> (http::HeaderName, HeaderValue) {
    (http::HeaderName::from_static(name), HeaderValue::from_static(value))
}

/// `count` rules of each kind of path, each with a method, a host and a header field.
fn rules(count: usize) -> Vec<Value> {
    let kinds = [("Exact", "/exact", ""), ("Prefix", "/prefix", ""), ("Template", "/template", "/{id}")];
    let rule = |n: usize, (kind, before, after): (&str, &str, &str)| {
        json!({
            "name": format!("{}-{n}", kind.to_lowercase()),
            "matches": [{
                "path": {"type": kind, "value": format!("{before}/{n}{after}")},
                "methods": ["GET"],
                "hosts": ["*.example"],
                "headers": [{"name": "x-tier", "value": "gold"}],
            }],
            "headers": {"request": {"set": [{"name": "x-rule", "value": "1"}]}},
        })
    };
    (0..count).flat_map(|n| kinds.map(|kind| rule(n, kind))).collect()
}

fn limit(n: usize) -> Value {
    json!({"name": format!("l{n}"), "limit": {"requests": 1_000_000, "per": "1s"}, "key": [{"source": "ClientIP"}]})
}

fn compile(rules: &[Value]) -> Routes {
    let plan: Plan = serde_json::from_value(json!({
        "proxy": {"namespace": "shop", "name": "web"},
        "settings": {},
        "policies": [{
            "policy": {"namespace": "shop", "name": "p"},
            "attachment": {"kind": "proxy"},
            "direction": "Inbound",
            "rules": rules,
        }],
    }))
    .expect("the rules above are a plan");
    Routes::build(&plan, &Identity::default(), Direction::Inbound).expect("the rules above compile")
}
