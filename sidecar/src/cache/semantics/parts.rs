//! Parts of a representation that came one by one (RFC 9111 sections 3.3 and 3.4).

use std::ops::Range;

use http::{HeaderMap, HeaderValue, header};
use smallvec::SmallVec;

use super::{
    clock::Seconds, conditional::Answer, directives::lines, list::trim, meta::Meta, range::ByteRange, validators::Validators,
};

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

/// The content of a stored response of which maybe not all is there: then it is as an incomplete 200 (section 3.3). The bytes of its pieces
/// lie one after the other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Content {
    pub(crate) pieces: Pieces,
    /// The length of the whole.
    pub(crate) complete: u64,
}

/// What a newer part does to what is stored of the same target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Relation {
    /// Both are of one representation, and are joined.
    Same,
    /// It takes the place of what is stored.
    Replaces,
    /// What is stored is newer still: the part is of no use.
    Outdated,
}

/// Stored content with a newer part of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Joined {
    pub(crate) content: Content,
    /// What its bytes are put together from, in order. None: they are those that were stored.
    pub(crate) slices: Option<Vec<Slice>>,
    /// Bytes of what was stored that are left out, for there would be too many, or too many pieces.
    pub(crate) dropped: u64,
}

/// Some of the bytes that are put together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Slice {
    /// These of the stored body.
    Stored(Range<u64>),
    /// All of the newer part.
    Newer,
}

impl ContentRange {
    /// Of a response with one part. None if it has several, is in another unit or of unknown length, or makes no sense: such a part
    /// can't be joined with others.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = lines(headers, &header::CONTENT_RANGE);
        let value = all.next().filter(|_| all.next().is_none())?;
        Self::parse(value)
    }

    fn parse(value: &[u8]) -> Option<Self> {
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

/// What becomes of a stored response when a part of the same target has come (section 3.4). `complete` is the length of each one's whole.
pub(crate) fn relation(stored: (&HeaderMap, &Meta, u64), newer: (&HeaderMap, &Meta, u64)) -> Relation {
    let ((stored, stored_meta, stored_complete), (newer, newer_meta, complete)) = (stored, newer);
    let (stored, newer) = (Validators::of(stored), Validators::of(newer));
    // Only of what is a 200 there are parts.
    if stored_meta.status == newer_meta.status
        && stored_complete == complete
        && may_be_joined((&stored, stored_meta.date()), (&newer, newer_meta.date()))
    {
        Relation::Same
    } else if stored_meta.is_newer_than(newer_meta) {
        Relation::Outdated
    } else {
        Relation::Replaces
    }
}

impl Content {
    /// Of content that is all there.
    pub(crate) fn whole(complete: u64) -> Self {
        let ranges = complete.checked_sub(1).map(|last| ByteRange { first: 0, last }).into_iter().collect();
        Self { pieces: Pieces { ranges }, complete }
    }

    /// Of a stored head, which has a `Content-Range` for each piece. None if it doesn't say so, or says what can't be.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut content: Option<Self> = None;
        for line in lines(headers, &header::CONTENT_RANGE) {
            let ContentRange { range, complete } = ContentRange::parse(line)?;
            let content = content.get_or_insert_with(|| Self { pieces: Pieces::default(), complete });
            let behind = content.pieces.ranges.last().is_none_or(|piece| piece.last.saturating_add(1) < range.first);
            if !behind || content.complete != complete || content.pieces.ranges.len() == MOST_PIECES {
                return None;
            }
            content.pieces.ranges.push(range);
        }
        content
    }

    /// Has a head to be stored say what is there; that of the whole says nothing of it.
    pub(crate) fn note(&self, headers: &mut HeaderMap) {
        headers.remove(header::CONTENT_RANGE);
        let pieces = self.pieces.ranges.iter().filter(|_| !self.is_whole());
        for value in pieces.filter_map(|piece| HeaderValue::try_from(piece.content_range(self.complete)).ok()) {
            headers.append(header::CONTENT_RANGE, value);
        }
    }

    /// Whether everything is there.
    pub(crate) fn is_whole(&self) -> bool {
        self.pieces.is_whole(self.complete)
    }

    /// Bytes that are there.
    pub(crate) fn length(&self) -> u64 {
        self.pieces.ranges.iter().map(|piece| piece.length()).fold(0, u64::saturating_add)
    }

    /// Where the bytes of a range lie. None if not all of them are there.
    pub(crate) fn place(&self, wanted: ByteRange) -> Option<Range<u64>> {
        let mut before = 0u64;
        for piece in &self.pieces.ranges {
            if piece.covers(wanted) {
                let from = before + (wanted.first - piece.first);
                return Some(from..from + wanted.length());
            }
            before += piece.length();
        }
        None
    }

    /// With a newer part of the same whole, of `most` bytes in all: what is stored farthest from it is left out.
    pub(crate) fn joined(&self, part: ByteRange, most: u64) -> Joined {
        if self.pieces.covers(part) {
            return Joined { content: self.clone(), slices: None, dropped: 0 };
        }
        let mut rest: SmallVec<[ByteRange; 4]> = self.pieces.ranges.iter().flat_map(|piece| piece.without(part)).collect();
        let stored = rest.iter().map(|piece| piece.length()).fold(0, u64::saturating_add);
        rest.sort_by_key(|piece| piece.distance(part));
        let mut pieces = Pieces { ranges: std::iter::once(part).collect() };
        let mut left = most.saturating_sub(part.length());
        let mut kept: SmallVec<[ByteRange; 4]> = SmallVec::new();
        for piece in rest {
            let Some(piece) = piece.nearest(part, left).filter(|piece| pieces.add(*piece)) else { break };
            left -= piece.length();
            kept.push(piece);
        }
        let dropped = stored - kept.iter().map(|piece| piece.length()).sum::<u64>();
        kept.push(part);
        kept.sort_by_key(|piece| piece.first);
        let slice = |piece: &ByteRange| if *piece == part { Some(Slice::Newer) } else { self.place(*piece).map(Slice::Stored) };
        let slices = kept.iter().filter_map(slice).collect();
        Joined { content: Self { pieces, complete: self.complete }, slices: Some(slices), dropped }
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

    /// The pieces, in order.
    pub(crate) fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }
}
