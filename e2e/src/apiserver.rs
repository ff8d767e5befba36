//! A bare Kubernetes API: etcd and kube-apiserver on loopback, for tests that need the API and no node.

pub mod audit;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::pki::{Authority, Folder, Subject};
use crate::process::Process;
use crate::tools::program;
use crate::wait::eventually;

const API_SERVER: &str = "kube-apiserver";
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Somebody else may take a free port before the program does.
const START_ATTEMPTS: u32 = 3;

/// Names of the PEM files that an API server reads, in its [`Folder`].
pub mod pem {
    /// The cluster's authority.
    pub const CA: &str = "ca";
    /// The API server's own certificate.
    pub const SERVER: &str = "apiserver";
    /// A client in the group `system:masters`.
    pub const ADMIN: &str = "admin";
    /// The authority behind [`FRONT_PROXY`].
    pub const FRONT_PROXY_CA: &str = "front-proxy-ca";
    /// What the API server shows to aggregated APIs.
    pub const FRONT_PROXY: &str = "front-proxy-client";
    /// Signs service-account tokens.
    pub const TOKENS: &str = "service-accounts";
}

/// A running API server. It ends, and its files go, when this value is dropped.
#[derive(Debug)]
pub struct ApiServer {
    folder: PathBuf,
    pki: Folder,
    /// Where etcd is.
    store: String,
    port: u16,
    notes_requests: bool,
    processes: Mutex<Vec<Process>>,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver in a temporary folder and waits until the API is ready.
    ///
    /// # Errors
    /// The tools can't be installed, or a program ended or was not ready in time; the message holds the end of its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_as(false).await
    }

    /// [`ApiServer::start`], and each request is noted: [`ApiServer::requests`].
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn start_noting_requests() -> anyhow::Result<Self> {
        Self::start_as(true).await
    }

    async fn start_as(notes_requests: bool) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::try_start(notes_requests).await {
                Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains("address already in use") => attempt += 1,
                result => return result,
            }
        }
    }

    /// The API server that all tests of one program share, started by the first that asks.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: tokio::sync::OnceCell<ApiServer> = tokio::sync::OnceCell::const_new();
        extern "C" fn end() {
            if let Some(shared) = SHARED.get() {
                shared.shut_down();
            }
        }
        let start = async || {
            let server = Self::start().await?;
            // SAFETY: `end` is an `extern "C"` function that lives as long as the program and does not unwind.
            unsafe { libc::atexit(end) };
            anyhow::Ok(server)
        };
        SHARED.get_or_try_init(start).await
    }

    /// A client with all rights. Each test makes its own, for a client lives on the runtime that made it.
    ///
    /// # Errors
    /// The kubeconfig can't be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }

    /// The configuration of [`ApiServer::client`], to be changed (impersonation, time-outs) before a client is made of it.
    ///
    /// # Errors
    /// The kubeconfig can't be read.
    pub async fn config(&self) -> anyhow::Result<Config> {
        config_from(&self.kubeconfig()).await
    }

    /// A kubeconfig with all rights, for kubectl and for programs under test.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The cluster's certificates and keys, by the names in [`pem`].
    pub fn pki(&self) -> &Folder {
        &self.pki
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops kube-apiserver in its tracks, its port still open, until it is killed.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Kills kube-apiserver; etcd goes on.
    pub fn kill(&self) {
        // It is killed when dropped.
        self.lock().retain(|process| process.name() != API_SERVER);
    }

    /// Starts kube-apiserver after [`ApiServer::kill`], on the same port, and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the message holds the end of its log.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.add(Process::spawn(API_SERVER, self.kube_apiserver()?, &self.folder.join("kube-apiserver-again.log"))?);
        self.until_ready().await
    }

    /// The requests so far, oldest first, of a server started by [`ApiServer::start_noting_requests`].
    ///
    /// # Errors
    /// The notes can't be read.
    pub fn requests(&self) -> anyhow::Result<Vec<audit::Noted>> {
        audit::read(&self.folder)
    }

    async fn try_start(notes_requests: bool) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("fetchr-apiserver-").tempdir()?.keep();
        let pki = Folder::create(&folder.join("pki"))?;
        let store = format!("http://127.0.0.1:{}", free_port()?);
        let server = Self { folder, pki, store, port: free_port()?, notes_requests, processes: Mutex::default() };
        server.run().await?;
        Ok(server)
    }

    async fn run(&self) -> anyhow::Result<()> {
        write_pki(&self.pki, &["localhost", "127.0.0.1", "kubernetes.default.svc"])?;
        let etcd = etcd(&self.folder.join("etcd"), &self.store, &format!("http://127.0.0.1:{}", free_port()?));
        self.add(Process::spawn("etcd", etcd, &self.folder.join("etcd.log"))?);
        self.add(Process::spawn(API_SERVER, self.kube_apiserver()?, &self.folder.join("kube-apiserver.log"))?);
        self.pki.kubeconfig(&self.kubeconfig(), &format!("https://127.0.0.1:{}", self.port), pem::CA, pem::ADMIN)?;
        self.until_ready().await
    }

    fn kube_apiserver(&self) -> anyhow::Result<Command> {
        let mut api = kube_apiserver(&self.pki, &self.store)?;
        api.arg("--bind-address=127.0.0.1").arg(format!("--secure-port={}", self.port));
        api.args(["--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]);
        if self.notes_requests {
            api.args(audit::arguments(&self.folder)?);
        }
        api.current_dir(&self.folder);
        Ok(api)
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        let ended = tokio::select! {
            ready = eventually("the API server is ready", START_DEADLINE, async || ready(&client).await) => return ready,
            ended = self.first_end() => ended,
        };
        Err(ended)
    }

    fn signal(&self, signal: i32) {
        self.lock().iter_mut().filter(|process| process.name() == API_SERVER).for_each(|process| process.signal(signal));
    }

    async fn first_end(&self) -> anyhow::Error {
        loop {
            for process in self.lock().iter_mut() {
                if let Err(ended) = process.check() {
                    return ended;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn add(&self, process: Process) {
        // The API server ends before its store does.
        self.lock().insert(0, process);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn shut_down(&self) {
        self.lock().clear();
        // At the end of a program nobody is left to be told.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// The configuration that a kubeconfig file describes.
///
/// # Errors
/// The file is missing or is no kubeconfig.
pub async fn config_from(kubeconfig: &Path) -> anyhow::Result<Config> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("could not read {}", kubeconfig.display()))?;
    Ok(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)
}

/// Succeeds when the API server says that it is ready.
///
/// # Errors
/// It is not, or it can't be reached.
pub async fn ready(client: &Client) -> anyhow::Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    match client.request_text(request).await?.as_str() {
        "ok" => Ok(()),
        other => Err(anyhow!("/readyz says: {other}")),
    }
}

/// Writes what [`kube_apiserver`] reads, and returns the cluster's authority. `hosts` are the API server's names and addresses.
pub(crate) fn write_pki(pki: &Folder, hosts: &[&str]) -> anyhow::Result<Authority> {
    let ca = pki.authority(pem::CA)?;
    pki.certificate(pem::SERVER, Subject { name: "kube-apiserver", group: None, hosts }, &ca)?;
    pki.certificate(pem::ADMIN, Subject { name: "admin", group: Some("system:masters"), hosts: &[] }, &ca)?;
    let front_proxy_ca = pki.authority(pem::FRONT_PROXY_CA)?;
    pki.certificate(pem::FRONT_PROXY, Subject { name: pem::FRONT_PROXY, group: None, hosts: &[] }, &front_proxy_ca)?;
    pki.signing_key(pem::TOKENS)?;
    Ok(ca)
}

/// etcd with one member.
pub(crate) fn etcd(data: &Path, client_url: &str, peer_url: &str) -> Command {
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(data);
    command.arg("--listen-client-urls").arg(client_url).arg("--advertise-client-urls").arg(client_url);
    command.arg("--listen-peer-urls").arg(peer_url).arg("--initial-advertise-peer-urls").arg(peer_url);
    command.arg("--initial-cluster").arg(format!("default={peer_url}"));
    command
}

/// kube-apiserver with everything that does not depend on where it listens.
pub(crate) fn kube_apiserver(pki: &Folder, store: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program("kube-apiserver")?);
    let mut file = |flag: &str, path: PathBuf| {
        command.arg(format!("--{flag}={}", path.display()));
    };
    file("client-ca-file", pki.crt(pem::CA));
    file("tls-cert-file", pki.crt(pem::SERVER));
    file("tls-private-key-file", pki.key(pem::SERVER));
    file("service-account-key-file", pki.public_key(pem::TOKENS));
    file("service-account-signing-key-file", pki.key(pem::TOKENS));
    file("requestheader-client-ca-file", pki.crt(pem::FRONT_PROXY_CA));
    file("proxy-client-cert-file", pki.crt(pem::FRONT_PROXY));
    file("proxy-client-key-file", pki.key(pem::FRONT_PROXY));
    file("kubelet-client-certificate", pki.crt(pem::ADMIN));
    file("kubelet-client-key", pki.key(pem::ADMIN));
    command.arg(format!("--etcd-servers={store}"));
    command.arg(format!("--requestheader-allowed-names={}", pem::FRONT_PROXY));
    command.args([
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--kubelet-preferred-address-types=InternalIP",
        "--profiling=false",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
    ]);
    Ok(command)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
