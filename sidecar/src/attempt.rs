//! One try, and the one retry that is always safe: for a request that its connection did not carry, or its upstream did not
//! process.

use std::{
    future::Future,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant as StdInstant},
};

use http::{Extensions, HeaderMap, Method, Request, Response, Uri, Version, header};
use tokio::time::{Instant, timeout_at};

use crate::{
    error::ForwardError,
    exchange::Timeouts,
    fields,
    flow::{Flow, Upload},
    metrics::{Metrics, RequestLabels},
    upstream::{
        Key, Limits, Protocol,
        h1::{self, Answer, Broken, Switched},
        pool::{Host, Pool},
    },
};

/// A request as it goes to an upstream.
pub(crate) struct Call {
    pub(crate) key: Key,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) upload: Upload,
    pub(crate) timeouts: Timeouts,
    pub(crate) max_connections: usize,
    /// How long its connection may be idle afterwards.
    pub(crate) keep: Duration,
    /// When the client's request began.
    pub(crate) started: StdInstant,
}

/// What an upstream answered.
pub(crate) enum Answered {
    /// A response.
    Response(Response<Flow>),
    /// Another protocol.
    Switched(Response<()>, Box<Switched>),
}

/// Why a try failed, and whether the request may be sent again.
struct Failed {
    error: ForwardError,
    again: Option<Request<Upload>>,
}

impl Failed {
    fn for_good(error: ForwardError) -> Self {
        Self { error, again: None }
    }
}

/// Sends a call and waits for the head of its response.
pub(crate) async fn send(
    pool: &Pool,
    metrics: &Metrics,
    mut labels: RequestLabels,
    call: Call,
) -> Result<Answered, ForwardError> {
    let started = StdInstant::now();
    let outcome = with_retry(pool, metrics, call).await;
    match &outcome {
        Ok(Answered::Response(response)) => labels = labels.answered(response.status()),
        Ok(Answered::Switched(response, _)) => labels = labels.answered(response.status()),
        Err(error) => labels.error_type = Some(error.reason()),
    }
    metrics.attempt_ended(&labels, started.elapsed());
    outcome
}

async fn with_retry(pool: &Pool, metrics: &Metrics, call: Call) -> Result<Answered, ForwardError> {
    let limits = Limits { connect: call.timeouts.connect, idle: call.keep, connections: call.max_connections };
    let host = pool.host(&call.key, &limits);
    let attempt = Attempt {
        pool,
        metrics,
        host: &host,
        limits,
        protocol: call.key.protocol,
        timeouts: call.timeouts,
        upload: call.upload.clone(),
        total: call.timeouts.request.map(|limit| Instant::from_std(call.started) + limit),
    };
    let mut request = Request::new(call.upload);
    *request.method_mut() = call.method;
    *request.uri_mut() = call.uri;
    *request.headers_mut() = call.headers;
    match attempt.try_once(request, false).await {
        Err(Failed { again: Some(request), .. }) => {
            metrics.retries.inc();
            attempt.try_once(request, true).await.map_err(|failed| failed.error)
        }
        outcome => outcome.map_err(|failed| failed.error),
    }
}

/// What all tries of a call share.
struct Attempt<'a> {
    pool: &'a Pool,
    metrics: &'a Metrics,
    host: &'a Rc<Host>,
    limits: Limits,
    protocol: Protocol,
    timeouts: Timeouts,
    upload: Upload,
    total: Option<Instant>,
}

impl Attempt<'_> {
    async fn try_once(&self, mut request: Request<Upload>, fresh: bool) -> Result<Answered, Failed> {
        self.upload.restart();
        *request.extensions_mut() = Extensions::new();
        match self.protocol {
            Protocol::Http1 => self.over_h1(request, fresh).await,
            Protocol::Http2 => self.over_h2(request).await,
        }
    }

    async fn over_h1(&self, mut request: Request<Upload>, fresh: bool) -> Result<Answered, Failed> {
        let taken = self.take(self.pool.take(self.host, &self.limits().map_err(Failed::for_good)?, fresh)).await?;
        self.count(taken.reused);
        let spare = taken.reused.then(|| copy(&request));
        let asked = request.headers().get(header::UPGRADE).cloned();
        let switches = asked.is_some() || *request.method() == Method::CONNECT;
        if let Some(permission) = self.upload.permission() {
            hyper::ext::on_informational(&mut request, move |informational| {
                if informational.status() == http::StatusCode::CONTINUE {
                    permission.give();
                }
            });
        }
        let sent = h1::send(taken.conn, Rc::clone(self.host), request);
        match self.in_time(sent).await.map_err(Failed::for_good)? {
            Ok(Answer::Response(response)) if response.status() == http::StatusCode::SWITCHING_PROTOCOLS && !switches => {
                Err(Failed::for_good(ForwardError::Switched))
            }
            Ok(Answer::Response(response)) if !fields::is_plainly_framed(response.headers()) => {
                Err(Failed::for_good(ForwardError::ResponseCoding))
            }
            Ok(Answer::Response(response)) => {
                Ok(Answered::Response(response.map(|reply| Flow::reply(reply, self.timeouts.idle))))
            }
            Ok(Answer::Switched(response, _)) if !fields::switches_as_asked(response.headers(), asked.as_ref()) => {
                Err(Failed::for_good(ForwardError::Switched))
            }
            Ok(Answer::Switched(response, switched)) => Ok(Answered::Switched(response, switched)),
            Err(broken) => Err(self.broken(broken, spare)),
        }
    }

    async fn over_h2(&self, mut request: Request<Upload>) -> Result<Answered, Failed> {
        let taken = self.take(self.pool.take_h2(self.host, &self.limits().map_err(Failed::for_good)?)).await?;
        self.count(taken.reused);
        *request.version_mut() = Version::HTTP_2;
        let spare = copy(&request);
        match self.in_time(taken.conn.send(request)).await.map_err(Failed::for_good)? {
            Ok((response, stream)) => Ok(Answered::Response(response.map(|body| Flow::stream(body, stream, self.timeouts.idle)))),
            Err(refused) => {
                let unsent = refused.returned.filter(|_| taken.reused).or(refused.unprocessed.then_some(spare));
                Err(Failed { error: self.blame(refused.error), again: unsent.filter(|_| !self.upload.is_touched()) })
            }
        }
    }

    /// Waits for a connection; nothing is to be sent on it once the whole request's time is up.
    async fn take<T>(&self, taken: impl Future<Output = Result<T, ForwardError>>) -> Result<T, Failed> {
        let taken = taken.await.map_err(Failed::for_good)?;
        self.limits().map_err(Failed::for_good)?;
        Ok(taken)
    }

    /// The limits on a connection for what is left of the whole request's time. An error if nothing is left.
    fn limits(&self) -> Result<Limits, ForwardError> {
        let Some(total) = self.total else { return Ok(self.limits) };
        let left = total.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let limit = self.timeouts.request.unwrap_or_default();
            return Err(ForwardError::ResponseTimeout(limit));
        }
        Ok(Limits { connect: self.limits.connect.min(left), ..self.limits })
    }

    fn count(&self, reused: bool) {
        if reused {
            self.metrics.reused.inc()
        } else {
            self.metrics.opened.inc()
        };
    }

    /// Rule (b). Only a pooled connection may have been closed before it could know of the request. What it gave back was
    /// never sent. What it took may go again if nothing of it left, or if a repetition does no harm and no answer has begun.
    fn broken(&self, broken: Broken, spare: Option<Request<Upload>>) -> Failed {
        let again = match (broken.returned, spare) {
            (Some(returned), Some(_)) => Some(*returned),
            (None, Some(spare)) if !self.upload.is_touched() && broken.read == 0 => {
                (broken.written == 0 || spare.method().is_idempotent()).then_some(spare)
            }
            _ => None,
        };
        Failed { error: self.blame(broken.error), again }
    }

    /// An upload that failed breaks the upstream's connection too, but it is not the upstream's fault.
    fn blame(&self, error: hyper::Error) -> ForwardError {
        match self.upload.failure() {
            Some(crate::flow::Failure::Broken) => ForwardError::BodyBroken,
            Some(crate::flow::Failure::Idle) => ForwardError::BodyIdle,
            None => ForwardError::Broken(error),
        }
    }

    /// Waits until the head is late: the whole request has a limit of its own, an upload may pause for `idle`, and once it is
    /// sent the head has to come.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, ForwardError> {
        let mut work = pin!(work);
        loop {
            let (deadline, limit) = self.deadline();
            match timeout_at(deadline, work.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) if self.deadline().0 > Instant::now() => {}
                Err(_) => return Err(ForwardError::ResponseTimeout(limit)),
            }
        }
    }

    fn deadline(&self) -> (Instant, Duration) {
        let limit = if self.upload.is_done() { self.timeouts.head } else { self.timeouts.idle };
        let head = self.upload.moved() + limit;
        match self.total {
            Some(total) if total < head => (total, self.timeouts.request.unwrap_or(limit)),
            _ => (head, limit),
        }
    }
}

fn copy(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}
