//! What a proxy leaves behind in Redis that is killed (SIGKILL): slots of its requests, and tokens that it had taken ahead.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crds::plan::Plan;
use serde_json::{Value, json};
use tempfile::TempDir;
use wire::signed::{KeyPair, sign};

use super::{DEADLINE, Sidecar, ask, ask_web, document, eventually, free_port, proxy, redis_server::Server};

/// An origin that never answers `/hold`, and anything else at once.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            thread::spawn(move || answer(socket.unwrap()));
        }
    });
    address
}

fn answer(mut socket: TcpStream) {
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    if first.contains("/hold") {
        let _ = socket.read(&mut [0]);
        return;
    }
    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}

/// A sidecar that runs, and where it listens.
struct Pod {
    sidecar: Sidecar,
    address: SocketAddr,
    folder: TempDir,
}

impl Pod {
    /// One that counts a limit in Redis, and has done so once.
    fn start(redis: &Server, origin: SocketAddr, limit: &Value) -> Self {
        let (folder, key, port) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap(), free_port());
        let mut plan: Value = serde_json::from_slice(&document(port, origin, "x")).unwrap();
        plan["settings"]["redis"] = json!({"endpoints": [redis.address()], "commandTimeout": "5s"});
        plan["policies"][0]["rules"] = json!([{"name": "all", "rateLimits": [limit]}]);
        let document = serde_json::from_value::<Plan>(plan).unwrap().to_bytes();
        let envelope = sign(&key, "shop", &proxy(), &document, &Default::default()).unwrap();
        std::fs::create_dir(folder.path().join("plan")).unwrap();
        std::fs::write(folder.path().join("plan/shop.web"), envelope).unwrap();
        let sidecar = Sidecar::start(folder.path(), key.public());
        sidecar.ready();
        ask_web(port);
        let pod = Self { sidecar, address: ([127, 0, 0, 1], port).into(), folder };
        eventually("Redis decides", || {
            pod.get("/");
            ask(pod.sidecar.metrics, "GET /metrics", "").1.contains("decision=\"allow\",mode=\"enforce\",source=\"store\"")
        });
        pod
    }

    fn get(&self, path: &str) -> u16 {
        ask(self.address, &format!("GET {path}"), "").0
    }

    /// A request that is under way for as long as this is kept.
    fn hold(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        socket
    }

    /// Kills the supervisor, with which its worker dies.
    fn kill(self) {
        let address = self.address;
        self.sidecar.kill();
        eventually("its worker is dead", || TcpStream::connect(address).is_err());
        drop(self.folder);
    }
}

/// Takes all slots of a limit by requests of a pod.
async fn hold_all(pod: &Pod, redis: &Server, slots: usize) -> Vec<TcpStream> {
    let held = (0..slots).map(|_| pod.hold()).collect();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let name = redis.text(&["KEYS", "fetchr:*:s"]).await;
        if redis.run(&["ZCARD", &name]).await == redis::Value::Int(i64::try_from(slots).unwrap()) {
            return held;
        }
        assert!(Instant::now() < deadline, "all slots are taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many are admitted that come at a rate, in a second, until then or until nobody is there.
fn admitted(address: SocketAddr, rate: u32, until: Instant) -> u32 {
    let (begun, mut asked, mut admitted) = (Instant::now(), 0, 0);
    while Instant::now() < until {
        let due = begun + Duration::from_secs(1) * asked / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        asked += 1;
        match TcpStream::connect(address).and_then(|mut socket| {
            socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        }) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => admitted += 1,
            Ok(answer) if answer.starts_with("HTTP/1.1 429") => {}
            // It was killed.
            _ => break,
        }
    }
    admitted
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_a_killed_proxy_had_taken_ahead_come_back_and_none_is_spent_twice() {
    const RATE: u32 = 100;
    let (redis, origin) = (Server::start(&[]).await, origin());
    let limit =
        json!({"name": "one", "limit": {"requests": RATE, "per": "1s", "burst": RATE}, "scope": "Shared", "accuracy": "Leased"});
    let (first, second) = (Pod::start(&redis, origin, &limit), Pod::start(&redis, origin, &limit));
    redis.run(&["FLUSHALL"]).await;
    let begun = Instant::now();
    let of_first = {
        let (address, until) = (first.address, begun + Duration::from_secs(60));
        thread::spawn(move || admitted(address, RATE, until))
    };
    let together = admitted(second.address, RATE, begun + Duration::from_secs(2));
    let taken = ask(first.sidecar.metrics, "GET /metrics", "").1;
    let taken = taken.lines().find_map(|line| line.strip_prefix("fetchr_ratelimit_lease_tokens_total{use=\"taken\"} "));
    assert!(taken.is_some_and(|taken| taken.parse::<f64>().unwrap() > 0.0), "it takes tokens ahead");
    first.kill();
    let killed = Instant::now();
    let alone = admitted(second.address, 2 * RATE, killed + Duration::from_secs(3));
    let time = begun.elapsed().as_secs_f64();
    let (sum, most) = (f64::from(of_first.join().unwrap() + together + alone), f64::from(RATE) * (time + 1.0));
    let came = f64::from(RATE) * killed.elapsed().as_secs_f64();
    println!(
        "| killed with tokens taken ahead (`Leased`) | {sum} of {most:.0} | afterwards {alone} of the {came:.0} that came in |"
    );
    assert!(sum <= most, "{sum} of {most}");
    assert!(f64::from(alone) >= 0.75 * came, "{alone} of {came}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits for 15 s"]
async fn slots_of_a_killed_proxy_are_free_after_fifteen_seconds() {
    const SLOTS: usize = 3;
    let (redis, origin) = (Server::start(&[]).await, origin());
    let limit = json!({"name": "three", "limit": {"algorithm": "Concurrency", "requests": SLOTS}, "scope": "Shared", "onStoreFailure": "Deny"});
    let (first, second) = (Pod::start(&redis, origin, &limit), Pod::start(&redis, origin, &limit));
    let held = hold_all(&first, &redis, SLOTS).await;
    assert_eq!(second.get("/"), 429);
    first.kill();
    let killed = Instant::now();
    let mut denied = 0;
    let free = loop {
        match second.get("/") {
            200 => break killed.elapsed(),
            429 => denied += 1,
            status => panic!("{status}"),
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "they come back");
        thread::sleep(Duration::from_millis(50));
    };
    drop(held);
    assert!(free <= Duration::from_secs(16), "{free:?}");
    let held = hold_all(&second, &redis, SLOTS).await;
    assert_eq!(second.get("/"), 429, "no more than before");
    drop(held);
    println!("| killed with all {SLOTS} slots | {denied} denied | free after {free:.1?} |");
}
