//! Ports that are taken, and by whom.

use std::{fs, io, net::TcpListener};

use crate::failure::Failure;

/// A port that is about to be opened.
#[derive(Debug)]
pub(super) struct Port {
    address: String,
    port: u16,
    what: String,
    change: String,
}

impl Port {
    /// `what` it is for, and what to `change` to get another.
    pub(super) fn new(address: &str, port: u16, what: impl Into<String>, change: impl Into<String>) -> Self {
        Self { address: address.to_owned(), port, what: what.into(), change: change.into() }
    }
}

/// Opens and closes each, so that a failure can say more than the operating system does.
pub(super) fn check(ports: &[Port]) -> Result<(), Failure> {
    let mut open = Vec::new();
    for Port { address, port, what, change } in ports {
        let shown = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        match TcpListener::bind((address.as_str(), *port)) {
            // Kept until all are open: two of ours on one port collide, too.
            Ok(listener) => open.push(listener),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                let who = holder(*port).map_or_else(String::new, |who| format!(" by {who}"));
                return Err(Failure::new(format!("port {port} is taken{who}"))
                    .at(format!("{shown}, for {what}"))
                    .hint(format!("choose another by {change}")));
            }
            Err(e) => {
                return Err(
                    Failure::new(format!("{shown} can't be opened for {what}: {e}")).hint(format!("choose another by {change}"))
                );
            }
        }
    }
    Ok(())
}

/// The process that listens on a port, as far as this user may see.
fn holder(port: u16) -> Option<String> {
    let inode =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| listening_inode(&fs::read_to_string(table).ok()?, port))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())) {
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        if links.any(|link| link.to_string_lossy() == socket) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// The inode of the socket that listens on a port, from a table of proc(5).
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let found = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        if found == port && *state == LISTEN { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_port_names_the_process_and_what_to_change() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = taken.local_addr().expect("it is bound").port();
        let failure = check(&[Port::new("127.0.0.1", port, "metrics", "--metrics-port")]).expect_err("the port is taken");
        let text = failure.render(crate::output::Paint::off());
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        assert!(text.contains("for metrics\n  choose another by --metrics-port"), "{text}");
    }

    #[test]
    fn free_ports_are_no_failure_and_stay_free() {
        let ports = [Port::new("127.0.0.1", 0, "a", "a"), Port::new("127.0.0.1", 0, "b", "b")];
        assert!(check(&ports).is_ok());
    }
}
