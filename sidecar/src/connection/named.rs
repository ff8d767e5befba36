//! TLS that is not ours: the host that it is for stands in its first message. A forward proxy connects it there, as if the client had
//! asked by CONNECT.

use std::{rc::Rc, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::oneshot, time::timeout};

use super::{Connection, DETECTION, Detected, read_more};
use crate::{
    fields::Present,
    flow::{ClientBody, End},
    io::{ReadAhead, Stream},
    pipeline,
    tls::hello::{self, Hello},
    tunnel::Switch,
};

/// Where TLS is expected when nobody says a port.
const PORT: u16 = 443;

/// `access_denied`, fatal, as a record of TLS (RFC 8446, section 6).
const DENIED: [u8; 7] = [21, 3, 1, 0, 2, 2, 49];

/// Reads on until the host of a TLS client is known, or it is known that none is named. To a forward proxy that is an error, for it
/// knows of no other place.
pub(super) async fn read_host(
    connection: &Connection,
    stream: &mut TcpStream,
    ahead: &mut BytesMut,
) -> Result<Detected, &'static str> {
    let read = async {
        loop {
            match hello::read(ahead) {
                Hello::Unfinished => {}
                hello => return hello,
            }
            if !read_more(stream, ahead).await.unwrap_or(false) {
                return Hello::Unreadable;
            }
        }
    };
    let hello = timeout(DETECTION, read).await.unwrap_or(Hello::Unreadable);
    let server_name = match hello {
        Hello::For(_) => "present",
        Hello::Nameless => "absent",
        Hello::Unfinished | Hello::Unreadable => "unreadable",
    };
    connection.worker.tls.passed(connection.direction, server_name);
    let Hello::For(host) = hello else {
        return if connection.entry.is_forward_proxy() { Err("tls_without_server_name") } else { Ok(Detected::Tls(None)) };
    };
    tracing::debug!(peer = %connection.peer, host = &*host, "A connection of TLS passes through.");
    Ok(Detected::Tls(Some(host)))
}

/// Connects a TLS client of a forward proxy to the host that it names. All that holds for a CONNECT holds for it.
pub(super) async fn serve(connection: Rc<Connection>, mut stream: Stream, ahead: Bytes, host: Arc<str>) {
    let Ok(target) = format!("{host}:{PORT}").parse::<Uri>() else { return connection.error("tls_without_server_name") };
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (Method::CONNECT, target, Version::HTTP_11, HeaderMap::new());
    let present = Present::of(&parts.headers);
    let (switch, switched) = oneshot::channel();
    let switched = Some(Switch::Http1(switched));
    let request =
        pipeline::Request { parts: Box::new(parts), present, body: ClientBody::Empty, switch: switched, interims: None };
    let response = pipeline::serve(connection, request).await;
    if response.status().is_success() {
        let _ = switch.send(ReadAhead::new(ahead, stream)); // the tunnel may be gone with its upstream
    } else {
        response.into_body().end(End::Complete);
        // It is told as far as it listens; it is closed either way.
        let _ = stream.write_all(&DENIED).await;
        let _ = stream.shutdown().await;
    }
}
