//! A `redis-server` of a test's own.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection};
use tempfile::TempDir;

/// Killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    folder: TempDir,
    arguments: Vec<String>,
}

impl Server {
    /// Starts one that keeps nothing, unless the arguments say otherwise.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        // A port that was free may be taken before it is bound again.
        for _ in 0..5 {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let mut server = Self { child: spawn(port, &folder, &arguments), port, folder, arguments: arguments.clone() };
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
        let deadline = Instant::now() + Duration::from_secs(20);
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
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it and starts it again with what it kept.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.folder, &self.arguments);
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

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Whether it answers before it ends, or before long.
    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if let Ok(mut connection) = self.client().get_multiplexed_async_connection().await
                && redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, folder: &TempDir, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder.path()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
