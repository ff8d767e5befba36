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
const NGINX: Ports = Ports(18001);
const HAPROXY: Ports = Ports(18002);
const FETCHR: Ports = Ports(18010);
/// Where the measured fetchr serves its health.
pub(crate) const METRICS: SocketAddr = local(18021);
const ADMIN: u16 = 18020;

/// A proxy under load.
pub(crate) struct Peer {
    /// Name in the table.
    pub(crate) name: &'static str,
    /// Where it listens for HTTP/1.
    pub(crate) http: SocketAddr,
    /// Where it listens for HTTP/2 in clear.
    pub(crate) http2: SocketAddr,
    /// Where it listens for TLS.
    pub(crate) tls: SocketAddr,
    /// Its process.
    pub(crate) process: Process,
}

/// The port for HTTP/1, from which the others follow.
#[derive(Clone, Copy)]
struct Ports(u16);

impl Ports {
    const fn http2(self) -> u16 {
        self.0 + 100
    }

    const fn tls(self) -> u16 {
        self.0 + 200
    }
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// What the origin serves, by the last part of the path.
pub(crate) const BODIES: [(&str, usize); 4] = [("0", 0), ("1k", 1 << 10), ("64k", 64 << 10), ("1m", 1 << 20)];

/// Starts the origin: nginx, which serves [`BODIES`] from memory or files, and takes what is posted to `/post`.
pub(crate) fn origin(folder: &Path) -> Result<Process> {
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
        "client_max_body_size 1m; sendfile on; open_file_cache max=16; server {{ listen 127.0.0.1:{ORIGIN} reuseport; root {}; {places} }}",
        files.display()
    );
    let config = nginx_config(folder, "origin", &server)?;
    let mut process = Process::pinned(LOAD_CORE, &words(&["nginx", "-c", &config]), &folder.join("origin.log"))?;
    process.wait_for(local(ORIGIN))?;
    Ok(process)
}

/// Starts every peer, fetchr first.
pub(crate) fn all(binaries: &Path, folder: &Path, rules: usize) -> Result<Vec<Peer>> {
    let pem = certificate(folder)?;
    let documents = fetchr_documents(folder, rules)?;
    let nginx = nginx_config(
        folder,
        "nginx",
        &format!(
            "client_max_body_size 1m; upstream o {{ server 127.0.0.1:{ORIGIN}; keepalive 256; keepalive_requests 100000000; }} \
             server {{ listen 127.0.0.1:{}; listen 127.0.0.1:{} http2; listen 127.0.0.1:{} ssl http2; ssl_certificate {pem}; ssl_certificate_key {pem}; \
             ssl_protocols TLSv1.3; location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://o; }} }}",
            NGINX.0,
            NGINX.http2(),
            NGINX.tls()
        ),
    )?;
    let haproxy = haproxy_config(folder, &pem)?;
    let commands = [
        ("fetchr", FETCHR, fetchr_command(binaries, &documents)),
        ("nginx", NGINX, words(&["nginx", "-c", &nginx])),
        ("HAProxy", HAPROXY, words(&["haproxy", "-db", "-f", &haproxy])),
    ];
    commands
        .into_iter()
        .map(|(name, ports, command)| {
            let mut process = Process::pinned(PROXY_CORE, &command, &folder.join(format!("{name}.log")))?;
            let (http, http2, tls) = (local(ports.0), local(ports.http2()), local(ports.tls()));
            for address in [http, http2, tls] {
                process.wait_for(address)?;
            }
            Ok(Peer { name, http, http2, tls, process })
        })
        .collect()
}

/// Makes a certificate for the loopback, with its key in the same file.
fn certificate(folder: &Path) -> Result<String> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let file = folder.join("bench.pem");
    fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem())?;
    Ok(file.display().to_string())
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

/// Rules of one policy, at most.
const RULES: usize = 64;

/// A proxy with a listener for each way to speak, and `rules` rules in as many policies as that needs. The last rule matches everything and
/// sets a header.
pub(crate) fn fetchr_documents(folder: &Path, rules: usize) -> Result<PathBuf> {
    let documents = folder.join("documents");
    fs::create_dir_all(&documents)?;
    let pem = certificate(folder)?;
    let listener = |name: &str, port: u16, more: &str| {
        format!("    - {{name: {name}, port: {port}, upstream: \"http://127.0.0.1:{ORIGIN}\"{more}}}\n")
    };
    let tls = format!(", tls: {{certificates: [{{certificateFile: {pem}, keyFile: {pem}}}]}}");
    let mut text = format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: bench}}\nspec:\n  workers: 1\n  interception:\n    \
         mode: Explicit\n    listeners:\n{}{}{}",
        listener("web", FETCHR.0, ""),
        listener("http2", FETCHR.http2(), ""),
        listener("tls", FETCHR.tls(), &tls)
    );
    for rule in 0..rules {
        if rule % RULES == 0 {
            write!(
                text,
                "---\napiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: bench-{}}}\n\
                 spec:\n  targetRefs: [{{kind: FetchrProxy, name: bench}}]\n  rules:\n",
                rule / RULES
            )?;
        }
        if rule + 1 < rules {
            writeln!(
                text,
                "  - name: path-{rule}\n    matches: [{{path: {{type: Prefix, value: /path/{rule}}}}}]\n    timeouts: {{request: {}s}}",
                rule % 60 + 1
            )?;
        }
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

fn haproxy_config(folder: &Path, pem: &str) -> Result<String> {
    let file = folder.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n nbthread 1\n maxconn 8000\n ssl-default-bind-options ssl-min-ver TLSv1.3\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
             timeout server 60s\nfrontend f\n bind 127.0.0.1:{}\n bind 127.0.0.1:{} proto h2\n bind 127.0.0.1:{} ssl crt {pem} alpn h2,http/1.1\n default_backend b\n\
             backend b\n http-reuse always\n server o 127.0.0.1:{ORIGIN}\n",
            HAPROXY.0,
            HAPROXY.http2(),
            HAPROXY.tls()
        ),
    )?;
    Ok(file.display().to_string())
}
