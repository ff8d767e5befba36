//! Policies look at one spelling of a path, and the application gets what they looked at.

use crds::proxy::{DotSegments, EncodedSlashes, HttpPath, PathForward, Slashes, Trace};

use crate::support::{Origin, Proxy};

/// The path that reaches the origin, and whether the rule for `/admin` held; or the status of a refusal.
async fn seen(proxy: &Proxy, target: &str) -> Result<(String, bool), u16> {
    let response = proxy.ask(&format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    if response.status != 200 {
        return Err(response.status);
    }
    let path = response.text().split(' ').nth(1).unwrap().to_owned();
    Ok((path, response.text().contains("x-admin: 1")))
}

async fn proxy(path: HttpPath) -> Proxy {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.http.path = path);
    proxy.apply(
        r#"[{"name": "admin", "matches": [{"path": {"type": "Prefix", "value": "/admin"}}],
             "headers": {"request": {"set": [{"name": "x-admin", "value": "1"}]}}}]"#,
    );
    proxy
}

fn ok(path: &str, admin: bool) -> Result<(String, bool), u16> {
    Ok((path.to_owned(), admin))
}

#[tokio::test]
async fn no_spelling_is_a_way_around_a_rule_and_the_origin_gets_what_was_matched() {
    let proxy = proxy(HttpPath::default()).await;
    for (target, expected) in [
        ("/admin?a=/../b%2f", ok("/admin?a=/../b%2f", true)),
        ("//admin", ok("/admin", true)),
        ("/x/../admin/y", ok("/admin/y", true)),
        ("/x/%2e%2E/admin", ok("/admin", true)),
        ("/%61dmin", ok("/admin", true)),
        ("/./admin/.", ok("/admin/", true)),
        ("http://a/x/../admin", ok("/admin", true)),
        ("http://a?b", ok("/?b", false)),
        ("/admin/../x", ok("/x", false)),
        ("/%%361dmin", ok("/%2561dmin", false)),
        ("/administrator", ok("/administrator", false)),
        // What some applications read as /admin.
        ("/public%2f..%2fadmin", ok("/public%2F..%2Fadmin", true)),
        (r"/public\..\admin", ok(r"/public\..\admin", true)),
        ("/public/..;/admin", ok("/public/..;/admin", true)),
        ("/admin;a=b", ok("/admin;a=b", true)),
        ("/admin%00", Err(400)),
    ] {
        assert_eq!(seen(&proxy, target).await, expected, "{target}");
    }
}

#[tokio::test]
async fn path_goes_on_as_it_came_where_that_is_asked_for() {
    let proxy = proxy(HttpPath { forward: Some(PathForward::AsReceived), ..HttpPath::default() }).await;
    for target in ["/x/../admin", "//admin", "/%61dmin?x"] {
        assert_eq!(seen(&proxy, target).await, ok(target, true));
    }
}

#[tokio::test]
async fn settings_decide_about_slashes_and_dots() {
    let strict = proxy(HttpPath {
        dot_segments: DotSegments::Refuse,
        encoded_slashes: EncodedSlashes::Refuse,
        slashes: Slashes::Keep,
        ..HttpPath::default()
    })
    .await;
    for (target, expected) in
        [("/x/../admin", Err(400)), ("/x%2Fadmin", Err(400)), ("//admin", ok("//admin", false)), ("/admin", ok("/admin", true))]
    {
        assert_eq!(seen(&strict, target).await, expected, "{target}");
    }
    let decoding = proxy(HttpPath { encoded_slashes: EncodedSlashes::Decode, ..HttpPath::default() }).await;
    assert_eq!(seen(&decoding, "/x%2f..%5Cadmin").await, ok("/admin", true));
}

#[tokio::test]
async fn trace_is_405_unless_it_is_let_through() {
    const TRACE: &str = "TRACE / HTTP/1.1\r\nhost: a\r\ncookie: secret\r\n\r\n";
    let origin = Origin::echo_head().await;
    let refused = Proxy::before(origin.address).ask(TRACE).await;
    assert_eq!((refused.status, refused.has("allow"), origin.connections()), (405, true, 0));
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.http.trace = Trace::Forward);
    assert!(proxy.ask(TRACE).await.text().starts_with("TRACE / "));
}
