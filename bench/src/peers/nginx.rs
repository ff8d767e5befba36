//! nginx: a peer, and the origin of all.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;

use super::{LOAD_CORE, ORIGIN, Plan, Ports, certificate, is_installed, local, words};
use crate::process::{self, Process};

/// What the origin serves, by the last part of the path.
const BODIES: [(&str, usize); 4] = [("0", 0), ("1k", 1 << 10), ("64k", 64 << 10), ("1m", 1 << 20)];

/// Starts the origin, which serves [`BODIES`] from memory or files, and takes what is posted to `/post`.
pub(crate) fn origin(folder: &Path) -> Result<Process> {
    origin_with(folder, "")
}

/// The same with more of nginx's directives for its server.
pub(crate) fn origin_with(folder: &Path, more: &str) -> Result<Process> {
    let files = folder.join("files");
    fs::create_dir_all(&files)?;
    let mut places = String::from("location = /post { return 200 \"ok\"; } ");
    for (name, len) in BODIES {
        fs::write(files.join(name), "x".repeat(len))?;
        if len <= 1 << 10 {
            write!(places, "location = /{name} {{ return 200 \"{}\"; }} ", "x".repeat(len))?;
        }
    }
    let server = format!(
        "client_max_body_size 1m; sendfile on; open_file_cache max=16; server {{ listen 127.0.0.1:{ORIGIN} reuseport; root {}; {more} {places} }}",
        files.display()
    );
    let config = config(folder, "origin", 1, 4096, &server)?;
    let mut process = Process::pinned(&LOAD_CORE.to_string(), &words(&["nginx", "-c", &config]), &folder.join("origin.log"))?;
    process.wait_for(local(ORIGIN))?;
    Ok(process)
}

pub(super) fn command(plan: &Plan<'_>, ports: Ports) -> Result<Option<Vec<String>>> {
    let pem = certificate(plan.folder)?;
    let server = format!(
        "client_max_body_size 1m; keepalive_timeout 600s; upstream o {{ server 127.0.0.1:{ORIGIN}; keepalive 256; keepalive_requests 100000000; }} \
         server {{ listen 127.0.0.1:{}; listen 127.0.0.1:{} http2; listen 127.0.0.1:{} ssl http2; ssl_certificate {pem}; ssl_certificate_key {pem}; \
         ssl_protocols TLSv1.3; \
         location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://o; }} }}",
        ports.0,
        ports.http2(),
        ports.tls()
    );
    // One for each client's connection, and some upstream.
    let config = config(plan.folder, "nginx", plan.workers, plan.connections + 96, &server)?;
    Ok(is_installed("nginx").then(|| words(&["nginx", "-c", &config])))
}

/// Writes a configuration of that name; `server` stands in its part `http`.
pub(crate) fn config(folder: &Path, name: &str, workers: usize, connections: usize, server: &str) -> Result<String> {
    let file = folder.join(format!("{name}.conf"));
    let pid = folder.join(format!("{name}.pid"));
    fs::write(
        &file,
        format!(
            "user root; daemon off; worker_processes {workers}; worker_rlimit_nofile {}; pid {}; error_log /dev/null; \
             events {{ worker_connections {connections}; }}\nhttp {{ access_log off; keepalive_requests 100000000; {server} }}\n",
            process::descriptors(),
            pid.display()
        ),
    )?;
    Ok(file.display().to_string())
}
