//! RFC 9111 section 3: what is stored, and what of it.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::cache::semantics::{
    freshness,
    meta::Flags,
    request,
    settings::{SetCookie, StatusTtl},
};

const MINUTE: Duration = Duration::from_secs(60);

fn row(from: u16, to: u16) -> Vec<StatusTtl> {
    vec![StatusTtl { from, to, ttl: MINUTE }]
}

#[test]
fn rfc9111_3_a_response_needs_something_that_allows_to_store_it() {
    let heuristic = |settings: &mut Settings| settings.heuristic = true;
    let table: [(u16, Lines<'_>, bool); 13] = [
        (200, &[], false),
        (200, &[("etag", "\"1\"")], false),
        (200, &[("cache-control", "max-age=60")], true),
        (200, &[("cache-control", "s-maxage=60")], true),
        (200, &[("expires", "Sat, 28 Nov 2026 12:01:00 GMT")], true),
        (200, &[("cache-control", "x-extension=60")], false),
        (200, &[("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT")], true),
        (404, &[("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT")], true),
        (302, &[("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT")], false),
        (302, &[("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT"), ("cache-control", "public")], true),
        (302, &[("cache-control", "public")], false),
        (302, &[("cache-control", "max-age=60")], true),
        (599, &[("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT")], false),
    ];
    for (status, response, expected) in table {
        let judged = Exchange::get(response).status(status).set(heuristic).judged();
        assert_eq!(judged.as_ref().err(), (!expected).then_some(&NotStored::NoFreshness), "{status} {response:?}");
    }
}

#[test]
fn rfc9111_3_what_is_stale_already_is_stored_only_to_be_validated() {
    let stale = Exchange::control("max-age=0");
    assert_eq!(stale.refused(), NotStored::Expired);
    let tagged = stale.clone().with(&[("etag", "\"1\"")]);
    assert!(!tagged.meta().is_fresh(T0));
    assert_eq!(tagged.set(|settings| settings.keep = Duration::ZERO).refused(), NotStored::Expired);
    Exchange::control("max-age=0, stale-if-error=60").stored();
    let old = Exchange::control("max-age=60").with(&[("age", "60")]);
    assert_eq!(old.refused(), NotStored::Expired, "it came too late");
}

#[test]
fn rfc9111_5_2_1_5_no_store_of_a_request_forbids_to_store_the_answer() {
    for control in ["no-store", "No-Store", "max-age=0, no-store", "no-store=\"x\""] {
        let exchange = Exchange::control("public, max-age=60").asking(&[("cache-control", control)]);
        assert_eq!(exchange.refused(), NotStored::RequestNoStore, "{control}");
    }
    assert!(!NotStored::RequestNoStore.is_of_response(), "and says nothing of the next answer");
}

#[test]
fn rfc9111_5_2_2_5_no_store_is_never_stored() {
    let all: fn(&mut Settings) = |settings| {
        settings.ttl.default = Some(MINUTE);
        settings.ttl.min = MINUTE;
        settings.ttl.by_status = row(200, 599);
        settings.ttl.override_origin = true;
        settings.heuristic = true;
        settings.set_cookie = SetCookie::Strip;
    };
    for control in
        ["no-store", "nO-StOrE", "no-store, max-age=60", "public, no-store", "no-store=x", "no-store = 1", "a, no-store ,b"]
    {
        assert_eq!(Exchange::control(control).refused(), NotStored::NoStore, "{control}");
        assert_eq!(Exchange::control(control).set(all).refused(), NotStored::NoStore, "{control}, whatever the policy says");
    }
}

#[test]
fn rfc9111_5_2_2_7_private_is_never_stored() {
    for control in
        ["private", "PRIVATE", "private, max-age=60", "public, private, max-age=60", "private, private=\"x-a\", max-age=60"]
    {
        assert_eq!(Exchange::control(control).refused(), NotStored::Private, "{control}");
        let forced = Exchange::control(control).set(|settings| {
            settings.ttl.by_status = row(200, 599);
            settings.ttl.override_origin = true;
        });
        assert_eq!(forced.refused(), NotStored::Private, "{control}");
    }
}

#[test]
fn rfc9111_5_2_2_7_private_with_field_names_keeps_those_fields_out() {
    for control in ["max-age=60, private=\"x-user, Set-Cookie\"", "private=X-User, private=set-cookie, max-age=60"] {
        let exchange = Exchange::control(control).with(&[("x-user", "ann"), ("set-cookie", "a=b"), ("x-other", "c")]);
        let stored = exchange.stored();
        let kept: Vec<_> = stored.cut.kept(&exchange.response).map(|(name, _)| name.as_str()).collect();
        assert!(!kept.contains(&"x-user") && !kept.contains(&"set-cookie"), "{control}: {kept:?}");
        assert!(kept.contains(&"x-other") && kept.contains(&"cache-control"), "{control}: {kept:?}");
    }
    for control in ["max-age=60, private=\"\"", "max-age=60, private=\"a b\"", "max-age=60, private=\"x", "private=, max-age=60"]
    {
        assert_eq!(Exchange::control(control).refused(), NotStored::Private, "{control}: what can't be read forbids everything");
    }
}

#[test]
fn rfc9111_5_2_2_7_more_names_than_we_look_at_forbid_everything() {
    let names = |count: usize| (0..count).map(|index| format!("x-{index}")).collect::<Vec<_>>().join(",");
    Exchange::control(&format!("max-age=60, private=\"{}\"", names(32))).stored();
    assert_eq!(Exchange::control(&format!("max-age=60, private=\"{}\"", names(33))).refused(), NotStored::Private);
}

#[test]
fn rfc9111_3_5_authorization_needs_a_directive_that_allows_sharing() {
    let table = [
        ("max-age=60", false),
        ("max-age=60, proxy-revalidate", false),
        ("max-age=60, no-cache", false),
        ("max-age=60, immutable", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("s-maxage=60", true),
        ("s-maxage=60, private", false),
        ("public, no-store", false),
    ];
    for (control, shared) in table {
        let exchange = Exchange::control(control).with(&[("etag", "\"1\"")]).asking(&[("authorization", "Bearer x")]);
        assert_eq!(exchange.judged().is_ok(), shared, "{control}");
        if shared {
            assert!(exchange.meta().flags.any(Flags::AUTHORIZED));
        }
    }
    let plain = Exchange::control("max-age=60").asking(&[("authorization", "Bearer x")]);
    assert_eq!(plain.refused(), NotStored::Authorization);
    assert!(!NotStored::Authorization.is_of_response());
}

#[test]
fn rfc9111_7_3_set_cookie_is_not_stored_unless_the_policy_or_the_origin_leaves_it_out() {
    let exchange = Exchange::control("public, max-age=60").with(&[("set-cookie", "session=1")]);
    assert_eq!(exchange.refused(), NotStored::SetCookie);
    let kept = |exchange: &Exchange| exchange.stored().cut.keeps(&http::header::SET_COOKIE);
    assert!(!kept(&exchange.clone().set(|settings| settings.set_cookie = SetCookie::Strip)));
    assert!(!kept(&Exchange::control("max-age=60, no-cache=\"Set-Cookie\"").with(&[("set-cookie", "session=1")])));
}

#[test]
fn rfc9111_3_what_is_too_large_is_not_stored() {
    let sized = |length: &str| Exchange::control("max-age=60").with(&[("content-length", length)]).judged();
    sized("1048576").unwrap();
    assert_eq!(sized("1048577").err(), Some(NotStored::TooLarge));
}

#[test]
fn rfc9111_4_requests_that_a_cache_may_not_answer_leave_nothing_in_it() {
    let fat = Exchange { content: true, ..Exchange::control("max-age=60") };
    assert_eq!(fat.refused(), NotStored::Bypass, "its content isn't part of the key");
    for (name, value) in [("if-match", "\"1\""), ("if-unmodified-since", DATE), ("upgrade", "websocket")] {
        assert_eq!(Exchange::control("max-age=60").asking(&[(name, value)]).refused(), NotStored::Bypass, "{name}");
    }
}

#[test]
fn rfc9111_3_1_all_fields_are_stored_except_those_of_one_hop() {
    let exchange = Exchange::control("max-age=60").with(&[
        ("connection", "close, X-Hop"),
        ("connection", "x-hop-too"),
        ("x-hop", "1"),
        ("x-hop-too", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("proxy-authorization", "x"),
        ("age", "1"),
        ("x-unknown", "1"),
        ("x-unknown", "2"),
        ("content-type", "text/plain"),
        ("content-length", "5"),
        ("etag", "\"1\""),
        ("vary", "accept"),
        ("cache-status", "origin; hit"),
        ("www-authenticate", "Basic"),
    ]);
    let stored = exchange.stored();
    let mut kept: Vec<_> =
        stored.cut.kept(&exchange.response).map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    kept.sort_unstable();
    let expected = [
        "cache-control: max-age=60",
        "cache-status: origin; hit",
        "content-length: 5",
        "content-type: text/plain",
        "date: Sat, 28 Nov 2026 12:00:00 GMT",
        "etag: \"1\"",
        "vary: accept",
        "www-authenticate: Basic",
        "x-unknown: 1",
        "x-unknown: 2",
    ];
    assert_eq!(kept, expected);
}

/// A part of ten bytes, with these fields.
fn part(lines: Lines<'_>) -> Exchange {
    Exchange::control("max-age=60").status(206).asking(&[("range", "bytes=0-4")]).with(lines)
}

#[test]
fn rfc9111_3_3_a_part_is_stored_as_an_incomplete_200() {
    let stored = part(&[("content-range", "bytes 0-4/10"), ("etag", "\"1\"")]).stored();
    assert!(stored.meta.flags.any(Flags::PARTIAL));
    assert_eq!((stored.meta.status, stored.meta.lifetime), (200, 60_000));
    assert_eq!(stored.part.map(|part| (part.range.first, part.range.last, part.complete)), Some((0, 4, 10)));
    let named = part(&[("content-range", "bytes 0-4/10"), ("etag", "\"1\"")]).without("cache-control").set(|settings| {
        settings.ttl.by_status = vec![StatusTtl { from: 200, to: 200, ttl: Duration::from_secs(7) }];
    });
    assert_eq!(lifetime(&named), 7);
    for range in
        ["lines 0-4/10", "bytes 0-4/*", "bytes 4-0/10", "bytes 0-10/10", "bytes */10", "bytes 0-4", "bytes +0-4/10", "0-4/10"]
    {
        assert_eq!(part(&[("content-range", range), ("etag", "\"1\"")]).refused(), NotStored::Partial, "{range}");
    }
    let unasked = part(&[("content-range", "bytes 0-4/10"), ("etag", "\"1\"")]).asking(&[]);
    assert_eq!(unasked.refused(), NotStored::Partial);
    let multipart = part(&[("content-type", "multipart/byteranges; boundary=a"), ("etag", "\"1\"")]);
    assert_eq!(multipart.refused(), NotStored::Partial);
}

#[test]
fn rfc9111_3_4_a_part_without_a_strong_validator_could_not_be_joined_and_is_not_stored() {
    const MODIFIED: &str = "Fri, 27 Nov 2026 12:00:00 GMT";
    let table: [(Lines<'_>, bool); 6] = [
        (&[("etag", "\"1\"")], true),
        (&[("etag", "W/\"1\"")], false),
        (&[("etag", "W/\"1\""), ("last-modified", MODIFIED)], false),
        (&[("last-modified", MODIFIED)], true),
        (&[("last-modified", DATE)], false),
        (&[], false),
    ];
    for (validators, expected) in table {
        let judged = part(&[&[("content-range", "bytes 0-4/10")], validators].concat()).judged();
        assert_eq!(judged.map(drop), if expected { Ok(()) } else { Err(NotStored::Partial) }, "{validators:?}");
    }
}

#[test]
fn each_reason_has_a_name_of_its_own() {
    use NotStored::*;
    let all = [
        RequestNoStore,
        Method,
        Bypass,
        Status,
        Partial,
        MustUnderstand,
        NoStore,
        Private,
        Authorization,
        SetCookie,
        VaryStar,
        Vary,
        Groups,
        TooLarge,
        NoFreshness,
        Expired,
    ];
    let bypasses = [request::Bypass::Method, request::Bypass::Content, request::Bypass::Precondition, request::Bypass::Upgrade];
    let sources = (0..9).map(|number| freshness::Source::from_number(number).as_str());
    assert_eq!(all.iter().map(|reason| reason.as_str()).collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(bypasses.iter().map(|reason| reason.as_str()).collect::<BTreeSet<_>>().len(), bypasses.len());
    assert_eq!(sources.collect::<BTreeSet<_>>().len(), 9);
}
