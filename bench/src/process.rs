//! Child processes: pinned to a core, measured through `/proc`, ended on drop.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A child process of the benchmark.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a command on some cores, such as `1` or `0-1`.
    pub(crate) fn pinned(cores: &str, command: &[String], log: &Path) -> Result<Self> {
        let mut words = vec!["taskset".to_owned(), "-c".to_owned(), cores.to_owned()];
        words.extend_from_slice(command);
        Self::start(&words, log)
    }

    /// Starts a command.
    pub(crate) fn start(command: &[String], log: &Path) -> Result<Self> {
        let output = fs::File::create(log)?;
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("could not start {}", command.join(" ")))?;
        Ok(Self { name: command.join(" "), child })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of the process and its children so far.
    pub(crate) fn cpu(&self) -> Duration {
        // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u32;
        let ticks: u32 = tree(self.child.id()).into_iter().filter_map(cpu_ticks).sum();
        Duration::from_secs(1) * ticks / ticks_per_second
    }

    /// Waits until it has used no CPU for a second, as after its start; at most a minute.
    pub(crate) fn wait_until_quiet(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = self.cpu();
        while Instant::now() < deadline {
            thread::sleep(Duration::from_secs(1));
            let now = self.cpu();
            // A tick is for what any process does now and then.
            if now - before <= Duration::from_millis(10) {
                return;
            }
            before = now;
        }
    }

    /// Resident memory of the process and its children, in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        tree(self.child.id()).into_iter().filter_map(rss_kib).sum()
    }

    /// Waits until something accepts connections at `address`.
    pub(crate) fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it listened on {address}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} does not listen on {address} after 20 s", self.name);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the pid is that of our own child, which has not been waited for, so it cannot belong to another process.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many descriptors a process may have open, this one and its children from now on: all that the system allows them.
pub(crate) fn descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local that outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
    limit.rlim_cur
}

/// Keeps the calling thread on one core.
pub(crate) fn pin_thread(core: usize) {
    // SAFETY: the set is a local that outlives the calls, and a core's number is bounded by its size. A refusal leaves the thread free.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn tree(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all = vec![pid];
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        all.extend(tree(child));
    }
    all
}

fn cpu_ticks(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?)
}

fn rss_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
