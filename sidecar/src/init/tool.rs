//! Running the kernel's tools: absolute paths, no shell, a deadline.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::Error;

const DEADLINE: Duration = Duration::from_secs(10);

/// Why a tool gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It can't be run.
    #[error("cannot run {command}: {source}")]
    Start {
        /// Program and arguments.
        command: String,
        /// What the system says.
        source: io::Error,
    },
    /// It said no.
    #[error("{command} failed: {stderr}")]
    Failed {
        /// Program and arguments.
        command: String,
        /// What it wrote to standard error, on one line.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("{command} gave no answer within {} s", DEADLINE.as_secs())]
    TimedOut {
        /// Program and arguments.
        command: String,
    },
}

/// Runs a tool to its end, `stdin` being its standard input, and returns its standard output.
pub(super) async fn run(program: &str, args: &[&str], stdin: &str) -> Result<String, ToolError> {
    let command = format!("{program} {}", args.join(" "));
    let answer = match timeout(DEADLINE, exchange(program, args, stdin)).await {
        Err(_) => return Err(ToolError::TimedOut { command }),
        Ok(Err(source)) => return Err(ToolError::Start { command, source }),
        Ok(Ok(answer)) => answer,
    };
    if answer.status.success() {
        return Ok(String::from_utf8_lossy(&answer.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&answer.stderr);
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(ToolError::Failed { command, stderr: lines.collect::<Vec<_>>().join("; ") })
}

async fn exchange(program: &str, args: &[&str], stdin: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().expect("stdin is piped");
    let write = async move {
        // A tool that fails early closes its input; its exit code says why.
        let _ = input.write_all(stdin.as_bytes()).await;
    };
    tokio::join!(write, child.wait_with_output()).1
}

/// Fails if this process lacks a capability, given without `CAP_`.
pub(super) fn require_capability(name: &'static str) -> Result<(), Error> {
    let bit = match name {
        "NET_ADMIN" => 12,
        "NET_RAW" => 13,
        _ => return Ok(()),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective_capabilities(&status) {
        Some(bits) if bits & (1 << bit) == 0 => Err(Error::Capability(name)),
        // Without /proc the tool itself will say it.
        _ => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether the image lacks the tool, or the kernel what it needs.
pub(super) fn is_absent(error: &ToolError) -> bool {
    match error {
        ToolError::Start { source, .. } => source.kind() == io::ErrorKind::NotFound,
        ToolError::Failed { stderr, .. } => ["Operation not supported", "No such file or directory", "Protocol not supported"]
            .iter()
            .any(|text| stderr.contains(text)),
        ToolError::TimedOut { .. } => false,
    }
}

/// What a person can do about a failure, to be put behind it.
pub(super) fn hint(error: &ToolError) -> &'static str {
    let ToolError::Failed { stderr, .. } = error else { return "" };
    let says = |text: &str| stderr.contains(text);
    if says("Operation not permitted") || says("Permission denied") {
        " (the container has its capabilities, so seccomp, AppArmor, SELinux or a sandboxed runtime forbids it)"
    } else if is_absent(error) {
        " (the node's kernel lacks nf_tables with NAT in the inet family: Linux 5.2 or later with the modules nf_tables, \
         nft_chain_nat and nft_redir)"
    } else if says("do you need to insmod") || says("Table does not exist") || says("No chain/target/match by that name") {
        " (the node's kernel lacks a module of iptables: ip_tables, iptable_nat, xt_REDIRECT, xt_owner, and their ip6 twins)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000003000\n";
        assert_eq!(effective_capabilities(status), Some(1 << 12 | 1 << 13));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[tokio::test]
    async fn failing_tool_is_quoted() {
        let error = run("/usr/bin/env", &["ls", "/nowhere/at/all"], "").await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[tokio::test]
    async fn missing_tool_is_named() {
        let error = run("/nowhere/nft", &["-f", "-"], "").await.unwrap_err();
        assert!(error.to_string().starts_with("cannot run /nowhere/nft -f -: "), "{error}");
    }

    #[tokio::test]
    async fn input_larger_than_a_pipe_passes() {
        let text = "x".repeat(1 << 20);
        assert_eq!(run("/usr/bin/env", &["cat"], &text).await.unwrap(), text);
    }
}
