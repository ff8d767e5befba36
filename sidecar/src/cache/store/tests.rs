//! What a store promises, mostly against plain models.

mod hostile;
mod model;
mod object;

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

use super::*;

const FIELDS: [(&[u8], &[u8]); 5] = [
    (b"content-type", b"text/plain"),
    (b"set-cookie", b"a=1"),
    (b"set-cookie", b"b=\xff2"),
    (b"x-unheard-of", b""),
    (b"etag", b"\"v1\""),
];

fn head(primary: &[u8], variant: &[u8]) -> Object {
    Object::head(Parts { primary, variant, meta: b"notes", status: StatusCode::OK }, FIELDS).expect("fits")
}

fn object(primary: &str, body: usize) -> Object {
    head(primary.as_bytes(), &[]).with_body(&[body_of(body)])
}

fn body_of(len: usize) -> Bytes {
    (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

fn joined(object: &Object) -> Vec<u8> {
    object.body().flat_map(|piece| piece.to_vec()).collect()
}

fn store(capacity: u64) -> Store {
    Store::new(Limits { capacity, variants: 4, eviction: Eviction::S3Fifo })
}

fn found(store: &Store, primary: &str) -> Option<Object> {
    match store.get(&store.key(primary.as_bytes()))? {
        Found::Object(object) => Some(object),
        Found::Vary(_) => panic!("{primary} has variants"),
    }
}

#[test]
fn look_without_a_use_leaves_no_trace() {
    let store = store(1 << 20);
    store.insert(object("/a", 10), None).expect("room");
    let vary = Vary::new(["accept"]).expect("a name");
    store.insert(head(b"/v", &vary.key(|_| None)), Some(&vary)).expect("room");
    let before = store.stats();
    let key = store.key(b"/a");
    let Some(Found::Object(seen)) = store.peek(&key) else { panic!("it is there") };
    assert!(matches!(store.peek(&store.key(b"/v")), Some(Found::Vary(names)) if names == vary));
    assert!(store.peek(&store.key(b"/b")).is_none());
    assert_eq!(store.stats(), before);
    assert_eq!(store.listed(&seen).map(|listed| listed.hits), Some(0));
    found(&store, "/a");
    assert_eq!(store.listed(&seen).map(|listed| listed.hits), Some(1));
    store.insert(object("/a", 10), None).expect("room");
    assert!(store.listed(&seen).is_none(), "another one took its place");
}

#[test]
fn a_key_leads_to_what_came_last() {
    let store = store(1 << 20);
    assert!(found(&store, "/a").is_none());
    store.insert(object("/a", 10), None).expect("room");
    store.insert(object("/a", 20), None).expect("room");
    store.insert(object("/b", 30), None).expect("room");
    assert_eq!(found(&store, "/a").expect("there").body_len(), 20);
    assert_eq!(store.remove(&store.key(b"/a"), Gone::Removed), 1);
    assert!(found(&store, "/a").is_none());
    assert_eq!(store.remove(&store.key(b"/a"), Gone::Removed), 0);
    let stats = store.stats();
    assert_eq!((stats.objects, stats.inserted, stats.hits, stats.misses), (1, 3, 1, 2));
    assert_eq!((stats.gone(Gone::Replaced), stats.gone(Gone::Removed)), (1, 1));
}

#[test]
fn a_304_never_brings_back_what_was_purged() {
    let store = store(1 << 20);
    let old = object("/a", 10);
    let new = old.refreshed(b"new", StatusCode::OK, &HeaderMap::new()).expect("fits");
    store.insert(old.clone(), None).expect("room");
    assert!(store.replace(&old, new.clone()));
    assert_eq!(found(&store, "/a").expect("there").meta(), b"new");
    assert!(!store.replace(&old, old.clone()), "another has come");
    assert!(!store.discard(&old, Gone::Expired));
    assert!(store.discard(&new, Gone::Expired));
    assert!(!store.replace(&new, old), "it was taken out");
    assert!(found(&store, "/a").is_none());
}

#[test]
fn variants_are_found_by_what_vary_names() {
    let store = store(1 << 20);
    let vary = Vary::new(["Accept-Language", "accept-encoding", " Accept-Encoding "]).expect("names");
    assert_eq!(vary.names().collect::<Vec<_>>(), ["accept-encoding", "accept-language"]);
    let values = |encoding: Option<&'static str>| {
        vary.key(|name| (name == "accept-encoding").then(|| encoding.map(|text| Cow::Borrowed(text.as_bytes()))).flatten())
    };
    assert_ne!(values(None), values(Some("")), "absent is not empty");
    let key = store.key(b"/a");
    for (encoding, len) in [(Some("gzip"), 1), (Some("br"), 2), (None, 3)] {
        let object = head(b"/a", &values(encoding)).with_body(&[body_of(len)]);
        store.insert(object, Some(&vary)).expect("room");
    }
    let Some(Found::Vary(names)) = store.get(&key) else { panic!("no marker") };
    assert_eq!(names, vary);
    let len_of = |encoding| match store.get(&store.variant(&key, &values(encoding))) {
        Some(Found::Object(object)) => object.body_len(),
        other => panic!("{other:?}"),
    };
    assert_eq!([len_of(Some("gzip")), len_of(Some("br")), len_of(None)], [1, 2, 3]);
    assert!(store.get(&store.variant(&key, &values(Some("zstd")))).is_none());
    assert_eq!((store.stats().objects, store.stats().markers), (3, 1));
    assert_eq!(store.remove(&key, Gone::Removed), 4, "with its variants");
    assert_eq!((store.stats().objects, store.stats().markers, store.stats().bytes), (0, 0, 0));
}

#[test]
fn a_thousand_variants_leave_room_for_others() {
    let store = store(1 << 22);
    let vary = Vary::new(["user-agent"]).expect("name");
    let other = Vary::new(["cookie"]).expect("name");
    store.insert(object("/other", 10), None).expect("room");
    let key = store.key(b"/a");
    let values: Vec<Vec<u8>> = (0..1000).map(|n| vary.key(|_| Some(format!("agent {n}").into_bytes().into()))).collect();
    for values in &values {
        store.insert(head(b"/a", values).with_body(&[body_of(100)]), Some(&vary)).expect("room");
        assert!(store.stats().objects <= 5);
    }
    let kept: Vec<usize> = (0..1000).filter(|&n| store.get(&store.variant(&key, &values[n])).is_some()).collect();
    assert_eq!(kept, [996, 997, 998, 999], "the newest");
    assert_eq!(store.stats().gone(Gone::Variants), 996);
    assert!(found(&store, "/other").is_some());
    // Other names, or none: what was stored under the old ones can't be found any more, so it goes.
    let cookie = other.key(|_| None);
    store.insert(head(b"/a", &cookie), Some(&other)).expect("room");
    assert_eq!((store.stats().objects, store.stats().markers), (2, 1));
    store.insert(object("/a", 1), None).expect("room");
    assert_eq!((store.stats().objects, store.stats().markers), (2, 0));
}

#[test]
fn the_capacity_holds_whatever_comes() {
    for eviction in [Eviction::S3Fifo, Eviction::Sieve] {
        let store = Store::new(Limits { capacity: 200_000, variants: 4, eviction });
        for n in 0..3000usize {
            let _ = store.insert(object(&format!("/{n}"), n * 37 % 30_000), None);
            found(&store, &format!("/{}", n / 2));
            assert!(store.stats().bytes <= 200_000);
        }
        assert!(store.stats().objects > 5);
        assert_eq!(store.insert(object("/large", 60_000), None), Err(Refused::TooLarge));
        assert_eq!(store.stats().too_large, 1);
    }
}

#[test]
fn room_for_a_large_object_is_made_in_steps() {
    let store = store(4 << 20);
    let mut small = 0;
    while store.stats().gone(Gone::Space) == 0 {
        small += 1;
        store.insert(object(&format!("/{small}"), 0), None).expect("room");
    }
    let large = object("/large", 1_000_000);
    let mut tries = 0;
    while store.insert(large.clone(), None) == Err(Refused::Crowded) {
        tries += 1;
        assert!(store.stats().gone(Gone::Space) <= (tries * PER_INSERT) as u64 + 1);
        assert!(tries < 20);
    }
    assert!(tries >= 1);
    assert_eq!(store.stats().crowded, tries as u64);
    assert_eq!(found(&store, "/large").expect("there").body_len(), 1_000_000);
}

#[test]
fn resize_sheds_at_once_and_gives_memory_back() {
    let store = store(1 << 24);
    for n in 0..20_000 {
        store.insert(object(&format!("/{n}"), 100), None).expect("room");
    }
    let before = store.stats();
    store.resize(before.bytes / 10);
    let after = store.stats();
    assert!(after.bytes <= before.bytes / 10 && after.objects > 1_800, "{after:?}");
    assert_eq!(after.gone(Gone::Pressure), before.objects - after.objects);
    let left: Vec<u32> = (0..20_000).filter(|n| found(&store, &format!("/{n}")).is_some()).collect();
    assert_eq!(left.len() as u64, after.objects);
    assert!(left.iter().filter(|&&n| n > 15_000).count() > 1_700, "the newest stay");
    store.resize(0);
    assert_eq!((store.stats().objects, store.stats().bytes), (0, 0));
    assert_eq!(store.insert(object("/a", 0), None), Err(Refused::TooLarge));
    store.resize(1 << 20);
    store.insert(object("/a", 0), None).expect("room again");
}

#[test]
fn a_listing_has_every_object_that_stays() {
    let store = store(1 << 24);
    let vary = Vary::new(["cookie"]).expect("name");
    for n in 0..1000 {
        store.insert(object(&format!("/{n}"), 10), None).expect("room");
    }
    store.insert(head(b"/v", &vary.key(|_| None)), Some(&vary)).expect("room");
    found(&store, "/7");
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    let (mut cursor, mut pages) = (None, 0);
    loop {
        let (page, next) = store.page(cursor, 100);
        assert!(page.len() <= 100);
        seen.extend(page.into_iter().map(|listed| (listed.object.primary().to_vec(), listed.hits)));
        pages += 1;
        // Others come and go between two pages.
        store.remove(&store.key(format!("/{pages}").as_bytes()), Gone::Removed);
        store.insert(object(&format!("/new{pages}"), 10), None).expect("room");
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    let stayed = (pages + 1..1000).filter(|n| seen.contains_key(format!("/{n}").as_bytes())).count();
    assert_eq!(stayed, 999 - pages);
    assert!(seen.contains_key(&b"/v"[..]));
    assert!(pages <= 15);
    assert!(seen.get(&b"/7"[..]).is_none_or(|hits| *hits == 1));
}
