//! Where on disk a key leads to: what is known of the segments, and which of them goes first. All of it stands in memory.

use std::collections::{HashMap, VecDeque};

use super::segment::{Frame, Name};

/// Where a record is. What was written later is larger.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// Bytes of its content.
    pub(super) len: u32,
}

/// The segments, with their open files, and what stands in them.
#[derive(Debug)]
pub(super) struct Index<F> {
    places: HashMap<Name, Place>,
    /// The oldest first.
    segments: VecDeque<Segment<F>>,
    bytes: u64,
    /// Names in all segments, with those that were written again since: they take memory.
    records: usize,
}

#[derive(Debug)]
struct Segment<F> {
    id: u32,
    file: F,
    bytes: u64,
    names: Vec<Name>,
}

/// A segment that has left.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) id: u32,
    /// To be forgotten: what a place among them leads to isn't found any more.
    pub(super) names: Vec<Name>,
}

impl<F: Clone> Index<F> {
    pub(super) fn new() -> Self {
        Self { places: HashMap::new(), segments: VecDeque::new(), bytes: 0, records: 0 }
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keys that lead somewhere, but for those of segments that have just left.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Records that take memory.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Where a key leads to.
    pub(super) fn get(&self, name: &Name) -> Option<(Place, F)> {
        let place = *self.places.get(name)?;
        Some((place, self.segment(place.segment)?.file.clone()))
    }

    /// Begins a segment, the newest of all.
    pub(super) fn begin(&mut self, id: u32, file: F, bytes: u64) {
        self.segments.push_back(Segment { id, file, bytes, names: Vec::new() });
        self.bytes += bytes;
    }

    /// Takes a record of the newest segment: what its key led to is replaced or, with an empty one, gone.
    pub(super) fn add(&mut self, offset: u32, frame: Frame) -> Option<Place> {
        let segment = self.segments.back_mut()?;
        segment.bytes += frame.whole();
        self.bytes += frame.whole();
        if frame.len == 0 {
            self.places.remove(&frame.name);
            return None;
        }
        let place = Place { segment: segment.id, offset, len: frame.len };
        segment.names.push(frame.name);
        self.records += 1;
        self.places.insert(frame.name, place);
        Some(place)
    }

    /// A key leads nowhere any more. Returns where it led.
    pub(super) fn remove(&mut self, name: &Name) -> Option<Place> {
        self.places.remove(name)
    }

    /// The same, if it still leads there.
    pub(super) fn remove_from(&mut self, name: &Name, place: Place) {
        if self.places.get(name) == Some(&place) {
            self.places.remove(name);
        }
    }

    /// Takes out the oldest segment.
    pub(super) fn evict(&mut self) -> Option<Gone> {
        let Segment { id, bytes, names, .. } = self.segments.pop_front()?;
        self.bytes -= bytes;
        self.records -= names.len();
        Some(Gone { id, names })
    }

    /// Frees the memory of keys that led into a segment that has left. Some at a time, so that nobody waits long.
    pub(super) fn forget(&mut self, names: &[Name], segment: u32) {
        for name in names {
            if self.places.get(name).is_some_and(|place| place.segment == segment) {
                self.places.remove(name);
            }
        }
        if self.places.capacity() > 4 * self.places.len() + 1024 {
            self.places.shrink_to(2 * self.places.len());
        }
    }

    /// The oldest segment.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.segments.front().map(|segment| segment.id)
    }

    /// Segments are few, and their numbers rise.
    fn segment(&self, id: u32) -> Option<&Segment<F>> {
        let at = self.segments.binary_search_by_key(&id, |segment| segment.id).ok()?;
        self.segments.get(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::segment::MAGIC, *};

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Add(u8, u16),
        Remove(u8),
        Evict,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Begin),
            8 => (0u8..20, 0u16..300).prop_map(|(name, len)| Step::Add(name, len)),
            1 => (0u8..20).prop_map(Step::Remove),
            1 => Just(Step::Evict),
        ]
    }

    proptest! {
        /// Against a list of all records ever written, of which the newest of a key in a segment that is there counts.
        #[test]
        fn it_knows_what_a_list_of_all_records_says(steps in prop::collection::vec(step(), 0..200)) {
            let (mut index, mut next) = (Index::new(), 0u32);
            // Segment, name, length; with what has left.
            let mut written: Vec<(u32, u8, u32)> = Vec::new();
            let (mut ends, mut first) = (vec![], 0u32);
            for step in steps {
                match step {
                    Step::Begin => {
                        index.begin(next, next, MAGIC.len() as u64);
                        ends.push(MAGIC.len() as u64);
                        next += 1;
                    }
                    Step::Add(name, len) if next > first => {
                        let frame = Frame { name: [name; 16], len: u32::from(len) };
                        let place = index.add(ends[next as usize - 1] as u32, frame);
                        prop_assert_eq!(place.is_some(), len > 0);
                        ends[next as usize - 1] += frame.whole();
                        written.push((next - 1, name, u32::from(len)));
                    }
                    Step::Add(..) => {}
                    Step::Remove(name) => {
                        index.remove(&[name; 16]);
                        written.push((u32::MAX, name, 0));
                    }
                    Step::Evict => {
                        let gone = index.evict();
                        prop_assert_eq!(gone.as_ref().map(|gone| gone.id), (next > first).then_some(first));
                        if let Some(Gone { id, names }) = gone {
                            prop_assert!(index.get(&names.first().copied().unwrap_or_default()).is_none_or(|(at, _)| at.segment != id));
                            names.chunks(3).for_each(|names| index.forget(names, id));
                            first += 1;
                        }
                    }
                }
                for name in 0..20u8 {
                    let newest = written.iter().rev().find(|(_, of, _)| *of == name);
                    let there = |(segment, _, len): &&(u32, u8, u32)| *len > 0 && *segment >= first;
                    let expected = newest.filter(there).map(|(segment, _, len)| (*segment, *len));
                    let found = index.get(&[name; 16]).map(|(place, file)| {
                        assert_eq!(place.segment, file);
                        (place.segment, place.len)
                    });
                    prop_assert_eq!(found, expected);
                }
                let there = ends.iter().skip(first as usize).sum::<u64>();
                prop_assert_eq!((index.bytes(), index.segments()), (there, (next - first) as usize));
                let records = written.iter().filter(|(segment, _, len)| *len > 0 && *segment >= first && *segment != u32::MAX).count();
                prop_assert_eq!(index.records(), records);
                prop_assert!(index.len() <= index.records());
            }
        }
    }
}
