//! Statuses and methods: RFC 9111 section 3, RFC 9110 sections 9.3 and 15.1.

use std::time::Duration;

use super::*;
use crate::cache::semantics::{meta::Flags, settings::StatusTtl, status_code};

const MINUTE: Duration = Duration::from_secs(60);

fn row(from: u16, to: u16) -> Vec<StatusTtl> {
    vec![StatusTtl { from, to, ttl: MINUTE }]
}

#[test]
fn rfc9111_3_only_methods_that_are_understood_are_stored() {
    for method in ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND", "QUERY", "BREW", "get"] {
        let exchange = Exchange::control("max-age=60").method(Method::from_bytes(method.as_bytes()).unwrap());
        assert_eq!(exchange.refused(), NotStored::Method, "{method}");
    }
    Exchange::control("max-age=60").stored();
}

#[test]
fn rfc9111_3_only_final_statuses_are_stored() {
    for status in [100, 101, 102, 103, 199] {
        assert_eq!(Exchange::control("max-age=60").status(status).refused(), NotStored::Status, "{status}");
    }
    assert_eq!(Exchange::control("max-age=60").status(304).refused(), NotStored::Status, "it has no content to store");
}

#[test]
fn rfc9111_3_any_final_status_with_explicit_freshness_may_be_stored() {
    for status in [200, 203, 204, 299, 301, 302, 303, 307, 308, 404, 405, 410, 414, 451, 499, 500, 501, 502, 503, 504, 599] {
        assert_eq!(lifetime(&Exchange::control("max-age=60").status(status)), 60, "{status}");
    }
}

#[test]
fn rfc9111_7_1_statuses_about_how_one_client_asked_are_for_that_client_alone() {
    let about_the_request = [400, 401, 407, 408, 411, 412, 413, 415, 416, 417, 421, 425, 426, 428, 429, 431, 511];
    for status in about_the_request {
        let exchange = Exchange::control("public, max-age=60").status(status);
        assert_eq!(exchange.refused(), NotStored::Status, "{status}");
        let named = Exchange::get(&[]).status(status).set(|settings| settings.negative = row(status, status));
        assert!(named.meta().flags.any(Flags::NEGATIVE), "{status}, if the policy names it");
    }
    let default = |status| Exchange::get(&[]).status(status).set(|settings| settings.ttl.default = Some(MINUTE)).judged();
    for status in [404, 405, 410, 414, 501, 500] {
        assert_eq!(default(status), Err(NotStored::NoFreshness), "{status}: no error gets a default");
    }
    default(200).unwrap();
    default(301).unwrap();
}

#[test]
fn rfc9111_5_2_2_3_must_understand_wins_over_no_store_where_the_status_is_known() {
    let table = [
        (200, "must-understand, no-store, max-age=60", None),
        (404, "no-store, max-age=60, must-understand", None),
        (599, "must-understand, no-store, max-age=60", Some(NotStored::MustUnderstand)),
        (599, "must-understand, max-age=60", Some(NotStored::MustUnderstand)),
        (299, "must-understand, max-age=60", Some(NotStored::MustUnderstand)),
        (200, "no-store, max-age=60", Some(NotStored::NoStore)),
        (200, "must-understand, private, max-age=60", Some(NotStored::Private)),
    ];
    for (status, control, expected) in table {
        assert_eq!(Exchange::control(control).status(status).judged().err(), expected, "{status} {control}");
    }
}

#[test]
fn rfc9111_5_2_2_3_statuses_that_are_understood_are_those_with_a_definition() {
    let found: Vec<u16> = (100..600).filter(|status| status_code::is_understood(*status)).collect();
    let successes = [200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 303, 307, 308];
    let client = [
        400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 413, 414, 415, 416, 417, 421, 422, 423, 424, 425, 426, 428, 429,
        431, 451,
    ];
    let server = [500, 501, 502, 503, 504, 505];
    assert_eq!(found, [&successes[..], &client, &server].concat());
}

#[test]
fn rfc9110_9_3_3_the_answer_to_a_post_is_stored_if_it_says_that_it_is_one_to_a_get() {
    let post = |response: Lines<'_>| Exchange::get(response).method(Method::POST).set(|settings| settings.post = true);
    let table: [(Lines<'_>, bool); 8] = [
        (&[("cache-control", "max-age=60"), ("content-location", "/a?b=1")], true),
        (&[("cache-control", "max-age=60"), ("content-location", "http://shop.example/a?b=1")], true),
        (&[("expires", "Sat, 28 Nov 2026 12:01:00 GMT"), ("content-location", "?b=1")], true),
        (&[("cache-control", "max-age=60"), ("content-location", "/a")], false),
        (&[("cache-control", "max-age=60"), ("content-location", "http://evil.example/a?b=1")], false),
        (&[("cache-control", "max-age=60")], false),
        (&[("cache-control", "public"), ("content-location", "/a?b=1")], false),
        (&[("cache-control", "no-store, max-age=60"), ("content-location", "/a?b=1")], false),
    ];
    for (response, expected) in table {
        let exchange = Exchange { content: true, ..post(response) };
        assert_eq!(exchange.judged().is_ok(), expected, "{response:?}");
        let default = exchange.clone().set(|settings| settings.ttl.default = Some(MINUTE));
        assert_eq!(default.judged().is_ok(), expected, "{response:?}: a policy's default isn't what the origin says");
        exchange.set(|settings| settings.post = false).refused();
    }
    let failed = post(&[("cache-control", "max-age=60"), ("content-location", "/a?b=1")]).status(404);
    assert_eq!(failed.refused(), NotStored::Method);
}

#[test]
fn rfc9110_15_1_heuristically_cacheable_statuses_are_those_of_the_rfc() {
    let found: Vec<u16> = (100..600).filter(|status| status_code::is_heuristically_cacheable(*status)).collect();
    assert_eq!(found, [200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501]);
}
