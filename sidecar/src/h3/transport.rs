//! QUIC for the library that speaks HTTP/3, with a look at the frames of the peer. Its own (h3-quinn) would panic where a stream is stopped while it is
//! read.

use std::{
    future::Future,
    marker,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use bytes::{Buf as _, Bytes};
use quinn::{ConnectionError, ReadError, StoppedError, VarInt, WriteError};

use super::frames::Scanner;

type Ending = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + marker::Send + Sync>>;
type Accepting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + marker::Send + Sync>>;

/// A connection with a client; the tests have one with a server.
pub struct Connection {
    quic: quinn::Connection,
    bi: Option<Accepting<(quinn::SendStream, quinn::RecvStream)>>,
    uni: Option<Accepting<quinn::RecvStream>>,
    opener: Opener,
    /// Bytes of a frame that is kept in memory.
    largest: usize,
}

/// Opens streams.
pub struct Opener {
    quic: quinn::Connection,
    bi: Option<Accepting<(quinn::SendStream, quinn::RecvStream)>>,
    uni: Option<Accepting<quinn::SendStream>>,
    largest: usize,
}

/// A stream in both directions.
pub struct Bidi {
    send: Send,
    recv: Recv,
}

/// The sending half.
pub struct Send {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// Once all of it was written: until the peer has it.
    ending: Option<Ending>,
}

/// The receiving half.
pub struct Recv {
    stream: quinn::RecvStream,
    frames: Scanner,
}

impl Connection {
    /// HTTP/3 is to be spoken on it, in frames of at most so many bytes, but for DATA.
    pub fn new(quic: quinn::Connection, largest: usize) -> Self {
        let opener = Opener::new(quic.clone(), largest);
        Self { quic, bi: None, uni: None, opener, largest }
    }
}

impl quic::Connection<Bytes> for Connection {
    type RecvStream = Recv;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Recv, ConnectionErrorIncoming>> {
        let quic = &self.quic;
        let accepting = self.uni.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.accept_uni().await })
        });
        let accepted = ready!(accepting.as_mut().poll(cx));
        self.uni = None;
        let frames = Scanner::of_one_direction(self.largest);
        Poll::Ready(accepted.map(|stream| Recv { stream, frames }).map_err(lost))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, ConnectionErrorIncoming>> {
        let quic = &self.quic;
        let accepting = self.bi.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.accept_bi().await })
        });
        let accepted = ready!(accepting.as_mut().poll(cx));
        self.bi = None;
        Poll::Ready(accepted.map(|(send, recv)| Bidi::new(send, recv, self.largest)).map_err(lost))
    }

    fn opener(&self) -> Opener {
        Opener::new(self.quic.clone(), self.largest)
    }
}

impl quic::OpenStreams<Bytes> for Connection {
    type BidiStream = Bidi;
    type SendStream = Send;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Send, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl Opener {
    fn new(quic: quinn::Connection, largest: usize) -> Self {
        Self { quic, bi: None, uni: None, largest }
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Bidi;
    type SendStream = Send;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        let quic = &self.quic;
        let opening = self.bi.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.open_bi().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.bi = None;
        Poll::Ready(opened.map(|(send, recv)| Bidi::new(send, recv, self.largest)).map_err(lost_on_stream))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Send, StreamErrorIncoming>> {
        let quic = &self.quic;
        let opening = self.uni.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.uni = None;
        Poll::Ready(opened.map(Send::new).map_err(lost_on_stream))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quic.close(number(code.value()), reason);
    }
}

/// Closes a connection at once, whatever is under way on it.
pub(super) fn close(quic: &quinn::Connection, code: Code) {
    quic.close(number(code.value()), b"");
}

impl Bidi {
    fn new(send: quinn::SendStream, recv: quinn::RecvStream, largest: usize) -> Self {
        Self { send: Send::new(send), recv: Recv { stream: recv, frames: Scanner::of_request(largest) } }
    }
}

impl Send {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None, ending: None }
    }
}

impl quic::BidiStream<Bytes> for Bidi {
    type SendStream = Send;
    type RecvStream = Recv;

    fn split(self) -> (Send, Recv) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for Bidi {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for Bidi {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::RecvStream for Recv {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        // It keeps nothing between two polls but its place in the connection.
        let chunk = ready!(pin!(self.stream.read_chunk(usize::MAX, true)).poll(cx));
        let Some(chunk) = chunk.map_err(unread)? else { return Poll::Ready(Ok(None)) };
        if self.frames.pass(&chunk.bytes).is_err() {
            let error_code = Code::H3_EXCESSIVE_LOAD.value();
            self.stop_sending(error_code);
            return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code }));
        }
        Poll::Ready(Ok(Some(chunk.bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        let _ = self.stream.stop(number(code)); // it may have ended
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl quic::SendStream<Bytes> for Send {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(unwritten)?;
            data.advance(written);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.writing = Some(data.into()); // the library waits until it is ready first
        Ok(())
    }

    /// Waits until the peer has all of it, or wants no more. Until then it lies in a buffer, which a connection that is closed takes with it.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if self.ending.is_none() {
            ready!(self.poll_ready(cx))?;
            self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error)))?;
        }
        let stream = &self.stream;
        let ending = self.ending.get_or_insert_with(|| Box::pin(stream.stopped()));
        let ended = ready!(ending.as_mut().poll(cx));
        self.ending = None;
        Poll::Ready(ended.map(drop).map_err(unfinished))
    }

    fn reset(&mut self, code: u64) {
        let _ = self.stream.reset(number(code)); // it may have ended
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

fn number(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn id(stream: quinn::StreamId) -> StreamId {
    u64::from(VarInt::from(stream)).try_into().expect("QUIC numbers its streams as HTTP/3 does")
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: closed.error_code.into() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn lost_on_stream(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}

fn unread(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        ReadError::ConnectionLost(error) => lost_on_stream(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn unfinished(error: StoppedError) -> StreamErrorIncoming {
    match error {
        StoppedError::ConnectionLost(error) => lost_on_stream(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn unwritten(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => lost_on_stream(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}
