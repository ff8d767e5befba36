//! Clients that leave, are slow, or wait for what is not for them.

use super::{ALL, Hands, ask, begin, get, kept, ok, rule, under_way};
use crate::support::{eventually, read_head, until};

const HALF: &str = "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: 10\r\n\r\nfirst";

#[tokio::test]
async fn who_leaves_takes_the_answer_from_nobody() {
    for (leader, sent) in [(true, ""), (true, HALF.strip_suffix("first").unwrap()), (true, HALF), (false, ""), (false, HALF)] {
        let what = format!("leader: {leader}, after {sent:?}");
        let mut hands = Hands::before(ALL).await;
        let first = begin(&hands.proxy, &get("/", "")).await;
        let mut asked = hands.asked().await;
        let second = begin(&hands.proxy, &get("/", "")).await;
        under_way(&hands.proxy, 2.0).await;
        asked.send(sent).await;
        let (mut leaves, mut stays) = if leader { (first, second) } else { (second, first) };
        if !sent.is_empty() {
            read_head(&mut leaves.0).await.unwrap();
        }
        drop(leaves);
        under_way(&hands.proxy, 1.0).await;
        if leader && sent.is_empty() {
            // Nobody fetches any more; who waits does, now.
            asked = hands.asked().await;
        }
        asked.finish(format!("{HALF}later").strip_prefix(sent).unwrap()).await;
        let response = stays.response().await;
        assert_eq!((response.status, response.text()), (200, "firstlater"), "{what}");
        assert_eq!(ask(&hands.proxy, "/", "").await.text(), "firstlater", "{what}");
        assert!(hands.is_idle(), "{what}");
    }
}

#[tokio::test]
async fn fetch_that_all_have_left_is_stored_for_who_comes_next() {
    let mut hands = Hands::before(ALL).await;
    let clients = [begin(&hands.proxy, &get("/", "")).await, begin(&hands.proxy, &get("/", "")).await];
    under_way(&hands.proxy, 2.0).await;
    let mut asked = hands.asked().await;
    asked.send(HALF).await;
    for mut client in clients {
        read_head(&mut client.0).await.unwrap();
    }
    under_way(&hands.proxy, 0.0).await;
    asked.finish("later").await;
    eventually("the object", || hands.proxy.metric("fetchr_cache_objects") == 1.0).await;
    assert_eq!(ask(&hands.proxy, "/", "").await.text(), "firstlater");
}

#[tokio::test]
async fn slow_client_slows_no_other_and_gets_all_of_it() {
    let mut hands = Hands::before(ALL).await;
    let mut slow = begin(&hands.proxy, &get("/", "")).await;
    let asked = hands.asked().await;
    let mut fast = [begin(&hands.proxy, &get("/", "")).await, begin(&hands.proxy, &get("/", "")).await];
    under_way(&hands.proxy, 3.0).await;
    // More than the sockets of the slow one take.
    let body: String = (0..).map(|number| format!("{number:07} ")).take(7 << 17).collect();
    let sent = tokio::spawn(asked.finish(kept(&body)));
    for client in &mut fast {
        assert!(client.response().await.text() == body, "a fast one");
    }
    sent.await.unwrap();
    eventually("the object", || hands.proxy.metric("fetchr_cache_objects") == 1.0).await;
    assert!(ask(&hands.proxy, "/", "").await.text() == body, "one that came later");
    assert!(slow.response().await.text() == body, "the slow one");
}

#[tokio::test]
async fn who_waits_for_what_is_not_for_others_is_let_go_at_once() {
    for head in [
        "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncache-control: private\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nset-cookie: a=b\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\nvary: *\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 99999999\r\n\r\n",
    ] {
        let mut hands = Hands::before(ALL).await;
        let mut first = begin(&hands.proxy, &get("/", "")).await;
        let mut slow = hands.asked().await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(begin(&hands.proxy, &get("/", "")).await);
        }
        under_way(&hands.proxy, 5.0).await;
        slow.send(head).await;
        // Its body doesn't come, and nobody waits for it.
        for _ in 0..4 {
            hands.asked().await.finish(kept("theirs")).await;
        }
        for client in &mut clients {
            assert_eq!(client.response().await.text(), "theirs", "{head}");
        }
        assert!(read_head(&mut first.0).await.is_some());
    }
}

#[tokio::test]
async fn one_request_asks_anew_while_a_stale_answer_serves_also_where_none_are_collapsed() {
    let mut hands = Hands::before(&rule(r#"{"stale": {"whileRevalidate": "1h"}, "collapse": {"scope": "Disabled"}}"#)).await;
    let mut first = begin(&hands.proxy, &get("/", "")).await;
    hands.asked().await.finish(ok("cache-control: max-age=0\r\n", "old")).await;
    assert_eq!(first.response().await.text(), "old");
    for _ in 0..5 {
        assert_eq!(ask(&hands.proxy, "/", "").await.text(), "old");
    }
    hands.asked().await.finish(kept("new")).await;
    until("the newer answer", async || ask(&hands.proxy, "/", "").await.text() == "new").await;
    assert!(hands.is_idle());
}
