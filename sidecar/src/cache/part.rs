//! Parts of answers (206) on their way into the store: of one representation they are joined, and together they may be all of it.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{
    Cache, notes,
    semantics::{
        clock::Now,
        fields,
        meta::{Flags, Meta},
        parts::{Content, Relation, Slice, relation},
    },
    standing::Standing,
    store::{Found, Key, Object, Parts, Store, Vary},
};

/// What became of a part that came whole.
pub(super) enum Kept {
    /// It is stored, beside what, and with the whole answer if that is there now.
    Stored(Place, Option<Object>),
    /// It is not: what is stored is newer, or there is nothing to join it with and it can't stand alone.
    Not,
}

/// What a part found where it is stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Nothing,
    /// Something of the same representation, with which it is joined.
    Same,
    /// Something older, which is gone.
    Older,
}

/// What is stored beside which a part comes.
struct Beside {
    object: Object,
    headers: HeaderMap,
    meta: Meta,
    content: Content,
}

/// Whether a part could be joined with what is stored now. `head` is as that of the object that it becomes.
pub(super) fn would_join(cache: &Cache, head: &Object, vary: Option<&Vary>) -> bool {
    let Some(part) = Beside::of(head.clone(), None) else { return false };
    let stored = Beside::stored(cache, head, vary);
    stored.is_some_and(|stored| stored.relation(&part) == Relation::Same)
}

/// Stores a part, with what is stored of the same representation if there is any; `most` bytes of both. `alone`: whether it may be stored by
/// itself. The caller sees to it that nobody else stores something of the same target meanwhile.
pub(super) fn keep(cache: &Cache, object: Object, vary: Option<&Vary>, most: u64, alone: bool) -> Kept {
    let count = |event| cache.metrics.part(event);
    let Some(part) = Beside::of(object.clone(), None).filter(Beside::is_sound) else { return Kept::Not };
    let stored = Beside::stored(cache, &object, vary);
    let (place, object) = match stored.as_ref().map(|stored| (stored.relation(&part), stored)) {
        None | Some((Relation::Replaces, _)) if !alone => return Kept::Not,
        Some((Relation::Outdated, _)) => {
            count("outdated");
            return Kept::Not;
        }
        Some((Relation::Same, stored)) => {
            count("joined");
            match stored.joined(&part, most.min(cache.store().largest_body()), || count("cut")) {
                Some(object) => (Place::Same, object),
                None => return Kept::Not,
            }
        }
        replaced => {
            let (place, event) = if replaced.is_some() { (Place::Older, "replaced") } else { (Place::Nothing, "first") };
            count(event);
            let whole = part.content.is_whole().then(|| part.completed()).flatten();
            (place, whole.unwrap_or(object))
        }
    };
    let whole = object.status() != StatusCode::PARTIAL_CONTENT;
    if whole {
        count("completed");
    }
    // Too little room is counted there.
    let _ = cache.store().insert(object.clone(), vary);
    Kept::Stored(place, whole.then_some(object))
}

impl Beside {
    /// Of an object, whose notes may have been judged.
    fn of(object: Object, meta: Option<Meta>) -> Option<Self> {
        let meta = meta.or_else(|| notes::read(&object))?;
        let headers = object.headers(0);
        let content = if meta.flags.any(Flags::PARTIAL) { Content::of(&headers)? } else { Content::whole(object.body_len()) };
        Some(Self { object, headers, meta, content })
    }

    /// What is stored under the key of an object, and of use still.
    fn stored(cache: &Cache, object: &Object, vary: Option<&Vary>) -> Option<Self> {
        let found = found(&cache.store(), object, vary)?;
        let now: Now = cache.now();
        match Standing::of(&found, &cache.purges, now) {
            Standing::Kept(meta) => Self::of(found, Some(meta)).filter(Self::is_sound),
            Standing::Purged | Standing::Dead => None,
        }
    }

    /// Whether it has the bytes that it says.
    fn is_sound(&self) -> bool {
        self.content.length() == self.object.body_len()
    }

    fn relation(&self, part: &Self) -> Relation {
        let of = |beside: &Self| (beside.meta, beside.content.complete);
        let ((stored, stored_length), (newer, length)) = (of(self), of(part));
        relation((&self.headers, &stored, stored_length), (&part.headers, &newer, length))
    }

    /// With a part of the same representation. The head of the newer of both changes that of the other (RFC 9111, section 3.4).
    fn joined(&self, part: &Self, most: u64, cut: impl Fn()) -> Option<Object> {
        let [piece] = part.content.pieces.ranges() else { return None };
        let joined = self.content.joined(*piece, most);
        if joined.dropped > 0 {
            cut();
        }
        let (older, newer) = if self.meta.is_newer_than(&part.meta) { (part, self) } else { (self, part) };
        let names = notes::names(&newer.object).or_of(notes::names(&older.object));
        let fields = fields::updated(&older.headers, &newer.headers);
        // By the purges that were known when the part was asked for: those that came since, up to now, have left what is stored as it is.
        let head = head(&part.object, &newer.meta, &names, fields, &joined.content)?;
        let body = match joined.slices {
            None => self.object.owned(0..self.object.body_len()),
            Some(slices) => slices.into_iter().flat_map(|slice| self.slice(slice, part)).collect(),
        };
        Some(head.with_body(&body))
    }

    fn slice(&self, slice: Slice, part: &Self) -> Vec<Bytes> {
        match slice {
            Slice::Stored(range) => self.object.owned(range),
            Slice::Newer => part.object.owned(0..part.object.body_len()),
        }
    }

    /// A part that is all there is.
    fn completed(&self) -> Option<Object> {
        let head = head(&self.object, &self.meta, &notes::names(&self.object), self.headers.clone(), &self.content)?;
        Some(head.with_body(&self.object.owned(0..self.object.body_len())))
    }
}

/// The head of content of which so much is there, under the key of an object and by the purges that were known when it was fetched.
fn head(of: &Object, meta: &Meta, names: &notes::Names, mut fields: HeaderMap, content: &Content) -> Option<Object> {
    content.note(&mut fields);
    let partial = !content.is_whole();
    let meta = Meta { flags: meta.flags.set(Flags::PARTIAL, partial), ..*meta };
    let status = if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let notes = notes::write(&meta, notes::stamp(of), names);
    Object::head_of_map(Parts { primary: of.primary(), variant: of.variant(), meta: &notes, status }, &fields).ok()
}

/// What is stored under the key of an object. Variants by other fields go when it comes.
fn found(store: &Store, object: &Object, vary: Option<&Vary>) -> Option<Object> {
    let primary = store.key(object.primary());
    let of = |key: &Key<'_>| match store.peek(key) {
        Some(Found::Object(object)) => Some(object),
        _ => None,
    };
    match (vary, store.peek(&primary)) {
        (None, Some(Found::Object(object))) => Some(object),
        (Some(vary), Some(Found::Vary(names))) if names == *vary => of(&store.variant(&primary, object.variant())),
        _ => None,
    }
}
