//! Messages as they are written: heads anew from what was understood, and bodies in the framing that the reader can take.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::io::AsyncWrite;

use super::framing::Framing;
use crate::io::Stream;

/// A chunk of at most this is copied behind what is to be written already: one buffer is cheaper to write than two.
const COPIED: usize = 4 << 10;

/// Room for a head; most are smaller.
const HEAD: usize = 2 << 10;

/// What the buffer for heads and small chunks may keep between messages.
const KEPT: usize = 4 << 10;

/// Appends the head of a request, without the fields that frame it and the empty line.
pub(crate) fn request(out: &mut Vec<u8>, method: &Method, uri: &Uri, headers: &HeaderMap) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    target(out, method, uri);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields(out, headers);
}

fn target(out: &mut Vec<u8>, method: &Method, uri: &Uri) {
    match (uri.authority(), uri.path_and_query()) {
        (Some(authority), _) if *method == Method::CONNECT => out.extend_from_slice(authority.as_str().as_bytes()),
        (_, Some(target)) => {
            if target.as_str().starts_with('?') {
                out.push(b'/'); // of `http://a?b`, whose path is empty
            }
            out.extend_from_slice(target.as_str().as_bytes());
        }
        (_, None) => out.push(b'/'),
    }
}

/// Appends the head of a response, without the fields that frame it and the empty line. True if it has a `Date`.
pub(crate) fn response(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) -> bool {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    fields(out, headers)
}

/// Appends a field.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends fields but those that frame; true if there is a `Date`.
fn fields(out: &mut Vec<u8>, headers: &HeaderMap) -> bool {
    let mut dated = false;
    for (name, value) in headers {
        match *name {
            header::TRANSFER_ENCODING | header::CONTENT_LENGTH => continue,
            header::DATE => dated = true,
            _ => {}
        }
        field(out, name.as_str(), value.as_bytes());
    }
    dated
}

/// Appends the fields that frame a message, and the empty line. A length of nothing is only told where `tells_empty`.
pub(crate) fn framing(out: &mut Vec<u8>, framing: Framing, tells_empty: bool) {
    match framing {
        Framing::Length(0) if !tells_empty => {}
        Framing::Length(length) => {
            let _ = write!(out, "content-length: {length}\r\n"); // writing to memory can't fail
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Close => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// What waits to be written to a socket: a head and small chunks in one buffer, and behind them at most one large chunk.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    buf: Vec<u8>,
    written: usize,
    /// Where in the buffer a message begins of which nothing is written yet, and which may be taken back.
    begun: Option<usize>,
    large: Bytes,
    /// What ends the large chunk.
    end: &'static [u8],
}

/// A body broke the length that was announced for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WrongLength;

impl Outbox {
    /// Where heads are appended.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.large.is_empty() && self.end.is_empty(), "a head comes before the chunks of its message");
        self.buf.reserve(HEAD);
        &mut self.buf
    }

    /// Begins a message that may be [taken back](Self::take_back).
    pub(crate) fn begin(&mut self) -> &mut Vec<u8> {
        self.begun = Some(self.buf.len());
        self.head()
    }

    /// Forgets the message that was begun last, if nothing of it was written; false if something was.
    pub(crate) fn take_back(&mut self) -> bool {
        let Some(at) = self.begun.take() else { return false };
        self.buf.truncate(at);
        (self.large, self.end) = (Bytes::new(), b"");
        true
    }

    /// Whether all is written.
    pub(crate) fn is_empty(&self) -> bool {
        self.buf.len() == self.written && self.large.is_empty() && self.end.is_empty()
    }

    /// Whether another chunk can be taken before the next flush.
    pub(crate) fn has_room(&self) -> bool {
        self.large.is_empty() && self.end.is_empty() && self.buf.len() < 2 * COPIED
    }

    /// Forgets what is not written.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes a piece of a body. `left` is the framing of what is left of it.
    pub(crate) fn chunk(&mut self, data: Bytes, left: &mut Framing) -> Result<(), WrongLength> {
        if data.is_empty() {
            return Ok(());
        }
        match left {
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?;
                self.append(data, b"");
            }
            Framing::Chunked => {
                let _ = write!(self.buf, "{:x}\r\n", data.len()); // writing to memory can't fail
                self.append(data, b"\r\n");
            }
            Framing::Close => self.append(data, b""),
        }
        Ok(())
    }

    fn append(&mut self, data: Bytes, end: &'static [u8]) {
        if data.len() <= COPIED {
            self.buf.extend_from_slice(&data);
            self.buf.extend_from_slice(end);
        } else {
            self.large = data;
            self.end = end;
        }
    }

    /// Ends a body. Needs room only for chunked bodies.
    pub(crate) fn finish(&mut self, left: Framing, trailers: Option<&HeaderMap>) -> Result<(), WrongLength> {
        match left {
            Framing::Length(0) | Framing::Close => Ok(()),
            Framing::Length(_) => Err(WrongLength),
            Framing::Chunked => {
                self.buf.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    for (name, value) in trailers.iter().filter(|(name, _)| is_trailer(name)) {
                        field(&mut self.buf, name.as_str(), value.as_bytes());
                    }
                }
                self.buf.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }

    /// Writes until all is written; the number of bytes that this call wrote is added to `count`.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, stream: &mut Stream, count: &mut u64) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let head = &self.buf[self.written..];
            let polled = if self.large.is_empty() && self.end.is_empty() {
                Pin::new(&mut *stream).poll_write(cx, head)
            } else {
                let parts = [IoSlice::new(head), IoSlice::new(&self.large), IoSlice::new(self.end)];
                Pin::new(&mut *stream).poll_write_vectored(cx, &parts)
            };
            let written = match ready!(polled) {
                Ok(written) => written,
                Err(error) => {
                    *count += u64::from(stream.is_tls()); // a part may have left before the failure, and nobody says so
                    return Poll::Ready(Err(error));
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *count += written as u64;
            self.advance(written);
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        let head = written.min(self.buf.len() - self.written);
        self.written += head;
        written -= head;
        self.begun = self.begun.filter(|begun| self.written <= *begun);
        if self.written == self.buf.len() {
            self.written = 0;
            self.buf.clear();
            self.buf.shrink_to(KEPT);
        }
        let large = written.min(self.large.len());
        self.large.advance(large);
        self.end = &self.end[written - large..];
    }

    /// Gives the memory back that an idle connection does not need.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.buf = Vec::new();
        }
    }
}

/// Fields that a trailer section can't carry: they frame, route or authorise, and come too late for that (RFC 9110, section 6.5.1).
pub(crate) fn is_trailer(name: &http::HeaderName) -> bool {
    let of_the_hop = matches!(name.as_str(), "keep-alive" | "proxy-connection");
    let framing_or_late = matches!(
        *name,
        header::TRANSFER_ENCODING
            | header::CONTENT_LENGTH
            | header::HOST
            | header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::UPGRADE
            | header::AUTHORIZATION
            | header::SET_COOKIE
            | header::CONTENT_ENCODING
            | header::CONTENT_TYPE
            | header::CONTENT_RANGE
            | header::CACHE_CONTROL
    );
    !of_the_hop && !framing_or_late
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(outbox: &Outbox) -> String {
        let parts = [&outbox.buf[..], &outbox.large[..], outbox.end].concat();
        String::from_utf8(parts).unwrap()
    }

    #[test]
    fn message_is_taken_back_until_a_byte_of_it_is_written() {
        let mut outbox = Outbox::default();
        outbox.head().extend_from_slice(b"interim");
        outbox.begin().extend_from_slice(b"head");
        outbox.chunk(Bytes::from(vec![b'x'; COPIED + 1]), &mut Framing::Close).unwrap();
        outbox.advance(3);
        assert!(outbox.take_back());
        assert_eq!(text(&outbox), "interim");
        outbox.begin().extend_from_slice(b"head");
        outbox.advance(5);
        assert!(!outbox.take_back());
        assert_eq!(text(&outbox), "interimhead");
    }

    #[test]
    fn heads_are_written() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        headers.insert(header::CONTENT_LENGTH, "9".parse().unwrap());
        let mut out = Vec::new();
        request(&mut out, &Method::POST, &"http://a/b?c".parse().unwrap(), &headers);
        framing(&mut out, Framing::Length(120), true);
        assert_eq!(String::from_utf8(out).unwrap(), "POST /b?c HTTP/1.1\r\nx-a: 1\r\ncontent-length: 120\r\n\r\n");
        let mut out = Vec::new();
        response(&mut out, StatusCode::NOT_FOUND, &headers);
        framing(&mut out, Framing::Chunked, true);
        assert_eq!(String::from_utf8(out).unwrap(), "HTTP/1.1 404 Not Found\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n");
    }

    #[test]
    fn chunks_are_framed_and_ended() {
        let mut outbox = Outbox::default();
        let mut left = Framing::Chunked;
        outbox.chunk(Bytes::from_static(b"hello"), &mut left).unwrap();
        outbox.chunk(Bytes::new(), &mut left).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert(header::CONTENT_LENGTH, "1".parse().unwrap());
        outbox.finish(left, Some(&trailers)).unwrap();
        assert_eq!(text(&outbox), "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n");
    }

    #[test]
    fn large_chunk_is_not_copied_and_stops_the_next() {
        let mut outbox = Outbox::default();
        outbox.chunk(Bytes::from(vec![b'x'; COPIED + 1]), &mut Framing::Chunked).unwrap();
        assert!(!outbox.has_room());
        assert_eq!(text(&outbox), format!("1001\r\n{}\r\n", "x".repeat(COPIED + 1)));
    }

    #[test]
    fn body_of_another_length_is_an_error() {
        let mut outbox = Outbox::default();
        let mut left = Framing::Length(3);
        assert_eq!(outbox.chunk(Bytes::from_static(b"four"), &mut left), Err(WrongLength));
        assert_eq!(outbox.finish(Framing::Length(1), None), Err(WrongLength));
    }

    #[tokio::test]
    async fn all_arrives_however_the_socket_takes_it() {
        use tokio::io::AsyncReadExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut peer, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut stream = Stream::Plain(accepted.unwrap().0);
        let mut outbox = Outbox::default();
        outbox.head().extend_from_slice(b"head");
        outbox.chunk(Bytes::from(vec![b'x'; 8 << 20]), &mut Framing::Close).unwrap();
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            peer.as_mut().unwrap().read_to_end(&mut all).await.unwrap();
            all.len()
        });
        let mut count = 0;
        std::future::poll_fn(|cx| outbox.poll_flush(cx, &mut stream, &mut count)).await.unwrap();
        drop(stream);
        assert_eq!((read.await.unwrap() as u64, count, outbox.is_empty()), (4 + (8 << 20), 4 + (8 << 20), true));
    }
}
