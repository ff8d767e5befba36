//! Parts of a representation that came one by one (RFC 9111 sections 3.3 and 3.4).

use http::{HeaderMap, header};
use smallvec::SmallVec;

use super::{clock::Seconds, conditional::Answer, directives::lines, list::trim, range::ByteRange, validators::Validators};

/// More pieces than this aren't kept apart.
pub(crate) const MOST_PIECES: usize = 64;

/// What a 206 says of its content (RFC 9110 section 14.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ContentRange {
    pub(crate) range: ByteRange,
    /// The length of the whole.
    pub(crate) complete: u64,
}

/// Which bytes of a representation are there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Pieces {
    /// Sorted; none touches another.
    ranges: SmallVec<[ByteRange; 2]>,
}

impl ContentRange {
    /// Of a response with one part. None if it has several, is in another unit or of unknown length, or makes no sense: such a part
    /// can't be joined with others.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = lines(headers, &header::CONTENT_RANGE);
        let value = all.next().filter(|_| all.next().is_none())?;
        let text = std::str::from_utf8(trim(value)).ok()?;
        let (unit, rest) = text.split_once(' ')?;
        let (range, complete) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        let range = ByteRange { first: number(first)?, last: number(last)? };
        let complete = number(complete)?;
        (unit.eq_ignore_ascii_case("bytes") && range.first <= range.last && range.last < complete)
            .then_some(Self { range, complete })
    }
}

/// Whether two responses are of the same representation, so that parts of them may be joined: they share a strong validator, an entity
/// tag if there is one. `date` is each one's `Date`.
pub(crate) fn may_be_joined(stored: (&Validators<'_>, Seconds), newer: (&Validators<'_>, Seconds)) -> bool {
    let ((stored, stored_date), (newer, newer_date)) = (stored, newer);
    match (stored.tag(), newer.tag()) {
        (Some(stored), Some(newer)) => stored.is_strongly(newer),
        (None, None) if stored.etag.is_none() && newer.etag.is_none() => {
            let modified = stored.strong_modified(stored_date);
            modified.is_some() && modified == newer.strong_modified(newer_date)
        }
        _ => false,
    }
}

impl Pieces {
    /// Adds a piece. False, and nothing is changed, if there would be too many.
    pub(crate) fn add(&mut self, piece: ByteRange) -> bool {
        let from = self.ranges.partition_point(|range| range.last.saturating_add(1) < piece.first);
        let to = self.ranges.partition_point(|range| range.first <= piece.last.saturating_add(1));
        if from == to {
            if self.ranges.len() == MOST_PIECES {
                return false;
            }
            self.ranges.insert(from, piece);
            return true;
        }
        let joined =
            ByteRange { first: piece.first.min(self.ranges[from].first), last: piece.last.max(self.ranges[to - 1].last) };
        self.ranges[from] = joined;
        self.ranges.drain(from + 1..to);
        true
    }

    /// Whether all of a range is there.
    pub(crate) fn covers(&self, wanted: ByteRange) -> bool {
        self.ranges.iter().any(|range| range.covers(wanted))
    }

    /// Whether an answer can be made of what is there.
    pub(crate) fn serve(&self, answer: &Answer, complete: u64) -> bool {
        match answer {
            Answer::Whole => self.is_whole(complete),
            Answer::Parts(parts) => parts.iter().all(|part| self.covers(*part)),
            Answer::NotModified | Answer::Unsatisfiable => true,
        }
    }

    /// Whether everything is there, so that it is a 200 (RFC 9110 section 15.3.7.3).
    pub(crate) fn is_whole(&self, complete: u64) -> bool {
        complete.checked_sub(1).is_none_or(|last| self.covers(ByteRange { first: 0, last }))
    }

    /// The first bytes of a range that aren't there: what to ask the origin for.
    pub(crate) fn missing(&self, wanted: ByteRange) -> Option<ByteRange> {
        let mut first = wanted.first;
        for range in &self.ranges {
            if range.first > first {
                return Some(ByteRange { first, last: wanted.last.min(range.first - 1) }).filter(|gap| gap.first <= gap.last);
            }
            if range.last >= first {
                first = range.last.saturating_add(1);
            }
            if first > wanted.last {
                return None;
            }
        }
        Some(ByteRange { first, last: wanted.last })
    }

    /// The pieces, in order.
    pub(crate) fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }
}
