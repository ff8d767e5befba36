//! What is stored, a page at a time.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::ShowError;
use crate::cache::{
    Cache,
    key::Target,
    notes,
    purge::{Name, PurgeError, located, named},
    semantics::{
        clock::Now,
        request::Control,
        serve::{Origin, Verdict, decide},
        vary,
    },
    standing::Standing,
    store::{Cursor, Listed, Object},
};

/// Objects of a page unless the request says another number, and at most.
const USUAL: usize = 100;
const MOST: usize = 1000;
/// Objects that are looked at for a page: some tens of milliseconds' work.
const LOOKED: usize = 65_536;
/// Objects of one hold of a lock, for a few microseconds.
const HELD: usize = 256;
/// Bytes of URLs and variants after which a page ends.
const TEXT: usize = 1 << 20;

/// What is asked of `GET /cache/objects`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ListRequest {
    /// The beginning of URLs, absolute. Its scheme doesn't count.
    pub prefix: Option<String>,
    /// Answers with this tag.
    pub tag: Option<String>,
    /// Answers that a policy has stored, as `namespace/name`.
    pub policy: Option<String>,
    /// The first by this, of all that is stored, on one page. Without it in no order.
    pub order: Option<Order>,
    /// Objects of the page: 1 to 1000, 100 without it.
    pub limit: Option<usize>,
    /// Where the page begins: `next` of the one before.
    pub after: Option<u64>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// What was asked for most often since it came.
    Hits,
    /// What takes most memory.
    Bytes,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Objects {
    /// All that stay while they are listed are on some page; one may be on two.
    pub objects: Vec<Stored>,
    /// Where the next page begins; none behind the last. A page that isn't full may have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A stored answer, in one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Its URL, with the part of the query that counts; the path alone where the key leaves the host out.
    pub url: String,
    /// `namespace/policy/rule` that had it stored.
    pub rule: String,
    /// Values of the fields that `Vary` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant: Vec<Value>,
    /// Its status.
    pub status: u16,
    /// What would become of a request for it.
    pub state: State,
    /// Whether it has no body, for the section is in mode Shadow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// How old it is, in seconds.
    pub age_seconds: u32,
    /// How long it is fresh; below 0: how long it has been stale.
    pub fresh_seconds: i64,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Bytes that it takes of the cache in all.
    pub bytes: u64,
    /// Hits since it came, with those of the answers whose place it took.
    pub hits: u32,
}

/// A field with the value by which variants are told apart: lists such as `Accept-Encoding` in one order.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Value {
    /// In lower case.
    pub name: String,
    /// None where requests don't have the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What would become of a request that says nothing of caching.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum State {
    /// It would get the answer.
    Fresh,
    /// It would get the answer, stale as it is, while the origin is asked for a newer one.
    Stale,
    /// The origin would be asked whether it is right still.
    Revalidate,
    /// A purge took it; its memory is free when it is asked for, or room is needed.
    Purged,
    /// It is too old for any use; its memory is free when room is needed.
    Dead,
}

/// Lists what the request asks for.
pub(super) fn list(cache: &Cache, request: &ListRequest) -> Result<Objects, ShowError> {
    let limit = request.limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(ShowError::Wrong(format!("limit: {limit} is not 1 to {MOST}")));
    }
    let ListRequest { prefix, tag, policy, .. } = request;
    let wanted = Selection::of(cache, prefix.as_deref(), tag.as_deref(), policy.as_deref())?;
    match request.order {
        Some(order) => Ok(first(cache, &wanted, order, limit)),
        None => Ok(page(cache, &wanted, request.after.map(Cursor), limit)),
    }
}

fn page(cache: &Cache, wanted: &Selection, mut cursor: Option<Cursor>, limit: usize) -> Objects {
    let now = cache.now();
    let (mut page, mut looked, mut text) = (Objects::default(), 0, 0);
    while page.objects.len() < limit && looked < LOOKED && text < TEXT {
        // No more than would fit, for a page ends between two holds.
        let (held, next) = cache.store().page(cursor, HELD.min(limit - page.objects.len()));
        looked += held.len().max(1);
        for listed in held {
            if let Some(target) = wanted.target(&listed.object) {
                let stored = Stored::of(cache, &listed, target, now);
                text += stored.text();
                page.objects.push(stored);
            }
        }
        page.next = next.map(|Cursor(at)| at);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    page
}

/// The first of all, by some measure.
fn first(cache: &Cache, wanted: &Selection, order: Order, limit: usize) -> Objects {
    let now = cache.now();
    let mut best: Vec<(u64, Stored)> = Vec::new();
    let (mut cursor, mut least) = (None, 0);
    loop {
        let (held, next) = cache.store().page(cursor, HELD);
        for listed in held {
            let measure = match order {
                Order::Hits => u64::from(listed.hits),
                Order::Bytes => listed.weight,
            };
            if best.len() >= limit && measure <= least {
                continue;
            }
            let Some(target) = wanted.target(&listed.object) else { continue };
            let stored = Stored::of(cache, &listed, target, now);
            // What has moved while it is listed comes twice.
            let is_new = |(_, other): &(u64, Stored)| !other.is_same(&stored);
            if !matches!(stored.state, State::Purged | State::Dead) && best.iter().all(is_new) {
                best.push((measure, stored));
                best.sort_by_key(|(measure, _)| Reverse(*measure));
                best.truncate(limit);
                least = best.last().map_or(0, |(measure, _)| *measure);
            }
        }
        cursor = next;
        if cursor.is_none() {
            return Objects { objects: best.into_iter().map(|(_, stored)| stored).collect(), next: None };
        }
    }
}

/// Which objects are wanted.
pub(in crate::cache) struct Selection {
    /// Host and path, and where the path begins.
    prefix: Option<(String, usize)>,
    tag: Option<Name>,
    policy: Option<Name>,
}

impl Selection {
    /// Those that all of what is given holds for.
    pub(in crate::cache) fn of(
        cache: &Cache,
        prefix: Option<&str>,
        tag: Option<&str>,
        policy: Option<&str>,
    ) -> Result<Self, ShowError> {
        let naming = cache.purges.naming();
        let prefix = prefix.map(|prefix| located("prefix", prefix)).transpose()?;
        let policy = policy.map(named).transpose()?;
        if let Some(tag) = tag.filter(|tag| tag.is_empty() || tag.contains(|c: char| c == ',' || c.is_whitespace())) {
            return Err(ShowError::Wrong(format!("tag: {tag:?} is none: tags have neither spaces nor commas")));
        }
        Ok(Self {
            prefix: prefix.map(|prefix| {
                let path = prefix.find('/').unwrap_or(prefix.len());
                (prefix, path)
            }),
            tag: tag.map(|tag| naming.tag(tag)),
            policy: policy.map(|policy| naming.policy(policy)),
        })
    }

    /// The target of an object that is wanted.
    pub(in crate::cache) fn target<'a>(&self, object: &'a Object) -> Option<Target<'a>> {
        if self.tag.is_some() || self.policy.is_some() {
            let names = notes::names(object).names;
            let has = |name: &Option<Name>| name.is_none_or(|name| names.contains(&name));
            if !has(&self.tag) || !has(&self.policy) {
                return None;
            }
        }
        let target = Target::of(object.primary());
        let begins = self.prefix.as_ref().is_none_or(|(prefix, path)| {
            let url = target.located();
            // A key without a host is for every host.
            url.starts_with(if url.starts_with('/') { &prefix[*path..] } else { prefix })
        });
        begins.then_some(target)
    }
}

impl Stored {
    fn of(cache: &Cache, listed: &Listed, target: Target, now: Now) -> Self {
        let object = &listed.object;
        let judged = |meta| decide(&meta, &Control::default(), now, Origin::Up);
        let (state, decision) = match Standing::of(object, &cache.purges, now) {
            Standing::Kept(meta) => {
                let decision = judged(meta);
                let state = match decision.verdict {
                    Verdict::Fresh => State::Fresh,
                    Verdict::Stale | Verdict::StaleWhileRevalidate => State::Stale,
                    Verdict::Revalidate { .. } | Verdict::GatewayTimeout => State::Revalidate,
                };
                (state, Some(decision))
            }
            Standing::Purged => (State::Purged, notes::read(object).map(judged)),
            Standing::Dead => (State::Dead, notes::read(object).map(judged)),
        };
        Self {
            url: target.url(),
            rule: target.rule.into_owned(),
            variant: variant(object),
            status: object.status().as_u16(),
            state,
            shadow: target.shadow,
            age_seconds: decision.map_or(0, |decision| decision.age_field()),
            fresh_seconds: decision.map_or(0, |decision| decision.ttl()),
            body_bytes: object.body_len(),
            bytes: listed.weight,
            hits: listed.hits,
        }
    }

    /// Bytes of its texts.
    fn text(&self) -> usize {
        let variant = self.variant.iter().map(|field| field.name.len() + field.value.as_ref().map_or(0, String::len));
        self.url.len() + self.rule.len() + variant.sum::<usize>()
    }

    /// Whether both are of one object.
    fn is_same(&self, other: &Self) -> bool {
        self.url == other.url && self.rule == other.rule && self.variant == other.variant && self.shadow == other.shadow
    }
}

/// The line of an object that was found, if it is still there.
pub(super) fn stored(cache: &Cache, object: &Object, now: Now) -> Option<Stored> {
    let listed = cache.store().listed(object)?;
    Some(Stored::of(cache, &listed, Target::of(object.primary()), now))
}

/// The values by which an object was told from other variants.
fn variant(object: &Object) -> Vec<Value> {
    if object.variant().is_empty() {
        return Vec::new();
    }
    let names = vary::selecting(&object.headers(0)).unwrap_or_default();
    let shown = vary::shown(names.iter().map(http::HeaderName::as_str), object.variant());
    shown.into_iter().map(|(name, value)| Value { name: name.to_owned(), value }).collect()
}

impl From<PurgeError> for ShowError {
    /// Names are the same as those of purges, and wrong in the same ways.
    fn from(error: PurgeError) -> Self {
        Self::Wrong(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::proxy::{CacheMemory, Eviction};
    use http::StatusCode;

    use super::*;
    use crate::{PodPurges, cache::store::Parts};

    /// A cache of so many objects, `/0` and so on, of which none is fresh.
    fn cache_of(objects: usize) -> Arc<Cache> {
        let memory = CacheMemory { size: crds::scalar::Size(1 << 30), eviction: Eviction::S3FIFO };
        let cache = Cache::new(&memory, PodPurges::new("pod"));
        let text = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
        for number in 0..objects {
            let path = format!("/{number}");
            let key = [&[0][..], &text("shop/web/all"), &text("http"), &text("a.example"), &text(&path), &[0]].concat();
            let parts = Parts { primary: &key, variant: b"", meta: b"", status: StatusCode::OK };
            cache.store().insert(Object::head(parts, []).unwrap(), None).unwrap();
        }
        cache
    }

    fn asked(query: serde_json::Value) -> ListRequest {
        serde_json::from_value(query).unwrap()
    }

    #[test]
    fn page_ends_before_many_objects_were_looked_at_in_vain() {
        let cache = cache_of(LOOKED + 10_000);
        let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
        loop {
            let page = list(&cache, &asked(serde_json::json!({"prefix": "http://a.example/77", "limit": 1000, "after": after})))
                .unwrap();
            assert!(page.objects.iter().all(|object| object.state == State::Dead));
            found.extend(page.objects.into_iter().map(|object| object.url));
            (pages, after) = (pages + 1, page.next);
            if after.is_none() {
                break;
            }
        }
        let expected = (0..LOOKED + 10_000).filter(|number| number.to_string().starts_with("77")).count();
        assert_eq!((found.len(), pages), (expected, 2));
    }

    #[test]
    fn nothing_that_is_gone_is_among_the_first() {
        let cache = cache_of(10);
        assert!(list(&cache, &asked(serde_json::json!({"order": "bytes"}))).unwrap().objects.is_empty());
        assert_eq!(list(&cache, &ListRequest::default()).unwrap().objects.len(), 10);
    }
}
