//! The header of the PROXY protocol, versions 1 and 2, by which a load balancer says who its client is
//! (haproxy.org/download/3.0/doc/proxy-protocol.txt).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What version 1 begins with.
const PREFIX: &[u8] = b"PROXY ";

/// Bytes of a line of version 1, its end included.
const MAX_LINE: usize = 107;

/// Bytes of what follows the fixed part of version 2: addresses, and fields that nobody here reads.
const MAX_REST: usize = 4096;

/// Bytes of a header, at most.
pub(crate) const MAX_HEADER: usize = 16 + MAX_REST;

/// A whole header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    /// Its bytes; what follows is the client's.
    pub(crate) len: usize,
    /// The client. None if the load balancer speaks for itself, as in its health checks, or knows no address.
    pub(crate) client: Option<SocketAddr>,
}

/// The bytes are no header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NoHeader;

/// Reads the first bytes of a connection; nothing if more are needed.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    if begins(bytes, SIGNATURE) {
        return if bytes.len() < 16 { Ok(None) } else { version_2(bytes) };
    }
    if begins(bytes, PREFIX) {
        return version_1(bytes);
    }
    Err(NoHeader)
}

/// Whether the bytes, as far as they have come, are the beginning of a pattern, or begin with it.
fn begins(bytes: &[u8], pattern: &[u8]) -> bool {
    let len = bytes.len().min(pattern.len());
    bytes[..len] == pattern[..len]
}

fn version_1(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let window = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(NoHeader) };
    };
    let len = end + 2;
    let line = str::from_utf8(&bytes[..end]).map_err(|_| NoHeader)?;
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", source, destination, port, own] => {
            Some(endpoint::<Ipv4Addr>(source, port)?).filter(|_| endpoint::<Ipv4Addr>(destination, own).is_ok())
        }
        ["PROXY", "TCP6", source, destination, port, own] => {
            Some(endpoint::<Ipv6Addr>(source, port)?).filter(|_| endpoint::<Ipv6Addr>(destination, own).is_ok())
        }
        _ => return Err(NoHeader),
    };
    // An address that we could not read must not pass as one that the load balancer does not know.
    if client.is_none() && words[1] != "UNKNOWN" {
        return Err(NoHeader);
    }
    Ok(Some(Header { len, client }))
}

fn endpoint<T: Into<IpAddr> + std::str::FromStr>(address: &str, port: &str) -> Result<SocketAddr, NoHeader> {
    let address: T = address.parse().map_err(|_| NoHeader)?;
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    let port = port.parse().ok().filter(|_| is_number).ok_or(NoHeader)?;
    Ok(SocketAddr::new(address.into(), port))
}

fn version_2(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let (command, family) = (bytes[12], bytes[13]);
    let rest = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if command >> 4 != 2 || rest > MAX_REST {
        return Err(NoHeader);
    }
    let len = 16 + rest;
    if bytes.len() < len {
        return Ok(None);
    }
    let rest = &bytes[16..len];
    let client = match (command & 0xf, family) {
        (0, _) => None, // LOCAL: whatever else it says is to be ignored
        (1, 0x11) => Some(packed::<4>(rest)?),
        (1, 0x21) => Some(packed::<16>(rest)?),
        (1, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => None, // no address, or none of TCP
        _ => return Err(NoHeader),
    };
    Ok(Some(Header { len, client }))
}

/// Both addresses, then both ports; the source is the first of each.
fn packed<const N: usize>(rest: &[u8]) -> Result<SocketAddr, NoHeader>
where
    IpAddr: From<[u8; N]>,
{
    let address: [u8; N] = rest.get(..N).and_then(|bytes| bytes.try_into().ok()).ok_or(NoHeader)?;
    let port = rest.get(2 * N..2 * N + 4).ok_or(NoHeader)?;
    Ok(SocketAddr::new(address.into(), u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    fn client(bytes: &[u8]) -> Result<Option<String>, NoHeader> {
        let header = read(bytes)?.expect("a whole header");
        assert_eq!(header.len, bytes.len());
        Ok(header.client.map(|client| client.to_string()))
    }

    #[test]
    fn client_of_each_version_is_read() {
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(client(b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"), some("192.0.2.7:56324"));
        assert_eq!(client(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 443\r\n"), some("[2001:db8::7]:1"));
        let four = [192, 0, 2, 7, 192, 0, 2, 1, 0xdc, 0x04, 1, 0xbb];
        assert_eq!(client(&v2(0x21, 0x11, &four)), some("192.0.2.7:56324"));
        let with_field = [&four[..], &[0x04, 0, 1, 0]].concat();
        assert_eq!(client(&v2(0x21, 0x11, &with_field)), some("192.0.2.7:56324"));
        let six = [&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0, 1, 0, 2]].concat();
        assert_eq!(client(&v2(0x21, 0x21, &six)), some("[2001:db8::7]:1"));
    }

    #[test]
    fn load_balancer_may_speak_for_itself() {
        for header in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
            &v2(0x20, 0x00, b""),
            &v2(0x20, 0x11, b"x"),
            &v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(client(header), Ok(None), "{header:?}");
        }
    }

    #[test]
    fn beginning_of_a_header_waits() {
        for header in [b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n".to_vec(), v2(0x21, 0x11, &[0; 12])] {
            for len in 0..header.len() {
                assert_eq!(read(&header[..len]), Ok(None), "{len}");
            }
            let followed = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&followed).unwrap().unwrap().len, header.len());
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE));
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n",
            b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 nowhere 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 +1 2\r\n",
            b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY \xff\xff\r\n",
            long.as_bytes(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x41, &[0; 12]),
            &v2(0x21, 0x11, &[0; MAX_REST + 1]),
        ] {
            assert_eq!(read(other), Err(NoHeader), "{:?}", String::from_utf8_lossy(other));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_claim_more_than_there_is(
            rest in proptest::collection::vec(any::<u8>(), 0..64),
            kind in 0..3_usize,
        ) {
            let bytes = match kind {
                0 => rest,
                1 => [PREFIX, &rest].concat(),
                _ => [&SIGNATURE[..], &rest].concat(),
            };
            if let Ok(Some(header)) = read(&bytes) {
                prop_assert!(header.len <= bytes.len() && header.len <= MAX_HEADER);
            }
        }
    }
}
