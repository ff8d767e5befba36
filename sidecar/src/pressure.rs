//! How short memory is, and what is given up for it: better a client that is told to come again than a process that the kernel kills.
//!
//! A thread of its own reads the memory of the control group, for the runtimes may be busy just then. What it finds is one number that
//! requests look at, and calls to those who can give memory back. Without a limit there is no such thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

mod group;

pub use group::Group;
use group::Watched;

/// Bytes that a body is read ahead by at a time, when memory is plenty.
pub(crate) const MOST_ROOM: usize = 64 << 10;

/// When it is short.
const LEAST_ROOM: usize = 4 << 10;

/// All connections and requests together may read ahead by what is left, divided by this.
const CAUTION: u64 = 4;

/// How much less than what a step begins at ends it.
const MARGIN: f64 = 0.05;

/// Bytes that all the traffic could add within a second. The closer the next step, the sooner memory is looked at again.
const FASTEST: f64 = (1_u64 << 30) as f64;
const SOONEST: Duration = Duration::from_millis(5);
const LATEST: Duration = Duration::from_millis(100);

/// How often memory is asked for again while it is short.
const AGAIN: Duration = Duration::from_secs(1);

/// Failures in a row to learn how much is used before nothing more is given up: what was known then may not hold any more.
const FAILURES: u32 = 3;

/// How often the allocator has to give back what was freed meanwhile.
const PURGED: Duration = Duration::from_millis(100);

/// How long a client's connection may be idle while no new ones are taken.
pub(crate) const IDLE: Duration = Duration::from_secs(1);

/// Stack of the thread that watches.
const STACK: usize = 128 << 10;

/// What is given up. Each step includes those before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Step {
    /// Nothing.
    Calm,
    /// What lies idle: the pools' connections, what the allocator keeps.
    Reclaim,
    /// New connections, and those of clients that are idle.
    Refuse,
    /// Requests with large bodies, and what is kept of bodies for further tries.
    Shed,
}

impl Step {
    const ALL: [Self; 4] = [Self::Calm, Self::Reclaim, Self::Refuse, Self::Shed];

    /// The used part of the limit that it begins at.
    fn begins_at(self) -> f64 {
        match self {
            Self::Calm => 0.0,
            Self::Reclaim => 0.85,
            Self::Refuse => 0.92,
            Self::Shed => 0.97,
        }
    }

    /// The step after this one when so much is used. It ends only well below where it began, or it would come and go all the time.
    fn next(self, used: f64) -> Self {
        let reached = |margin| Self::ALL.into_iter().rev().find(|step| used >= step.begins_at() - margin).unwrap_or(Self::Calm);
        reached(0.0).max(self.min(reached(MARGIN)))
    }
}

/// How short memory is. The workers share it.
#[derive(Debug)]
pub(crate) struct Pressure {
    step: AtomicU8,
    room: AtomicUsize,
    /// Uploads on their way that may be ended until memory is looked at again: more would be given up than need be.
    endings: AtomicUsize,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Metrics {
    step: Gauge,
    used: Gauge<f64, AtomicU64>,
    limit: Gauge,
    reclaimed: Family<Reclaimed, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reclaimed {
    what: &'static str,
}

/// Memory as it is used, and the limit on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Usage {
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            step: AtomicU8::new(Step::Calm as u8),
            room: AtomicUsize::new(MOST_ROOM),
            endings: AtomicUsize::new(0),
            metrics: Metrics::default(),
        }
    }
}

impl Pressure {
    /// Whether what `step` gives up is given up now.
    pub(crate) fn is(&self, step: Step) -> bool {
        self.step.load(Ordering::Relaxed) >= step as u8
    }

    /// Bytes that a body may be read ahead by now.
    pub(crate) fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// Whether an upload on its way is to be ended.
    pub(crate) fn ends_upload(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.is(Step::Shed) && self.endings.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Counts things that were given up.
    pub(crate) fn reclaimed(&self, what: &'static str, count: usize) {
        if count > 0 {
            self.metrics.reclaimed.get_or_create(&Reclaimed { what }).inc_by(count as u64);
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let Metrics { step, used, limit, reclaimed } = &self.metrics;
        registry.register("fetchr_memory_pressure_step", "0 calm, 1 reclaim, 2 refuse, 3 shed", step.clone());
        registry.register("fetchr_memory_used_ratio", "Used part of the control group's memory limit", used.clone());
        registry.register("fetchr_memory_limit_bytes", "Memory limit of the control group; 0 without one", limit.clone());
        registry.register("fetchr_memory_reclaimed", "What was given up for want of memory", reclaimed.clone());
    }

    /// Notes how much is used, by so many connections and requests.
    fn note(&self, usage: Usage, users: u64) -> Step {
        let step = self.now().next(usage.ratio());
        self.step.store(step as u8, Ordering::Relaxed);
        self.room.store(usage.room(users), Ordering::Relaxed);
        self.endings.store(usage.endings(), Ordering::Relaxed);
        self.metrics.step.set(step as i64);
        self.metrics.used.set(usage.ratio());
        self.metrics.limit.set(usage.limit.try_into().unwrap_or(i64::MAX));
        step
    }

    /// Nothing is known any more.
    fn forget(&self) {
        self.step.store(Step::Calm as u8, Ordering::Relaxed);
        self.metrics.step.set(Step::Calm as i64);
    }

    fn now(&self) -> Step {
        let now = self.step.load(Ordering::Relaxed);
        Step::ALL.into_iter().find(|step| *step as u8 == now).unwrap_or(Step::Shed)
    }
}

impl Usage {
    fn ratio(self) -> f64 {
        self.used as f64 / self.limit.max(1) as f64
    }

    /// What each of so many may read ahead by, such that all of them together leave memory free.
    fn room(self, users: u64) -> usize {
        let each = self.limit.saturating_sub(self.used) / (CAUTION * users.max(1));
        usize::try_from(each).unwrap_or(MOST_ROOM).clamp(LEAST_ROOM, MOST_ROOM)
    }

    /// Uploads that hold together what is used beyond the step before the last.
    fn endings(self) -> usize {
        let beyond = self.used as f64 - Step::Refuse.begins_at() * self.limit as f64;
        (beyond.max(0.0) as usize / MOST_ROOM).max(1)
    }

    /// When to look again: before the next step can be reached.
    fn look_again(self) -> Duration {
        let next = Step::ALL.into_iter().map(Step::begins_at).find(|begins_at| *begins_at > self.ratio());
        let gap = next.unwrap_or(1.0) * self.limit as f64 - self.used as f64;
        Duration::from_secs_f64(gap.max(0.0) / FASTEST).clamp(SOONEST, LATEST)
    }
}

/// Gives memory back. Called when memory becomes short, and each second while it is.
pub(crate) type Relief = Box<dyn Fn(Step) + Send>;

/// Watches the memory of a group on a thread of its own, for as long as anybody else holds `pressure`.
pub(crate) fn watch(
    pressure: &Arc<Pressure>,
    group: Group,
    users: impl Fn() -> u64 + Send + 'static,
    relief: Vec<Relief>,
) -> std::io::Result<()> {
    let pressure = Arc::downgrade(pressure);
    let watched = move || {
        let (mut group, mut before, mut failures) = (Watched::new(group), Step::Calm, 0_u32);
        let (mut asked, mut purged) = (Every::new(AGAIN), Every::new(PURGED));
        while let Some(pressure) = pressure.upgrade() {
            let pause = match group.usage() {
                Ok(usage) => {
                    failures = 0;
                    let step = pressure.note(usage, users());
                    if step != before {
                        tracing::warn!(?step, used = usage.used, limit = usage.limit, "Memory pressure has changed.");
                    }
                    if step > before || (step > Step::Calm && asked.is_due()) {
                        asked.done();
                        relief.iter().for_each(|give_back| give_back(step));
                    }
                    if step > before || (step > Step::Calm && purged.is_due()) {
                        purged.done();
                        purge();
                    }
                    before = step;
                    usage.look_again()
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == FAILURES {
                        tracing::warn!(%error, "The memory of the control group can't be read; nothing is given up for it meanwhile.");
                        pressure.forget();
                        before = Step::Calm;
                    }
                    AGAIN
                }
            };
            drop(pressure);
            thread::sleep(pause);
        }
    };
    thread::Builder::new().name("pressure".to_owned()).stack_size(STACK).spawn(watched).map(drop)
}

/// Something that is done again after a while.
struct Every {
    pause: Duration,
    last: Option<Instant>,
}

impl Every {
    fn new(pause: Duration) -> Self {
        Self { pause, last: None }
    }

    fn is_due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.pause)
    }

    fn done(&mut self) {
        self.last = Some(Instant::now());
    }
}

/// Has the allocator give back what it keeps for later. Where another one is in use, nothing happens.
fn purge() {
    // `MALLCTL_ARENAS_ALL` of jemalloc.
    const ALL_ARENAS: &std::ffi::CStr = c"arena.4096.purge";
    // SAFETY: the name ends with a zero byte, and the call takes and gives no values.
    unsafe {
        tikv_jemalloc_sys::mallctl(ALL_ARENAS.as_ptr(), std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_at_once_and_end_with_a_margin() {
        let mut step = Step::Calm;
        for (used, expected) in [
            (0.84, Step::Calm),
            (0.85, Step::Reclaim),
            (0.81, Step::Reclaim),
            (0.93, Step::Refuse),
            (0.88, Step::Refuse),
            (0.86, Step::Reclaim),
            (0.79, Step::Calm),
            (0.99, Step::Shed),
            (0.93, Step::Shed),
            (0.91, Step::Refuse),
            (0.10, Step::Calm),
            (1.20, Step::Shed),
        ] {
            step = step.next(used);
            assert_eq!(step, expected, "{used}");
        }
    }

    #[test]
    fn what_all_may_read_ahead_by_leaves_memory_free() {
        let limit = 128 << 20;
        for used in [0, 30 << 20, 100 << 20] {
            for users in [1, 100, 1000] {
                let (room, left) = (Usage { used, limit }.room(users) as u64, limit - used);
                assert!(room == LEAST_ROOM as u64 || room * users <= left / CAUTION, "{used} {users}");
                assert!(room == MOST_ROOM as u64 || users > 100, "{used} {users}: {room}");
            }
        }
        assert_eq!(Usage { used: limit, limit }.room(1), LEAST_ROOM);
    }

    #[test]
    fn memory_is_looked_at_sooner_when_it_is_short() {
        let limit = 256 << 20;
        let pause = |part: f64| Usage { used: (limit as f64 * part) as u64, limit }.look_again();
        assert_eq!(pause(0.1), LATEST);
        assert!(pause(0.8) < Duration::from_millis(15), "{:?}", pause(0.8));
        assert_eq!((pause(0.849), pause(2.0)), (SOONEST, SOONEST));
    }
}
