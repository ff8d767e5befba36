//! Requests that change something while a fetch is under way.

use super::{ALL, Hands, ask, begin, get, kept, under_way};

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn what_was_being_fetched_when_its_target_changed_is_not_stored() {
    for (status, fields, stored) in [
        ("204 No Content", "", false),
        ("303 See Other", "location: /other\r\n", false),
        ("500 Internal Server Error", "", true),
        ("409 Conflict", "", true),
    ] {
        let mut hands = Hands::before(ALL).await;
        let mut before = begin(&hands.proxy, &get("/", "")).await;
        let mut slow = hands.asked().await;
        slow.send("HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: 3\r\n\r\nol").await;
        let mut post = begin(&hands.proxy, POST).await;
        let length = if status.starts_with("204") { "" } else { "content-length: 0\r\n" };
        hands.asked().await.finish(format!("HTTP/1.1 {status}\r\n{fields}{length}\r\n")).await;
        assert!(status.starts_with(&post.response().await.status.to_string()));
        if stored {
            slow.finish("d").await;
            assert_eq!(before.response().await.text(), "old");
            assert_eq!(ask(&hands.proxy, "/", "").await.text(), "old", "{status}: nothing was changed");
            continue;
        }
        // Who comes now does not even wait for it.
        let mut after = begin(&hands.proxy, &get("/", "")).await;
        hands.asked().await.finish(kept("new")).await;
        assert_eq!(after.response().await.text(), "new", "{status}");
        slow.finish("d").await;
        assert_eq!(before.response().await.text(), "old", "{status}: it had begun before");
        assert_eq!(ask(&hands.proxy, "/", "").await.text(), "new", "{status}");
    }
}

#[tokio::test]
async fn named_targets_count_as_changed_too_and_others_do_not() {
    for (path, stored) in [("/list", false), ("/item?x", false), ("/item", true), ("/other", true)] {
        let mut hands = Hands::before(ALL).await;
        let mut before = begin(&hands.proxy, &get(path, "")).await;
        let slow = hands.asked().await;
        let mut post = begin(&hands.proxy, POST).await;
        let fields = "location: /list\r\ncontent-location: http://a/item?x\r\n";
        hands.asked().await.finish(format!("HTTP/1.1 201 Created\r\n{fields}content-length: 0\r\n\r\n")).await;
        assert_eq!(post.response().await.status, 201);
        slow.finish(kept("old")).await;
        assert_eq!(before.response().await.text(), "old");
        let mut next = begin(&hands.proxy, &get(path, "")).await;
        if !stored {
            hands.asked().await.finish(kept("new")).await;
        }
        assert_eq!(next.response().await.text(), if stored { "old" } else { "new" }, "{path}");
    }
}

#[tokio::test]
async fn validation_that_began_before_a_change_does_not_refresh() {
    let mut hands = Hands::before(ALL).await;
    let stale = "HTTP/1.1 200 OK\r\ncache-control: max-age=0\r\netag: \"1\"\r\ncontent-length: 3\r\n\r\nold";
    let mut first = begin(&hands.proxy, &get("/", "")).await;
    hands.asked().await.finish(stale).await;
    assert_eq!(first.response().await.text(), "old");
    let mut validates = begin(&hands.proxy, &get("/", "")).await;
    let slow = hands.asked().await;
    assert!(slow.head.contains("if-none-match: \"1\""), "{}", slow.head);
    let mut post = begin(&hands.proxy, POST).await;
    hands.asked().await.finish("HTTP/1.1 204 No Content\r\n\r\n").await;
    post.response().await;
    slow.finish("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncache-control: max-age=600\r\n\r\n").await;
    assert_eq!(validates.response().await.text(), "old");
    let mut after = begin(&hands.proxy, &get("/", "")).await;
    hands.asked().await.finish(kept("new")).await;
    assert_eq!(after.response().await.text(), "new");
}

#[tokio::test]
async fn change_takes_what_a_get_with_the_same_fields_would_get() {
    for (cache, fields) in [
        (r#"{"key": {"headers": ["x-tenant"]}}"#, "x-tenant: b\r\n"),
        (r#"{"key": {"cookies": ["currency"]}}"#, "cookie: currency=EUR\r\n"),
        ("{}", "x-original-host: b\r\n"),
        (r#"{"mode": "Enforce", "key": {"host": "Ignore"}}"#, ""),
    ] {
        let mut hands = Hands::before(&super::rule(cache)).await;
        let mut first = begin(&hands.proxy, &get("/", fields)).await;
        hands.asked().await.finish(kept("old")).await;
        assert_eq!(first.response().await.text(), "old");
        let mut post = begin(&hands.proxy, &format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}content-length: 0\r\n\r\n")).await;
        hands.asked().await.finish("HTTP/1.1 204 No Content\r\n\r\n").await;
        post.response().await;
        let mut next = begin(&hands.proxy, &get("/", fields)).await;
        hands.asked().await.finish(kept("new")).await;
        assert_eq!(next.response().await.text(), "new", "{cache}");
    }
}

#[tokio::test]
async fn change_that_comes_before_the_head_frees_nobody_with_an_old_answer() {
    let mut hands = Hands::before(ALL).await;
    let mut before = begin(&hands.proxy, &get("/", "")).await;
    let slow = hands.asked().await;
    let mut waits = begin(&hands.proxy, &get("/", "")).await;
    under_way(&hands.proxy, 2.0).await;
    let mut post = begin(&hands.proxy, POST).await;
    hands.asked().await.finish("HTTP/1.1 204 No Content\r\n\r\n").await;
    post.response().await;
    let mut after = begin(&hands.proxy, &get("/", "")).await;
    let newer = hands.asked().await;
    slow.finish(kept("old")).await;
    for client in [&mut before, &mut waits] {
        assert_eq!(client.response().await.text(), "old", "it came before the change");
    }
    newer.finish(kept("new")).await;
    assert_eq!(after.response().await.text(), "new");
    assert_eq!(ask(&hands.proxy, "/", "").await.text(), "new");
}
