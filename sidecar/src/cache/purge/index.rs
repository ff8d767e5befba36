//! Which objects are purged: what a pod knows of the log, whatever the number of objects.
//!
//! Tags, policies, URLs and prefixes share one table from a name to the newest soft and hard purge of it. A lookup asks for
//! the object's tags and policy, and walks its URL once for the URL and for each length that a purged prefix has. Objects
//! newer than all purges of a kind skip it.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
};

use super::{
    CutOff, Generation, Position,
    log::{Entry, LAST_PLACE, Strength, What},
    name::{Kind, Name, Naming, Spread},
};

/// Different names that an index holds, unless told otherwise: about 8 MiB when full.
pub(crate) const CAPACITY: usize = 100_000;
/// Different lengths of prefixes, each of which costs every lookup of an older object a probe. A prefix of one more length is
/// cut to the next shorter.
const LENGTHS: usize = 256;
/// Generations whose places stay comparable.
const ERAS: usize = 64;

/// How far the pod had read the log when a fetch began. Objects and fills carry it; it means nothing to another process,
/// which is told the [`Position`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Stamp {
    era: u32,
    /// The place, in two parts so that an object carries 12 bytes.
    high: u32,
    low: u32,
}

/// What may be done with an object. The later, the less.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Verdict {
    /// As if nothing was purged.
    Fresh,
    /// It counts as stale, and may be served as such where the policy permits it.
    Soft,
    /// Nobody can say. It may be served once the origin has said that it holds, as with `no-cache`.
    Unknown,
    /// It is gone.
    Hard,
}

/// What an index must know of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object<'a> {
    /// From when its fetch began.
    pub stamp: Stamp,
    /// Its URL, in the form in which purges name it.
    pub url: &'a str,
    /// Its tags and policy.
    pub names: &'a [Name],
}

/// The newest purges of one name.
#[derive(Clone, Copy, Debug, Default)]
struct Purged {
    soft: Stamp,
    hard: Stamp,
}

/// Prefixes of one length.
#[derive(Clone, Copy, Debug)]
struct Length {
    bytes: u16,
    /// How many names there are.
    count: u32,
    newest: Stamp,
}

/// Something that was applied, to be folded away when there is too much.
#[derive(Clone, Copy, Debug)]
struct Applied {
    stamp: Stamp,
    name: Name,
    /// Of a prefix.
    bytes: Option<u16>,
}

/// A generation that the pod has lived in.
#[derive(Clone, Copy, Debug)]
struct Era {
    generation: Generation,
    number: u32,
    /// How far it was read.
    head: u64,
}

/// The purges that a pod knows of.
#[derive(Debug)]
pub(crate) struct Index {
    naming: Naming,
    cut_off: CutOff,
    capacity: usize,
    /// Before the first era: what was fetched then is of unknown standing as soon as there is one.
    base: u32,
    eras: VecDeque<Era>,
    named: HashMap<Name, Purged, BuildHasherDefault<Spread>>,
    everything: Purged,
    /// By kind.
    newest: [Stamp; 4],
    /// Ascending.
    lengths: Vec<Length>,
    /// In the order in which they were applied; every name is there at least with its newest purge.
    applied: VecDeque<Applied>,
    /// What is older may have been purged by something that was folded away.
    floor: Stamp,
    /// What is older may have been purged by something that the pod never got to read.
    gap: Stamp,
    folded: u64,
}

impl Index {
    /// One that holds up to `capacity` names.
    pub(crate) fn new(cut_off: CutOff, capacity: usize) -> Self {
        Self::begun(cut_off, capacity, Naming::random(), 0)
    }

    /// One for a pod that had another one before, with so many eras: what was fetched in these is of unknown standing.
    pub(super) fn after(cut_off: CutOff, capacity: usize, naming: Naming, eras: u32) -> Self {
        Self::begun(cut_off, capacity, naming, eras.saturating_add(1))
    }

    fn begun(cut_off: CutOff, capacity: usize, naming: Naming, base: u32) -> Self {
        Self {
            naming,
            cut_off,
            capacity: capacity.max(1),
            base,
            eras: VecDeque::new(),
            named: HashMap::default(),
            everything: Purged::default(),
            newest: [Stamp::default(); 4],
            lengths: Vec::new(),
            applied: VecDeque::new(),
            floor: Stamp::default(),
            gap: Stamp::new(base, 0),
            folded: 0,
        }
    }

    /// Makes the names that objects of this index carry.
    pub(crate) fn naming(&self) -> Naming {
        self.naming
    }

    /// What a fetch or fill that begins now carries.
    pub(crate) fn stamp(&self) -> Stamp {
        self.eras.back().map_or(Stamp::new(self.base, 0), |era| Stamp::new(era.number, era.head))
    }

    /// Whether nothing was fetched before it.
    pub(super) fn is_new(&self) -> bool {
        self.base == 0 && self.eras.is_empty()
    }

    /// Whether nothing that was read can be about an object with this stamp.
    pub(super) fn is_newest(&self, stamp: Stamp) -> bool {
        stamp >= self.stamp().max(self.floor).max(self.gap)
    }

    /// How many purges were folded away since the start.
    #[cfg(test)]
    pub(crate) fn folded(&self) -> u64 {
        self.folded
    }

    /// Generations that were lived in.
    pub(crate) fn eras(&self) -> u32 {
        self.eras.back().map_or(self.base, |era| era.number)
    }

    /// Names that are held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    /// Where in the log a stamp is, to store an object where other processes find it. None if that is too long ago.
    pub(crate) fn position(&self, stamp: Stamp) -> Option<Position> {
        let era = self.eras.iter().find(|era| era.number == stamp.era)?;
        Some(Position { generation: era.generation, at: stamp.at() })
    }

    /// The same with one that is older than all others where nobody can say.
    #[cfg(test)]
    pub(crate) fn stamp_at(&self, position: Position) -> Stamp {
        self.known_at(position).unwrap_or_default()
    }

    /// The stamp of an object that another process stored. Of a generation that this one hasn't lived in, nobody can say.
    pub(crate) fn known_at(&self, position: Position) -> Option<Stamp> {
        let era = self.eras.iter().rev().find(|era| era.generation == position.generation);
        era.filter(|_| position.at <= LAST_PLACE).map(|era| Stamp::new(era.number, position.at))
    }

    /// What may be done with an object, as far as the log was read. [`Member::verdict`](super::Member::verdict) knows
    /// whether that is far enough.
    pub(crate) fn verdict(&self, object: &Object<'_>) -> Verdict {
        let stamp = object.stamp;
        let mut verdict = self.standing(stamp).max(self.everything.verdict(stamp));
        if verdict == Verdict::Hard {
            return verdict;
        }
        if stamp < self.newest[Kind::Tag as usize].max(self.newest[Kind::Policy as usize]) {
            for name in object.names {
                verdict = verdict.max(self.named(*name, stamp));
            }
        }
        if stamp < self.newest[Kind::Url as usize].max(self.newest[Kind::Prefix as usize]) {
            verdict = verdict.max(self.by_url(object.url, stamp));
        }
        verdict
    }

    /// Whether what was purged since the stamp is known at all.
    fn standing(&self, stamp: Stamp) -> Verdict {
        match self.cut_off {
            _ if stamp < self.floor => Verdict::Unknown,
            CutOff::Revalidate if stamp < self.gap => Verdict::Unknown,
            CutOff::Serve if stamp < self.gap => Verdict::Soft,
            _ => Verdict::Fresh,
        }
    }

    fn by_url(&self, url: &str, stamp: Stamp) -> Verdict {
        let mut verdict = Verdict::Fresh;
        let mut walk = self.naming.walk(url);
        for length in &self.lengths {
            if usize::from(length.bytes) > url.len() {
                break;
            }
            if stamp < length.newest {
                verdict = verdict.max(self.named(walk.name(Kind::Prefix, length.bytes.into()), stamp));
            }
        }
        verdict.max(self.named(walk.name(Kind::Url, url.len()), stamp))
    }

    fn named(&self, name: Name, stamp: Stamp) -> Verdict {
        self.named.get(&name).map_or(Verdict::Fresh, |purged| purged.verdict(stamp))
    }

    /// Goes on in another generation. What was lost with the last one is unknown, unless the pod can't have lacked it.
    pub(super) fn begin(&mut self, generation: Generation, lacks_nothing: bool) {
        let number = self.eras().saturating_add(1);
        if self.eras.len() == ERAS {
            // Stamps of it stay in order; positions of it can't be understood any more.
            self.eras.pop_front();
        }
        self.eras.push_back(Era { generation, number, head: 0 });
        if !lacks_nothing {
            self.gap = Stamp::new(number, 0);
        }
    }

    /// What was fetched before this place of the current generation may have been purged by something that can't be read.
    pub(super) fn lost_before(&mut self, at: u64) {
        if let Some(era) = self.eras.back() {
            self.gap = self.gap.max(Stamp::new(era.number, at));
        }
    }

    /// What was fetched before this place of the current generation may have been purged by something that isn't known any more.
    pub(super) fn forget_before(&mut self, at: u64) {
        self.floor = self.floor.max(Stamp::new(self.eras(), at));
    }

    /// What nobody knows of when it was fetched may have been purged.
    pub(super) fn doubt_unknown(&mut self) {
        self.floor = self.floor.max(Stamp::new(0, 1));
    }

    /// How far a generation was read. None if the pod hasn't lived in it, or too long ago.
    pub(super) fn head(&self, generation: Generation) -> Option<u64> {
        self.eras.iter().rev().find(|era| era.generation == generation).map(|era| era.head)
    }

    /// The log of the current generation was read up to here.
    pub(super) fn advance(&mut self, at: u64) {
        if let Some(era) = self.eras.back_mut() {
            era.head = era.head.max(at);
        }
    }

    /// Takes a purge from the log, in its order. One of an earlier generation that the pod hasn't seen counts as made when the
    /// current one began.
    pub(super) fn apply(&mut self, position: Position, entry: &Entry) {
        self.purge(position, &entry.what, entry.strength);
    }

    /// Takes a purge of which nothing is known but its place.
    pub(super) fn apply_unreadable(&mut self, position: Position) {
        self.purge(position, &What::Everything, Strength::Hard);
    }

    fn purge(&mut self, position: Position, what: &What, strength: Strength) {
        let Some(current) = self.eras.back().copied() else { return };
        if self.head(position.generation).is_some_and(|head| position.at <= head) {
            return;
        }
        let of_now = position.generation == current.generation;
        let stamp = Stamp::new(current.number, if of_now { position.at } else { 0 });
        match what {
            What::Everything => self.purge_everything(stamp, strength),
            What::Policy(value) => self.purge_name(stamp, Kind::Policy, value.as_str(), strength),
            What::Tag(value) => self.purge_name(stamp, Kind::Tag, value.as_str(), strength),
            What::Prefix(value) => self.purge_located(stamp, Kind::Prefix, value.as_str(), strength),
            What::Url(value) => self.purge_located(stamp, Kind::Url, value.as_str(), strength),
        }
        if of_now {
            self.advance(position.at);
        }
    }

    fn purge_everything(&mut self, stamp: Stamp, strength: Strength) {
        self.everything.note(stamp, strength);
        if strength == Strength::Hard {
            // Every purge so far is part of it.
            self.named.clear();
            self.applied.clear();
            self.lengths.clear();
            self.newest = [Stamp::default(); 4];
        }
    }

    /// By where it is: with its host, and without, as keys may leave it out.
    fn purge_located(&mut self, stamp: Stamp, kind: Kind, url: &str, strength: Strength) {
        self.purge_name(stamp, kind, url, strength);
        if let Some(host) = url.find('/').filter(|host| *host > 0) {
            self.purge_name(stamp, kind, &url[host..], strength);
        }
    }

    fn purge_name(&mut self, stamp: Stamp, kind: Kind, value: &str, strength: Strength) {
        let bytes = (kind == Kind::Prefix).then(|| self.length_for(value.len()));
        let name = self.naming.walk(value).name(kind, bytes.map_or(value.len(), usize::from));
        let new = !self.named.contains_key(&name);
        self.named.entry(name).or_default().note(stamp, strength);
        if let Some(bytes) = bytes {
            self.count_length(bytes, stamp, new);
        }
        self.newest[kind as usize] = self.newest[kind as usize].max(stamp);
        self.applied.push_back(Applied { stamp, name, bytes });
        if self.applied.len() > self.capacity {
            self.fold();
        }
    }

    /// Forgets what was applied first. If it still counts, what is older is of unknown standing from now on.
    fn fold(&mut self) {
        let Some(Applied { stamp, name, bytes }) = self.applied.pop_front() else { return };
        if self.named.get(&name).is_none_or(|purged| purged.newest() > stamp) {
            return;
        }
        self.named.remove(&name);
        self.floor = self.floor.max(stamp);
        self.folded += 1;
        if let Some(bytes) = bytes
            && let Ok(place) = self.lengths.binary_search_by_key(&bytes, |length| length.bytes)
        {
            self.lengths[place].count -= 1;
            if self.lengths[place].count == 0 {
                self.lengths.remove(place);
            }
        }
    }

    /// The length at which a prefix is kept: its own, or a shorter one if there are too many.
    fn length_for(&self, bytes: usize) -> u16 {
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        match self.lengths.binary_search_by_key(&bytes, |length| length.bytes) {
            Err(place) if self.lengths.len() >= LENGTHS => place.checked_sub(1).map_or(0, |shorter| self.lengths[shorter].bytes),
            _ => bytes,
        }
    }

    fn count_length(&mut self, bytes: u16, stamp: Stamp, new: bool) {
        let place = match self.lengths.binary_search_by_key(&bytes, |length| length.bytes) {
            Ok(place) => place,
            Err(place) => {
                self.lengths.insert(place, Length { bytes, count: 0, newest: stamp });
                place
            }
        };
        self.lengths[place].newest = self.lengths[place].newest.max(stamp);
        self.lengths[place].count += u32::from(new);
    }
}

impl Stamp {
    pub(super) fn new(era: u32, at: u64) -> Self {
        Self { era, high: (at >> 32) as u32, low: at as u32 }
    }

    /// Larger for later ones.
    pub(crate) fn order(self) -> u128 {
        u128::from(self.era) << 64 | u128::from(self.at())
    }

    /// As it stands beside an object.
    pub(crate) fn bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        for (place, part) in bytes.chunks_exact_mut(4).zip([self.era, self.high, self.low]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        bytes
    }

    /// From what [`Stamp::bytes`] made.
    pub(crate) fn from_bytes(bytes: [u8; 12]) -> Self {
        let (parts, _) = bytes.as_chunks::<4>();
        let part = |place: usize| u32::from_le_bytes(parts[place]);
        Self { era: part(0), high: part(1), low: part(2) }
    }

    /// The place alone.
    pub(crate) fn at(self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

impl Purged {
    fn note(&mut self, stamp: Stamp, strength: Strength) {
        match strength {
            Strength::Soft => self.soft = self.soft.max(stamp),
            Strength::Hard => self.hard = self.hard.max(stamp),
        }
    }

    fn newest(&self) -> Stamp {
        self.soft.max(self.hard)
    }

    fn verdict(&self, stamp: Stamp) -> Verdict {
        if stamp < self.hard {
            Verdict::Hard
        } else if stamp < self.soft {
            Verdict::Soft
        } else {
            Verdict::Fresh
        }
    }
}

#[cfg(test)]
mod tests;
