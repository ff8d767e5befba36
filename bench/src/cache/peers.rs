//! Proxies that keep answers, and an origin that says how long.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};

use super::ask;
use crate::{
    peers::{ORIGIN, Plan, Ports, envoy, fetchr, is_installed, local, nginx, words},
    process::Process,
};

/// The core of all of them, as elsewhere.
pub(super) const CORE: &str = "1";

/// A proxy with a cache.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) process: Process,
}

struct Kind {
    name: &'static str,
    port: u16,
    /// Writes its configuration; the command line that starts it, or none if it is not installed.
    command: fn(&Plan<'_>, u16) -> Result<Option<Vec<String>>>,
}

/// All of them, fetchr first.
const KINDS: [Kind; 6] = [
    Kind { name: "fetchr", port: 18050, command: of_fetchr },
    Kind { name: "nginx, sendfile", port: 18051, command: |plan, port| of_nginx(plan, port, "on") },
    Kind { name: "nginx, no sendfile", port: 18052, command: |plan, port| of_nginx(plan, port, "off") },
    Kind { name: "HAProxy", port: 18053, command: of_haproxy },
    Kind { name: "Varnish", port: 18054, command: of_varnish },
    Kind { name: "Envoy", port: 18055, command: of_envoy },
];

/// Starts the origin of the caches: all that it answers may be kept for an hour.
pub(super) fn origin(folder: &Path) -> Result<Process> {
    nginx::origin_with(folder, &format!("add_header Cache-Control max-age=3600; {SMALL}"))
}

/// Answers of 100 bytes below `/o/`, with a tag, and a page that counts requests.
pub(super) const SMALL: &str = "location /o/ { add_header xkey news; \
     return 200 \"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\"; } \
     location = /status { stub_status; }";

/// Requests that the origin has had.
pub(super) fn asked() -> Result<u64> {
    let page = ask::get(local(ORIGIN), "/status")?;
    let line = page.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1);
    line.and_then(|line| line.split_whitespace().nth(2)?.parse().ok()).with_context(|| format!("no count in {page:?}"))
}

/// Starts all that can be had, fetchr first; of the others it says which can't.
pub(super) fn all(binaries: &Path, folder: &Path) -> Result<Vec<Peer>> {
    let plan = Plan::new(binaries, folder);
    let mut all = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        match kind.start(&plan) {
            Ok(None) => eprintln!("bench: {} is left out: it is not installed", kind.name),
            Err(error) if number > 0 => eprintln!("bench: the cache of {} is left out: {error:#}", kind.name),
            started => all.extend(started?),
        }
    }
    Ok(all)
}

impl Kind {
    fn start(&self, plan: &Plan<'_>) -> Result<Option<Peer>> {
        let Some(command) = (self.command)(plan, self.port)? else { return Ok(None) };
        let log = plan.folder.join(format!("cache-{}.log", self.port));
        let (address, mut process) = (local(self.port), Process::pinned(CORE, &command, &log)?);
        process.wait_for(address).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Some(Peer { name: self.name, address, process }))
    }
}

/// The command line of fetchr with a rule that keeps what comes, and so much memory. Its ports for health and orders are those given.
pub(super) fn fetchr_with(
    binaries: &Path,
    folder: &Path,
    port: u16,
    size: &str,
    cache: &str,
    [admin, metrics]: [u16; 2],
) -> Result<Vec<String>> {
    let spec = format!("  workers: 1\n  cache: {{memory: {{size: {size}}}}}\n");
    let rules = [fetchr::rule(&format!("cache: {cache}"))];
    let documents = fetchr::documents_with(folder, Ports(port), &spec, "127.0.0.1", &rules)?;
    let mut command = fetchr::run(binaries, &documents);
    command.extend(words(&["--admin-port", &admin.to_string(), "--metrics-port", &metrics.to_string(), "--state-dir"]));
    command.push(state(folder, port).display().to_string());
    Ok(command)
}

/// The folder for the state of the fetchr on that port.
pub(super) fn state(folder: &Path, port: u16) -> std::path::PathBuf {
    folder.join(format!("state-{port}"))
}

fn of_fetchr(plan: &Plan<'_>, port: u16) -> Result<Option<Vec<String>>> {
    fetchr_with(plan.binaries, plan.folder, port, "64Mi", "{}", [0, 0]).map(Some)
}

fn of_nginx(plan: &Plan<'_>, port: u16, sendfile: &str) -> Result<Option<Vec<String>>> {
    let kept = plan.folder.join(format!("nginx-{port}"));
    let server = format!(
        "sendfile {sendfile}; tcp_nopush {sendfile}; open_file_cache max=100 inactive=1h; open_file_cache_valid 1h; \
         proxy_cache_path {} keys_zone=kept:1m inactive=1h max_size=64m use_temp_path=off; \
         upstream o {{ server 127.0.0.1:{ORIGIN}; keepalive 64; }} server {{ listen 127.0.0.1:{port}; \
         location / {{ proxy_cache kept; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://o; }} }}",
        kept.display()
    );
    let config = nginx::config(plan.folder, &format!("nginx-{port}"), 1, plan.connections, &server)?;
    Ok(is_installed("nginx").then(|| words(&["nginx", "-c", &config])))
}

fn of_haproxy(plan: &Plan<'_>, port: u16) -> Result<Option<Vec<String>>> {
    let file = plan.folder.join("haproxy-cache.cfg");
    fs::write(
        &file,
        format!(
            "global\n nbthread 1\n maxconn {}\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n timeout server 60s\n\
             cache kept\n total-max-size 64\n max-object-size 16777216\n max-age 3600\nfrontend f\n bind 127.0.0.1:{port}\n \
             http-request cache-use kept\n default_backend b\nbackend b\n http-response cache-store kept\n server o 127.0.0.1:{ORIGIN}\n",
            plan.connections
        ),
    )?;
    Ok(is_installed("haproxy").then(|| words(&["haproxy", "-db", "-f", &file.display().to_string()])))
}

fn of_varnish(plan: &Plan<'_>, port: u16) -> Result<Option<Vec<String>>> {
    let (file, state) = (plan.folder.join("varnish-cache.vcl"), plan.folder.join("varnish-cache"));
    fs::write(&file, format!("vcl 4.1;\nbackend default {{ .host = \"127.0.0.1\"; .port = \"{ORIGIN}\"; }}\n"))?;
    let (state, file, address) = (state.display().to_string(), file.display().to_string(), format!("127.0.0.1:{port},HTTP"));
    let mut command = words(&["varnishd", "-F", "-j", "none", "-T", "none", "-n", &state, "-f", &file, "-a", &address]);
    command.extend(words(&["-s", "default=malloc,64m", "-p", "thread_pools=1", "-p", "timeout_idle=600"]));
    Ok(is_installed("varnishd").then_some(command))
}

fn of_envoy(plan: &Plan<'_>, port: u16) -> Result<Option<Vec<String>>> {
    let filter = "\n          - name: envoy.filters.http.cache\n            typed_config:\n              \
                  \"@type\": type.googleapis.com/envoy.extensions.filters.http.cache.v3.CacheConfig\n              typed_config:\n                \
                  \"@type\": type.googleapis.com/envoy.extensions.http.cache.simple_http_cache.v3.SimpleHttpCacheConfig";
    envoy::with(plan, &envoy::listener(port, filter, ""))
}
