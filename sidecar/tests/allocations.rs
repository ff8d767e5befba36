//! What a request costs in allocations: matching and limits without CEL, regular expressions and odd spellings cost none.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::IpAddr,
    time::Instant,
};

use crds::plan::{Identity, Plan};
use http::{HeaderMap, HeaderValue, Method};
use sidecar::{facts::Facts, limit::Limiter, route::Routes};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator; the counter is a plain number of the thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise for `alloc` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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
fn routes(count: usize) -> Routes {
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
    let plan: Plan = serde_json::from_value(serde_json::json!({
        "proxy": {"namespace": "shop", "name": "web"},
        "settings": {},
        "policies": [{
            "policy": {"namespace": "shop", "name": "p"},
            "attachment": {"kind": "proxy"},
            "direction": "Inbound",
            "rules": rules,
        }],
    }))
    .expect("a plan");
    Routes::build(&plan, &Identity::default(), crds::policy::Direction::Inbound).expect("it compiles")
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
            let outcome = limiter.charge(&route, &facts, Instant::now());
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
