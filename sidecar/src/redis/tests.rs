//! Against real servers, and sentinels that lie.

use std::time::Instant;

use redis::{Pipeline, Value};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

use super::{
    server::{Cluster, Sentinels, Server},
    settings::Address,
    *,
};
use crate::tls::Secrets;

const PATIENCE: Duration = Duration::from_secs(5);

fn start(redis: serde_json::Value) -> Redis {
    let settings = Settings::new(&serde_json::from_value(redis).unwrap(), &Secrets(None)).unwrap();
    Redis::start(settings, Metrics::default())
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A sentinel that tells of this primary, with an epoch that is newer than any.
async fn liar(primary: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (host, port) = primary.rsplit_once(':').unwrap();
    let fields = ["ip", host, "port", port, "config-epoch", "999999"];
    let fields: String = fields.iter().map(|field| format!("${}\r\n{field}\r\n", field.len())).collect();
    let answer = format!("*6\r\n{fields}");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                while let Ok(1..) = stream.read(&mut asked).await {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    address
}

fn get(key: &str) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.get(key);
    pipe
}

fn set(key: &str, value: &str) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.set(key, value);
    pipe
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

async fn by_link(link: &mut Link, key: &str) -> redis::RedisResult<String> {
    tokio::time::timeout(PATIENCE, redis::cmd("GET").arg(key).query_async(link)).await.unwrap()
}

#[tokio::test]
async fn sentinels_that_lie_or_are_gone_harm_nobody() {
    let mut known = Sentinels::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let primary = known.servers[0].address();
    let mut sentinels = known.endpoints();
    for told in [known.servers[1].address(), nobody.clone(), silent.local_addr().unwrap().to_string()] {
        sentinels.push(liar(&told).await);
    }
    sentinels.push(nobody);
    let redis = start(json!({"mode": "Sentinel", "endpoints": sentinels, "sentinel": {"masterName": "main"}}));
    let finder = &redis.0.finder;
    let slot = Slot::of("a");
    assert_eq!(finder.primary(slot).await.unwrap().to_string(), primary);
    for sentinel in &mut known.sentinels {
        sentinel.kill();
    }
    // The liars answer still, so that there is somebody to believe; but they are not.
    finder.doubt_all();
    let why = finder.primary(slot).await.unwrap_err().to_string();
    assert!(why.contains("is no primary") && why.contains("no primary of main was found"), "{why}");
}

#[tokio::test]
async fn primary_stays_when_all_sentinels_are_gone() {
    let mut known = Sentinels::start().await;
    let redis = start(json!({"mode": "Sentinel", "endpoints": known.endpoints(), "sentinel": {"masterName": "main"}}));
    let finder = &redis.0.finder;
    let (slot, primary) = (Slot::of("a"), known.servers[0].address());
    assert_eq!(finder.primary(slot).await.unwrap().to_string(), primary);
    for sentinel in &mut known.sentinels {
        sentinel.kill();
    }
    finder.doubt_all();
    assert_eq!(finder.primary(slot).await.unwrap().to_string(), primary);
    let name = start(json!({"mode": "Sentinel", "endpoints": known.endpoints(), "sentinel": {"masterName": "main"}}));
    let why = name.0.finder.primary(slot).await.unwrap_err().to_string();
    assert!(why.contains("sentinel 127.0.0.1") && why.contains("refused"), "{why}");
}

/// A port whose queue is full, so that the kernel drops what asks for a connection; and what has to live as long.
async fn full() -> (Address, impl Sized) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // One more than that fits.
    let waiting = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
    (Address::new("127.0.0.1", address.port()), (listener, waiting))
}

/// Takes connections, and says nothing.
async fn silent() -> (Address, impl Sized) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (Address::new("127.0.0.1", listener.local_addr().unwrap().port()), listener)
}

#[tokio::test]
async fn the_step_that_took_too_long_is_said_whoever_waits() {
    let ((full, _full), (silent, _silent)) = (full().await, silent().await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let to = |address: &Address| vec![address.to_string()];
    let with = |mode: &str, address: &Address, more: serde_json::Value| {
        let mut redis = json!({"mode": mode, "endpoints": to(address)});
        redis.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        redis
    };
    let asks = json!({"passwordFile": file});
    let cases = [
        (with("Sentinel", &full, json!({"sentinel": {"masterName": "main"}})), format!("no connection to {full}")),
        (with("Sentinel", &silent, json!({"sentinel": {"masterName": "main"}})), format!("{silent} tells of no primary")),
        (with("Cluster", &full, json!({})), format!("no connection to {full}")),
        (with("Cluster", &silent, json!({})), format!("{silent} tells nothing of its cluster")),
        (with("Single", &full, json!({})), format!("no connection to {full}")),
        (with("Single", &silent, json!({})), format!("{silent} gives no sign of life")),
        (with("Single", &silent, json!({"credentials": asks})), format!("{silent} lets nobody in")),
        (with("Single", &silent, json!({"tls": {}})), format!("no TLS with {silent}")),
    ];
    // The shortest that anybody has beside a look's second.
    for patience in [Duration::from_millis(100), Duration::from_secs(3)] {
        let each = cases.iter().map(async |(settings, words)| {
            let redis = start(settings.clone());
            let is_looked_for = settings["mode"] != "Single";
            let question = async {
                let mut link = redis.link("a", patience);
                tokio::time::timeout(patience, redis::cmd("GET").arg("a").query_async::<Value>(&mut link)).await
            };
            let why = question.await.expect("in time").unwrap_err().to_string();
            // Who does not wait until the look has ended has to be content with that.
            let words = if is_looked_for && patience < Duration::from_secs(1) { "the primary is not known" } else { words };
            assert!(why.contains(words) && why.contains("no answer in time"), "{settings} {patience:?}: {why}");
        });
        futures::future::join_all(each).await;
    }
}

#[tokio::test]
async fn a_name_that_sentinels_do_not_know_is_said() {
    let known = Sentinels::start().await;
    let redis = start(json!({"mode": "Sentinel", "endpoints": known.endpoints(), "sentinel": {"masterName": "other"}}));
    let why = redis.0.finder.primary(Slot::of("a")).await.unwrap_err().to_string();
    assert!(why.contains("no primary of other was found") && why.contains("No such master"), "{why}");
}

#[tokio::test]
async fn keys_are_found_while_and_after_their_slot_is_moved() {
    let cluster = Cluster::start().await;
    let redis = start(json!({"mode": "Cluster", "endpoints": cluster.endpoints()}));
    let pool = redis.pool(Purpose::Cache);
    until("all connections", async || pool.is_connected()).await;
    for key in ["a", "b", "c", "{x}1", "{x}2", "{x}3"] {
        assert_eq!(pool.ask(key, &set(key, key), PATIENCE).await, Ok(vec![Value::Okay]), "{key}");
        assert_eq!(pool.ask(key, &get(key), PATIENCE).await, Ok(vec![bulk(key)]), "{key}");
    }
    let mut link = redis.link("{x}1", PATIENCE);
    assert_eq!(by_link(&mut link, "{x}1").await.unwrap(), "{x}1");

    let slot = cluster.servers[0].text(&["CLUSTER", "KEYSLOT", "{x}"]).await;
    let from = usize::try_from(slot.parse::<u64>().unwrap() * 3 / 16384).unwrap();
    let (from, to) = (&cluster.servers[from], &cluster.servers[(from + 1) % 3]);
    let (from_id, to_id) = (from.text(&["CLUSTER", "MYID"]).await, to.text(&["CLUSTER", "MYID"]).await);
    to.run(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    from.run(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    // What isn't there would be at the other node, and what is stays until it is moved.
    assert_eq!(pool.ask("{x}4", &get("{x}4"), PATIENCE).await, Ok(vec![Value::Nil]));
    assert_eq!(pool.ask("{x}4", &set("{x}4", "{x}4"), PATIENCE).await, Ok(vec![Value::Okay]));
    let address = to.address();
    let (host, port) = address.split_once(':').unwrap();
    from.run(&["MIGRATE", host, port, "{x}1", "0", "5000"]).await;
    for key in ["{x}1", "{x}2", "{x}3", "{x}4"] {
        assert_eq!(pool.ask(key, &get(key), PATIENCE).await, Ok(vec![bulk(key)]), "{key}");
    }
    assert!(by_link(&mut link, "{x}1").await.unwrap_err().to_string().contains("Ask"));
    assert_eq!(by_link(&mut link, "{x}1").await.unwrap(), "{x}1", "at the other node");
    from.run(&["MIGRATE", host, port, "", "0", "5000", "KEYS", "{x}2", "{x}3"]).await;
    for server in [to, from, &cluster.servers[0], &cluster.servers[1], &cluster.servers[2]] {
        server.run(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }
    for key in ["{x}1", "{x}2", "{x}3", "{x}4"] {
        assert_eq!(pool.ask(key, &get(key), PATIENCE).await, Ok(vec![bulk(key)]), "{key}");
        assert_eq!(by_link(&mut link, key).await.unwrap(), key);
    }
    let now = Slot::of("{x}");
    until("it is known", async || redis.0.finder.map().at(now).is_some_and(|known| known.to_string() == address)).await;
    // One that is at the old place goes on to the new one.
    let mut late = Link::new(Arc::clone(&redis.0.finder), now, PATIENCE);
    assert_eq!(by_link(&mut late, "{x}1").await.unwrap(), "{x}1");
}

#[tokio::test]
async fn a_slot_that_nobody_has_is_said_and_others_go_on() {
    let cluster = Cluster::start().await;
    for server in &cluster.servers {
        server.run(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    }
    let redis = start(json!({"mode": "Cluster", "endpoints": cluster.endpoints()}));
    let pool = redis.pool(Purpose::Cache);
    until("all connections", async || pool.is_connected()).await;
    // foo has slot 12182, a 15495, b 3300.
    for server in &cluster.servers {
        server.text(&["CLUSTER", "DELSLOTS", "12182"]).await;
    }
    until("it is noticed", async || pool.ask("foo", &get("foo"), PATIENCE).await == Err(Failed::Away)).await;
    assert_eq!(pool.ask("b", &get("b"), PATIENCE).await, Ok(vec![Value::Nil]));
    let why = by_link(&mut redis.link("foo", PATIENCE), "foo").await.unwrap_err().to_string();
    assert!(why.contains("no node of the cluster has this slot"), "{why}");
}

#[tokio::test]
async fn a_server_that_hangs_costs_three_commands_their_time_and_then_nothing() {
    let server = Server::start(&[]).await;
    let pool = start(json!({"endpoints": [server.address()]}));
    let pool = pool.pool(Purpose::Cache);
    until("a connection", async || pool.is_connected()).await;
    server.stop();
    let short = Duration::from_millis(20);
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(pool.ask("a", &get("a"), short).await.unwrap_err());
    }
    assert!(answers[..3].iter().all(|answer| *answer == Failed::Late), "{answers:?}");
    assert!(answers[3..].iter().all(|answer| *answer == Failed::Away), "{answers:?}");
    server.go_on();
    until("it is asked again", async || pool.ask("a", &get("a"), PATIENCE).await.is_ok()).await;
}

#[tokio::test]
async fn commands_under_way_at_a_server_that_hangs_fail_together() {
    let server = Server::start(&[]).await;
    let redis = start(json!({"endpoints": [server.address()]}));
    let pool = redis.pool(Purpose::Limits);
    until("a connection", async || pool.is_connected()).await;
    server.stop();
    let patience = Duration::from_secs(2);
    let ask = async |after: Duration| {
        sleep(after).await;
        let begun = Instant::now();
        assert_eq!(pool.ask("a", &get("a"), patience).await, Err(Failed::Late));
        begun.elapsed()
    };
    let first = futures::future::join_all((0..3).map(|_| ask(Duration::ZERO)));
    let later = futures::future::join_all((0..20).map(|_| ask(patience / 2)));
    let (first, later) = futures::future::join(first, later).await;
    assert!(first.iter().all(|waited| *waited >= patience - patience / 8), "{first:?}");
    assert!(later.iter().all(|waited| *waited < patience * 7 / 8), "{later:?}");
    server.go_on();
    until("it is asked again", async || pool.ask("a", &get("a"), PATIENCE).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_is_not_blamed_for_time_that_others_used() {
    let server = Server::start(&[]).await;
    let redis = start(json!({"endpoints": [server.address()]}));
    let pool = redis.pool(Purpose::Limits);
    until("a connection", async || pool.is_connected()).await;
    server.stop();
    let (left, patience) = (Duration::from_millis(5), Duration::from_secs(1));
    for _ in 0..10 {
        assert_eq!(pool.ask_within("a", &get("a"), left, patience).await, Err(Failed::Late));
    }
    server.go_on();
}

#[tokio::test]
async fn each_purpose_has_a_connection_of_its_own_which_ends_with_its_last_user() {
    let server = Server::start(&[]).await;
    let redis = start(json!({"endpoints": [server.address()]}));
    let clients = async || {
        let clients = server.text(&["CLIENT", "LIST", "TYPE", "normal"]).await;
        // Beside who asks.
        clients.lines().count() - 1
    };
    let (cache, limits) = (redis.pool(Purpose::Cache), redis.pool(Purpose::Limits));
    let other = redis.pool(Purpose::Limits);
    until("connections", async || cache.is_connected() && limits.is_connected()).await;
    until("two", async || clients().await == 2).await;
    drop(limits);
    assert!(other.is_connected());
    drop(other);
    until("only that of the cache", async || clients().await == 1).await;
    assert!(cache.is_connected());
    let anew = redis.pool(Purpose::Limits);
    until("it begins anew", async || anew.is_connected()).await;
}

#[tokio::test]
async fn it_ends_when_nobody_has_it_any_more() {
    let server = Server::start(&[]).await;
    let redis = start(json!({"endpoints": [server.address()]}));
    let pool = redis.pool(Purpose::Cache);
    until("a connection", async || pool.is_connected()).await;
    drop(redis);
    until("it is closed", async || !pool.is_connected()).await;
}
