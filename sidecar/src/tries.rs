//! The tries of a request whose route says how its upstream is asked: the sections `retry`, `loadBalancing`, `circuitBreaker` and
//! `failover`. Their decisions stand in `upstream/`; here is their order:
//!
//! ```text
//! failover( retry( hedge( circuit -> address -> attempt ) ) )
//! ```

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant as StdInstant, SystemTime},
};

use crds::policy::{Direction, Mode};
use futures::future::{Either, join, select};
use http::{HeaderName, StatusCode, header};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    attempt::{self, Answered, Call},
    connection::Entry,
    error::ForwardError,
    exchange::{Asking, Timeouts},
    fields,
    metrics::RequestLabels,
    pipeline::address,
    upstream::{
        Endpoint, Key, Protocol, Verdict,
        balance::{Addresses, Balancing, Choice},
        breaker::{Answer, Breaker, Breaking, Change},
        retry::{Budget, Outcome, Retrying},
        standing::Millis,
    },
    websocket,
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// gRPC's UNAVAILABLE.
const UNAVAILABLE: &[u8] = b"14";

/// How long a name may take that the application has resolved itself: its request can go without.
const RESOLVED_WAIT: Duration = Duration::from_millis(100);

type Tried = Result<Answered, ForwardError>;

/// Sends a call as its route says, and waits for the head of a response.
pub(crate) async fn send(asking: Asking<'_>, labels: RequestLabels, mut call: Call) -> Tried {
    let retry = asking.route.retry();
    let budget = retry.map(|settings| asking.connection.worker.seen.budget(&settings.label));
    if let (Some(settings), Some(budget)) = (retry, &budget) {
        budget.deposit(settings);
        if settings.mode == Mode::Enforce && settings.repeats(&call.head.method) {
            call.upload.keep(settings.max_body);
        }
    }
    let tries = Tries { asking, labels, retry: retry.zip(budget), tried: RefCell::default() };
    let mut outcome = tries.at_one_upstream(&mut call).await;
    if tries.fails_over(&outcome, &mut call) {
        drop(outcome);
        outcome = tries.at_one_upstream(&mut call).await;
    }
    call.upload.keep_no_more();
    outcome
}

/// What all tries of a request share.
struct Tries<'a> {
    asking: Asking<'a>,
    labels: RequestLabels,
    retry: Option<(&'a Retrying, Arc<Budget>)>,
    /// The address that was tried last.
    tried: RefCell<Option<Key>>,
}

impl Tries<'_> {
    /// Tries until one succeeds, none may follow, or time is up.
    async fn at_one_upstream(&self, call: &mut Call) -> Tried {
        let mut done = 1;
        loop {
            let outcome = self.once(call).await;
            let Some(pause) = self.pause(&outcome, call, done) else { return outcome };
            // Before the pause, so that what is left of this try takes no more of the body.
            call.upload = call.upload.again();
            // Its answer is read meanwhile, but not for longer.
            let _ = join(sleep(pause), timeout(pause, discard(outcome))).await;
            call.upload.restart();
            done += 1;
        }
    }

    /// How long to wait before a further try; none if there is none.
    fn pause(&self, outcome: &Tried, call: &Call, done: u32) -> Option<Duration> {
        let (settings, budget) = self.retry.as_ref()?;
        if done >= settings.attempts || !self.wants(outcome, call) {
            return None;
        }
        let count = |event| self.count(&settings.label, "retry", event, settings.mode);
        let Some(pause) = settings.pause(done, asked_to_wait(outcome), fastrand::u32(..)) else {
            count("told_to_wait");
            return None;
        };
        if !self.has_time(call, pause) {
            count("no_time");
            return None;
        }
        if !call.upload.is_whole() {
            count("body_gone");
            return None;
        }
        if !budget.take(settings) {
            count("no_budget");
            return None;
        }
        count("retried");
        (settings.mode == Mode::Enforce).then_some(pause)
    }

    /// Whether what came of a try asks for another.
    fn wants(&self, outcome: &Tried, call: &Call) -> bool {
        self.retry.as_ref().is_some_and(|(settings, _)| match outcome {
            Ok(Answered::Response(_)) => {
                status(outcome).is_some_and(|status| settings.wants(&call.head.method, Outcome::Status(status)))
            }
            Ok(Answered::Switched(..)) => false,
            Err(error) => settings.wants(&call.head.method, Outcome::Error(error)),
        })
    }

    /// Whether the whole request's time allows a pause.
    fn has_time(&self, call: &Call, pause: Duration) -> bool {
        call.timeouts.request.is_none_or(|limit| Instant::now() + pause < call.started() + limit)
    }

    /// Turns the call to the second upstream if that is to have it.
    fn fails_over(&self, outcome: &Tried, call: &mut Call) -> bool {
        let Some(standby) = self.asking.route.standby() else { return false };
        let unreached = matches!(outcome, Err(error) if error.is_connect() || matches!(error, ForwardError::CircuitOpen { .. }));
        let enforced = self.retry.as_ref().is_some_and(|(settings, _)| settings.mode == Mode::Enforce);
        let takes = unreached || (enforced && self.wants(outcome, call));
        if !takes || !call.upload.is_whole() || !self.has_time(call, Duration::ZERO) {
            return false;
        }
        let key = match standby.key(&self.asking.connection.worker.originations) {
            Ok(key) => key.filter(|key| *key != call.key),
            Err(error) => {
                tracing::debug!(route = %standby.label, %error, "There is no TLS with a second upstream.");
                self.count(&standby.label, "failover", "unusable", standby.mode);
                None
            }
        };
        let Some(key) = key else { return false };
        let upgrades = call.head.headers.contains_key(header::UPGRADE) && !websocket::is_asked(&call.head.headers);
        if upgrades && key.protocol == Protocol::Http2 {
            return false;
        }
        self.count(&standby.label, "failover", "failed_over", standby.mode);
        if standby.mode != Mode::Enforce {
            return false;
        }
        if address(&key, &mut call.head, self.asking.authority).is_err() {
            return false;
        }
        (call.key, call.upload) = (key, call.upload.again());
        true
    }

    /// One try, and a second one beside it if it takes long.
    async fn once(&self, call: &Call) -> Tried {
        let hedge = self.retry.as_ref().and_then(|(settings, budget)| Some((*settings, budget, settings.hedge?)));
        let alone = !call.head.method.is_safe() || !call.upload.is_done() || call.head.headers.contains_key(header::UPGRADE);
        match hedge {
            Some((settings, budget, after)) if !alone => self.hedged(call, settings, budget, after).await,
            _ => self.attempt(call).await,
        }
    }

    async fn hedged(&self, call: &Call, settings: &Retrying, budget: &Budget, after: Duration) -> Tried {
        let count = |event| self.count(&settings.label, "retry", event, settings.mode);
        let first = match select(Box::pin(self.attempt(call)), Box::pin(sleep(after))).await {
            Either::Left((outcome, _)) => return outcome,
            Either::Right(((), first)) => first,
        };
        if !budget.take(settings) {
            count("no_budget");
            return first.await;
        }
        count("hedged");
        if settings.mode != Mode::Enforce {
            return first.await;
        }
        let (outcome, other) = match select(first, Box::pin(self.attempt(call))).await {
            Either::Left(done) => done,
            Either::Right((outcome, first)) => {
                count("hedge_first");
                (outcome, first)
            }
        };
        if verdict(&outcome) == Verdict::Good { outcome } else { other.await }
    }

    /// One try, if the circuit is closed.
    async fn attempt(&self, call: &Call) -> Tried {
        let pass = self.pass(&call.key)?;
        let outcome = self.at_one_address(call).await;
        if let Some(pass) = pass {
            pass.end(verdict(&outcome));
        }
        outcome
    }

    async fn at_one_address(&self, call: &Call) -> Tried {
        let Some((settings, choice, of_service)) = self.choose(call).await? else { return self.to(&call.key, call).await };
        let outcome = self.to(choice.key(), call).await;
        if choice.end(settings, verdict(&outcome), StdInstant::now()) {
            self.count(&settings.label, "loadBalancing", "ejected", settings.mode);
            tracing::info!(route = %settings.label, upstream = %choice.key().endpoint, "An address is left out for a time.");
        }
        // What was told of a Service may be old, as after a day without an operator; its own address is as good as the node is.
        if of_service && unreached(&outcome) && self.has_time(call, Duration::ZERO) {
            self.count(&settings.label, "loadBalancing", "unreached", settings.mode);
            drop(choice); // what follows is no load of that address
            return self.to(&call.key, call).await;
        }
        outcome
    }

    async fn to(&self, key: &Key, call: &Call) -> Tried {
        let worker = &self.asking.connection.worker;
        Box::pin(attempt::send(&worker.pool, &worker.metrics, &worker.meter, self.labels.clone(), key, call)).await
    }

    /// Asks the circuit breaker.
    fn pass(&self, upstream: &Key) -> Result<Option<Pass<'_>>, ForwardError> {
        let Some(settings) = self.asking.route.breaking() else { return Ok(None) };
        let breaker = self.asking.connection.worker.seen.breaker(&settings.label, upstream);
        let asked = breaker.ask(settings, Millis::now());
        if let Answer::Open(retry_after) = asked {
            self.count(&settings.label, "circuitBreaker", "refused", settings.mode);
            if settings.mode == Mode::Enforce {
                return Err(ForwardError::CircuitOpen { upstream: upstream.endpoint.to_string(), retry_after });
            }
        }
        Ok(Some(Pass { tries: self, settings, upstream: upstream.endpoint.clone(), breaker, asked, ended: false }))
    }

    /// Chooses an address, if the upstream is a name or a Service and its requests are spread; and whether it is one behind a Service.
    async fn choose(&self, call: &Call) -> Result<Option<(&Balancing, Choice, bool)>, ForwardError> {
        let Some(settings) = self.asking.route.balancing() else { return Ok(None) };
        let told = self.told(&call.key);
        let of_service = told.is_some();
        let Some((name, addresses)) = (match told {
            Some(told) => Some(told),
            None => self.resolved(call).await?,
        }) else {
            return Ok(None);
        };
        let worker = &self.asking.connection.worker;
        let group = worker.balancer.group(&name, &addresses, &worker.seen);
        let hash = settings.hash(&call.head.headers, self.asking.client);
        let chosen = group.choose(settings, hash, self.tried.borrow().as_ref(), StdInstant::now());
        if settings.mode != Mode::Enforce {
            self.count(&settings.label, "loadBalancing", "chosen", settings.mode);
            return Ok(None);
        }
        let Some(choice) = chosen else { return Ok(None) };
        self.tried.replace(Some(choice.key().clone()));
        Ok(Some((settings, choice, of_service)))
    }

    /// The endpoints behind the upstream, if it is a Service that an operator has told of and somebody is there.
    fn told(&self, upstream: &Key) -> Option<(Key, Addresses)> {
        let services = self.asking.connection.worker.config.services();
        let (port, asked): (_, Option<SocketAddr>) = match &upstream.endpoint {
            Endpoint::Address(address) => (services.at(*address)?, Some(*address)),
            Endpoint::Name(host, port) => (services.named(host, *port)?, None),
        };
        let endpoints = port.endpoints(asked)?;
        let name = Key { endpoint: Endpoint::Name(Arc::clone(&endpoints.name), port.port), ..upstream.clone() };
        Some((name, Addresses::Told(Arc::clone(&endpoints.addresses))))
    }

    /// The addresses that the upstream's name has.
    async fn resolved(&self, call: &Call) -> Result<Option<(Key, Addresses)>, ForwardError> {
        let Some(name) = self.name(&call.key) else { return Ok(None) };
        let Endpoint::Name(host, port) = &name.endpoint else { return Ok(None) };
        let found = self.asking.connection.worker.connector.resolve(host, patience(call)).await;
        let addresses = match (found, &call.key.endpoint) {
            (Ok(addresses), Endpoint::Name(..)) => addresses,
            // The application has resolved the name itself: only if its choice is one of ours, another is as good.
            (Ok(addresses), Endpoint::Address(asked)) if addresses.contains(&asked.ip()) => addresses,
            (_, Endpoint::Address(_)) => return Ok(None),
            (Err(error), Endpoint::Name(..)) => return Err(error),
        };
        let addresses = Addresses::Resolved(addresses, *port);
        Ok(Some((name, addresses)))
    }

    /// The upstream by name: as it is, or the host of an intercepted request from the application.
    fn name(&self, upstream: &Key) -> Option<Key> {
        let connection = &self.asking.connection;
        match &upstream.endpoint {
            Endpoint::Name(..) => Some(upstream.clone()),
            Endpoint::Address(address) => {
                let outward = matches!(connection.entry, Entry::Intercepted(_)) && connection.direction == Direction::Outbound;
                let host = fields::host(self.asking.authority);
                let named = outward && !host.is_empty() && host.trim_matches(['[', ']']).parse::<IpAddr>().is_err();
                named.then(|| Key { endpoint: Endpoint::Name(host.as_ref().into(), address.port()), ..upstream.clone() })
            }
        }
    }

    fn count(&self, route: &Arc<str>, section: &'static str, event: &'static str, mode: Mode) {
        self.asking.connection.worker.metrics.policy_event(route, section, event, mode);
    }
}

/// A try that the circuit breaker has let through. One that ends without a word says nothing.
struct Pass<'a> {
    tries: &'a Tries<'a>,
    settings: &'a Breaking,
    upstream: Endpoint,
    breaker: Arc<Breaker>,
    asked: Answer,
    ended: bool,
}

impl Pass<'_> {
    fn end(mut self, verdict: Verdict) {
        self.ended = true;
        let changed = self.breaker.note(self.settings, self.asked, verdict, Millis::now());
        let event = match changed {
            Some(Change::Opened) => "opened",
            Some(Change::Closed) => "closed",
            None => return,
        };
        let Breaking { label, mode, .. } = self.settings;
        self.tries.count(label, "circuitBreaker", event, *mode);
        tracing::info!(route = %label, upstream = %self.upstream, ?mode, "A circuit has {event}.");
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.breaker.note(self.settings, self.asked, Verdict::Neutral, Millis::now());
        }
    }
}

/// How long a try waits for the addresses of a name: no longer than for a connection, and than its time and the whole request's last.
fn patience(call: &Call) -> Duration {
    let Timeouts { connect, request, per_try, .. } = call.timeouts;
    let left = request.map(|limit| (call.started() + limit).saturating_duration_since(Instant::now()));
    let resolved = matches!(call.key.endpoint, Endpoint::Address(_)).then_some(RESOLVED_WAIT);
    [left, per_try, resolved].into_iter().flatten().fold(connect, Duration::min)
}

/// Whether no connection came to stand to an address that was chosen, so that nothing of the request was sent.
fn unreached(outcome: &Tried) -> bool {
    use ForwardError::{Connect, ConnectTimeout, OwnPort};
    matches!(outcome, Err(Connect { .. } | ConnectTimeout { .. } | OwnPort(_)))
}

/// Ends a try whose answer nobody wants.
async fn discard(outcome: Tried) {
    if let Ok(Answered::Response(response)) = outcome {
        response.into_body().discard().await;
    }
}

/// What a try says of its upstream.
fn verdict(outcome: &Tried) -> Verdict {
    match (outcome, status(outcome).map(|status| status.as_u16())) {
        (_, Some(500 | 502 | 503 | 504)) => Verdict::Bad,
        (Ok(_), _) => Verdict::Good,
        (Err(error), _) if error.is_of_upstream() => Verdict::Bad,
        (Err(_), _) => Verdict::Neutral,
    }
}

/// The status of an answer; of a gRPC call that ended in its head with UNAVAILABLE, 503.
fn status(outcome: &Tried) -> Option<StatusCode> {
    let Ok(Answered::Response(response)) = outcome else { return None };
    let unavailable = response.headers().get(GRPC_STATUS).is_some_and(|status| status.as_bytes() == UNAVAILABLE);
    Some(if unavailable { StatusCode::SERVICE_UNAVAILABLE } else { response.status() })
}

/// What an answer asks to wait before another try.
fn asked_to_wait(outcome: &Tried) -> Option<Duration> {
    match outcome {
        Ok(Answered::Response(response)) => fields::retry_after(response.headers(), SystemTime::now()),
        _ => None,
    }
}
