//! What is one user's own, and is kept for nobody else.

use super::{ALL, Hands, Site, begin, get, ok, rule, under_way};
use crate::support::field;

const KEPT: &str = "cache-control: max-age=600\r\n";

/// An origin that answers each user by name.
async fn users(rules: &str, fields: &'static str) -> Site {
    Site::start(rules, move |head, number| {
        let user = field(head, "authorization").or(field(head, "cookie")).unwrap_or("nobody");
        ok(fields, &format!("{user} {number}"))
    })
    .await
}

#[tokio::test]
async fn answer_that_sets_a_cookie_is_kept_without_it_or_not_at_all() {
    const FIELDS: &str = "cache-control: max-age=600\r\nset-cookie: sid=1\r\nset-cookie: b=2\r\nset-cookie2: c\r\nx-a: 1\r\n";
    let site = users(ALL, FIELDS).await;
    for number in 1..4 {
        let response = site.get("/", "").await;
        assert_eq!((response.text(), response.field("set-cookie")), (&*format!("nobody {number}"), "sid=1"));
    }
    let site = users(&rule(r#"{"setCookie": "Strip"}"#), FIELDS).await;
    let first = site.get("/", "cookie: a\r\n").await;
    assert_eq!((first.text(), first.field("set-cookie")), ("a 1", "sid=1"), "it is for who asked");
    let second = site.get("/", "").await;
    assert_eq!(
        (second.text(), second.has("set-cookie"), second.has("set-cookie2"), second.field("x-a")),
        ("a 1", false, false, "1")
    );
}

#[tokio::test]
async fn who_waits_for_an_answer_gets_no_cookie_of_the_first() {
    let mut hands = Hands::before(&rule(r#"{"setCookie": "Strip"}"#)).await;
    let mut first = begin(&hands.proxy, &get("/", "")).await;
    let asked = hands.asked().await;
    let mut second = begin(&hands.proxy, &get("/", "")).await;
    under_way(&hands.proxy, 2.0).await;
    asked.finish(ok("cache-control: max-age=600\r\nset-cookie: sid=1\r\n", "body")).await;
    assert_eq!(first.response().await.field("set-cookie"), "sid=1");
    let response = second.response().await;
    assert_eq!((response.text(), response.has("set-cookie")), ("body", false));
}

#[tokio::test]
async fn cookie_that_comes_with_a_304_is_for_who_validated_and_is_not_kept() {
    for control in ["max-age=600", "max-age=600, private=\"x-user\""] {
        let answer = move |head: &str, _: usize| {
            if head.contains("if-none-match") {
                format!(
                    "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncache-control: {control}\r\nset-cookie: sid=2\r\nx-user: b\r\n\r\n"
                )
            } else {
                ok("cache-control: max-age=0\r\netag: \"1\"\r\n", "body")
            }
        };
        let site = Site::start(ALL, answer).await;
        site.get("/", "").await;
        assert_eq!(site.get("/", "").await.text(), "body");
        let hit = site.get("/", "").await;
        assert_eq!((site.requests(), hit.text(), hit.has("set-cookie")), (2, "body", false), "{}", hit.head);
        assert_eq!(hit.has("x-user"), !control.contains("private"), "{}", hit.head);
    }
}

#[tokio::test]
async fn named_fields_of_private_and_no_cache_are_not_kept() {
    for (control, kept) in [
        ("max-age=600, private=\"set-cookie\"", true),
        ("max-age=600, private=\"x-user, Set-Cookie\"", true),
        ("max-age=600, no-cache=\"set-cookie, x-user\"", true),
        ("max-age=600, no-cache=set-cookie", true),
        ("max-age=600, private=\"\"", false),
        ("max-age=600, private=\"set-cookie", false),
        ("max-age=600, private=\"set cookie\"", false),
        ("max-age=600, PRIVATE", false),
        ("max-age=600\r\ncache-control: private", false),
        ("public, max-age=600, no-store", false),
    ] {
        let site = Site::start(ALL, move |_, number| {
            ok(&format!("cache-control: {control}\r\nset-cookie: sid={number}\r\nx-user: {number}\r\n"), &number.to_string())
        })
        .await;
        let first = site.get("/", "").await;
        assert_eq!(first.field("set-cookie"), "sid=1", "{control}");
        let second = site.get("/", "").await;
        assert_eq!(second.text(), if kept { "1" } else { "2" }, "{control}");
        assert_eq!(second.has("set-cookie"), !kept, "{control}");
        let user = if !kept {
            Some("2")
        } else if control.contains("x-user") {
            None
        } else {
            Some("1")
        };
        assert_eq!(field(&second.head, "x-user"), user, "{control}");
    }
}

#[tokio::test]
async fn answer_to_credentials_is_kept_only_if_the_origin_says_so() {
    for (fields, shared) in [
        (KEPT, false),
        ("cache-control: max-age=600, private\r\n", false),
        ("expires: Fri, 01 Jan 2100 00:00:00 GMT\r\n", false),
        ("", false),
        ("cache-control: max-age=600, public\r\n", true),
        ("cache-control: s-maxage=600\r\n", true),
        ("cache-control: max-age=600, must-revalidate\r\n", true),
    ] {
        for cache in ["{}", r#"{"ttl": {"default": "1h"}}"#, r#"{"ttl": {"override": "1h"}}"#] {
            let site = users(&rule(cache), fields).await;
            assert_eq!(site.get("/", "authorization: Basic YTpi\r\n").await.text(), "Basic YTpi 1");
            let other = site.get("/", "").await;
            assert_eq!(other.text(), if shared { "Basic YTpi 1" } else { "nobody 2" }, "{fields} {cache}");
        }
    }
}

#[tokio::test]
async fn nobody_waits_for_an_answer_to_credentials_in_vain() {
    let mut hands = Hands::before(ALL).await;
    let mut first = begin(&hands.proxy, &get("/", "authorization: Basic YTpi\r\n")).await;
    let asked = hands.asked().await;
    let mut second = begin(&hands.proxy, &get("/", "")).await;
    under_way(&hands.proxy, 2.0).await;
    asked.finish(ok(KEPT, "mine")).await;
    assert_eq!(first.response().await.text(), "mine");
    hands.asked().await.finish(ok(KEPT, "for all")).await;
    assert_eq!(second.response().await.text(), "for all");
    assert_eq!(super::ask(&hands.proxy, "/", "").await.text(), "for all", "and that is kept");
}

/// `/account.php/x.css`: the application answers with the account, whatever stands behind it.
#[tokio::test]
async fn the_end_of_a_path_never_decides_whether_an_answer_is_kept() {
    for (fields, cache, kept) in [
        ("", "{}", false),
        ("cache-control: no-store\r\n", r#"{"ttl": {"default": "1h"}}"#, false),
        ("cache-control: private\r\n", r#"{"ttl": {"default": "1h"}}"#, false),
        ("cache-control: no-cache\r\n", r#"{"ttl": {"default": "1h"}}"#, false),
        ("cache-control: private\r\n", r#"{"ttl": {"override": "1h"}}"#, false),
        ("set-cookie: sid=1\r\n", r#"{"ttl": {"default": "1h"}}"#, false),
        ("vary: cookie\r\n", r#"{"ttl": {"default": "1h"}}"#, false),
        ("", r#"{"ttl": {"default": "1h"}, "key": {"cookies": ["sid"]}}"#, false),
        ("", r#"{"ttl": {"default": "1h"}, "bypass": "'cookie' in request.headers"}"#, false),
        // Who gives a lifetime to what says nothing of itself, gives it to accounts too.
        ("", r#"{"ttl": {"default": "1h"}}"#, true),
        ("", r#"{"ttl": {"byStatus": [{"status": 200, "ttl": "1h"}]}}"#, true),
        (KEPT, "{}", true),
    ] {
        for path in
            ["/account.php/x.css", "/account.php;x.css", "/account.php%2fx.css", "/account.php?x.css", "/account.js", "/account"]
        {
            let site = users(&rule(cache), fields).await;
            assert_eq!(site.get(path, "cookie: sid=victim\r\n").await.text(), "sid=victim 1");
            let other = site.get(path, "").await;
            assert_eq!(other.text(), if kept { "sid=victim 1" } else { "nobody 2" }, "{path} {fields} {cache}");
        }
    }
}
