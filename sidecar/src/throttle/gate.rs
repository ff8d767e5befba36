//! What a pod counts of one throttle, over all workers and configurations, behind one short lock. Whoever waits is told through a channel
//! that outlives neither: a permit that nobody takes goes back by being dropped.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crds::policy::{Mode, Throttle as Spec, throttle::ConcurrencyKind};
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::oneshot,
    time::{Instant as TokioInstant, timeout_at},
};

use super::{
    Bandwidth, Sample,
    adaptive::Adaptive,
    counted::{Figures, Outcome},
    queue::{Place, Settings},
    shaper::{Pacing, Refused, Shaper, Slot},
    show::ThrottleFigures,
    state::{Asks, Entered, State},
};

/// Who waits hears of its turn, or that another has taken its place.
type Teller = oneshot::Sender<Result<Permit, Outcome>>;

/// The name of a priority, and how long its requests waited.
#[derive(Clone, Debug)]
struct Level {
    name: Arc<str>,
    waits: Histogram,
}

/// One throttle of the pod.
#[derive(Debug)]
pub(super) struct Gate {
    label: Arc<str>,
    /// Whether it has to know what becomes of requests.
    adaptive: AtomicBool,
    state: Mutex<State<Teller>>,
    shaper: Mutex<Shaper>,
    levels: Mutex<(Mode, Vec<Level>)>,
    pub(super) download: Arc<Bandwidth>,
    pub(super) upload: Arc<Bandwidth>,
    pub(super) figures: Figures,
}

/// A turn that was not given: why, and after how long another may be.
pub(super) type Refusal = (Outcome, Duration);

impl Gate {
    pub(super) fn new(label: Arc<str>, spec: &Spec, levels: &[Arc<str>], figures: Figures) -> Arc<Self> {
        let now = now();
        let queue = Settings::of(&spec.queue.clone().unwrap_or_default());
        let gate = Arc::new(Self {
            label,
            adaptive: AtomicBool::default(),
            state: Mutex::new(State::new(spec.concurrency.as_ref(), queue, now)),
            shaper: Mutex::default(),
            levels: Mutex::default(),
            download: Arc::default(),
            upload: Arc::default(),
            figures,
        });
        gate.configure(spec, levels);
        gate
    }

    /// Takes over other settings. What is under way and what waits go on.
    pub(super) fn configure(self: &Arc<Self>, spec: &Spec, levels: &[Arc<str>]) {
        let adaptive = spec.concurrency.is_some_and(|concurrency| concurrency.kind == ConcurrencyKind::Adaptive);
        self.adaptive.store(adaptive, Ordering::Relaxed);
        let bandwidth = spec.bandwidth.unwrap_or_default();
        self.download.configure(bandwidth.download.map(|size| size.0));
        self.upload.configure(bandwidth.upload.map(|size| size.0));
        let named = |name: &Arc<str>| Level { name: Arc::clone(name), waits: self.figures.waits(name) };
        let before = mem::replace(&mut *lock(&self.levels), (spec.mode, levels.iter().map(named).collect()));
        before.1.iter().filter(|level| !levels.contains(&level.name)).for_each(|level| self.figures.forget_waits(&level.name));
        let queue = Settings::of(&spec.queue.clone().unwrap_or_default());
        self.lock().configure(spec.concurrency.as_ref(), queue, now());
        self.go_on(false);
    }

    /// Lets a request through if there is room and nobody waits; else it is to [wait](Waiting::turn).
    pub(super) fn try_enter(self: &Arc<Self>, asks: Asks) -> Result<Permit, Result<Waiting, Outcome>> {
        let now = now();
        let mut told = None;
        let entered = {
            let mut state = self.lock();
            let entered = state.enter(asks, now, || {
                let (tell, hears) = oneshot::channel();
                told = Some(hears);
                tell
            });
            self.show(&state);
            entered
        };
        match (entered, told) {
            (Entered::Admitted, _) => Ok(Permit::new(self, now)),
            (Entered::Waits(place, gone), Some(hears)) => {
                if let Some(gone) = gone {
                    let _ = gone.send(Err(Outcome::Preempted)); // its client may have left
                }
                Err(Ok(Waiting { gate: Arc::clone(self), place: Some(place), hears, asks, since: now }))
            }
            (Entered::Waits(..) | Entered::Full, _) => Err(Err(Outcome::QueueFull)),
        }
    }

    /// Lets a request through in any case, and counts what would have become of it.
    pub(super) fn watch(self: &Arc<Self>) -> (Permit, Outcome) {
        let (room, waits) = {
            let mut state = self.lock();
            let watched = state.watch();
            self.show(&state);
            watched
        };
        let outcome = match (room, waits) {
            (true, _) => Outcome::Admitted,
            (false, true) => Outcome::Queued,
            (false, false) => Outcome::QueueFull,
        };
        (Permit::new(self, now()), outcome)
    }

    /// Takes a time at which a request may go.
    pub(super) fn shape(self: &Arc<Self>, pacing: Pacing, deadline: Option<Instant>) -> Result<Shaped, Refusal> {
        let now = now();
        match lock(&self.shaper).take(&pacing, now, deadline) {
            Ok(slot) => Ok(Shaped { gate: Arc::clone(self), pacing, slot, waits: slot.at > now }),
            Err(Refused::TooLong(again)) => Err((Outcome::Rate, again)),
            Err(Refused::TooLate) => Err((Outcome::Deadline, Duration::ZERO)),
        }
    }

    /// How it stands.
    pub(super) fn show_all(&self) -> ThrottleFigures {
        let (mode, levels) = lock(&self.levels).clone();
        let shaped = lock(&self.shaper).waiting();
        let state = self.lock();
        let lengths = state.queue().lengths().map(|length| length as u64).chain(std::iter::repeat(0));
        ThrottleFigures {
            rule: self.label.to_string(),
            mode,
            in_flight: state.in_flight().into(),
            limit: state.found().map(u64::from),
            gradient: state.adaptive().map(Adaptive::gradient),
            baseline_millis: state.adaptive().and_then(Adaptive::baseline).map(|latency| latency.as_secs_f64() * 1e3),
            queued: state.queue().len() as u64,
            delayed: shaped as u64,
            priorities: levels.iter().map(|level| level.name.to_string()).zip(lengths).collect(),
            requests: Outcome::ALL.map(|outcome| (outcome.label().to_owned(), self.figures.counted(outcome))).into(),
        }
    }

    /// Takes its series off the metrics page.
    pub(super) fn forget(&self) {
        let names: Vec<_> = lock(&self.levels).1.iter().map(|level| Arc::clone(&level.name)).collect();
        self.figures.forget(&names);
    }

    /// Notes how long a request waited before it went.
    pub(super) fn waited(&self, level: u8, time: Duration) {
        let levels = lock(&self.levels);
        if let Some(level) = levels.1.get(usize::from(level)).or(levels.1.last()) {
            level.waits.observe(time.as_secs_f64());
        }
    }

    /// Gives those that wait the room that there is, once a request has left or without one. They are told outside of the lock: a permit
    /// that nobody takes comes back here.
    fn go_on(self: &Arc<Self>, mut left: bool) {
        loop {
            let next = {
                let mut state = self.lock();
                if left {
                    state.leave();
                }
                let next = state.next(now());
                self.show(&state);
                next
            };
            let Some(teller) = next else { return };
            left = match teller.send(Ok(Permit::new(self, now()))) {
                Err(Ok(mut untaken)) => {
                    untaken.returned = true;
                    true
                }
                Ok(()) | Err(Err(_)) => false,
            };
        }
    }

    fn show(&self, state: &State<Teller>) {
        self.figures.in_flight.set(state.in_flight().into());
        self.figures.queued.set(i64::try_from(state.queue().len()).unwrap_or(i64::MAX));
        self.figures.limit.set(state.found().map_or(0, i64::from));
        if let Some(adaptive) = state.adaptive() {
            self.figures.gradient.set(adaptive.gradient());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<Teller>> {
        lock(&self.state)
    }
}

/// A panic under the lock leaves at worst one wrong count.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of the runtime, which tests may stop.
pub(super) fn now() -> Instant {
    TokioInstant::now().into_std()
}

/// A request that was let through; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    admitted: Instant,
    /// It was given back.
    returned: bool,
}

impl Permit {
    fn new(gate: &Arc<Gate>, admitted: Instant) -> Self {
        Self { gate: Arc::clone(gate), admitted, returned: false }
    }

    /// What became of the request.
    pub(super) fn note(&self, sample: Sample) {
        if !self.gate.adaptive.load(Ordering::Relaxed) {
            return;
        }
        let waits = {
            let mut state = self.gate.lock();
            state.note(self.admitted, sample, now());
            self.gate.show(&state);
            state.queue().len() > 0
        };
        if waits {
            self.gate.go_on(false); // the limit may be another
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.returned {
            self.gate.go_on(true);
        }
    }
}

/// A request that waits for its turn. Dropped, it does not wait any longer.
#[derive(Debug)]
pub(super) struct Waiting {
    gate: Arc<Gate>,
    place: Option<Place>,
    hears: oneshot::Receiver<Result<Permit, Outcome>>,
    asks: Asks,
    since: Instant,
}

impl Waiting {
    /// Waits for the turn, for as long as may be.
    pub(super) async fn turn(mut self) -> Result<Permit, Outcome> {
        let told = match timeout_at(self.asks.expires.into(), &mut self.hears).await {
            Ok(Ok(told)) => Some(told),
            Ok(Err(_)) => None, // it had expired when its turn came
            Err(_) => {
                self.leave();
                // Its turn may have come in the same moment.
                self.hears.try_recv().ok()
            }
        };
        self.place = None;
        let permit = told.unwrap_or(Err(Outcome::MaxWait))?;
        self.gate.waited(self.asks.level, now().saturating_duration_since(self.since));
        Ok(permit)
    }

    /// Leaves the queue. Whether it was in there.
    fn leave(&mut self) -> bool {
        let Some(place) = self.place.take() else { return false };
        let mut state = self.gate.lock();
        let was_there = state.give_up(place);
        self.gate.show(&state);
        was_there
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.place.is_some() {
            let mode = lock(&self.gate.levels).0;
            self.leave();
            self.gate.figures.count(mode, Outcome::Abandoned);
        }
    }
}

/// A time at which a request may go. Dropped before that, it is given back.
#[derive(Debug)]
pub(super) struct Shaped {
    gate: Arc<Gate>,
    pacing: Pacing,
    slot: Slot,
    waits: bool,
}

impl Shaped {
    /// When it goes; none if that is now.
    pub(super) fn at(&self) -> Option<Instant> {
        self.waits.then_some(self.slot.at)
    }
}

impl Shaped {
    /// Takes the time without waiting for it.
    pub(super) fn pass(mut self) {
        lock(&self.gate.shaper).went(&self.pacing, self.slot, self.slot.at);
        self.waits = false;
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        if self.waits {
            let now = now();
            lock(&self.gate.shaper).went(&self.pacing, self.slot, now);
            if now < self.slot.at {
                let mode = lock(&self.gate.levels).0;
                self.gate.figures.count(mode, Outcome::Abandoned);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::{super::counted::Metrics, *};

    #[test]
    fn priority_that_is_renamed_leaves_no_series() {
        let (mut registry, metrics) = (Registry::default(), Metrics::default());
        metrics.register(&mut registry);
        let spec: Spec = serde_json::from_str("{}").unwrap();
        let gate = Gate::new("shop/web/rule".into(), &spec, &["old".into()], metrics.of(&"shop/web".into(), &"rule".into()));
        gate.configure(&spec, &["new".into()]);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        assert!(page.contains(r#"priority="new""#) && !page.contains(r#"priority="old""#), "{page}");
    }
}
