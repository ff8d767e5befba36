//! Memory of connections that have carried one request each and are kept open.

mod client;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::table;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;

use crate::{
    findings::{Findings, Group},
    peers::{self, KINDS, Kind, Peer, Plan, certificate},
    process,
};
pub(crate) use client::answer_len;
use client::{Client, Speaks};

/// How many.
#[derive(Args)]
pub(crate) struct Options {
    /// Connections; fewer where the system allows too few descriptors.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Seconds of rest before memory is read.
    #[arg(long, default_value_t = 6)]
    rest: u64,
}

/// What one proxy keeps.
#[derive(Serialize)]
struct Kept {
    proxy: &'static str,
    speaks: &'static str,
    connections: usize,
    /// RSS after one request, and with all connections.
    kib: [u64; 2],
}

impl Kept {
    fn each(&self) -> f64 {
        (self.kib[1] as f64 - self.kib[0] as f64) / self.connections as f64
    }
}

/// Opens the connections to each proxy, one kind after the other, each time to a new process; KiB a connection.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let connections = options.connections.min(affordable(process::descriptors()));
    if connections < options.connections {
        eprintln!("bench: the system allows too few descriptors for {} connections: {connections}", options.connections);
    }
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let plan = Plan { connections, ..Plan::new(binaries, folder.path()) };
    let roots = fs::read(certificate(folder.path())?)?;
    let client = Client::new(CertificateDer::from_pem_slice(&roots)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = Vec::new();
    for speaks in Speaks::ALL {
        for kind in &KINDS {
            let kept = of(kind, &plan, &client, speaks, Duration::from_secs(options.rest), &runtime);
            match kept.with_context(|| format!("{} connections of {} to {}", connections, speaks.name(), kind.name)) {
                Ok(kept) => all.extend(kept),
                // The others are no reason to have no figure of fetchr.
                Err(error) if kind.name != KINDS[0].name => eprintln!("bench: left out: {error:#}"),
                Err(error) => return Err(error),
            }
        }
    }
    let group = |speaks: Speaks| Group {
        name: speaks.name().to_owned(),
        bars: all.iter().filter(|kept| kept.speaks == speaks.name()).map(|kept| (kept.proxy, kept.each())).collect(),
    };
    Ok(Findings::new(summary(&all, connections), &all)?.with_bars("KiB a connection", &Speaks::ALL.map(group)))
}

/// fetchr takes a quarter of its descriptors for the clients of one direction, less some of its own.
fn affordable(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(400) / 4).unwrap_or(usize::MAX)
}

/// None if the proxy can't be had, or does not speak so.
fn of(
    kind: &Kind,
    plan: &Plan<'_>,
    client: &Client,
    speaks: Speaks,
    rest: Duration,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<Kept>> {
    let Some(peer) = kind.start(plan)? else { return Ok(None) };
    let Some(address) = address(&peer, speaks) else { return Ok(None) };
    runtime.block_on(async {
        drop(client.open(address, speaks, 1).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = peer.process.rss_kib();
        let held = client.open(address, speaks, plan.connections).await?;
        tokio::time::sleep(rest).await;
        let kib = [before, peer.process.rss_kib()];
        drop(held);
        Ok(Some(Kept { proxy: peer.name, speaks: speaks.name(), connections: plan.connections, kib }))
    })
}

fn address(peer: &Peer, speaks: Speaks) -> Option<std::net::SocketAddr> {
    match speaks {
        Speaks::Http1 => Some(peer.http),
        Speaks::Http2 => Some(peer.http2),
        Speaks::Tls => peer.tls,
    }
}

fn summary(all: &[Kept], connections: usize) -> String {
    let mut head = vec![format!("KiB a connection, {connections} connections after one request each")];
    head.extend(Speaks::ALL.map(|speaks| speaks.name().to_owned()));
    let mut rows = vec![head];
    for kind in &KINDS {
        let mut row = vec![kind.name.to_owned()];
        row.extend(Speaks::ALL.map(|speaks| {
            let found = all.iter().find(|kept| kept.proxy == kind.name && kept.speaks == speaks.name());
            found.map_or("-".to_owned(), |kept| format!("{:.1}", kept.each()))
        }));
        if row[1..].iter().any(|cell| cell != "-") {
            rows.push(row);
        }
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_for_each_proxy_that_was_measured() {
        let kept = |proxy, speaks, kib| Kept { proxy, speaks, connections: 100, kib };
        let all = [kept("fetchr", "HTTP/1.1", [1000, 2000]), kept("fetchr", "TLS 1.3", [1000, 3500])];
        let text = summary(&all, 100);
        assert!(text.ends_with("| --- | --- | --- | --- |\n| fetchr | 10.0 | - | 25.0 |\n"), "{text}");
    }
}
