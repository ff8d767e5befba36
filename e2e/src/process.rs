//! Programs that a test or the node runs: with a log file each, and never left behind.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

const LINES_SHOWN: usize = 15;

/// A running program. It is killed when this value is dropped, and by the kernel when this process ends in any way.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command` with its output in `log`.
    ///
    /// # Errors
    /// The log can't be written, or the program can't be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("could not create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = spawn_bound(command).with_context(|| format!("could not start {name}"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ids of the processes that it has started and that run.
    pub fn children(&self) -> Vec<u32> {
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    /// The program's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Succeeds while the program runs.
    ///
    /// # Errors
    /// It has ended; the message holds the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// Asks the program to end by SIGTERM, and kills it when it has not after `grace`.
    ///
    /// # Errors
    /// Waiting for it failed.
    pub fn stop(mut self, grace: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < grace {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends a signal, `libc::SIGTERM` for example. A program that has ended gets none.
    pub fn signal(&mut self, signal: i32) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // SAFETY: kill(2) takes no pointers; the child was not reaped, so the id is still its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("{} ended ({status}); the end of {}:\n{}", self.name, self.log.display(), tail(&self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end and returns what it printed on stdout.
///
/// # Errors
/// It can't be started, or it failed: the message holds the command and what it printed on stderr.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("could not run {}", spelled(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", spelled(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The processes of a container, whose control group bears the container's id.
pub(crate) fn of_container(id: &str) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("could not read /proc")? {
        let process = entry?;
        // Most entries are no processes, and a process may end meanwhile.
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if groups.lines().any(|line| line.contains(id)) {
            found.extend(process.file_name().to_string_lossy().parse::<u32>());
        }
    }
    Ok(found)
}

/// The last lines of a log, indented.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    shown.iter().map(|line| format!("    {line}\n")).collect()
}

fn spelled(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}

/// Spawns from a thread that never ends: the kernel's "kill me when my parent dies" is about the parent's thread, and the
/// threads of tests come and go.
fn spawn_bound(mut command: Command) -> anyhow::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Who ordered waits for the reply.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    // SAFETY: prctl(2) is async-signal-safe and takes no pointers.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).map_err(|_| anyhow!("the spawning thread has ended"))?;
    Ok(answer.recv().context("the spawning thread has ended")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn ended_program_is_reported_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::spawn("sh", shell("echo no such port >&2; exit 3"), &folder.path().join("log")).unwrap();
        let error = loop {
            match process.check() {
                Ok(()) => std::thread::yield_now(),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("exit status: 3") && error.contains("no such port"), "{error}");
    }

    #[test]
    fn program_outlives_the_thread_that_started_it_and_ends_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut process =
            std::thread::spawn(move || Process::spawn("sleep", shell("exec sleep 1000"), &log).unwrap()).join().unwrap();
        process.check().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }

    #[test]
    fn failed_command_is_spelled_out() {
        let error = output(&mut shell("echo wrong >&2; exit 1")).unwrap_err().to_string();
        assert!(error.starts_with("sh -c echo wrong") && error.ends_with("wrong"), "{error}");
    }
}
