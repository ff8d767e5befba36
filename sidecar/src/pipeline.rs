//! The order of stages; the only place that knows it.

use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    ops::DerefMut,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use crds::{policy::Direction, proxy::UpstreamTls};
use http::{
    HeaderValue, Method, Response, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use tokio::time::Instant;

use crate::{
    attempt::{self, Answered, Call},
    cache::{self, Fetch, Looked},
    connection::{Connection, Entry},
    contain::contained,
    error::ForwardError,
    exchange::{Asking, Exchange, Timeouts},
    fields::{self, Present},
    flow::{Bounds, ClientBody, Flow, Upload},
    h1::server::Interims,
    io::ReadAhead,
    limit::Stops,
    metrics::RequestLabels,
    pace::Rate,
    reply::{self, Stop},
    throttle::{Admitted, Turn},
    tries,
    tunnel::{self, Switch},
    upstream::{Endpoint, Key, Protocol},
    websocket,
};

/// A request, whatever protocol it came over.
pub(crate) struct Request {
    pub(crate) parts: Box<Parts>,
    /// What of the fields that matter here it has.
    pub(crate) present: Present,
    pub(crate) body: ClientBody,
    /// What becomes of its connection if the answer switches protocols; none if it can't.
    pub(crate) switch: Option<Switch>,
    /// Where interim answers go; none if the client or its protocol takes none.
    pub(crate) interims: Option<Interims>,
}

/// What the answer to a request needs of its connection.
struct Client {
    switch: Option<Switch>,
    interims: Option<Interims>,
}

/// Serves one request.
pub(crate) async fn serve(connection: Rc<Connection>, request: Request) -> Box<Response<Flow>> {
    let Request { mut parts, present, body, switch, interims } = request;
    let client = Client { switch, interims };
    let (mut ex, checked) = Exchange::begin(connection, &mut parts, present);
    let outcome = match checked {
        Ok(()) => {
            let worker = Rc::clone(&ex.connection.worker);
            let served = contained(&worker.metrics.panics, admit_and_forward(&mut ex, parts, present, body, client)).await;
            served.unwrap_or(Err(ForwardError::Panic.into()))
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Forwarded::Response(response)) => finish(Ok(response), ex),
        Ok(Forwarded::Tunnel(tunnel)) => open_tunnel(*tunnel, ex),
        Err(stop) => finish(Err(stop), ex),
    }
}

fn finish(outcome: Result<Box<Response<Flow>>, Stop>, mut ex: Exchange) -> Box<Response<Flow>> {
    let response = reply::render(outcome, &mut ex);
    ex.answer(response)
}

/// What came of a request.
enum Forwarded {
    Response(Box<Response<Flow>>),
    Tunnel(Box<Tunnel>),
}

/// Two sides that will speak another protocol, once the client has the head of the answer.
struct Tunnel {
    head: Box<Response<Flow>>,
    client: Switch,
    upstream: Side,
}

/// The upstream's side of a tunnel.
enum Side {
    Connected(tokio::net::TcpStream),
    Switched(attempt::Switched),
}

async fn admit_and_forward(
    ex: &mut Exchange,
    parts: Box<Parts>,
    present: Present,
    body: ClientBody,
    client: Client,
) -> Result<Forwarded, Stop> {
    if ex.config.blocks() {
        return Err(ForwardError::NoConfig.into());
    }
    ex.charge(&parts).await;
    match ex.limits.stops() {
        None => {}
        Some(Stops::Denied) => return Err(Stop::Limited),
        Some(Stops::Undecided(limit)) => return Err(ForwardError::LimitUndecided(limit.to_owned()).into()),
    }
    ex.queue_up(&parts);
    let mut target = target(ex, &parts)?;
    if speaks_h2c(ex, &target, &parts, present) {
        target.protocol = Protocol::Http2;
    }
    if parts.method == Method::CONNECT && ex.connection.entry.is_forward_proxy() {
        return Box::pin(connect_tunnel(ex, target, client.switch)).await;
    }
    if ex.config.routes(ex.connection.direction).has_caches() {
        return Box::pin(past_the_cache(ex, target, (parts, present), body, client)).await;
    }
    let call = call(ex, target, (parts, present), body, client.switch.is_some())?;
    forward(ex, call, client).await
}

/// Answers from the cache, or lets it see what the upstream answers.
async fn past_the_cache(
    ex: &mut Exchange,
    target: Key,
    (mut parts, present): (Box<Parts>, Present),
    body: ClientBody,
    client: Client,
) -> Result<Forwarded, Stop> {
    fields::remove_named(&mut parts.headers, present);
    let content = body.size_hint().upper() != Some(0);
    let fetch = match cache::look(ex, &parts, content).await {
        Looked::Answered(response) => return Ok(Forwarded::Response(response)),
        Looked::Stale(response, fetch) => {
            if let Some(turn) = &mut ex.turn {
                turn.is_for_nobody();
            }
            let call = call(ex, target, (parts, present), ClientBody::Empty, false)?;
            refresh(ex, fetch, call);
            return Ok(Forwarded::Response(response));
        }
        Looked::Goes(fetch) => Some(fetch),
        Looked::Passes => None,
    };
    let (change, asked) = (cache::Change::of(&parts.method, &parts.headers), parts.uri.path_and_query().cloned());
    let scheme = ex.connection.scheme;
    let authority = Rc::clone(&ex.authority);
    let target_of =
        || cache::Target { scheme, authority: &authority, path_and_query: asked.as_ref().map_or("/", PathAndQuery::as_str) };
    let mut call = call(ex, target, (parts, present), body, client.switch.is_some())?;
    let Some(fetch) = fetch else {
        let forwarded = forward(ex, call, client).await?;
        if let (Forwarded::Response(response), Some(change)) = (&forwarded, &change) {
            cache::invalidate(ex.asking(), change, target_of(), response);
        }
        return Ok(forwarded);
    };
    fetch.prepare(&mut call.head.headers);
    let answered = match forward(ex, call, client).await {
        Ok(Forwarded::Response(response)) => Ok(response),
        Ok(tunnel @ Forwarded::Tunnel(_)) => return Ok(tunnel),
        Err(Stop::Fail(error)) => Err(error),
        Err(stop @ Stop::Limited) => return Err(stop),
    };
    if let (Ok(response), Some(change)) = (&answered, &change) {
        cache::invalidate(ex.asking(), change, target_of(), response);
    }
    Ok(Forwarded::Response(fetch.settle(target_of(), answered)?))
}

/// Asks the origin for a newer answer than the one that the client has got, in a task of its own.
fn refresh(ex: &mut Exchange, fetch: Box<Fetch>, mut call: Call) {
    fetch.prepare(&mut call.head.headers);
    call.timer = Rc::default();
    let turn = ex.turn.take();
    let (connection, config, route) = (Rc::clone(&ex.connection), Arc::clone(&ex.config), ex.route.clone());
    let (authority, client) = (Rc::clone(&ex.authority), ex.client);
    tokio::task::spawn_local(async move {
        let asking = Asking { connection: &connection, config: &config, route: &route, authority: &authority, client };
        let worker = &connection.worker;
        let labels = RequestLabels::new(connection.direction, &call.head.method, Version::HTTP_11, route.label());
        let asked = call.head.uri.path_and_query().cloned();
        let path_and_query = asked.as_ref().map_or("/", PathAndQuery::as_str);
        let sent = async {
            let admitted = throttled(turn, &call.upload).await?;
            let answered = if route.has_tries() {
                tries::send(asking, labels, call).await
            } else {
                attempt::send(&worker.pool, &worker.metrics, &worker.meter, labels, &call.key, &call).await
            };
            settled(admitted, answered)
        };
        let answered = match sent.await {
            Ok(Answered::Response(response)) => Ok(response),
            Ok(Answered::Switched(..)) => Err(ForwardError::Switched),
            Err(error) => Err(error),
        };
        let target = cache::Target { scheme: connection.scheme, authority: &authority, path_and_query };
        fetch.refreshed(target, answered);
    });
}

async fn forward(ex: &mut Exchange, call: Call, client: Client) -> Result<Forwarded, Stop> {
    let worker = Rc::clone(&ex.connection.worker);
    ex.uploads(call.upload.clone());
    let labels = RequestLabels::new(ex.connection.direction, &call.head.method, Version::HTTP_11, ex.route.label());
    let streamed = ex.version == Version::HTTP_2 && websocket::is_asked(&call.head.headers);
    let key = if streamed { websocket::key_of(&call.head.headers).cloned() } else { None };
    let admitted = throttled(ex.turn.take(), &call.upload).await?;
    let ex = &*ex;
    let answered = if ex.route.has_tries() {
        passing_interims(ex, &client, Box::pin(tries::send(ex.asking(), labels, call))).await
    } else {
        let sent = pin!(attempt::send(&worker.pool, &worker.metrics, &worker.meter, labels, &call.key, &call));
        passing_interims(ex, &client, sent).await
    };
    match settled(admitted, answered)? {
        // To a CONNECT that would be a tunnel, which there is none of.
        Answered::Response(response) if streamed && response.status().is_success() => Err(ForwardError::NotSwitched.into()),
        Answered::Response(mut response) => {
            if ex.is_stream() {
                response.body_mut().upload_apart();
            }
            Ok(Forwarded::Response(response))
        }
        Answered::Switched(head, switched) => {
            let client = client.switch.ok_or(ForwardError::Switched)?;
            if key.is_some_and(|key| !websocket::is_accepted(head.headers(), &key)) {
                return Err(ForwardError::NotSwitched.into());
            }
            let mut head = reply::switched(head);
            if streamed {
                websocket::granted(&mut head);
            }
            let upstream = Side::Switched(switched);
            Ok(Forwarded::Tunnel(Box::new(Tunnel { head: Box::new(head), client, upstream })))
        }
    }
}

/// Waits for the throttles that hold. What the upstream has time for begins after that.
async fn throttled(turn: Option<Box<Turn>>, upload: &Upload) -> Result<Option<Admitted>, ForwardError> {
    let Some(turn) = turn else { return Ok(None) };
    // On the heap: most requests have none.
    let admitted = Box::pin(async move { turn.admit().await }).await?;
    upload.restart();
    Ok(Some(admitted.sending(upload.clone())))
}

/// Tells throttles what came of a request. What they have let through ends with the body of its answer; at once if it has none, and where both
/// sides speak another protocol from now on.
fn settled(admitted: Option<Admitted>, mut answered: Result<Answered, ForwardError>) -> Result<Answered, ForwardError> {
    match (admitted, &mut answered) {
        (Some(admitted), Ok(Answered::Response(response))) => admitted.answered(response),
        (Some(admitted), Err(error)) => admitted.failed(error),
        (Some(admitted), Ok(Answered::Switched(..))) => admitted.switched(),
        (None, _) => {}
    }
    answered
}

/// Waits for an answer; what the upstream says before it goes to the client meanwhile.
async fn passing_interims<T>(ex: &Exchange, client: &Client, mut answer: Pin<impl DerefMut<Target: Future<Output = T>>>) -> T {
    poll_fn(|cx| {
        let polled = answer.as_mut().poll(cx);
        for head in ex.interims() {
            let head = reply::interim(head, ex);
            let passed = client.interims.as_ref().is_some_and(|client| client.pass(head.status, &head.headers));
            ex.connection.worker.metrics.interim(if passed { "passed" } else { "dropped" });
        }
        polled
    })
    .await
}

async fn connect_tunnel(ex: &mut Exchange, target: Key, client: Option<Switch>) -> Result<Forwarded, Stop> {
    let client = client.ok_or(ForwardError::BadRequest("this connection can't become a tunnel"))?;
    let limit = Timeouts::of(&ex.config, &ex.route).connect;
    let deadline = ex.turn.as_ref().and_then(|turn| turn.deadline());
    let _admitted = match ex.turn.take() {
        Some(turn) => Some(Box::pin(async move { turn.admit().await }).await?), // until there is a tunnel
        None => None,
    };
    let limit = deadline.map_or(limit, |deadline| limit.min(deadline.left()));
    let stream = ex.connection.worker.connector.connect(&target.endpoint, limit).await?;
    let upstream = Side::Connected(stream);
    Ok(Forwarded::Tunnel(Box::new(Tunnel { head: Box::new(reply::connected()), client, upstream })))
}

fn open_tunnel(tunnel: Tunnel, ex: Exchange) -> Box<Response<Flow>> {
    let Tunnel { mut head, client, upstream } = tunnel;
    if let Some(edits) = ex.route.headers() {
        edits.edit_response(head.headers_mut());
    }
    ex.limits.write(head.headers_mut());
    let worker = Rc::clone(&ex.connection.worker);
    let bytes = worker.tunnel_bytes(ex.connection.direction);
    let open = worker.connection_gauge(ex.connection.direction, "tunnel");
    let idle = ex.route.timeouts().idle.map_or(tunnel::IDLE, |limit| limit.0);
    let connection = Rc::clone(&ex.connection);
    let (response, guards) = ex.tunnel(head);
    tokio::task::spawn_local(async move {
        // The client may leave before it switches, and either side may break off: a tunnel has nobody to tell.
        let Some(client) = client.switched().await else { return };
        let _held = (guards, open, connection);
        let _ = match upstream {
            Side::Connected(stream) => tunnel::run(client, stream, &bytes, idle).await,
            Side::Switched(attempt::Switched::Stream(stream, _stream)) => tunnel::run(client, stream, &bytes, idle).await,
            Side::Switched(attempt::Switched::Connection(switched)) => {
                let upstream = ReadAhead::new(switched.read_ahead, switched.stream);
                let _permit = switched.permit;
                tunnel::run(client, upstream, &bytes, idle).await
            }
        };
    });
    response
}

/// Where a request goes.
fn target(ex: &Exchange, parts: &Parts) -> Result<Key, ForwardError> {
    let connection = &ex.connection;
    let key = match &connection.entry {
        Entry::Intercepted(destination) => {
            // The application hears the protocol that its client speaks.
            let protocol = if parts.version == Version::HTTP_2 { Protocol::Http2 } else { Protocol::Http1 };
            Key::in_clear(Endpoint::Address(*destination), protocol)
        }
        Entry::Reverse(upstream) => Key::clone(&upstream.load()),
        Entry::Forward(tls) => return forward_target(connection, parts, &tls.load()),
    };
    // An application that is a forward proxy itself gets its CONNECT, over HTTP/1.
    let passes_on = matches!(connection.entry, Entry::Intercepted(_)) && key.protocol == Protocol::Http1;
    if parts.method == Method::CONNECT && !passes_on {
        return Err(ForwardError::NotForwardProxy);
    }
    Ok(key)
}

/// Whether the target is a port of a Service that speaks HTTP/2 in clear, by its own word. What the URL of a listener's upstream says holds
/// all the same, and a switch to another protocol is asked for as the client does.
fn speaks_h2c(ex: &Exchange, target: &Key, parts: &Parts, present: Present) -> bool {
    let connection = &ex.connection;
    let of_listener = matches!(connection.entry, Entry::Reverse(_));
    let settled = of_listener || target.tls.is_some() || target.protocol == Protocol::Http2;
    if connection.direction != Direction::Outbound || settled {
        return false;
    }
    let services = connection.worker.config.services();
    let speaks = match &target.endpoint {
        Endpoint::Address(address) => services.speaks_h2c(*address),
        Endpoint::Name(host, port) => services.named(host, *port).is_some_and(|port| port.speaks_h2c()),
    };
    speaks && parts.method != Method::CONNECT && fields::upgrade(&parts.headers, present).is_none()
}

/// Where a client of a forward proxy wants to go. What it asks of `https` goes on under TLS; in clear it may come only where nobody reads along
/// (RFC 9110, section 4.2.2).
fn forward_target(connection: &Connection, parts: &Parts, tls: &UpstreamTls) -> Result<Key, ForwardError> {
    let wrong_port = ForwardError::BadRequest("the port is not one");
    let authority = parts.uri.authority().ok_or(ForwardError::BadRequest("a forward proxy needs an absolute URI"))?;
    if parts.method == Method::CONNECT {
        if authority.port_u16().is_none() {
            return Err(ForwardError::BadRequest("CONNECT needs a host and a port"));
        }
        return Ok(Key::in_clear(Endpoint::parse(authority, 80).ok_or(wrong_port)?, Protocol::Http1));
    }
    match parts.uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {
            Ok(Key::in_clear(Endpoint::parse(authority, 80).ok_or(wrong_port)?, Protocol::Http1))
        }
        Some(scheme) if *scheme == Scheme::HTTPS => {
            if !connection.is_private() {
                return Err(ForwardError::NotPrivate);
            }
            let endpoint = Endpoint::parse(authority, 443).ok_or(wrong_port)?;
            let tls = connection.worker.originations.of(&endpoint, tls).map_err(ForwardError::NoTls)?;
            Ok(Key { endpoint, protocol: Protocol::Http1, tls: Some(tls) })
        }
        _ => Err(ForwardError::BadRequest("a forward proxy takes http and https URIs, and CONNECT for all else")),
    }
}

/// What holds for the body of a request. An error if it can't be taken, by its announced size or for want of memory.
fn bounds(ex: &Exchange, body: &ClientBody, idle: Duration) -> Result<Bounds, ForwardError> {
    let paced = ex.turn.as_ref().and_then(|turn| turn.upload());
    let mut bounds = Bounds::of(&ex.config.settings().http.limits, idle, &ex.connection.worker, paced);
    if ex.grpc {
        bounds.rate = Rate::ANY; // its messages come when they come
    }
    if body.size_hint().lower() > bounds.size {
        return Err(ForwardError::BodyTooLarge(bounds.size));
    }
    if bounds.refuse(body) {
        return Err(ForwardError::NoMemory);
    }
    Ok(bounds)
}

/// The request as the upstream gets it.
fn call(
    ex: &Exchange,
    key: Key,
    (mut head, present): (Box<Parts>, Present),
    body: ClientBody,
    switches: bool,
) -> Result<Call, ForwardError> {
    let headers = &mut head.headers;
    let timeouts = Timeouts::of(&ex.config, &ex.route).within(ex.turn.as_ref().and_then(|turn| turn.deadline()));
    let connection = &ex.connection;
    let bounds = bounds(ex, &body, timeouts.idle)?;
    // Over HTTP/2 only WebSocket has a form. A client's stream has been made an upgrade; from it, no other comes.
    let upgrade = fields::upgrade(headers, present)
        .filter(|protocols| switches && (key.protocol == Protocol::Http1 || websocket::is_websocket(protocols)));
    let expects = fields::expects_continue(headers, present) && key.protocol == Protocol::Http1 && ex.version == Version::HTTP_11;
    let shadow = ex.route.shadow_timeouts().map(Rc::new);
    let upload = Upload::new(body, bounds, expects, shadow.clone(), Instant::from_std(ex.started));
    fields::remove_hop_by_hop(headers, present);
    if present.any(Present::EXPECT) && upload.permission().is_none() {
        headers.remove(header::EXPECT);
    }
    if present.any(Present::COOKIE) {
        fields::join_cookies(headers);
    }
    if connection.entry.is_forward_proxy() {
        headers.remove(header::PROXY_AUTHORIZATION);
    }
    let edits = ex.route.headers().filter(|edits| edits.touches_requests());
    let hop = connection.forwarding.hop(&ex.authority, ex.version, connection.via());
    // Where nothing of it is there, nobody looks at it any more, and it goes out in HTTP/1 for sure, it is written as it is.
    let is_new = !present.any(Present::FORWARDED.and(Present::VIA));
    let is_plain = key.protocol == Protocol::Http1 && key.tls.is_none();
    let hop = if is_new && is_plain && edits.is_none() && !ex.route.has_tries() {
        Some(hop)
    } else {
        hop.add(headers, present, ex.config.trusts(connection.peer.ip()));
        None
    };
    if let Some(edits) = edits {
        edits.edit_request(headers);
    }
    if let Some(protocol) = upgrade {
        fields::set_upgrade(headers, protocol);
    }
    address(&key, &mut head, &ex.authority)?;
    let settings = &ex.config.settings().upstream;
    // Streams are tasks of their own, and so need timers of their own.
    let timer = if ex.is_stream() { Rc::default() } else { Rc::clone(&connection.timer) };
    let max_connections = usize::try_from(settings.max_connections_per_host).unwrap_or(1);
    let keep = settings.idle_timeout.0;
    Ok(Call { key, head, present, hop, upload, timeouts, shadow, max_connections, timer, keep, started: ex.started })
}

/// Writes the target as the protocol of the upstream does: with the host in `Host`, or in `:authority`. Of an upstream under TLS that is not
/// known yet; [`in_http2`] turns it over.
pub(crate) fn address(key: &Key, head: &mut Parts, authority: &str) -> Result<(), ForwardError> {
    let wrong = || ForwardError::BadRequest("the host is not one");
    let authority = if authority.is_empty() { Cow::Owned(key.endpoint.to_string()) } else { Cow::Borrowed(authority) };
    let headers = &mut head.headers;
    match key.protocol {
        Protocol::Http1 => {
            if headers.get(header::HOST).is_none_or(|host| host.as_bytes() != authority.as_bytes()) {
                headers.insert(header::HOST, HeaderValue::from_str(&authority).map_err(|_| wrong())?);
            }
            // Of the target only the part for this hop is written.
        }
        Protocol::Http2 => {
            let authority: Authority = authority.parse().map_err(|_| wrong())?;
            set_authority(head, Scheme::HTTP, authority)?;
        }
    }
    Ok(())
}

/// Turns a head over that was written for HTTP/1.1: its upstream has chosen HTTP/2.
pub(crate) fn in_http2(head: &mut Parts) -> Result<(), ForwardError> {
    let authority = head.headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    set_authority(head, Scheme::HTTPS, authority.ok_or(ForwardError::BadRequest("the host is not one"))?)
}

fn set_authority(head: &mut Parts, scheme: Scheme, authority: Authority) -> Result<(), ForwardError> {
    head.headers.remove(header::HOST);
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
    head.uri = uri.build().map_err(|_| ForwardError::BadRequest("the host is not one"))?;
    Ok(())
}
