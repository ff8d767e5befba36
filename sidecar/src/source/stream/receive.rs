//! Receives what all streams bring, and answers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{Router, http::StatusCode};
use crds::plan::{Identity, Plan, Position, digest_bytes};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use wire::{signed::PublicKey, v1};

use super::{Event, Settings, services::Offers};
use crate::{
    ask::{self, Refused},
    config::{Config, ConfigError, PlanSource, Planned, Shared, Standing},
    health::Health,
    services::Services,
    source::{
        Metrics,
        order::{Order, StreamId, Verdict},
        state::Trust,
    },
};

const STATUS_EVERY: Duration = Duration::from_secs(30);
/// How often the mounted plan is looked for while there is none.
const COLD_START_EVERY: Duration = Duration::from_secs(2);
/// Largest answer to a command, in bytes.
const MAX_ANSWER: usize = 3 << 20;
/// Questions about the cache that are answered at a time; each may look at many objects.
const MAX_QUESTIONS: usize = 8;

/// Owns the order of plans and the configuration.
pub(super) struct Receiver {
    settings: Arc<Settings>,
    shared: Shared,
    health: Health,
    metrics: Metrics,
    order: Order<v1::Plan>,
    services: Offers,
    identity: Identity,
    streams: BTreeMap<StreamId, mpsc::Sender<v1::Up>>,
    told: Option<v1::Status>,
    /// The mounted plan that was looked at last.
    mounted: Option<SystemTime>,
    /// Questions about the cache and the limits, and places for those that are being answered.
    questions: (Router, Arc<Semaphore>),
}

impl Receiver {
    pub(super) fn new(settings: Arc<Settings>, shared: Shared, health: Health, metrics: Metrics) -> Self {
        let identity = settings.cold_start.identity.clone();
        let services = Offers::new(settings.cold_start.namespace.clone());
        let (order, streams) = (Order::default(), BTreeMap::new());
        let routes = ask::cache::routes(shared.clone(), settings.cache.clone())
            .merge(ask::limits::routes(shared.clone(), Arc::clone(&settings.limiter)));
        let questions = (routes, Arc::new(Semaphore::new(MAX_QUESTIONS)));
        Self { settings, shared, health, metrics, order, services, identity, streams, told: None, mounted: None, questions }
    }

    /// Puts the mounted or the kept plan in force, if there is one.
    pub(super) async fn cold_start(&mut self) {
        self.mounted = self.settings.cold_start.changed();
        let (cold_start, metrics) = (self.settings.cold_start.clone(), self.metrics.clone());
        let Some(config) = aside(move || cold_start.load(&metrics)).await.flatten() else { return };
        if let Some(planned) = &config.planned {
            tracing::info!(digest = planned.digest, source = %planned.source, "A plan from before the first stream is in force.");
            self.order.cold_start(planned.digest.clone(), planned.position.clone());
        }
        self.identity = config.identity.clone();
        self.shared.replace(config);
    }

    /// The ConfigMap is often written after the pod was made.
    async fn look_again(&mut self) {
        if self.settings.cold_start.changed() != self.mounted {
            self.cold_start().await;
        }
    }

    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut changes = self.shared.subscribe();
        let mut status = interval(STATUS_EVERY);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cold_start = interval(COLD_START_EVERY);
        let health = self.health.clone();
        let (mut opened, mut draining) = (std::pin::pin!(health.opened()), std::pin::pin!(health.draining()));
        let (mut seen_opened, mut seen_draining) = (false, false);
        loop {
            let deadline = self.order.deadline();
            let services_deadline = self.services.deadline();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event).await,
                    None => return,
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => self.restored().await,
                () = sleep_until(services_deadline.unwrap_or_else(Instant::now).into()), if services_deadline.is_some() => {
                    let restored = self.services.restored(now());
                    self.follow(restored);
                }
                Ok(()) = changes.changed() => self.tell(false),
                () = &mut opened, if !seen_opened => { seen_opened = true; self.tell(false) }
                () = &mut draining, if !seen_draining => { seen_draining = true; self.tell(false) }
                _ = status.tick() => self.tell(true),
                _ = cold_start.tick(), if self.shared.load().standing != Standing::Planned => self.look_again().await,
            }
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Opened { stream, up } => {
                self.streams.insert(stream, up);
                let status = self.status();
                self.send(stream, v1::up::Message::Status(status));
            }
            Event::Closed { stream } => {
                self.streams.remove(&stream);
                self.order.closed(stream, now());
                self.services.closed(stream, now());
            }
            Event::Down { stream, message } => self.down(stream, message).await,
        }
        self.metrics.streams.set(i64::try_from(self.streams.len()).unwrap_or(i64::MAX));
    }

    async fn down(&mut self, stream: StreamId, message: v1::down::Message) {
        match message {
            v1::down::Message::Identity(identity) => self.place(identity).await,
            v1::down::Message::Plan(plan) => self.plan(stream, plan).await,
            v1::down::Message::Trust(trust) => self.trust(&trust),
            v1::down::Message::Command(command) => self.command(stream, command),
            v1::down::Message::Services(services) => self.services(stream, services),
        }
    }

    /// The pod's place changed: the same plan may now hold other policies for it.
    async fn place(&mut self, identity: v1::Identity) {
        let v1::Identity { workload_kind, workload_name, services, live_pods } = identity;
        let namespace = self.settings.cold_start.namespace.clone();
        let identity = Identity { namespace, workload_kind, workload_name, services, live_pods };
        if identity == self.identity {
            return;
        }
        self.identity = identity;
        let current = self.shared.load();
        let Some(planned) = current.planned.clone() else { return };
        let identity = self.identity.clone();
        match aside(move || Config::build(planned, identity)).await {
            Some(Ok(config)) => self.shared.replace(config),
            Some(Err(error)) => tracing::warn!(%error, "The plan in force can't be applied to the pod's new place."),
            None => {}
        }
    }

    /// A stream tells what is new behind Services. One that is not understood ends, so that the operator begins again with all of them.
    fn services(&mut self, stream: StreamId, message: v1::Services) {
        let offered = self.services.offer(stream, message, &self.shared.services(), now());
        self.metrics.told_of_services(match &offered {
            Ok(Some(_)) => "taken",
            Ok(None) => "behind",
            Err(error) => {
                tracing::warn!(stream, %error, "What an operator told of Services can't be used; what was told before stays.");
                self.streams.remove(&stream); // without its sender it ends
                "refused"
            }
        });
        self.follow(offered.ok().flatten());
    }

    fn follow(&mut self, taken: Option<(StreamId, Arc<Services>)>) {
        let Some((stream, services)) = taken else { return };
        self.metrics.serves(&services);
        let (version, unusable) = (services.version().to_owned(), services.unusable());
        if unusable > 0 {
            self.metrics.unusable_of_services(unusable);
            tracing::warn!(stream, unusable, "Parts of what an operator told of Services can't be used and are left out.");
        }
        tracing::debug!(
            version,
            services = services.len(),
            endpoints = services.endpoints(),
            "Services of an operator are in force."
        );
        self.shared.follow(services);
        self.send(stream, v1::up::Message::ServicesAck(v1::ServicesAck { version }));
    }

    async fn plan(&mut self, stream: StreamId, plan: v1::Plan) {
        if digest_bytes(&plan.document) != plan.digest {
            return self.nack(stream, &plan.digest, "", "the document does not have the digest that the message says".to_owned());
        }
        let position = plan.position.clone().into_iter().collect();
        match self.order.offer(stream, plan.digest.clone(), position, plan.clone(), now()) {
            Verdict::Take => self.apply(stream, plan).await,
            Verdict::InForce => self.ack(stream, plan.digest),
            // Two replicas rarely have seen all kinds up to the same versions; what they say may be the same all the same.
            Verdict::Behind if self.shared.load().digest() == plan.digest => self.ack(stream, plan.digest),
            Verdict::Behind => {
                self.metrics.behind.inc();
                tracing::info!(
                    digest = plan.digest,
                    stream,
                    "An operator offered a plan older than the one in force; it was not taken."
                );
            }
        }
    }

    /// Every stream has offered only older plans for a minute.
    async fn restored(&mut self) {
        let Some((stream, plan)) = self.order.restored(now()).map(|(stream, plan)| (stream, plan.clone())) else { return };
        self.metrics.restored.inc();
        tracing::warn!(
            digest = plan.digest,
            "All operators offer only plans older than the one in force; the cluster went back, so the newest of them is taken."
        );
        self.apply(stream, plan).await;
    }

    async fn apply(&mut self, stream: StreamId, plan: v1::Plan) {
        let position: Position = plan.position.clone().into_iter().collect();
        let config = match self.compile(&plan, &position).await {
            Ok(config) => config,
            Err(error) => {
                self.metrics.planned("stream", false);
                tracing::warn!(digest = plan.digest, %error, "A plan can't be applied; the one in force stays.");
                let subject = error.policy.as_ref().map(|policy| format!("policy {policy}")).unwrap_or_default();
                return self.nack(stream, &plan.digest, &subject, error.to_string());
            }
        };
        self.keep(&plan, &position).await;
        self.order.took(plan.digest.clone(), position, now());
        self.metrics.planned("stream", true);
        tracing::info!(digest = plan.digest, "A plan of the operator is in force.");
        self.shared.replace(config);
        // Others may have offered it before, from a position that was behind.
        for stream in self.order.offering(&plan.digest).collect::<Vec<_>>() {
            self.ack(stream, plan.digest.clone());
        }
    }

    async fn compile(&self, plan: &v1::Plan, position: &Position) -> Result<Config, ConfigError> {
        let current = self.shared.load();
        if current.digest() == plan.digest && current.identity == self.identity {
            return Ok(current.moved(position.clone(), PlanSource::Stream));
        }
        let (settings, identity) = (Arc::clone(&self.settings), self.identity.clone());
        let (plan, position) = (plan.clone(), position.clone());
        let compiled = aside(move || read(&settings, plan, position).and_then(|planned| Config::build(planned, identity)));
        compiled.await.unwrap_or_else(|| Err(whole("it could not be compiled".to_owned())))
    }

    async fn keep(&self, plan: &v1::Plan, position: &Position) {
        let Some(state) = self.settings.state().cloned() else { return };
        let (plan, position, identity) = (plan.clone(), position.clone(), self.identity.clone());
        let kept = aside(move || state.keep_plan(&plan.digest, &position, &identity, &plan.document)).await;
        if let Some(Err(error)) = kept {
            tracing::warn!(%error, "The plan can't be kept for the next start.");
        }
    }

    /// Keeps whom to trust; the next connection uses it.
    fn trust(&self, trust: &v1::Trust) {
        let keys = trust.plan_keys.iter().filter_map(|key| PublicKey::try_from(key.as_ref()).ok());
        let trust = Trust { ca_pem: trust.ca_pem.clone(), plan_keys: keys.map(|key| key.to_string()).collect() };
        let Some(state) = self.settings.state() else { return };
        if state.trust().as_ref() == Some(&trust) {
            return;
        }
        match state.keep_trust(&trust) {
            Ok(()) => tracing::info!(keys = trust.plan_keys.len(), "The operator's new trust bundle is kept."),
            Err(error) => tracing::warn!(%error, "The operator's trust bundle can't be kept."),
        }
    }

    fn command(&mut self, stream: StreamId, command: v1::Command) {
        // Some is left for the answer's way.
        let at_most = Duration::from_millis(command.deadline_ms.into()).mul_f32(0.9);
        match &*command.verb {
            "purge" => {
                let (config, purges) = (Arc::clone(&self.shared.load()), self.settings.purges.clone());
                let body = command.body;
                self.beside(stream, command.id, async move { ask::purge(config, &purges, &body, at_most).await });
            }
            "reset" => {
                let (config, limiter) = (Arc::clone(&self.shared.load()), Arc::clone(&self.settings.limiter));
                let body = command.body;
                self.beside(stream, command.id, async move { ask::reset(config, &limiter, &body).await });
            }
            "cache" | "limits" => {
                let (routes, places) = self.questions.clone();
                let body = command.body;
                self.beside(stream, command.id, async move {
                    let busy = || Refused::later("as many questions as can be are being answered: ask again");
                    let _place = places.try_acquire_owned().map_err(|_| busy())?;
                    timeout(at_most, ask::cache::relay(routes, &body)).await.unwrap_or_else(|_| Err(busy()))
                });
            }
            verb => {
                let answer = ask::answer(&self.shared, &self.settings.throttles, verb, &command.body);
                self.send(stream, answer_to(command.id, answer));
            }
        }
    }

    /// Answers beside the rest what takes time.
    fn beside(&self, stream: StreamId, id: String, answer: impl Future<Output = Result<Vec<u8>, Refused>> + Send + 'static) {
        let Some(up) = self.streams.get(&stream).cloned() else { return };
        tokio::spawn(async move {
            let answer = answer.await;
            // Nobody waits for it where that stream has ended.
            let _ = up.try_send(v1::Up { message: Some(answer_to(id, answer)) });
        });
    }

    /// Tells all streams how the sidecar is; unless `anyway`, only if that has changed.
    fn tell(&mut self, anyway: bool) {
        let status = self.status();
        if !anyway && self.told.as_ref() == Some(&status) {
            return;
        }
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.send(stream, v1::up::Message::Status(status.clone()));
        }
        self.told = Some(status);
    }

    fn status(&self) -> v1::Status {
        let config = self.shared.load();
        v1::Status {
            plan_digest: config.digest().to_owned(),
            ready: self.health.readiness().is_ok(),
            draining: self.health.is_draining(),
            conditions: Vec::new(),
            plan_source: config.source().to_string(),
        }
    }

    fn ack(&mut self, stream: StreamId, digest: String) {
        self.send(stream, v1::up::Message::Ack(v1::Ack { digest }));
    }

    fn nack(&mut self, stream: StreamId, digest: &str, subject: &str, reason: String) {
        let nack = v1::Nack { digest: digest.to_owned(), subject: subject.to_owned(), reason };
        self.send(stream, v1::up::Message::Nack(nack));
    }

    fn send(&mut self, stream: StreamId, message: v1::up::Message) {
        let Some(up) = self.streams.get(&stream) else { return };
        // A stream that takes no more is broken; without its sender it ends and is opened again.
        if up.try_send(v1::Up { message: Some(message) }).is_err() {
            self.streams.remove(&stream);
        }
    }
}

fn answer_to(id: String, answer: Result<Vec<u8>, Refused>) -> v1::up::Message {
    let fits = |body: Vec<u8>| match body.len() {
        0..=MAX_ANSWER => Ok(body),
        size => Err(Refused::wrong(format!("the answer has {size} bytes, at most {MAX_ANSWER} can be sent: ask for less of it"))),
    };
    let (body, error, status) = match answer.and_then(fits) {
        Ok(body) => (body, String::new(), StatusCode::OK),
        Err(Refused { status, why }) => (Vec::new(), why, status),
    };
    let status = status.as_u16().into();
    v1::up::Message::CommandAnswer(v1::CommandAnswer { id, body: body.into(), error, status })
}

/// Reads the document of a plan.
fn read(settings: &Settings, plan: v1::Plan, position: Position) -> Result<Planned, ConfigError> {
    let read: Plan = serde_json::from_slice(&plan.document).map_err(|error| whole(format!("not a plan: {error}")))?;
    if read.proxy != *settings.proxy() {
        return Err(whole(format!("the plan is for proxy {}, the pod's is {}", read.proxy, settings.proxy())));
    }
    Ok(Planned { plan: Arc::new(read), digest: plan.digest, position, source: PlanSource::Stream })
}

/// An error of the plan as a whole.
fn whole(message: String) -> ConfigError {
    ConfigError { policy: None, rule: None, message }
}

/// Works beside the runtime, which also answers probes: compiling a large plan may take long. None if the work panicked.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "A piece of work on a plan did not end well.")).ok()
}

/// tokio's time, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_that_is_too_long_for_a_message_is_refused_in_words() {
        let answer = |length| match answer_to("1".to_owned(), Ok(vec![b' '; length])) {
            v1::up::Message::CommandAnswer(answer) => (answer.status, answer.body.len(), answer.error),
            other => panic!("{other:?}"),
        };
        assert_eq!(answer(MAX_ANSWER), (200, MAX_ANSWER, String::new()));
        let (status, length, error) = answer(MAX_ANSWER + 1);
        assert_eq!((status, length, error.ends_with("can be sent: ask for less of it")), (400, 0, true), "{error}");
    }
}
