//! Who is let through, who waits and who is turned away. Pure; time is passed in, and whoever waits is what the caller hands over.

use std::time::Instant;

use crds::policy::throttle::{Concurrency, ConcurrencyKind};

use super::{
    adaptive::{Adaptive, Sample},
    queue::{Place, Pushed, Queue, Settings},
};

/// A request that wants to be let through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asks {
    /// Its priority, 0 being the highest.
    pub(super) level: u8,
    /// Of what tells its client.
    pub(super) hash: u64,
    /// Until when it may wait.
    pub(super) expires: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Entered<T> {
    /// It is let through.
    Admitted,
    /// It waits; and this one does not any more, if there is one.
    Waits(Place, Option<T>),
    /// There is no room to wait.
    Full,
}

/// Requests under way and those that wait.
#[derive(Debug)]
pub(super) struct State<T> {
    in_flight: u32,
    limit: Limit,
    queue: Queue<T>,
}

#[derive(Debug)]
enum Limit {
    Nothing,
    Fixed(u32),
    Adaptive(Box<Adaptive>),
}

impl Limit {
    fn of(concurrency: Option<&Concurrency>, now: Instant) -> Self {
        match concurrency {
            None => Self::Nothing,
            Some(settings) if settings.kind == ConcurrencyKind::Fixed => {
                Self::Fixed(u32::try_from(settings.bounds().1).unwrap_or(1))
            }
            Some(settings) => Self::Adaptive(Box::new(Adaptive::new(settings, now))),
        }
    }
}

impl<T> State<T> {
    pub(super) fn new(concurrency: Option<&Concurrency>, queue: Settings, now: Instant) -> Self {
        Self { in_flight: 0, limit: Limit::of(concurrency, now), queue: Queue::new(queue) }
    }

    /// Takes over other settings; requests under way and those that wait go on, and so does what an adaptive limit has found.
    pub(super) fn configure(&mut self, concurrency: Option<&Concurrency>, queue: Settings, now: Instant) {
        self.queue.configure(queue);
        match (&mut self.limit, concurrency) {
            (Limit::Adaptive(adaptive), Some(settings)) if settings.kind == ConcurrencyKind::Adaptive => {
                adaptive.configure(settings);
            }
            (limit, concurrency) => *limit = Limit::of(concurrency, now),
        }
    }

    /// Lets a request through, or has it wait with what `waits` makes.
    pub(super) fn enter(&mut self, asks: Asks, now: Instant, waits: impl FnOnce() -> T) -> Entered<T> {
        if self.has_room() && self.queue.len() == 0 {
            self.begin();
            return Entered::Admitted;
        }
        match self.queue.push(asks.level, asks.hash, now, asks.expires, waits()) {
            Pushed::Waits(place) => Entered::Waits(place, None),
            Pushed::InsteadOf(place, gone) => Entered::Waits(place, Some(gone)),
            Pushed::Full(_) => Entered::Full,
        }
    }

    /// Counts a request that is let through however many there are. Whether it would have been, and else whether it would have waited.
    pub(super) fn watch(&mut self) -> (bool, bool) {
        let (room, limit) = (self.has_room(), self.limit().unwrap_or(u32::MAX));
        let waits = u64::from(self.in_flight) < u64::from(limit) + self.queue.room() as u64;
        self.begin();
        (room, waits)
    }

    /// Lets through the next one that waits, if there is room.
    pub(super) fn next(&mut self, now: Instant) -> Option<T> {
        if !self.has_room() {
            return None;
        }
        let next = self.queue.pop(now)?;
        self.begin();
        Some(next)
    }

    /// A request has ended.
    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// What became of a request that was let through at `admitted`.
    pub(super) fn note(&mut self, admitted: Instant, sample: Sample, now: Instant) {
        if let Limit::Adaptive(adaptive) = &mut self.limit {
            adaptive.note(admitted, sample, self.in_flight, now);
        }
    }

    /// One does not wait any longer. False if it does not wait.
    pub(super) fn give_up(&mut self, place: Place) -> bool {
        self.queue.remove(place)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests that may be under way; none if any number may.
    pub(super) fn limit(&self) -> Option<u32> {
        match &self.limit {
            Limit::Nothing => None,
            Limit::Fixed(limit) => Some(*limit),
            Limit::Adaptive(adaptive) => Some(adaptive.limit()),
        }
    }

    /// The same, but for the moments in which an adaptive limit measures.
    pub(super) fn found(&self) -> Option<u32> {
        self.adaptive().map_or_else(|| self.limit(), |adaptive| Some(adaptive.found()))
    }

    pub(super) fn adaptive(&self) -> Option<&Adaptive> {
        match &self.limit {
            Limit::Adaptive(adaptive) => Some(adaptive),
            Limit::Nothing | Limit::Fixed(_) => None,
        }
    }

    pub(super) fn queue(&self) -> &Queue<T> {
        &self.queue
    }

    fn has_room(&self) -> bool {
        self.limit().is_none_or(|limit| self.in_flight < limit)
    }

    fn begin(&mut self) {
        self.in_flight += 1;
        if let Limit::Adaptive(adaptive) = &mut self.limit {
            adaptive.began(self.in_flight);
        }
    }
}
