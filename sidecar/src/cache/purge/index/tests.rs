use proptest::prelude::*;

use super::{super::log::PurgeId, *};

fn generation(number: u128) -> Generation {
    Generation(number)
}

fn at(number: u128, at: u64) -> Position {
    Position { generation: generation(number), at }
}

fn index(cut_off: CutOff, capacity: usize) -> Index {
    let mut index = Index::new(cut_off, capacity);
    index.begin(generation(1), true);
    index
}

fn purge(index: &mut Index, position: Position, strength: Strength, what: What) {
    index.apply(position, &Entry { id: PurgeId(0), what, strength });
}

fn hard(index: &mut Index, place: u64, what: What) {
    purge(index, at(1, place), Strength::Hard, what);
}

/// What becomes of an object with a tag `news`, of the policy `shop/pages`.
fn verdict(index: &Index, stamp: Stamp, url: &str) -> Verdict {
    let names = [index.naming().tag("news"), index.naming().policy("shop/pages")];
    index.verdict(&Object { stamp, url, names: &names })
}

#[test]
fn each_kind_names_its_objects() {
    let page = "shop.example/news/1?page=2";
    let cases = [
        (What::Everything, true),
        (What::tag("news").unwrap(), true),
        (What::tag("new").unwrap(), false),
        (What::tag("shop/pages").unwrap(), false),
        (What::policy("shop/pages").unwrap(), true),
        (What::policy("news").unwrap(), false),
        (What::url(page).unwrap(), true),
        (What::url("shop.example/news/1").unwrap(), false),
        (What::url("news").unwrap(), false),
        (What::prefix(page).unwrap(), true),
        (What::prefix("shop.example/news/").unwrap(), true),
        (What::prefix("shop.example/ne").unwrap(), true),
        (What::prefix("shop.example/news/2").unwrap(), false),
        (What::prefix("shop.example/news/1?page=23").unwrap(), false),
    ];
    for (what, named) in cases {
        for (strength, purged) in [(Strength::Hard, Verdict::Hard), (Strength::Soft, Verdict::Soft)] {
            let mut index = index(CutOff::Revalidate, 10);
            index.advance(5);
            let before = index.stamp();
            purge(&mut index, at(1, 7), strength, what.clone());
            assert_eq!(verdict(&index, before, page), if named { purged } else { Verdict::Fresh }, "{what:?}");
            assert_eq!(verdict(&index, index.stamp(), page), Verdict::Fresh, "{what:?}: fetched after it");
        }
    }
}

#[test]
fn a_soft_purge_leaves_a_hard_one_as_it_is() {
    let mut index = index(CutOff::Revalidate, 10);
    let first = index.stamp();
    hard(&mut index, 1, What::tag("news").unwrap());
    let second = index.stamp();
    purge(&mut index, at(1, 2), Strength::Soft, What::tag("news").unwrap());
    assert_eq!(verdict(&index, first, "x"), Verdict::Hard);
    assert_eq!(verdict(&index, second, "x"), Verdict::Soft);
    assert_eq!(verdict(&index, index.stamp(), "x"), Verdict::Fresh);
}

#[test]
fn what_was_folded_away_leaves_nothing_fresh() {
    let mut index = index(CutOff::Serve, 3);
    let before = index.stamp();
    for place in 1..=4 {
        hard(&mut index, place, What::tag(&format!("t{place}")).unwrap());
    }
    assert_eq!((index.len(), index.folded()), (3, 1));
    assert_eq!(verdict(&index, before, "x"), Verdict::Unknown, "older than the first, which was folded away");
    assert_eq!(verdict(&index, Stamp::new(1, 1), "x"), Verdict::Fresh, "the first can't have been meant for it");
}

#[test]
fn a_name_purged_often_pushes_out_no_other() {
    let mut index = index(CutOff::Serve, 3);
    let before = index.stamp();
    hard(&mut index, 1, What::tag("other").unwrap());
    for place in 2..100 {
        hard(&mut index, place, What::tag("often").unwrap());
    }
    assert_eq!((index.len(), index.folded()), (1, 1), "the other was folded once, the repeated one never");
    assert_eq!(verdict(&index, Stamp::new(1, 1), "x"), Verdict::Fresh);
    assert_eq!(verdict(&index, before, "x"), Verdict::Unknown);
    assert!(index.applied.len() <= 3);
}

#[test]
fn everything_takes_the_place_of_all_names() {
    let mut index = index(CutOff::Serve, 10);
    hard(&mut index, 1, What::prefix("shop.example/").unwrap());
    let between = index.stamp();
    hard(&mut index, 2, What::Everything);
    assert_eq!(index.len(), 0);
    assert_eq!(verdict(&index, between, "x"), Verdict::Hard);
    assert_eq!(verdict(&index, index.stamp(), "x"), Verdict::Fresh);
}

#[test]
fn a_gap_is_what_the_rule_makes_of_it() {
    for (cut_off, expected) in [(CutOff::Revalidate, Verdict::Unknown), (CutOff::Serve, Verdict::Soft)] {
        let mut index = index(cut_off, 10);
        let before = index.stamp();
        index.begin(generation(2), false);
        assert_eq!(verdict(&index, before, "x"), expected);
        assert_eq!(verdict(&index, index.stamp(), "x"), Verdict::Fresh);
        index.lost_before(9);
        assert_eq!(verdict(&index, Stamp::new(2, 8), "x"), expected);
        assert_eq!(verdict(&index, Stamp::new(2, 9), "x"), Verdict::Fresh);
    }
}

#[test]
fn places_of_another_generation_are_earlier_however_late() {
    let mut index = index(CutOff::Revalidate, 10);
    index.advance(1_000_000);
    let before = index.stamp();
    index.begin(generation(2), true);
    assert_eq!(verdict(&index, before, "x"), Verdict::Fresh, "the pod lacks nothing");
    purge(&mut index, at(2, 5), Strength::Hard, What::Everything);
    assert_eq!(verdict(&index, before, "x"), Verdict::Hard);
}

#[test]
fn purges_of_an_ended_generation_count_once_if_they_were_seen() {
    let mut index = index(CutOff::Revalidate, 10);
    hard(&mut index, 5, What::tag("news").unwrap());
    let seen = index.stamp();
    index.begin(generation(2), true);
    hard(&mut index, 5, What::tag("news").unwrap());
    assert_eq!(verdict(&index, seen, "x"), Verdict::Fresh, "it was fetched after that purge");
    hard(&mut index, 6, What::tag("news").unwrap());
    assert_eq!(verdict(&index, seen, "x"), Verdict::Hard, "this one is new");
    assert_eq!(verdict(&index, index.stamp(), "x"), Verdict::Fresh, "and was made before the generation began");
}

#[test]
fn positions_and_stamps_translate() {
    let mut index = index(CutOff::Revalidate, 10);
    index.advance((1 << 40) + 7);
    let old = index.stamp();
    index.begin(generation(2), true);
    index.advance(3);
    for stamp in [old, index.stamp(), Stamp::new(2, LAST_PLACE)] {
        assert_eq!(index.stamp_at(index.position(stamp).unwrap()), stamp);
    }
    assert_eq!(index.position(old), Some(at(1, (1 << 40) + 7)));
    assert_eq!(index.stamp_at(at(9, 1)), Stamp::default(), "of a generation that nobody here knows");
    assert_eq!(index.stamp_at(at(2, LAST_PLACE + 1)), Stamp::default(), "of no place");
    assert_eq!(index.position(Stamp::default()), None);
}

#[test]
fn long_forgotten_generations_are_unknown_but_stay_in_order() {
    let mut index = index(CutOff::Revalidate, 10);
    let first = index.stamp();
    for number in 2..200 {
        index.begin(generation(number), true);
    }
    assert_eq!(index.stamp_at(at(1, 0)), Stamp::default());
    assert!(first < index.stamp());
    purge(&mut index, at(199, 1), Strength::Hard, What::Everything);
    assert_eq!(verdict(&index, first, "x"), Verdict::Hard);
}

#[test]
fn prefixes_of_too_many_lengths_are_cut_short() {
    let mut index = index(CutOff::Revalidate, 10_000);
    let before = index.stamp();
    let url = format!("s/{}", "x".repeat(1000));
    for length in 1..=300 {
        hard(&mut index, length as u64, What::prefix(&url[..length * 2]).unwrap());
    }
    assert!(index.lengths.len() <= LENGTHS + 1);
    assert_eq!(verdict(&index, before, &url), Verdict::Hard);
    assert_eq!(verdict(&index, Stamp::new(1, 299), &url), Verdict::Hard, "the last one was cut, and names more");
    assert_eq!(verdict(&index, before, "t/"), Verdict::Fresh);
}

#[test]
fn lengths_go_with_their_last_prefix() {
    let mut index = index(CutOff::Revalidate, 2);
    hard(&mut index, 1, What::prefix("abc").unwrap());
    hard(&mut index, 2, What::prefix("abc").unwrap());
    hard(&mut index, 3, What::prefix("abcd").unwrap());
    hard(&mut index, 4, What::tag("t").unwrap());
    let lengths: Vec<_> = index.lengths.iter().map(|length| (length.bytes, length.count)).collect();
    assert_eq!(lengths, [(4, 1)]);
}

#[derive(Clone, Debug)]
enum Act {
    Purge(What, Strength),
    Fetch { url: String, tags: Vec<String>, policy: String },
    Generation { lacks_nothing: bool },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let url = || "[ab]{1,3}/[ab]{0,9}";
    let word = || "[ab]{1,2}";
    let what = prop_oneof![
        1 => Just(What::Everything),
        4 => word().prop_map(|word| What::policy(&word).unwrap()),
        6 => word().prop_map(|word| What::tag(&word).unwrap()),
        6 => "[ab]{1,3}(/[ab]{0,9})?".prop_map(|prefix| What::prefix(&prefix).unwrap()),
        6 => url().prop_map(|url| What::url(&url).unwrap()),
    ];
    let strength = prop_oneof![Just(Strength::Soft), Just(Strength::Hard)];
    let act = prop_oneof![
        6 => (what, strength).prop_map(|(what, strength)| Act::Purge(what, strength)),
        6 => (url(), proptest::collection::vec(word(), 0..4), word()).prop_map(|(url, tags, policy)| Act::Fetch { url, tags, policy }),
        1 => any::<bool>().prop_map(|lacks_nothing| Act::Generation { lacks_nothing }),
    ];
    proptest::collection::vec(act, 0..80)
}

/// An object, and the worst that was done to it since.
struct Expected {
    stamp: Stamp,
    url: String,
    tags: Vec<String>,
    policy: String,
    verdict: Verdict,
}

impl Expected {
    fn is_named(&self, what: &What) -> bool {
        match what {
            What::Everything => true,
            What::Policy(name) => *name.as_str() == self.policy,
            What::Tag(tag) => self.tags.iter().any(|held| held == tag.as_str()),
            What::Prefix(prefix) => self.url.starts_with(prefix.as_str()),
            What::Url(url) => *url.as_str() == self.url,
        }
    }
}

/// Does the acts, and asks after each object. `check` gets what the index says and what it should.
fn play(acts: &[Act], capacity: usize, check: impl Fn(Verdict, Verdict)) {
    let mut index = index(CutOff::Revalidate, capacity);
    let mut objects: Vec<Expected> = Vec::new();
    let mut number = 1;
    for (place, act) in acts.iter().enumerate() {
        match act {
            Act::Purge(what, strength) => {
                purge(&mut index, at(number, place as u64 + 1), *strength, what.clone());
                let verdict = if *strength == Strength::Hard { Verdict::Hard } else { Verdict::Soft };
                objects
                    .iter_mut()
                    .filter(|object| object.is_named(what))
                    .for_each(|object| object.verdict = object.verdict.max(verdict));
            }
            Act::Fetch { url, tags, policy } => {
                let (url, tags, policy) = (url.clone(), tags.clone(), policy.clone());
                objects.push(Expected { stamp: index.stamp(), url, tags, policy, verdict: Verdict::Fresh });
            }
            Act::Generation { lacks_nothing } => {
                number += 1;
                index.begin(generation(number), *lacks_nothing);
                let verdict = if *lacks_nothing { Verdict::Fresh } else { Verdict::Unknown };
                objects.iter_mut().for_each(|object| object.verdict = object.verdict.max(verdict));
            }
        }
    }
    for object in &objects {
        let naming = index.naming();
        let mut names: Vec<Name> = object.tags.iter().map(|tag| naming.tag(tag)).collect();
        names.push(naming.policy(&object.policy));
        check(index.verdict(&Object { stamp: object.stamp, url: &object.url, names: &names }), object.verdict);
    }
}

proptest! {
    #[test]
    fn an_index_says_what_a_walk_over_all_objects_would(acts in acts()) {
        play(&acts, 1000, |said, expected| assert_eq!(said, expected));
    }

    #[test]
    fn a_small_index_never_says_fresh_of_what_was_purged(acts in acts(), capacity in 1..8_usize) {
        play(&acts, capacity, |said, expected| {
            // What was folded away is unknown, be it soft or hard.
            assert!(said >= expected || (expected == Verdict::Hard && said == Verdict::Unknown), "{said:?} {expected:?}");
        });
    }
}

/// `fetchr-bench cache` shows its figures.
#[test]
#[ignore = "a measurement"]
fn a_lookup_is_quick_however_much_is_purged() {
    const OBJECTS: usize = 1_000_000;
    let mut index = index(CutOff::Revalidate, CAPACITY);
    index.advance(1);
    let (stamp, naming) = (index.stamp(), index.naming());
    let objects: Vec<(String, [Name; 4])> = (0..OBJECTS)
        .map(|object| {
            let tags = [object % 1000, object % 997 + 1000, object].map(|tag| naming.tag(&format!("tag-{tag}")));
            (
                format!("shop.example/products/{}/{object}?page=1", object % 50),
                [tags[0], tags[1], tags[2], naming.policy("shop/pages")],
            )
        })
        .collect();
    let ask = |index: &Index, what: &str, stamp: Stamp| {
        let (mut verdicts, mut took) = ([0; 4], std::time::Duration::MAX);
        // Some of them often: a request has touched its object before it asks. The best round, for the machine has other work.
        let some: Vec<_> = objects.iter().step_by(100).collect();
        for _ in 0..100 {
            let begun = std::time::Instant::now();
            for (url, names) in &some {
                verdicts[index.verdict(&Object { stamp, url, names }) as usize] += 1;
            }
            took = took.min(begun.elapsed() / some.len() as u32);
        }
        println!("measured: lookup, {what}: {took:?}");
        assert!(took < std::time::Duration::from_micros(2));
    };
    ask(&index, "nothing purged", stamp);
    let begun = std::time::Instant::now();
    hard(&mut index, 2, What::tag("tag-7").unwrap());
    println!("measured: purge of one tag among {OBJECTS} objects, in the index: {:?}", begun.elapsed());
    ask(&index, "one tag purged", stamp);
    for place in 3..90_003 {
        let what = match place % 9 {
            0 => What::prefix(&format!("shop.example/{place}/")),
            1..4 => What::url(&format!("shop.example/products/{}/{place}?page=2", place % 50)),
            4 => What::policy(&format!("shop/other-{place}")),
            _ => What::tag(&format!("none-{place}")),
        };
        hard(&mut index, place, what.unwrap());
    }
    ask(&index, "90,000 purged, objects older", stamp);
    ask(&index, "90,000 purged, objects newer", index.stamp());
    println!(
        "measured: bytes of tables after 90,000 purges: {}",
        index.named.capacity() * 33 + index.applied.capacity() * size_of::<Applied>()
    );
}
