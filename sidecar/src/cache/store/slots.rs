//! The entries of a shard and the two queues that they stand in.
//!
//! Slots lie dense in blocks: the last one moves into the place of one that is taken out, so memory goes back as entries go,
//! and there is no list of free places. The queues are links between slots (8 bytes an entry).

use super::variants::Marker;
use super::{Found, Hash, Object};

/// "No slot" in links.
pub(super) const NONE: u32 = u32::MAX;

/// Slots of one block: they take some 10 KiB.
const BLOCK: usize = 128;

/// What a key leads to.
pub(super) enum Content {
    Object(Object),
    /// The primary key has variants; boxed, for they are few.
    Marker(Box<Marker>),
}

impl Content {
    pub(super) fn is_for(&self, primary: &[u8], variant: &[u8]) -> bool {
        match self {
            Self::Object(object) => object.is_for(primary, variant),
            Self::Marker(marker) => variant.is_empty() && marker.primary() == primary,
        }
    }

    /// What a lookup gives of it.
    pub(super) fn found(&self) -> Found {
        match self {
            Self::Object(object) => Found::Object(object.clone()),
            Self::Marker(marker) => Found::Vary(marker.vary.clone()),
        }
    }

    /// Bytes that the entry takes in all: its own and its share of slots, index and ghosts.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Object(object) => weight(object),
            Self::Marker(marker) => ENTRY + marker.size(),
        }
    }
}

/// [`Content::weight`] of an object.
pub(super) fn weight(object: &Object) -> u64 {
    ENTRY + object.size()
}

/// A slot, its place in an index that is between 7/16 and 7/8 full (10 to 20) and two fifths of a ghost (6).
const ENTRY: u64 = size_of::<Slot>() as u64 + 24;

/// Which queue an entry stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// Newcomers on probation.
    Small,
    /// Those that were asked for again.
    Main,
}

pub(super) struct Slot {
    pub(super) hash: Hash,
    pub(super) content: Content,
    /// Hits since it came, for lists.
    pub(super) hits: u32,
    /// Hits that eviction still counts, 0 to [`MAX_USES`](super::shard::MAX_USES).
    pub(super) uses: u8,
    pub(super) queue: Queue,
    /// Towards the newer end.
    newer: u32,
    /// Towards the older end.
    older: u32,
}

impl Slot {
    pub(super) fn new(hash: Hash, content: Content) -> Self {
        Self { hash, content, hits: 0, uses: 0, queue: Queue::Small, newer: NONE, older: NONE }
    }

    /// Bytes that the entry takes in all. It is added up each time: a number for it would take more.
    pub(super) fn weight(&self) -> u64 {
        self.content.weight()
    }
}

#[derive(Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    bytes: u64,
}

/// The slots and both queues.
pub(super) struct Slots {
    blocks: Vec<Vec<Slot>>,
    lists: [List; 2],
    /// Where SIEVE looks next; [`NONE`]: at the oldest.
    pub(super) hand: u32,
}

impl Slots {
    pub(super) const fn new() -> Self {
        let empty = List { newest: NONE, oldest: NONE, bytes: 0 };
        Self { blocks: Vec::new(), lists: [empty; 2], hand: NONE }
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len())
    }

    /// Bytes of the entries in one queue.
    pub(super) fn bytes(&self, queue: Queue) -> u64 {
        self.lists[queue as usize].bytes
    }

    pub(super) fn oldest(&self, queue: Queue) -> u32 {
        self.lists[queue as usize].oldest
    }

    /// The entry that came next after `at`; [`NONE`] for the newest.
    pub(super) fn newer(&self, at: u32) -> u32 {
        self.get(at).newer
    }

    pub(super) fn get(&self, at: u32) -> &Slot {
        &self.blocks[at as usize / BLOCK][at as usize % BLOCK]
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.blocks[at as usize / BLOCK][at as usize % BLOCK]
    }

    /// Adds a slot as the newest of `queue`.
    pub(super) fn push(&mut self, slot: Slot, queue: Queue) -> u32 {
        let at = self.len() as u32;
        if (at as usize).is_multiple_of(BLOCK) {
            self.blocks.push(Vec::new());
        }
        if let Some(last) = self.blocks.last_mut() {
            last.push(slot);
        }
        self.link(at, queue);
        at
    }

    /// Puts an entry at the newest end of `queue`.
    pub(super) fn move_to(&mut self, at: u32, queue: Queue) {
        self.unlink(at);
        self.link(at, queue);
    }

    /// Puts other content into a slot, which keeps its place in the queue. Returns the old content.
    pub(super) fn swap(&mut self, at: u32, content: Content) -> Content {
        self.change(at, |old| std::mem::replace(old, content))
    }

    /// Changes the content of a slot, which may weigh more or less then.
    pub(super) fn change<T>(&mut self, at: u32, change: impl FnOnce(&mut Content) -> T) -> T {
        let slot = self.get_mut(at);
        let (before, queue) = (slot.weight(), slot.queue);
        let changed = change(&mut slot.content);
        let after = slot.weight();
        let list = &mut self.lists[queue as usize];
        list.bytes = list.bytes + after - before;
        changed
    }

    /// Takes a slot out. The second value is the hash of the slot that now stands at `at` and stood at [`Slots::len`] before.
    pub(super) fn take(&mut self, at: u32) -> (Option<Slot>, Option<Hash>) {
        self.unlink(at);
        let Some(mut slot) = self.blocks.last_mut().and_then(Vec::pop) else { return (None, None) };
        let last = self.len() as u32;
        if self.blocks.last().is_some_and(Vec::is_empty) {
            self.blocks.pop();
        }
        if at == last {
            return (Some(slot), None);
        }
        std::mem::swap(&mut slot, self.get_mut(at));
        self.relink(last, at);
        (Some(slot), Some(self.get(at).hash))
    }

    /// Where the slot at `at` is pointed to, it was at `from` before.
    fn relink(&mut self, from: u32, at: u32) {
        let Slot { newer, older, queue, .. } = *self.get(at);
        match newer {
            NONE => self.lists[queue as usize].newest = at,
            newer => self.get_mut(newer).older = at,
        }
        match older {
            NONE => self.lists[queue as usize].oldest = at,
            older => self.get_mut(older).newer = at,
        }
        if self.hand == from {
            self.hand = at;
        }
    }

    fn link(&mut self, at: u32, queue: Queue) {
        let newest = self.lists[queue as usize].newest;
        let slot = self.get_mut(at);
        slot.queue = queue;
        slot.newer = NONE;
        slot.older = newest;
        let weight = slot.weight();
        let list = &mut self.lists[queue as usize];
        list.newest = at;
        list.bytes += weight;
        match newest {
            NONE => list.oldest = at,
            newest => self.get_mut(newest).newer = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let slot = self.get(at);
        let (newer, older, queue, weight) = (slot.newer, slot.older, slot.queue, slot.weight());
        if self.hand == at {
            self.hand = newer;
        }
        self.lists[queue as usize].bytes -= weight;
        match newer {
            NONE => self.lists[queue as usize].newest = older,
            newer => self.get_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[queue as usize].oldest = newer,
            older => self.get_mut(older).newer = newer,
        }
    }
}
