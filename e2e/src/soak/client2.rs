//! A client over HTTP/2, in clear or over TLS, with several exchanges on one connection.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio_util::task::AbortOnDropHandle;

use super::ask::Ask;
use super::client1::Io;
use super::ledger::{Answer, Outcome};
use super::pattern::Check;
use super::streams::{Echo, WINDOWS, read_body, send_body};
use super::wire::rest;

/// A connection. It ends when this value is dropped.
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    driven: AbortOnDropHandle<()>,
}

/// What a stream that stays open is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    WebSocket,
    Grpc,
}

impl Connection {
    pub(super) async fn new(io: Box<dyn Io>) -> anyhow::Result<Self> {
        let mut builder = h2::client::Builder::new();
        let [stream, connection] = WINDOWS;
        builder.initial_window_size(stream).initial_connection_window_size(connection).enable_push(false);
        let (send, connection) = builder.handshake(io).await?;
        let driven = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its streams tell of its end.
            let _ = connection.await;
        }));
        Ok(Self { send, driven })
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.driven.is_finished()
    }

    /// Sends a request and reads its answer, both at once, for an answer may come early.
    pub(super) async fn exchange(&self, ask: &Ask) -> Outcome {
        let request = request(ask).body(()).expect("its parts are constants and numbers");
        let (answer, mut up) = match self.start(request, ask.upload == 0).await {
            Ok(streams) => streams,
            Err(error) => return Outcome::Gone(error.to_string()),
        };
        let sending = async {
            if ask.upload > 0 {
                rest(ask.write_pace).await;
                send_body(&mut up, ask.id, ask.upload, ask.write_pace).await?;
                up.send_data(Bytes::new(), true)?;
            }
            anyhow::Ok(())
        };
        let receiving = receive(answer, ask);
        tokio::pin!(sending, receiving);
        let mut sent = false;
        loop {
            tokio::select! {
                biased;
                outcome = &mut receiving => return outcome,
                // A stream that takes no more may still hold an answer.
                _ = &mut sending, if !sent => sent = true,
            }
        }
    }

    /// Opens a stream that the origin echoes on. It is open if the answer has the status 200.
    pub(super) async fn open(&self, ask: &Ask, purpose: Use) -> anyhow::Result<(Answer, Echo)> {
        let request = request(ask);
        let request = match purpose {
            Use::WebSocket => request
                .method(Method::CONNECT)
                .extension(Protocol::from_static("websocket"))
                .header("sec-websocket-version", "13"),
            Use::Grpc => request.method(Method::POST).header("content-type", "application/grpc").header("te", "trailers"),
        };
        let (answer, up) = self.start(request.body(())?, false).await?;
        let (head, down) = answer.await?.into_parts();
        Ok((answer_of(&Response::from_parts(head, ())), Echo { up, down }))
    }

    /// Whether the other end has said that it knows extended CONNECT.
    pub(super) fn opens_tunnels(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    async fn start(&self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.send.clone().ready().await?.send_request(request, end)
    }
}

fn request(ask: &Ask) -> http::request::Builder {
    let mut request = Request::builder().method(ask.method.clone()).uri(format!("http://soak{}", ask.path));
    for (name, value) in ask.fields() {
        request = request.header(name, value);
    }
    request
}

async fn receive(answer: ResponseFuture, ask: &Ask) -> Outcome {
    let response = match answer.await {
        Ok(response) => response,
        Err(error) => return Outcome::Gone(error.to_string()),
    };
    let (head, mut body): (_, RecvStream) = response.into_parts();
    let mut answer = answer_of(&Response::from_parts(head, ()));
    let mut check = Check::new(ask.id);
    answer.whole = read_body(&mut body, ask.read_pace, |bytes| check.feed(bytes)).await.is_ok();
    (answer.len, answer.good) = (check.len, check.good);
    Outcome::Answer(answer)
}

fn answer_of(response: &Response<()>) -> Answer {
    let headers = response.headers();
    let text = |name: &str| text(headers, name);
    Answer {
        status: response.status().as_u16(),
        id: text("x-id").and_then(|id| id.parse().ok()),
        got: text("x-got").and_then(|got| got.parse().ok()),
        round: text(super::proxy::ROUND).and_then(|round| round.parse().ok()),
        reason: text("proxy-status").map(str::to_owned),
        ..Answer::default()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
