//! Connections to upstreams: where they go, how they are opened, kept, shared and closed.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use ::h2::Reason;
use crds::check::{self, UpstreamScheme};

use crate::{
    h1::{chunked::BadChunk, framing::BadFraming, head::BadHead},
    tls::{self, Origination},
};

pub(crate) mod balance;
pub(crate) mod breaker;
pub(crate) mod connect;
pub(crate) mod failover;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod pool;
mod race;
pub(crate) mod resolve;
pub(crate) mod retry;
pub(crate) mod standing;

/// Interim responses to one request, at most.
const MAX_INTERIM: u32 = 16;

/// Why there was no whole response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// The head is malformed.
    #[error("the head of the response is malformed: {0}")]
    Head(#[from] BadHead),
    /// Its body's end can't be told.
    #[error("the response is framed wrongly: {0}")]
    Framing(#[from] BadFraming),
    /// The chunks are broken.
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    /// More interim responses than anybody sends.
    #[error("more than {MAX_INTERIM} interim responses")]
    Interim,
    /// It closed too early.
    #[error("the upstream closed the connection")]
    Closed,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client's body broke off; [`Upload::failure`] says how.
    #[error("the request's body broke off")]
    Upload,
    /// It failed in HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl UpstreamError {
    /// The error type of RFC 9209, section 2.3; also the reason in metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Framing(BadFraming::Coding) => "http_response_transfer_coding",
            Self::Head(_) | Self::Framing(_) | Self::Chunk(_) | Self::Interim => "http_protocol_error",
            Self::Closed => "http_response_incomplete",
            Self::Http2(error) if breaks_rules(error) => "http_protocol_error",
            Self::Http2(error) if error.is_incomplete_message() => "http_response_incomplete",
            // As a server of TLS 1.3 refuses its client's certificate: the handshake is over by then.
            Self::Io(error) => tls::proxy_status(error).unwrap_or("connection_terminated"),
            Self::Upload | Self::Http2(_) => "connection_terminated",
        }
    }
}

/// Whether an upstream broke the rules of HTTP/2, as the library or our guard saw.
fn breaks_rules(error: &hyper::Error) -> bool {
    if let Some(kind) = crate::h2::io_kind(error) {
        return kind == io::ErrorKind::InvalidData;
    }
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<::h2::Error>());
    let Some(cause) = cause else { return false };
    let harmless = [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR];
    !cause.is_remote() && cause.reason().is_some_and(|reason| !harmless.contains(&reason))
}

/// Where a connection goes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A host by name, which is resolved for each new connection.
    Name(Arc<str>, u16),
}

impl Endpoint {
    /// A host by name or address, and a port.
    pub(crate) fn of(host: &str, port: u16) -> Self {
        match host.parse() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, port)),
            Err(_) => Self::Name(host.to_ascii_lowercase().into(), port),
        }
    }

    /// The host alone, as a certificate names it.
    pub(crate) fn host(&self) -> Arc<str> {
        match self {
            Self::Address(address) => address.ip().to_string().into(),
            Self::Name(host, _) => Arc::clone(host),
        }
    }

    /// Reads `host:port`, `[v6]:port` or a host alone, which gets the default port. Nothing if there is a colon without a port.
    pub(crate) fn parse(authority: &http::uri::Authority, default_port: u16) -> Option<Self> {
        let host = authority.host();
        let port = if authority.as_str().ends_with(host) { default_port } else { authority.port_u16()? };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Self::of(bare, port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: in clear by prior knowledge, under TLS by ALPN.
    Http2,
}

/// An upstream: connections of one key are alike.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    /// Where.
    pub(crate) endpoint: Endpoint,
    /// How. Before an upstream under TLS has been asked it is HTTP/1.1: in that form its requests are kept.
    pub(crate) protocol: Protocol,
    /// Under TLS; the protocol is then the upstream's choice, see [`connect::Connector::protocol`].
    pub(crate) tls: Option<Origination>,
}

impl Key {
    /// Without TLS.
    pub(crate) fn in_clear(endpoint: Endpoint, protocol: Protocol) -> Self {
        Self { endpoint, protocol, tls: None }
    }

    /// Reads `http://host:port` or `h2c://host:port`.
    pub(crate) fn parse_in_clear(upstream: &str) -> Result<Self, String> {
        let address = check::parse_upstream(upstream)?;
        let protocol = match address.scheme {
            UpstreamScheme::Http => Protocol::Http1,
            UpstreamScheme::H2c => Protocol::Http2,
            UpstreamScheme::Https => return Err(format!("{upstream:?} has no TLS settings here: write http:// or h2c://")),
        };
        Ok(Self::in_clear(Endpoint::of(&address.host, address.port), protocol))
    }

    /// The same at one of its addresses.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { endpoint: Endpoint::Address(address), ..self.clone() }
    }
}

/// What a try says of its upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is well.
    Good,
    /// It failed.
    Bad,
    /// Nothing: the client left, or a limit of ours ended it.
    Neutral,
}

/// The limits that hold for one request's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until the connection stands, waiting for a free place included.
    pub(crate) connect: Duration,
    /// How long the connection is kept idle: the same for all requests to a host.
    pub(crate) idle: Duration,
    /// Connections to the host, over all workers.
    pub(crate) connections: usize,
}
