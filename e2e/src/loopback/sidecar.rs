//! The sidecar of the application's pod as a process, with streams to all operators.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http::HeaderMap;
use wire::env;

use super::operator::{stream_address, sum};
use super::{Loopback, NAME, NAMESPACE, OPERATOR_NAMESPACE, SOON, port};
use crate::origin::get::get;
use crate::process::{Process, tail};
use crate::stream::token_of;
use crate::tools::sibling;
use crate::wait::eventually;

const POD: &str = "web-1";

/// A running sidecar. It ends when this value is dropped.
pub struct Sidecar {
    process: Process,
    log: PathBuf,
    metrics_port: u16,
}

impl Loopback {
    /// Starts the sidecar, or starts it again from its own folder, with a stream to each of so many operators. An operator must
    /// have been ready.
    ///
    /// # Errors
    /// It can't be started: this is not root, or a program was not built.
    pub async fn sidecar(&self, operators: u8) -> anyhow::Result<Sidecar> {
        let token = self.folder().join("token");
        if !token.exists() {
            fs::write(&token, token_of(&self.client, &self.pod(POD).await?).await?)?;
            fs::write(self.folder().join("ca"), self.ca().await?)?;
            fs::write(self.folder().join("uid"), self.pod(POD).await?.metadata.uid.unwrap_or_default())?;
            fs::write(self.folder().join("hosts"), hosts(operators))?;
        }
        let metrics_port = port::free()?;
        let log = self.folder().join(format!("sidecar-{metrics_port}.log"));
        let process = Process::spawn("fetchr-proxy", self.proxy_command(metrics_port)?, &log)?;
        Ok(Sidecar { process, log, metrics_port })
    }

    /// `fetchr-proxy` in a mount namespace of its own, where the operators' name has their addresses.
    fn proxy_command(&self, metrics_port: u16) -> anyhow::Result<Command> {
        let file = |name: &str| self.folder().join(name);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", "mount --bind \"$1\" /etc/hosts && exec \"$2\" run", "sh"]);
        command.arg(file("hosts")).arg(sibling("fetchr-proxy")?);
        let (uid, ca) = (fs::read_to_string(file("uid"))?, fs::read_to_string(file("ca"))?);
        for (name, value) in [
            (env::POD_NAMESPACE, NAMESPACE),
            (env::POD_NAME, POD),
            (env::POD_UID, &uid),
            (env::POD_IPS, "127.0.0.1"),
            (env::PROXY, &format!("{NAMESPACE}/{NAME}")),
            (env::WORKLOAD, &format!("Deployment/{NAME}")),
            (env::OPERATOR, &format!("{}:{}", operators_name(), self.stream_port)),
            (env::CA_BUNDLE, &ca),
            (env::PLAN_KEYS, ""),
            (env::INTERCEPT, "Explicit"),
            (env::ON_NO_CONFIG, "Block"),
            (env::ADMIN_PORT, "0"),
            (env::METRICS_PORT, &metrics_port.to_string()),
            (env::LOG_FORMAT, "Json"),
        ] {
            command.env(name, value);
        }
        command.env(env::TOKEN_FILE, file("token")).env(env::PLAN_DIR, file("plan")).env(env::STATE_DIR, file("state"));
        Ok(command)
    }
}

impl Sidecar {
    /// Waits until it is ready, and returns how long that took.
    ///
    /// # Errors
    /// It was not in time; the message holds the end of its log.
    pub async fn until_ready(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let ready = eventually("the sidecar is ready", SOON, async || {
            let answer = get(&self.url("/readyz")?, &HeaderMap::new()).await?;
            ensure!(answer.status == 200, "it says {}", answer.body.trim());
            Ok(())
        });
        ready.await.with_context(|| format!("its log ends:\n{}", tail(&self.log)))?;
        Ok(began.elapsed())
    }

    /// The sum of all lines of its metrics that begin so.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metric(&self, prefix: &str) -> anyhow::Result<f64> {
        Ok(sum(&self.page().await?, prefix))
    }

    /// All of its metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn page(&self) -> anyhow::Result<String> {
        Ok(get(&self.url("/metrics")?, &HeaderMap::new()).await?.body)
    }

    /// Resident memory in bytes, of supervisor and worker.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let resident = |id: u32| -> anyhow::Result<u64> {
            let status = fs::read_to_string(format!("/proc/{id}/status")).context("the sidecar has ended")?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has no memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        self.process.children().into_iter().chain([self.process.id()]).map(resident).sum()
    }

    /// Kills the process that serves, and waits until it is dead; its supervisor lives. Returns when it was killed.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_worker(&self) -> anyhow::Result<Instant> {
        let worker = async || self.process.children().first().copied().context("no worker runs");
        let worker = i32::try_from(eventually("a worker runs", SOON, worker).await?)?;
        let killed = Instant::now();
        // SAFETY: kill(2) takes no pointers; the supervisor reaps its child only after it has died.
        ensure!(unsafe { libc::kill(worker, libc::SIGKILL) } == 0, "it could not be killed");
        let dead = async || (!self.process.children().contains(&worker.cast_unsigned())).then_some(()).context("it lives");
        eventually("the worker is dead", SOON, dead).await?;
        Ok(killed)
    }

    fn url(&self, path: &str) -> anyhow::Result<http::Uri> {
        Ok(format!("http://127.0.0.1:{}{path}", self.metrics_port).parse()?)
    }
}

/// The name that the operators' certificates carry.
pub(super) fn operators_name() -> String {
    format!("fetchr-streams.{OPERATOR_NAMESPACE}.svc")
}

fn hosts(operators: u8) -> String {
    let streams = (0..operators).map(|index| format!("{} {}\n", stream_address(index), operators_name()));
    format!("127.0.0.1 localhost\n{}", streams.collect::<String>())
}
