//! What comes before HTTP on the connections of a listener: the header of a load balancer, and TLS.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::BytesMut;
use http::HeaderValue;
use tokio::{net::TcpStream, time::timeout};

use super::read_more;
use crate::{
    proxy_protocol::{self, MAX_HEADER},
    tls::Terminator,
};

/// How long the header may take. A load balancer sends it at once.
const HEADER: Duration = Duration::from_secs(5);

/// What a listener awaits before HTTP.
#[derive(Clone, Default)]
pub(crate) struct Preamble {
    /// Each connection begins with the header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    /// TLS with the clients.
    pub(crate) tls: Option<Arc<Terminator>>,
    /// What answers say of HTTP/3, from when it is spoken.
    pub(crate) alternative: Option<Arc<OnceLock<HeaderValue>>>,
}

/// Reads the header of the PROXY protocol: who the client is, if that says so. What follows it is left in `ahead`. The error is the
/// reason that is counted, none for a peer that left without a word, as health checks do.
pub(crate) async fn client(stream: &mut TcpStream, ahead: &mut BytesMut) -> Result<Option<SocketAddr>, Option<&'static str>> {
    let read = async {
        loop {
            match proxy_protocol::read(ahead) {
                Ok(Some(header)) => {
                    drop(ahead.split_to(header.len));
                    return Ok(header.client);
                }
                Ok(None) if ahead.len() < MAX_HEADER => {}
                Ok(None) | Err(_) => return Err(Some("proxy_protocol_missing")),
            }
            if !read_more(stream, ahead).await? {
                return Err((!ahead.is_empty()).then_some("proxy_protocol_missing"));
            }
        }
    };
    timeout(HEADER, read).await.unwrap_or(Err(Some("client_timeout")))
}
