//! Addresses, networks, hosts and upstreams.

use std::net::IpAddr;

use ipnet::IpNet;

use super::note;
use crate::problems::{FieldPath, Problems};

/// Pattern of a host, without a port; `*.` in front stands for one label or more.
pub(crate) const HOST_PATTERN: &str = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// Pattern of a network.
pub(crate) const CIDR_PATTERN: &str = "^[0-9a-fA-F:.]+/[0-9]{1,3}$";

/// Pattern of an upstream.
pub(crate) const UPSTREAM_PATTERN: &str =
    r"^(http|h2c|https)://([a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?$";

/// Pattern of a server's address.
pub(crate) const ENDPOINT_PATTERN: &str = r"^([a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$";

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UpstreamScheme {
    /// HTTP/1.1 in clear.
    Http,
    /// HTTP/2 in clear, with prior knowledge.
    H2c,
    /// HTTP/2 or HTTP/1.1 over TLS, as the upstream chooses (ALPN).
    Https,
}

/// Where a listener sends its requests.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamAddress {
    /// How it is spoken to.
    pub scheme: UpstreamScheme,
    /// A name or an IP address; IPv6 without brackets.
    pub host: String,
    /// Its port; unless written 80, or 443 with TLS.
    pub port: u16,
}

/// Reads a listener's `upstream`, such as `http://127.0.0.1:9000`.
pub fn parse_upstream(upstream: &str) -> Result<UpstreamAddress, String> {
    let wrong = || {
        format!(
            "{upstream:?} is not an upstream: write http://HOST:PORT, https://HOST:PORT, or h2c://HOST:PORT for HTTP/2 in clear"
        )
    };
    let (scheme, rest) = upstream.split_once("://").ok_or_else(wrong)?;
    let scheme = match scheme {
        "http" => UpstreamScheme::Http,
        "h2c" => UpstreamScheme::H2c,
        "https" => UpstreamScheme::Https,
        _ => return Err(wrong()),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = split_port(authority).ok_or_else(wrong)?;
    let port = match port {
        Some(port) => {
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is not a port: write 1 to 65535"))?
        }
        None if scheme == UpstreamScheme::Https => 443,
        None => 80,
    };
    if host.is_empty() || host.contains(['/', '?', '#', '@']) || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(UpstreamAddress { scheme, host: host.to_owned(), port })
}

/// Reads a server's address, such as `redis.shop.svc:6379` or `[2001:db8::1]`; IPv6 is returned without brackets.
pub fn parse_endpoint(endpoint: &str, default_port: u16) -> Result<(String, u16), String> {
    let (host, port) = split_port(endpoint)
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| format!("{endpoint:?} is not an address: write HOST:PORT"))?;
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => Some(default_port),
    };
    let port = port.ok_or_else(|| format!("{endpoint:?} has no port: write 1 to 65535"))?;
    Ok((host.to_owned(), port))
}

pub(crate) fn check_endpoint(endpoint: &str, at: &FieldPath, problems: &mut Problems) {
    note(parse_endpoint(endpoint, 1), at, problems);
}

/// Host and port of `host:port`, `[v6]:port`, `host` or `[v6]`.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return if rest.is_empty() { Some((host, None)) } else { Some((host, Some(rest.strip_prefix(':')?))) };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

pub(crate) fn check_upstream(upstream: &str, at: &FieldPath, problems: &mut Problems) {
    note(parse_upstream(upstream), at, problems);
}

pub(crate) fn check_address(address: &str, at: &FieldPath, problems: &mut Problems) {
    if address.parse::<IpAddr>().is_err() {
        problems.add(at, format!("{address:?} is not an IP address: write one such as 127.0.0.1 or ::1"));
    }
}

pub(crate) fn check_cidrs(cidrs: &[String], at: &FieldPath, problems: &mut Problems) {
    for (index, cidr) in cidrs.iter().enumerate() {
        let message = match cidr.parse::<IpNet>() {
            Err(_) => format!("{cidr:?} is not a network: write address/prefix length, such as 10.0.0.0/8 or fd00::/8"),
            Ok(net) if net.trunc() != net => format!("{cidr} has bits set behind its prefix: write {}", net.trunc()),
            Ok(_) => continue,
        };
        problems.add(&at.index(index), message);
    }
}

pub(crate) fn check_host_patterns(hosts: &[String], at: &FieldPath, problems: &mut Problems) {
    for (index, host) in hosts.iter().enumerate() {
        check_host_pattern(host, &at.index(index), problems);
    }
}

/// A pattern over what looks like an address is a mistake: it can match nothing.
pub(crate) fn check_host_pattern(host: &str, at: &FieldPath, problems: &mut Problems) {
    if let Some(suffix) = host.strip_prefix("*.")
        && suffix.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        problems.add(at, format!("{host} can match no host: addresses have no patterns; write the address, or a name"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read_with_their_port() {
        let read = |upstream: &str| parse_upstream(upstream).map(|address| (address.scheme, address.host, address.port));
        assert_eq!(read("http://127.0.0.1:9000"), Ok((UpstreamScheme::Http, "127.0.0.1".to_owned(), 9000)));
        assert_eq!(read("http://app.shop.svc/"), Ok((UpstreamScheme::Http, "app.shop.svc".to_owned(), 80)));
        assert_eq!(read("https://app.example"), Ok((UpstreamScheme::Https, "app.example".to_owned(), 443)));
        assert_eq!(read("h2c://[::1]:9000"), Ok((UpstreamScheme::H2c, "::1".to_owned(), 9000)));
    }

    #[test]
    fn what_is_no_upstream_is_refused() {
        for upstream in [
            "127.0.0.1:9000",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:65536",
            "http://a:b",
            "http://a/path",
            "http://u@a",
            "http://[::1",
            "http://::1:80",
            "http://[zz]:80",
            "http://a b",
        ] {
            assert!(parse_upstream(upstream).is_err(), "{upstream}");
        }
    }
}
