//! RFC 9111 sections 3.2 and 4.3.4: what a 304 or a 206 changes.

use super::*;
use crate::cache::semantics::{
    fields::{dated, updated},
    validate::{self, Updated},
};

fn merged(stored: Lines<'_>, newer: Lines<'_>) -> Vec<String> {
    let (stored, newer) = (fields(stored), fields(newer));
    let mut lines: Vec<_> =
        updated(&stored, &newer).iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort_unstable();
    lines
}

/// A stored response after a 304 with these fields, ten seconds later.
fn validated(stored: &Exchange, not_modified: Lines<'_>, request: Lines<'_>) -> Updated {
    let (headers, request) = (fields(not_modified), fields(request));
    let asks = Asks::of(&Method::GET, &request, false);
    let received = Received {
        asks: &asks,
        target: TARGET,
        status: StatusCode::NOT_MODIFIED,
        headers: &headers,
        sent: after(10_000),
        at: after(10_000),
    };
    validate::updated(&stored.response, &stored.meta(), &received, &stored.settings, 0)
}

#[test]
fn rfc9111_3_2_each_field_of_the_newer_replaces_all_lines_of_its_name() {
    let stored =
        [("x-a", "1"), ("x-a", "2"), ("x-b", "1"), ("content-type", "text/plain"), ("content-foo", "1"), ("etag", "W/\"1\"")];
    let newer =
        [("x-a", "3"), ("x-c", "1"), ("x-c", "2"), ("content-type", "text/html"), ("content-foo", "2"), ("etag", "W/\"1\"")];
    let expected = ["content-foo: 2", "content-type: text/html", "etag: W/\"1\"", "x-a: 3", "x-b: 1", "x-c: 1", "x-c: 2"];
    assert_eq!(merged(&stored, &newer), expected);
}

#[test]
fn rfc9111_3_2_fields_of_the_content_and_of_one_hop_are_not_replaced() {
    let stored = [("content-length", "36"), ("content-encoding", "gzip"), ("x-hop", "1")];
    let newer = [
        ("content-length", "10"),
        ("content-encoding", "br"),
        ("content-range", "bytes 0-9/36"),
        ("connection", "x-hop, x-other"),
        ("x-hop", "2"),
        ("x-other", "2"),
        ("transfer-encoding", "chunked"),
        ("set-cookie", "session=of-one-client"),
        ("age", "7"),
        ("keep-alive", "x"),
    ];
    assert_eq!(merged(&stored, &newer), ["content-encoding: gzip", "content-length: 36", "x-hop: 1"]);
}

#[test]
fn rfc9111_3_2_what_the_newer_directives_name_is_not_stored() {
    let stored = [("cache-control", "max-age=60"), ("x-user", "ann"), ("x-b", "1")];
    let newer = [("cache-control", "max-age=60, private=\"x-user\""), ("x-user", "bob")];
    assert_eq!(merged(&stored, &newer), ["cache-control: max-age=60, private=\"x-user\"", "x-b: 1"]);
    let kept = [("cache-control", "max-age=60, no-cache=\"x-user\""), ("x-b", "1")];
    assert_eq!(
        merged(&kept, &[("x-user", "bob")]),
        ["cache-control: max-age=60, no-cache=\"x-user\"", "x-b: 1"],
        "nor what the stored ones name"
    );
}

#[test]
fn rfc9110_6_6_1_a_response_without_date_gets_that_of_when_it_was_received() {
    for lines in [&[][..], &[("date", "x")], &[("date", "")]] {
        let mut headers = fields(lines);
        dated(&mut headers, T0);
        assert_eq!(headers.get("date").unwrap(), DATE, "{lines:?}");
        assert_eq!(headers.len(), 1);
    }
    let mut headers = fields(&[("date", "Fri, 27 Nov 2026 12:00:00 GMT")]);
    dated(&mut headers, T0);
    assert_eq!(headers.get("date").unwrap(), "Fri, 27 Nov 2026 12:00:00 GMT");
}

#[test]
fn rfc9111_4_3_4_a_304_makes_fresh_again() {
    let stored = Exchange::control("max-age=60").with(&[("etag", "\"1\""), ("x-a", "1"), ("age", "50")]);
    let found = validated(&stored, &[("etag", "\"1\"")], &[]);
    let meta = found.storable.unwrap().meta;
    assert_eq!((meta.age(after(10_000)), meta.lifetime, meta.status), (0, 60_000, 200), "its age counts from the validation");
    assert_eq!(found.head.get("x-a").unwrap(), "1");
    assert_eq!(found.head.get("date").unwrap(), "Sat, 28 Nov 2026 12:00:10 GMT", "and the Date isn't the old one");
    assert!(!found.head.contains_key("age"));
    let longer = validated(&stored, &[("etag", "\"1\""), ("cache-control", "max-age=600"), ("age", "5")], &[]);
    let meta = longer.storable.unwrap().meta;
    assert_eq!((meta.lifetime, meta.age(after(10_000))), (600_000, 5_000));
}

#[test]
fn rfc9111_4_3_4_a_304_may_forbid_what_was_allowed() {
    let stored = Exchange::control("max-age=60").with(&[("etag", "\"1\"")]);
    for (control, expected) in [("no-store", NotStored::NoStore), ("private", NotStored::Private)] {
        let found = validated(&stored, &[("cache-control", control)], &[]);
        assert_eq!(found.storable.err(), Some(expected), "{control}");
        assert!(expected.is_of_response(), "so it is removed");
    }
    let asked = validated(&stored, &[("etag", "\"1\"")], &[("authorization", "Bearer x")]);
    assert_eq!(
        asked.storable.err(),
        Some(NotStored::Authorization),
        "it stays as it was: what one user was told isn't for others"
    );
    let cookie = validated(&stored, &[("set-cookie", "a=b")], &[]);
    assert!(cookie.storable.is_ok() && !cookie.head.contains_key("set-cookie"));
}
