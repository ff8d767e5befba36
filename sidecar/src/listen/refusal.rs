//! Clients for whom there is no room. One that speaks HTTP is told so, and when to come again.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::reset;
use crate::{
    connection::{Guess, guess, proxied_client},
    h1::encode,
    h2::frames::{Scanner, kind},
    reply::{self, NoRoom},
};

/// How long telling a client may take in all, and no client is worth more: then its connection is reset.
const LIMIT: Duration = Duration::from_secs(1);

/// Bytes that are read for the sake of the answer; what names its protocol is shorter.
const ENOUGH: usize = 16 << 10;

/// Tells a client that there is no room, and closes its connection. Whoever speaks no HTTP learns it by a reset.
pub(super) async fn tell(mut stream: TcpStream, begins_with_header: bool, why: NoRoom) {
    let told = timeout(LIMIT, try_to_tell(&mut stream, begins_with_header, why)).await;
    if !matches!(told, Ok(Some(()))) {
        reset(&stream);
    }
}

async fn try_to_tell(stream: &mut TcpStream, begins_with_header: bool, why: NoRoom) -> Option<()> {
    let mut read = BytesMut::new();
    if begins_with_header {
        proxied_client(stream, &mut read).await.ok()?;
    }
    let answer = loop {
        match guess(&read) {
            Guess::Http1 => break over_http1(why),
            Guess::Http2 => {
                if let Some(stream) = first_stream(&read) {
                    break over_http2(stream);
                }
            }
            Guess::Other => return None,
            Guess::Unknown => {}
        }
        read.reserve(1024);
        if read.len() > ENOUGH || stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    stream.write_all(&answer).await.ok()?;
    stream.shutdown().await.ok()?;
    // Closing before all is read would reset the connection, and so take the answer away.
    loop {
        read.clear();
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return Some(());
        }
    }
}

/// The head of an answer, which has no body: the request, whose head may be on its way, may be a HEAD.
fn over_http1(why: NoRoom) -> Vec<u8> {
    let answer = reply::no_room(why);
    let mut out = Vec::new();
    encode::response(&mut out, answer.status(), answer.headers());
    out.extend_from_slice(b"content-length: 0\r\n\r\n");
    out
}

/// The stream of the first request.
fn first_stream(read: &[u8]) -> Option<u32> {
    let mut first = None;
    Scanner::of_client().pass(read, |frame| {
        if frame.kind == kind::HEADERS {
            first.get_or_insert(frame.stream);
        }
    });
    first
}

/// The same answer in frames: SETTINGS, HEADERS of that stream, and GOAWAY, so that none comes after it.
fn over_http2(stream: u32) -> Vec<u8> {
    // Names by their places in the static table (RFC 7541, appendix A): `:status`, `retry-after` and `content-length`.
    const BLOCK: &[u8] = b"\x48\x03503\x0f\x26\x011\x0f\x0d\x010";
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const SETTINGS_ACK: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";
    const HEADERS: &[u8] = b"\0\0\x0d\x01\x05"; // the last frame of its stream and of its head
    const GOAWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0";
    let stream = &stream.to_be_bytes();
    [SETTINGS, SETTINGS_ACK, HEADERS, stream, BLOCK, GOAWAY, stream, &[0; 4]].concat()
}
