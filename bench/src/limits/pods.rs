//! Ten proxies that share one limit in Redis.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;

use super::redis;
use crate::{
    peers::{Ports, fetchr, local, words},
    process::Process,
};

/// How many.
pub(super) const COUNT: usize = 10;
/// Requests in a second that the limit allows, and that its bucket holds at most.
pub(super) const RATE: f64 = 500.0;

const FIRST_PORT: u16 = 18071;

/// Proxies that run, each on ports of its own.
pub(super) struct Pods {
    _processes: Vec<Process>,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Pods {
    /// Starts them; they know how many they are.
    pub(super) fn start(binaries: &Path, folder: &Path, accuracy: &str) -> Result<Self> {
        let rule =
            format!("rateLimits: [{{name: one, limit: {{requests: {RATE}, per: 1s}}, scope: Shared, accuracy: {accuracy}}}]");
        let ports = (0..COUNT as u16).map(|pod| FIRST_PORT + pod);
        let processes = ports.clone().map(|port| start(binaries, folder, port, &rule)).collect::<Result<Vec<_>>>()?;
        Ok(Self { _processes: processes, addresses: ports.map(local).collect() })
    }
}

fn start(binaries: &Path, folder: &Path, port: u16, rule: &str) -> Result<Process> {
    let spec = format!("  workers: 1\n{}", with_redis());
    let documents = fetchr::documents_with(folder, Ports(port), &spec, "127.0.0.1", &[fetchr::rule(rule)])?;
    let mut command = fetchr::run(binaries, &documents);
    command.extend(words(&["--proxies", &COUNT.to_string(), "--admin-port", "0", "--metrics-port", "0", "--state-dir"]));
    command.push(folder.join(format!("state-{port}")).display().to_string());
    let mut process = Process::start(&command, &folder.join(format!("pod-{port}.log")))?;
    process.wait_for(local(port))?;
    Ok(process)
}

/// The line of a specification that names the benchmark's Redis.
pub(super) fn with_redis() -> String {
    format!("  redis: {{endpoints: [\"127.0.0.1:{}\"]}}\n", redis::PORT)
}
