//! The origin over HTTP/1.1: it does what each request says, and books what it saw.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::ask::{Does, Framing, Told};
use super::client1::accept;
use super::ledger::Ledger;
use super::pattern::Check;
use super::wire::{Head, LAST_CHUNK, read_body, read_head, rest, write_body};
use crate::testkit::reset_when_dropped;

/// Between two pieces of an answer that dawdles.
pub(super) const DAWDLE: Duration = Duration::from_millis(3);

/// Whether a connection goes on after an exchange.
enum Next {
    Request,
    Close,
    Reset,
}

/// Serves a connection to its end.
pub(super) async fn connection(stream: TcpStream, ledger: Arc<Ledger>) {
    let mut stream = BufReader::new(stream);
    loop {
        match exchange(&mut stream, &ledger).await {
            Ok(Next::Request) => {}
            // A proxy that breaks off because its client did is an ordinary end.
            Ok(Next::Close) | Err(_) => return,
            Ok(Next::Reset) => return reset_when_dropped(stream.get_ref()),
        }
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, ledger: &Ledger) -> io::Result<Next> {
    let Some(head) = read_head(stream).await? else { return Ok(Next::Close) };
    let Some(told) = Told::of(|name| head.field(name)) else {
        ledger.breach(&format!("an origin got a request without its fields: {head:?}"));
        return Ok(Next::Close);
    };
    let count = ledger.note(&told, head.start.starts_with("POST "));
    if let Some(key) = head.field("sec-websocket-key") {
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {}\r\nx-id: {}\r\n\r\n",
            accept(key),
            told.id
        );
        stream.write_all(switch.as_bytes()).await?;
        return echo(stream).await;
    }
    let does = if count == 1 { told.does } else { Does::Answer };
    if does == Does::Refuse {
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
        stream.shutdown().await?;
        return Ok(Next::Close);
    }
    let mut check = Check::new(told.id);
    read_body(stream, head.body(false), Duration::ZERO, |bytes| check.feed(bytes)).await?;
    ledger.uploaded(&told, check.len, check.good);
    match does {
        Does::Reset if told.id.is_multiple_of(2) => return Ok(Next::Reset),
        Does::Reset => return Ok(Next::Close),
        Does::Stall => {
            // To the end of the connection.
            let _ = stream.read_u8().await;
            return Ok(Next::Close);
        }
        Does::Hint => stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(2).as_slice()).await?,
        _ => {}
    }
    answer(stream, &head, told, does).await
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), head: &Head, told: Told, does: Does) -> io::Result<Next> {
    // What is cut off must not end as if it were whole.
    let framing = if does.cuts() && told.framing == Framing::Close { Framing::Length } else { told.framing };
    let mut answer = format!("HTTP/1.1 200 OK\r\nx-id: {}\r\nx-got: {}\r\n", told.id, told.upload);
    answer += &match framing {
        Framing::Length => format!("content-length: {}\r\n\r\n", told.answer),
        Framing::Chunked => "transfer-encoding: chunked\r\n\r\n".to_owned(),
        Framing::Close => "connection: close\r\n\r\n".to_owned(),
    };
    stream.write_all(answer.as_bytes()).await?;
    let len = if does.cuts() { told.answer / 2 } else { told.answer };
    let pace = if does == Does::Dawdle { DAWDLE } else { Duration::ZERO };
    write_body(stream, told.id, len, framing == Framing::Chunked, pace).await?;
    if does.cuts() {
        return Ok(if does == Does::Half { Next::Reset } else { Next::Close });
    }
    if framing == Framing::Chunked {
        stream.write_all(LAST_CHUNK).await?;
    }
    if does == Does::Leave {
        rest(Duration::from_micros(fastrand::u64(0..3000))).await;
        return Ok(Next::Close);
    }
    Ok(if framing == Framing::Close || head.closes() { Next::Close } else { Next::Request })
}

/// Sends every byte back, to the end.
async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Next> {
    let mut piece = vec![0; 8 << 10];
    loop {
        match stream.read(&mut piece).await? {
            0 => {
                stream.shutdown().await?;
                return Ok(Next::Close);
            }
            len => stream.write_all(&piece[..len]).await?,
        }
    }
}
