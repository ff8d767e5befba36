//! The first message of a TLS client, looked at and left as it is: which host it is for.
//!
//! rustls reads it, so that no parser of our own meets hostile bytes.

use std::sync::Arc;

use rustls::server::Acceptor;

/// Bytes within which the message has to be whole. Those with post-quantum keys have about 1.7 KiB.
pub(crate) const MAX_HELLO: usize = 16 << 10;

/// What the first bytes of a client are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Hello {
    /// More bytes are needed.
    Unfinished,
    /// It is one, for this host, in lower case.
    For(Arc<str>),
    /// It is one and names no host, or none that could be one.
    Nameless,
    /// It is none, or one that can't be read.
    Unreadable,
}

/// Whether a first byte begins a record of the handshake protocol (RFC 8446, section 5.1).
pub(crate) fn is_handshake(bytes: &[u8]) -> bool {
    bytes.first() == Some(&22)
}

/// Reads the first bytes of a client.
pub(crate) fn read(bytes: &[u8]) -> Hello {
    if !is_handshake(bytes) && !bytes.is_empty() {
        return Hello::Unreadable;
    }
    let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Hello::Unreadable;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return hello.server_name().map_or(Hello::Nameless, |name| Hello::For(name.to_ascii_lowercase().into()));
            }
            Ok(None) => {}
            Err(_) => return Hello::Unreadable,
        }
    }
    if bytes.len() < MAX_HELLO { Hello::Unfinished } else { Hello::Unreadable }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// The first message of a client that asks for a host.
    pub(crate) fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(super::super::provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(config.into(), ServerName::try_from(name).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn host_is_read_once_the_message_is_whole() {
        let bytes = hello("Shop.example");
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), Hello::Unfinished, "{len} of {}", bytes.len());
        }
        assert_eq!(read(&bytes), Hello::For("shop.example".into()));
        assert_eq!(read(&[&bytes[..], b"more"].concat()), Hello::For("shop.example".into()));
    }

    #[test]
    fn message_in_several_records_is_one() {
        let bytes = hello("shop.example");
        let (one, other) = bytes[5..].split_at(100);
        let record = |part: &[u8]| [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        assert_eq!(read(&[record(one), record(other)].concat()), Hello::For("shop.example".into()));
    }

    #[test]
    fn message_without_a_name_has_none() {
        assert_eq!(read(&hello("192.0.2.1")), Hello::Nameless);
    }

    #[test]
    fn what_is_no_hello_is_told_at_once() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], &[22, 3, 1, 0, 4, 2, 0, 0, 0], &[22, 9, 9, 255, 255], &[21, 3, 1, 0, 2, 2, 40]]
        {
            assert_eq!(read(other), Hello::Unreadable, "{other:?}");
        }
        let endless = [&[22, 3, 1, 64, 0, 1, 0, 255, 255][..], &[0; MAX_HELLO]].concat();
        assert_eq!(read(&endless), Hello::Unreadable);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..500_usize, by in any::<u8>()) {
            read(&bytes);
            let mut changed = hello("shop.example");
            let at = at % changed.len();
            changed[at] = changed[at].wrapping_add(by);
            read(&changed);
        }
    }
}
