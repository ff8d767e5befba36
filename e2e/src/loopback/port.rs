//! Ports for programs that have to be told one, and are started again on it.

use std::net::{Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context;

/// Below those that the kernel gives to outgoing connections, which would take a port from under a program that is about to bind it.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that nobody listens on, on any address, and that this process has not given out before.
///
/// # Errors
/// All are in use.
pub(crate) fn free() -> anyhow::Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Programs of tests that run side by side begin at different places.
    let start = u16::try_from(std::process::id() * 101 % u32::from(COUNT))?;
    let free = (0..COUNT).find_map(|_| {
        let offset = u32::from(start) + u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from(offset % u32::from(COUNT)).ok()?;
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok().then_some(port)
    });
    free.context("no port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice() {
        let ports: std::collections::BTreeSet<u16> = (0..100).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 100);
    }
}
