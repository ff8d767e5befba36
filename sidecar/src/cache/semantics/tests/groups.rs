//! RFC 9875, and RFC 9111 section 4.4.

use super::*;
use crate::cache::semantics::{
    groups::{MOST_BYTES, MOST_GROUPS},
    invalidate::{Invalidated, invalidated},
    request::Kind,
};

fn answered(method: &str, status: u16, response: Lines<'_>) -> Invalidated {
    let kind = Kind::of(&Method::from_bytes(method.as_bytes()).unwrap());
    invalidated(kind, TARGET, StatusCode::from_u16(status).unwrap(), &fields(response))
}

fn groups(values: &[&str]) -> Result<Vec<String>, NotStored> {
    let lines: Vec<_> = values.iter().map(|value| ("cache-groups", *value)).collect();
    Exchange::control("max-age=60")
        .with(&lines)
        .judged()
        .map(|stored| stored.groups.iter().map(|group| group.to_string()).collect())
}

#[test]
fn rfc9111_4_4_an_unsafe_request_that_succeeds_invalidates_its_target() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "UNKNOWN"] {
        for status in [200, 201, 204, 301, 303] {
            assert_eq!(answered(method, status, &[]).paths.as_slice(), ["/a?b=1"], "{method} {status}");
        }
        for status in [400, 404, 412, 500, 503] {
            assert_eq!(answered(method, status, &[("location", "/b")]), Invalidated::default(), "{method} {status}");
        }
    }
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"] {
        assert_eq!(answered(method, 200, &[("location", "/b")]), Invalidated::default(), "{method}");
    }
}

#[test]
fn rfc9111_4_4_location_and_content_location_are_invalidated_within_the_origin() {
    let response = [("location", "/b"), ("content-location", "http://SHOP.example:80/c?d")];
    assert_eq!(answered("POST", 201, &response).paths.as_slice(), ["/a?b=1", "/b", "/c?d"]);
    let same = [("location", "/a?b=1"), ("content-location", "/b#x")];
    assert_eq!(answered("POST", 201, &same).paths.as_slice(), ["/a?b=1", "/b"]);
}

#[test]
fn rfc9111_4_4_other_origins_are_never_invalidated() {
    for other in ["http://evil.example/b", "https://shop.example/b", "http://shop.example:81/b", "//evil.example/b"] {
        let found = answered("PUT", 200, &[("location", other), ("content-location", other)]);
        assert_eq!(found.paths.as_slice(), ["/a?b=1"], "{other}");
    }
}

#[test]
fn rfc9875_2_groups_are_a_list_of_strings() {
    let table: [(&[&str], &[&str]); 8] = [
        (&["\"scripts\""], &["scripts"]),
        (&["\"b\", \"a\""], &["a", "b"]),
        (&["\"b\"", "\"a\""], &["a", "b"]),
        (&["\"a\";x=1, \"A\""], &["A", "a"]),
        (&["\"a\", \"a\""], &["a"]),
        (&["a"], &[]),
        (&["\"a\", b"], &[]),
        (&["\"a\", (\"b\")"], &[]),
    ];
    for (values, expected) in table {
        assert_eq!(groups(values).unwrap(), expected, "{values:?}");
    }
    assert!(groups(&["\"a"]).unwrap().is_empty(), "what isn't a list is as none");
}

#[test]
fn rfc9875_2_at_least_32_groups_of_32_characters_are_known() {
    let list =
        |count: usize, length: usize| (0..count).map(|index| format!("\"{index:0length$}\"")).collect::<Vec<_>>().join(", ");
    assert_eq!(groups(&[&list(32, 32)]).unwrap().len(), 32);
    assert_eq!(groups(&[&list(MOST_GROUPS, MOST_BYTES)]).unwrap().len(), MOST_GROUPS);
    assert_eq!(groups(&[&list(MOST_GROUPS + 1, 32)]), Err(NotStored::Groups), "what can't be removed isn't stored");
    assert_eq!(groups(&[&list(1, MOST_BYTES + 1)]), Err(NotStored::Groups));
    let many = answered("POST", 200, &[("cache-group-invalidation", &list(MOST_GROUPS + 5, 32))]);
    assert_eq!((many.groups.len(), many.dropped), (MOST_GROUPS, 5));
}

#[test]
fn rfc9875_3_groups_are_invalidated_by_answers_to_unsafe_requests() {
    let response = [("cache-group-invalidation", "\"eurovision-results\", \"australia\";x")];
    let found = answered("POST", 200, &response);
    let names: Vec<_> = found.groups.iter().map(|group| &**group).collect();
    assert_eq!(names, ["australia", "eurovision-results"]);
    for (method, status) in [("GET", 200), ("HEAD", 200), ("OPTIONS", 200), ("POST", 500)] {
        assert!(answered(method, status, &response).groups.is_empty(), "{method} {status}");
    }
    assert!(answered("POST", 200, &[("cache-groups", "\"a\"")]).groups.is_empty(), "belonging invalidates nothing");
}
