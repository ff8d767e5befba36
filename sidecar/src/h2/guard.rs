//! What a peer may ask of the library before it is an attack, and what the library refuses without telling.
//!
//! Frames that move no message (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM, CONTINUATION, empty DATA, unknown ones) cost their
//! sender next to nothing and us work, or memory. Each takes from a budget that messages and time fill up again. The limits of the
//! library stay in force besides.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::frames::{END_STREAM, Frame, Scanner, kind};

/// Frames of the kinds above that may come at once.
const BURST: u32 = 1000;

/// How many of them are forgiven each second.
const FORGIVEN: u32 = 20;

/// How many of them each frame of a message pays for, whichever side sends it: two windows may be opened for each DATA frame, and
/// those who estimate bandwidth send a PING with it.
const PAID: u32 = 4;

/// How many of them an answer's head costs that may be an interim one: the library keeps all interim heads until the final one.
const HEAD: u32 = 20;

/// Heads that a request pays for.
const HEADS: u32 = 3;

/// Error codes (RFC 9113, section 7).
mod code {
    pub(super) const PROTOCOL_ERROR: u32 = 0x1;
    pub(super) const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub(super) const SETTINGS_TIMEOUT: u32 = 0x4;
    pub(super) const STREAM_CLOSED: u32 = 0x5;
    pub(super) const FRAME_SIZE_ERROR: u32 = 0x6;
    pub(super) const REFUSED_STREAM: u32 = 0x7;
    pub(super) const COMPRESSION_ERROR: u32 = 0x9;
    pub(super) const ENHANCE_YOUR_CALM: u32 = 0xb;
}

/// A peer sent too many frames that move nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many frames that move nothing")]
pub(crate) struct Flood;

/// What a peer may still send.
#[derive(Debug)]
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    fn pay(&mut self, cost: u32) {
        self.left = BURST.min(self.left + cost);
    }

    fn take(&mut self, cost: u32, now: impl FnOnce() -> Instant) -> Result<(), Flood> {
        if self.left < cost {
            self.forgive(now());
        }
        self.left = self.left.checked_sub(cost).ok_or(Flood)?;
        Ok(())
    }

    /// Asked for only when the budget is used up, so that usual connections read no clock.
    fn forgive(&mut self, now: Instant) {
        let seconds = u32::try_from(now.saturating_duration_since(self.since).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.since = now;
            self.left = BURST.min(self.left.saturating_add(seconds.saturating_mul(FORGIVEN)));
        }
    }
}

/// Watches the frames of a connection, both ways.
#[derive(Debug)]
pub(super) struct Watch {
    /// The peer is a server, and answers.
    answers: bool,
    received: Scanner,
    sent: Scanner,
    budget: Budget,
    /// The last stream that the peer opened.
    last_stream: u32,
    /// The last stream that the library answered by itself.
    answered: u32,
}

impl Watch {
    /// A client speaks to us.
    fn of_client(now: Instant) -> Self {
        Self::new(false, Scanner::of_client(), Scanner::of_server(), now)
    }

    /// We speak to a server.
    fn of_server(now: Instant) -> Self {
        Self::new(true, Scanner::of_server(), Scanner::of_client(), now)
    }

    fn new(answers: bool, received: Scanner, sent: Scanner, now: Instant) -> Self {
        Self { answers, received, sent, budget: Budget::new(now), last_stream: 0, answered: 0 }
    }

    /// The peer has sent this.
    fn receive(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        let Self { answers, received, budget, last_stream, .. } = self;
        let mut flood = Ok(());
        received.pass(bytes, |frame| match frame.kind {
            kind::HEADERS if !*answers => {
                *last_stream = frame.stream.max(*last_stream);
                budget.pay(PAID);
            }
            kind::HEADERS if frame.flags & END_STREAM == 0 => flood = flood.and_then(|()| budget.take(HEAD, &now)),
            kind::HEADERS => {}
            kind::DATA if !frame.is_empty_data() => budget.pay(PAID),
            _ => flood = flood.and_then(|()| budget.take(1, &now)),
        });
        flood
    }

    /// We have sent this. Calls `refused` with the reason of each stream or connection that the library refuses.
    fn send(&mut self, bytes: &[u8], mut refused: impl FnMut(&'static str)) {
        let Self { answers, sent, budget, answered, .. } = self;
        sent.pass(bytes, |frame| match frame.kind {
            kind::DATA => budget.pay(PAID),
            kind::HEADERS if *answers => budget.pay(HEADS * HEAD),
            // An answer of ours has a Date; this is the library's 431, after which it may reset the stream.
            kind::HEADERS if frame.flags & END_STREAM != 0 && frame.is_lone_status() => {
                *answered = frame.stream;
                refused("header_too_large");
            }
            kind::RST_STREAM if frame.stream != *answered => {
                if let Some(reason) = reset_reason(&frame) {
                    refused(reason);
                }
            }
            kind::GOAWAY => {
                if let Some(reason) = leaving_reason(&frame) {
                    refused(reason);
                }
            }
            _ => {}
        });
    }

    /// The frame that tells the peer why it is left, if one can be written now.
    fn goaway(&self) -> Option<[u8; 17]> {
        let mut frame = [0; 17];
        frame[2] = 8;
        frame[3] = kind::GOAWAY;
        frame[9..13].copy_from_slice(&self.last_stream.to_be_bytes());
        frame[13..].copy_from_slice(&code::ENHANCE_YOUR_CALM.to_be_bytes());
        self.sent.is_between_frames().then_some(frame)
    }
}

/// Why the library reset a stream, if its client is to blame.
fn reset_reason(frame: &Frame<'_>) -> Option<&'static str> {
    match frame.code(0)? {
        code::PROTOCOL_ERROR | code::FLOW_CONTROL_ERROR | code::STREAM_CLOSED | code::FRAME_SIZE_ERROR => {
            Some("malformed_request")
        }
        code::REFUSED_STREAM => Some("stream_limit"),
        _ => None,
    }
}

/// Why the library leaves a connection, if its client is to blame. With ENHANCE_YOUR_CALM the library says more in words.
fn leaving_reason(frame: &Frame<'_>) -> Option<&'static str> {
    let words = frame.start.get(8..).unwrap_or_default();
    let is = |beginning: &[u8]| words.starts_with(beginning);
    match frame.code(4)? {
        code::ENHANCE_YOUR_CALM if is(b"header_list_way_too_large") || is(b"too_many_continuations") => Some("header_too_large"),
        code::ENHANCE_YOUR_CALM if is(b"too_many_resets") || is(b"too_many_internal_resets") => Some("reset_flood"),
        code::ENHANCE_YOUR_CALM => Some("frame_flood"),
        code::SETTINGS_TIMEOUT => Some("client_timeout"),
        code::PROTOCOL_ERROR
        | code::FLOW_CONTROL_ERROR
        | code::STREAM_CLOSED
        | code::FRAME_SIZE_ERROR
        | code::COMPRESSION_ERROR => Some("malformed_request"),
        _ => None,
    }
}

/// A connection whose frames are watched. `R` is told of what the library refuses, and of a flood.
pub(crate) struct Guarded<T, R> {
    io: T,
    watch: Watch,
    refused: R,
    /// The peer is to be left.
    leaves: Rc<Cell<bool>>,
}

impl<T, R: FnMut(&'static str)> Guarded<T, R> {
    /// A connection on which a client speaks to us.
    pub(crate) fn of_client(io: T, refused: R) -> Self {
        Self { io, watch: Watch::of_client(Instant::now()), refused, leaves: Rc::default() }
    }

    /// A connection on which we speak to a server.
    pub(crate) fn of_server(io: T, refused: R) -> Self {
        Self { io, watch: Watch::of_server(Instant::now()), refused, leaves: Rc::default() }
    }

    /// Set, it ends the connection: the peer floods in a way that shows elsewhere.
    pub(crate) fn leaves(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.leaves)
    }
}

impl<T: AsyncWrite + Unpin, R> Guarded<T, R> {
    /// Tells the peer why, if it reads. The error ends the connection.
    fn leave(&mut self, cx: &mut Context<'_>) -> io::Error {
        if let Some(goaway) = self.watch.goaway() {
            let _ = Pin::new(&mut self.io).poll_write(cx, &goaway);
        }
        io::Error::new(io::ErrorKind::InvalidData, Flood)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, R: FnMut(&'static str) + Unpin> AsyncRead for Guarded<T, R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.leaves.get() {
            return Poll::Ready(Err(this.leave(cx)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if this.watch.receive(&buf.filled()[before..], Instant::now).is_err() {
            (this.refused)("frame_flood");
            return Poll::Ready(Err(this.leave(cx)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin, R: FnMut(&'static str) + Unpin> AsyncWrite for Guarded<T, R> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.watch.send(&buf[..written], &mut this.refused);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let part = left.min(buf.len());
            this.watch.send(&buf[..part], &mut this.refused);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const DATA: [u8; 10] = [0, 0, 1, kind::DATA, 0, 0, 0, 0, 1, b'x'];
    const EMPTY: [u8; 9] = [0, 0, 0, kind::DATA, 0, 0, 0, 0, 1];

    fn watch(now: Instant) -> Watch {
        Watch::new(false, Scanner::of_server(), Scanner::of_server(), now)
    }

    #[test]
    fn interim_heads_are_few() {
        let now = Instant::now();
        let head = |flags: u8| [0, 0, 1, kind::HEADERS, flags, 0, 0, 0, 1, 0x88];
        let mut watch = Watch::new(true, Scanner::of_server(), Scanner::of_server(), now);
        for _ in 0..1000 {
            watch.send(&head(END_STREAM), |_| unreachable!("it is a request"));
            let answer = [head(0), head(0), head(0), head(END_STREAM)].concat();
            assert_eq!(watch.receive(&answer, || now), Ok(()), "an interim head or two, a final one, trailers");
        }
        assert_eq!(watch.receive(&head(0).repeat((BURST / HEAD) as usize + 1), || now), Err(Flood));
    }

    #[test]
    fn frames_that_move_nothing_are_a_flood() {
        let now = Instant::now();
        for frame in [&PING[..], &EMPTY] {
            let mut watch = watch(now);
            assert_eq!(watch.receive(&frame.repeat(BURST as usize), || now), Ok(()));
            assert_eq!(watch.receive(frame, || now), Err(Flood));
        }
    }

    #[test]
    fn messages_pay_for_the_frames_beside_them() {
        let now = Instant::now();
        let mut watch = watch(now);
        for _ in 0..BURST {
            assert_eq!(watch.receive(&[&PING[..], &PING, &PING, &PING, &DATA].concat(), || now), Ok(()));
            watch.send(&DATA, |_| unreachable!("nothing was refused"));
            assert_eq!(watch.receive(&PING.repeat(PAID as usize), || now), Ok(()));
        }
    }

    #[test]
    fn time_forgives() {
        let start = Instant::now();
        let mut watch = watch(start);
        assert_eq!(watch.receive(&PING.repeat(BURST as usize), || start), Ok(()));
        let later = start + Duration::from_secs(2);
        assert_eq!(watch.receive(&PING.repeat(2 * FORGIVEN as usize), || later), Ok(()));
        assert_eq!(watch.receive(&PING, || later), Err(Flood));
    }

    #[test]
    fn what_the_library_refuses_is_told_with_its_reason() {
        let reset = |stream: u8, code: u8| vec![0, 0, 4, kind::RST_STREAM, 0, 0, 0, 0, stream, 0, 0, 0, code];
        let too_large = vec![0, 0, 5, kind::HEADERS, END_STREAM, 0, 0, 0, 3, 0x48, 3, b'4', b'3', b'1'];
        let answer = vec![0, 0, 2, kind::HEADERS, END_STREAM, 0, 0, 0, 3, 0x88, 0xbe];
        let goaway = |code: u8, words: &[u8]| {
            let length = 8 + u8::try_from(words.len()).unwrap();
            [&[0, 0, length, kind::GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, code], words].concat()
        };
        for (frames, reason) in [
            (reset(1, 1), Some("malformed_request")),
            (reset(1, 7), Some("stream_limit")),
            (reset(1, 8), None),
            ([too_large, reset(3, 1)].concat(), Some("header_too_large")),
            (answer, None),
            (goaway(0, b""), None),
            (goaway(1, b""), Some("malformed_request")),
            (goaway(9, b""), Some("malformed_request")),
            (goaway(11, b"too_many_resets"), Some("reset_flood")),
            (goaway(11, b"too_many_continuations"), Some("header_too_large")),
            (goaway(11, b""), Some("frame_flood")),
        ] {
            let mut told = None;
            watch(Instant::now()).send(&frames, |reason| assert_eq!(told.replace(reason), None));
            assert_eq!(told, reason, "{frames:?}");
        }
    }
}
