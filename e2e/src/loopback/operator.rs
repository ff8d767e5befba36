//! An operator as a process, started again when it ends, as the kubelet does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::HeaderMap;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::{Loopback, OPERATOR_NAMESPACE, SOON, port};
use crate::origin::get::{Answer, get};
use crate::process::Process;
use crate::testkit::relay::Relay;
use crate::tools::sibling;
use crate::wait::eventually;

/// The kubelet waits longer each time.
const PAUSE_BEFORE_RESTART: Duration = Duration::from_secs(1);
/// Of the Debian package `faketime`.
const LIBFAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// A user of the API server.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// Its name, which is also the pod's.
    pub name: &'a str,
    /// How far its clock is off, such as `+1h`.
    pub clock: Option<&'a str>,
}

/// A running operator. It ends when this value is dropped.
pub struct Operator {
    /// Between it and the API server.
    pub api: Relay,
    /// Between sidecars and it.
    pub streams: Relay,
    launch: Arc<Launch>,
    _supervisor: AbortOnDropHandle<()>,
}

/// How the process is started, and the process.
struct Launch {
    name: String,
    clock: Option<String>,
    folder: PathBuf,
    kubeconfig: PathBuf,
    /// Webhooks, streams, metrics, aggregated API.
    ports: [u16; 4],
    starts: AtomicU32,
    stays_down: AtomicBool,
    process: Mutex<Option<Process>>,
}

impl Loopback {
    /// Starts an operator and waits until it is ready. `index`, from 0, tells operators apart.
    ///
    /// # Errors
    /// It was not ready in time.
    pub async fn operator(&self, index: u8, user: User<'_>) -> anyhow::Result<Operator> {
        let ports = [port::free()?, port::free()?, port::free()?, port::free()?];
        let api = Relay::start((Ipv4Addr::LOCALHOST, self.server.port()).into()).await?;
        let listen = SocketAddr::from((stream_address(index), self.stream_port));
        let streams = Relay::listen(listen, (Ipv4Addr::LOCALHOST, ports[1]).into()).await?;
        let launch = Arc::new(Launch {
            name: user.name.to_owned(),
            clock: user.clock.map(str::to_owned),
            folder: self.folder().to_owned(),
            kubeconfig: self.kubeconfig(user.name, api.address())?,
            ports,
            starts: AtomicU32::new(0),
            stays_down: AtomicBool::new(false),
            process: Mutex::default(),
        });
        launch.start()?;
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervise(Arc::clone(&launch))));
        let operator = Operator { api, streams, launch, _supervisor: supervisor };
        operator.until_ready().await?;
        Ok(operator)
    }

    /// One that goes through `server` and says who it is.
    fn kubeconfig(&self, user: &str, server: SocketAddr) -> anyhow::Result<PathBuf> {
        let mut config: serde_json::Value = serde_yaml::from_str(&fs::read_to_string(self.server.kubeconfig())?)?;
        config["clusters"][0]["cluster"]["server"] = json!(format!("https://{server}"));
        config["users"][0]["user"]["as"] = json!(user);
        config["users"][0]["user"]["as-groups"] = json!(["system:masters"]);
        let path = self.folder().join(format!("{user}.kubeconfig"));
        fs::write(&path, serde_yaml::to_string(&config)?)?;
        Ok(path)
    }
}

/// Where sidecars find the streams of an operator.
pub(super) fn stream_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 2 + index)
}

impl Operator {
    /// Its user's name.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.launch.starts.load(Ordering::Relaxed)
    }

    /// Kills it by SIGKILL, as when its node is lost: it is started again only by [`Operator::come_back`].
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.launch.stays_down.store(true, Ordering::Relaxed);
        let mut process = self.launch.lock();
        process.as_mut().with_context(|| format!("{} does not run", self.name()))?.signal(libc::SIGKILL);
        Ok(())
    }

    /// Starts it after [`Operator::kill`] and waits until it is ready.
    ///
    /// # Errors
    /// It was not ready in time.
    pub async fn come_back(&self) -> anyhow::Result<()> {
        self.launch.stays_down.store(false, Ordering::Relaxed);
        self.until_ready().await
    }

    /// Asks its port of metrics and health.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(&self, path: &str) -> anyhow::Result<Answer> {
        get(&format!("http://127.0.0.1:{}{path}", self.launch.ports[2]).parse()?, &HeaderMap::new()).await
    }

    /// Succeeds when it is ready.
    ///
    /// # Errors
    /// It is not: the message is its own.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let answer = self.ask("/readyz").await?;
        ensure!(answer.status == 200, "{} is not ready: {}", self.name(), answer.body.trim());
        Ok(())
    }

    /// Waits for [`Operator::ready`].
    ///
    /// # Errors
    /// It was not in time; the message holds the end of its log.
    pub async fn until_ready(&self) -> anyhow::Result<()> {
        let ready = eventually("the operator is ready", SOON, async || self.ready().await).await;
        ready.with_context(|| format!("its log ends:\n{}", crate::process::tail(&self.launch.log())))
    }

    /// Whether it leads; not, if it does not answer.
    pub async fn leads(&self) -> bool {
        self.metric("fetchr_leader ").await.is_ok_and(|value| value > 0.0)
    }

    /// The sum of all lines of its metrics that begin so.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metric(&self, prefix: &str) -> anyhow::Result<f64> {
        Ok(sum(&self.ask("/metrics").await?.body, prefix))
    }

    /// All that its processes have logged.
    pub fn log(&self) -> String {
        let logs = (1..=self.starts()).map(|start| fs::read_to_string(self.launch.log_of(start)).unwrap_or_default());
        logs.collect()
    }
}

/// The sum of all lines of a page of metrics that begin so.
pub(crate) fn sum(page: &str, prefix: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(prefix));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

impl Launch {
    fn start(&self) -> anyhow::Result<()> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        *self.lock() = Some(Process::spawn(&self.name, self.command()?, &self.log())?);
        Ok(())
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(sibling("fetchr-operator")?);
        let defaults = self.folder.join("default-proxy.yaml");
        fs::write(&defaults, "{}\n")?;
        command.arg("run").env("KUBECONFIG", &self.kubeconfig);
        command.arg(format!("--namespace={OPERATOR_NAMESPACE}")).arg(format!("--pod-name={}", self.name));
        command.arg("--sidecar-image=fetchr-sidecar").arg("--default-proxy-file").arg(defaults);
        for (name, port) in ["webhook", "stream", "metrics", "api"].into_iter().zip(self.ports) {
            command.arg(format!("--{name}-port={port}"));
        }
        if let Some(clock) = &self.clock {
            // Time-outs are counted by the monotonic clock, which no administrator can set wrong.
            command.env("LD_PRELOAD", libfaketime()?).env("FAKETIME", clock);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.log_of(self.starts.load(Ordering::Relaxed))
    }

    fn log_of(&self, start: u32) -> PathBuf {
        self.folder.join(format!("{}-{start}.log", self.name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn supervise(launch: Arc<Launch>) {
    loop {
        let ended = launch.lock().as_mut().and_then(|process| process.check().err());
        if let Some(ended) = ended.filter(|_| !launch.stays_down.load(Ordering::Relaxed)) {
            eprintln!("{ended}");
            sleep(PAUSE_BEFORE_RESTART).await;
            if let Err(error) = launch.start() {
                eprintln!("{} can't be started again: {error:#}", launch.name);
                return;
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn libfaketime() -> anyhow::Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("could not read /usr/lib")?;
    let mut candidates = folders.filter_map(Result::ok).map(|folder| folder.path().join(LIBFAKETIME));
    candidates.find(|path| path.is_file()).context("libfaketime is missing: run e2e/tools/install")
}
