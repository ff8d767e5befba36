//! RFC 9111 sections 4.3.1, 4.3.3 and 4.3.4: requests that validate, and which stored responses a 304 is about.

use super::*;
use crate::cache::semantics::{
    validate::{Outcome, confirms, make_conditional, make_conditional_in_part, make_whole, outcome, selected},
    validators::Validators,
};

const MODIFIED: &str = "Fri, 27 Nov 2026 12:00:00 GMT";

fn stored(lines: Lines<'_>) -> Exchange {
    Exchange::control("max-age=60").with(lines)
}

/// The fields of a request that validates these responses.
fn conditional(request: Lines<'_>, responses: &[Exchange]) -> Vec<String> {
    let mut request = fields(request);
    let validators: Vec<_> = responses.iter().map(|response| Validators::of(&response.response)).collect();
    make_conditional(&mut request, &validators);
    request.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
}

/// Places of the stored responses that a 304 with these fields updates.
fn updates(not_modified: Lines<'_>, responses: &[Exchange]) -> Vec<usize> {
    let all: Vec<_> = responses.iter().map(|response| (Validators::of(&response.response), response.meta())).collect();
    selected(&fields(not_modified), T0.seconds(), &all).to_vec()
}

#[test]
fn rfc9111_4_3_1_validators_of_what_is_stored_are_sent() {
    let both = stored(&[("etag", "\"1\""), ("last-modified", MODIFIED)]);
    let dated = stored(&[("last-modified", MODIFIED)]);
    let tagged = stored(&[("etag", "W/\"2\"")]);
    let since = format!("if-modified-since: {MODIFIED}");
    assert_eq!(conditional(&[], std::slice::from_ref(&both)), ["if-none-match: \"1\"", &since], "both, for old intermediaries");
    assert_eq!(conditional(&[], std::slice::from_ref(&dated)), [since]);
    assert_eq!(conditional(&[], std::slice::from_ref(&tagged)), ["if-none-match: W/\"2\""]);
    assert_eq!(conditional(&[], &[both, tagged]), ["if-none-match: \"1\", W/\"2\""], "a date would be of one of them only");
    assert!(conditional(&[], &[stored(&[])]).is_empty());
}

#[test]
fn rfc9111_4_3_1_the_request_is_for_the_whole_and_keeps_its_other_fields() {
    let request = [("range", "bytes=0-9"), ("if-range", "\"0\""), ("if-modified-since", MODIFIED), ("accept", "text/html")];
    assert_eq!(conditional(&request, &[stored(&[("etag", "\"1\"")])]), ["accept: text/html", "if-none-match: \"1\""]);
    let mut whole = fields(&request);
    make_whole(&mut whole);
    assert_eq!(whole, fields(&[("accept", "text/html")]));
}

#[test]
fn rfc9111_4_3_2_tags_of_the_client_are_not_sent_for_a_304_may_not_say_whose_is_right() {
    let ours = [stored(&[("etag", "\"1\"")])];
    for theirs in ["\"2\"", "W/\"2\", \"3\"", "\"1\"", "*", "nonsense, \"4"] {
        assert_eq!(conditional(&[("if-none-match", theirs)], &ours), ["if-none-match: \"1\""], "{theirs}");
    }
    assert!(conditional(&[("if-none-match", "\"2\"")], &[stored(&[])]).is_empty());
}

#[test]
fn rfc9111_4_3_1_a_stored_part_is_validated_by_a_request_for_no_more_than_that() {
    let asked = |request: Lines<'_>, lines: Lines<'_>| {
        let exchange = stored(lines);
        let mut request = fields(request);
        make_conditional_in_part(&mut request, &Validators::of(&exchange.response));
        let mut lines: Vec<_> = request.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort_unstable();
        lines
    };
    let tag: Lines<'_> = &[("etag", "\"1\"")];
    assert_eq!(asked(&[("range", "bytes=0-9")], tag), ["if-none-match: \"1\"", "range: bytes=0-9"]);
    // Should it have changed, the client must not get the part of another one than that of which it has the rest.
    assert_eq!(
        asked(&[("range", "bytes=5-"), ("if-range", "\"1\"")], tag),
        ["if-none-match: \"1\"", "if-range: \"1\"", "range: bytes=5-"]
    );
    assert_eq!(
        asked(&[("range", "bytes=-5")], &[("last-modified", MODIFIED)]),
        [format!("if-modified-since: {MODIFIED}"), "range: bytes=-5".to_owned()]
    );
}

#[test]
fn rfc9111_4_3_4_a_304_about_something_else_updates_nothing() {
    let confirmed = |not_modified: Lines<'_>, lines: Lines<'_>| {
        let exchange = stored(lines);
        confirms(&fields(not_modified), T0, &Validators::of(&exchange.response), &exchange.meta())
    };
    let (tag, weak, date): (Lines<'_>, Lines<'_>, Lines<'_>) =
        (&[("etag", "\"1\"")], &[("etag", "W/\"1\"")], &[("last-modified", MODIFIED)]);
    for (not_modified, stored, expected) in [
        (tag, tag, true),
        (&[("etag", "\"2\"")][..], tag, false),
        (weak, weak, true),
        (weak, tag, true),
        (tag, weak, false),
        (&[], tag, true),
        (date, date, true),
        (tag, date, false),
    ] {
        assert_eq!(confirmed(not_modified, stored), expected, "{not_modified:?} {stored:?}");
    }
}

#[test]
fn rfc9111_4_3_3_the_status_says_what_a_validation_found() {
    let table = [
        (304, Outcome::NotModified),
        (200, Outcome::Full),
        (404, Outcome::Full),
        (301, Outcome::Full),
        (501, Outcome::Full),
        (500, Outcome::Failed),
        (502, Outcome::Failed),
        (503, Outcome::Failed),
        (504, Outcome::Failed),
    ];
    for (status, expected) in table {
        assert_eq!(outcome(StatusCode::from_u16(status).unwrap()), expected, "{status}");
    }
}

#[test]
fn rfc9111_4_3_3_a_full_response_that_is_not_stored_removes_what_is_unless_it_is_about_the_client() {
    let table = [
        (Exchange::control("no-store"), 200, true),
        (Exchange::control("private"), 200, true),
        (Exchange::get(&[]), 200, true),
        (Exchange::get(&[]), 404, true),
        (Exchange::get(&[]), 410, true),
        (Exchange::get(&[]), 302, true),
        (Exchange::get(&[]), 403, false),
        (Exchange::get(&[]), 401, false),
        (Exchange::get(&[]), 429, false),
        (Exchange::get(&[]), 501, false),
        (Exchange::control("max-age=60").asking(&[("authorization", "x")]), 200, false),
        (Exchange::control("max-age=60").asking(&[("cache-control", "no-store")]), 200, false),
    ];
    for (exchange, status, expected) in table {
        let refused = exchange.status(status).refused();
        assert_eq!(refused.removes_stored(StatusCode::from_u16(status).unwrap()), expected, "{status} {refused:?}");
    }
}

#[test]
fn rfc9111_4_3_4_a_strong_validator_names_all_that_have_it() {
    let all = [
        stored(&[("etag", "\"1\"")]),
        stored(&[("etag", "\"2\"")]),
        stored(&[("etag", "\"1\"")]),
        stored(&[("etag", "W/\"1\"")]),
    ];
    assert_eq!(updates(&[("etag", "\"1\"")], &all), [0, 2]);
    assert!(updates(&[("etag", "\"3\"")], &all).is_empty(), "and none without it is touched");
    assert!(updates(&[("etag", "\"3\"")], &all[..1]).is_empty(), "even if it is the only one");
    let dated = [stored(&[("last-modified", MODIFIED)]), stored(&[("last-modified", "Thu, 26 Nov 2026 12:00:00 GMT")])];
    assert_eq!(updates(&[("last-modified", MODIFIED)], &dated), [0]);
}

#[test]
fn rfc9111_4_3_4_a_weak_validator_names_the_most_recent_that_has_it() {
    let newer = Exchange { at: after(10), ..stored(&[("etag", "\"1\"")]) };
    let all = [stored(&[("etag", "W/\"1\"")]), newer, stored(&[("etag", "\"2\"")])];
    assert_eq!(updates(&[("etag", "W/\"1\"")], &all), [1]);
    assert!(updates(&[("etag", "W/\"9\"")], &all).is_empty());
    let same_second = [("last-modified", DATE)];
    assert_eq!(updates(&same_second, &[stored(&same_second), Exchange { at: after(5), ..stored(&same_second) }]), [1]);
}

#[test]
fn rfc9111_4_3_4_without_a_validator_it_is_about_the_only_one() {
    assert_eq!(updates(&[], &[stored(&[])]), [0]);
    assert!(updates(&[], &[stored(&[]), stored(&[])]).is_empty());
    assert_eq!(updates(&[], &[stored(&[("etag", "\"1\"")])]), [0], "we asked about nothing else");
}
