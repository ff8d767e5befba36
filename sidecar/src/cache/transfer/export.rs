//! What goes out.

use std::{cmp::Reverse, collections::BinaryHeap, io, sync::Arc, vec};

use bytes::Bytes;
use futures::{Stream, stream};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::departing;
use crate::cache::{
    Cache,
    file::Writer,
    show::{ShowError, list::Selection},
    standing::Standing,
    store::{Cursor, Listed, Object},
};

/// Objects of one hold of a lock. They stay in memory until they are written, even if they leave the store.
const HELD: usize = 32;
/// Bytes of a piece, after which it is given.
const PIECE: usize = 64 << 10;
/// Objects that are looked at for a piece.
const LOOKED: usize = 16_384;

/// What is asked of `GET /cache/export`: all that is given has to hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExportRequest {
    /// The beginning of URLs, absolute. Its scheme doesn't count.
    pub prefix: Option<String>,
    /// Answers with this tag.
    pub tag: Option<String>,
    /// Answers that a policy has stored, as `namespace/name`.
    pub policy: Option<String>,
}

/// A file that is written as it is asked for.
pub(in crate::cache) struct Export {
    cache: Arc<Cache>,
    /// None: all.
    wanted: Option<Selection>,
    /// None once the end was written.
    file: Option<Writer>,
    out: Vec<u8>,
    held: vec::IntoIter<Object>,
    next: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Start,
    At(Cursor),
    Behind,
}

impl Export {
    /// Of what is asked for.
    pub(in crate::cache) fn new(cache: Arc<Cache>, request: &ExportRequest) -> Result<Self, ShowError> {
        let ExportRequest { prefix, tag, policy } = request;
        let wanted = Selection::of(&cache, prefix.as_deref(), tag.as_deref(), policy.as_deref())?;
        Ok(Self { wanted: Some(wanted), next: Place::Start, ..Self::of(cache, Vec::new()) })
    }

    /// Of these objects.
    pub(in crate::cache) fn of(cache: Arc<Cache>, objects: Vec<Object>) -> Self {
        let mut out = Vec::new();
        let file = Some(Writer::begin(cache.now().wall, &mut out));
        Self { cache, wanted: None, file, out, held: objects.into_iter(), next: Place::Behind }
    }

    /// Its bytes, as they are asked for; `held` is dropped behind its end. An error if it breaks off.
    pub(in crate::cache) fn pieces<T: Send + 'static>(self, held: T) -> impl Stream<Item = io::Result<Bytes>> + Send + use<T> {
        stream::unfold(Some((self, held)), async |state| {
            let (mut export, held) = state?;
            loop {
                let piece;
                (piece, export) = match spawn_blocking(move || (export.piece(), export)).await {
                    Ok(done) => done,
                    Err(ended) => return Some((Err(io::Error::other(ended)), None)),
                };
                let piece = piece?;
                if !piece.is_empty() {
                    return Some((Ok(piece), Some((export, held))));
                }
            }
        })
    }

    /// Its next bytes, none behind its end; no bytes at all if nothing was found so far. It may take some milliseconds: not for a thread
    /// that serves requests.
    fn piece(&mut self) -> Option<Bytes> {
        let (now, mut looked) = (self.cache.now(), 0);
        while self.out.len() < PIECE && looked < LOOKED {
            let file = self.file.as_mut()?;
            looked += 1;
            if let Some(object) = self.held.next() {
                let wanted = self.wanted.as_ref().is_none_or(|wanted| wanted.target(&object).is_some());
                if wanted && let Some(answer) = departing(&self.cache, &object, now) {
                    // What no reader takes is left out; a store that holds such is larger than any sidecar has.
                    let _ = file.add(&answer, &mut self.out);
                }
                continue;
            }
            let cursor = match self.next {
                Place::Start => None,
                Place::At(cursor) => Some(cursor),
                Place::Behind => {
                    self.file.take()?.end(&mut self.out);
                    break;
                }
            };
            let (held, next) = self.cache.store().page(cursor, HELD);
            let held: Vec<Object> = held.into_iter().map(|listed| listed.object).collect();
            (self.held, self.next) = (held.into_iter(), next.map_or(Place::Behind, Place::At));
        }
        Some(Bytes::from(std::mem::take(&mut self.out)))
    }
}

/// The objects that were asked for most often, and take so many bytes together at most; the most used first. Takes as long as a walk over
/// all that is stored: not for a thread that serves requests.
pub(in crate::cache) fn most_used(cache: &Cache, bytes: u64) -> Vec<Object> {
    let (now, mut cursor, mut taken) = (cache.now(), None, 0);
    let mut best: BinaryHeap<Reverse<Used>> = BinaryHeap::new();
    loop {
        let (held, next) = cache.store().page(cursor, HELD);
        for Listed { object, weight, hits } in held {
            // What is full of objects that are used more often needs no look at this one.
            let worse = taken + weight > bytes && best.peek().is_some_and(|Reverse(least)| least.hits >= hits);
            if weight > bytes || worse || !matches!(Standing::of(&object, &cache.purges, now), Standing::Kept(_)) {
                continue;
            }
            taken += weight;
            best.push(Reverse(Used { hits, weight, object }));
            while taken > bytes {
                taken -= best.pop().map_or(taken, |Reverse(least)| least.weight);
            }
        }
        cursor = next;
        if cursor.is_none() {
            let mut all = best.into_vec();
            all.sort_unstable();
            return all.into_iter().map(|Reverse(used)| used.object).collect();
        }
    }
}

/// An object by how often it was asked for.
struct Used {
    hits: u32,
    weight: u64,
    object: Object,
}

impl Ord for Used {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Of those that were asked for as often, the smaller ones stay.
        (self.hits, Reverse(self.weight)).cmp(&(other.hits, Reverse(other.weight)))
    }
}

impl PartialOrd for Used {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Used {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Used {}

#[cfg(test)]
mod tests {
    use crds::proxy::{CacheMemory, Eviction};

    use super::*;
    use crate::{
        PodPurges,
        cache::{
            notes::{self, Names},
            record::tests::{answer_of, meta},
            semantics::meta::Meta,
            store::Parts,
        },
    };

    /// A cache of these answers, each of which was asked for so often.
    fn cache_of(answers: &[(&str, usize, u32)]) -> Arc<Cache> {
        let memory = CacheMemory { size: crds::scalar::Size(1 << 24), eviction: Eviction::S3FIFO };
        let cache = Cache::new(&memory, PodPurges::new("pod"));
        for (key, bytes, hits) in answers {
            let meta = Meta { initial_age: 0, since: cache.now().mono, lifetime: u64::MAX / 2, ..meta() };
            let notes = notes::write(&meta, cache.purges.stamp(), &Names::default());
            let parts = Parts { primary: key.as_bytes(), variant: b"", meta: &notes, status: http::StatusCode::OK };
            let body = Bytes::from(vec![b'x'; *bytes]);
            cache.store().insert(Object::head(parts, []).unwrap().with_body(&[body]), None).unwrap();
            let store = cache.store();
            (0..*hits).for_each(|_| drop(store.get(&store.key(key.as_bytes()))));
        }
        cache
    }

    fn keys(objects: &[Object]) -> Vec<String> {
        objects.iter().map(|object| String::from_utf8_lossy(object.primary()).into_owned()).collect()
    }

    #[test]
    fn snapshot_has_what_is_asked_for_most_within_its_bytes() {
        let cache = cache_of(&[("a", 1000, 1), ("b", 1000, 5), ("c", 1000, 3), ("d", 50_000, 9), ("e", 1000, 0)]);
        assert_eq!(keys(&most_used(&cache, 1 << 20)), ["d", "b", "c", "a", "e"]);
        assert_eq!(keys(&most_used(&cache, 4000)), ["b", "c"], "the largest fits not at all");
        assert_eq!(keys(&most_used(&cache, 0)), [""; 0]);
        // One that has no notes is none of ours.
        cache.store().insert(answer_of(b"", b"").object, None).unwrap();
        assert_eq!(most_used(&cache, 1 << 20).len(), 5);
    }
}
