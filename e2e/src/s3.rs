//! A real server of S3 (SeaweedFS) of a test's own. `scripts/seaweedfs/install` brings it.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::{process::Process, tools};

/// Who may do everything.
pub const ACCESS_KEY: &str = "AKIAFETCHR";
/// The key of it.
pub const SECRET_KEY: &str = "fetchr-secret";
/// Who may only read.
pub const READER: (&str, &str) = ("AKIAREADER", "reader-secret");

/// What it is told wherever it runs.
pub const FLAGS: [&str; 10] = [
    "server",
    "-ip=127.0.0.1",
    "-filer",
    "-s3",
    "-s3.iam=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.telemetry=false",
    "-volume.max=20",
    "-master.volumeSizeLimitMB=64",
];
/// Without a key it answers each upload by 500 where its encryption is asked for.
pub const ENVIRONMENT: [(&str, &str); 2] = [("WEED_S3_SSE_KEK_PASSPHRASE", "x"), ("WEED_S3_SSE_KEY", "testkey")];

/// How long it may take to start on a busy machine.
const STARTING: Duration = Duration::from_secs(60);
/// It takes each port once more, so much higher.
const SECOND: u16 = 10_000;

/// Killed when it is dropped; nothing of it is left.
#[derive(Debug)]
pub struct Server {
    _process: Process,
    port: u16,
    _folder: TempDir,
}

impl Server {
    /// One that tests share which run at the same time.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn shared() -> anyhow::Result<Arc<Self>> {
        static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *running = Arc::downgrade(&server);
        Ok(server)
    }

    /// Starts one without buckets.
    ///
    /// # Errors
    /// It can't be installed, or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let program = install()?;
        // A port that was free may be taken before it is bound again.
        let mut last = anyhow::anyhow!("it was not tried");
        for _ in 0..3 {
            match Self::try_start(&program) {
                Ok(server) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last.context("SeaweedFS did not start three times"))
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn try_start(program: &PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("s3.json");
        fs::write(&config, identities())?;
        let [master, volume, filer, port] = free_ports()?;
        let mut command = Command::new(program);
        command.args(FLAGS).args(["-ip.bind=127.0.0.1"]).envs(ENVIRONMENT).current_dir(folder.path());
        command.arg(format!("-dir={}", folder.path().display())).arg(format!("-s3.config={}", config.display()));
        for (name, port) in [("master.port", master), ("volume.port", volume), ("filer.port", filer), ("s3.port", port)] {
            command.arg(format!("-{name}={port}"));
        }
        let mut process = Process::spawn("SeaweedFS", command, &folder.path().join("log"))?;
        let deadline = Instant::now() + STARTING;
        while !is_ready(port) {
            process.check()?;
            if Instant::now() > deadline {
                bail!("SeaweedFS is not ready after {STARTING:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { _process: process, port, _folder: folder })
    }
}

/// Its program.
///
/// # Errors
/// It can't be installed.
pub fn install() -> anyhow::Result<PathBuf> {
    let script = tools::repository().join("scripts/seaweedfs/install");
    let output =
        Command::new(&script).stderr(Stdio::inherit()).output().with_context(|| format!("could not run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed; its messages are above", script.display());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Who may do what, as it reads it.
pub fn identities() -> String {
    let identity = |name: &str, (key, secret): (&str, &str), actions: &[&str]| {
        let credentials = [serde_json::json!({"accessKey": key, "secretKey": secret})];
        serde_json::json!({"name": name, "credentials": credentials, "actions": actions})
    };
    let all = ["Admin", "Read", "Write", "List", "Tagging"];
    let identities = [identity("all", (ACCESS_KEY, SECRET_KEY), &all), identity("reader", READER, &["Read", "List"])];
    serde_json::json!({ "identities": identities }).to_string()
}

/// Free ports, whose second ones are free as well.
fn free_ports() -> anyhow::Result<[u16; 4]> {
    let mut held = Vec::new();
    while held.len() < 4 {
        let one = TcpListener::bind("127.0.0.1:0")?;
        let port = one.local_addr()?.port();
        // Ports that the system gives by itself are high.
        let low = port % 20_000 + 12_000;
        if let (Ok(first), Ok(second)) = (TcpListener::bind(("127.0.0.1", low)), TcpListener::bind(("127.0.0.1", low + SECOND))) {
            held.push((low, first, second));
        }
    }
    Ok([held[0].0, held[1].0, held[2].0, held[3].0])
}

fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}
