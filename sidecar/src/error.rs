//! Why a request could not be forwarded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{flow::FlowError, route::BadPath, throttle::Outcome, tls, upstream::UpstreamError};

/// Why a request got no answer from its upstream, with the name that RFC 9209 gives it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The request itself is wrong.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A path that policies could not be sure about.
    #[error(transparent)]
    Path(BadPath),
    /// A longer target than we take.
    #[error("the request target is longer than {0} bytes")]
    TargetTooLong(u64),
    /// A larger body than we take.
    #[error("the request's body is larger than {0} bytes")]
    BodyTooLarge(u64),
    /// More header fields than we take.
    #[error("the request has more than {0} header fields")]
    TooManyFields(usize),
    /// The client's body broke off.
    #[error("the request's body broke off or is framed wrongly")]
    BodyBroken,
    /// The client paused for too long.
    #[error("the request's body paused for too long")]
    BodyIdle,
    /// The client sent too slowly.
    #[error("the request's body came too slowly")]
    BodySlow,
    /// There is no memory for the request.
    #[error("memory is short")]
    NoMemory,
    /// The request has been here before.
    #[error("the request came back to this proxy: the field Via names it")]
    Loop,
    /// The request asks for a port of ours.
    #[error("{0} is a port of the proxy itself")]
    OwnPort(String),
    /// TRACE, whose answer would repeat what the client may not see.
    #[error("TRACE is not allowed")]
    Trace,
    /// CONNECT where there is no forward proxy.
    #[error("this listener is not a forward proxy")]
    NotForwardProxy,
    /// An `https` URI that came in clear over a network.
    #[error("an https URI is taken under TLS or from this host only: ask by CONNECT")]
    NotPrivate,
    /// TLS with a host that a client names is impossible.
    #[error(transparent)]
    NoTls(tls::TlsError),
    /// The host has no address.
    #[error("could not resolve {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The resolver does not answer, or has too much to do.
    #[error("could not resolve {host} within {limit:?}")]
    ResolveTimeout {
        /// The host.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// The upstream is not there.
    #[error("could not connect to {address}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The upstream does not answer.
    #[error("no connection to {upstream} within {limit:?}")]
    ConnectTimeout {
        /// The upstream.
        upstream: String,
        /// The limit.
        limit: Duration,
    },
    /// The upstream can't be spoken to under TLS, or is not who it should be.
    #[error("no TLS with {upstream}: {source}")]
    Tls {
        /// The upstream.
        upstream: String,
        /// What went wrong in the handshake.
        source: io::Error,
    },
    /// All connections to the upstream are in use.
    #[error("all {max} connections to {upstream} are in use")]
    ConnectionLimit {
        /// The upstream.
        upstream: String,
        /// The limit.
        max: usize,
    },
    /// It has failed too often, and is left alone for a while.
    #[error("{upstream} has failed too often and is left alone")]
    CircuitOpen {
        /// The upstream.
        upstream: String,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The upstream closed, reset, or spoke something else.
    #[error("the upstream broke off before it answered")]
    Broken(#[source] UpstreamError),
    /// The upstream switched protocols unasked.
    #[error("the upstream switched protocols without being asked")]
    Switched,
    /// The upstream answered a WebSocket otherwise than by a switch.
    #[error("the upstream does not speak WebSocket here")]
    NotSwitched,
    /// There is no configuration, and nothing passes without one.
    #[error("there is no configuration yet")]
    NoConfig,
    /// A limit that could not be decided, and whose policy allows nothing then.
    #[error("limit {0} can't be decided: its store does not answer")]
    LimitUndecided(String),
    /// A throttle let it not through.
    #[error("throttle {rule} has no room: {}", .outcome.words())]
    Throttled {
        /// `namespace/policy/rule`.
        rule: Arc<str>,
        /// What became of it there.
        outcome: Outcome,
        /// When another request may fare better.
        retry_after: Duration,
    },
    /// Its client does not wait any longer, before it was sent.
    #[error("the deadline of {0:?} passed before the request could be sent")]
    DeadlineExceeded(Duration),
    /// No response head in time.
    #[error("no response within {0:?}")]
    ResponseTimeout(Duration),
    /// The time of the whole request is over, and that says nothing about the upstream: its client does not wait any longer, or nothing was
    /// left of it to send the request.
    #[error("no response before the request's {0:?} were over")]
    TooLate(Duration),
    /// A bug of ours.
    #[error("an internal error")]
    Panic,
}

impl ForwardError {
    /// What the body of an answer broke off for, when nothing of the answer has left yet.
    pub(crate) fn of_body(error: FlowError) -> Self {
        match error {
            FlowError::Upstream(error) => Self::Broken(error),
            FlowError::Idle(limit) => Self::ResponseTimeout(limit),
            FlowError::Joined(_) => Self::Broken(UpstreamError::Closed),
            // Of a request's body.
            FlowError::Client(_) | FlowError::Refused | FlowError::Elsewhere => Self::BodyBroken,
        }
    }

    /// The status for the client.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Path(_) | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyIdle | Self::BodySlow => StatusCode::REQUEST_TIMEOUT,
            Self::OwnPort(_) | Self::NotPrivate => StatusCode::FORBIDDEN,
            Self::NotForwardProxy | Self::Trace => StatusCode::METHOD_NOT_ALLOWED,
            Self::Loop
            | Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::NoTls(_)
            | Self::Broken(_)
            | Self::Switched
            | Self::NotSwitched => StatusCode::BAD_GATEWAY,
            Self::ConnectionLimit { .. }
            | Self::CircuitOpen { .. }
            | Self::NoConfig
            | Self::LimitUndecided(_)
            | Self::Throttled { .. }
            | Self::NoMemory => StatusCode::SERVICE_UNAVAILABLE,
            Self::ResolveTimeout { .. }
            | Self::ConnectTimeout { .. }
            | Self::DeadlineExceeded(_)
            | Self::ResponseTimeout(_)
            | Self::TooLate(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Panic => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The error type of RFC 9209, section 2.3; also the reason in metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Path(_) | Self::TooManyFields(_) | Self::NotForwardProxy => "http_request_error",
            Self::BodyBroken => "http_request_body_broken",
            Self::BodyIdle => "http_request_body_timeout",
            Self::BodySlow => "http_request_body_too_slow",
            Self::BodyTooLarge(_) => "http_request_body_too_large",
            Self::TargetTooLong(_) => "target_too_long",
            Self::NoMemory => "memory_pressure",
            Self::OwnPort(_) | Self::Trace | Self::NotPrivate => "http_request_denied",
            Self::Loop => "proxy_loop_detected",
            Self::Resolve { .. } => "dns_error",
            Self::ResolveTimeout { .. } => "dns_timeout",
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => "connection_refused",
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "destination_ip_unroutable",
                _ => "destination_unavailable",
            },
            Self::Tls { source, .. } => tls::proxy_status(source).unwrap_or("tls_protocol_error"),
            Self::ConnectTimeout { .. } => "connection_timeout",
            Self::ConnectionLimit { .. } => "connection_limit_reached",
            Self::CircuitOpen { .. } => "destination_unavailable",
            Self::Broken(error) => error.reason(),
            Self::Switched | Self::NotSwitched => "http_upgrade_failed",
            Self::NoConfig | Self::NoTls(_) => "proxy_configuration_error",
            Self::LimitUndecided(_) => "rate_limit_undecided",
            Self::Throttled { outcome, .. } => outcome.reason(),
            Self::DeadlineExceeded(_) => Outcome::Deadline.reason(),
            Self::ResponseTimeout(_) | Self::TooLate(_) => "http_response_timeout",
            Self::Panic => "proxy_internal_error",
        }
    }

    /// Whether no connection came to stand, so that nothing of the request was sent.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::ResolveTimeout { .. }
                | Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Tls { .. }
        )
    }

    /// Whether the upstream, or the way to it, took longer than it might.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ResolveTimeout { .. } | Self::ConnectTimeout { .. } | Self::ConnectionLimit { .. } | Self::ResponseTimeout(_)
        )
    }

    /// The same once more, for another request that met it. Of what a connection fails with nothing is lost.
    pub(crate) fn copy(&self) -> Self {
        match self {
            Self::Resolve { host, source } => Self::Resolve { host: host.clone(), source: tls::copy(source) },
            Self::ResolveTimeout { host, limit } => Self::ResolveTimeout { host: host.clone(), limit: *limit },
            Self::Connect { address, source } => Self::Connect { address: *address, source: tls::copy(source) },
            Self::Tls { upstream, source } => Self::Tls { upstream: upstream.clone(), source: tls::copy(source) },
            Self::OwnPort(upstream) => Self::OwnPort(upstream.clone()),
            Self::ConnectTimeout { upstream, limit } => Self::ConnectTimeout { upstream: upstream.clone(), limit: *limit },
            other => Self::Broken(UpstreamError::Io(io::Error::other(other.to_string()))),
        }
    }

    /// Whether it speaks against the upstream.
    pub(crate) fn is_of_upstream(&self) -> bool {
        self.is_connect() || matches!(self, Self::Broken(_) | Self::Switched | Self::ResponseTimeout(_))
    }

    /// After how many seconds another request may fare better.
    pub(crate) fn retry_after(&self) -> u64 {
        match self {
            Self::CircuitOpen { retry_after, .. } | Self::Throttled { retry_after, .. } => {
                retry_after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
            }
            _ => 1,
        }
    }

    /// Whether the rest of the client's connection can't be trusted.
    pub(crate) fn poisons_connection(&self) -> bool {
        matches!(
            self,
            Self::BadRequest(_)
                | Self::TooManyFields(_)
                | Self::BodyBroken
                | Self::BodyIdle
                | Self::BodySlow
                | Self::BodyTooLarge(_)
                | Self::NoMemory
                | Self::Panic
        )
    }
}
