//! Time from start to ready, and memory when idle.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;
use e2e::report::{median, table};

use crate::{
    findings::Findings,
    peers::{fetchr, words},
    process::Process,
};

/// How often to start.
#[derive(Args)]
pub(crate) struct Options {
    /// Starts to measure.
    #[arg(long, default_value_t = 10)]
    runs: u32,
}

/// Starts the proxy again and again; a table of milliseconds to ready and MiB when idle.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let documents = fetchr::documents(folder.path(), fetchr::PORTS, 1, "127.0.0.1", &fetchr::rules(1))?;
    let mut command = fetchr::run(binaries, &documents);
    command.extend(words(&["--admin-port", &fetchr::ADMIN.to_string(), "--metrics-port", &fetchr::METRICS.port().to_string()]));
    let (mut ready, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let started = Instant::now();
        let process = Process::start(&command, &folder.path().join("fetchr.log"))?;
        wait_until_ready(fetchr::METRICS, started)?;
        ready.push(started.elapsed().as_secs_f64() * 1000.0);
        // Idle means that the proxy has let go of what only its start needed, which it does after 5 s.
        thread::sleep(Duration::from_secs(8));
        memory.push(process.rss_kib() as f64 / 1024.0);
    }
    let row = |name: &str, values: &[f64], unit: &str| {
        let worst = values.iter().copied().fold(f64::MIN, f64::max);
        vec![name.to_owned(), format!("{:.1} {unit}", median(values)), format!("{worst:.1} {unit}")]
    };
    let head = ["", "median", "worst"].map(str::to_owned).to_vec();
    let rows = [head, row("start to ready", &ready, "ms"), row("RSS when idle", &memory, "MiB")];
    Findings::new(table(&rows), &serde_json::json!({"ready_ms": ready, "rss_mib": memory}))
}

fn wait_until_ready(address: SocketAddr, started: Instant) -> Result<()> {
    while started.elapsed() < Duration::from_secs(10) {
        if is_ready(address).unwrap_or(false) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("the proxy is not ready after 10 s: no 200 from http://{address}/readyz")
}

fn is_ready(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
