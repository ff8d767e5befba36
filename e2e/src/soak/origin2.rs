//! The origin over HTTP/2 in clear: it does what each request says, and books what it saw.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ask::{Does, Told};
use super::ledger::Ledger;
use super::origin1::DAWDLE;
use super::pattern::Check;
use super::proxy::GRPC;
use super::streams::{WINDOWS, next, read_body, send, send_body};
use super::wire::rest;

/// How a stream ends its connection.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Drain,
    Cut,
}

/// A stream's view of its origin.
#[derive(Clone)]
struct Here {
    ledger: Arc<Ledger>,
    leave: mpsc::UnboundedSender<Leave>,
}

/// Serves a connection to its end.
pub(super) async fn connection(stream: TcpStream, ledger: Arc<Ledger>) {
    let mut builder = h2::server::Builder::new();
    let [window, connection] = WINDOWS;
    builder.initial_window_size(window).initial_connection_window_size(connection).max_concurrent_streams(100);
    // Clients that leave are what this is about, so this end does not defend itself.
    builder.enable_connect_protocol().max_pending_accept_reset_streams(10_000).max_local_error_reset_streams(None);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (leave, mut leaving) = mpsc::unbounded_channel();
    let (here, mut streams) = (Here { ledger, leave }, JoinSet::new());
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let here = here.clone();
                streams.spawn(async move {
                    // A proxy that breaks off because its client did is an ordinary end.
                    let _ = here.exchange(request, respond).await;
                });
            }
            Some(_) = streams.join_next() => {}
            Some(how) = leaving.recv() => match how {
                Leave::Drain => connection.graceful_shutdown(),
                Leave::Cut => return,
            },
        }
    }
}

impl Here {
    async fn exchange(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> anyhow::Result<()> {
        let (head, mut body) = request.into_parts();
        let Some(told) = Told::of(|name| head.headers.get(name)?.to_str().ok()) else {
            self.ledger.breach(&format!("an origin got a request without its fields: {head:?}"));
            return Ok(());
        };
        let count = self.ledger.note(&told, head.method == Method::POST);
        let response = || Response::builder().header("x-id", told.id);
        if head.extensions.get::<Protocol>().is_some() {
            let mut down = respond.send_response(response().body(())?, false)?;
            echo(&mut body, &mut down).await?;
            return Ok(down.send_data(Bytes::new(), true)?);
        }
        if head.uri.path().ends_with(GRPC) {
            let mut down = respond.send_response(response().header("content-type", "application/grpc").body(())?, false)?;
            echo(&mut body, &mut down).await?;
            let trailers = [("grpc-status", 0), ("x-id", told.id)].map(|(name, value)| (name, HeaderValue::from(value)));
            let trailers = trailers.into_iter().map(|(name, value)| (http::HeaderName::from_static(name), value));
            return Ok(down.send_trailers(HeaderMap::from_iter(trailers))?);
        }
        let does = if count == 1 { told.does } else { Does::Answer };
        if does == Does::Refuse {
            respond.send_response(Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(())?, true)?;
            respond.send_reset(Reason::NO_ERROR);
            return Ok(());
        }
        let mut check = Check::new(told.id);
        read_body(&mut body, Duration::ZERO, |bytes| check.feed(bytes)).await?;
        self.ledger.uploaded(&told, check.len, check.good);
        match does {
            Does::Reset => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Does::Stall => return poll_fn(|cx| respond.poll_reset(cx)).await.map(drop).context("it is over"),
            Does::Hint => respond.send_informational(Response::builder().status(103).header("link", "</a>").body(())?)?,
            _ => {}
        }
        let down = respond.send_response(response().header("x-got", told.upload).body(())?, false)?;
        self.answer(down, told, does).await
    }

    async fn answer(&self, mut down: SendStream<Bytes>, told: Told, does: Does) -> anyhow::Result<()> {
        let len = if does.cuts() { told.answer / 2 } else { told.answer };
        let pace = if does == Does::Dawdle { DAWDLE } else { Duration::ZERO };
        send_body(&mut down, told.id, len, pace).await?;
        match does {
            Does::Half => {
                down.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Does::Part => return Ok(self.leave.send(Leave::Cut)?),
            _ => down.send_data(Bytes::new(), true)?,
        }
        if does == Does::Leave {
            rest(Duration::from_micros(fastrand::u64(0..3000))).await;
            self.leave.send(if told.id.is_multiple_of(2) { Leave::Drain } else { Leave::Cut })?;
        }
        Ok(())
    }
}

/// Sends every byte back, to the end.
async fn echo(up: &mut RecvStream, down: &mut SendStream<Bytes>) -> anyhow::Result<()> {
    while let Some(bytes) = next(up).await? {
        send(down, bytes).await?;
    }
    Ok(())
}
