//! The sidecar's own sockets, to which nothing is ever forwarded: it would come back for ever, or reach the admin port with the
//! sidecar's rights.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::RwLock,
};

/// Addresses that the sidecar listens on.
#[derive(Debug, Default)]
pub(crate) struct Own {
    addresses: RwLock<HashSet<SocketAddr>>,
}

impl Own {
    /// Adds an address that the sidecar listens on.
    pub(crate) fn add(&self, address: SocketAddr) {
        if let Ok(mut addresses) = self.addresses.write() {
            addresses.insert(address);
        }
    }

    /// Removes one that it listens on no more.
    pub(crate) fn remove(&self, address: &SocketAddr) {
        if let Ok(mut addresses) = self.addresses.write() {
            addresses.remove(address);
        }
    }

    /// Whether a connection to this address would reach the sidecar.
    pub(crate) fn has(&self, destination: SocketAddr) -> bool {
        self.addresses.read().is_ok_and(|addresses| {
            addresses.iter().any(|own| own.port() == destination.port() && takes(own.ip(), destination.ip()))
        })
    }
}

/// Whether a socket that listens on one address takes connections to the other.
fn takes(listens: IpAddr, asked: IpAddr) -> bool {
    let asked = match asked.to_canonical() {
        // What the system makes of them.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        asked => asked,
    };
    match listens {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => asked.is_ipv4() && is_here(asked),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_here(asked), // such sockets take IPv4 too
        listens => listens.to_canonical() == asked,
    }
}

/// Whether an address is one of this host: the system would use it to speak to itself. Nothing is sent to find out.
fn is_here(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let towards = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 1))?;
        socket.local_addr()
    };
    address.is_loopback() || towards().is_ok_and(|local| local.ip().to_canonical() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_are_known_by_every_address_that_reaches_them_and_by_no_other() {
        let own = Own::default();
        own.add("127.0.0.1:4620".parse().unwrap());
        own.add("[::]:4610".parse().unwrap());
        own.add("0.0.0.0:4621".parse().unwrap());
        let has = |address: &str| own.has(address.parse().unwrap());
        for mine in [
            "127.0.0.1:4620",
            "[::ffff:127.0.0.1]:4620",
            "0.0.0.0:4620",
            "127.9.9.9:4610",
            "[::1]:4610",
            "[::]:4610",
            "127.0.0.1:4621",
        ] {
            assert!(has(mine), "{mine}");
        }
        for other in ["127.0.0.1:80", "127.9.9.9:4620", "[::1]:4620", "192.0.2.1:4610", "192.0.2.1:4620", "[::1]:4621"] {
            assert!(!has(other), "{other}");
        }
    }
}
