//! HTTP/2 by the frame: a peer that sends what no library would.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::LONG;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Flag of DATA and HEADERS.
pub(crate) const END_STREAM: u8 = 1;
/// Flag of HEADERS and CONTINUATION.
pub(crate) const END_HEADERS: u8 = 4;
/// Flag of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as a header block: literals that touch no table.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value.as_bytes());
    }
    block
}

fn string(block: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap());
    }
    block.extend_from_slice(text);
}

/// A frame that came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of an answer's head, which stands first in it.
    pub(crate) fn status(&self) -> u16 {
        match self.payload[0] {
            indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
            _ if self.payload[1] & 0x80 == 0 => std::str::from_utf8(&self.payload[2..5]).unwrap().parse().unwrap(),
            _ => digits(&self.payload[2..2 + usize::from(self.payload[1] & 0x7f)]),
        }
    }
}

/// Three digits in the Huffman code of RFC 7541, appendix B: `0` to `2` have five bits, the others six.
fn digits(code: &[u8]) -> u16 {
    let bits: Vec<u16> = code.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let read = |len: usize| bits[at..at + len].iter().fold(0, |sum, bit| sum * 2 + bit);
        let (digit, len) = if read(5) < 3 { (read(5), 5) } else { (read(6) - 22, 6) };
        number = number * 10 + digit;
        at += len;
    }
    number
}

/// An end of a connection.
pub(crate) struct Peer(pub(crate) TcpStream);

impl Peer {
    /// A client that has sent the preface and empty settings.
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Self {
        let mut peer = Self(TcpStream::connect(address).await.unwrap());
        peer.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        peer
    }

    /// A server that has read the preface and sent its settings; none if the client has left.
    pub(crate) async fn accept(mut stream: TcpStream, settings: &[u8]) -> Option<Self> {
        stream.read_exact(&mut [0; PREFACE.len()]).await.ok()?;
        let mut peer = Self(stream);
        peer.send(&frame(SETTINGS, 0, 0, settings)).await;
        Some(peer)
    }

    /// Sends bytes; the other end may be gone.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        timeout(LONG, self.0.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// The next frame; none at the end.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        timeout(LONG, self.read_frame()).await.expect("a frame in time")
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of one of these types; none at the end. Settings are acknowledged, and pings answered.
    pub(crate) async fn next(&mut self, kinds: &[u8]) -> Option<Frame> {
        loop {
            let found = self.read().await?;
            match found.kind {
                SETTINGS | PING if found.flags & ACK == 0 => {
                    let payload = if found.kind == PING { &found.payload[..] } else { &[] };
                    self.send(&frame(found.kind, ACK, 0, payload)).await;
                }
                _ => {}
            }
            if kinds.contains(&found.kind) {
                return Some(found);
            }
        }
    }

    /// Whether the other end closes, whatever it says before.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let drained = async { while self.read_frame().await.is_some() {} };
        timeout(LONG, drained).await.is_ok()
    }

    /// Whether nothing of these types comes for a moment.
    pub(crate) async fn is_silent(&mut self, kinds: &[u8], moment: Duration) -> bool {
        timeout(moment, self.next(kinds)).await.is_err()
    }
}

/// The fields of a request.
pub(crate) fn get<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    fields.extend_from_slice(more);
    fields
}

/// A request without a body.
pub(crate) fn request(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(fields))
}
