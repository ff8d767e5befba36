//! Validators (RFC 9110 section 8.8): entity tags, and dates of modification.

use http::{HeaderMap, header};

use super::{clock::Seconds, date, directives::lines, list::trim};

/// The validators of a representation, as its fields say them. A store that has fields in another form makes it from theirs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Validators<'a> {
    /// The value of `ETag`.
    pub(crate) etag: Option<&'a [u8]>,
    /// The value of `Last-Modified`.
    pub(crate) last_modified: Option<&'a [u8]>,
}

/// An entity tag: the opaque part with its quotes, and whether it is weak. One without quotes isn't allowed and is seen; it is weak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct EntityTag<'a> {
    opaque: &'a [u8],
    weak: bool,
}

impl<'a> Validators<'a> {
    /// Of a response's head. Fields of which there are two say nothing.
    pub(crate) fn of(headers: &'a HeaderMap) -> Self {
        let only = |name| {
            let mut all = lines(headers, name);
            all.next().filter(|first| all.all(|other| other == *first))
        };
        Self { etag: only(&header::ETAG).filter(|value| !trim(value).is_empty()), last_modified: only(&header::LAST_MODIFIED) }
    }

    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }

    /// The entity tag.
    pub(crate) fn tag(&self) -> Option<EntityTag<'a>> {
        EntityTag::parse(self.etag?)
    }

    /// The date of modification.
    pub(crate) fn modified(&self, now: Seconds) -> Option<Seconds> {
        date::parse(self.last_modified?, now)
    }

    /// The date of modification if it is a strong validator: `date` of the same response is at least a second later (section 8.8.2.2).
    pub(crate) fn strong_modified(&self, date: Seconds) -> Option<Seconds> {
        self.modified(date).filter(|modified| *modified < date)
    }

    /// Whether it says for sure that two responses are of the same representation; `date` is that of the response.
    pub(crate) fn is_strong(&self, date: Seconds) -> bool {
        match self.etag {
            Some(_) => self.tag().is_some_and(EntityTag::is_strong),
            None => self.strong_modified(date).is_some(),
        }
    }
}

impl<'a> EntityTag<'a> {
    /// Reads a tag that stands alone.
    pub(crate) fn parse(value: &'a [u8]) -> Option<Self> {
        let (tag, rest) = Self::first(trim(value))?;
        rest.is_empty().then_some(tag)
    }

    /// Whether the strong comparison finds them equal (section 8.8.3.2).
    pub(crate) fn is_strongly(self, other: Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// Whether the weak comparison finds them equal.
    pub(crate) fn is_weakly(self, other: Self) -> bool {
        self.opaque == other.opaque
    }

    /// Whether it is strong.
    pub(crate) fn is_strong(self) -> bool {
        !self.weak
    }

    /// The first tag, and what follows it. A tag has no escapes, so the next quote ends it.
    fn first(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (marked, rest) = text.strip_prefix(b"W/").map_or((false, text), |rest| (true, rest));
        if let Some(inner) = rest.strip_prefix(b"\"") {
            let end = inner.iter().position(|&byte| byte == b'"')? + 2;
            return Some((Self { opaque: &rest[..end], weak: marked }, &rest[end..]));
        }
        let end = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
        let opaque = trim(&text[..end]);
        (!opaque.is_empty() && !opaque.contains(&b'"')).then_some((Self { opaque, weak: true }, &text[end..]))
    }
}

/// The tags of one line of `If-None-Match`. What follows a tag that can't be read isn't seen.
pub(crate) fn tags(line: &[u8]) -> impl Iterator<Item = EntityTag<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', next @ ..] = rest {
            rest = next;
        }
        let (tag, next) = EntityTag::first(rest)?;
        // Something else than a comma behind a tag: the list is none.
        rest = trim(next);
        (rest.is_empty() || rest[0] == b',').then_some(tag)
    })
}
