//! HTTP/2 connections to upstreams: one a worker and upstream, driven by a task, opened on first use.

use std::{cell::Cell, rc::Rc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::Instant};

use super::pool::Permit;
use crate::{flow::Upload, io::UpstreamIo, worker::LocalExecutor};

/// Window of one stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// An open connection; clones share it.
#[derive(Clone)]
pub(crate) struct H2 {
    sender: SendRequest<Upload>,
    used: Rc<Used>,
}

/// Streams under way, and since when there is none.
struct Used {
    streams: Cell<usize>,
    since: Cell<Instant>,
}

impl H2 {
    /// Makes a connection of a socket.
    pub(crate) async fn open(stream: TcpStream, permit: Permit) -> Result<Self, hyper::Error> {
        let (sender, connection) = Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 << 10)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(TokioIo::new(UpstreamIo::new(stream)))
            .await?;
        tokio::task::spawn_local(async move {
            // Its error reaches the streams.
            let _ = connection.await;
            drop(permit);
        });
        let used = Used { streams: Cell::new(0), since: Cell::new(Instant::now()) };
        Ok(Self { sender, used: Rc::new(used) })
    }

    /// Whether it takes no more streams.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it had no stream for `limit`.
    pub(crate) fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        self.used.streams.get() == 0 && now.duration_since(self.used.since.get()) >= limit
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(
        mut self,
        request: Request<Upload>,
    ) -> Result<(Response<Incoming>, Stream), TrySendError<Request<Upload>>> {
        let stream = Stream::new(Rc::clone(&self.used));
        let response = self.sender.try_send_request(request).await?;
        Ok((response, stream))
    }
}

/// A stream under way.
pub(crate) struct Stream(Rc<Used>);

impl Stream {
    fn new(used: Rc<Used>) -> Self {
        used.streams.set(used.streams.get() + 1);
        Self(used)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.since.set(Instant::now());
    }
}
