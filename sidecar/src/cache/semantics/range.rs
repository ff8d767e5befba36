//! Ranges of bytes (RFC 9110 section 14), and what their answers look like.

use smallvec::SmallVec;

use super::{
    conditional::Answer,
    list::{members, trim},
};

/// A set of more ranges is answered with everything.
pub(crate) const MOST_RANGES: usize = 32;

/// More ranges than this that overlap others, or that are out of order, are an attack (section 17.15).
const MOST_OVERLAPPING: usize = 2;

/// A set of more ranges than this has to be in order.
const MOST_UNORDERED: usize = 8;

/// Parts with a smaller gap between them are sent as one: the head of a part has about as many bytes (section 15.3.7.2).
const GAP: u64 = 80;

/// Bytes from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ByteRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Ranges that are to be sent, in this order; at least one, none of which touches another.
pub(crate) type Parts = SmallVec<[ByteRange; 1]>;

/// What one element of a set asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spec {
    From { first: u64, last: Option<u64> },
    Suffix(u64),
}

/// What to answer to a `Range` for content of a length.
///
/// Everything, where the set can't be read, is in another unit, or is one of those that only an attacker sends.
pub(crate) fn select<'a>(mut values: impl Iterator<Item = &'a [u8]>, length: u64) -> Answer {
    let (Some(value), None) = (values.next(), values.next()) else { return Answer::Whole };
    // Content of no length has no parts (section 14.2).
    let specs = if length == 0 { None } else { specs(value) };
    let Some(specs) = specs else { return Answer::Whole };
    let wanted: Parts = specs.iter().filter_map(|spec| spec.of(length)).collect();
    if wanted.is_empty() {
        return Answer::Unsatisfiable;
    }
    if is_hostile(&wanted) {
        return Answer::Whole;
    }
    Answer::Parts(joined(&wanted))
}

/// Whether it is a `Range` with a single one, whose answer is a single part.
pub(crate) fn is_single<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> bool {
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    specs(value).is_some_and(|specs| specs.len() == 1)
}

impl ByteRange {
    /// How many bytes it has.
    pub(crate) fn length(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `other` lies wholly in it.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The value of `Content-Range` (section 14.4).
    pub(crate) fn content_range(self, complete: u64) -> String {
        format!("bytes {}-{}/{complete}", self.first, self.last)
    }

    /// What of it lies before `other`, and what behind.
    pub(crate) fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let before = other.first.checked_sub(1).map(|last| Self { first: self.first, last: self.last.min(last) });
        let behind = other.last.checked_add(1).map(|first| Self { first: self.first.max(first), last: self.last });
        [before, behind].into_iter().flatten().filter(|range| range.first <= range.last)
    }

    /// Bytes between it and `other`, which it doesn't overlap.
    pub(crate) fn distance(self, other: Self) -> u64 {
        if self.last < other.first {
            other.first - self.last - 1
        } else {
            self.first.saturating_sub(other.last).saturating_sub(1)
        }
    }

    /// The `most` bytes of it that are nearest to `other`, which it doesn't overlap.
    pub(crate) fn nearest(self, other: Self, most: u64) -> Option<Self> {
        let more = most.min(self.length()).checked_sub(1)?;
        let before = self.last < other.first;
        Some(if before { Self { first: self.last - more, ..self } } else { Self { last: self.first + more, ..self } })
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether fewer than `gap` bytes lie between the two.
    fn is_near(self, other: Self, gap: u64) -> bool {
        self.first <= other.last.saturating_add(gap) && other.first <= self.last.saturating_add(gap)
    }

    fn with(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// The value of `Content-Range` in a 416 (section 14.4).
pub(crate) fn unsatisfied(complete: u64) -> String {
    format!("bytes */{complete}")
}

/// The value of `Content-Type` of an answer with several parts (section 14.6).
pub(crate) fn multipart_type(boundary: &str) -> String {
    format!("multipart/byteranges; boundary={boundary}")
}

/// What goes before the bytes of a part (section 15.3.7.2). The boundary mustn't be found in the content: 16 random bytes won't be.
pub(crate) fn part_head(boundary: &str, content_type: Option<&[u8]>, range: ByteRange, complete: u64) -> Vec<u8> {
    let mut head = format!("\r\n--{boundary}\r\n").into_bytes();
    if let Some(content_type) = content_type {
        head.extend_from_slice(b"Content-Type: ");
        head.extend_from_slice(content_type);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(format!("Content-Range: {}\r\n\r\n", range.content_range(complete)).as_bytes());
    head
}

/// What goes behind the last part.
pub(crate) fn parts_end(boundary: &str) -> Vec<u8> {
    format!("\r\n--{boundary}--\r\n").into_bytes()
}

/// Reads a set in bytes; None if it isn't one, or has more than [`MOST_RANGES`].
fn specs(value: &[u8]) -> Option<SmallVec<[Spec; 4]>> {
    let (unit, set) = value.split_at_checked(value.iter().position(|&byte| byte == b'=')?)?;
    if !trim(unit).eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let specs = members(&set[1..]).take(MOST_RANGES + 1).map(Spec::parse).collect::<Option<SmallVec<_>>>()?;
    (1..=MOST_RANGES).contains(&specs.len()).then_some(specs)
}

impl Spec {
    fn parse(text: &[u8]) -> Option<Self> {
        let (first, last) = text.split_at_checked(text.iter().position(|&byte| byte == b'-')?)?;
        let (first, last) = (trim(first), trim(&last[1..]));
        match (first, last) {
            ([], suffix) => Some(Self::Suffix(position(suffix)?)),
            (first, []) => Some(Self::From { first: position(first)?, last: None }),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::From { first, last: Some(last) })
            }
        }
    }

    /// What it means for content of this length; None if it can't be satisfied (section 14.1.2).
    fn of(self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From { first, last } => {
                (first <= end).then(|| ByteRange { first, last: last.map_or(end, |last| last.min(end)) })
            }
            Self::Suffix(0) => None,
            Self::Suffix(wanted) => Some(ByteRange { first: length.saturating_sub(wanted), last: end }),
        }
    }
}

/// Digits; what is too large is the largest that we know.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

fn is_hostile(wanted: &[ByteRange]) -> bool {
    let overlaps = |range: &&ByteRange| wanted.iter().filter(|other| other.overlaps(**range)).nth(1).is_some();
    let overlapping = wanted.iter().filter(overlaps).count();
    let ordered = wanted.is_sorted_by_key(|range| range.first);
    overlapping > MOST_OVERLAPPING || (!ordered && wanted.len() > MOST_UNORDERED)
}

/// Joins what overlaps or is near. A part stands where the first of its ranges stood.
fn joined(wanted: &[ByteRange]) -> Parts {
    let mut parts = Parts::new();
    for range in wanted {
        let mut place = parts.len();
        let mut sum = *range;
        // What has grown may reach another part, so it is looked through until nothing is near.
        while let Some(near) = parts.iter().position(|part| part.is_near(sum, GAP)) {
            sum = sum.with(parts.remove(near));
            place = place.min(near);
        }
        parts.insert(place.min(parts.len()), sum);
    }
    parts
}
