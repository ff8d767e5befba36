//! A pod: its clock, its objects, its fetches.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use fastrand::Rng;

use super::{
    super::{
        CutOff, Index, Member, Position, Stamp, Uptime, Verdict,
        index::Object,
        log::{MemberId, Page},
        member::{Beat, Next},
        name::Name,
    },
    checker::{Checker, Content, Task},
    plan::{Instant, Plan},
};

/// Objects that pods share: version and position by object.
pub(super) type Objects = BTreeMap<usize, (u64, Position)>;

/// A clock that begins anywhere, and is up to 0.2 % off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: u64,
    per_million: u64,
}

impl Clock {
    pub(super) fn local(&self, now: Instant) -> Uptime {
        Duration::from_micros(self.start + now * self.per_million / 1_000_000)
    }

    /// How long it takes until the clock shows that time.
    pub(super) fn until(&self, at: Uptime, now: Instant) -> u64 {
        let left = at.saturating_sub(self.local(now)).as_micros() as u64;
        left * 1_000_000 / self.per_million + 2
    }
}

#[derive(Debug)]
struct Fetch {
    object: usize,
    stamp: Stamp,
    version: u64,
    /// Who waits: what it may at least expect, and whether that is promised.
    waiting: Vec<(Content, bool)>,
}

#[derive(Debug)]
pub(super) struct Pod {
    pub id: MemberId,
    pub life: u64,
    pub clock: Clock,
    pub member: Member,
    pub index: Index,
    pub beating: Option<u64>,
    /// The timer of the next beat.
    pub due: u64,
    /// Something was appended while a beat was under way.
    pub news: bool,
    pub cut: std::ops::Range<Instant>,
    pub slow_until: Instant,
    pub purges: HashMap<u64, Task>,
    cut_off: CutOff,
    memory: HashMap<usize, (u64, Stamp)>,
    fetches: HashMap<u64, Fetch>,
    /// The fetch that can be joined.
    fills: HashMap<usize, u64>,
    next: u64,
}

impl Pod {
    pub(super) fn new(pod: usize, rng: &mut Rng, plan: &Plan) -> Self {
        let life = rng.u64(1..);
        Self {
            id: MemberId::new(&format!("web-{pod}"), life).expect("a plain name"),
            life,
            clock: Clock { start: rng.u64(0..1_000_000_000), per_million: rng.u64(998_000..=1_002_000) },
            member: Member::new(plan.rules),
            index: Index::new(plan.rules.cut_off, plan.capacity),
            beating: None,
            due: 0,
            news: false,
            cut: 0..0,
            slow_until: 0,
            purges: HashMap::new(),
            cut_off: plan.rules.cut_off,
            memory: HashMap::new(),
            fetches: HashMap::new(),
            fills: HashMap::new(),
            next: 0,
        }
    }

    /// Takes an answer; whether to beat again at once. None if nothing is to follow.
    pub(super) fn answered(&mut self, beat: Beat, page: &Page, replicas: u32, now: Uptime, from_answer: bool) -> Option<bool> {
        // As if it were sent when it was answered.
        let beat = if from_answer { self.member.beat(now) } else { beat };
        match self.member.answered(beat, page, replicas, now, &mut self.index) {
            Next::Now => Some(true),
            Next::Rest => Some(false),
            Next::Late => None,
        }
    }

    /// A request for an object. Returns the fetch that it began, if it did.
    pub(super) fn lookup(
        &mut self,
        object: usize,
        now: Uptime,
        shared: &Objects,
        join_any: bool,
        checker: &mut Checker,
    ) -> Option<u64> {
        let cut_off = self.member.is_cut_off(now);
        checker.cut_off += usize::from(cut_off);
        // Nothing is promised by who serves while cut off.
        let promised = !(cut_off && self.cut_off == CutOff::Serve);
        let held = self.memory.get(&object).copied();
        let verdict = held.map(|(_, stamp)| self.verdict(object, stamp, now));
        let needs = checker.needs(object);
        match (held, verdict) {
            (Some((version, _)), Some(verdict @ (Verdict::Fresh | Verdict::Soft))) => {
                if promised {
                    checker.served(object, version, verdict, needs, self.cut_off);
                }
                if verdict == Verdict::Fresh {
                    return None;
                }
            }
            _ => {
                if let Some((version, position)) = shared.get(&object) {
                    let stamp = self.index.stamp_at(*position);
                    if self.verdict(object, stamp, now) == Verdict::Fresh {
                        if promised {
                            checker.shared += 1;
                            checker.served(object, *version, Verdict::Fresh, needs, self.cut_off);
                        }
                        self.memory.insert(object, (*version, stamp));
                        return None;
                    }
                }
            }
        }
        let joinable = self.fills.get(&object).copied().filter(|fill| {
            let stamp = self.fetches[fill].stamp;
            join_any || self.verdict(object, stamp, now) == Verdict::Fresh
        });
        if let Some(fill) = joinable
            && let Some(fetch) = self.fetches.get_mut(&fill)
        {
            fetch.waiting.push((needs, promised));
            return None;
        }
        self.next += 1;
        let fetch = Fetch { object, stamp: self.index.stamp(), version: 0, waiting: vec![(needs, promised)] };
        self.fetches.insert(self.next, fetch);
        self.fills.insert(object, self.next);
        Some(self.next)
    }

    pub(super) fn read_origin(&mut self, fetch: u64, checker: &Checker) {
        if let Some(fetch) = self.fetches.get_mut(&fetch) {
            fetch.version = checker.version(fetch.object);
        }
    }

    /// A fetch has ended. What it leaves to others.
    pub(super) fn fetched(&mut self, id: u64, late: bool, checker: &mut Checker) -> Option<(usize, u64, Option<Position>)> {
        let Fetch { object, stamp, version, waiting } = self.fetches.remove(&id)?;
        checker.joined += waiting.len() - 1;
        for (needs, promised) in waiting {
            if promised {
                checker.served(object, version, Verdict::Fresh, needs, self.cut_off);
            }
        }
        if self.fills.get(&object) == Some(&id) {
            self.fills.remove(&object);
        }
        let stamp = if late { self.index.stamp() } else { stamp };
        // Never in the place of something newer.
        if self.memory.get(&object).is_none_or(|(_, held)| *held <= stamp) {
            self.memory.insert(object, (version, stamp));
        }
        Some((object, version, self.index.position(stamp)))
    }

    fn verdict(&self, object: usize, stamp: Stamp, now: Uptime) -> Verdict {
        let url = Checker::url(object);
        let names: [Name; 2] =
            [self.index.naming().tag(&Checker::tag(object)), self.index.naming().policy(&Checker::policy(object))];
        self.member.verdict(&self.index, &Object { stamp, url: &url, names: &names }, now)
    }
}
