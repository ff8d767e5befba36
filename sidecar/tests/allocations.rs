//! What a request costs in allocations: matching and limits without CEL, regular expressions and odd spellings cost none. And what a
//! reload leaves behind: nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use crds::{
    plan::{Identity, Plan, Position},
    policy::{Direction, Match, matches::PathKind, matches::PathMatch},
    proxy::FetchrProxySpec,
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method};
use sidecar::{
    config::{Config, PlanSource, Planned, Shared},
    facts::Facts,
    limit::Limiter,
    route::Routes,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that are allocated now.
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator; the counters are plain numbers of the thread and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        LIVE.with(|bytes| bytes.set(bytes.get() + layout.size() as i64));
        // SAFETY: the caller's promise for `alloc` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.with(|bytes| bytes.set(bytes.get() - layout.size() as i64));
        // SAFETY: the caller's promise for `dealloc` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.with(Cell::get);
    let done = work();
    (done, ALLOCATIONS.with(Cell::get) - before)
}

/// A policy with a limit for all, and `count` rules of each kind of path.
fn plan(count: usize) -> Plan {
    let mut rules = vec![serde_json::json!({
        "name": "all",
        "rateLimits": [{"name": "per-client", "limit": {"requests": 100, "per": "1s"}, "key": [{"source": "ClientIP"}]}],
    })];
    for n in 0..count {
        for (kind, path) in
            [("Exact", format!("/exact/{n}")), ("Prefix", format!("/prefix/{n}")), ("Template", format!("/t/{n}/{{id}}"))]
        {
            rules.push(serde_json::json!({
                "name": format!("{}-{n}", kind.to_lowercase()),
                "matches": [{
                    "path": {"type": kind, "value": path},
                    "methods": ["GET"],
                    "hosts": ["*.example"],
                    "headers": [{"name": "x-tier", "value": "gold"}],
                    "query": [{"name": "page", "value": "1"}],
                }],
                "headers": {"request": {"set": [{"name": "x-rule", "value": "1"}]}},
            }));
        }
    }
    let plan = serde_json::json!({
        "proxy": {"namespace": "shop", "name": "web"},
        "settings": {},
        "policies": [{
            "policy": {"namespace": "shop", "name": "p"},
            "attachment": {"kind": "proxy"},
            "direction": "Inbound",
            "rules": rules,
        }],
    });
    serde_json::from_value(plan).expect("it is a plan")
}

fn routes(count: usize) -> Routes {
    Routes::build(&plan(count), &Identity::default(), Direction::Inbound).expect("it compiles")
}

#[test]
fn matching_and_limits_allocate_nothing() {
    let (routes, limiter) = (routes(60), Limiter::default());
    let mut headers = HeaderMap::new();
    headers.insert("x-tier", HeaderValue::from_static("gold"));
    for path in ["/exact/7", "/prefix/7/a/b", "/t/7/x", "/nothing"] {
        let facts = Facts {
            method: &Method::GET,
            scheme: "http",
            host: "shop.example",
            path,
            query: Some("a=b&page=1"),
            headers: &headers,
            client: IpAddr::from([10, 0, 0, 1]),
        };
        let serve = || {
            let route = routes.select(&facts);
            let outcome = limiter.charge(&route, &facts, Instant::now()).now_or_never().unwrap();
            assert!(outcome.denied().is_none());
            route.headers().is_some()
        };
        // The first request of a client makes its count, and the first of a limit its figures.
        serve();
        let (edited, allocations) = counted(serve);
        assert_eq!(edited, path != "/nothing");
        assert_eq!(allocations, 0, "{path}");
    }
}

#[test]
fn reloads_leave_nothing_behind() {
    let (shared, limiter) = (Shared::new(Config::waiting(FetchrProxySpec::default())), Limiter::default());
    let mut plan = plan(3);
    let cel = Some("request.headers['x-tier'] == 'gold'".to_owned());
    let path = Some(PathMatch { kind: PathKind::Regex, value: "/r/[a-z]+".to_owned() });
    Arc::make_mut(&mut plan.policies[0].rules)[1].matches.push(Match { path, cel, ..Match::default() });
    let plan = Arc::new(plan);
    let reload = |n: usize| {
        let planned = Planned {
            plan: Arc::clone(&plan),
            digest: format!("{n:064}"),
            position: Position::default(),
            source: PlanSource::Stream,
        };
        shared.replace(Config::build(planned, Identity::default()).expect("it compiles"));
        let facts = Facts {
            method: &Method::GET,
            scheme: "http",
            host: "shop.example",
            path: "/r/abc",
            query: None,
            headers: &HeaderMap::new(),
            client: IpAddr::from([10, 0, 0, 1]),
        };
        limiter.charge(&shared.load().inbound.select(&facts), &facts, Instant::now()).now_or_never().unwrap();
    };
    // What is made once: the figures of the limit, the functions of CEL, the first count.
    (0..10).for_each(reload);
    let before = LIVE.with(Cell::get);
    (10..1010).for_each(reload);
    let left = LIVE.with(Cell::get) - before;
    assert!(left.abs() < 4096, "a thousand reloads left {left} bytes");
}
