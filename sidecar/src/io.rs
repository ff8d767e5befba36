//! The socket of a client that hyper serves, with what hyper leaves to its caller: a time limit on writes, and closing without
//! losing the last answer.

use std::{
    cell::Cell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

use crate::shadow::Shadow;

mod stream;

pub(crate) use stream::{ReadAhead, Stream};

/// How long a closing connection waits for what its peer still sends. Closing earlier would reset the connection, and a reset
/// takes away an answer that the peer has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// Requests of a connection before abandoned ones are held against it.
const FLOOD: u64 = 500;

/// The client's side of a connection.
pub(crate) struct ClientIo {
    stream: Stream,
    /// Bytes that protocol detection has read; they come first.
    read_ahead: Bytes,
    /// How long a write may wait for a peer that does not read.
    stall_limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

/// What the requests of a connection tell its socket.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    started: Cell<u64>,
    abandoned: Cell<u64>,
    flood: Notify,
}

impl Progress {
    /// The head of a request is complete.
    pub(crate) fn request_started(&self) {
        self.started.set(self.started.get() + 1);
    }

    /// The client has left a request soon after it had sent it. More than half of many is an attack: each one makes the
    /// upstream work for nothing (CVE-2023-44487; the numbers are Envoy's).
    pub(crate) fn request_abandoned(&self) {
        self.abandoned.set(self.abandoned.get() + 1);
        if self.started.get() >= FLOOD && self.abandoned.get() * 2 > self.started.get() {
            self.flood.notify_one();
        }
    }

    /// Waits until the client is found to attack.
    pub(crate) async fn flooded(&self) {
        self.flood.notified().await;
    }
}

struct Closing {
    write_closed: bool,
    deadline: Pin<Box<Sleep>>,
}

impl ClientIo {
    pub(crate) fn new(stream: Stream, read_ahead: Bytes, stall_limit: Duration) -> Self {
        Self { stream, read_ahead, stall_limit, stall: None, closing: None }
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stall = None;
            return poll;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(self.stall_limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.read_ahead.is_empty() {
            let len = this.read_ahead.len().min(buf.remaining());
            buf.put_slice(&this.read_ahead.split_to(len));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limited(cx, poll)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limited(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.stream.is_tls() {
            return Poll::Ready(Ok(())); // a socket has nothing to flush, and so says nothing about a stall
        }
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.limited(cx, poll)
    }

    /// Closes the write side, then reads on until the peer closes too, or time is up.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| Closing { write_closed: false, deadline: Box::pin(sleep(LINGER)) });
        if !closing.write_closed {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            closing.write_closed = true;
        }
        let mut scrap = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scrap);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && !closing.deadline.is_elapsed() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return closing.deadline.as_mut().poll(cx).map(Ok),
            }
        }
    }
}

/// A time limit on silence that costs nothing while there is none: the timer is made on the first wait.
#[derive(Debug)]
pub(crate) struct Silence {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when nothing moves, while that is so.
    waiting: Option<Instant>,
    shadow: Option<Rc<Shadow>>,
}

impl Silence {
    pub(crate) fn new(limit: Duration) -> Self {
        Self::watched(limit, None)
    }

    /// A limit beside which another one only watches.
    pub(crate) fn watched(limit: Duration, shadow: Option<Rc<Shadow>>) -> Self {
        Self { limit, timer: None, waiting: None, shadow }
    }

    /// Something moved.
    pub(crate) fn broken(&mut self) {
        if let Some(since) = self.waiting.take()
            && let Some(shadow) = &self.shadow
        {
            shadow.paused(since.elapsed());
        }
    }

    /// Ready when nothing moved for the whole limit, counted from the first poll of this wait.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            timer.as_mut().reset(now + self.limit);
        }
        timer.as_mut().poll(cx)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.broken();
    }
}
