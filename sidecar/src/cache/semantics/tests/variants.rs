//! RFC 9111 section 4.1, RFC 9110 section 12.5.5.

use super::*;
use crate::cache::semantics::vary::{MOST_BYTES, MOST_FIELDS, TooLong, Unselectable, selecting, shown, variant};

fn names(values: &[&str]) -> Result<Vec<String>, Unselectable> {
    let lines: Vec<_> = values.iter().map(|value| ("vary", *value)).collect();
    selecting(&fields(&lines)).map(|names| names.iter().map(ToString::to_string).collect())
}

fn key(names: &[&str], request: Lines<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    variant(names.iter().map(|name| HeaderName::try_from(*name).unwrap()), &fields(request), &mut out).unwrap();
    out
}

fn same(name: &str, first: &[&str], second: &[&str]) -> bool {
    let of = |values: &[&str]| key(&[name], &values.iter().map(|value| (name, *value)).collect::<Vec<_>>());
    of(first) == of(second)
}

#[test]
fn rfc9111_4_1_a_star_never_matches_so_it_is_not_stored() {
    for lines in [&["*"][..], &["*, *"], &["*", "*"], &[", *"], &["", "*"], &["*, Foo"], &["Foo, *"], &["Foo", "Bar, *"]] {
        assert_eq!(names(lines), Err(Unselectable::Star), "{lines:?}");
    }
    assert_eq!(Exchange::control("max-age=60").with(&[("vary", "accept, *")]).refused(), NotStored::VaryStar);
}

#[test]
fn rfc9110_12_5_5_vary_is_a_list_of_field_names() {
    let table: [(&[&str], &[&str]); 6] = [
        (&[], &[]),
        (&[""], &[]),
        (&["Accept-Encoding"], &["accept-encoding"]),
        (&["accept-language, Accept-Encoding, ,ACCEPT-LANGUAGE"], &["accept-encoding", "accept-language"]),
        (&["b", "a"], &["a", "b"]),
        (&["Cookie"], &["cookie"]),
    ];
    for (lines, expected) in table {
        assert_eq!(names(lines).unwrap(), expected, "{lines:?}");
    }
    for odd in ["a b", "\"a\"", "a;b", "ü"] {
        assert_eq!(names(&[odd]), Err(Unselectable::Malformed), "{odd}: nobody knows what it depends on");
    }
    assert_eq!(Exchange::control("max-age=60").with(&[("vary", "a b")]).refused(), NotStored::Vary);
}

#[test]
fn fields_that_select_are_bounded() {
    let list = |count: usize| (0..count).map(|index| format!("x-{index}")).collect::<Vec<_>>().join(",");
    assert_eq!(names(&[&list(MOST_FIELDS)]).unwrap().len(), MOST_FIELDS);
    assert_eq!(names(&[&list(MOST_FIELDS + 1)]), Err(Unselectable::TooMany));
    assert_eq!(names(&[&"a,".repeat(10_000)]), Err(Unselectable::TooMany));
    let mut out = b"key".to_vec();
    let long = "x".repeat(MOST_BYTES);
    assert_eq!(variant([&HeaderName::from_static("a")], &fields(&[("a", &long)]), &mut out), Err(TooLong));
    assert_eq!(out, b"key", "and nothing of it is left");
}

#[test]
fn rfc9111_4_1_all_selecting_fields_have_to_match() {
    let original = [("foo", "1"), ("bar", "abc")];
    let of = |request: Lines<'_>| key(&["bar", "foo"], request) == key(&["bar", "foo"], &original);
    assert!(of(&[("bar", "abc"), ("foo", "1"), ("other", "x")]), "others don't matter");
    for request in [
        &[("foo", "2"), ("bar", "abc")][..],
        &[("foo", "1")],
        &[("bar", "abc")],
        &[],
        &[("foo", "abc"), ("bar", "1")],
        &[("foo", "1"), ("bar", "ABC")],
    ] {
        assert!(!of(request), "{request:?}");
    }
}

#[test]
fn rfc9111_4_1_an_absent_field_matches_only_an_absent_one() {
    assert_eq!(key(&["foo"], &[]), key(&["foo"], &[("bar", "1")]));
    assert_ne!(key(&["foo"], &[]), key(&["foo"], &[("foo", "")]), "an empty one is there");
    assert_ne!(key(&["accept-encoding"], &[]), key(&["accept-encoding"], &[("accept-encoding", "")]));
}

#[test]
fn rfc9111_4_1_values_of_different_fields_are_never_taken_for_each_other() {
    assert_ne!(key(&["a", "b"], &[("a", "1"), ("b", "")]), key(&["a", "b"], &[("a", ""), ("b", "1")]));
    assert_ne!(key(&["a", "b"], &[("a", "1")]), key(&["a", "b"], &[("b", "1")]));
}

#[test]
fn rfc9111_4_1_lines_are_combined_and_white_space_at_the_ends_is_dropped() {
    assert!(same("foo", &["1, 2"], &["1", "2"]));
    assert!(same("foo", &["  1\t"], &["1"]));
    assert!(!same("foo", &["1, 2"], &["2, 1"]), "the order of an unknown field may mean something");
    assert!(!same("foo", &["a"], &["A"]));
}

#[test]
fn rfc9111_4_1_accept_encoding_is_normalised() {
    for (first, second) in [
        ("gzip, br", "br,gzip"),
        ("gzip, br", "GZIP;q=1, br;q=1.000"),
        ("gzip;q=0.5", "gzip ; q=0.500"),
        ("gzip;q=0.5", "gzip;Q=.5"),
        ("x-gzip", "gzip"),
        ("gzip, gzip", "gzip"),
        ("gzip;q=0, *", "*,gzip;q=0.0"),
    ] {
        let expected = !second.contains("=.5");
        assert_eq!(same("accept-encoding", &[first], &[second]), expected, "{first} / {second}");
    }
    for (first, second) in [
        ("gzip", "br"),
        ("gzip", "gzip;q=0"),
        ("gzip;q=0.5", "gzip;q=0.6"),
        ("gzip, br", "gzip"),
        ("gzip", "gzip;q=2"),
        ("gzip", "gzip;x=1"),
        ("", "identity"),
    ] {
        assert!(!same("accept-encoding", &[first], &[second]), "{first} / {second}");
    }
}

#[test]
fn rfc9111_4_1_accept_language_is_normalised_and_keeps_its_order() {
    for (first, second) in [("en-GB, de;q=0.5", "EN-gb,de; q=0.50"), ("de;q=0.5, en", "en, de;q=0.5"), ("en", "en;q=1.0")] {
        assert!(same("accept-language", &[first], &[second]), "{first} / {second}");
    }
    for (first, second) in [("en, de", "de, en"), ("en, de;q=0.5", "en;q=0.5, de"), ("en", "en-GB")] {
        assert!(!same("accept-language", &[first], &[second]), "{first} / {second}");
    }
}

#[test]
fn lists_that_cannot_be_read_are_taken_as_they_are() {
    for (first, second) in
        [("gzip;q=1.001", "gzip; q=1.001"), ("a  b, c", "c, a  b"), (";q=1, c", "c, ;q=1"), ("a=\"b\", c", "c, a=\"b\"")]
    {
        assert!(same("accept-encoding", &[first], &[first]));
        assert!(!same("accept-encoding", &[first], &[second]), "{first} / {second}");
    }
    let list = |count| (0..count).map(|index| format!("c{index}")).collect::<Vec<_>>();
    let turned = |count| list(count).into_iter().rev().collect::<Vec<_>>().join(",");
    assert!(same("accept-encoding", &[&list(24).join(",")], &[&turned(24)]));
    assert!(!same("accept-encoding", &[&list(25).join(",")], &[&turned(25)]));
}

#[test]
fn lists_that_are_too_long_are_taken_as_they_are() {
    let list: Vec<_> = (0..100).map(|index| format!("c{index}")).collect();
    let mut reversed = list.clone();
    reversed.reverse();
    assert!(same("accept-encoding", &[&list.join(",")], &[&list.join(",")]));
    assert!(!same("accept-encoding", &[&list.join(",")], &[&reversed.join(",")]));
}

#[test]
fn variants_are_shown_as_people_write_them() {
    let names = ["accept-encoding", "accept-language", "x-a"];
    for (request, expected) in [
        (&[][..], [None, None, None]),
        (
            &[("accept-encoding", "GZIP, br;q=0.5"), ("accept-language", "de, en;q=0.25"), ("x-a", "")],
            [Some("br;q=0.5,gzip"), Some("de,en;q=0.25"), Some("")],
        ),
        (&[("accept-encoding", "br;q=0"), ("x-a", "b,c"), ("x-a", "d")], [Some("br;q=0"), None, Some("b,c, d")]),
    ] {
        let written = key(&names, request);
        let found = shown(names, &written);
        let expected: Vec<_> = names.into_iter().zip(expected.map(|value| value.map(ToOwned::to_owned))).collect();
        assert_eq!(found, expected);
        assert_eq!(shown(names, &written[..written.len() - 1]).len(), 2, "what is cut off is left out");
    }
}
