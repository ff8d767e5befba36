//! The chunked coding (RFC 9112, section 7.1), strictly: hexadecimal sizes, CR LF everywhere, extensions dropped.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head;

/// Bytes of a line with a chunk's size and extensions, at most.
const MAX_LINE: usize = 1 << 10;

/// Bytes of extensions in a body, at most: they carry nothing, so many of them are an attack.
const MAX_EXTENSIONS: usize = 16 << 10;

/// Bytes of a trailer section, at most.
const MAX_TRAILERS: usize = 16 << 10;

/// The coding was broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the chunked coding is broken: {0}")]
pub(crate) struct BadChunk(&'static str);

/// What a decoder found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A piece of the body, never empty.
    Data(Bytes),
    /// The end of the body, with its trailer fields.
    End(Option<HeaderMap>),
    /// Nothing until more bytes come.
    More,
}

/// Takes a body out of chunks.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Debug, Default)]
enum State {
    /// At the line with the size of a chunk.
    #[default]
    Size,
    /// Inside of a chunk, so many bytes before its end.
    Data(u64),
    /// After the bytes of a chunk.
    DataEnd,
    /// After the last chunk.
    Trailers(head::Reader),
    Ended,
}

impl Decoder {
    /// Takes the next piece from the front of `buf`.
    pub(crate) fn decode(&mut self, buf: &mut BytesMut) -> Result<Found, BadChunk> {
        loop {
            match &mut self.state {
                State::Size => match self.size(buf)? {
                    None => return Ok(Found::More),
                    Some(0) => self.state = State::Trailers(head::Reader::default()),
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(_) if buf.is_empty() => return Ok(Found::More),
                State::Data(left) => {
                    let len = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= len as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Found::Data(buf.split_to(len).freeze()));
                }
                State::DataEnd => match &buf[..buf.len().min(2)] {
                    b"\r\n" => {
                        buf.advance(2);
                        self.state = State::Size;
                    }
                    b"" | b"\r" => return Ok(Found::More),
                    _ => return Err(BadChunk("no CR LF after a chunk")),
                },
                State::Trailers(_) => return self.trailers(buf),
                State::Ended => return Ok(Found::End(None)),
            }
        }
    }

    /// The size of the next chunk, once its line is whole.
    fn size(&mut self, buf: &mut BytesMut) -> Result<Option<u64>, BadChunk> {
        let Some(end) = memchr::memchr(b'\n', &buf[..buf.len().min(MAX_LINE)]) else {
            return if buf.len() < MAX_LINE { Ok(None) } else { Err(BadChunk("a size line is too long")) };
        };
        let line = buf[..end].strip_suffix(b"\r").ok_or(BadChunk("a size line does not end in CR LF"))?;
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (size, extensions) = line.split_at(digits);
        let size = hexadecimal(size).ok_or(BadChunk("a size is not a hexadecimal number of 16 digits or less"))?;
        if !is_extension(extensions) {
            return Err(BadChunk("a size is followed by something else than extensions"));
        }
        self.extensions += extensions.len();
        if self.extensions > MAX_EXTENSIONS {
            return Err(BadChunk("too many extensions"));
        }
        buf.advance(end + 1);
        Ok(Some(size))
    }

    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Found, BadChunk> {
        let State::Trailers(reader) = &mut self.state else { return Ok(Found::More) };
        let before = buf.len();
        let fields = reader.trailers(buf).map_err(|_| BadChunk("the trailer section is malformed or too large"))?;
        if before - buf.len() > MAX_TRAILERS || (fields.is_none() && before >= MAX_TRAILERS) {
            return Err(BadChunk("the trailer section is too large"));
        }
        let Some(fields) = fields else { return Ok(Found::More) };
        self.state = State::Ended;
        Ok(Found::End(Some(fields).filter(|fields| !fields.is_empty())))
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Nothing, or what begins with a semicolon, after white space at most, and has no control characters.
fn is_extension(text: &[u8]) -> bool {
    let trimmed = text.trim_ascii_start();
    text.is_empty() || (trimmed.starts_with(b";") && text.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body, the trailers, and what comes after.
    type Decoded = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Decodes bytes that come cut in pieces of that size.
    fn decode(text: &[u8], piece: usize) -> Result<Decoded, BadChunk> {
        let (mut decoder, mut buf, mut body) = (Decoder::default(), BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(piece.max(1));
        loop {
            match decoder.decode(&mut buf)? {
                Found::Data(data) => body.extend_from_slice(&data),
                Found::End(trailers) => {
                    let rest: Vec<u8> = buf.iter().copied().chain(pieces.flatten().copied()).collect();
                    return Ok((body, trailers, rest));
                }
                Found::More => match pieces.next() {
                    Some(piece) => buf.extend_from_slice(piece),
                    None => return Err(BadChunk("it ends early")),
                },
            }
        }
    }

    #[test]
    fn body_and_trailers_are_found_and_the_rest_is_left() {
        let text = b"5\r\nhello\r\n6;a=\"b\"\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nGET /";
        for piece in 1..=text.len() {
            let (body, trailers, rest) = decode(text, piece).unwrap();
            assert_eq!((&body[..], &rest[..]), (&b"hello world"[..], &b"GET /"[..]));
            assert_eq!(trailers.unwrap()["x-sum"], "1");
        }
        assert!(decode(b"0\r\n\r\n", 1).unwrap().1.is_none());
    }

    #[test]
    fn broken_codings_are_refused() {
        for text in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"11111111111111111\r\n",
            b"5;a\rb\r\nhello\r\n",
            b"5;\0\r\nhello\r\n",
            b"0\r\nX : a\r\n\r\n",
            b"0\r\nX: a\n\r\n",
            b"0\r\n\n",
        ] {
            assert!(decode(text, 1).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let line = format!("1;{}\r\na\r\n", "x".repeat(1000));
        assert!(decode(line.repeat(20).as_bytes(), 64).is_err());
        let trailers = format!("0\r\n{}\r\n", format!("a: {}\r\n", "x".repeat(1000)).repeat(20));
        assert!(decode(trailers.as_bytes(), 64).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50) {
            let _ = decode(&bytes, piece);
        }
    }
}
