//! Clients that send one request and keep their connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Handshakes at a time.
const AT_A_TIME: usize = 32;
/// Connections from one address, so that ports suffice.
const OF_ONE_ADDRESS: usize = 4000;
/// One connection and its request.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// HTTP/1.1 under TLS 1.3.
    Tls,
}

impl Speaks {
    pub(super) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tls];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Tls => "TLS 1.3",
        }
    }
}

/// A connection that is open as long as this value lives.
#[expect(dead_code, reason = "they are held, not used")]
pub(super) enum Held {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(super) struct Client(TlsConnector);

impl Client {
    /// One that trusts a certificate.
    pub(super) fn new(trusted: CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Opens so many connections, each of which has had its answer.
    pub(super) async fn open(&self, address: SocketAddr, speaks: Speaks, count: usize) -> Result<Vec<Held>> {
        let all = stream::iter(0..count).map(|number| async move {
            let one = timeout(PATIENCE, self.one(address, speaks, number)).await;
            one.context("it took too long")?.with_context(|| format!("connection {number}"))
        });
        all.buffer_unordered(AT_A_TIME).try_collect().await
    }

    async fn one(&self, address: SocketAddr, speaks: Speaks, number: usize) -> Result<Held> {
        let socket = TcpSocket::new_v4()?;
        let own = u8::try_from(2 + number / OF_ONE_ADDRESS % 200)?;
        socket.bind(SocketAddr::from(([127, 0, 0, own], 0)))?;
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        match speaks {
            Speaks::Http1 => http1(&mut stream).await?,
            Speaks::Http2 => http2(&mut stream).await?,
            Speaks::Tls => {
                let mut stream = self.0.connect(ServerName::try_from("localhost")?, stream).await?;
                http1(&mut stream).await?;
                return Ok(Held::Tls(Box::new(stream)));
            }
        }
        Ok(Held::Clear(stream))
    }
}

async fn http1(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    stream.write_all(b"GET /1k HTTP/1.1\r\nHost: bench\r\n\r\n").await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while answer_len(&answer).is_none_or(|len| answer.len() < len) {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("no whole answer: {:?}", String::from_utf8_lossy(&answer));
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("{:?}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// How long an answer is with its head, once that is there.
pub(crate) fn answer_len(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    Some(head + 4 + length)
}

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// The preface, empty settings, and a GET of `/1k` on the first stream by the static table of RFC 7541.
const REQUEST: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x44\x03/1k\x41\x05bench";

async fn http2(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(REQUEST).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        stream.read_exact(&mut payload).await?;
        match (head[3], head[4]) {
            (SETTINGS, 0) => stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").await?,
            (SETTINGS, _) => {}
            (GOAWAY | RST_STREAM, _) => bail!("the stream was refused"),
            // DATA, or a head without a body.
            (0 | 1, flags) if flags & END_STREAM != 0 => return Ok(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_an_answer_is_known_with_its_head() {
        assert_eq!(answer_len(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), Some(41));
        assert_eq!(answer_len(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"), None);
    }

    #[test]
    fn frames_of_the_request_have_their_lengths() {
        let headers = &REQUEST[24 + 9..];
        assert_eq!(usize::from(headers[2]), headers.len() - 9);
    }
}
