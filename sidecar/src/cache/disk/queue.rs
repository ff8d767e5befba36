//! What waits for the threads that may wait for the disk. Bounded in number and bytes; nobody who adds to it waits.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Things that wait, each with the bytes that it holds.
#[derive(Debug)]
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    added: Condvar,
    most: usize,
    most_bytes: u64,
}

#[derive(Debug)]
struct Inner<T> {
    waiting: VecDeque<(T, u64)>,
    bytes: u64,
    closed: bool,
}

/// What a thread gets.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Next<T> {
    One(T),
    /// Nothing came for so long.
    Idle,
    /// Nothing comes any more.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(most: usize, most_bytes: u64) -> Self {
        let inner = Inner { waiting: VecDeque::new(), bytes: 0, closed: false };
        Self { inner: Mutex::new(inner), added: Condvar::new(), most, most_bytes }
    }

    /// Adds one. False if there is no room for it.
    pub(super) fn add(&self, one: T, bytes: u64) -> bool {
        let mut inner = self.lock();
        if inner.closed || inner.waiting.len() >= self.most || inner.bytes + bytes > self.most_bytes {
            return false;
        }
        inner.bytes += bytes;
        inner.waiting.push_back((one, bytes));
        drop(inner);
        self.added.notify_one();
        true
    }

    /// Waits for the next one, for so long at most. What waited when it was closed is given out still.
    pub(super) fn next(&self, at_most: Duration) -> Next<T> {
        let inner = self.lock();
        let waits = |inner: &mut Inner<T>| inner.waiting.is_empty() && !inner.closed;
        let (mut inner, _) = self.added.wait_timeout_while(inner, at_most, waits).unwrap_or_else(PoisonError::into_inner);
        let Some((one, bytes)) = inner.waiting.pop_front() else {
            return if inner.closed { Next::Closed } else { Next::Idle };
        };
        inner.bytes -= bytes;
        Next::One(one)
    }

    /// Takes out all that don't hold. Returns how many.
    pub(super) fn retain(&self, mut holds: impl FnMut(&T) -> bool) -> usize {
        let mut inner = self.lock();
        let (before, mut less) = (inner.waiting.len(), 0);
        inner.waiting.retain(|(one, bytes)| {
            let stays = holds(one);
            less += if stays { 0 } else { *bytes };
            stays
        });
        inner.bytes -= less;
        before - inner.waiting.len()
    }

    /// Waits until it is closed, for so long at most; whether it is.
    pub(super) fn is_closed_within(&self, at_most: Duration) -> bool {
        let (inner, _) =
            self.added.wait_timeout_while(self.lock(), at_most, |inner| !inner.closed).unwrap_or_else(PoisonError::into_inner);
        inner.closed
    }

    /// Lets the threads end, once they have taken what waits.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.added.notify_all();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_in_number_and_bytes() {
        let queue = Queue::new(2, 10);
        assert!(!queue.add("long", 11) && queue.add("a", 5) && !queue.add("b", 6) && queue.add("c", 5) && !queue.add("d", 0));
        assert_eq!(queue.retain(|one| *one != "a"), 1);
        assert!(queue.add("e", 5));
        let next = || queue.next(Duration::ZERO);
        assert_eq!((next(), next(), next()), (Next::One("c"), Next::One("e"), Next::Idle));
        assert!(queue.add("f", 10));
        assert!(!queue.is_closed_within(Duration::ZERO));
        queue.close();
        assert!(queue.is_closed_within(Duration::ZERO) && !queue.add("g", 0));
        assert!(!queue.is_empty());
        assert_eq!((next(), next()), (Next::One("f"), Next::Closed));
        assert!(queue.is_empty());
    }

    #[test]
    fn who_waits_is_woken() {
        let queue = Queue::new(1, 1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (queue.next(Duration::MAX), queue.next(Duration::MAX)));
            queue.add(7, 1);
            while !queue.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            queue.close();
            assert_eq!(waiting.join().unwrap(), (Next::One(7), Next::Closed));
        });
    }
}
