//! The node, inside its namespaces: the first process there, which sets up the network and runs the programs of Kubernetes.
//! When it ends, the kernel ends everything else and undoes every mount.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::net::UnixListener;

use super::dial;
use super::state::{State, cgroup_hierarchies};
use crate::apiserver::{self, pem};
use crate::pki::{Folder, Subject};
use crate::process::{Process, output};
use crate::tools::{self, program};
use crate::wait::eventually;

/// The node's name.
pub const NAME: &str = "node";
/// The image of the process that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "localhost/fetchr-pause:dev";
/// A cluster that is up only while it is used ends after this long.
pub const UNUSED_FOR: Duration = Duration::from_secs(300);
/// Where pods look for DNS.
pub const DNS_SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

const ADDRESS: &str = "10.10.0.1";
const POD_CIDR: &str = "10.244.0.0/16";
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
const STORE: &str = "http://127.0.0.1:2379";
const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);
const KUBELET: &str = "kubelet";

/// Writes the node's certificates and configuration. `server` is the API's URL for this machine.
pub(super) fn prepare(state: &State, server: &str) -> anyhow::Result<()> {
    for folder in ["logs", "cni", "kubelet", "var/lib", "var/log", "var/work-lib", "var/work-log"] {
        fs::create_dir_all(state.root().join(folder))?;
    }
    let pki = Folder::create(&state.root().join("pki"))?;
    let hosts = ["localhost", "127.0.0.1", ADDRESS, "10.96.0.1", "kubernetes.default.svc", "kubernetes.default"];
    let ca = apiserver::write_pki(&pki, &hosts)?;
    let subject = Subject { name: "system:node:node", group: Some("system:nodes"), hosts: &[NAME, ADDRESS] };
    pki.certificate(KUBELET, subject, &ca)?;
    pki.kubeconfig(&state.kubeconfig(), server, pem::CA, pem::ADMIN)?;
    let inside = format!("https://{ADDRESS}:{}", API.port());
    pki.kubeconfig(&node_kubeconfig(state), &inside, pem::CA, pem::ADMIN)?;
    pki.kubeconfig(&kubelet_kubeconfig(state), &inside, pem::CA, KUBELET)?;
    for (name, template) in [
        ("containerd.toml", include_str!("../../node/containerd.toml")),
        ("cni/pods.conflist", include_str!("../../node/cni.conflist")),
        ("kubelet.yaml", include_str!("../../node/kubelet.yaml")),
        ("Corefile", include_str!("../../node/Corefile")),
    ] {
        let text = template.replace("{state}", &state.root().display().to_string()).replace("{cgroup}", &state.cgroup());
        fs::write(state.root().join(name), text).with_context(|| format!("could not write {name}"))?;
    }
    Ok(())
}

/// Starts `fetchr-e2e node` as the first process of new namespaces, detached from this process, with the listener made here.
pub(super) fn spawn(state: &State, listener: TcpListener) -> anyhow::Result<Child> {
    let log = fs::File::create(state.log("node"))?;
    let fd = listener.as_raw_fd();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(tools::sibling("fetchr-e2e")?).arg("node").arg(state.root()).arg(fd.to_string());
    command.env_remove("KUBECONFIG").current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: setsid(2) and fcntl(2) are async-signal-safe; the listener is open until after the spawn.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().context("could not run unshare")?;
    drop(listener);
    state.remember(child.id())?;
    Ok(child)
}

/// The command that imports an image archive into the node; it may run outside of the namespaces.
pub(super) fn import(state: &State, archive: &Path) -> Command {
    let mut command = ctr(state);
    command.args(["images", "import"]).arg(archive);
    command
}

/// containerd's command line, for the containers of Kubernetes.
pub(super) fn ctr(state: &State) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(state.containerd_socket()).args(["--namespace", "k8s.io"]);
    command
}

/// What `fetchr-e2e node` does; it returns only when something went wrong or nobody needs the node any more.
///
/// # Errors
/// A program of the node ended or did not become ready; the message holds the end of its log.
pub fn run(root: &Path, listener: i32) -> anyhow::Result<()> {
    let state = State::at(root)?;
    // SAFETY: `spawn` above hands the descriptor over, and nothing else in this process knows of it.
    let listener = unsafe { TcpListener::from_raw_fd(listener) };
    mounts(&state)?;
    network()?;
    cgroups(&state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(open_ways_in(&state, listener))?;
    let mut programs = runtime.block_on(start(&state))?;
    let watched = state.clone();
    std::thread::spawn(move || end_when_unused(&watched));
    Err(first_end(&mut programs))
}

/// Programs write where distributions want it; here that lands in the cluster's folder.
fn mounts(state: &State) -> anyhow::Result<()> {
    let root = state.root().display();
    for folder in ["lib", "log"] {
        let options = format!("lowerdir=/var/{folder},upperdir={root}/var/{folder},workdir={root}/var/work-{folder}");
        output(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(format!("/var/{folder}")))?;
    }
    output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    Ok(())
}

fn network() -> anyhow::Result<()> {
    let ip = |arguments: &str| output(Command::new("ip").args(arguments.split(' ')));
    ip("link set lo up")?;
    // A bridge carries the node's address: some kernels have no dummy device.
    ip("link add node0 type bridge")?;
    ip(&format!("address add {ADDRESS}/24 dev node0"))?;
    ip("link set node0 up")?;
    ip("route add default dev node0")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("could not turn on forwarding")
}

fn cgroups(state: &State) -> anyhow::Result<()> {
    for hierarchy in cgroup_hierarchies()? {
        if hierarchy.join("cgroup.controllers").exists() {
            // Version 2 hands controllers down only where told to; a controller that is missing shows in the kubelet's log.
            let _ = fs::write(hierarchy.join("cgroup.subtree_control"), "+cpu +cpuset +memory +pids");
        }
        let group = hierarchy.join(state.cgroup().trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("could not create {}", group.display()))?;
    }
    Ok(())
}

async fn open_ways_in(state: &State, listener: TcpListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    tokio::spawn(dial::forward(tokio::net::TcpListener::from_std(listener)?, API));
    tokio::spawn(dial::serve(UnixListener::bind(state.dial_socket())?));
    Ok(())
}

async fn start(state: &State) -> anyhow::Result<Vec<Process>> {
    let mut programs = Programs { state, running: Vec::new() };
    programs.add("etcd", apiserver::etcd(&state.root().join("etcd"), STORE, "http://127.0.0.1:2380"))?;
    programs.add("kube-apiserver", kube_apiserver(state)?)?;
    programs.add("containerd", containerd(state))?;
    let archive = state.pause_archive();
    programs.until("containerd takes images", async || Ok(output(&mut import(state, &archive)).map(drop)?)).await?;
    programs.add("kubelet", kubelet(state)?)?;
    let client = kube::Client::try_from(apiserver::config_from(&node_kubeconfig(state)).await?)?;
    programs.until("the API server is ready", async || apiserver::ready(&client).await).await?;
    programs.add("kube-controller-manager", kube_controller_manager(state)?)?;
    programs.add("kube-scheduler", kube_scheduler(state)?)?;
    programs.add("kube-proxy", kube_proxy(state)?)?;
    programs.add("coredns", coredns(state)?)?;
    Ok(programs.running)
}

struct Programs<'a> {
    state: &'a State,
    running: Vec<Process>,
}

impl Programs<'_> {
    fn add(&mut self, name: &str, command: Command) -> anyhow::Result<()> {
        self.running.push(Process::spawn(name, command, &self.state.log(name))?);
        Ok(())
    }

    async fn until(&mut self, what: &str, mut probe: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut ended = None;
        let running = &mut self.running;
        let result = eventually(what, PROGRAM_DEADLINE, async || {
            ended = running.iter_mut().find_map(|process| process.check().err());
            if ended.is_some() { Ok(()) } else { probe().await }
        });
        result.await?;
        ended.map_or(Ok(()), Err)
    }
}

fn kube_apiserver(state: &State) -> anyhow::Result<Command> {
    let mut command = apiserver::kube_apiserver(&Folder::create(&state.root().join("pki"))?, STORE)?;
    command.arg(format!("--advertise-address={ADDRESS}")).arg(format!("--secure-port={}", API.port()));
    Ok(command)
}

fn containerd(state: &State) -> Command {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(state.root().join("containerd.toml"));
    command
}

fn kubelet(state: &State) -> anyhow::Result<Command> {
    let mut command = Command::new(program("kubelet")?);
    command.arg("--config").arg(state.root().join("kubelet.yaml"));
    command.arg("--kubeconfig").arg(kubelet_kubeconfig(state));
    command.arg("--root-dir").arg(state.root().join("kubelet"));
    command.arg(format!("--hostname-override={NAME}")).arg(format!("--node-ip={ADDRESS}"));
    Ok(command)
}

fn kube_controller_manager(state: &State) -> anyhow::Result<Command> {
    let pki = Folder::create(&state.root().join("pki"))?;
    let mut command = with_kubeconfig("kube-controller-manager", state)?;
    command.arg("--service-account-private-key-file").arg(pki.key(pem::TOKENS));
    command.arg("--root-ca-file").arg(pki.crt(pem::CA));
    command.arg("--cluster-signing-cert-file").arg(pki.crt(pem::CA));
    command.arg("--cluster-signing-key-file").arg(pki.key(pem::CA));
    command.arg("--allocate-node-cidrs").arg(format!("--cluster-cidr={POD_CIDR}"));
    command.args(["--leader-elect=false", "--use-service-account-credentials"]);
    Ok(command)
}

fn kube_scheduler(state: &State) -> anyhow::Result<Command> {
    let mut command = with_kubeconfig("kube-scheduler", state)?;
    command.arg("--leader-elect=false");
    Ok(command)
}

fn kube_proxy(state: &State) -> anyhow::Result<Command> {
    let mut command = with_kubeconfig("kube-proxy", state)?;
    command.arg(format!("--hostname-override={NAME}")).arg(format!("--cluster-cidr={POD_CIDR}"));
    // The limits of connection tracking and OOM scores belong to the machine.
    command.args(["--proxy-mode=iptables", "--conntrack-max-per-core=0", "--oom-score-adj=0"]);
    // Rules are there soon after a Service's endpoints change; the default gathers changes for a second.
    command.arg("--iptables-min-sync-period=50ms");
    Ok(command)
}

fn coredns(state: &State) -> anyhow::Result<Command> {
    let mut command = Command::new(program("coredns")?);
    command.arg("-conf").arg(state.root().join("Corefile"));
    Ok(command)
}

fn with_kubeconfig(name: &str, state: &State) -> anyhow::Result<Command> {
    let mut command = Command::new(program(name)?);
    command.arg("--kubeconfig").arg(node_kubeconfig(state));
    Ok(command)
}

fn node_kubeconfig(state: &State) -> std::path::PathBuf {
    state.root().join("node.kubeconfig")
}

fn kubelet_kubeconfig(state: &State) -> std::path::PathBuf {
    state.root().join("kubelet.kubeconfig")
}

fn end_when_unused(state: &State) {
    let mut last_use = Instant::now();
    while last_use.elapsed() < UNUSED_FOR {
        std::thread::sleep(Duration::from_secs(1));
        if state.is_kept() || state.is_used().unwrap_or(true) {
            last_use = Instant::now();
        }
    }
    println!("nobody has used the cluster for {UNUSED_FOR:?}");
    std::process::exit(0);
}

/// Reaps what pods leave behind, as the first process must, until a program of the node ends.
fn first_end(programs: &mut [Process]) -> anyhow::Error {
    loop {
        let pid = match wait_for_any() {
            Ok(pid) => pid,
            Err(error) => return error.into(),
        };
        match programs.iter_mut().find(|program| i32::try_from(program.id()) == Ok(pid)) {
            Some(program) => match program.check() {
                Err(ended) => return ended,
                Ok(()) => return anyhow!("{} ended", program.name()),
            },
            // SAFETY: no status is asked for, so no pointer is written through.
            None => unsafe {
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            },
        }
    }
}

/// Waits until some child has ended, and leaves it to be reaped.
fn wait_for_any() -> std::io::Result<i32> {
    // SAFETY: an all-zero siginfo is valid, and the pointer to it lives through the call; si_pid is set for ended children.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        match libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) {
            0 => Ok(info.si_pid()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
