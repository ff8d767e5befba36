//! The sockets of both sides, with what hyper leaves to its caller: time limits on writes, closing without losing the last
//! answer, and byte counts.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

/// How long a closing connection waits for what its peer still sends. Closing earlier would reset the connection, and a reset
/// takes away an answer that the peer has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// How long the head of a request may take, from its first byte.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may keep a connection without a request. Longer than the pools of usual clients, so that they close first:
/// a request that meets a closing connection is lost.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// Requests of a connection before abandoned ones are held against it.
const FLOOD: u64 = 500;

/// The client's side of a connection.
pub(crate) struct ClientIo {
    stream: TcpStream,
    /// Bytes that protocol detection has read; they come first.
    read_ahead: Bytes,
    progress: Arc<Progress>,
    wait: Wait,
    /// How long a write may wait for a peer that does not read.
    stall_limit: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

/// What the requests of a connection tell its socket.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    started: AtomicU64,
    ended: AtomicU64,
    abandoned: AtomicU64,
    flood: Notify,
    tunnel: AtomicBool,
}

impl Progress {
    /// The head of a request is complete.
    pub(crate) fn request_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection speaks another protocol now.
    pub(crate) fn tunnel_opened(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
    }

    /// Its response has ended.
    pub(crate) fn request_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// The client has left a request soon after it had sent it. More than half of many is an attack: each one makes the
    /// upstream work for nothing (CVE-2023-44487; the numbers are Envoy's).
    pub(crate) fn request_abandoned(&self) {
        let abandoned = self.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
        if self.requests() >= FLOOD && abandoned * 2 > self.requests() {
            self.flood.notify_one();
        }
    }

    /// Waits until the client is found to attack.
    pub(crate) async fn flooded(&self) {
        self.flood.notified().await;
    }

    fn requests(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    fn is_busy(&self) -> bool {
        self.requests() != self.ended.load(Ordering::Relaxed)
    }
}

/// The limit on reading between requests. hyper's own limit on the head counts from the end of the request before, and so
/// would close idle connections under their clients.
#[derive(Default)]
struct Wait {
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Duration>,
    in_head: bool,
    requests: u64,
}

struct Closing {
    write_closed: bool,
    deadline: Pin<Box<Sleep>>,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream, read_ahead: Bytes, progress: Arc<Progress>, stall_limit: Duration) -> Self {
        let wait = Wait { in_head: !read_ahead.is_empty(), ..Wait::default() };
        Self { stream, read_ahead, progress, wait, stall_limit, stall: None, closing: None }
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

impl Wait {
    /// Bytes came.
    fn read(&mut self, progress: &Progress) {
        self.follow(progress);
        self.in_head |= !progress.is_busy();
    }

    /// Nothing came; ready when that was so for too long.
    fn poll(&mut self, cx: &mut Context<'_>, progress: &Progress) -> Poll<()> {
        self.follow(progress);
        if progress.is_busy() {
            return Poll::Pending;
        }
        let limit = if self.in_head { HEAD_LIMIT } else { IDLE_LIMIT };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if self.armed != Some(limit) {
            self.armed = Some(limit);
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(cx)
    }

    fn follow(&mut self, progress: &Progress) {
        if self.requests != progress.requests() {
            *self = Self { timer: self.timer.take(), requests: progress.requests(), ..Self::default() };
        }
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
        let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
        if poll.is_ready() {
            this.wait.read(&this.progress);
            return poll;
        }
        ready!(this.wait.poll(cx, &this.progress));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no complete request in time")))
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

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a socket has nothing to flush
    }

    /// Closes the write side, then reads on until the peer closes too, or time is up. What comes through a tunnel is not for here.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| Closing { write_closed: false, deadline: Box::pin(sleep(LINGER)) });
        if !closing.write_closed {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            closing.write_closed = true;
        }
        if this.progress.tunnel.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
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

/// Bytes that went over an upstream connection.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// Bytes received so far.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the kernel took so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// The upstream's side of a connection.
pub(crate) struct UpstreamIo {
    stream: TcpStream,
    meter: Arc<Meter>,
    /// The peer reads no more. It may have answered before, so the rest of the request is swallowed and reading goes on: its
    /// answer, or its end, decides.
    deaf: bool,
}

impl UpstreamIo {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, meter: Arc::default(), deaf: false }
    }

    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    fn wrote(&mut self, poll: Poll<io::Result<usize>>, asked: usize) -> Poll<io::Result<usize>> {
        match ready!(poll) {
            Ok(len) => {
                self.meter.written.fetch_add(len as u64, Ordering::Relaxed);
                Poll::Ready(Ok(len))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.deaf = true;
                Poll::Ready(Ok(asked))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.meter.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        poll
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(poll, buf.len())
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let asked = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(asked));
        }
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(poll, asked)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a socket has nothing to flush
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A time limit on silence that costs nothing while there is none: the timer is made on the first wait.
#[derive(Debug)]
pub(crate) struct Silence {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Silence {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timer: None, waiting: false }
    }

    /// Something moved.
    pub(crate) fn broken(&mut self) {
        self.waiting = false;
    }

    /// Ready when nothing moved for the whole limit, counted from the first poll of this wait.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + self.limit);
        }
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (TcpStream, ClientIo, Arc<Progress>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let progress = Arc::<Progress>::default();
        let io = ClientIo::new(accepted.unwrap().0, Bytes::new(), Arc::clone(&progress), Duration::from_secs(60));
        (peer.unwrap(), io, progress)
    }

    /// Reads until the limit, and returns after how many seconds it struck.
    async fn silent_for(io: &mut ClientIo) -> u64 {
        let start = Instant::now();
        loop {
            match io.read(&mut [0; 64]).await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return start.elapsed().as_secs();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn head_that_does_not_end_is_cut_off_long_before_an_idle_connection() {
        let (mut peer, mut io, _) = pair().await;
        peer.write_all(b"GET / HT").await.unwrap();
        assert_eq!(io.read(&mut [0; 64]).await.unwrap(), 8);
        assert_eq!(silent_for(&mut io).await, HEAD_LIMIT.as_secs());
        let (_peer, mut io, _) = pair().await;
        assert_eq!(silent_for(&mut io).await, IDLE_LIMIT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn request_under_way_has_no_limit_here_and_the_next_wait_counts_anew() {
        let (mut peer, mut io, progress) = pair().await;
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(io.read(&mut [0; 64]).await.unwrap(), 18);
        progress.request_started();
        let limit = tokio::time::timeout(Duration::from_secs(3600), io.read(&mut [0; 64])).await;
        assert!(limit.is_err(), "a slow answer is not the client's fault");
        progress.request_ended();
        assert_eq!(silent_for(&mut io).await, IDLE_LIMIT.as_secs());
    }
}
