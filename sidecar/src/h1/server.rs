//! A client's connection that speaks HTTP/1: one request after the other, each with its answer, all in one task.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures::future::{Fuse, FusedFuture as _, FutureExt as _};
use http::{HeaderMap, Method, Response, StatusCode, Version, header, request::Parts};
use http_body::{Body as _, Frame, SizeHint};
use tokio::{sync::oneshot, time::Instant};

use super::{
    encode,
    framing::{self, Framing},
    head::Limits,
    socket::{BadBody, NoHead, Patience, Socket, Taking, Unwanted, linger_deadline},
};
use crate::{
    connection::Connection,
    error::ForwardError,
    fields::{self, Present},
    flow::{ClientBody, End, Flow, FlowError},
    io::{ReadAhead, Stream},
    pace::Rate,
    pipeline,
    pressure::{self, Pressure, Step},
    reply,
    tunnel::Switch,
};

/// The connection, as its requests' bodies share it.
struct Client {
    socket: RefCell<Socket>,
}

/// What the answer must know of its request.
struct Asked {
    method: Method,
    version: Version,
    /// Whether the client wants to send another request.
    persists: bool,
    /// Who gets the socket if the answer switches protocols.
    switch: Option<oneshot::Sender<ReadAhead<Stream>>>,
}

/// What happens to a connection after an answer.
enum After {
    /// The next request.
    Next,
    /// It is closed, so that the client gets all of the answer.
    Close,
    /// It has failed, its client has left, or it has got all that it wanted.
    Gone,
    /// It speaks another protocol.
    Switched(oneshot::Sender<ReadAhead<Stream>>),
}

/// Why an answer was not written to its end.
enum Cut {
    /// Its client does not take it, or has left.
    Client(io::Error),
    /// Its body broke off.
    Body(FlowError),
    /// Its body is not as long as announced.
    Length,
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}

/// Why no more of a body was moved to the outbox.
#[derive(Clone, Copy, PartialEq)]
enum Fill {
    /// Nothing comes at the moment.
    Waiting,
    /// What is there has to be written first.
    Full,
    /// It is all there.
    Ended,
}

/// Serves a connection to its end.
pub(crate) async fn serve(connection: Rc<Connection>, stream: Stream, ahead: BytesMut) {
    let config = connection.worker.config.load();
    let settings = config.settings();
    let patience = Patience { stall: settings.upstream.idle_timeout.0, rate: Rate::of(&settings.http.limits) };
    let pressure = &connection.worker.pressure;
    let socket = Socket::new(stream, ahead, Limits::of(&settings.http.limits), Arc::clone(pressure));
    drop(config);
    let client = Rc::new(Client { socket: RefCell::new(socket) });
    let mut closing = pin!(connection.worker.drain.closing(connection.direction).fuse());
    loop {
        let after = match client.next(Instant::from_std(connection.ended.get()), closing.as_mut(), pressure).await {
            Ok(None) => return,
            Ok(Some(head)) => exchange(&connection, &client, head, patience).await,
            Err(none) => client.refuse_head(&connection, none, patience).await,
        };
        match after {
            After::Next => {}
            After::Close => return client.linger().await,
            After::Gone => return,
            After::Switched(taker) => {
                // Nobody else holds it: a request that switches has no body.
                if let Ok(client) = Rc::try_unwrap(client) {
                    let (stream, ahead) = client.socket.into_inner().into_parts();
                    let _ = taker.send(ReadAhead::new(ahead, stream)); // whoever asked for it may have left
                }
                return;
            }
        }
    }
}

/// One request and its answer.
async fn exchange(connection: &Rc<Connection>, client: &Rc<Client>, head: Box<Parts>, patience: Patience) -> After {
    let present = Present::of(&head.headers);
    let framed = present.any(Present::TRANSFER_ENCODING.and(Present::CONTENT_LENGTH));
    let framing = if framed { framing::request(head.version, &head.headers) } else { Ok(Framing::Length(0)) };
    let framing = match framing {
        Ok(framing) => framing,
        Err(bad) => {
            connection.error("malformed_request");
            return client.refuse(connection, bad.status(), &bad.to_string(), patience).await;
        }
    };
    let (request, asked) = client.begin(head, present, framing);
    let response = {
        let mut answer = pin!(pipeline::serve(Rc::clone(connection), request));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => {
                let mut socket = client.socket.borrow_mut();
                socket.flush_interims(cx);
                socket.poll_left(cx).map(|()| None)
            }
        })
        .await
    };
    let Some(response) = response else { return After::Gone };
    match client.answer(connection, response, asked, patience).await {
        After::Next if !client.finish_body().await => After::Close,
        after => after,
    }
}

impl Client {
    /// The head of the next request, which is waited for since then. Nothing if there is none: the client closed, was idle for too
    /// long, or is to leave, since the drain or want of memory asks for it.
    async fn next(
        &self,
        mut since: Instant,
        mut closing: Pin<&mut Fuse<impl Future<Output = ()>>>,
        pressure: &Pressure,
    ) -> Result<Option<Box<Parts>>, NoHead> {
        if !self.socket.borrow().is_idle() {
            since = Instant::now(); // its first byte is here, however long that took
        }
        poll_fn(|cx| {
            let mut socket = self.socket.borrow_mut();
            let head = socket.poll_head(cx, &mut since);
            if head.is_ready() || !socket.is_idle() {
                return head;
            }
            if closing.is_terminated() || closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            // Whoever gives memory back has the drain wake all who wait for it.
            if pressure.is(Step::Refuse) && since.elapsed() >= pressure::IDLE {
                pressure.reclaimed("client_connections", 1);
                return Poll::Ready(Ok(None));
            }
            head
        })
        .await
    }

    fn begin(self: &Rc<Self>, parts: Box<Parts>, present: Present, framing: Framing) -> (pipeline::Request, Asked) {
        let Parts { method, version, headers, .. } = &*parts;
        let expects = *version == Version::HTTP_11 && fields::expects_continue(headers, present);
        let number = self.socket.borrow_mut().begin(framing, expects);
        let bodiless = framing == Framing::Length(0);
        let switches = bodiless && (*method == Method::CONNECT || fields::upgrade(headers, present).is_some());
        let (switch, switched) = if switches { Some(oneshot::channel()) } else { None }.unzip();
        let persists = fields::persists(*version, headers, present);
        let asked = Asked { method: method.clone(), version: *version, persists, switch };
        let body = if bodiless {
            ClientBody::Empty
        } else {
            ClientBody::Http1(RequestBody { client: Rc::clone(self), number, ended: false })
        };
        // Who speaks HTTP/1.0 knows none (RFC 9110, section 15.2).
        let interims = (*version == Version::HTTP_11).then(|| Interims { client: Rc::downgrade(self), number });
        (pipeline::Request { parts, present, body, switch: switched.map(Switch::Http1), interims }, asked)
    }

    /// Writes an answer. One that breaks off before anything of it has left gives its place to another.
    async fn answer(
        &self,
        connection: &Connection,
        mut response: Box<Response<Flow>>,
        asked: Asked,
        patience: Patience,
    ) -> After {
        let version = asked.version;
        match self.write(connection, &mut response, asked, patience).await {
            Ok(after) => after,
            Err(Cut::Body(error)) if self.socket.borrow_mut().outbox.take_back() => {
                let error = ForwardError::of_body(error);
                response.body_mut().replace(error.status(), error.reason());
                let mut instead = Box::new(reply::instead(&error));
                let asked = Asked { method: Method::GET, version, persists: false, switch: None };
                match Box::pin(self.write(connection, &mut instead, asked, patience)).await {
                    Ok(_) => After::Close,
                    Err(_) => After::Gone,
                }
            }
            Err(Cut::Client(error)) => {
                let stalled = error.kind() == io::ErrorKind::TimedOut;
                if stalled && !response.body_mut().end(End::Untaken) {
                    connection.error("client_timeout");
                }
                After::Gone
            }
            Err(Cut::Body(_) | Cut::Length) => After::Gone, // the body tells
        }
    }

    async fn write(
        &self,
        connection: &Connection,
        response: &mut Response<Flow>,
        asked: Asked,
        patience: Patience,
    ) -> Result<After, Cut> {
        let (status, is_last) = (response.status(), !asked.persists);
        let left_waiting = self.socket.borrow_mut().refuse_continue();
        if status == StatusCode::SWITCHING_PROTOCOLS || (asked.method == Method::CONNECT && status.is_success()) {
            let Some(switch) = asked.switch else { return Ok(After::Gone) };
            response.headers_mut().remove(header::CONTENT_LENGTH); // nothing has a length here (RFC 9110, section 9.3.6)
            self.write_head(connection, response, Framing::Length(0), None, true);
            self.flush(patience).await?;
            return Ok(After::Switched(switch));
        }
        let bodiless = asked.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if status == StatusCode::NO_CONTENT {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        let framing = framing_of(response.body(), bodiless, asked.version);
        // A client that has sent all of its body would send its next request to a connection that is about to be closed.
        let burdened = poll_fn(|cx| self.socket.borrow_mut().poll_burdened(cx)).await;
        let closes = !asked.persists || left_waiting || burdened || framing == Framing::Close || response.body().closes();
        let persistence = match asked.version {
            _ if closes => Some("close"),
            Version::HTTP_10 => Some("keep-alive"),
            _ => None,
        };
        self.write_head(connection, response, framing, persistence, bodiless);
        let body = response.body_mut();
        if bodiless {
            drop(std::mem::replace(body, Flow::bytes("")));
            self.flush(patience).await?;
        } else {
            self.write_body(body, framing, patience).await?;
        }
        Ok(match closes {
            false => After::Next,
            // Nothing of this client is on its way that would have the kernel reset the connection.
            true if is_last && self.socket.borrow().has_had_all() => After::Gone,
            true => After::Close,
        })
    }

    fn write_head(
        &self,
        connection: &Connection,
        response: &Response<Flow>,
        framing: Framing,
        persistence: Option<&str>,
        bodiless: bool,
    ) {
        let (status, headers) = (response.status(), response.headers());
        let mut socket = self.socket.borrow_mut();
        let out = socket.outbox.begin();
        let dated = encode::response(out, status, headers);
        if let Some(persistence) = persistence {
            encode::field(out, "connection", persistence.as_bytes());
        }
        if !dated && !status.is_informational() {
            encode::field(out, "date", &connection.worker.date.now());
        }
        if bodiless && let Some(length) = headers.get(header::CONTENT_LENGTH) {
            // What a GET would have had.
            encode::field(out, "content-length", length.as_bytes());
        }
        encode::framing(out, framing, !bodiless);
    }

    async fn flush(&self, patience: Patience) -> io::Result<()> {
        let mut taking = Taking::default();
        poll_fn(|cx| self.socket.borrow_mut().poll_flush(cx, &mut taking, patience)).await
    }

    /// Passes a body on. While the client does not read, what it still sends goes on to the upstream.
    async fn write_body(&self, body: &mut Flow, framing: Framing, patience: Patience) -> Result<(), Cut> {
        let (mut left, mut taking, mut fill) = (framing, Taking::default(), Fill::Full);
        poll_fn(|cx| {
            loop {
                if fill != Fill::Ended {
                    fill = self.fill(cx, body, &mut left)?;
                }
                let flushed = self.socket.borrow_mut().poll_flush(cx, &mut taking, patience)?;
                match flushed {
                    Poll::Ready(()) if fill == Fill::Ended => return Poll::Ready(Ok(())),
                    Poll::Ready(()) if fill == Fill::Full => continue,
                    Poll::Ready(()) => {}
                    Poll::Pending => body.poll_upload(cx),
                }
                return match self.socket.borrow_mut().poll_left(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(Cut::Client(io::ErrorKind::ConnectionReset.into()))),
                    Poll::Pending => Poll::Pending,
                };
            }
        })
        .await
    }

    /// Moves pieces of a body to the outbox while there are some and it has room.
    fn fill(&self, cx: &mut Context<'_>, body: &mut Flow, left: &mut Framing) -> Result<Fill, Cut> {
        let wrong = |_| Cut::Length;
        while self.socket.borrow().outbox.has_room() {
            // The socket is not borrowed here: the body may read from it.
            let frame = Pin::new(&mut *body).poll_frame(cx);
            let outbox = &mut self.socket.borrow_mut().outbox;
            match frame {
                Poll::Pending => return Ok(Fill::Waiting),
                Poll::Ready(Some(Err(error))) => return Err(Cut::Body(error)),
                Poll::Ready(None) => return outbox.finish(*left, None).map(|()| Fill::Ended).map_err(wrong),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        outbox.chunk(data, left).map_err(wrong)?;
                        if *left == Framing::Length(0) && body.is_end_stream() {
                            return Ok(Fill::Ended);
                        }
                    }
                    Err(frame) => return outbox.finish(*left, frame.trailers_ref()).map(|()| Fill::Ended).map_err(wrong),
                },
            }
        }
        Ok(Fill::Full)
    }

    /// After an answer: true if nothing of its request is left on the connection.
    async fn finish_body(&self) -> bool {
        if self.socket.borrow().has_body_ended() {
            return true;
        }
        // An upstream over HTTP/2 may still hold the body, in a task of its own.
        self.socket.borrow_mut().disown();
        let mut unwanted = Unwanted::new();
        poll_fn(|cx| self.socket.borrow_mut().poll_discard(cx, &mut unwanted)).await
    }

    async fn linger(&self) {
        let deadline = linger_deadline();
        poll_fn(|cx| self.socket.borrow_mut().poll_linger(cx, deadline)).await;
    }

    async fn refuse_head(&self, connection: &Connection, none: NoHead, patience: Patience) -> After {
        match none {
            NoHead::Left => After::Gone,
            NoHead::Late => {
                connection.error("client_timeout");
                self.refuse(connection, StatusCode::REQUEST_TIMEOUT, "the head of the request took too long", patience).await
            }
            NoHead::Bad(bad) => {
                connection.error(bad.reason());
                self.refuse(connection, bad.status(), &bad.to_string(), patience).await
            }
        }
    }

    /// Answers what can't be understood, and closes.
    async fn refuse(&self, connection: &Connection, status: StatusCode, why: &str, patience: Patience) -> After {
        tracing::debug!(peer = %connection.peer, status = status.as_u16(), why, "A request was refused.");
        let asked = Asked { method: Method::GET, version: Version::HTTP_11, persists: false, switch: None };
        match self.answer(connection, Box::new(reply::refused(status, why)), asked, patience).await {
            After::Gone => After::Gone,
            _ => After::Close,
        }
    }
}

fn framing_of(body: &Flow, bodiless: bool, version: Version) -> Framing {
    match body.size_hint().exact() {
        _ if bodiless => Framing::Length(0),
        Some(length) => Framing::Length(length),
        None if version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::Close,
    }
}

/// Where the interim answers to a request go.
pub(crate) struct Interims {
    client: Weak<Client>,
    number: u64,
}

impl Interims {
    /// Passes one on; false if the client can't take it now, or does not wait any more.
    pub(crate) fn pass(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        self.client.upgrade().is_some_and(|client| client.socket.borrow_mut().interim(self.number, status, headers))
    }
}

/// The body of a request, as it is read from the connection for as long as that request is under way.
pub(crate) struct RequestBody {
    client: Rc<Client>,
    number: u64,
    ended: bool,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended
            && let Ok(mut socket) = self.client.socket.try_borrow_mut()
        {
            socket.forsake_body(self.number);
        }
    }
}

impl RequestBody {
    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        let mut socket = self.client.socket.borrow_mut();
        if self.ended {
            return Poll::Ready(None);
        }
        if !socket.serves(self.number) {
            return Poll::Ready(Some(Err(BadBody::Left)));
        }
        let frame = ready!(socket.poll_body(cx));
        self.ended = socket.has_body_ended();
        Poll::Ready(frame)
    }

    /// Whether all of it was read.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended
    }

    /// What is known of the length of what is left.
    pub(crate) fn size_hint(&self) -> SizeHint {
        let socket = self.client.socket.borrow();
        match socket.body_left() {
            _ if self.ended => SizeHint::with_exact(0),
            Some(left) if socket.serves(self.number) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}
