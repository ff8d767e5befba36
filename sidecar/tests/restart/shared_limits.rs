//! Sidecars that count limits in one Redis, before an origin.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crds::plan::Plan;
use serde_json::{Value, json};
use tempfile::TempDir;
use wire::signed::{KeyPair, sign};

use super::{DEADLINE, Sidecar, ask, ask_web, document, eventually, free_port, proxy, proxy_command, redis_server::Server};

/// An origin that never answers `/hold`, and anything else at once.
pub(super) fn origin() -> SocketAddr {
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
pub(super) struct Pod {
    pub(super) sidecar: Sidecar,
    pub(super) address: SocketAddr,
    folder: TempDir,
}

impl Pod {
    /// One that counts limits in Redis, and has done so once.
    pub(super) fn start(redis: &Server, origin: SocketAddr, limits: &Value) -> Self {
        Self::start_by(&mut proxy_command(), redis, origin, limits)
    }

    pub(super) fn start_by(command: &mut Command, redis: &Server, origin: SocketAddr, limits: &Value) -> Self {
        let (folder, key, port) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap(), free_port());
        let mut plan: Value = serde_json::from_slice(&document(port, origin, "x")).unwrap();
        plan["settings"]["redis"] = json!({"endpoints": [redis.address()], "commandTimeout": "5s"});
        plan["policies"][0]["rules"] = json!([{"name": "all", "rateLimits": limits}]);
        let document = serde_json::from_value::<Plan>(plan).unwrap().to_bytes();
        let envelope = sign(&key, "shop", &proxy(), &document, &Default::default()).unwrap();
        std::fs::create_dir(folder.path().join("plan")).unwrap();
        std::fs::write(folder.path().join("plan/shop.web"), envelope).unwrap();
        let sidecar = Sidecar::start_by(command, folder.path(), key.public());
        sidecar.ready();
        ask_web(port);
        let pod = Self { sidecar, address: ([127, 0, 0, 1], port).into(), folder };
        eventually("Redis decides", || {
            pod.get("/");
            ask(pod.sidecar.metrics, "GET /metrics", "").1.contains("decision=\"allow\",mode=\"enforce\",source=\"store\"")
        });
        pod
    }

    pub(super) fn get(&self, path: &str) -> u16 {
        ask(self.address, &format!("GET {path}"), "").0
    }

    /// A request that is under way for as long as this is kept.
    pub(super) fn hold(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        socket
    }

    /// Kills the supervisor, with which its worker dies.
    pub(super) fn kill(self) {
        let address = self.address;
        self.sidecar.kill();
        eventually("its worker is dead", || TcpStream::connect(address).is_err());
        drop(self.folder);
    }
}

/// How many ask at a rate, in a second, until then or until nobody is there, and how many of them are admitted.
pub(super) fn admitted(address: SocketAddr, rate: u32, until: Instant) -> (u32, u32) {
    let (begun, mut asked, mut admitted) = (Instant::now(), 0, 0);
    while Instant::now() < until {
        let due = begun + Duration::from_secs(1) * asked / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        asked += 1;
        match TcpStream::connect(address).and_then(|mut socket| {
            socket.set_read_timeout(Some(DEADLINE))?;
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
    (asked, admitted)
}
