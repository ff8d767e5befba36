//! A proxy to which memory, processor time or descriptors are scarce: `fetchr run` as a process, in control groups of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use e2e::{
    origin::get::{Answer, get},
    process::Process,
    tools::sibling,
    wait::eventually,
};
use http::HeaderMap;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

const LONG: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A control group of the test's. It is removed when it is dropped; its processes must have ended.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// One that bounds something: the controller, and file and value in each version.
    fn new(controller: &str, v1: (&str, &str), v2: (&str, &str)) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let old = mounts.iter().find(|mount| mount[2] == "cgroup" && mount[3].split(',').any(|option| option == controller));
        let (mount, (file, value)) = match old {
            Some(mount) => (mount[1], v1),
            None => (mounts.iter().find(|mount| mount[2] == "cgroup2").unwrap()[1], v2),
        };
        let folder = PathBuf::from(mount).join(format!("fetchr-scarce-{}-{controller}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let group = Self(folder);
        fs::write(group.0.join(file), value).unwrap();
        group
    }

    fn memory(limit: usize) -> Self {
        let limit = limit.to_string();
        Self::new("memory", ("memory.limit_in_bytes", &limit), ("memory.max", &limit))
    }

    /// So many hundredths of a processor.
    fn processor(hundredths: usize) -> Self {
        let quota = (hundredths * 1000).to_string();
        Self::new("cpu", ("cpu.cfs_quota_us", &quota), ("cpu.max", &format!("{quota} 100000")))
    }

    /// The most memory that was used.
    fn most_used(&self) -> u64 {
        let read = |name| fs::read_to_string(self.0.join(name)).ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // What was its last process is gone in a moment.
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A proxy before an origin.
struct Proxy {
    // Dropped first: then the group is empty.
    process: Process,
    web: SocketAddr,
    metrics: SocketAddr,
    folder: TempDir,
    group: Option<ControlGroup>,
}

impl Proxy {
    async fn start(origin: SocketAddr, group: Option<ControlGroup>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (web, metrics) = (free(), free());
        let document = format!(
            "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: local}}\nspec:\n  interception:\n    mode: Explicit\n    \
             listeners: [{{name: web, port: {}, upstream: \"http://{origin}\"}}]\n  \
             upstream: {{maxConnectionsPerHost: 65535, connectTimeout: 20s}}\n  drain: {{delay: 0s, timeout: 1s}}\n",
            web.port()
        );
        let file = folder.path().join("proxy.yaml");
        fs::write(&file, document).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "if [ -n \"$1\" ]; then echo $$ >\"$1/cgroup.procs\"; fi; shift; exec \"$@\"", "sh"]);
        command.arg(group.as_ref().map_or_else(PathBuf::new, |group| group.0.clone()));
        command.arg(sibling("fetchr").unwrap()).args(["run", "--admin-port", "0", "-f"]).arg(&file);
        command.args(["--metrics-port", &metrics.port().to_string()]).env("HOME", folder.path());
        command.env("XDG_STATE_HOME", folder.path());
        let process = Process::spawn("fetchr", command, &folder.path().join("log")).unwrap();
        let proxy = Self { process, web, metrics, folder, group };
        let ready = || async { ensure_ok(&proxy.get(proxy.metrics, "/readyz").await?) };
        eventually("the proxy is ready", LONG, async || ready().await).await.unwrap();
        proxy
    }

    /// The process that serves, below its supervisor.
    fn worker(&self) -> u32 {
        self.process.children()[0]
    }

    async fn get(&self, address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
        get(&format!("http://{address}{path}").parse()?, &HeaderMap::new()).await
    }

    /// The sum of all lines of its metrics that begin so.
    async fn metric(&self, prefix: &str) -> f64 {
        let page = self.get(self.metrics, "/metrics").await.unwrap().body;
        page.lines()
            .filter(|line| line.starts_with(prefix))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

fn ensure_ok(answer: &Answer) -> anyhow::Result<()> {
    ensure!(matches!(answer.status, 200 | 204), "{answer:?}");
    Ok(())
}

/// An address that nobody listens on.
fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// An origin whose answers to `/large` are large, and that reads uploads once `open` says so.
async fn origin(open: watch::Receiver<bool>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer_all(stream, open.clone()));
        }
    });
    address
}

async fn answer_all(mut stream: TcpStream, mut open: watch::Receiver<bool>) {
    let large = Arc::<[u8]>::from(vec![b'x'; MIB]);
    while let Some(head) = read_head(&mut stream).await {
        let mut length = 2;
        if head.starts_with("POST") {
            let _ = open.wait_for(|open| *open).await;
            let announced =
                head.to_ascii_lowercase().split_once("content-length: ").unwrap().1.split_once('\r').unwrap().0.parse().unwrap();
            if !discard(&mut stream, announced).await {
                return;
            }
        } else if head.starts_with("GET /large") {
            length = MIB;
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(&large[..length]).await.is_err() {
            return;
        }
    }
}

/// A head; none at the end of the connection.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Reads so many bytes; false if fewer come.
async fn discard(stream: &mut TcpStream, mut left: usize) -> bool {
    let mut scrap = vec![0; 16 << 10];
    while left > 0 {
        let most = scrap.len().min(left);
        match stream.read(&mut scrap[..most]).await {
            Ok(read) if read > 0 => left -= read,
            _ => return false,
        }
    }
    true
}

/// What came of a request: the status of a whole answer, or how it ended without one.
async fn outcome(web: SocketAddr, request: &str, body: usize, read_on: Option<watch::Receiver<bool>>) -> String {
    let asked = async {
        let mut stream = TcpStream::connect(web).await.ok()?;
        let piece = vec![b'x'; 16 << 10];
        let sent = async {
            stream.write_all(request.as_bytes()).await?;
            for _ in 0..body / piece.len() {
                stream.write_all(&piece).await?;
            }
            std::io::Result::Ok(())
        };
        let _ = sent.await; // an answer may come before the end of the request
        let head = read_head(&mut stream).await?;
        if let Some(mut open) = read_on {
            let _ = open.wait_for(|open| *open).await;
        }
        let length = head.split_once("content-length: ")?.1.split_once('\r')?.0.parse().ok()?;
        let again = head.contains("retry-after: ");
        let status = head.get(9..12)?.to_owned() + if again { ", come again" } else { "" };
        discard(&mut stream, length).await.then_some(status)
    };
    match timeout(2 * LONG, asked).await {
        Ok(Some(status)) => status,
        Ok(None) => "cut off".to_owned(),
        Err(_) => "left waiting".to_owned(),
    }
}

/// Counts what came of many requests at once.
async fn outcomes(many: Vec<tokio::task::JoinHandle<String>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in many {
        *counts.entry(one.await.unwrap()).or_default() += 1;
    }
    counts
}

/// Has clients by the hundred upload, and not read their answers, until memory is as short as it gets. Returns what came of them, and the
/// last step that was taken.
async fn exhaust(proxy: &Proxy, gate: &watch::Sender<bool>) -> (BTreeMap<String, usize>, f64) {
    let (web, open) = (proxy.web, gate.subscribe());
    let mut idle = Vec::new();
    for _ in 0..1500 {
        let mut stream = TcpStream::connect(web).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_head(&mut stream).await.unwrap();
        idle.push(stream);
    }
    let upload = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {MIB}\r\n\r\n");
    let mut asked = Vec::new();
    for _ in 0..600 {
        let (upload, open) = (upload.clone(), open.clone());
        asked.push(tokio::spawn(async move { outcome(web, &upload, MIB, None).await }));
        let reads = async move { outcome(web, "GET /large HTTP/1.1\r\nhost: a\r\n\r\n", 0, Some(open)).await };
        asked.push(tokio::spawn(reads));
    }
    let (mut highest, start) = (0.0, Instant::now());
    while start.elapsed() < Duration::from_secs(3) {
        highest = f64::max(highest, proxy.metric("fetchr_memory_pressure_step").await);
        sleep(Duration::from_millis(20)).await;
    }
    gate.send_replace(true);
    let counts = outcomes(asked).await;
    (counts, highest)
}

/// What a proxy of so much memory makes of it.
async fn short_of_memory(limit: usize) -> (BTreeMap<String, usize>, f64) {
    let (gate, open) = watch::channel(false);
    let mut proxy = Proxy::start(origin(open).await, Some(ControlGroup::memory(limit))).await;
    let (counts, highest) = exhaust(&proxy, &gate).await;
    let most = proxy.group.as_ref().unwrap().most_used();
    println!("{} MiB: {counts:?}; step {highest}; at most {} MiB, files included", limit / MIB, most >> 20);
    eventually("all is well again", LONG, async || {
        ensure!(proxy.metric("fetchr_memory_pressure_step").await == 0.0, "memory is short");
        ensure_ok(&proxy.get(proxy.web, "/").await?)
    })
    .await
    .unwrap();
    proxy.process.check().unwrap();
    (counts, highest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_clients_fit_into_the_memory_of_a_sidecar() {
    let (counts, highest) = short_of_memory(128 * MIB).await;
    assert_eq!(highest, 0.0, "{counts:?}");
    // Hundreds of connections at once may be more than the origin's queue holds, which is not the proxy's memory.
    let served = counts.get("200").copied().unwrap_or(0);
    assert!(served >= 1000 && counts.keys().all(|outcome| ["200", "502"].contains(&&**outcome)), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_in_time_with_a_tenth_of_a_processor_and_a_busy_worker() {
    let (_gate, open) = watch::channel(true);
    let proxy = Proxy::start(origin(open).await, Some(ControlGroup::processor(10))).await;
    let web = proxy.web;
    let load: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(web).await.unwrap();
                let (mut done, start) = (0, Instant::now());
                while start.elapsed() < Duration::from_secs(4) {
                    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                    read_head(&mut stream).await.unwrap();
                    assert!(discard(&mut stream, 2).await);
                    done += 1;
                }
                done
            })
        })
        .collect();
    let (mut slowest, start) = (Duration::ZERO, Instant::now());
    while start.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        ensure_ok(&proxy.get(proxy.metrics, "/livez").await.unwrap()).unwrap();
        slowest = slowest.max(asked.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    let mut done = 0;
    for one in load {
        done += one.await.unwrap();
    }
    println!("{done} requests in 4 s; slowest answer about health: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}: a kubelet would have given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_while_the_only_worker_does_not_run_at_all() {
    let (_gate, open) = watch::channel(true);
    let proxy = Proxy::start(origin(open).await, None).await;
    let mut client = TcpStream::connect(proxy.web).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(discard(&mut client, 2).await);
    let (thaw, thawed) = std::sync::mpsc::channel::<()>();
    let (frozen, is_frozen) = tokio::sync::oneshot::channel();
    let pid = proxy.worker();
    // One thread does all of it: only who has stopped another may let it go on.
    let keeper = thread::spawn(move || {
        let worker = thread_of(pid, "worker-0");
        stop(worker);
        frozen.send(()).unwrap();
        let _ = thawed.recv_timeout(LONG);
        let_go(worker);
    });
    is_frozen.await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    for path in ["/livez", "/readyz", "/metrics"] {
        let asked = Instant::now();
        ensure_ok(&proxy.get(proxy.metrics, path).await.unwrap()).unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "{path}: {:?}", asked.elapsed());
    }
    assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err(), "the worker does not run");
    thaw.send(()).unwrap();
    keeper.join().unwrap();
    assert!(timeout(LONG, read_head(&mut client)).await.unwrap().unwrap().starts_with("HTTP/1.1 200"));
}

/// The thread of a process by its name.
fn thread_of(pid: u32, name: &str) -> i32 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let found = threads.into_iter().find(|thread| fs::read_to_string(thread.join("comm")).unwrap().trim() == name);
    found.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn stop(thread: i32) {
    // SAFETY: these calls take numbers, and a null pointer where none is looked at; the thread is that of a process of ours.
    let stopped = unsafe {
        let none = std::ptr::null_mut::<libc::c_void>();
        libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) == 0
            && libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) == 0
            && libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) == thread
    };
    assert!(stopped, "{}", std::io::Error::last_os_error());
}

fn let_go(thread: i32) {
    // SAFETY: as above; the thread was stopped by this one.
    let gone_on = unsafe {
        let none = std::ptr::null_mut::<libc::c_void>();
        libc::ptrace(libc::PTRACE_DETACH, thread, none, none) == 0
    };
    assert!(gone_on, "{}", std::io::Error::last_os_error());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_pauses_without_descriptors_and_goes_on_when_there_are_some() {
    let (_gate, open) = watch::channel(true);
    let proxy = Proxy::start(origin(open).await, None).await;
    let pid = proxy.worker();
    let used = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // Metrics are asked for on a connection of before.
    let mut metrics = TcpStream::connect(proxy.metrics).await.unwrap();
    metrics.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_head(&mut metrics).await.unwrap();
    let before = descriptors(pid, used as u64 + 20);
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(TcpStream::connect(proxy.web).await.unwrap()); // they wait in the kernel
    }
    let start = Instant::now();
    eventually("accepting pauses", LONG, async || {
        ensure!(proxy.log().contains("Accepting pauses"), "it does not");
        Ok(())
    })
    .await
    .unwrap();
    sleep(Duration::from_millis(2500)).await;
    let complaints = proxy.log().matches("Accepting pauses").count();
    assert!((2..=4).contains(&complaints), "{complaints} in {:?}: once a second", start.elapsed());
    descriptors(pid, before);
    let start = Instant::now();
    let mut last = clients.pop().unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(timeout(LONG, read_head(&mut last)).await.unwrap().unwrap().starts_with("HTTP/1.1 200"));
    println!("served {:?} after there were descriptors again", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let pauses = proxy.metric("fetchr_dropped_total{direction=\"inbound\",reason=\"no_descriptors\"}").await;
    assert!((10.0..=40.0).contains(&pauses), "{pauses} tries in 2.5 s: ten a second");
}

/// Sets how many descriptors a process may have, and returns how many it could have before.
fn descriptors(pid: u32, count: u64) -> u64 {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let pid = i32::try_from(pid).unwrap();
    // SAFETY: the limits live through the calls, and the process is one of ours that was not waited for.
    let set = unsafe {
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before) == 0 && {
            let limit = libc::rlimit { rlim_cur: count, ..before };
            libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) == 0
        }
    };
    assert!(set, "{}", std::io::Error::last_os_error());
    before.rlim_cur
}
