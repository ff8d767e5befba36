//! Bytes both ways without looking at them: upgrades, CONNECT, and what is not HTTP.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tokio_util::either::Either;

use crate::io::{ReadAhead, Stream};

/// Bytes of the buffer of one direction.
const BUFFER: usize = 16 << 10;

/// Default limit on silence. Tunnels are often silent for long, so this is far above that of a body.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);

/// The counters of a tunnel's bytes.
#[derive(Clone)]
pub(crate) struct Bytes {
    /// From the client.
    pub(crate) sent: Counter,
    /// To the client.
    pub(crate) received: Counter,
}

/// What becomes of a client's connection that will speak another protocol once the head of the answer is written.
pub(crate) enum Switch {
    /// The whole connection.
    Http1(oneshot::Receiver<ReadAhead<Stream>>),
    /// One stream.
    Http2(OnUpgrade),
}

impl Switch {
    /// Waits for the switch. Nothing if the client left before.
    pub(crate) async fn switched(self) -> Option<Either<ReadAhead<Stream>, TokioIo<Upgraded>>> {
        match self {
            Self::Http1(switch) => switch.await.ok().map(Either::Left),
            Self::Http2(switch) => switch.await.ok().map(|stream| Either::Right(TokioIo::new(stream))),
        }
    }
}

/// Copies until both sides have closed, one fails, or nothing moved for `idle`.
pub(crate) async fn run<C, U>(client: C, upstream: U, bytes: &Bytes, idle: Duration) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Cell::new(Instant::now());
    let mut client = Counted { inner: client, count: &bytes.sent, moved: &moved };
    let mut upstream = Counted { inner: upstream, count: &bytes.received, moved: &moved };
    let silent = async {
        loop {
            let end = moved.get() + idle;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    };
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => copied.map(drop),
        () = silent => Err(io::Error::new(io::ErrorKind::TimedOut, "the tunnel was silent for too long")),
    }
}

/// Counts what is read.
struct Counted<'a, T> {
    inner: T,
    count: &'a Counter,
    moved: &'a Cell<Instant>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if poll.is_ready() {
            self.count.inc_by((buf.filled().len() - before) as u64);
            self.moved.set(Instant::now());
        }
        poll
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn bytes() -> Bytes {
        Bytes { sent: Counter::default(), received: Counter::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_tunnel_and_traffic_keeps_it() {
        let ((mut a, client), (upstream, mut b)) = (duplex(64), duplex(64));
        let start = Instant::now();
        let talk = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                a.write_all(b"x").await.unwrap();
                b.read_exact(&mut [0]).await.unwrap();
            }
            (a, b)
        });
        let ended = run(client, upstream, &bytes(), Duration::from_secs(10)).await.unwrap_err();
        assert_eq!((ended.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 50));
        talk.await.unwrap();
    }

    #[tokio::test]
    async fn a_side_that_has_sent_all_still_receives() {
        let ((mut a, client), (upstream, mut b)) = (duplex(64), duplex(64));
        let count = bytes();
        let both = tokio::join!(run(client, upstream, &count, IDLE), async {
            a.write_all(b"ask").await.unwrap();
            a.shutdown().await.unwrap();
            let mut asked = String::new();
            b.read_to_string(&mut asked).await.unwrap();
            b.write_all(b"answer").await.unwrap();
            drop(b);
            let mut answer = String::new();
            a.read_to_string(&mut answer).await.unwrap();
            (asked, answer)
        });
        assert_eq!(both.1, ("ask".to_owned(), "answer".to_owned()));
        assert_eq!((count.sent.get(), count.received.get()), (3, 6));
    }
}
