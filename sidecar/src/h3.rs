//! A client's connection that speaks HTTP/3: streams of QUIC, each with a request and its answer, all on the worker that took the connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use ::h3::{
    error::{Code, StreamError},
    server,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    connection::Connection,
    contain::contained,
    fields::Present,
    flow::{ClientBody, End, Flow},
    h1::{HEAD_LIMIT, encode::is_trailer, head::Limits},
    pace::Rate,
    pipeline,
    pressure::Step,
};

mod body;
mod frames;
pub mod transport;

pub(crate) use body::{BadBody, RequestBody};

/// Streams of a client at a time.
pub(crate) const MAX_STREAMS: u32 = 100;

/// Requests that may be on their way when the client is told that no more are taken.
const ON_THEIR_WAY: usize = MAX_STREAMS as usize;

/// Bytes of a body that are handed to QUIC at a time. A client that takes this much within the limit is slow, but not gone.
const PART: usize = 16 << 10;

type Connected = server::Connection<transport::Connection, Bytes>;
type Resolver = server::RequestResolver<transport::Connection, Bytes>;
type Sender = server::RequestStream<transport::Send, Bytes>;

/// Serves a connection to its end.
pub(crate) async fn serve(connection: Rc<Connection>, quic: quinn::Connection) {
    let _open = connection.worker.connection_gauge(connection.direction, "http3");
    let head = Limits::of(&connection.worker.config.load().settings().http.limits).head();
    let transport = transport::Connection::new(quic.clone(), head);
    let built = server::builder().max_field_section_size(head as u64).send_grease(false).build(transport).await;
    let Ok(mut h3) = built else { return connection.error("malformed_request") };
    let mut requests = JoinSet::new();
    let worker = &connection.worker;
    let announced = worker.drain.announced_or_wanted(connection.direction, || worker.pressure.is(Step::Refuse));
    let closing = connection.worker.drain.closing(connection.direction);
    tokio::pin!(announced, closing);
    let (mut told, mut closes) = (false, false);
    while !(closes && requests.is_empty()) {
        tokio::select! {
            biased;
            () = connection.progress.flooded() => {
                connection.error("reset_flood");
                return transport::close(&quic, Code::H3_EXCESSIVE_LOAD);
            }
            () = &mut announced, if !told => {
                told = true;
                if h3.shutdown(ON_THEIR_WAY).await.is_err() {
                    return;
                }
            }
            () = &mut closing, if !closes => closes = true,
            Some(_) = requests.join_next(), if !requests.is_empty() => {}
            accepted = accept(&mut h3) => match accepted {
                Some(resolver) => drop(requests.spawn_local(exchange(Rc::clone(&connection), resolver))),
                None => return, // it has ended, and so have its requests
            },
        }
    }
}

async fn accept(h3: &mut Connected) -> Option<Resolver> {
    h3.accept().await.inspect_err(|error| tracing::debug!(%error, "A client's connection was closed.")).ok().flatten()
}

/// One request and its answer. A panic ends this stream only.
async fn exchange(connection: Rc<Connection>, resolver: Resolver) {
    let panics = connection.worker.metrics.panics.clone();
    let exchanged = contained(&panics, async {
        let (request, stream) = match timeout(HEAD_LIMIT, resolver.resolve_request()).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => return reason(&error).into_iter().for_each(|reason| connection.error(reason)),
            Err(_) => return connection.error("client_timeout"),
        };
        let (mut send, recv) = stream.split();
        let (mut parts, ()) = request.into_parts();
        parts.version = Version::HTTP_3;
        let Ok(body) = RequestBody::begin(recv, &parts).await else {
            send.stop_stream(Code::H3_MESSAGE_ERROR);
            return connection.error("malformed_request");
        };
        let body = body.map_or(ClientBody::Empty, |body| ClientBody::Http3(Box::new(body)));
        let head_only = parts.method == Method::HEAD;
        let present = Present::of(&parts.headers);
        let request = pipeline::Request { parts: Box::new(parts), present, body, switch: None, interims: None };
        let response = pipeline::serve(Rc::clone(&connection), request).await;
        answer(&connection, send, *response, head_only).await;
    });
    let _ = exchanged.await; // it was counted
}

/// Why a head could not be read, if its client is to blame for more than having left.
fn reason(error: &StreamError) -> Option<&'static str> {
    match error {
        StreamError::HeaderTooBig { .. } => Some("header_too_large"),
        StreamError::StreamError { .. } => Some("malformed_request"),
        StreamError::RemoteTerminate { code, .. } if *code == Code::H3_EXCESSIVE_LOAD => Some("header_too_large"),
        _ => None,
    }
}

/// Why an answer did not arrive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Failed {
    /// The client takes nothing of it.
    Untaken,
    /// The client has left.
    Left,
    /// It broke off.
    Broken,
}

/// How long a client may take.
#[derive(Clone, Copy)]
struct Patience {
    /// For a part of an answer.
    part: Duration,
    /// For what lies in the buffer of QUIC when all of the answer is there.
    rest: Duration,
}

impl Patience {
    fn of(connection: &Connection) -> Self {
        let config = connection.worker.config.load();
        let rest = config.settings().upstream.idle_timeout.0;
        Self { part: rest.min(Rate::of(&config.settings().http.limits).time_for(PART as u64)), rest }
    }
}

async fn answer(connection: &Connection, mut send: Sender, response: Response<Flow>, head_only: bool) {
    let patience = Patience::of(connection);
    let (mut parts, mut body) = response.into_parts();
    let bodiless = head_only || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let headers = &mut parts.headers;
    headers.remove(header::CONNECTION);
    if !headers.contains_key(header::DATE) {
        let date = HeaderValue::from_bytes(&connection.worker.date.now());
        headers.extend(date.ok().map(|date| (header::DATE, date)));
    }
    if let Some(length) = body.size_hint().exact().filter(|_| !bodiless && !headers.contains_key(header::CONTENT_LENGTH)) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let head = Response::from_parts(parts, ());
    let Err(failed) = write(&mut send, head, (!bodiless).then_some(&mut body), patience).await else { return };
    send.stop_stream(if failed == Failed::Broken { Code::H3_INTERNAL_ERROR } else { Code::H3_REQUEST_CANCELLED });
    if failed == Failed::Untaken && !body.end(End::Untaken) {
        connection.error("client_timeout");
    }
}

async fn write(send: &mut Sender, head: Response<()>, body: Option<&mut Flow>, patience: Patience) -> Result<(), Failed> {
    taken(patience.part, send.send_response(head)).await?;
    if let Some(body) = body {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            match frame.map_err(|_| Failed::Broken)?.into_data() {
                Ok(mut data) => {
                    while !data.is_empty() {
                        let part = data.split_to(data.len().min(PART));
                        taken(patience.part, send.send_data(part)).await?;
                    }
                }
                Err(frame) => {
                    let trailers = sendable(frame.into_trailers().unwrap_or_default());
                    taken(patience.part, send.send_trailers(trailers)).await?;
                }
            }
        }
    }
    // The connection has to stand until the client has the rest. If that takes too long, nobody waits, but QUIC goes on for as long as it can.
    match timeout(patience.rest, send.finish()).await {
        Ok(finished) => finished.map_err(|_| Failed::Left),
        Err(_) => Ok(()),
    }
}

/// Trailers without the fields that are the upstream's connection's, or come too late (RFC 9114, section 4.2).
fn sendable(trailers: HeaderMap) -> HeaderMap {
    if trailers.keys().all(is_trailer) {
        return trailers;
    }
    trailers.iter().filter(|(name, _)| is_trailer(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Waits until the client has taken something.
async fn taken(limit: Duration, sent: impl Future<Output = Result<(), StreamError>>) -> Result<(), Failed> {
    match timeout(limit, sent).await {
        Ok(sent) => sent.map_err(|_| Failed::Left),
        Err(_) => Err(Failed::Untaken),
    }
}
