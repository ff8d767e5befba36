//! `fetchr run` when its worker dies, and when another program takes over.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    run::{DEADLINE, Proxy, document, get, policy, terminate},
    support::{FETCHR, Said, program, run},
};

pub(crate) const DRAIN: &str = "{delay: 2s, timeout: 10s}";
/// Promised.
const SERVES_AGAIN: Duration = Duration::from_millis(300);
/// Longer than a worker has to serve to be started again at once.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

#[test]
fn worker_killed_under_load_again_and_again_refuses_no_connection_and_serves_at_once() {
    const KILLS: u32 = 20;
    let proxy = start(Path::new(FETCHR));
    let token = fs::read_to_string(proxy.state().join("admin-token")).unwrap();
    let metrics = proxy.metrics();
    let load = Load::start(proxy.address, 4);
    let mut gaps: Vec<Duration> = (0..KILLS)
        .map(|_| {
            serve_for(&proxy, LONG_ENOUGH);
            kill(worker(&proxy));
            let killed = Instant::now();
            assert!(proxy.get("/").ends_with("hello"), "who comes after the kill is served");
            killed.elapsed()
        })
        .collect();
    let tally = load.stop();
    gaps.sort_unstable();
    println!("{} requests, {} lost; gaps {gaps:?}", tally.ok, tally.lost.len());
    assert_eq!(tally.refused, 0);
    assert!(tally.lost.len() <= usize::try_from(KILLS * 4).unwrap(), "only what was under way: {:?}", tally.lost);
    // Other tests run beside this one, so time says little about most of them; that none was waited for says more.
    assert!(gaps[0] < SERVES_AGAIN, "{gaps:?}");
    assert_eq!(proxy.log().matches("\"wait\":\"0ns\"").count(), gaps.len(), "{}", proxy.log());
    let figures = get(metrics, "/metrics");
    assert!(figures.contains(&format!("fetchr_worker_restarts_total {KILLS}\n")), "{figures}");
    assert_eq!(fs::read_to_string(proxy.state().join("admin-token")).unwrap(), token, "who has the token can go on");
    assert!(proxy.log().contains("signal 9"), "{}", proxy.log());
}

#[test]
fn worker_that_cannot_start_is_tried_again_with_longer_and_longer_waits_while_clients_wait() {
    let mut proxy = start(Path::new(FETCHR));
    let good = fs::read_to_string(proxy.documents().join("proxy.yaml")).unwrap();
    proxy.write("proxy.yaml", "nonsense\n");
    proxy.eventually("the change is refused", |proxy| proxy.log().contains("configuration from before stays in force"));
    kill(worker(&proxy));
    proxy.eventually("the second start has failed", |proxy| proxy.log().matches("\"how\":\"exit code 1\"").count() == 2);
    assert!(proxy.log().contains("\"wait\":\"100ms\"") && proxy.log().contains("\"wait\":\"200ms\""), "{}", proxy.log());
    let address = proxy.address;
    let waiting = thread::spawn(move || get(address, "/"));
    proxy.write("proxy.yaml", &good);
    assert!(waiting.join().unwrap().ends_with("hello"));
}

#[test]
fn orders_that_reach_the_worker_too_are_obeyed_once() {
    let (mut proxy, origin) = start_before_origin(Path::new(FETCHR), DRAIN);
    let address = proxy.address;
    let slow = thread::spawn(move || get(address, "/slow"));
    origin.has_begun();
    // As a terminal or a service manager does, which signals every process.
    signal("-TERM", worker(&proxy));
    signal("-TERM", worker(&proxy));
    terminate(&proxy.child);
    assert!(slow.join().unwrap().ends_with("hello"));
    assert_eq!(proxy.exit().code(), Some(0), "{}", proxy.log());
}

#[test]
fn second_signal_ends_at_once_and_first_one_closes_the_port() {
    let (mut proxy, origin) = start_before_origin(Path::new(FETCHR), "{delay: 0s, timeout: 1m}");
    let address = proxy.address;
    let stream = thread::spawn(move || try_get(address, "/stream"));
    origin.has_begun();
    terminate(&proxy.child);
    proxy.eventually("the port is closed although a stream is open", |proxy| TcpStream::connect(proxy.address).is_err());
    assert!(proxy.child.try_wait().unwrap().is_none());
    terminate(&proxy.child);
    let began = Instant::now();
    assert_eq!(proxy.exit().code(), Some(0), "{}", proxy.log());
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(stream.join().unwrap().is_none_or(|answer| !answer.ends_with("0\r\n\r\n")), "the stream was cut");
}

#[test]
fn worker_goes_with_its_supervisor_and_frees_the_port() {
    let mut proxy = start(Path::new(FETCHR));
    let orphan = worker(&proxy);
    proxy.child.kill().unwrap();
    proxy.child.wait().unwrap();
    proxy.eventually("the worker is gone", |_| !Path::new(&format!("/proc/{orphan}/exe")).exists());
    proxy.eventually("the port is free", |proxy| TcpListener::bind(proxy.address).is_ok());
}

#[test]
fn listener_that_the_documents_drop_is_closed_and_one_that_comes_back_is_opened() {
    let mut proxy = start(Path::new(FETCHR));
    let good = fs::read_to_string(proxy.documents().join("proxy.yaml")).unwrap();
    let other = free_port();
    proxy.write("proxy.yaml", &good.replace(&format!("port: {}", proxy.address.port()), &format!("port: {other}")));
    proxy.eventually("the listener is closed", |proxy| TcpStream::connect(proxy.address).is_err());
    proxy.eventually("the other one is open", |_| TcpStream::connect((Ipv4Addr::LOCALHOST, other)).is_ok());
    // What the supervisor holds is what the documents say, after a kill as before.
    kill(worker(&proxy));
    assert!(get((Ipv4Addr::LOCALHOST, other).into(), "/").ends_with("hello"));
    TcpStream::connect(proxy.address).unwrap_err();
    proxy.write("proxy.yaml", &good);
    proxy.eventually("the first one is open", |proxy| TcpStream::connect(proxy.address).is_ok());
    assert!(proxy.get("/").ends_with("hello"));
}

#[test]
fn upgrade_under_load_loses_no_request_and_cuts_no_stream() {
    let (_folder, installed) = installed();
    let (mut proxy, origin) = start_before_origin(&installed, DRAIN);
    let (address, before) = (proxy.address, worker(&proxy));
    let load = Load::start(address, 4);
    let stream = thread::spawn(move || get(address, "/stream"));
    origin.has_begun();
    for _ in 0..2 {
        replace(&installed, Path::new(FETCHR));
        let said = upgrade(&proxy);
        assert_eq!(said.code, 0, "{said:?} {}", proxy.log());
        assert!(said.stdout.contains(" serves (process "), "{said:?}");
    }
    assert_ne!(worker(&proxy), before);
    let answer = stream.join().unwrap();
    assert!(answer.ends_with("0\r\n\r\n"), "the stream ends in its own time: {answer}");
    proxy.eventually("the old worker ends", |_| !Path::new(&format!("/proc/{before}/exe")).exists());
    let tally = load.stop();
    println!("{} requests", tally.ok);
    assert!(tally.ok > 100 && tally.refused == 0 && tally.lost.is_empty(), "{} ok, {:?}", tally.ok, tally.lost);
    // It is the new program that is started again.
    kill(worker(&proxy));
    assert!(proxy.get("/").ends_with("hello"));
    terminate(&proxy.child);
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn program_that_does_not_serve_takes_nothing_over() {
    let (folder, installed) = installed();
    let proxy = start(&installed);
    let before = worker(&proxy);
    let broken = folder.path().join("broken");
    fs::write(&broken, "#!/bin/sh\nexit 3\n").unwrap();
    for (mode, words) in [(0o755, "before it served"), (0o644, "could not be started")] {
        fs::set_permissions(&broken, fs::Permissions::from_mode(mode)).unwrap();
        replace(&installed, &broken);
        let said = upgrade(&proxy);
        assert!(said.code == 1 && said.stderr.contains(words), "{said:?} {}", proxy.log());
        assert!(proxy.get("/").ends_with("hello"));
    }
    fs::remove_file(&installed).unwrap();
    let said = upgrade(&proxy);
    assert!(said.code == 1 && said.stderr.contains("No such file"), "{said:?}");
    assert_eq!(worker(&proxy), before);
    // What runs is the program of before, although its file is gone.
    kill(before);
    assert!(proxy.get("/").ends_with("hello"));
}

#[test]
fn drain_that_begins_during_an_upgrade_goes_on_in_the_new_worker() {
    let (_folder, installed) = installed();
    let mut proxy = start_before_origin(&installed, "{delay: 1m, timeout: 1m}").0;
    let (admin, metrics) = (proxy.port_of("admin"), proxy.metrics());
    let token = fs::read_to_string(proxy.state().join("admin-token")).unwrap();
    // The new worker is held up between its start and the moment at which it serves; that may come too late on a busy machine.
    let held = (0..3).find_map(|_| hold_up_an_upgrade(&proxy)).expect("a new worker is held up before it serves");
    let mut drain = TcpStream::connect(admin).unwrap();
    write!(drain, "POST /drain HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    proxy.eventually("the drain has begun", |_| get(metrics, "/readyz").contains("draining"));
    signal("-CONT", held);
    proxy.eventually("the new worker serves", |proxy| worker(proxy) == held);
    proxy.eventually("the drain goes on", |proxy| proxy.log().matches("Inbound drain started.").count() == 2);
    assert!(get(metrics, "/readyz").contains("draining"));
    assert!(proxy.get("/").ends_with("hello"), "it has only been announced");
}

#[test]
fn status_that_cannot_be_written_is_said_once_and_written_when_it_can() {
    let mut proxy = start(Path::new(FETCHR));
    let status = proxy.state().join("supervisor.json");
    proxy.eventually("there is one", |_| status.is_file());
    fs::remove_file(&status).unwrap();
    fs::create_dir_all(status.join("in the way")).unwrap();
    for _ in 0..2 {
        let [before] = children(&proxy)[..] else { panic!("one worker serves") };
        kill(before);
        proxy.eventually("another one serves", |proxy| children(proxy).iter().all(|child| *child != before));
        assert!(proxy.get("/").ends_with("hello"));
    }
    let said = |proxy: &Proxy| proxy.log().matches("The supervisor's status can't be written.").count();
    assert_eq!(said(&proxy), 1, "{}", proxy.log());
    fs::remove_dir_all(&status).unwrap();
    kill(children(&proxy)[0]);
    proxy.eventually("it is written", |_| {
        let status: serde_json::Value = serde_json::from_slice(&fs::read(&status).unwrap_or_default()).unwrap_or_default();
        status["restarts"] == 3
    });
    assert_eq!(said(&proxy), 1, "{}", proxy.log());
}

#[test]
fn upgrade_without_a_proxy_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let said = run(program(Path::new(FETCHR), &["upgrade", "--state-dir"]).arg(folder.path()));
    assert!(said.code == 4 && said.stderr.contains("no proxy runs here"), "{said:?}");
}

#[test]
fn without_a_supervisor_there_is_one_process() {
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("proxy.yaml"), document(port, Origin::start().port, DRAIN)).unwrap();
    let mut command = program(
        Path::new(FETCHR),
        &["run", "--no-supervisor", "--admin-port", "0", "--metrics-port", "0", "--log-level", "error"],
    );
    let mut child = command.arg("-f").arg(folder.path()).arg("--state-dir").arg(folder.path().join("state")).spawn().unwrap();
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(began.elapsed() < DEADLINE);
        thread::sleep(Duration::from_millis(20));
    }
    let id = child.id();
    assert_eq!(fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap(), "");
    signal("-INT", i64::from(id));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn start(program: &Path) -> Proxy {
    start_before_origin(program, DRAIN).0
}

pub(crate) fn start_before_origin(program: &Path, drain: &str) -> (Proxy, Origin) {
    let origin = Origin::start();
    (Proxy::start_as(program, &policy("one"), origin.port, drain), origin)
}

/// Asks again and again for so long.
fn serve_for(proxy: &Proxy, time: Duration) {
    // The supervisor counts from when it has heard of it.
    status_when(proxy, |status| status["serves"] == true);
    let began = Instant::now();
    while began.elapsed() < time {
        assert!(proxy.get("/").ends_with("hello"));
        thread::sleep(Duration::from_millis(20));
    }
}

/// The process that serves.
pub(crate) fn worker(proxy: &Proxy) -> i64 {
    status_when(proxy, |status| status["worker"].is_i64())["worker"].as_i64().unwrap()
}

/// What the supervisor tells of itself, once that is so.
fn status_when(proxy: &Proxy, is_so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let began = Instant::now();
    loop {
        let status: serde_json::Value =
            serde_json::from_slice(&fs::read(proxy.state().join("supervisor.json")).unwrap_or_default()).unwrap_or_default();
        assert!(status.is_null() || status["pid"] == proxy.child.id(), "{status}");
        if is_so(&status) {
            return status;
        }
        assert!(began.elapsed() < DEADLINE, "{status}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The workers, whatever they do.
fn children(proxy: &Proxy) -> Vec<i64> {
    let id = proxy.child.id();
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    listed.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Begins an upgrade and stops the new worker. None if it served before that.
fn hold_up_an_upgrade(proxy: &Proxy) -> Option<i64> {
    let before = children(proxy);
    signal("-USR2", proxy.child.id().into());
    let began = Instant::now();
    let new = loop {
        if let Some(new) = children(proxy).into_iter().find(|child| !before.contains(child)) {
            break new;
        }
        assert!(began.elapsed() < DEADLINE, "{}", proxy.log());
    };
    signal("-STOP", new);
    // What it has said before that the supervisor hears soon.
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_millis(500) {
        if worker(proxy) == new {
            signal("-CONT", new);
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(new)
}

/// Returns when it is dead.
pub(crate) fn kill(pid: i64) {
    signal("-KILL", pid);
    let began = Instant::now();
    while Path::new(&format!("/proc/{pid}/exe")).exists() {
        assert!(began.elapsed() < DEADLINE);
        thread::yield_now();
    }
}

fn signal(name: &str, pid: i64) {
    assert_eq!(run(Command::new("kill").args([name, &pid.to_string()])).code, 0);
}

pub(crate) fn upgrade(proxy: &Proxy) -> Said {
    run(program(Path::new(FETCHR), &["upgrade", "--state-dir"]).arg(proxy.state()))
}

/// The program in a place of its own.
pub(crate) fn installed() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(Path::new(FETCHR).parent().unwrap()).unwrap();
    let installed = folder.path().join("fetchr");
    replace(&installed, Path::new(FETCHR));
    (folder, installed)
}

/// Puts another file in the place of the program.
pub(crate) fn replace(installed: &Path, by: &Path) {
    let _ = fs::remove_file(installed);
    fs::hard_link(by, installed).unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A server that says hello; to `/slow` after a second; to `/stream` piece by piece, for three seconds.
pub(crate) struct Origin {
    pub(crate) port: u16,
    /// Told of each request to `/slow` and `/stream`.
    begun: Receiver<()>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, begun) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let tell = tell.clone();
                // A client that goes away is none of the origin's business.
                thread::spawn(move || drop(answer(&stream, &tell)));
            }
        });
        Self { port, begun }
    }

    /// Waits for the next request that takes long.
    pub(crate) fn has_begun(&self) {
        self.begun.recv_timeout(DEADLINE).expect("the request reaches the origin");
    }
}

fn answer(mut stream: &TcpStream, begun: &Sender<()>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(line) = lines.next() {
        for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
        if line.contains(" /stream ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            for _ in 0..30 {
                stream.write_all(b"5\r\nhello\r\n")?;
                let _ = begun.send(()); // nobody may want to know
                thread::sleep(Duration::from_millis(100));
            }
            stream.write_all(b"0\r\n\r\n")?;
            continue;
        }
        if line.contains(" /slow ") {
            let _ = begun.send(());
            thread::sleep(Duration::from_secs(1));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
    }
    Ok(())
}

fn try_get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Clients that ask all the time, half of them on connections that they keep.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What they saw.
#[derive(Debug, Default)]
struct Tally {
    ok: u32,
    refused: u32,
    lost: Vec<String>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || ask_on_and_on(address, number % 2 == 0, &stop))
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    fn stop(self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.into_iter().map(|client| client.join().unwrap()).fold(Tally::default(), |mut all, one| {
            all.ok += one.ok;
            all.refused += one.refused;
            all.lost.extend(one.lost);
            all
        })
    }
}

fn ask_on_and_on(address: SocketAddr, keep: bool, stop: &AtomicBool) -> Tally {
    let (mut tally, mut kept) = (Tally::default(), None);
    while !stop.load(Ordering::SeqCst) {
        let stream = match kept.take() {
            Some(stream) => stream,
            None => match TcpStream::connect(address) {
                Ok(stream) => stream,
                Err(_) => {
                    tally.refused += 1;
                    continue;
                }
            },
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        match ask(&stream) {
            Ok(closes) => {
                tally.ok += 1;
                kept = (keep && !closes).then_some(stream);
            }
            Err(error) => tally.lost.push(format!("kept: {keep}, {error}")),
        }
        thread::sleep(Duration::from_millis(2));
    }
    tally
}

/// One request; whether the answer closes the connection.
fn ask(mut stream: &TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let (mut reader, mut head) = (BufReader::new(stream), String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other(format!("the connection ended after {head:?}")));
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = [0; 5];
    reader.read_exact(&mut body)?;
    match head.starts_with("HTTP/1.1 200") && body == *b"hello" {
        true => Ok(head.to_lowercase().contains("connection: close")),
        false => Err(std::io::Error::other(head)),
    }
}
