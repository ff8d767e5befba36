//! A real Kubernetes on this machine: one node in namespaces of its own, so that nothing of it touches the machine's network
//! or mounts, and the end of one process is the end of all of it.

mod dial;
pub mod node;
mod state;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::{Api, Client, Config};

use crate::apiserver;
use crate::image::Image;
use crate::process::output;
use crate::tools::{self, program};
use crate::wait::eventually;

pub use dial::Stream;
pub use state::State;

const START_DEADLINE: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// A cluster that can be used: the one on this machine, or the one that `KUBECONFIG` names.
#[derive(Debug, Clone)]
pub struct Cluster {
    kubeconfig: PathBuf,
    /// Absent for a cluster that somebody else runs.
    local: Option<State>,
}

/// How long a cluster on this machine stays up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until `cluster down`.
    Kept,
    /// Until no process has used it for [`node::UNUSED_FOR`].
    WhileUsed,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` names, else the one on this machine, which is started where it is not up.
    /// `progress` hears of each step.
    ///
    /// # Errors
    /// This is not root, the tools can't be installed, or the cluster was not ready in time; the message holds the end of the
    /// log of what failed.
    pub async fn up(lifetime: Lifetime, progress: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Self> {
        let state = State::of_this_machine()?;
        if let Some(foreign) = foreign_kubeconfig(&state) {
            progress(&format!("using the cluster of {}", foreign.display()));
            return Ok(Self { kubeconfig: foreign, local: None });
        }
        let cluster = Self { kubeconfig: state.kubeconfig(), local: Some(state.clone()) };
        let _lock = state.lock(progress)?;
        if state.node()?.is_none() {
            start(&cluster, &state, progress).await?;
        }
        if lifetime == Lifetime::Kept {
            state.keep()?;
        }
        Ok(cluster)
    }

    /// The cluster that is up, if one is.
    ///
    /// # Errors
    /// The state folder can't be read.
    pub fn running() -> anyhow::Result<Option<Self>> {
        let state = State::of_this_machine()?;
        if let Some(kubeconfig) = foreign_kubeconfig(&state) {
            return Ok(Some(Self { kubeconfig, local: None }));
        }
        Ok(state.node()?.map(|_| Self { kubeconfig: state.kubeconfig(), local: Some(state.clone()) }))
    }

    /// Ends the cluster on this machine and removes its files; nothing is done where none is up. A cluster that `KUBECONFIG`
    /// names is not touched.
    ///
    /// # Errors
    /// The node did not end in time, or its files can't be removed.
    pub async fn down() -> anyhow::Result<bool> {
        let state = State::of_this_machine()?;
        let _lock = state.lock(&|_| ())?;
        let was_up = match state.node()? {
            Some(node) => {
                node.kill()?;
                eventually("the node ends", STOP_DEADLINE, async || match state.node()? {
                    None => Ok(()),
                    Some(node) => Err(anyhow!("process {} is there", node.pid())),
                })
                .await?;
                true
            }
            None => false,
        };
        state.remove().await?;
        Ok(was_up)
    }

    /// Path of the kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the cluster's files and logs are; absent for a cluster that somebody else runs.
    pub fn state(&self) -> Option<&State> {
        self.local.as_ref()
    }

    /// A client with the kubeconfig's rights. Each test makes its own, for a client lives on the runtime that made it.
    ///
    /// # Errors
    /// The kubeconfig can't be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }

    /// The configuration of [`Cluster::client`].
    ///
    /// # Errors
    /// The kubeconfig can't be read.
    pub async fn config(&self) -> anyhow::Result<Config> {
        apiserver::config_from(&self.kubeconfig).await
    }

    /// `kubectl` for this cluster; add arguments and hand it to [`output`].
    ///
    /// # Errors
    /// The tools can't be installed.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        self.command(&program("kubectl")?)
    }

    /// `helm` for this cluster, [`tools::helm`]; add arguments and hand it to [`output`].
    ///
    /// # Errors
    /// The tools can't be installed.
    pub fn helm(&self) -> anyhow::Result<Command> {
        self.command(&tools::helm()?)
    }

    /// Opens a connection from the node to an address of the cluster: a pod's or a Service's. Only for the cluster on this
    /// machine.
    ///
    /// # Errors
    /// Nothing answers there, or the cluster is not on this machine.
    pub async fn connect(&self, address: std::net::SocketAddr) -> anyhow::Result<Stream> {
        let state = self.local.as_ref().context("addresses of pods can be reached only in the cluster on this machine")?;
        dial::connect(&state.dial_socket(), address).await
    }

    /// Brings an image onto the node; nothing is done when it has the same one already.
    ///
    /// # Errors
    /// A file of the image is missing, the node refused it, or the cluster is not on this machine.
    pub async fn load_image(&self, image: &Image) -> anyhow::Result<()> {
        let state = self.local.clone().context("images can be loaded only into the cluster on this machine")?;
        let image = image.clone();
        tokio::task::spawn_blocking(move || load_image(&state, &image)).await?
    }

    /// Kills the first process of a container, whose id containerd knows.
    pub(crate) fn kill_container(&self, id: &str) -> anyhow::Result<()> {
        let state = self.local.as_ref().context("containers can be killed only in the cluster on this machine")?;
        output(node::ctr(state).args(["tasks", "kill", "--signal", "SIGKILL", id])).map(drop)
    }

    fn command(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        if let Some(state) = &self.local {
            // helm and kubectl keep caches; these ones live and die with the cluster.
            let cache = state.tool_caches();
            command.env("KUBECACHEDIR", cache.join("kube")).env("HELM_CACHE_HOME", cache.join("helm"));
            command.env("HELM_CONFIG_HOME", cache.join("helm")).env("HELM_DATA_HOME", cache.join("helm"));
        }
        Ok(command)
    }
}

fn foreign_kubeconfig(state: &State) -> Option<PathBuf> {
    let named = PathBuf::from(std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty())?);
    (named != state.kubeconfig()).then_some(named)
}

async fn start(cluster: &Cluster, state: &State, progress: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    // SAFETY: geteuid(2) can't fail and takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the cluster needs root, for namespaces and mounts of its own; or set KUBECONFIG to use a cluster that is there");
    }
    progress("tools");
    program("kubelet")?;
    state.remove().await?;
    state.check_file_system()?;
    progress("certificates and configuration");
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no port for the API")?;
    node::prepare(state, &format!("https://{}", listener.local_addr()?))?;
    pause_image()?.write(&state.pause_archive())?;
    progress("node");
    let mut node = node::spawn(state, listener)?;
    let result = tokio::select! {
        ready = wait_ready(cluster, state, progress) => ready,
        ended = end_of(&mut node, state) => Err(ended),
    };
    if result.is_err() {
        // The error to report is the first one.
        let _ = node.kill();
        let _ = node.wait();
    }
    result
}

async fn end_of(node: &mut std::process::Child, state: &State) -> anyhow::Error {
    loop {
        match node.try_wait() {
            Ok(None) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(Some(_)) => return anyhow!("the node ended:\n{}", crate::process::tail(&state.log("node"))),
            Err(error) => return error.into(),
        }
    }
}

async fn wait_ready(cluster: &Cluster, state: &State, progress: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    let logs = || format!("the logs are in {}", state.logs().display());
    let client = cluster.client().await?;
    let api = async || apiserver::ready(&client).await;
    eventually("the API server is ready", START_DEADLINE, api).await.with_context(logs)?;
    progress("API server ready");
    let manifest = Path::new(tools::CRATE).join("node/dns.yaml");
    // A disk that others keep busy makes the first writes late.
    let apply = async || output(cluster.kubectl()?.args(["apply", "--server-side", "-f"]).arg(&manifest));
    eventually("the API server takes the cluster DNS", START_DEADLINE, apply).await.with_context(logs)?;
    eventually("the node is ready", START_DEADLINE, async || node_ready(&client).await).await.with_context(logs)?;
    progress("node ready");
    let dns = node::DNS_SERVICE;
    eventually("cluster DNS answers", START_DEADLINE, async || cluster.connect(dns).await).await.with_context(logs)?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = async || Ok(accounts.get("default").await?);
    eventually("namespaces get their service accounts", START_DEADLINE, account).await.with_context(logs)?;
    progress("cluster ready");
    Ok(())
}

async fn node_ready(client: &Client) -> anyhow::Result<()> {
    let node = Api::<Node>::all(client.clone()).get(node::NAME).await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        Some(ready) => bail!("{}", ready.message.unwrap_or_default()),
        None => bail!("the node has not reported yet"),
    }
}

fn pause_image() -> anyhow::Result<Image> {
    let program = tools::sibling("fetchr-pause")?;
    Ok(Image::new(node::PAUSE_IMAGE).program(&program, "/pause")?.run("/pause", &[]))
}

fn load_image(state: &State, image: &Image) -> anyhow::Result<()> {
    let fingerprint = image.fingerprint()?;
    let _lock = state.lock(&|_| ())?;
    if state.image_on_node(image.name()).as_deref() == Some(&fingerprint) {
        return Ok(());
    }
    let archive = tempfile::Builder::new().suffix(".tar").tempfile()?;
    image.write(archive.path())?;
    output(&mut node::import(state, archive.path())).with_context(|| format!("could not load {}", image.name()))?;
    state.set_image_on_node(image.name(), &fingerprint)
}

/// A shell inside the node's namespaces, where pods and Services can be reached by address.
///
/// # Errors
/// No cluster is up on this machine, or the shell can't be started.
pub fn shell() -> anyhow::Result<()> {
    let state = State::of_this_machine()?;
    let node = state.node()?.context("no cluster is up on this machine; start one: make cluster-up")?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &node.inner_pid()?.to_string(), "--net", "--mount", "--pid"]);
    command.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", program("kubectl")?.parent().unwrap_or(Path::new("/")).display()));
    command.env("KUBECONFIG", state.kubeconfig());
    command.stdin(Stdio::inherit()).status().context("could not run nsenter")?;
    Ok(())
}
