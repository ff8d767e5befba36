//! What a fill holds, and its rules. Pure: time is an argument, and who is to be woken is given back.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Failure;
use crate::cache::store::Object;

/// Those to wake once the lock is free.
pub(super) type Wakers = SmallVec<[Waker; 4]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Filling,
    Complete,
    Uncacheable,
    Failed(Failure),
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) head: Option<Object>,
    pub(super) expected: Option<u64>,
    /// The longest body that is kept.
    pub(super) most: u64,
    /// All chunks are kept, from the first.
    pub(super) whole: bool,
    chunks: VecDeque<Chunk>,
    /// Number of the first chunk that is kept.
    first: u64,
    /// Bytes of the chunks that are kept.
    kept: u64,
    /// Bytes that came in.
    len: u64,
    /// Bytes that the fastest reader took.
    fastest: u64,
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    driver: Option<Waker>,
    /// Since when the driver is held up while somebody has nothing to read.
    held_since: Option<Instant>,
}

struct Chunk {
    bytes: Bytes,
    /// Readers that haven't taken it; counted once chunks go when all have.
    missing: usize,
}

/// Where a reader is.
struct Place {
    /// Number of the chunk that it takes next.
    next: u64,
    /// Bytes that it took.
    taken: u64,
    waker: Option<Waker>,
    /// How long it held up others.
    held: Duration,
}

/// Whether the driver may go on.
pub(super) enum Go {
    Now,
    /// Not before a reader moves, or this time comes.
    Wait(Option<Instant>),
    /// There is nobody to go on for.
    Never,
}

/// What a reader gets.
pub(super) enum Next {
    Chunk(Bytes),
    End,
    /// Nothing to read yet; `new` unless it was so before.
    Wait {
        new: bool,
    },
    Fail(Failure),
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Waiting,
            head: None,
            expected: None,
            most: u64::MAX,
            whole: true,
            chunks: VecDeque::new(),
            first: 0,
            kept: 0,
            len: 0,
            fastest: 0,
            places: Vec::new(),
            free: Vec::new(),
            driver: None,
            held_since: None,
        }
    }

    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn readers(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn chunks(&self) -> Vec<Bytes> {
        self.chunks.iter().map(|chunk| chunk.bytes.clone()).collect()
    }

    /// Whether a reader that comes now can have all of it.
    pub(super) fn is_open(&self) -> bool {
        self.whole && matches!(self.phase, Phase::Waiting | Phase::Filling | Phase::Complete)
    }

    pub(super) fn join(&mut self) -> usize {
        let place = Some(Place { next: 0, taken: 0, waker: None, held: Duration::ZERO });
        if let Some(at) = self.free.pop() {
            self.places[at] = place;
            return at;
        }
        self.places.push(place);
        self.places.len() - 1
    }

    /// A reader goes. Returns the bytes that need no longer be kept.
    pub(super) fn leave(&mut self, at: usize) -> u64 {
        self.free.push(at);
        self.vacate(at)
    }

    /// A reader that was cut off keeps its place until it leaves, so that nobody else gets it.
    fn vacate(&mut self, at: usize) -> u64 {
        let Some(place) = self.places[at].take() else { return 0 };
        if self.whole {
            return 0;
        }
        let passed = place.next.saturating_sub(self.first) as usize;
        self.chunks.iter_mut().skip(passed).for_each(|chunk| chunk.missing -= 1);
        self.forget_passed()
    }

    /// Adds a chunk; the bytes are counted by the caller.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        self.kept += bytes.len() as u64;
        let missing = self.places.iter().flatten().count();
        self.chunks.push_back(Chunk { bytes, missing });
    }

    /// From now on chunks go when all readers have them. Returns the bytes that go at once.
    pub(super) fn pass_on(&mut self) -> u64 {
        if !std::mem::take(&mut self.whole) {
            return 0;
        }
        for (number, chunk) in (self.first..).zip(&mut self.chunks) {
            chunk.missing = self.places.iter().flatten().filter(|place| place.next <= number).count();
        }
        self.forget_passed()
    }

    /// Chunks that nobody misses go. Returns their bytes.
    pub(super) fn forget_passed(&mut self) -> u64 {
        let before = self.kept;
        while self.chunks.front().is_some_and(|chunk| chunk.missing == 0)
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.first += 1;
            self.kept -= chunk.bytes.len() as u64;
        }
        before - self.kept
    }

    /// The next chunk for a reader, and the bytes that need no longer be kept.
    pub(super) fn next(&mut self, at: usize, waker: &Waker, now: Instant) -> (Next, u64) {
        self.charge(now);
        let Some(place) = &mut self.places[at] else { return (Next::Fail(Failure::TooSlow), 0) };
        if let Some(chunk) = self.chunks.get_mut((place.next - self.first) as usize) {
            let bytes = chunk.bytes.clone();
            place.next += 1;
            place.taken += bytes.len() as u64;
            place.waker = None;
            self.fastest = self.fastest.max(place.taken);
            if self.whole {
                return (Next::Chunk(bytes), 0);
            }
            chunk.missing -= 1;
            return (Next::Chunk(bytes), self.forget_passed());
        }
        let next = match self.phase {
            Phase::Complete => Next::End,
            Phase::Failed(failure) => Next::Fail(failure),
            Phase::Uncacheable => Next::Fail(Failure::Abandoned),
            Phase::Waiting | Phase::Filling => {
                let new = place.waker.is_none();
                place.wait(waker);
                Next::Wait { new }
            }
        };
        (next, 0)
    }

    /// Has a reader woken when something changes.
    pub(super) fn wait(&mut self, at: usize, waker: &Waker) {
        if let Some(place) = &mut self.places[at] {
            place.wait(waker);
        }
    }

    pub(super) fn wait_as_driver(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(old) => old.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    pub(super) fn driver(&mut self) -> Option<Waker> {
        self.driver.take()
    }

    /// All readers that wait.
    pub(super) fn waiting(&mut self) -> Wakers {
        self.places.iter_mut().flatten().filter_map(|place| place.waker.take()).collect()
    }

    /// Puts the time since the last look to the account of those at the oldest chunk.
    fn charge(&mut self, now: Instant) {
        let Some(since) = self.held_since.replace(now) else {
            self.held_since = None;
            return;
        };
        let held = now.saturating_duration_since(since);
        for place in self.places.iter_mut().flatten().filter(|place| place.next == self.first) {
            place.held += held;
        }
    }

    /// Whether the driver may read on. Readers that have held up others for `patience` are cut off, which is told by `cut`.
    pub(super) fn may_go(&mut self, window: u64, patience: Duration, now: Instant, cut: &mut Cut) -> Go {
        self.charge(now);
        self.held_since = None;
        if self.readers() == self.gone() {
            return if self.whole { Go::Now } else { Go::Never };
        }
        let ahead = if self.whole { self.len.saturating_sub(self.fastest) } else { self.kept };
        if ahead < window {
            return Go::Now;
        }
        let end = self.first + self.chunks.len() as u64;
        let hungry = self.places.iter().flatten().any(|place| place.next == end && place.waker.is_some());
        if self.whole || !hungry {
            return Go::Wait(None);
        }
        let mut most = Duration::ZERO;
        for at in 0..self.places.len() {
            let Some(place) = self.places[at].as_mut().filter(|place| place.next == self.first) else { continue };
            if place.held >= patience {
                cut.wakers.extend(place.waker.take());
                cut.readers += 1;
                cut.bytes += self.vacate(at);
                return self.may_go(window, patience, now, cut);
            }
            most = most.max(place.held);
        }
        self.held_since = Some(now);
        Go::Wait(Some(now + (patience - most)))
    }

    /// Readers that were cut off and haven't left.
    fn gone(&self) -> usize {
        self.places.iter().filter(|place| place.is_none()).count() - self.free.len()
    }
}

/// What cutting off readers freed.
#[derive(Default)]
pub(super) struct Cut {
    pub(super) wakers: Wakers,
    pub(super) readers: u64,
    pub(super) bytes: u64,
}

impl Place {
    fn wait(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(old) => old.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
    }
}
