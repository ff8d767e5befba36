//! One request: what is known of it, and what must happen when it ends.

use std::{
    borrow::Cow,
    cell::RefCell,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::proxy::Trace;
use http::{
    Method, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, Scheme},
};

use crate::{
    config::Config,
    connection::Connection,
    error::ForwardError,
    facts::Facts,
    fields::{self, Present},
    flow::{End, Flow, Upload},
    h1::head::ResponseHead,
    h2::strict,
    limit,
    metrics::RequestLabels,
    route::{Route, is_plain},
    throttle::{Asked, Deadline, Turn},
};

/// A client that leaves within this time never wanted the answer.
const SOON: Duration = Duration::from_secs(1);

/// One request on its way through the pipeline. It keeps the configuration that it started with.
pub(crate) struct Exchange {
    /// The client's connection.
    pub(crate) connection: Rc<Connection>,
    /// The configuration at its start.
    pub(crate) config: Arc<Config>,
    /// What holds for it.
    pub(crate) route: Route,
    /// When its head was complete.
    pub(crate) started: Instant,
    /// Version that the client speaks.
    pub(crate) version: Version,
    /// Host that it is for, as the client wrote it, with the port.
    pub(crate) authority: Rc<str>,
    /// Who sent it.
    pub(crate) client: IpAddr,
    /// Whether only the head of an answer is wanted.
    pub(crate) head_only: bool,
    /// Whether it is a gRPC call.
    pub(crate) grpc: bool,
    /// What the limits say to its client.
    pub(crate) limits: limit::Outcome,
    /// What throttles have to know of it, until they have let it through.
    pub(crate) turn: Option<Box<Turn>>,
    guards: Box<Guards>,
}

impl Exchange {
    /// Reads the head of a request and chooses its route. The error leaves an exchange that can still be answered.
    pub(crate) fn begin(connection: Rc<Connection>, parts: &mut Parts, present: Present) -> (Self, Result<(), ForwardError>) {
        let started = Instant::now();
        let config = connection.worker.config.load();
        let (authority, checked) = match connection.authority.of(parts, connection.entry.is_forward_proxy()) {
            Ok(authority) => (authority, Ok(())),
            Err(error) => (Rc::default(), Err(error)),
        };
        let checked =
            checked.and_then(|()| check(parts, present, &config, &connection)).and_then(|()| spell(parts, &config, &connection));
        let client = fields::client(&parts.headers, connection.peer.ip(), |address| config.trusts(address));
        let host = fields::host(&authority);
        let route = config.routes(connection.direction).select(&facts(&connection, parts, &host, client));
        let labels = RequestLabels::new(connection.direction, &parts.method, parts.version, route.label());
        let guards = Box::new(Guards::begin(Rc::clone(&connection), labels, started));
        let exchange = Self {
            config,
            route,
            started,
            version: parts.version,
            client,
            head_only: parts.method == Method::HEAD,
            grpc: present.any(Present::CONTENT_TYPE) && fields::is_grpc(&parts.headers),
            limits: limit::Outcome::default(),
            turn: None,
            guards,
            authority,
            connection,
        };
        (exchange, checked)
    }

    /// The host that it is for: in lower case, without a port.
    pub(crate) fn host(&self) -> Cow<'_, str> {
        fields::host(&self.authority)
    }

    /// What is known of it before anything is decided. `host` is its [`Self::host`].
    pub(crate) fn facts<'a>(&self, parts: &'a Parts, host: &'a str) -> Facts<'a> {
        facts(&self.connection, parts, host, self.client)
    }

    /// What matters on the way to the upstream.
    pub(crate) fn asking(&self) -> Asking<'_> {
        Asking {
            connection: &self.connection,
            config: &self.config,
            route: &self.route,
            authority: &self.authority,
            client: self.client,
        }
    }

    /// Whether it is one of several streams of its connection, a task of its own.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.version, Version::HTTP_2 | Version::HTTP_3)
    }

    /// Charges the limits that hold.
    pub(crate) async fn charge(&mut self, parts: &Parts) {
        if !self.route.has_limits() {
            return;
        }
        let host = fields::host(&self.authority);
        let limiter = &self.connection.worker.limiter;
        let facts = facts(&self.connection, parts, &host, self.client);
        self.limits = limiter.charge(&self.route, &facts, self.started).await;
        self.guards.settlement = self.limits.settlement();
    }

    /// The upstream, or the cache for it, has answered: takes what that says of limits.
    pub(crate) fn settle(&mut self, response: &mut Response<Flow>) {
        if let Some(settlement) = &mut self.guards.settlement {
            let status = response.status();
            self.connection.worker.limiter.answered(settlement, status, response.headers_mut());
        }
    }

    /// Notes what throttles have to know of it.
    pub(crate) fn queue_up(&mut self, parts: &Parts) {
        if !self.route.has_throttles() {
            return;
        }
        let host = fields::host(&self.authority);
        let facts = facts(&self.connection, parts, &host, self.client);
        let asked = Asked { grpc: self.grpc, started: self.started, limit: Timeouts::of(&self.config, &self.route).request };
        self.turn = Turn::of(&self.connection.worker.throttles, &self.route, &facts, asked);
    }

    /// The client's body, once it is on its way.
    pub(crate) fn uploads(&mut self, upload: Upload) {
        self.guards.upload = Some(upload);
    }

    /// Interim answers that have come since this was asked last.
    pub(crate) fn interims(&self) -> Vec<ResponseHead> {
        self.guards.upload.as_ref().map_or_else(Vec::new, Upload::interims)
    }

    /// Notes why the answer is our own.
    pub(crate) fn failed(&mut self, reason: &'static str) {
        self.guards.labels.error_type = Some(reason);
    }

    /// Ends the pipeline: what the exchange holds goes on with the response body.
    pub(crate) fn answer(mut self, mut response: Box<Response<Flow>>) -> Box<Response<Flow>> {
        self.guards.answered(&response);
        if let Some(upload) = &self.guards.upload {
            upload.forsake();
        }
        response.body_mut().guard(self.guards);
        response
    }

    /// Ends the pipeline with a tunnel, which holds the guards for as long as it lives.
    pub(crate) fn tunnel(mut self, response: Box<Response<Flow>>) -> (Box<Response<Flow>>, Box<Guards>) {
        self.guards.answered(&response);
        (response, self.guards)
    }
}

/// What of an exchange matters on the way to its upstream.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) connection: &'a Rc<Connection>,
    pub(crate) config: &'a Arc<Config>,
    pub(crate) route: &'a Route,
    pub(crate) authority: &'a str,
    pub(crate) client: IpAddr,
}

/// What acts when an exchange ends, however that happens.
pub(crate) struct Guards {
    connection: Rc<Connection>,
    labels: RequestLabels,
    started: Instant,
    upload: Option<Upload>,
    /// What follows for limits.
    settlement: Option<Box<limit::Settlement>>,
    ended: bool,
}

impl Guards {
    fn begin(connection: Rc<Connection>, labels: RequestLabels, started: Instant) -> Self {
        connection.progress.request_started();
        connection.worker.meter.request_started(connection.direction);
        Self { connection, labels, started, upload: None, settlement: None, ended: false }
    }

    fn answered(&mut self, response: &Response<Flow>) {
        self.labels.http_response_status_code = response.status().as_u16();
    }

    /// The body has ended, after so many bytes.
    pub(crate) fn end(mut self, end: End, bytes: u64) {
        self.ended = true;
        match end {
            End::Complete => {}
            End::Failed => self.labels.error_type = Some("response_broken"),
            End::Dropped => self.client_left(),
            End::Untaken => self.labels.error_type = Some("client_timeout"),
        }
        self.count(bytes);
    }

    /// The client gets an answer of ours instead.
    pub(crate) fn replaced(mut self, status: StatusCode, reason: &'static str) {
        self.ended = true;
        self.labels.http_response_status_code = status.as_u16();
        self.labels.error_type = Some(reason);
        self.count(0);
    }

    fn client_left(&mut self) {
        self.labels.error_type = Some("client_left");
        if self.started.elapsed() < SOON {
            self.connection.progress.request_abandoned();
        }
    }

    fn count(&mut self, received: u64) {
        let sent = self.upload.as_ref().map_or(0, Upload::sent);
        if let Some(settlement) = self.settlement.take() {
            self.connection.worker.limiter.settle(&settlement, sent, received);
        }
        let (meter, direction, now) = (&self.connection.worker.meter, self.connection.direction, Instant::now());
        self.connection.ended.set(now);
        if let Some(reason) = self.labels.error_type {
            meter.error(direction, reason);
        }
        meter.request_ended(direction, &self.labels, now.duration_since(self.started), sent, received);
    }
}

impl Drop for Guards {
    /// Without an end there was no answer: the client left while it waited.
    fn drop(&mut self) {
        if !self.ended {
            if self.labels.http_response_status_code == 0 {
                self.client_left();
            }
            self.count(0);
        }
    }
}

/// Time limits of a request, from its route or else from the FetchrProxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// From the end of the request to the head of the response.
    pub(crate) head: Duration,
    /// From the start of the request to the head of the response.
    pub(crate) request: Option<Duration>,
    /// Whether that is how long its client waits, and no limit on the upstream.
    pub(crate) of_client: bool,
    /// A body's pause.
    pub(crate) idle: Duration,
    /// From the start of one try to the head of its response.
    pub(crate) per_try: Option<Duration>,
}

impl Timeouts {
    pub(crate) fn of(config: &Config, route: &Route) -> Self {
        let (settings, policy) = (&config.settings().upstream, route.timeouts());
        Self {
            connect: policy.connect.map_or(settings.connect_timeout.0, |limit| limit.0),
            // A policy that allows the whole request longer means the head too.
            head: policy.request.map_or(settings.response_header_timeout.0, |limit| limit.0),
            request: policy.request.map(|limit| limit.0),
            of_client: false,
            idle: policy.idle.map_or(settings.idle_timeout.0, |limit| limit.0),
            per_try: policy.per_try.map(|limit| limit.0),
        }
    }
}

impl Timeouts {
    /// With the time after which the client does not wait any longer.
    pub(crate) fn within(self, deadline: Option<Deadline>) -> Self {
        match deadline.map(|deadline| deadline.limit) {
            Some(limit) if self.request.is_none_or(|request| limit < request) => {
                Self { request: Some(limit), of_client: true, ..self }
            }
            _ => self,
        }
    }
}

fn facts<'a>(connection: &Connection, parts: &'a Parts, host: &'a str, client: IpAddr) -> Facts<'a> {
    let named_secure = connection.entry.is_forward_proxy() && parts.uri.scheme() == Some(&Scheme::HTTPS);
    Facts {
        method: &parts.method,
        scheme: if named_secure { "https" } else { connection.scheme },
        host,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        client,
    }
}

/// The authority of a connection's requests. It is the same for most of them, and so checked once.
#[derive(Default)]
pub(crate) struct LastAuthority(RefCell<Rc<str>>);

impl LastAuthority {
    /// The authority that a request is for: from its target if that has one, else from `Host` (RFC 9112, section 3.3).
    fn of(&self, parts: &Parts, forward: bool) -> Result<Rc<str>, ForwardError> {
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(ForwardError::BadRequest("the request has more than one Host field"));
        }
        if let Some(authority) = parts.uri.authority() {
            // A forward proxy ignores Host then (RFC 9112, section 3.2.2). Elsewhere that both are there is odd enough, and that they differ an
            // attempt to be one site for policies and another for the application (RFC 9113, section 8.3.1).
            if !forward && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())) {
                return Err(ForwardError::BadRequest("the target and the Host field name different hosts"));
            }
            return self.checked(authority.as_str());
        }
        match host {
            Some(host) => self.checked(host.to_str().map_err(|_| ForwardError::BadRequest("the Host field is not ASCII"))?),
            None if parts.version == Version::HTTP_11 => Err(ForwardError::BadRequest("the request has no Host field")),
            None => Ok(Rc::default()),
        }
    }

    fn checked(&self, authority: &str) -> Result<Rc<str>, ForwardError> {
        let mut last = self.0.borrow_mut();
        if **last != *authority {
            if authority.contains('@') || authority.parse::<Authority>().is_err() {
                return Err(ForwardError::BadRequest("the host is not one"));
            }
            *last = authority.into();
        }
        Ok(Rc::clone(&last))
    }
}

fn check(parts: &Parts, present: Present, config: &Config, connection: &Connection) -> Result<(), ForwardError> {
    let limits = &config.settings().http.limits;
    if matches!(parts.version, Version::HTTP_2 | Version::HTTP_3) {
        strict::check(parts).map_err(ForwardError::BadRequest)?;
        // Over HTTP/1 the reader has looked.
        if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() as u64 > limits.max_target.0) {
            return Err(ForwardError::TargetTooLong(limits.max_target.0));
        }
    }
    if parts.method == Method::TRACE && config.settings().http.trace == Trace::Refuse {
        return Err(ForwardError::Trace);
    }
    let max_fields = usize::try_from(limits.max_fields).unwrap_or(usize::MAX);
    if parts.headers.len() > max_fields {
        return Err(ForwardError::TooManyFields(max_fields));
    }
    if present.any(Present::VIA) && fields::is_loop(&parts.headers, &connection.via().pseudonym) {
        return Err(ForwardError::Loop);
    }
    if parts.method == Method::CONNECT && parts.uri.authority().is_none() {
        return Err(ForwardError::BadRequest("CONNECT needs a host and a port"));
    }
    Ok(())
}

/// Spells the path as policies look at it, so that no other spelling is a way around them.
fn spell(parts: &mut Parts, config: &Config, connection: &Connection) -> Result<(), ForwardError> {
    if parts.uri.authority().is_some() && parts.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('?')) {
        // `http://a?b` is `http://a/?b` (RFC 9112, section 3.2.1).
        parts.uri = with_path(&parts.uri, "/".to_owned()).ok_or(ForwardError::BadRequest("the path is malformed"))?;
    }
    let path = parts.uri.path();
    if is_plain(path) {
        return Ok(());
    }
    if let Cow::Owned(path) = config.spelled(connection.direction, path).map_err(ForwardError::Path)?
        && path != parts.uri.path()
    {
        parts.uri = with_path(&parts.uri, path).ok_or(ForwardError::BadRequest("the path is malformed"))?;
    }
    Ok(())
}

fn with_path(uri: &Uri, mut path: String) -> Option<Uri> {
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.try_into().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(parts: &Parts) -> Result<Rc<str>, ForwardError> {
        LastAuthority::default().of(parts, false)
    }

    fn parts(uri: &str, hosts: &[&str]) -> Parts {
        let request = hosts.iter().fold(http::Request::get(uri), |request, host| request.header("host", *host));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn absolute_target_and_host_must_agree() {
        assert_eq!(&*authority(&parts("http://a.example:81/x", &["A.example:81"])).unwrap(), "a.example:81");
        assert_eq!(&*authority(&parts("http://a.example:81/x", &[])).unwrap(), "a.example:81");
        let differ = parts("http://a.example:81/x", &["b.example"]);
        assert!(authority(&differ).is_err());
        assert_eq!(&*LastAuthority::default().of(&differ, true).unwrap(), "a.example:81");
    }

    #[test]
    fn two_hosts_or_none_are_refused() {
        assert!(authority(&parts("/", &["a", "b"])).is_err());
        assert!(authority(&parts("/", &[])).is_err());
        assert!(authority(&parts("/", &["user@a"])).is_err());
    }
}
