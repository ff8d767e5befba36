//! RFC 9110 sections 14, 15.3.7 and 17.15, RFC 9111 sections 3.3 and 3.4.

use super::*;
use crate::cache::semantics::{
    conditional::Answer,
    parts::{ContentRange, MOST_PIECES, Pieces, may_be_joined},
    range::{ByteRange, MOST_RANGES, multipart_length, multipart_type, part_head, parts_end, select, single, unsatisfied},
    validators::Validators,
};

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
        assert_eq!(single([value.as_bytes()].into_iter(), 10_000), Some(bytes(expected.0, expected.1)), "{value}");
    }
    assert_eq!(single([&b"bytes=0-1,5-6"[..]].into_iter(), 10), None);
    assert_eq!(single([&b"bytes=10-"[..]].into_iter(), 10), None);
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
    assert_eq!(multipart_length(boundary, Some(b"application/pdf"), &ranges, 8000), whole.len() as u64);
    assert_eq!(multipart_type(boundary), "multipart/byteranges; boundary=THIS");
    let untyped = part_head(boundary, None, ranges[0], 8000);
    assert!(!String::from_utf8(untyped).unwrap().contains("Content-Type"));
    assert_eq!(multipart_length(boundary, None, &[bytes(0, u64::MAX)], u64::MAX), u64::MAX, "no length overflows");
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
    let table = [
        ((0, 99), Some((30, 49))),
        ((0, 29), None),
        ((25, 35), Some((30, 35))),
        ((60, 70), None),
        ((40, 45), Some((40, 45))),
        ((90, 120), Some((100, 120))),
    ];
    for ((first, last), expected) in table {
        assert_eq!(pieces.missing(bytes(first, last)).map(|gap| (gap.first, gap.last)), expected, "{first}-{last}");
    }
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
