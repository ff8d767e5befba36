//! HTTP/1.1 to the byte, as both ends of the soak write and read it. They are the proxy's peers, so they trust what it frames.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

use super::pattern;

/// Pieces of bodies are of up to so many bytes.
pub(super) const PIECE: usize = 16 << 10;

/// A start line and the fields after it.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) start: String,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.field(name)?.parse().ok()
    }

    /// The status of an answer; 0 if it has none.
    pub(super) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// How the body after this head ends.
    pub(super) fn body(&self, of_answer: bool) -> Body {
        if self.field("transfer-encoding").is_some() {
            return Body::Chunked;
        }
        match self.number("content-length") {
            Some(len) => Body::Length(len),
            None if of_answer && !matches!(self.status(), 101 | 204 | 304) => Body::Close,
            None => Body::Length(0),
        }
    }

    /// Whether the sender closes the connection after this message.
    pub(super) fn closes(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(usize),
    Chunked,
    Close,
}

/// Reads a head; none where the connection ended before it began.
pub(super) async fn read_head(io: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    if !read_line(io, &mut head.start).await? {
        return Ok(None);
    }
    loop {
        let mut line = String::new();
        if !read_line(io, &mut line).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.split_once(':') {
            Some((name, value)) => head.fields.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(Some(head)),
        }
    }
}

/// Reads a line without its end; false at the end of the connection.
async fn read_line(io: &mut (impl AsyncBufRead + Unpin), line: &mut String) -> io::Result<bool> {
    let read = io.read_line(line).await?;
    if read > 0 && !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(read > 0)
}

/// Reads a body to its end, and rests after each piece. A connection that ends before is an error.
pub(super) async fn read_body(
    io: &mut (impl AsyncBufRead + Unpin),
    body: Body,
    pace: Duration,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    match body {
        Body::Length(len) => read_exactly(io, len, pace, &mut take).await,
        Body::Chunked => loop {
            let mut line = String::new();
            read_line(io, &mut line).await?;
            let len =
                usize::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("{line:?} is no size of a chunk")))?;
            read_exactly(io, len, pace, &mut take).await?;
            if len > 0 {
                read_line(io, &mut String::new()).await?;
                continue;
            }
            // The trailers, to the empty line.
            loop {
                let mut line = String::new();
                if !read_line(io, &mut line).await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if line.is_empty() {
                    return Ok(());
                }
            }
        },
        Body::Close => loop {
            let bytes = io.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            take(bytes);
            let len = bytes.len();
            io.consume(len);
            rest(pace).await;
        },
    }
}

async fn read_exactly(
    io: &mut (impl AsyncBufRead + Unpin),
    len: usize,
    pace: Duration,
    take: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let bytes = io.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = bytes.len().min(left);
        take(&bytes[..len]);
        io.consume(len);
        left -= len;
        rest(pace).await;
    }
    Ok(())
}

/// Writes `len` bytes of exchange `id` in pieces of any size, in chunks or as they are, and rests after each.
pub(super) async fn write_body(
    io: &mut (impl AsyncWrite + Unpin),
    id: u64,
    len: usize,
    chunked: bool,
    pace: Duration,
) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let piece = pattern::bytes(id, at, fastrand::usize(1..=PIECE).min(len - at));
        at += piece.len();
        if chunked {
            io.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat()).await?;
        } else {
            io.write_all(&piece).await?;
        }
        io.flush().await?;
        rest(pace).await;
    }
    Ok(())
}

/// What ends a body in chunks.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

pub(super) async fn rest(pace: Duration) {
    if !pace.is_zero() {
        sleep(pace).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut text: &[u8]) -> io::Result<(String, Vec<u8>)> {
        let head = read_head(&mut text).await?.unwrap_or_default();
        let mut body = Vec::new();
        read_body(&mut text, head.body(true), Duration::ZERO, |bytes| body.extend_from_slice(bytes)).await?;
        Ok((head.start, body))
    }

    #[tokio::test]
    async fn bodies_are_read_to_their_end_and_breaks_are_told() {
        for (text, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcde", Some("abc")),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-end: 1\r\n\r\n", Some("abc")),
            ("HTTP/1.1 200 OK\r\n\r\nabc", Some("abc")),
            ("HTTP/1.1 204 No Content\r\n\r\nabc", Some("")),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-", None),
        ] {
            assert_eq!(
                read(text.as_bytes()).await.ok().map(|(_, body)| body),
                body.map(|body| body.as_bytes().to_vec()),
                "{text:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        for chunked in [false, true] {
            let mut text = Vec::new();
            write_body(&mut text, 5, 100_000, chunked, Duration::ZERO).await.unwrap();
            if chunked {
                text.extend_from_slice(LAST_CHUNK);
            }
            let body = if chunked { Body::Chunked } else { Body::Length(100_000) };
            let mut check = pattern::Check::new(5);
            read_body(&mut text.as_slice(), body, Duration::ZERO, |bytes| check.feed(bytes)).await.unwrap();
            assert_eq!((check.len, check.good), (100_000, true));
        }
    }
}
