//! Messages as hyper reads them.

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};

use super::Message;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime without drivers needs nothing of the system");
}

/// The requests that a server gets whole.
pub(super) fn requests(input: &[u8]) -> Vec<Message> {
    let seen = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| async {
        let start = format!("{} {}", request.method(), request.uri());
        if let Ok(body) = request.into_body().collect().await {
            seen.borrow_mut().push(Message { start, body: body.to_bytes().to_vec() });
        }
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let io = TokioIo::new(Peer::new(input.to_vec(), true));
    // Its error says that it refuses the rest.
    let _ = run(server::conn::http1::Builder::new().half_close(true).header_read_timeout(None).serve_connection(io, service));
    seen.into_inner()
}

/// The whole answer that a client gets.
pub(super) fn response(input: &[u8]) -> Option<Message> {
    let io = TokioIo::new(Peer::new(input.to_vec(), false));
    let exchange = async {
        let (mut sender, connection) = client::conn::http1::handshake(io).await.ok()?;
        let sent = sender.send_request(Request::new(Empty::<Bytes>::new()));
        let answer = async {
            let response = sent.await.ok()?;
            let start = response.status().as_str().to_owned();
            Some(Message { start, body: response.into_body().collect().await.ok()?.to_bytes().to_vec() })
        };
        tokio::join!(answer, connection).0
    };
    run(exchange)
}

fn run<F: Future>(work: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(work))
}

/// A peer that says all of it at once, after it was spoken to if it is not the first to speak, and then no more.
struct Peer {
    says: io::Cursor<Vec<u8>>,
    speaks: bool,
    waits: Option<Waker>,
}

impl Peer {
    fn new(says: Vec<u8>, speaks: bool) -> Self {
        Self { says: io::Cursor::new(says), speaks, waits: None }
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.speaks {
            self.waits = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pin!(&mut self.says).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.speaks = true;
        if let Some(waits) = self.waits.take() {
            waits.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
