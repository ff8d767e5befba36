//! The standalone proxy under load, its documents and its figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::HeaderMap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client1::Io;
use crate::loopback::port;
use crate::origin::get::get;
use crate::pki::{Folder, Subject};
use crate::process::{Process, tail};
use crate::tools::sibling;
use crate::wait::eventually;

/// The field that names the change of the policies that an answer went through.
pub(super) const ROUND: &str = "x-round";
/// A path without sections about tries.
pub(super) const PLAIN: &str = "/plain";
/// A path with all of them.
pub(super) const TRIED: &str = "/tried";
/// A path that few requests may take.
pub(super) const LIMITED: &str = "/limited";
/// The path at the origins that fail.
pub(super) const FAULTY: &str = "/faulty";
/// What a path ends with whose origin echoes and then says trailers.
pub(super) const GRPC: &str = "/grpc";

const SOON: Duration = Duration::from_secs(30);
/// The name of the origins that are well. It has three addresses, and one at which nobody listens.
const NAME: &str = "origin.soak";
pub(super) const ADDRESSES: [[u8; 4]; 3] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]];
const NOBODY: &str = "127.0.0.4";

/// Ports of the origins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origins {
    pub(super) http1: u16,
    pub(super) http2: u16,
    pub(super) faulty1: u16,
    pub(super) faulty2: u16,
}

/// Where the proxy listens, by the origin behind it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Http1,
    Http2,
    /// TLS, before the origin over HTTP/1.1.
    Tls,
    Faulty1,
    Faulty2,
}

/// The running proxy. It ends when this value is dropped.
pub(super) struct Proxy {
    process: Process,
    folder: tempfile::TempDir,
    log: PathBuf,
    /// By [`Place`].
    ports: [u16; 5],
    metrics: u16,
    authority: CertificateDer<'static>,
}

impl Proxy {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(origins: Origins) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let pki = Folder::create(&folder.path().join("pki"))?;
        let authority = pki.authority("ca")?;
        pki.certificate("soak", Subject { name: "soak", group: None, hosts: &["localhost"] }, &authority)?;
        let mut ports = [0; 5];
        for port in &mut ports {
            *port = port::free()?;
        }
        let documents = folder.path().join("documents");
        fs::create_dir(&documents)?;
        fs::create_dir(folder.path().join("state"))?;
        fs::write(documents.join("proxy.yaml"), proxy_document(ports, origins, &pki))?;
        let addresses = ADDRESSES.map(|[a, b, c, d]| format!("{a}.{b}.{c}.{d} {NAME}\n")).concat();
        fs::write(folder.path().join("hosts"), format!("127.0.0.1 localhost\n{addresses}{NOBODY} {NAME}\n"))?;
        let (log, metrics) = (folder.path().join("log"), port::free()?);
        let authority = CertificateDer::from_pem_file(pki.crt("ca"))?;
        change(folder.path(), 0)?;
        let process = Process::spawn("fetchr", command(folder.path(), metrics)?, &log)?;
        let proxy = Self { process, folder, log, ports, metrics, authority };
        let ready = eventually("the proxy is ready", SOON, async || {
            let answer = get(&proxy.url("/readyz")?, &HeaderMap::new()).await?;
            ensure!(answer.status == 200, "it says {}", answer.body.trim());
            Ok(())
        });
        ready.await.with_context(|| format!("its log ends:\n{}", tail(&proxy.log)))?;
        Ok(proxy)
    }

    /// Puts the next change of the policies in place.
    pub(super) fn change(&self, round: u64) -> anyhow::Result<()> {
        change(self.folder.path(), round)
    }

    /// A connection in clear.
    pub(super) async fn connect(&self, place: Place) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[place as usize])).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection under TLS with a protocol chosen.
    pub(super) async fn connect_tls(&self, tls: &TlsConnector) -> std::io::Result<Box<dyn Io>> {
        let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
        Ok(Box::new(tls.connect(name, self.connect(Place::Tls).await?).await?))
    }

    /// What trusts the proxy's certificate, and asks for a protocol.
    pub(super) fn tls(&self, protocol: &str) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// The figures that it tells.
    pub(super) async fn figures(&self) -> anyhow::Result<Figures> {
        Ok(Figures(get(&self.url("/metrics")?, &HeaderMap::new()).await?.body))
    }

    /// The process that serves, below its supervisor.
    fn worker(&self) -> anyhow::Result<u32> {
        self.process.children().first().copied().context("nothing serves")
    }

    /// Open descriptors.
    pub(super) fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.worker()?)).context("the proxy has ended")?.count())
    }

    /// Resident memory in KiB.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.worker()?)).context("the proxy has ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has no memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        tail(&self.log)
    }

    fn url(&self, path: &str) -> anyhow::Result<http::Uri> {
        Ok(format!("http://127.0.0.1:{}{path}", self.metrics).parse()?)
    }
}

/// A page of metrics.
pub(super) struct Figures(pub(super) String);

impl Figures {
    /// The sum of all series of a name.
    pub(super) fn sum(&self, name: &str) -> f64 {
        let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        self.0.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// `fetchr run` in a mount namespace of its own, where the origins' name has their addresses.
fn command(folder: &Path, metrics: u16) -> anyhow::Result<Command> {
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    command.args(["--mount", "--", "sh", "-c", script, "sh"]).arg(folder.join("hosts")).arg(sibling("fetchr")?);
    command.args(["run", "--log-level", "warn", "--admin-port", "0", "--metrics-port", &metrics.to_string()]);
    command.arg("--state-dir").arg(folder.join("state")).arg("-f").arg(folder.join("documents"));
    Ok(command)
}

/// Replaces the policies in one step, so that no half of them is read.
fn change(folder: &Path, round: u64) -> anyhow::Result<()> {
    let part = folder.join("policies.part");
    fs::write(&part, policies(round))?;
    Ok(fs::rename(part, folder.join("documents/policies.yaml"))?)
}

fn proxy_document(ports: [u16; 5], origins: Origins, pki: &Folder) -> String {
    let [http1, http2, tls, faulty1, faulty2] = ports;
    let (certificate, key) = (pki.crt("soak"), pki.key("soak"));
    format!(
        "apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {{name: soak}}
spec:
  workers: 2
  upstream: {{idleTimeout: 30s}}
  logging: {{level: Warn}}
  interception:
    mode: Explicit
    listeners:
    - {{name: http1, port: {http1}, upstream: \"http://{NAME}:{}\"}}
    - {{name: http2, port: {http2}, upstream: \"h2c://{NAME}:{}\"}}
    - name: tls
      port: {tls}
      upstream: \"http://{NAME}:{}\"
      tls: {{certificates: [{{certificateFile: {}, keyFile: {}}}]}}
    - {{name: faulty1, port: {faulty1}, upstream: \"http://127.0.0.1:{}\"}}
    - {{name: faulty2, port: {faulty2}, upstream: \"h2c://127.0.0.1:{}\"}}
",
        origins.http1,
        origins.http2,
        origins.http1,
        certificate.display(),
        key.display(),
        origins.faulty1,
        origins.faulty2
    )
}

/// Every section, each in one rule at least; what may change without a promise to clients changes from round to round.
fn policies(round: u64) -> String {
    let balancing = if round.is_multiple_of(2) { "RoundRobin" } else { "PeakEWMA" };
    let headers = format!(
        "headers: {{request: {{set: [{{name: x-soak, value: \"{round}\"}}]}}, response: {{set: [{{name: {ROUND}, value: \"{round}\"}}]}}}}"
    );
    let limit = "{requests: 100000, per: 1s}";
    format!(
        "apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {{name: soak}}
spec:
  targetRefs: [{{kind: FetchrProxy, name: soak}}]
  rules:
  - name: plain
    matches: [{{path: {{type: Prefix, value: {PLAIN}}}}}]
    {headers}
    rateLimits: [{{name: each, limit: {limit}, key: [{{source: Method}}]}}]
  - name: limited
    matches: [{{path: {{type: Prefix, value: {LIMITED}}}}}]
    {headers}
    rateLimits: [{{name: few, limit: {{requests: 3, per: 1s}}}}]
  - name: tried
    matches: [{{path: {{type: Prefix, value: {TRIED}}}}}]
    {headers}
    retry: {{hedge: {{after: 500ms}}}}
    loadBalancing: {{policy: {balancing}}}
    circuitBreaker: {{consecutiveFailures: 50}}
    failover: {{upstream: \"http://127.0.0.4:1\", mode: Shadow}}
  - name: faulty
    matches: [{{path: {{type: Prefix, value: {FAULTY}}}}}]
    {headers}
    retry: {{attempts: 3, backoff: {{base: 1ms}}, methods: [GET, PUT]}}
    timeouts: {{perTry: 500ms, request: 2s}}
    circuitBreaker: {{consecutiveFailures: 20, openFor: 200ms}}
  - name: round-{}
    matches: [{{path: {{type: Exact, value: /none}}}}]
    headers: {{response: {{set: [{{name: x-none, value: none}}]}}}}
",
        round % 7
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_one_name_are_added_up() {
        let page = "a_b{c=\"1\"} 2\na_b{c=\"2\"} 3\na_bc 7\na_b 1\n# a_b 9\n";
        assert_eq!(Figures(page.to_owned()).sum("a_b"), 6.0);
    }
}
