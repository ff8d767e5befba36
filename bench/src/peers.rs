//! The proxies that are compared, each a reverse proxy to the same origin.

pub(crate) mod envoy;
pub(crate) mod fetchr;
mod haproxy;
pub(crate) mod nginx;
mod varnish;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::process::Process;
pub(crate) use nginx::origin;

/// The core of a proxy with one worker.
const PROXY_CORE: usize = 1;
/// The core of the origin and of the load.
pub(crate) const LOAD_CORE: usize = 0;

/// Where the origin listens.
pub(crate) const ORIGIN: u16 = 18000;

/// How the proxies run.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Folder of fetchr's binaries.
    pub(crate) binaries: &'a Path,
    /// Folder for configurations and logs.
    pub(crate) folder: &'a Path,
    /// Rules of fetchr's policies.
    pub(crate) rules: usize,
    /// Threads or processes that serve. With one, it has a core for itself.
    pub(crate) workers: usize,
    /// Connections that a client may open.
    pub(crate) connections: usize,
}

impl<'a> Plan<'a> {
    /// One worker and ten rules.
    pub(crate) fn new(binaries: &'a Path, folder: &'a Path) -> Self {
        Self { binaries, folder, rules: 10, workers: 1, connections: 4000 }
    }

    fn cores(&self) -> String {
        if self.workers == 1 { PROXY_CORE.to_string() } else { format!("0-{}", self.workers - 1) }
    }
}

/// A proxy under load.
pub(crate) struct Peer {
    /// Name in the table.
    pub(crate) name: &'static str,
    /// Whether fetchr is held against this one, or the better of several.
    pub(crate) measure: bool,
    /// Where it listens for HTTP/1.
    pub(crate) http: SocketAddr,
    /// Where it listens for HTTP/2 in clear.
    pub(crate) http2: SocketAddr,
    /// Where it listens for TLS, if it speaks it.
    pub(crate) tls: Option<SocketAddr>,
    /// Its process.
    pub(crate) process: Process,
}

/// The port for HTTP/1, from which the others follow.
#[derive(Clone, Copy)]
pub(crate) struct Ports(pub(crate) u16);

impl Ports {
    pub(crate) const fn http2(self) -> u16 {
        self.0 + 100
    }

    pub(crate) const fn tls(self) -> u16 {
        self.0 + 200
    }
}

pub(crate) const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A program that can be measured.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Its name in tables.
    pub(crate) name: &'static str,
    measure: bool,
    ports: Ports,
    speaks_tls: bool,
    /// Writes its configuration; the command line that starts it, or none if it is not installed.
    command: fn(&Plan<'_>, Ports) -> Result<Option<Vec<String>>>,
}

/// All of them, fetchr first.
pub(crate) const KINDS: [Kind; 5] = [
    Kind { name: "fetchr", measure: false, ports: fetchr::PORTS, speaks_tls: true, command: fetchr::command },
    Kind { name: "nginx", measure: true, ports: Ports(18001), speaks_tls: true, command: nginx::command },
    Kind { name: "HAProxy", measure: true, ports: Ports(18002), speaks_tls: true, command: haproxy::command },
    Kind { name: "Varnish", measure: false, ports: Ports(18003), speaks_tls: false, command: varnish::command },
    Kind { name: "Envoy", measure: false, ports: Ports(18004), speaks_tls: true, command: envoy::command },
];

impl Kind {
    /// Starts it and waits until it listens. None, with a word about it, if it is one of the others and can't be had.
    pub(crate) fn start(&self, plan: &Plan<'_>) -> Result<Option<Peer>> {
        let started = self.try_start(plan);
        match started {
            Ok(None) => eprintln!("bench: {} is left out: it is not installed", self.name),
            Err(error) if self.name != KINDS[0].name => eprintln!("bench: {} is left out: {error:#}", self.name),
            started => return started,
        }
        Ok(None)
    }

    fn try_start(&self, plan: &Plan<'_>) -> Result<Option<Peer>> {
        let Some(command) = (self.command)(plan, self.ports)? else { return Ok(None) };
        let log = plan.folder.join(format!("{}.log", self.name));
        let mut process = Process::pinned(&plan.cores(), &command, &log)?;
        let (http, http2) = (local(self.ports.0), local(self.ports.http2()));
        let tls = self.speaks_tls.then(|| local(self.ports.tls()));
        for address in [http, http2].into_iter().chain(tls) {
            process.wait_for(address).with_context(|| end_of(&log))?;
        }
        Ok(Some(Peer { name: self.name, measure: self.measure, http, http2, tls, process }))
    }
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    format!("its log ends: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
}

/// Starts every proxy that can be had, fetchr first.
pub(crate) fn all(plan: &Plan<'_>) -> Result<Vec<Peer>> {
    KINDS.iter().filter_map(|kind| kind.start(plan).transpose()).collect()
}

/// The least value of those that fetchr is compared with; NaN if there is none.
pub(crate) fn best(peers: &[Peer], values: &[f64]) -> f64 {
    peers.iter().zip(values).filter(|(peer, _)| peer.measure).map(|(_, value)| *value).fold(f64::NAN, f64::min)
}

/// A certificate for the loopback, with its key in the same file; made once for a folder.
pub(crate) fn certificate(folder: &Path) -> Result<String> {
    let file = folder.join("bench.pem");
    if !file.exists() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem())?;
    }
    Ok(file.display().to_string())
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_all_differ() {
        let mut all: Vec<u16> = KINDS.iter().flat_map(|kind| [kind.ports.0, kind.ports.http2(), kind.ports.tls()]).collect();
        all.extend([ORIGIN, fetchr::ADMIN, fetchr::METRICS.port()]);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
