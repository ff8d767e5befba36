//! What is asked of the admin port of a proxy on this machine.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{args::StateArgs, failure::Failure};

/// How long a connection may take.
const CONNECTING: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const LONGEST: u64 = 16 << 20;

/// Sends an order, and returns what it was answered within some time.
pub(super) fn ask(state: &StateArgs, method: &str, target: &str, body: &str, patience: Duration) -> Result<String, Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, state.admin_port));
    let nobody = |why: String| Failure::unreachable("no proxy answers on its admin port").at(address).hint(why);
    let file = state.dir()?.join("admin-token");
    let token = fs::read_to_string(&file).map_err(|e| nobody(format!("its token can't be read from {}: {e}", file.display())))?;
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}",
        token.trim()
    );
    let mut answer = Vec::new();
    let exchanged = TcpStream::connect_timeout(&address, CONNECTING).and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(CONNECTING))?;
        stream.write_all(request.as_bytes())?;
        stream.take(LONGEST).read_to_end(&mut answer)
    });
    exchanged.map_err(|e| nobody(e.to_string()))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| nobody("its answer has no end".to_owned()))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("400") => Err(Failure::usage(body.trim())),
        status => Err(Failure::new(format!("the proxy answered {}", status.unwrap_or("nothing"))).at(address).hint(body.trim())),
    }
}
