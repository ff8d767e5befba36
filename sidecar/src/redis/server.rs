//! Redis servers of a test's own: one, a primary with replicas and sentinels, or a cluster.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Slots of a cluster.
const SLOTS: usize = 16384;

/// Killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    tls_port: u16,
    folder: TempDir,
    arguments: Arguments,
    clock: Option<Clock>,
}

/// A clock that programs look at who are started with it. It steps as it is told; times that they wait are right.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<TempDir>);

/// What it is started with, beside its port and folder.
#[derive(Clone)]
enum Arguments {
    Data(Vec<String>),
    /// Lines of the configuration, which it writes itself.
    Sentinel(Vec<String>),
}

/// Files for TLS: of a certificate, its key, and the CA of who connects.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) ca: String,
}

impl Tls {
    /// The port of TLS, beside that in clear, and TLS to other servers. Who connects must show a certificate.
    fn arguments(&self) -> Vec<String> {
        let Self { certificate, key, ca } = self;
        let all = ["--tls-port", "{tls}", "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca];
        let all = all.into_iter().chain(["--tls-auth-clients", "yes", "--tls-replication", "yes"]);
        all.map(str::to_owned).collect()
    }
}

impl Clock {
    /// One that is right.
    pub(crate) fn right() -> Self {
        let clock = Self(Arc::new(folder()));
        clock.step(0);
        clock
    }

    /// It is off by so many seconds from now on.
    pub(crate) fn step(&self, seconds: i64) {
        // At once, for whoever reads the file.
        let new = self.0.path().join("new");
        fs::write(&new, format!("{seconds:+}")).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Whom the command starts looks at it.
    pub(crate) fn give(&self, command: &mut Command) {
        let folders = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
        let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|path| path.is_file()).expect("libfaketime is installed: run e2e/tools/install");
        // It asks for memory before it can tell the time, and jemalloc for the time before it has any: so that of libc comes first.
        command.env("LD_PRELOAD", format!("{} libc.so.6", library.display()));
        command.env("FAKETIME_TIMESTAMP_FILE", self.file()).env("FAKETIME_NO_CACHE", "1");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("offset")
    }
}

impl Server {
    /// Starts one that keeps nothing, unless the arguments say otherwise.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::launch(Arguments::Data(arguments.iter().map(|argument| (*argument).to_owned()).collect())).await
    }

    /// One that speaks TLS on a port beside that in clear.
    pub(crate) async fn start_tls(tls: &Tls, arguments: &[&str]) -> Self {
        let more = arguments.iter().map(|argument| (*argument).to_owned());
        Self::launch(Arguments::Data(tls.arguments().into_iter().chain(more).collect())).await
    }

    /// One that looks at this clock.
    pub(crate) async fn start_by(clock: &Clock) -> Self {
        Self::launch_by(Arguments::Data(Vec::new()), Some(clock.clone())).await
    }

    async fn launch(arguments: Arguments) -> Self {
        Self::launch_by(arguments, None).await
    }

    async fn launch_by(arguments: Arguments, clock: Option<Clock>) -> Self {
        // A port that was free may be taken before it is bound again.
        for _ in 0..5 {
            let (folder, port, tls_port) = (folder(), free_port(), free_port());
            let child = spawn(port, tls_port, &folder, &arguments, clock.as_ref());
            let mut server = Self { child, port, tls_port, folder, arguments: arguments.clone(), clock: clock.clone() };
            if server.is_ready().await {
                return server;
            }
        }
        panic!("redis-server did not start five times");
    }

    /// One that follows it, and has caught up.
    pub(crate) async fn replica(&self) -> Self {
        self.run(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
        let replica = Self::start(&["--replicaof", "127.0.0.1", &self.port.to_string()]).await;
        self.is_followed().await;
        replica
    }

    /// Waits until a replica has what is written now.
    pub(crate) async fn is_followed(&self) {
        let deadline = Instant::now() + LONG;
        let mut connection = self.connect().await;
        loop {
            let mut write = redis::pipe();
            write.cmd("SET").arg("written").arg(1).ignore().cmd("WAIT").arg(1).arg(50);
            let (copies,): (u32,) = write.query_async(&mut connection).await.unwrap();
            if copies > 0 {
                return;
            }
            assert!(Instant::now() < deadline, "no replica follows");
            // One that is not online yet is not counted, and not waited for.
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it and starts it again with what it kept.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, self.tls_port, &self.folder, &self.arguments, self.clock.as_ref());
        assert!(self.is_ready().await, "redis-server did not start again");
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It hangs, with its port open. A signal takes effect later than it is sent, so that is waited for.
    pub(crate) fn stop(&self) {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        self.signal(rustix::process::Signal::STOP);
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
    }

    /// It goes on.
    pub(crate) fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Host and port of TLS.
    pub(crate) fn tls_address(&self) -> String {
        format!("127.0.0.1:{}", self.tls_port)
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(format!("redis://127.0.0.1:{}/", self.port)).unwrap()
    }

    /// A connection that waits for as long as who asks does: of itself it would for half a second, which is too short for a busy
    /// machine.
    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        self.client().get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// Runs a command that must succeed.
    pub(crate) async fn run(&self, command: &[&str]) -> Value {
        let mut connection = self.connect().await;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.unwrap()
    }

    /// The answer to a command as text; empty if it is none, or an error, or does not come soon, as from a server that hangs.
    pub(crate) async fn text(&self, command: &[&str]) -> String {
        let answer = async {
            let mut connection = self.client().get_multiplexed_async_connection().await?;
            redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await
        };
        let answer: Result<redis::RedisResult<Value>, _> = tokio::time::timeout(Duration::from_secs(1), answer).await;
        let value = answer.ok().and_then(Result::ok).unwrap_or_default();
        match value {
            Value::Array(values) => {
                let texts = values.into_iter().map(|value| redis::from_redis_value::<String>(value).unwrap_or_default());
                texts.collect::<Vec<_>>().join(" ")
            }
            value => redis::from_redis_value(value).unwrap_or_default(),
        }
    }

    /// Whether it is there and a primary.
    pub(crate) async fn is_primary(&self) -> bool {
        self.text(&["ROLE"]).await.starts_with("master")
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Whether it answers before it ends, or before long.
    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if let Ok(mut connection) = self.client().get_multiplexed_async_connection().await
                && redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
            {
                return true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A primary, its replicas, and sentinels that know it as `main`.
pub(crate) struct Sentinels {
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Server>,
    tls: Option<Tls>,
}

impl Sentinels {
    /// Two servers and three sentinels, all of which know each other.
    pub(crate) async fn start() -> Self {
        Self::launch(None).await
    }

    /// The same, with TLS between all of them.
    pub(crate) async fn start_tls(tls: &Tls) -> Self {
        Self::launch(Some(tls.clone())).await
    }

    async fn launch(tls: Option<Tls>) -> Self {
        let of_tls = tls.as_ref().map(Tls::arguments).unwrap_or_default();
        let common = ["--repl-diskless-sync-delay", "0"].map(str::to_owned);
        let arguments: Vec<String> = of_tls.iter().cloned().chain(common).collect();
        let primary = Server::launch(Arguments::Data(arguments.clone())).await;
        let port = if tls.is_some() { primary.tls_port } else { primary.port }.to_string();
        let follows = ["--replicaof", "127.0.0.1", &port].map(str::to_owned);
        let replica = Server::launch(Arguments::Data(arguments.into_iter().chain(follows).collect())).await;
        // Before the sentinels, which learn of one that comes later 10 s later.
        primary.is_followed().await;
        let mut lines: Vec<String> =
            of_tls.chunks(2).map(|pair| format!("{} {}", pair[0].trim_start_matches('-'), pair[1])).collect();
        lines.push(format!("sentinel monitor main 127.0.0.1 {port} 2"));
        lines.extend(["sentinel down-after-milliseconds main 1000", "sentinel failover-timeout main 4000"].map(str::to_owned));
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Server::launch(Arguments::Sentinel(lines.clone())).await);
        }
        let set = Self { servers: vec![primary, replica], sentinels, tls };
        for sentinel in &set.sentinels {
            eventually("the sentinels know each other", async || {
                let known = sentinel.text(&["SENTINEL", "MASTER", "main"]).await;
                let info = sentinel.text(&["INFO", "sentinel"]).await;
                known.contains("num-slaves 1 ") && known.contains("num-other-sentinels 2 ") && info.contains("sentinel_tilt:0")
            })
            .await;
        }
        set
    }

    /// Where the sentinels are.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let address = |server: &Server| if self.tls.is_some() { server.tls_address() } else { server.address() };
        self.sentinels.iter().map(address).collect()
    }
}

/// A cluster of three primaries, each with a replica: the first three and the last three.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    tls: Option<Tls>,
}

impl Cluster {
    /// All of them know each other, and serve all slots.
    pub(crate) async fn start() -> Self {
        Self::launch(None).await
    }

    /// The same, with TLS between all of them.
    pub(crate) async fn start_tls(tls: &Tls) -> Self {
        Self::launch(Some(tls.clone())).await
    }

    async fn launch(tls: Option<Tls>) -> Self {
        let mut arguments: Vec<String> = tls.as_ref().map(Tls::arguments).unwrap_or_default();
        if tls.is_some() {
            arguments.extend(["--tls-cluster", "yes"].map(str::to_owned));
        }
        let common = ["--cluster-enabled", "yes", "--cluster-port", "{bus}", "--cluster-node-timeout", "2000"];
        let more = ["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"];
        arguments.extend(common.into_iter().chain(more).map(str::to_owned));
        let mut servers = Vec::new();
        for _ in 0..6 {
            servers.push(Server::launch(Arguments::Data(arguments.clone())).await);
        }
        let cluster = Self { servers, tls };
        cluster.join().await;
        cluster
    }

    async fn join(&self) {
        let of = |primary: usize| (primary * SLOTS / 3, (primary + 1) * SLOTS / 3 - 1);
        let first = &self.servers[0];
        let myself = first.text(&["CLUSTER", "NODES"]).await;
        // `ID HOST:PORT@BUS ...`
        let bus = myself.split(['@', ' ', ',']).nth(2).unwrap().to_owned();
        let port = if self.tls.is_some() { first.tls_port } else { first.port }.to_string();
        for (index, server) in self.servers.iter().enumerate() {
            server.run(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
            if index < 3 {
                let (from, to) = of(index);
                server.run(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
            }
            if index > 0 {
                server.run(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
            }
        }
        self.all_say("cluster_known_nodes:6").await;
        for (primary, replica) in self.servers[..3].iter().zip(&self.servers[3..]) {
            let id = primary.text(&["CLUSTER", "MYID"]).await;
            eventually("a node knows another", async || replica.text(&["CLUSTER", "REPLICATE", &id]).await == "OK").await;
        }
        self.all_say("cluster_state:ok").await;
        for primary in &self.servers[..3] {
            eventually("a replica follows", async || primary.text(&["INFO", "replication"]).await.contains("state=online")).await;
        }
    }

    /// Waits until all nodes say so of their cluster.
    async fn all_say(&self, line: &str) {
        for server in &self.servers {
            eventually(line, async || server.text(&["CLUSTER", "INFO"]).await.contains(line)).await;
        }
    }

    /// Where some of its nodes are.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let address = |server: &Server| if self.tls.is_some() { server.tls_address() } else { server.address() };
        self.servers.iter().take(2).map(address).collect()
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: it did not come to hold");
        sleep(Duration::from_millis(50)).await;
    }
}

/// In memory: sentinels and nodes of a cluster write their configuration while everything waits.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn spawn(port: u16, tls_port: u16, folder: &TempDir, arguments: &Arguments, clock: Option<&Clock>) -> Child {
    let mut command = Command::new("redis-server");
    let fill = |text: &String| text.replace("{tls}", &tls_port.to_string()).replace("{bus}", &free_port().to_string());
    match arguments {
        Arguments::Data(arguments) => {
            let port = port.to_string();
            command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder.path());
            command.args(arguments.iter().map(fill));
        }
        Arguments::Sentinel(lines) => {
            let file = folder.path().join("sentinel.conf");
            if !file.exists() {
                let lines: Vec<String> = lines.iter().map(fill).collect();
                let first = format!("port {port}\nbind 127.0.0.1\ndir {}\n", folder.path().display());
                fs::write(&file, first + &lines.join("\n") + "\n").unwrap();
            }
            command.arg(file).arg("--sentinel");
        }
    }
    if let Some(clock) = clock {
        clock.give(&mut command);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
