//! Keys that somebody chose to do harm.

use std::time::Instant;

use super::*;

const CAPACITY: u64 = 8 << 20;

/// A key as rules make them of a target that never comes again.
fn key(number: u64) -> Vec<u8> {
    format!("\0shop/catalogue/products\0http\0shop.example\0/products?page=1&_={number:016x}").into_bytes()
}

/// The smallest answer, of which a store holds the most.
fn small(number: u64) -> Object {
    Object::head(Parts { primary: &key(number), variant: &[], meta: &[], status: StatusCode::OK }, []).expect("fits")
}

#[test]
fn a_million_keys_are_bounded_in_bytes_and_time() {
    for (eviction, hundred_thousands) in [(Eviction::S3Fifo, 10), (Eviction::Sieve, 2)] {
        let store = Store::new(Limits { capacity: CAPACITY, variants: 64, eviction });
        let mut took = Vec::new();
        for part in 0..hundred_thousands {
            let begun = Instant::now();
            for number in part * 100_000..(part + 1) * 100_000 {
                store.insert(small(number), None).expect("room is made");
                if number % 25_000 == 0 {
                    assert!(store.stats().bytes <= CAPACITY);
                }
            }
            took.push(begun.elapsed());
        }
        let (stats, newest) = (store.stats(), hundred_thousands * 100_000 - 1);
        assert!(stats.bytes <= CAPACITY && stats.objects > CAPACITY / 1000, "{stats:?}");
        assert_eq!((stats.inserted, stats.crowded, stats.too_large), (newest + 1, 0, 0));
        assert!(store.get(&store.key(&key(newest))).is_some(), "the newest is there");
        // The store was full before the second part; from there on none takes longer than another but for chance.
        assert!(took.last() < Some(&(took[1] * 10)), "{eviction:?}: {took:?}");
    }
}

#[test]
fn flood_of_keys_leaves_what_is_asked_for() {
    let store = Store::new(Limits { capacity: CAPACITY, variants: 64, eviction: Eviction::S3Fifo });
    store.insert(object("/popular", 1000), None).expect("room");
    for number in 0..100_000 {
        store.insert(small(number), None).expect("room is made");
        if number % 1000 == 0 {
            assert!(found(&store, "/popular").is_some(), "{number}");
        }
    }
}

#[test]
fn targets_with_variants_are_bounded_too() {
    let store = Store::new(Limits { capacity: CAPACITY, variants: 64, eviction: Eviction::S3Fifo });
    let vary = Vary::new(["accept-language"]).expect("a name");
    for number in 0..200_000_u64 {
        let variant = vary.key(|_| Some(number.to_le_bytes().to_vec().into()));
        store.insert(head(&key(number / 2), &variant), Some(&vary)).expect("room is made");
        if number % 10_000 == 0 {
            let stats = store.stats();
            assert!(stats.bytes <= CAPACITY, "{stats:?}");
        }
    }
    let stats = store.stats();
    assert!(stats.bytes <= CAPACITY && stats.markers <= stats.bytes / 100, "{stats:?}");
}

#[test]
fn variants_of_one_target_are_bounded_whatever_is_asked_for_meanwhile() {
    let store = Store::new(Limits { capacity: CAPACITY, variants: 64, eviction: Eviction::S3Fifo });
    let vary = Vary::new(["x-v"]).expect("a name");
    store.insert(object("/other", 10), None).expect("room");
    for number in 0..10_000_u32 {
        let variant = vary.key(|_| Some(number.to_le_bytes().to_vec().into()));
        store.insert(head(b"/a", &variant), Some(&vary)).expect("room");
        assert!(matches!(store.get(&store.key(b"/a")), Some(Found::Vary(_))));
    }
    assert_eq!((store.stats().objects, store.stats().markers), (64 + 1, 1));
    assert!(found(&store, "/other").is_some());
    assert_eq!(store.remove(&store.key(b"/a"), Gone::Removed), 65);
}

#[test]
fn keys_that_are_the_same_when_joined_are_two() {
    let store = store(1 << 20);
    let vary = Vary::new(["a"]).expect("a name");
    let (primary, variant) = (&b"/a"[..], &b"bc"[..]);
    store.insert(head(primary, variant).with_body(&[body_of(1)]), Some(&vary)).expect("room");
    let crafted = [primary, variant, &primary.len().to_ne_bytes()].concat();
    for (other, length) in [(&b"/abc"[..], 2), (&crafted, 3)] {
        assert!(store.get(&store.key(other)).is_none(), "{other:?}");
        store.insert(head(other, &[]).with_body(&[body_of(length)]), None).expect("room");
        let Some(Found::Object(found)) = store.get(&store.key(other)) else { panic!("{other:?} is there") };
        assert_eq!(found.body_len(), length as u64);
        assert_ne!(store.key(other).hash, store.variant(&store.key(primary), variant).hash);
    }
    let Some(Found::Object(found)) = store.get(&store.variant(&store.key(primary), variant)) else { panic!("it stays") };
    assert_eq!(found.body_len(), 1);
}
