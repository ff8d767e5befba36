//! What the injector tells `fetchr-init`, by environment or by flag.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use clap::Args;
use ipnet::IpNet;
use wire::env;

/// Port of the sidecar's explicit forward proxy; fixed.
const FORWARD_PORT: u16 = 4612;

/// What is redirected and what is left alone.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// TCP ports of the application whose traffic is redirected, comma-separated
    #[arg(long, env = env::INBOUND_PORTS, default_value = "", value_name = "PORTS")]
    pub inbound_ports: Ports,
    /// TCP ports of the application that are left alone, comma-separated
    #[arg(long, env = env::SKIP_INBOUND_PORTS, default_value = "", value_name = "PORTS")]
    pub skip_inbound_ports: Ports,
    /// TCP destination ports whose traffic from the application is redirected, comma-separated
    #[arg(long, env = env::OUTBOUND_PORTS, default_value = "", value_name = "PORTS")]
    pub outbound_ports: Ports,
    /// Destinations that are left alone, comma-separated, such as 10.0.0.0/8 or fd00::/8
    #[arg(long, env = env::SKIP_CIDRS, default_value = "", value_name = "CIDRS")]
    pub skip_cidrs: Nets,
    /// User of the sidecar, whose traffic is never redirected
    #[arg(long, env = env::PROXY_UID, default_value_t = 2733, value_name = "UID")]
    pub proxy_uid: u32,
    /// Port of the sidecar for inbound traffic
    #[arg(long, env = env::INBOUND_PORT, default_value_t = 4610, value_name = "PORT")]
    pub inbound_port: u16,
    /// Port of the sidecar for outbound traffic
    #[arg(long, env = env::OUTBOUND_PORT, default_value_t = 4611, value_name = "PORT")]
    pub outbound_port: u16,
    /// Port of the sidecar's admin interface
    #[arg(long, env = env::ADMIN_PORT, default_value_t = 4620, value_name = "PORT")]
    pub admin_port: u16,
    /// Port of the sidecar's metrics, health and probes
    #[arg(long, env = env::METRICS_PORT, default_value_t = 4621, value_name = "PORT")]
    pub metrics_port: u16,
}

impl Settings {
    /// Inbound ports that are neither skipped nor the sidecar's own: redirecting its own would make it talk to itself.
    pub fn intercepted_inbound(&self) -> Vec<u16> {
        let own = [self.inbound_port, self.outbound_port, FORWARD_PORT, self.admin_port, self.metrics_port];
        let ports = self.inbound_ports.0.difference(&self.skip_inbound_ports.0);
        ports.copied().filter(|port| !own.contains(port)).collect()
    }
}

/// TCP ports, each once, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ports(pub BTreeSet<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |item: &str| match item.parse() {
            Ok(0) | Err(_) => Err(format!("`{item}` is not a TCP port: want numbers from 1 to 65535, as in `80,8080`")),
            Ok(port) => Ok(port),
        };
        items(text).map(port).collect::<Result<_, _>>().map(Self)
    }
}

/// Networks, without those that lie in another.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Nets(pub Vec<IpNet>);

impl FromStr for Nets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = |item: &str| {
            let net = item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| format!("`{item}` is not a network: want addresses with a prefix, as in `10.0.0.0/8,fd00::/8`"))
        };
        let nets = items(text).map(net).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(IpNet::aggregate(&nets)))
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
impl Settings {
    pub(crate) fn for_test() -> Self {
        Self {
            inbound_ports: Ports::default(),
            skip_inbound_ports: Ports::default(),
            outbound_ports: Ports::default(),
            skip_cidrs: Nets::default(),
            proxy_uid: 2733,
            inbound_port: 4610,
            outbound_port: 4611,
            admin_port: 4620,
            metrics_port: 4621,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_sorted_and_each_is_kept_once() {
        let ports: Ports = " 9000, 80,9000,".parse().unwrap();
        assert_eq!(ports.0.into_iter().collect::<Vec<_>>(), [80, 9000]);
        assert_eq!("".parse(), Ok(Ports::default()));
    }

    #[test]
    fn wrong_port_is_named() {
        for (text, wrong) in [("80,0", "`0`"), ("80,http", "`http`"), ("65536", "`65536`"), ("-1", "`-1`")] {
            let problem = text.parse::<Ports>().unwrap_err();
            assert!(problem.starts_with(wrong), "{problem}");
        }
    }

    #[test]
    fn networks_lose_host_bits_and_those_within_another() {
        let nets: Nets = "10.1.2.3/8,10.4.0.0/16,192.0.2.7,fd00::1/8".parse().unwrap();
        assert_eq!(nets.0.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    }

    #[test]
    fn wrong_network_is_named() {
        for (text, wrong) in [("10.0.0.0/33", "`10.0.0.0/33`"), ("10.0.0.0/8,all", "`all`")] {
            let problem = text.parse::<Nets>().unwrap_err();
            assert!(problem.starts_with(wrong), "{problem}");
        }
    }
}
