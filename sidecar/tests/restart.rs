//! A real `fetchr-proxy` without an operator: it starts from the signed plan of its volume, and after SIGKILL from what it has,
//! whether its supervisor was killed, as with the container, or the worker alone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails has failed its test")]

#[path = "restart/clock.rs"]
mod clock;
#[path = "restart/leavings.rs"]
mod leavings;
#[path = "../src/redis/server.rs"]
#[allow(dead_code, reason = "the tests of the data path do more with it")]
mod redis_server;
#[path = "restart/shared_limits.rs"]
mod shared_limits;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crds::plan::{Identity, ObjectRef, Plan, digest_bytes};
use sidecar::source::state::StateDir;
use wire::{
    env,
    signed::{KeyPair, PublicKey, sign},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// An origin that answers with the field `x-a` that it was sent.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            thread::spawn(move || answer(&socket.unwrap()));
        }
    });
    address
}

fn answer(socket: &TcpStream) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let (mut line, mut value) = (String::new(), String::new());
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        if let Some(field) = line.strip_prefix("x-a: ") {
            field.trim().clone_into(&mut value);
        }
        line.clear();
    }
    let _ = write!(&mut &*socket, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{value}", value.len());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn proxy() -> ObjectRef {
    ObjectRef::new("shop", "web")
}

/// A plan that listens on `port`, drains for 2 s before it closes, sets `x-a` to `value` and lets two requests a minute pass.
fn document(port: u16, upstream: SocketAddr, value: &str) -> Vec<u8> {
    let plan: Plan = serde_json::from_value(serde_json::json!({
        "proxy": {"namespace": "shop", "name": "web"},
        "settings": {
            "interception": {
                "mode": "Explicit",
                "listeners": [
                    {"name": "web", "address": "127.0.0.1", "port": port, "direction": "Inbound", "upstream": format!("http://{upstream}")},
                ],
            },
            "drain": {"delay": "2s", "timeout": "20s"},
        },
        "policies": [{
            "policy": {"namespace": "shop", "name": "p"},
            "attachment": {"kind": "workload", "workloadKind": "Deployment", "name": "web"},
            "direction": "Inbound",
            "rules": [{
                "name": "all",
                "headers": {"request": {"set": [{"name": "x-a", "value": value}]}},
                "rateLimits": [{"name": "slow", "limit": {"requests": 2, "per": "1m"}, "key": [{"source": "ClientIP"}]}],
            }],
        }],
    }))
    .unwrap();
    plan.to_bytes()
}

struct Sidecar {
    process: Child,
    metrics: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    fn start(folder: &Path, key: PublicKey) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_fetchr-proxy")).arg("run"), folder, key)
    }

    fn start_by(command: &mut Command, folder: &Path, key: PublicKey) -> Self {
        let mut process = command
            .env(env::POD_NAMESPACE, "shop")
            .env(env::POD_NAME, "web-1")
            .env(env::POD_UID, "uid-1")
            .env(env::POD_IPS, "127.0.0.1")
            .env(env::PROXY, "shop/web")
            .env(env::WORKLOAD, "Deployment/web")
            // Nobody listens there.
            .env(env::OPERATOR, "127.0.0.1:1")
            .env(env::PLAN_KEYS, key.to_string())
            .env(env::PLAN_DIR, folder.join("plan"))
            .env(env::STATE_DIR, folder.join("state"))
            .env(env::INTERCEPT, "Explicit")
            .env(env::ON_NO_CONFIG, "Block")
            .env(env::ADMIN_PORT, "0")
            .env(env::METRICS_PORT, "0")
            .env(env::LOG_FORMAT, "Json")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, logged) = mpsc::channel();
        follow(process.stdout.take().unwrap(), lines.clone());
        follow(process.stderr.take().unwrap(), lines);
        let opened = std::iter::from_fn(|| logged.recv_timeout(DEADLINE).ok())
            .find(|line| line.contains("Admin and metrics are open."))
            .expect("the sidecar says where it listens");
        let opened: serde_json::Value = serde_json::from_str(&opened).unwrap();
        let address = |name: &str| -> SocketAddr {
            let found = opened.get(name).or_else(|| opened.pointer(&format!("/fields/{name}")));
            let address: SocketAddr = found.and_then(serde_json::Value::as_str).unwrap().parse().unwrap();
            ([127, 0, 0, 1], address.port()).into()
        };
        // The rest of the log must be read on, or the sidecar would wait for a reader.
        let sidecar = Self { metrics: address("metrics"), admin: address("admin"), process };
        thread::spawn(move || logged.iter().for_each(drop));
        sidecar
    }

    /// Waits until it is ready.
    fn ready(&self) {
        let began = Instant::now();
        loop {
            let (status, body) = ask(self.metrics, "GET /readyz", "");
            if status == 200 {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "{body}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the process that serves, and waits until it is dead.
    fn kill_worker(&self) {
        let worker = children(self.process.id())[0];
        // SAFETY: takes numbers; the supervisor reaps its child only after it has died.
        assert_eq!(unsafe { libc::kill(i32::try_from(worker).unwrap(), libc::SIGKILL) }, 0);
        eventually("the worker is dead", || !children(self.process.id()).contains(&worker));
    }

    /// The kubelet's `preStop`.
    fn drain(&self, folder: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetchr-proxy"));
        command.arg("drain").env(env::STATE_DIR, folder.join("state")).env(env::ADMIN_PORT, self.admin.port().to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Processes that a process has started and not reaped.
fn children(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn follow(output: impl std::io::Read + Send + 'static, lines: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// Status and the whole answer. No connection is status 0.
fn ask(address: SocketAddr, line: &str, fields: &str) -> (u16, String) {
    let Ok(mut socket) = TcpStream::connect(address) else { return (0, String::new()) };
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(socket, "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{fields}\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer)
}

/// Asks as soon as the listener of the plan is open.
fn ask_web(port: u16) -> (u16, String) {
    let began = Instant::now();
    loop {
        match ask(([127, 0, 0, 1], port).into(), "GET /", "") {
            (0, _) if began.elapsed() < DEADLINE => thread::sleep(Duration::from_millis(5)),
            answer => return answer,
        }
    }
}

#[test]
fn signed_plan_of_the_volume_serves_and_limits() {
    let (folder, key, port) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap(), free_port());
    let envelope = sign(&key, "shop", &proxy(), &document(port, origin(), "mounted"), &Default::default()).unwrap();
    fs::create_dir(folder.path().join("plan")).unwrap();
    fs::write(folder.path().join("plan/shop.web"), envelope).unwrap();
    let sidecar = Sidecar::start(folder.path(), key.public());
    sidecar.ready();
    let (status, answer) = ask_web(port);
    assert!(status == 200 && answer.ends_with("mounted"), "{answer}");
    assert!(
        answer.contains("ratelimit: \"slow\";r=1;t=30") && answer.contains("ratelimit-policy: \"slow\";q=2;w=60"),
        "{answer}"
    );
    assert_eq!(ask_web(port).0, 200);
    let (status, answer) = ask_web(port);
    assert!(status == 429 && answer.contains("retry-after: 30"), "{answer}");

    let token = fs::read_to_string(folder.path().join("state/admin-token")).unwrap();
    let (status, config) = ask(sidecar.admin, "GET /config", &format!("authorization: Bearer {token}\r\n"));
    assert!(status == 200 && config.contains("\"source\":\"ConfigMap\""), "{config}");
    assert_eq!(ask(sidecar.admin, "GET /config", "").0, 401);
    let (_, figures) = ask(sidecar.metrics, "GET /metrics", "");
    let denied = "fetchr_ratelimit_decisions_total{policy=\"shop/p\",rule=\"all\",limit=\"slow\",decision=\"deny\",mode=\"enforce\",source=\"pod\"} 1";
    assert!(figures.contains(denied), "{figures}");
}

#[test]
fn forged_plan_leaves_the_sidecar_waiting() {
    let (folder, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
    let forger = KeyPair::generate().unwrap();
    let envelope = sign(&forger, "shop", &proxy(), &document(free_port(), origin(), "forged"), &Default::default()).unwrap();
    fs::create_dir(folder.path().join("plan")).unwrap();
    fs::write(folder.path().join("plan/shop.web"), envelope).unwrap();
    let sidecar = Sidecar::start(folder.path(), key.public());
    let counted =
        || ask(sidecar.metrics, "GET /metrics", "").1.contains("fetchr_coldstart_refused_total{reason=\"signature\"} 1");
    let began = Instant::now();
    while !counted() {
        assert!(began.elapsed() < DEADLINE, "the refusal is counted");
        thread::sleep(Duration::from_millis(5));
    }
    let (status, why) = ask(sidecar.metrics, "GET /readyz", "");
    assert!(status == 503 && why.contains("waiting for the first configuration"), "{why}");
}

#[test]
fn killed_sidecar_serves_again_from_its_own_folder() {
    let (folder, key, port) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap(), free_port());
    let document = bytes::Bytes::from(document(port, origin(), "kept"));
    let identity = Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
    let state = StateDir::open(folder.path().join("state")).unwrap();
    state.keep_plan(&digest_bytes(&document), &Default::default(), &identity, &document).unwrap();
    let first = Sidecar::start(folder.path(), key.public());
    first.ready();
    assert!(ask_web(port).1.ends_with("kept"));
    first.kill();
    let killed = Instant::now();
    // Its worker dies with it, a moment later.
    eventually("the port is free", || TcpStream::connect(("127.0.0.1", port)).is_err());
    let second = Sidecar::start(folder.path(), key.public());
    second.ready();
    let (status, answer) = ask_web(port);
    assert!(status == 200 && answer.ends_with("kept"), "{answer}");
    println!("served again {:?} after the kill", killed.elapsed());
}

/// A sidecar with a plan in its folder, that is ready.
fn with_kept_plan(folder: &Path, port: u16, command: &mut Command) -> Sidecar {
    let document = bytes::Bytes::from(document(port, origin(), "kept"));
    let identity = Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
    let state = StateDir::open(folder.join("state")).unwrap();
    state.keep_plan(&digest_bytes(&document), &Default::default(), &identity, &document).unwrap();
    let sidecar = Sidecar::start_by(command, folder, KeyPair::generate().unwrap().public());
    sidecar.ready();
    assert!(ask_web(port).1.ends_with("kept"));
    sidecar
}

fn proxy_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fetchr-proxy"));
    command.arg("run");
    command
}

#[test]
fn killed_worker_leaves_connections_waiting_and_the_next_one_serves_them_by_the_plan() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let sidecar = with_kept_plan(folder.path(), port, &mut proxy_command());
    for kills in 1..=3 {
        sidecar.kill_worker();
        let (status, answer) = ask(([127, 0, 0, 1], port).into(), "GET /", "");
        assert!(status == 200 && answer.ends_with("kept"), "{answer}");
        let (_, figures) = ask(sidecar.metrics, "GET /metrics", "");
        assert!(figures.contains(&format!("fetchr_worker_restarts_total {kills}\n")), "{figures}");
    }
}

#[test]
fn drain_goes_on_when_the_worker_is_killed_while_it_still_accepts() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let sidecar = with_kept_plan(folder.path(), port, &mut proxy_command());
    let drain = sidecar.drain(folder.path());
    eventually("it is not ready any more", || ask(sidecar.metrics, "GET /readyz", "").0 == 503);
    sidecar.kill_worker();
    let (status, answer) = ask(([127, 0, 0, 1], port).into(), "GET /", "");
    assert!(status == 200 && answer.contains("connection: close"), "{answer}");
    let (_, why) = ask(sidecar.metrics, "GET /readyz", "");
    assert!(why.contains("draining"), "{why}");
    ends_well(drain);
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
}

#[test]
fn what_a_drain_has_closed_stays_closed_when_the_worker_is_killed() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let sidecar = with_kept_plan(folder.path(), port, &mut proxy_command());
    // A request that does not come to its end.
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    open.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let drain = sidecar.drain(folder.path());
    eventually("the port is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
    sidecar.kill_worker();
    ends_well(drain);
    let (_, why) = ask(sidecar.metrics, "GET /readyz", "");
    assert!(why.contains("draining"), "{why}");
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
}

fn ends_well(drain: Child) {
    let said = drain.wait_with_output().unwrap();
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("connectionsLeft"), "{said:?}");
}

/// Needs root, like a container's runtime.
#[test]
fn first_process_of_a_container_reaps_orphans() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--", env!("CARGO_BIN_EXE_fetchr-proxy"), "run"]);
    let sidecar = with_kept_plan(folder.path(), port, &mut command);
    let first = children(sidecar.process.id())[0];
    assert_eq!(children(first).len(), 1, "the worker");
    let enter = ["--target", &first.to_string(), "--pid", "--mount", "--", "sh", "-c", "sleep 0.5 &"].map(str::to_owned);
    assert!(Command::new("nsenter").args(enter).stdout(Stdio::null()).status().unwrap().success());
    eventually("the orphan is the supervisor's", || children(first).len() == 2);
    eventually("it was reaped when it ended", || children(first).len() == 1);
}

/// An origin whose bodies say for which target they are, many times over, and that counts requests.
#[cfg(feature = "disk-cache")]
fn counting_origin() -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), std::sync::Arc::<std::sync::atomic::AtomicUsize>::default());
    let counted = std::sync::Arc::clone(&count);
    thread::spawn(move || {
        for socket in listener.incoming() {
            let counted = std::sync::Arc::clone(&counted);
            thread::spawn(move || {
                let mut reader = BufReader::new(socket.unwrap());
                let (mut target, mut line) = (String::new(), String::new());
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some(rest) = line.strip_prefix("GET ") {
                        rest.split(' ').next().unwrap().clone_into(&mut target);
                    }
                    line.clear();
                }
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let body = body_of(&target);
                let head = format!("HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: {}\r\n", body.len());
                let _ = write!(reader.get_mut(), "{head}connection: close\r\n\r\n{body}");
            });
        }
    });
    (address, count)
}

#[cfg(feature = "disk-cache")]
fn body_of(target: &str) -> String {
    let number: usize = target.trim_start_matches('/').parse().unwrap_or(1);
    format!("{target};").repeat(1 + number * 37 % 1000)
}

#[cfg(feature = "disk-cache")]
#[test]
fn killed_sidecar_finds_its_answers_on_disk() {
    const TARGETS: usize = 300;
    let (folder, port, (origin, asked)) = (tempfile::tempdir().unwrap(), free_port(), counting_origin());
    let asked = || asked.load(std::sync::atomic::Ordering::SeqCst);
    let mut plan: serde_json::Value = serde_json::from_slice(&document(port, origin, "kept")).unwrap();
    plan["settings"]["cache"] = serde_json::json!({"disk": {"size": "64Mi"}});
    plan["policies"][0]["rules"] = serde_json::json!([{"name": "all", "cache": {}}]);
    let document = bytes::Bytes::from(serde_json::from_value::<Plan>(plan).unwrap().to_bytes());
    let identity = Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
    let state = StateDir::open(folder.path().join("state")).unwrap();
    state.keep_plan(&digest_bytes(&document), &Default::default(), &identity, &document).unwrap();
    let start = || {
        let mut command = proxy_command();
        command.env(env::CACHE_DIR, folder.path().join("cache")).env(env::CACHE_LIMIT, "64Mi");
        let sidecar = Sidecar::start_by(&mut command, folder.path(), KeyPair::generate().unwrap().public());
        sidecar.ready();
        sidecar
    };
    let shows = |sidecar: &Sidecar, line: &str| ask(sidecar.metrics, "GET /metrics", "").1.contains(line);
    let is_open = |sidecar: &Sidecar| eventually("the disk is open", || shows(sidecar, "fetchr_cache_disk_open 1\n"));
    // None if the sidecar was killed meanwhile.
    let get = |number: usize| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(socket, "GET /{number} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    };
    let all = |mut numbers: std::ops::Range<usize>| numbers.all(|number| get(number) == Some(body_of(&format!("/{number}"))));

    let first = start();
    is_open(&first);
    assert!(all(0..TARGETS));
    let stored = format!("fetchr_cache_disk_writes_total{{result=\"stored\"}} {TARGETS}\n");
    eventually("all is written", || shows(&first, &stored));
    assert!(all(0..TARGETS));
    assert_eq!(asked(), TARGETS, "all of it is kept");
    first.kill();
    eventually("the port is free", || TcpStream::connect(("127.0.0.1", port)).is_err());

    let mut sidecar = start();
    is_open(&sidecar);
    assert!(all(0..TARGETS));
    println!("{} of {TARGETS} were asked for again", asked() - TARGETS);
    assert!(asked() <= TARGETS + TARGETS / 10, "{} of {TARGETS} are there", 2 * TARGETS - asked());

    // In the middle of writes: what is there is whole.
    for from in [TARGETS, TARGETS + 100, TARGETS + 200] {
        let new = from..from + 300;
        let (killed, done) = (new.start + 100, std::sync::atomic::AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in new.clone() {
                    done.store(number, std::sync::atomic::Ordering::SeqCst);
                    if get(number).is_none() {
                        return;
                    }
                }
            });
            eventually("some are written", || done.load(std::sync::atomic::Ordering::SeqCst) >= killed);
            sidecar.process.kill().unwrap();
            sidecar.process.wait().unwrap();
        });
        eventually("the port is free", || TcpStream::connect(("127.0.0.1", port)).is_err());
        sidecar = start();
        is_open(&sidecar);
        let before = asked();
        assert!(all(0..killed), "what is there is whole");
        assert!(asked() - before <= killed / 10, "{} of {killed} are gone", asked() - before);
    }
}
