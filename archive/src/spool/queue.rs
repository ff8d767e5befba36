//! Records in memory, on their way to the disk.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::segment::Facts;

/// What a record costs in memory beside its bytes and terms.
const OVERHEAD: usize = 96;

/// A record that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) record: Bytes,
    time: i64,
    status: u16,
    terms: Box<[u64]>,
}

impl Item {
    pub(super) fn new(record: Bytes, facts: &Facts<'_>) -> Self {
        Self { record, time: facts.time, status: facts.status, terms: facts.terms.into() }
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        Facts { time: self.time, status: self.status, terms: &self.terms }
    }

    fn bytes(&self) -> usize {
        self.record.len() + self.terms.len() * 8 + OVERHEAD
    }
}

/// Records in their order, bounded by what they cost.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    most: usize,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts one at the end. It comes back if there is no room.
    pub(super) fn push(&mut self, item: Item) -> Result<(), Item> {
        if self.bytes + item.bytes() > self.most {
            return Err(item);
        }
        self.bytes += item.bytes();
        self.items.push_back(item);
        Ok(())
    }

    /// Puts one at the end; the oldest make room. How many those were, or that it would not fit if all did.
    pub(super) fn push_over(&mut self, item: Item) -> Result<u64, Item> {
        if item.bytes() > self.most {
            return Err(item);
        }
        let mut gone = 0;
        while self.bytes + item.bytes() > self.most && self.pop().is_some() {
            gone += 1;
        }
        self.push(item).map(|()| gone)
    }

    pub(super) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.bytes();
        Some(item)
    }

    /// Takes some from the front: at most so many bytes, or one.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<Item> {
        let (mut taken, mut sum) = (Vec::new(), 0);
        while let Some(next) = self.items.front() {
            sum += next.bytes();
            if sum > bytes && !taken.is_empty() {
                break;
            }
            taken.extend(self.pop());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &'static str) -> Item {
        Item::new(Bytes::from_static(text.as_bytes()), &Facts { terms: &[1, 2], ..Facts::default() })
    }

    fn texts(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| std::str::from_utf8(&item.record).unwrap()).collect()
    }

    #[test]
    fn queue_holds_so_many_bytes_and_the_new_or_the_old_give_way() {
        let mut queue = Queue::new(2 * item("a").bytes());
        queue.push(item("a")).unwrap();
        queue.push(item("b")).unwrap();
        assert_eq!(queue.push(item("c")).unwrap_err().record, "c");
        assert_eq!(queue.push_over(item("d")).unwrap(), 1);
        assert_eq!(queue.push_over(item("ef")).unwrap(), 2, "both, for one of them is too short");
        assert!(queue.push_over(Item::new(Bytes::from(vec![b'a'; 1000]), &Facts::default())).is_err());
        assert_eq!((queue.len(), queue.bytes()), (1, item("ef").bytes()), "what would never fit drives nothing out");
        assert_eq!(texts(&queue.take(0)), ["ef"]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn queue_is_taken_in_pieces() {
        let mut queue = Queue::new(1 << 20);
        for text in ["a", "b", "c"] {
            queue.push(item(text)).unwrap();
        }
        assert_eq!(texts(&queue.take(2 * item("a").bytes())), ["a", "b"]);
        assert_eq!(texts(&queue.take(1)), ["c"]);
        assert!(queue.take(1).is_empty());
    }
}
