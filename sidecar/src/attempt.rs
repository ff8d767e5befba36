//! One try, and the one retry that is always safe: for a request that its connection did not carry, or its upstream did not
//! process.

use std::{
    borrow::Cow,
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, Instant as StdInstant},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::{
    error::ForwardError,
    exchange::Timeouts,
    fields::{self, Hop, Present},
    flow::{Failure, Flow, Upload},
    metrics::{Meter, Metrics, RequestLabels},
    pipeline,
    shadow::Shadow,
    timer::Timer,
    upstream::{
        Key, Limits, Protocol, UpstreamError,
        h1::{self, Answer, Broken, Head},
        h2,
        pool::{Host, Pool},
    },
    websocket,
};

/// A request as it goes to an upstream.
pub(crate) struct Call {
    /// The upstream, by the name or address that it was asked for by.
    pub(crate) key: Key,
    /// Its head, as the upstream gets it.
    pub(crate) head: Box<Parts>,
    /// What the client's head had.
    pub(crate) present: Present,
    /// A hop that is written behind it.
    pub(crate) hop: Option<Rc<Hop>>,
    pub(crate) upload: Upload,
    pub(crate) timeouts: Timeouts,
    /// Time limits that only watch.
    pub(crate) shadow: Option<Rc<Shadow>>,
    pub(crate) max_connections: usize,
    /// How long its connection may be idle afterwards.
    pub(crate) keep: Duration,
    /// What limits it.
    pub(crate) timer: Rc<RefCell<Timer>>,
    /// When the client's request began.
    pub(crate) started: StdInstant,
}

impl Call {
    /// When the client's request began, by the runtime's clock.
    pub(crate) fn started(&self) -> Instant {
        Instant::from_std(self.started)
    }
}

/// What an upstream answered.
pub(crate) enum Answered {
    /// A response.
    Response(Box<Response<Flow>>),
    /// Another protocol.
    Switched(Response<()>, Switched),
}

/// What speaks another protocol now.
pub(crate) enum Switched {
    /// A connection.
    Connection(Box<h1::Switched>),
    /// A stream, which counts as under way for as long as it lives.
    Stream(TokioIo<Upgraded>, h2::Stream),
}

/// Why a try failed, and whether the request may be sent again.
struct Failed {
    error: ForwardError,
    again: bool,
}

impl Failed {
    fn for_good(error: ForwardError) -> Self {
        Self { error, again: false }
    }
}

/// Sends a call to `key` and waits for the head of its response.
pub(crate) async fn send(
    pool: &Pool,
    metrics: &Metrics,
    meter: &Meter,
    mut labels: RequestLabels,
    key: &Key,
    call: &Call,
) -> Result<Answered, ForwardError> {
    let started = StdInstant::now();
    let limits = Limits { connect: call.timeouts.connect, idle: call.keep, connections: call.max_connections };
    let scope = Scope { limits, end: End::of(call), began: call.shadow.is_some().then(Instant::now) };
    let mut outcome = match agreed(pool, &scope, key, call).await {
        Ok((key, scope)) => {
            if key.protocol == Protocol::Http2 {
                labels = labels.over(Version::HTTP_2);
            }
            with_retry(pool, metrics, scope, &key, call).await
        }
        Err(error) => Err(error),
    };
    if let (Err(error), Some(end)) = (&mut outcome, scope.end)
        && error.is_timeout()
        && end.is_client_late()
    {
        *error = ForwardError::TooLate(end.limit);
    }
    if let Some(shadow) = &call.shadow {
        shadow.tried(started.elapsed());
        shadow.answered(call.started.elapsed());
    }
    match &outcome {
        Ok(Answered::Response(response)) => labels = labels.answered(response.status()),
        Ok(Answered::Switched(response, _)) => labels = labels.answered(response.status()),
        Err(error) => labels.error_type = Some(error.reason()),
    }
    meter.attempt_ended(&labels, started.elapsed());
    outcome
}

/// The upstream with the protocol that it chooses under TLS, and what is left of the time for a connection. A switch to another protocol is
/// asked for in HTTP/1.1.
async fn agreed<'a>(pool: &Pool, scope: &Scope, key: &'a Key, call: &Call) -> Result<(Cow<'a, Key>, Scope), ForwardError> {
    let Some(tls) = key.tls.as_ref().filter(|_| !call.head.headers.contains_key(header::UPGRADE)) else {
        return Ok((Cow::Borrowed(key), *scope));
    };
    let (protocol, scope) = match tls.known() {
        Some(known) => (known, *scope),
        None => {
            let (limits, began) = (scope.limits()?, Instant::now());
            let protocol = Box::pin(pool.protocol(key, tls, limits.connect)).await?;
            let connect = scope.limits.connect.saturating_sub(began.elapsed());
            (protocol, Scope { limits: Limits { connect, ..scope.limits }, ..*scope })
        }
    };
    Ok((if protocol == key.protocol { Cow::Borrowed(key) } else { Cow::Owned(Key { protocol, ..key.clone() }) }, scope))
}

async fn with_retry(pool: &Pool, metrics: &Metrics, scope: Scope, key: &Key, call: &Call) -> Result<Answered, ForwardError> {
    let host = pool.host(key, &scope.limits);
    let attempt = Attempt { pool, metrics, protocol: key.protocol, host: &host, scope, call };
    match attempt.try_once(false).await {
        Err(Failed { again: true, .. }) => {
            metrics.retries.inc();
            let scope = Scope { began: scope.began.map(|_| Instant::now()), ..scope };
            Attempt { scope, ..attempt }.try_once(true).await.map_err(|failed| failed.error)
        }
        outcome => outcome.map_err(|failed| failed.error),
    }
}

/// What all tries of a call share.
struct Attempt<'a> {
    pool: &'a Pool,
    metrics: &'a Metrics,
    host: &'a Rc<Host>,
    protocol: Protocol,
    scope: Scope,
    call: &'a Call,
}

/// How long the tries may take.
#[derive(Clone, Copy)]
struct Scope {
    limits: Limits,
    end: Option<End>,
    /// When the first one began, where somebody wants to know how long a connection took.
    began: Option<Instant>,
}

impl Scope {
    /// The limits on a connection for what is left of the whole request's time. An error if nothing is left.
    fn limits(&self) -> Result<Limits, ForwardError> {
        let Some(end) = self.end else { return Ok(self.limits) };
        let left = end.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(if end.of_try { ForwardError::ResponseTimeout(end.limit) } else { ForwardError::TooLate(end.limit) });
        }
        Ok(Limits { connect: self.limits.connect.min(left), ..self.limits })
    }
}

/// When the head of the response has to be there in any case, and the limit that says so.
#[derive(Clone, Copy)]
struct End {
    at: Instant,
    limit: Duration,
    /// Whether that is the limit on one try.
    of_try: bool,
    /// Whether that is how long the client waits.
    of_client: bool,
}

impl End {
    /// The limit on the whole request, or that on one try, whichever ends first.
    fn of(call: &Call) -> Option<Self> {
        let Timeouts { request, per_try, of_client, .. } = call.timeouts;
        let total = request.map(|limit| Self { at: call.started() + limit, limit, of_try: false, of_client });
        let per_try = per_try.map(|limit| Self { at: Instant::now() + limit, limit, of_try: true, of_client: false });
        [total, per_try].into_iter().flatten().min_by_key(|end| end.at)
    }

    /// Whether its client, who may be in a hurry, does not wait any longer.
    fn is_client_late(&self) -> bool {
        self.of_client && Instant::now() >= self.at
    }
}

impl Attempt<'_> {
    async fn try_once(&self, fresh: bool) -> Result<Answered, Failed> {
        match self.protocol {
            Protocol::Http1 => self.over_h1(fresh).await,
            Protocol::Http2 => Box::pin(self.over_h2()).await,
        }
    }

    async fn over_h1(&self, fresh: bool) -> Result<Answered, Failed> {
        let limits = self.scope.limits().map_err(Failed::for_good)?;
        let pooled = if fresh { None } else { self.pool.pooled(self.host).await };
        let taken = match pooled {
            Some(taken) => taken,
            None => self.in_time_left(self.watched(Box::pin(self.pool.open(self.host, &limits))).await)?,
        };
        self.count(taken.reused);
        if !taken.reused {
            self.call.upload.restart(); // opening it took the time of another limit
        }
        let (Parts { method, uri, headers, .. }, upload) = (&*self.call.head, &self.call.upload);
        let present = self.call.present;
        let asked = if present.any(Present::UPGRADE) { headers.get(header::UPGRADE) } else { None };
        let added = self.call.hop.as_deref().map_or(&[][..], Hop::lines);
        let head = Head { method, uri, headers, present, added };
        let sent = pin!(h1::send(taken.conn, Rc::clone(self.host), head, upload.clone()));
        match self.in_time(sent).await.map_err(Failed::for_good)? {
            Ok(Answer::Response(response)) => Ok(Answered::Response(Box::new(
                response.map(|reply| Flow::reply(reply, self.call.timeouts.idle).watched(self.call.shadow.clone())),
            ))),
            Ok(Answer::Switched(response, _)) if !switches(&response, asked) => Err(Failed::for_good(ForwardError::Switched)),
            Ok(Answer::Switched(response, switched)) => Ok(Answered::Switched(response, Switched::Connection(switched))),
            Err(broken) => Err(self.broken(broken, taken.reused)),
        }
    }

    async fn over_h2(&self) -> Result<Answered, Failed> {
        let limits = self.scope.limits().map_err(Failed::for_good)?;
        let taken = self.in_time_left(self.watched(self.pool.take_h2(self.host, &limits)).await)?;
        self.count(taken.reused);
        self.call.upload.restart();
        let switches = websocket::is_asked(&self.call.head.headers);
        if switches && !self.in_time(pin!(taken.conn.takes_connect())).await.map_err(Failed::for_good)? {
            return Err(Failed::for_good(ForwardError::NotSwitched));
        }
        if let Some(permission) = self.call.upload.permission() {
            permission.give(); // nobody will ask for it
        }
        let sent = pin!(taken.conn.send(self.request().map_err(Failed::for_good)?));
        match self.in_time(sent).await.map_err(Failed::for_good)? {
            Ok((response, stream)) if switches && response.status() == StatusCode::OK => self.switched(response, stream).await,
            Ok((response, stream)) => Ok(Answered::Response(Box::new(
                response.map(|body| Flow::stream(body, stream, self.call.timeouts.idle).watched(self.call.shadow.clone())),
            ))),
            Err(refused) => {
                let unsent = (refused.unsent && taken.reused) || refused.unprocessed;
                Err(Failed { error: self.blame(refused.error.into()), again: unsent && !self.call.upload.is_touched() })
            }
        }
    }

    /// A stream that an extended CONNECT has opened.
    async fn switched(&self, mut response: Response<Incoming>, stream: h2::Stream) -> Result<Answered, Failed> {
        let upgraded = hyper::upgrade::on(&mut response).await;
        let upgraded = upgraded.map_err(|error| Failed::for_good(ForwardError::Broken(error.into())))?;
        let head = websocket::switched(response.headers(), &self.call.head.headers);
        Ok(Answered::Switched(head, Switched::Stream(TokioIo::new(upgraded), stream)))
    }

    fn request(&self) -> Result<Request<Upload>, ForwardError> {
        let mut head = (*self.call.head).clone();
        if self.call.key.protocol == Protocol::Http1 {
            pipeline::in_http2(&mut head)?;
        }
        head.headers.remove(header::EXPECT); // the library hides what would be the answer
        head.version = Version::HTTP_2;
        head.extensions.clear();
        let mut request = Request::from_parts(head, self.call.upload.clone());
        if websocket::is_asked(request.headers()) {
            websocket::to_stream(&mut request);
        }
        Ok(request)
    }

    /// Waits for a connection, and tells the limits in Shadow how long that took.
    async fn watched<T>(&self, taken: impl Future<Output = T>) -> T {
        let taken = taken.await;
        if let (Some(shadow), Some(began)) = (&self.call.shadow, self.scope.began) {
            shadow.connected(began.elapsed());
        }
        taken
    }

    /// A connection that was waited for; nothing is to be sent on it once the whole request's time is up.
    fn in_time_left<T>(&self, taken: Result<T, ForwardError>) -> Result<T, Failed> {
        let taken = taken.map_err(Failed::for_good)?;
        self.scope.limits().map_err(Failed::for_good)?;
        Ok(taken)
    }

    fn count(&self, reused: bool) {
        if reused {
            self.metrics.reused.inc()
        } else {
            self.metrics.opened.inc()
        };
    }

    fn broken(&self, broken: Broken, reused: bool) -> Failed {
        let again = reused && !self.call.upload.is_touched() && may_go_again(&broken, &self.call.head.method);
        Failed { error: self.blame(broken.error), again }
    }

    /// An upload that failed breaks the upstream's connection too, but it is not the upstream's fault.
    fn blame(&self, error: UpstreamError) -> ForwardError {
        match self.call.upload.failure() {
            Some(Failure::Broken) => ForwardError::BodyBroken,
            Some(Failure::Idle) => ForwardError::BodyIdle,
            Some(Failure::Slow) => ForwardError::BodySlow,
            Some(Failure::TooLarge(max)) => ForwardError::BodyTooLarge(max),
            Some(Failure::Shed) => ForwardError::NoMemory,
            None => ForwardError::Broken(error),
        }
    }

    /// Waits until the head is late: the whole request has a limit of its own, an upload may pause for `idle`, and once it is
    /// sent the head has to come.
    async fn in_time<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, ForwardError> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            let (deadline, limit) = self.deadline();
            ready!(self.call.timer.borrow_mut().poll(cx, deadline));
            Poll::Ready(Err(ForwardError::ResponseTimeout(limit)))
        })
        .await
    }

    fn deadline(&self) -> (Instant, Duration) {
        let limit = if self.call.upload.is_done() { self.call.timeouts.head } else { self.call.timeouts.idle };
        let head = self.call.upload.moved() + limit;
        match self.scope.end {
            Some(end) if end.at < head => (end.at, end.limit),
            _ => (head, limit),
        }
    }
}

/// Rule (b), for a pooled connection, which alone may have been closed before it could know of the request: the request may go again if
/// nothing of it left, or if no answer has begun and it asks for no effect (RFC 9110, section 9.2.1).
fn may_go_again(broken: &Broken, method: &Method) -> bool {
    broken.read == 0 && (broken.written == 0 || method.is_safe())
}

/// Whether an upstream switches to nothing but what it was asked for. A tunnel that CONNECT opens is no such switch.
fn switches(answer: &Response<()>, asked: Option<&HeaderValue>) -> bool {
    answer.status() != StatusCode::SWITCHING_PROTOCOLS || (asked.is_some() && fields::switches_as_asked(answer.headers(), asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_or_was_answered_goes_again_only_if_that_is_harmless() {
        let again =
            |method: Method, written, read| may_go_again(&Broken { error: UpstreamError::Closed, written, read }, &method);
        for safe in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(again(safe.clone(), 0, 0) && again(safe.clone(), 100, 0), "{safe}");
            assert!(!again(safe.clone(), 100, 1), "{safe}: an answer has begun");
        }
        for unsafe_one in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::CONNECT] {
            assert!(again(unsafe_one.clone(), 0, 0), "{unsafe_one}: nothing of it left");
            assert!(!again(unsafe_one.clone(), 1, 0), "{unsafe_one}");
        }
    }
}
