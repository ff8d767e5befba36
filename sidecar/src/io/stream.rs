//! A socket in clear or under TLS, as HTTP sees it. It is an enum and not a trait object, so that in clear it costs a branch that
//! is always the same.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use rustix::net::{RecvFlags, SendFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

/// A stream with bytes that were read from it before, which come first.
pub(crate) struct ReadAhead<T> {
    ahead: Bytes,
    inner: T,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(ahead: Bytes, inner: T) -> Self {
        Self { ahead, inner }
    }

    pub(crate) fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let len = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
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

/// A connection to a client or to an upstream.
pub(crate) enum Stream {
    /// In clear.
    Plain(TcpStream),
    /// Under TLS. Boxed, for its state is a hundred times that of a socket.
    Tls(Box<TlsStream<ReadAhead<TcpStream>>>),
}

impl Stream {
    /// Ready when reading may give something. Nothing is read, so an idle connection needs no buffer.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read_ready(cx),
            Self::Tls(stream) => match stream.get_ref() {
                (socket, session) if session.wants_read() && socket.ahead.is_empty() => socket.inner.poll_read_ready(cx),
                _ => Poll::Ready(Ok(())), // there is something to decrypt, or it is decrypted already
            },
        }
    }

    /// Watches a connection on which nothing is expected. Ready when it is of no use any more: it was closed, or the peer speaks
    /// unasked. What TLS says for itself, such as session tickets, is no word of the peer.
    pub(crate) fn poll_disturbed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(socket) => loop {
                match ready!(socket.poll_read_ready(cx)) {
                    // It may be an old event: only reading tells.
                    Ok(()) => match socket.try_read(&mut [0]) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        _ => return Poll::Ready(()),
                    },
                    Err(_) => return Poll::Ready(()),
                }
            },
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).map(drop),
        }
    }

    /// Reads what is here to the end of `buf`, up to `room` bytes; 0 at the end of the stream. There is no buffer while nothing comes.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut, room: usize) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => loop {
                ready!(socket.poll_read_ready(cx))?;
                buf.reserve(room);
                if let Some(read) = receive(socket, buf)? {
                    return Poll::Ready(Ok(read));
                }
            },
            Self::Tls(_) => {
                ready!(self.poll_read_ready(cx))?;
                buf.reserve(room);
                poll_read_buf(Pin::new(self), cx, buf)
            }
        }
    }

    /// Whether it is under TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Reads once. None if there is nothing yet.
///
/// The system call is made directly: the C library's makes a thread cancellable meanwhile, which costs as much as a short head
/// does to parse.
fn receive(socket: &TcpStream, buf: &mut BytesMut) -> io::Result<Option<usize>> {
    let (mut got, spare) = (None, buf.spare_capacity_mut());
    let tried = socket.try_io(Interest::READABLE, || {
        let (_, read) = rustix::net::recv(socket, &mut *spare, RecvFlags::empty())?;
        got = Some(read);
        // Less than there is room for: the socket is empty now, so the next attempt has to wait for its event.
        if read > 0 && read < spare.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (got, tried) {
        (Some(read), _) => {
            // SAFETY: `recv` has written the first `read` bytes behind the end of the buffer, which has room for them.
            unsafe { buf.set_len(buf.len() + read) };
            Ok(Some(read))
        }
        (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        (None, _) => Ok(None),
    }
}

fn poll_send(socket: &TcpStream, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        match socket.try_io(Interest::WRITABLE, || Ok(rustix::net::send(socket, buf, SendFlags::NOSIGNAL)?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_write_ready(cx))?,
            sent => return Poll::Ready(sent),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => poll_send(socket, cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(_) => Poll::Ready(Ok(())), // a socket has nothing to flush
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
