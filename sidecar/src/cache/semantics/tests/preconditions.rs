//! RFC 9110 sections 8.8, 13, 15.4.5, RFC 9111 section 4.3.2.

use super::*;
use crate::cache::semantics::{
    conditional::{Answer, answer, in_not_modified, in_parts},
    range::ByteRange,
    validators::{EntityTag, Validators, tags},
};

const MODIFIED: &str = "Fri, 27 Nov 2026 12:00:00 GMT";
const LATER: &str = "Fri, 27 Nov 2026 12:00:01 GMT";
const EARLIER: &str = "Fri, 27 Nov 2026 11:59:59 GMT";

/// What a stored response of 100 bytes with these validators answers.
fn answered(method: &str, request: Lines<'_>, stored: Lines<'_>, status: u16) -> Answer {
    let exchange = Exchange::get(stored).with(&[("cache-control", "max-age=60")]).status(status);
    let request = fields(request);
    let asks = Asks::of(&Method::from_bytes(method.as_bytes()).unwrap(), &request, false);
    answer(&asks, &request, &exchange.meta(), &Validators::of(&exchange.response), Some(100))
}

fn get(request: Lines<'_>, stored: Lines<'_>) -> Answer {
    answered("GET", request, stored, 200)
}

fn part(first: u64, last: u64) -> Answer {
    Answer::Parts([ByteRange { first, last }].into_iter().collect())
}

#[test]
fn rfc9110_8_8_3_2_entity_tags_are_compared_strongly_and_weakly() {
    let table = [
        ("W/\"1\"", "W/\"1\"", false, true),
        ("W/\"1\"", "W/\"2\"", false, false),
        ("W/\"1\"", "\"1\"", false, true),
        ("\"1\"", "\"1\"", true, true),
        ("\"1\"", "\"2\"", false, false),
        ("\"\"", "\"\"", true, true),
        ("1", "1", false, true),
        ("1", "\"1\"", false, false),
        ("\"a\\\\\"", "\"a\\\\\"", true, true),
        ("\"a\"", "\"A\"", false, false),
    ];
    for (first, second, strong, weak) in table {
        let (one, two) = (EntityTag::parse(first.as_bytes()).unwrap(), EntityTag::parse(second.as_bytes()).unwrap());
        assert_eq!((one.is_strongly(two), one.is_weakly(two)), (strong, weak), "{first} {second}");
    }
    for odd in ["", "\"a", "\"a\"b", "a\"b\"", "W/", "\"a\", \"b\"", "a, b"] {
        assert!(EntityTag::parse(odd.as_bytes()).is_none() || odd == "W/", "{odd}");
    }
}

#[test]
fn rfc9110_13_1_2_lists_of_tags_are_read() {
    let table: [(&str, usize); 9] = [
        ("\"a\"", 1),
        ("\"a\", W/\"b\" ,\"c,d\"", 3),
        (", ,\"a\",,", 1),
        ("a, b", 2),
        ("", 0),
        ("\"a", 0),
        ("\"a\" \"b\"", 0),
        ("\"a\", \"b", 1),
        ("w/\"a\"", 0),
    ];
    for (line, expected) in table {
        assert_eq!(tags(line.as_bytes()).count(), expected, "{line}");
    }
}

#[test]
fn rfc9110_13_1_2_if_none_match_is_false_if_a_tag_matches_weakly() {
    let table = [
        ("\"1\"", "\"1\"", true),
        ("W/\"1\"", "\"1\"", true),
        ("\"1\"", "W/\"1\"", true),
        ("\"0\", \"1\"", "\"1\"", true),
        ("\"0\",W/\"1\"", "\"1\"", true),
        ("*", "\"1\"", true),
        (" * ", "\"1\"", true),
        ("\"2\"", "\"1\"", false),
        ("\"*\"", "\"1\"", false),
        ("", "\"1\"", false),
        ("\"1", "\"1\"", false),
    ];
    for (theirs, ours, matches) in table {
        let expected = if matches { Answer::NotModified } else { Answer::Whole };
        assert_eq!(get(&[("if-none-match", theirs)], &[("etag", ours)]), expected, "{theirs} {ours}");
        assert_eq!(answered("HEAD", &[("if-none-match", theirs)], &[("etag", ours)], 200), expected, "HEAD {theirs} {ours}");
    }
    assert_eq!(get(&[("if-none-match", "*")], &[]), Answer::NotModified, "there is a representation");
    assert_eq!(get(&[("if-none-match", "\"1\"")], &[]), Answer::Whole);
    assert_eq!(get(&[("if-none-match", "\"0\""), ("if-none-match", "\"1\"")], &[("etag", "\"1\"")]), Answer::NotModified);
    assert_eq!(get(&[("if-none-match", "\"1\"")], &[("etag", "\"1\""), ("etag", "\"2\"")]), Answer::Whole, "which one is it?");
}

#[test]
fn rfc9110_13_1_3_if_modified_since_is_false_if_nothing_changed_since() {
    let table = [
        (MODIFIED, true),
        (LATER, true),
        (DATE, true),
        ("Friday, 27-Nov-26 12:00:00 GMT", true),
        ("Fri Nov 27 12:00:00 2026", true),
        (EARLIER, false),
        ("yesterday", false),
        ("0", false),
        ("Fri, 27 Nov 2026 12:00:00 UTC", false),
    ];
    for (since, unmodified) in table {
        let expected = if unmodified { Answer::NotModified } else { Answer::Whole };
        assert_eq!(get(&[("if-modified-since", since)], &[("last-modified", MODIFIED)]), expected, "{since}");
        assert_eq!(answered("HEAD", &[("if-modified-since", since)], &[("last-modified", MODIFIED)], 200), expected, "{since}");
    }
    let two = [("if-modified-since", DATE), ("if-modified-since", DATE)];
    assert_eq!(get(&two, &[("last-modified", MODIFIED)]), Answer::Whole, "more than one is none");
}

#[test]
fn rfc9111_4_3_2_without_last_modified_date_is_compared() {
    for (since, expected) in [(DATE, Answer::NotModified), (MODIFIED, Answer::Whole)] {
        assert_eq!(get(&[("if-modified-since", since)], &[]), expected, "{since}");
        assert_eq!(get(&[("if-modified-since", since)], &[("last-modified", "x")]), expected, "{since}");
    }
    let undated = Exchange::control("max-age=60").without("date");
    let request = fields(&[("if-modified-since", DATE)]);
    let asks = Asks::of(&Method::GET, &request, false);
    let found = answer(&asks, &request, &undated.meta(), &Validators::of(&undated.response), None);
    assert_eq!(found, Answer::NotModified, "or when it was received");
}

#[test]
fn rfc9110_13_2_2_if_none_match_is_judged_before_and_instead_of_if_modified_since() {
    let stored = [("etag", "\"1\""), ("last-modified", MODIFIED)];
    let table = [
        ("\"1\"", EARLIER, Answer::NotModified),
        ("\"2\"", LATER, Answer::Whole),
        ("\"1\"", LATER, Answer::NotModified),
        ("\"2\"", EARLIER, Answer::Whole),
    ];
    for (tag, since, expected) in table {
        assert_eq!(get(&[("if-none-match", tag), ("if-modified-since", since)], &stored), expected, "{tag} {since}");
    }
}

#[test]
fn rfc9110_13_2_1_only_what_succeeds_is_conditional() {
    let request = [("if-none-match", "\"1\""), ("range", "bytes=0-9")];
    for status in [301, 302, 404, 410, 500] {
        assert_eq!(answered("GET", &request, &[("etag", "\"1\"")], status), Answer::Whole, "{status}");
    }
    for status in [200, 203, 204] {
        assert_eq!(answered("GET", &request, &[("etag", "\"1\"")], status), Answer::NotModified, "{status}");
    }
}

#[test]
fn rfc9110_13_1_5_if_range_needs_the_very_same_representation() {
    let stored = [("etag", "\"1\""), ("last-modified", MODIFIED)];
    let table = [
        ("\"1\"", true),
        ("W/\"1\"", false),
        ("\"2\"", false),
        (MODIFIED, true),
        ("Friday, 27-Nov-26 12:00:00 GMT", true),
        (EARLIER, false),
        (LATER, false),
        ("x", false),
        ("", false),
        ("\"1\", \"2\"", false),
    ];
    for (validator, same) in table {
        let expected = if same { part(0, 9) } else { Answer::Whole };
        assert_eq!(get(&[("range", "bytes=0-9"), ("if-range", validator)], &stored), expected, "{validator}");
        assert_eq!(get(&[("if-range", validator)], &stored), Answer::Whole, "{validator}: without Range it is ignored");
    }
    let weak = [("etag", "W/\"1\"")];
    assert_eq!(get(&[("range", "bytes=0-9"), ("if-range", "\"1\"")], &weak), Answer::Whole);
    let two = [("range", "bytes=0-9"), ("if-range", "\"1\""), ("if-range", "\"1\"")];
    assert_eq!(get(&two, &stored), Answer::Whole);
}

#[test]
fn rfc9110_8_8_2_2_a_date_is_a_strong_validator_a_second_before_date() {
    let stale = [("last-modified", DATE)];
    assert_eq!(get(&[("range", "bytes=0-9"), ("if-range", DATE)], &stale), Answer::Whole, "it may have changed in that second");
    let before = [("last-modified", "Sat, 28 Nov 2026 11:59:59 GMT")];
    assert_eq!(get(&[("range", "bytes=0-9"), ("if-range", "Sat, 28 Nov 2026 11:59:59 GMT")], &before), part(0, 9));
}

#[test]
fn rfc9110_13_2_2_if_range_and_range_come_last_and_for_get_alone() {
    let stored = [("etag", "\"1\"")];
    let both = [("if-none-match", "\"1\""), ("range", "bytes=0-9"), ("if-range", "\"1\"")];
    assert_eq!(get(&both, &stored), Answer::NotModified);
    let other = [("if-none-match", "\"2\""), ("range", "bytes=0-9"), ("if-range", "\"1\"")];
    assert_eq!(get(&other, &stored), part(0, 9));
    assert_eq!(answered("HEAD", &[("range", "bytes=0-9")], &stored, 200), Answer::Whole);
    assert_eq!(answered("GET", &[("range", "bytes=0-9")], &stored, 203), Answer::Whole, "a range is one of a 200");
}

#[test]
fn rfc9110_15_4_5_a_304_has_what_updates_a_copy_and_nothing_of_the_content() {
    let name = HeaderName::from_static;
    let tagged = Validators { etag: Some(b"\"1\""), last_modified: None };
    for kept in [
        "cache-control",
        "content-location",
        "date",
        "etag",
        "expires",
        "vary",
        "cdn-cache-control",
        "x-other",
        "access-control-allow-origin",
        "cache-status",
    ] {
        assert!(in_not_modified(&name(kept), &tagged), "{kept}");
    }
    for dropped in ["content-type", "content-length", "content-encoding", "content-language", "content-range", "last-modified"] {
        assert!(!in_not_modified(&name(dropped), &tagged), "{dropped}");
    }
    assert!(in_not_modified(&name("last-modified"), &Validators::default()), "there is no better one");
}

#[test]
fn rfc9110_15_3_7_a_206_has_all_fields_but_those_of_the_whole() {
    let name = HeaderName::from_static;
    for kept in
        ["date", "cache-control", "etag", "expires", "content-location", "vary", "content-encoding", "last-modified", "x-other"]
    {
        assert!(in_parts(&name(kept), false) && in_parts(&name(kept), true), "{kept}");
    }
    assert!(in_parts(&name("content-type"), false) && !in_parts(&name("content-type"), true), "several parts have one each");
    for dropped in ["content-length", "content-range"] {
        assert!(!in_parts(&name(dropped), false) && !in_parts(&name(dropped), true), "{dropped}");
    }
}
