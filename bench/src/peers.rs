//! The proxies that are compared, each a reverse proxy to the same origin.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::process::Process;

/// The core of the proxies.
pub(crate) const PROXY_CORE: usize = 1;
/// The core of the origin and of the load.
pub(crate) const LOAD_CORE: usize = 0;

const ORIGIN: u16 = 18000;
const NGINX: u16 = 18001;
const HAPROXY: u16 = 18002;
const FETCHR: u16 = 18010;
/// Where the measured fetchr serves its health.
pub(crate) const METRICS: SocketAddr = local(18021);
const ADMIN: u16 = 18020;

/// A proxy under load.
pub(crate) struct Peer {
    /// Name in the table.
    pub(crate) name: &'static str,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) process: Process,
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Starts the origin: nginx, which answers 1 KiB to everything.
pub(crate) fn origin(folder: &Path) -> Result<Process> {
    let body = "x".repeat(1024);
    let config = nginx_config(
        folder,
        "origin",
        &format!("server {{ listen 127.0.0.1:{ORIGIN} reuseport; location / {{ return 200 \"{body}\"; }} }}"),
    )?;
    let mut process = Process::pinned(LOAD_CORE, &words(&["nginx", "-c", &config]), &folder.join("origin.log"))?;
    process.wait_for(local(ORIGIN))?;
    Ok(process)
}

/// Starts every peer, fetchr among them.
pub(crate) fn all(binaries: &Path, folder: &Path, rules: usize) -> Result<Vec<Peer>> {
    let documents = fetchr_documents(folder, rules)?;
    let nginx = nginx_config(
        folder,
        "nginx",
        &format!(
            "upstream o {{ server 127.0.0.1:{ORIGIN}; keepalive 256; keepalive_requests 100000000; }} server {{ listen 127.0.0.1:{NGINX}; \
             location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://o; }} }}"
        ),
    )?;
    let haproxy = haproxy_config(folder)?;
    let commands = [
        ("fetchr", local(FETCHR), fetchr_command(binaries, &documents)),
        ("nginx", local(NGINX), words(&["nginx", "-c", &nginx])),
        ("HAProxy", local(HAPROXY), words(&["haproxy", "-db", "-f", &haproxy])),
    ];
    commands
        .into_iter()
        .map(|(name, address, command)| {
            let mut process = Process::pinned(PROXY_CORE, &command, &folder.join(format!("{name}.log")))?;
            process.wait_for(address)?;
            Ok(Peer { name, address, process })
        })
        .collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The command line of the measured fetchr.
pub(crate) fn fetchr_command(binaries: &Path, documents: &Path) -> Vec<String> {
    let (admin, metrics) = (ADMIN.to_string(), METRICS.port().to_string());
    let (binary, documents) = (binaries.join("fetchr").display().to_string(), documents.display().to_string());
    words(&[&binary, "run", "-f", &documents, "--admin-port", &admin, "--metrics-port", &metrics])
}

/// A proxy with one listener, and a policy of `rules` rules of which the last matches everything and sets a header.
pub(crate) fn fetchr_documents(folder: &Path, rules: usize) -> Result<PathBuf> {
    let documents = folder.join("documents");
    fs::create_dir_all(&documents)?;
    let mut text = format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: bench}}\nspec:\n  workers: 1\n  interception:\n    \
         mode: Explicit\n    listeners: [{{name: web, port: {FETCHR}, upstream: \"http://127.0.0.1:{ORIGIN}\"}}]\n---\n\
         apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: bench}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, name: bench}}]\n  rules:\n"
    );
    for rule in 1..rules {
        writeln!(
            text,
            "  - name: path-{rule}\n    matches: [{{path: {{type: Prefix, value: /path/{rule}}}}}]\n    timeouts: {{request: {rule}s}}"
        )?;
    }
    text.push_str("  - name: all\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}\n");
    fs::write(documents.join("bench.yaml"), text)?;
    Ok(documents)
}

fn nginx_config(folder: &Path, name: &str, server: &str) -> Result<String> {
    let file = folder.join(format!("{name}.conf"));
    let pid = folder.join(format!("{name}.pid"));
    fs::write(
        &file,
        format!(
            "user root; daemon off; worker_processes 1; pid {}; error_log /dev/null; events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; {server} }}\n",
            pid.display()
        ),
    )?;
    Ok(file.display().to_string())
}

fn haproxy_config(folder: &Path) -> Result<String> {
    let file = folder.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n nbthread 1\n maxconn 8000\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             frontend f\n bind 127.0.0.1:{HAPROXY}\n default_backend b\nbackend b\n http-reuse always\n server o 127.0.0.1:{ORIGIN}\n"
        ),
    )?;
    Ok(file.display().to_string())
}
