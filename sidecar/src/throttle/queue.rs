//! Who waits, and whose turn is next: priorities, shares between clients, a bound on all together. Pure; time is passed in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crds::policy::throttle::{Order, Queue as Spec};
use smallvec::SmallVec;

/// How a queue is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Settings {
    /// Requests that wait at a time.
    pub(super) length: usize,
    /// How long the newest have to wait without a break before they go first; none if they never do.
    turns_over: Option<Duration>,
    /// Queues of each priority.
    queues: usize,
    /// How many of them a key has.
    hand: usize,
}

impl Settings {
    pub(super) fn of(spec: &Spec) -> Self {
        let number = |value: i32| usize::try_from(value).unwrap_or(0);
        let (queues, hand) = spec.fairness.as_ref().map_or((1, 1), |fair| (number(fair.queues), number(fair.hand_size)));
        Self {
            length: number(spec.max_length),
            turns_over: (spec.order == Order::AdaptiveLIFO).then(|| spec.max_wait.0 / 2),
            queues: queues.max(1),
            hand: hand.clamp(1, queues.max(1)),
        }
    }
}

/// Where something waits, to find it again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    level: u8,
    queue: u16,
    number: u64,
}

/// What waits, with what is to be told.
#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    expires: Instant,
    what: T,
}

/// What came of something that wants to wait.
#[derive(Debug)]
pub(super) enum Pushed<T> {
    /// It waits.
    Waits(Place),
    /// It waits, and this one does not any more.
    InsteadOf(Place, T),
    /// There is no room, and nothing that it goes before.
    Full(T),
}

/// The queues of one throttle.
#[derive(Debug)]
pub(super) struct Queue<T> {
    settings: Settings,
    /// The highest priority first. A level is made when something waits in it.
    levels: Vec<Level<T>>,
    len: usize,
    numbers: u64,
    /// Since when something waits without a break.
    busy: Option<Instant>,
}

impl<T> Queue<T> {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, levels: Vec::new(), len: 0, numbers: 0, busy: None }
    }

    /// Takes over other settings. What waits goes on to wait where it is.
    pub(super) fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What may wait at a time.
    pub(super) fn room(&self) -> usize {
        self.settings.length
    }

    /// What waits in each level, the highest first.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.levels.iter().map(|level| level.len)
    }

    /// Lets something wait in a level, 0 being the highest, until it expires. `hash` is of what tells its client.
    pub(super) fn push(&mut self, level: u8, hash: u64, now: Instant, expires: Instant, what: T) -> Pushed<T> {
        if self.settings.length == 0 {
            return Pushed::Full(what);
        }
        let lifo = self.turns_over(now);
        while self.levels.len() <= usize::from(level) {
            self.levels.push(Level::default());
        }
        let own = self.levels[usize::from(level)].shortest(hash, &self.settings);
        let evicted = if self.len < self.settings.length {
            None
        } else {
            match self.evict(level, own, lifo) {
                Some(evicted) => Some(evicted),
                None => return Pushed::Full(what),
            }
        };
        self.numbers += 1;
        self.len += 1;
        self.busy.get_or_insert(now);
        let number = self.numbers;
        self.levels[usize::from(level)].push(own, Waiting { number, expires, what });
        let place = Place { level, queue: own, number };
        match evicted {
            Some(evicted) => Pushed::InsteadOf(place, evicted),
            None => Pushed::Waits(place),
        }
    }

    /// Takes out the one whose turn it is. What has expired goes with it, and is told by who waits for it.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let lifo = self.turns_over(now);
        let mut next = None;
        for level in &mut self.levels {
            while let Some(waiting) = level.pop(lifo) {
                self.len -= 1;
                if waiting.expires > now {
                    next = Some(waiting.what);
                    break;
                }
            }
            if next.is_some() {
                break;
            }
        }
        self.rest();
        next
    }

    /// Takes out one that does not wait any longer. False if it is not there.
    pub(super) fn remove(&mut self, place: Place) -> bool {
        let removed = self.levels.get_mut(usize::from(place.level)).is_some_and(|level| level.remove(place.queue, place.number));
        self.len -= usize::from(removed);
        self.rest();
        removed
    }

    /// Makes room for one of a level and a queue: the newest of the lowest priority; in the same level, the newest of a client that has more
    /// waiting, or the oldest where the newest go first.
    fn evict(&mut self, level: u8, own: u16, lifo: bool) -> Option<T> {
        let lowest = self.levels.iter().rposition(|level| level.len > 0)?;
        if lowest < usize::from(level) {
            return None;
        }
        let rival = &mut self.levels[lowest];
        let longest = rival.longest()?;
        let waiting = if lowest > usize::from(level) || rival.length(longest) > rival.length(own) + 1 {
            rival.take(longest, !lifo)
        } else if lifo {
            rival.take(longest, false)
        } else {
            None
        }?;
        self.len -= 1;
        Some(waiting.what)
    }

    fn turns_over(&self, now: Instant) -> bool {
        let since = self.busy.map(|busy| now.saturating_duration_since(busy));
        self.settings.turns_over.zip(since).is_some_and(|(limit, since)| since >= limit)
    }

    fn rest(&mut self) {
        if self.len == 0 {
            self.busy = None;
        }
    }
}

/// The queues of one priority. They take turns.
#[derive(Debug)]
struct Level<T> {
    queues: Vec<VecDeque<Waiting<T>>>,
    /// Those in which something waits, the next one first.
    turns: VecDeque<u16>,
    len: usize,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self { queues: Vec::new(), turns: VecDeque::new(), len: 0 }
    }
}

impl<T> Level<T> {
    /// The shortest queue of a key's hand.
    fn shortest(&self, hash: u64, settings: &Settings) -> u16 {
        hand(hash, settings.queues, settings.hand).into_iter().min_by_key(|queue| self.length(*queue)).unwrap_or_default()
    }

    fn length(&self, queue: u16) -> usize {
        self.queues.get(usize::from(queue)).map_or(0, VecDeque::len)
    }

    fn longest(&self) -> Option<u16> {
        self.turns.iter().copied().max_by_key(|queue| self.length(*queue))
    }

    fn push(&mut self, queue: u16, waiting: Waiting<T>) {
        let at = usize::from(queue);
        while self.queues.len() <= at {
            self.queues.push(VecDeque::new());
        }
        if self.queues[at].is_empty() {
            self.turns.push_back(queue);
        }
        self.queues[at].push_back(waiting);
        self.len += 1;
    }

    fn pop(&mut self, newest: bool) -> Option<Waiting<T>> {
        let queue = *self.turns.front()?;
        let waiting = self.take(queue, newest)?;
        if self.turns.front() == Some(&queue) {
            self.turns.rotate_left(1);
        }
        Some(waiting)
    }

    fn take(&mut self, queue: u16, newest: bool) -> Option<Waiting<T>> {
        let waiting = &mut self.queues[usize::from(queue)];
        let taken = if newest { waiting.pop_back() } else { waiting.pop_front() }?;
        self.left(queue);
        Some(taken)
    }

    fn remove(&mut self, queue: u16, number: u64) -> bool {
        let Some(waiting) = self.queues.get_mut(usize::from(queue)) else { return false };
        // Numbers rise from the front to the back.
        let Ok(at) = waiting.binary_search_by_key(&number, |waiting| waiting.number) else { return false };
        waiting.remove(at);
        self.left(queue);
        true
    }

    /// One has left a queue.
    fn left(&mut self, queue: u16) {
        self.len -= 1;
        if self.queues[usize::from(queue)].is_empty() {
            self.turns.retain(|turn| *turn != queue);
        }
    }
}

/// Deals so many of the queues to a key: the same ones every time, and others to another key.
fn hand(hash: u64, queues: usize, hand: usize) -> SmallVec<[u16; 16]> {
    let mut cards: SmallVec<[u16; 16]> = SmallVec::new();
    let mut state = hash;
    for dealt in 0..hand.min(queues) {
        state = scrambled(state);
        let left = (queues - dealt) as u64;
        // The one at this place among those that are not dealt yet.
        let mut card = u16::try_from(state % left).unwrap_or_default();
        let mut before: SmallVec<[u16; 16]> = cards.clone();
        before.sort_unstable();
        for other in before {
            card += u16::from(other <= card);
        }
        cards.push(card);
    }
    cards
}

/// A step of SplitMix64: numbers that follow each other look like random ones.
fn scrambled(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
