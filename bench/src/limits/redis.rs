//! A Redis of the benchmark's own.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    peers::{local, words},
    process::Process,
};

/// Where it listens.
pub(super) const PORT: u16 = 18070;

/// A server that keeps nothing on disk.
pub(super) struct Redis(Process);

impl Redis {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let mut command = words(&["redis-server", "--bind", "127.0.0.1", "--port", &PORT.to_string(), "--save", ""]);
        command.extend(words(&["--appendonly", "no", "--dir", &folder.display().to_string()]));
        let mut process = Process::start(&command, &folder.join("redis.log")).context("`make bench` installs redis-server")?;
        process.wait_for(local(PORT))?;
        Ok(Self(process))
    }

    /// Ends it at once, as a crash would.
    pub(super) fn kill(self) {
        // SAFETY: the pid is that of our own child, which has not been waited for, so it cannot belong to another process.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGKILL) };
    }

    /// Scripts that it has run.
    pub(super) fn scripts(&self) -> Result<f64> {
        let output = Command::new("redis-cli").args(["-p", &PORT.to_string(), "info", "commandstats"]).output()?;
        ensure!(output.status.success(), "redis-cli: {}", String::from_utf8_lossy(&output.stderr));
        Ok(scripts(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Of lines like `cmdstat_evalsha:calls=3,usec=...`.
fn scripts(stats: &str) -> f64 {
    let lines = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
    lines.filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn scripts_are_added_up() {
        let stats =
            "# Commandstats\r\ncmdstat_get:calls=7,usec=1\r\ncmdstat_eval:calls=1,usec=9\r\ncmdstat_evalsha:calls=41,usec=9\r\n";
        assert_eq!(super::scripts(stats), 42.0);
    }
}
