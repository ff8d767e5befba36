//! RFC 9110 sections 14, 15.3.7 and 17.15, RFC 9111 sections 3.3 and 3.4.

use super::*;
use crate::cache::semantics::{
    conditional::Answer,
    parts::{Content, ContentRange, MOST_PIECES, Pieces, Relation, Slice, may_be_joined, relation},
    range::{ByteRange, MOST_RANGES, is_single, multipart_type, part_head, parts_end, select, unsatisfied},
    validators::Validators,
};

/// The first and the last byte of a part.
type Part = (u64, u64);

fn bytes(first: u64, last: u64) -> ByteRange {
    ByteRange { first, last }
}

fn chosen(value: &str, length: u64) -> Answer {
    select([value.as_bytes()].into_iter(), length)
}

fn parts(ranges: &[(u64, u64)]) -> Answer {
    Answer::Parts(ranges.iter().map(|(first, last)| bytes(*first, *last)).collect())
}

#[test]
fn rfc9110_14_1_2_ranges_of_bytes_are_read() {
    let table = [
        ("bytes=0-499", (0, 499)),
        ("bytes=500-999", (500, 999)),
        ("bytes=-500", (9500, 9999)),
        ("bytes=9500-", (9500, 9999)),
        ("bytes=0-", (0, 9999)),
        ("bytes=0-0", (0, 0)),
        ("bytes=9999-9999", (9999, 9999)),
        ("bytes=-1", (9999, 9999)),
        ("bytes=-10000", (0, 9999)),
        ("bytes=-99999", (0, 9999)),
        ("bytes=0-99999", (0, 9999)),
        ("bytes=9000-10000", (9000, 9999)),
        ("bytes= 0-499", (0, 499)),
        ("Bytes=0-499", (0, 499)),
        ("bytes=0-499,", (0, 499)),
        ("bytes=00-0499", (0, 499)),
        ("bytes=0-99999999999999999999999999999", (0, 9999)),
        ("bytes=-99999999999999999999999999999", (0, 9999)),
    ];
    for (value, expected) in table {
        assert_eq!(chosen(value, 10_000), parts(&[expected]), "{value}");
        assert!(is_single([value.as_bytes()].into_iter()), "{value}");
    }
    for several in [&[&b"bytes=0-1,5-6"[..]][..], &[b"bytes=0-1", b"bytes=5-6"], &[b"bytes=a"], &[b"lines=0-1"], &[]] {
        assert!(!is_single(several.iter().copied()), "{several:?}");
    }
}

#[test]
fn rfc9110_14_2_what_is_no_set_of_ranges_is_answered_with_everything() {
    let table = [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-a",
        "bytes=5-4",
        "bytes=0-1,5-4",
        "bytes=0",
        "bytes=0--1",
        "bytes=+0-1",
        "bytes=0-1;x",
        "bytes:0-1",
        "lines=0-1",
        "none=0-1",
        "bytes=0-1 2-3",
        "=0-1",
    ];
    for value in table {
        assert_eq!(chosen(value, 100), Answer::Whole, "{value}");
    }
    assert_eq!(select([&b"bytes=0-1"[..], b"bytes=2-3"].into_iter(), 100), Answer::Whole, "two lines are none");
    assert_eq!(select(std::iter::empty(), 100), Answer::Whole);
}

#[test]
fn rfc9110_15_5_17_ranges_that_cannot_be_satisfied_are_told_the_length() {
    for value in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=100-,-0", "bytes=99999999999999999999-"] {
        assert_eq!(chosen(value, 100), Answer::Unsatisfiable, "{value}");
    }
    assert_eq!(chosen("bytes=100-,0-0", 100), parts(&[(0, 0)]), "one that can is enough");
    assert_eq!(unsatisfied(47_022), "bytes */47022");
}

#[test]
fn rfc9110_14_2_ranges_of_nothing_are_ignored() {
    for value in ["bytes=0-", "bytes=-5", "bytes=0-0", "bytes=-0"] {
        assert_eq!(chosen(value, 0), Answer::Whole, "{value}");
    }
}

#[test]
fn rfc9110_15_3_7_2_several_ranges_are_sent_in_their_order_and_joined_where_near() {
    let table: [(&str, &[(u64, u64)]); 11] = [
        ("bytes=89-99,0-9", &[(0, 99)]),
        ("bytes=90-99,0-9", &[(90, 99), (0, 9)]),
        ("bytes=0-0,-1", &[(0, 0), (9999, 9999)]),
        ("bytes= 0-999, 4500-5499, -1000", &[(0, 999), (4500, 5499), (9000, 9999)]),
        ("bytes=500-600,601-999", &[(500, 999)]),
        ("bytes=500-700,601-999", &[(500, 999)]),
        ("bytes=7000-7999,500-999", &[(7000, 7999), (500, 999)]),
        ("bytes=0-9,89-99", &[(0, 99)]),
        ("bytes=0-9,90-99", &[(0, 9), (90, 99)]),
        ("bytes=0-9,500-509,200-400,0-9999", &[(0, 9999)]),
        ("bytes=5000-5009,0-9,9000-,20-30", &[(5000, 5009), (0, 30), (9000, 9999)]),
    ];
    for (value, expected) in table {
        let found = chosen(value, 10_000);
        if value.ends_with("0-9999") {
            assert_eq!(found, Answer::Whole, "{value}: three overlap");
        } else {
            assert_eq!(found, parts(expected), "{value}");
        }
    }
    assert_eq!(chosen("bytes=0-9,100-109,10-99", 10_000), parts(&[(0, 109)]), "what has grown takes in its neighbours");
}

#[test]
fn rfc9110_17_15_sets_that_only_an_attacker_sends_are_answered_with_everything() {
    let set = |ranges: &mut dyn Iterator<Item = String>| format!("bytes={}", ranges.collect::<Vec<_>>().join(","));
    let far = |index: u64| format!("{}-{}", index * 1000, index * 1000 + 1);
    assert_ne!(chosen(&set(&mut (0..MOST_RANGES as u64).map(far)), 1 << 30), Answer::Whole);
    assert_eq!(chosen(&set(&mut (0..=MOST_RANGES as u64).map(far)), 1 << 30), Answer::Whole, "too many");
    assert_eq!(chosen(&set(&mut (0..10_000).map(|_| "0-".to_owned())), 1 << 30), Answer::Whole);
    assert_eq!(chosen("bytes=0-,0-,0-,0-", 1 << 30), Answer::Whole, "more than two overlap");
    assert_ne!(chosen("bytes=0-99,50-150", 1 << 30), Answer::Whole);
    for touching in ["bytes=0-9,9-18,18-27", "bytes=18-27,9-18,0-9"] {
        assert_eq!(chosen(touching, 1 << 30), Answer::Whole, "{touching}: by one byte");
    }
    assert_eq!(chosen("bytes=0-8,9-17,18-27", 1 << 30), parts(&[(0, 27)]));
    assert_eq!(chosen(&set(&mut (0..9).rev().map(far)), 1 << 30), Answer::Whole, "many and out of order");
    assert_ne!(chosen(&set(&mut (0..8).rev().map(far)), 1 << 30), Answer::Whole);
}

#[test]
fn rfc9110_14_4_content_range_is_written_and_read() {
    for (first, last, complete, text) in
        [(0, 499, 1234, "bytes 0-499/1234"), (734, 1233, 1234, "bytes 734-1233/1234"), (0, 0, 1, "bytes 0-0/1")]
    {
        assert_eq!(bytes(first, last).content_range(complete), text);
        let read = ContentRange::of(&fields(&[("content-range", text)]));
        assert_eq!(read, Some(ContentRange { range: bytes(first, last), complete }), "{text}");
    }
    let twice = fields(&[("content-range", "bytes 0-1/9"), ("content-range", "bytes 0-1/9")]);
    assert_eq!(ContentRange::of(&twice), None);
    for odd in [
        "",
        "bytes",
        "bytes 1-0/9",
        "bytes 0-9/9",
        "bytes 0-/9",
        "bytes -1-5/9",
        "bytes 0-1/99999999999999999999",
        "bytes=0-1/9",
        "items 0-1/9",
        "bytes 0-1/*",
    ] {
        assert_eq!(ContentRange::of(&fields(&[("content-range", odd)])), None, "{odd}");
    }
}

#[test]
fn rfc9110_14_6_several_parts_are_multipart_byteranges() {
    let (boundary, ranges) = ("THIS", [bytes(500, 501), bytes(7000, 7003)]);
    let mut whole = Vec::new();
    for (range, content) in ranges.iter().zip(["ab", "wxyz"]) {
        whole.extend(part_head(boundary, Some(b"application/pdf"), *range, 8000));
        whole.extend_from_slice(content.as_bytes());
    }
    whole.extend(parts_end(boundary));
    let expected = "\r\n--THIS\r\nContent-Type: application/pdf\r\nContent-Range: bytes 500-501/8000\r\n\r\nab\
                    \r\n--THIS\r\nContent-Type: application/pdf\r\nContent-Range: bytes 7000-7003/8000\r\n\r\nwxyz\r\n--THIS--\r\n";
    assert_eq!(std::str::from_utf8(&whole).unwrap(), expected);
    assert_eq!(multipart_type(boundary), "multipart/byteranges; boundary=THIS");
    let untyped = part_head(boundary, None, ranges[0], 8000);
    assert!(!String::from_utf8(untyped).unwrap().contains("Content-Type"));
}

#[test]
fn rfc9111_3_4_only_parts_with_the_same_strong_validator_are_joined() {
    const MODIFIED: &str = "Fri, 27 Nov 2026 12:00:00 GMT";
    let date = T0.seconds();
    let table: [(Lines<'_>, Lines<'_>, bool); 11] = [
        (&[("etag", "\"1"), ("last-modified", MODIFIED)], &[("last-modified", MODIFIED)], false),
        (&[("etag", "\"1\"")], &[("etag", "\"1\"")], true),
        (&[("etag", "\"1\"")], &[("etag", "\"2\"")], false),
        (&[("etag", "W/\"1\"")], &[("etag", "W/\"1\"")], false),
        (&[("etag", "\"1\"")], &[("etag", "W/\"1\"")], false),
        (&[("last-modified", MODIFIED)], &[("last-modified", MODIFIED)], true),
        (&[("last-modified", MODIFIED)], &[("last-modified", "Thu, 26 Nov 2026 12:00:00 GMT")], false),
        (&[("last-modified", DATE)], &[("last-modified", DATE)], false),
        (&[("etag", "\"1\""), ("last-modified", MODIFIED)], &[("etag", "\"2\""), ("last-modified", MODIFIED)], false),
        (&[("etag", "\"1\""), ("last-modified", MODIFIED)], &[("last-modified", MODIFIED)], false),
        (&[], &[], false),
    ];
    for (stored, newer, expected) in table {
        let (stored, newer) = (fields(stored), fields(newer));
        assert_eq!(
            may_be_joined((&Validators::of(&stored), date), (&Validators::of(&newer), date)),
            expected,
            "{stored:?} {newer:?}"
        );
    }
}

#[test]
fn rfc9111_3_3_a_part_answers_only_ranges_that_are_wholly_in_it() {
    let mut pieces = Pieces::default();
    assert!(pieces.add(bytes(10, 19)));
    let table = [((10, 19), true), ((12, 15), true), ((9, 19), false), ((10, 20), false), ((0, 99), false)];
    for ((first, last), expected) in table {
        assert_eq!(pieces.covers(bytes(first, last)), expected, "{first}-{last}");
        assert_eq!(pieces.serve(&parts(&[(first, last)]), 100), expected, "{first}-{last}");
    }
    assert!(!pieces.serve(&Answer::Whole, 100), "and never a request for everything");
    assert!(!pieces.serve(&parts(&[(10, 12), (30, 31)]), 100));
    assert!(pieces.serve(&Answer::NotModified, 100));
}

#[test]
fn rfc9111_3_4_pieces_are_joined_until_the_whole_is_there() {
    let mut pieces = Pieces::default();
    for (first, last) in [(50, 99), (0, 9), (20, 29), (10, 19)] {
        assert!(pieces.add(bytes(first, last)));
        assert!(!pieces.is_whole(100));
    }
    assert_eq!(pieces.ranges(), [bytes(0, 29), bytes(50, 99)]);
    assert!(pieces.add(bytes(25, 60)));
    assert!(pieces.is_whole(100) && pieces.ranges() == [bytes(0, 99)]);
    assert!(Pieces::default().is_whole(0), "of nothing, all is there");
}

#[test]
fn pieces_are_bounded() {
    let mut pieces = Pieces::default();
    for index in 0..MOST_PIECES as u64 {
        assert!(pieces.add(bytes(index * 10, index * 10 + 1)));
    }
    assert!(!pieces.add(bytes(100_000, 100_001)));
    assert!(pieces.add(bytes(2, 9)), "one that joins others is welcome");
    assert_eq!(pieces.ranges().len(), MOST_PIECES - 1);
}

/// Content with these pieces.
fn content(ranges: &[(u64, u64)], complete: u64) -> Content {
    let mut content = Content { pieces: Pieces::default(), complete };
    assert!(ranges.iter().all(|(first, last)| content.pieces.add(bytes(*first, *last))));
    content
}

#[test]
fn rfc9111_3_3_what_is_incomplete_is_recorded_as_that() {
    let noted = |content: &Content| {
        let mut head = fields(&[("etag", "\"1\""), ("content-range", "bytes 7-8/9")]);
        content.note(&mut head);
        head.get_all("content-range").iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let parts = content(&[(0, 9), (20, 29)], 100);
    assert_eq!(noted(&parts), ["bytes 0-9/100", "bytes 20-29/100"]);
    let lines = [("content-range", "bytes 0-9/100"), ("content-range", "bytes 20-29/100")];
    assert_eq!(Content::of(&fields(&lines)), Some(parts));
    assert!(noted(&Content::whole(100)).is_empty(), "and what is complete isn't");
    let odd: [Lines<'_>; 5] = [
        &[],
        &[("content-range", "bytes 0-9/100"), ("content-range", "bytes 20-29/101")],
        &[("content-range", "bytes 20-29/100"), ("content-range", "bytes 0-9/100")],
        &[("content-range", "bytes 0-9/100"), ("content-range", "bytes 10-19/100")],
        &[("content-range", "bytes 0-9/100"), ("content-range", "nonsense")],
    ];
    for lines in odd {
        assert_eq!(Content::of(&fields(lines)), None, "{lines:?}");
    }
    let many: Vec<_> = (0..=MOST_PIECES as u64).map(|index| bytes(index * 10, index * 10).content_range(10_000)).collect();
    let many: Vec<_> = many.iter().map(|value| ("content-range", value.as_str())).collect();
    assert!(Content::of(&fields(&many[1..])).is_some() && Content::of(&fields(&many)).is_none());
}

#[test]
fn rfc9111_3_4_parts_of_one_representation_are_joined_and_the_newer_of_two_stays() {
    use Relation::*;
    let meta = |status, since| {
        let meta = Exchange::control("max-age=60").meta();
        Meta { status, since, ..meta }
    };
    let tag: Lines<'_> = &[("etag", "\"1\"")];
    let other: Lines<'_> = &[("etag", "\"2\"")];
    let table: [(_, _, _); 7] = [
        ((tag, meta(200, 1), 100), (tag, meta(200, 2), 100), Same),
        ((tag, meta(200, 2), 100), (tag, meta(200, 1), 100), Same),
        ((tag, meta(200, 1), 100), (tag, meta(200, 2), 101), Replaces),
        ((tag, meta(200, 1), 100), (other, meta(200, 2), 100), Replaces),
        ((tag, meta(200, 2), 100), (other, meta(200, 1), 100), Outdated),
        ((tag, meta(404, 1), 100), (tag, meta(200, 2), 100), Replaces),
        ((&[], meta(200, 1), 100), (tag, meta(200, 2), 100), Replaces),
    ];
    for (stored, newer, expected) in table {
        let heads = (fields(stored.0), fields(newer.0));
        let found = relation((&heads.0, &stored.1, stored.2), (&heads.1, &newer.1, newer.2));
        assert_eq!(found, expected, "{stored:?} {newer:?}");
    }
}

#[test]
fn rfc9111_3_4_joined_content_is_what_is_stored_around_the_newer_part() {
    let stored = |from: u64, to: u64| Slice::Stored(from..to);
    let kept = content(&[(0, 9), (20, 29), (50, 99)], 200);
    type Row = (Part, &'static [Part], Vec<Slice>);
    let table: [Row; 6] = [
        ((10, 19), &[(0, 29), (50, 99)], vec![stored(0, 10), Slice::Newer, stored(10, 20), stored(20, 70)]),
        ((5, 24), &[(0, 29), (50, 99)], vec![stored(0, 5), Slice::Newer, stored(15, 20), stored(20, 70)]),
        ((0, 49), &[(0, 99)], vec![Slice::Newer, stored(20, 70)]),
        ((100, 199), &[(0, 9), (20, 29), (50, 199)], vec![stored(0, 10), stored(10, 20), stored(20, 70), Slice::Newer]),
        ((0, 199), &[(0, 199)], vec![Slice::Newer]),
        ((30, 35), &[(0, 9), (20, 35), (50, 99)], vec![stored(0, 10), stored(10, 20), Slice::Newer, stored(20, 70)]),
    ];
    for ((first, last), pieces, slices) in table {
        let joined = kept.joined(bytes(first, last), u64::MAX);
        assert_eq!(joined.content, content(pieces, 200), "{first}-{last}");
        assert_eq!((joined.slices, joined.dropped), (Some(slices), 0), "{first}-{last}");
        assert_eq!(joined.content.is_whole(), (first, last) == (0, 199));
    }
    let within = kept.joined(bytes(55, 60), u64::MAX);
    assert_eq!((within.content, within.slices), (kept, None), "what is stored has it already");
}

#[test]
fn rfc9110_15_3_7_3_parts_that_are_all_together_are_a_200_and_others_never_are() {
    let table: [(&[(u64, u64)], bool); 5] = [
        (&[(0, 99)], true),
        (&[(0, 49), (50, 99)], true),
        (&[(0, 98)], false),
        (&[(1, 99)], false),
        (&[(0, 49), (51, 99)], false),
    ];
    for (ranges, whole) in table {
        let content = content(ranges, 100);
        assert_eq!((content.is_whole(), content.pieces.serve(&Answer::Whole, 100)), (whole, whole), "{ranges:?}");
    }
}

#[test]
fn joined_content_is_bounded_by_leaving_out_what_is_far_away() {
    let kept = content(&[(0, 9), (20, 29), (50, 99)], 1000);
    type Row = (Part, u64, &'static [Part], u64);
    let table: [Row; 6] = [
        ((100, 109), 80, &[(0, 9), (20, 29), (50, 109)], 0),
        ((100, 109), 79, &[(1, 9), (20, 29), (50, 109)], 1),
        ((100, 109), 60, &[(50, 109)], 20),
        ((100, 109), 40, &[(70, 109)], 40),
        ((100, 109), 10, &[(100, 109)], 70),
        ((30, 39), 25, &[(20, 39), (50, 54)], 55),
    ];
    for ((first, last), most, pieces, dropped) in table {
        let joined = kept.joined(bytes(first, last), most);
        assert_eq!((joined.content, joined.dropped), (content(pieces, 1000), dropped), "{first}-{last} of {most}");
    }
    let many: Vec<_> = (0..MOST_PIECES as u64).map(|index| (index * 10, index * 10 + 1)).collect();
    let joined = content(&many, 100_000).joined(bytes(50_000, 50_001), u64::MAX);
    assert_eq!((joined.content, joined.dropped), (content(&[&many[1..], &[(50_000, 50_001)]].concat(), 100_000), 2));
}
