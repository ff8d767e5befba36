//! RFC 9211.

use sfv::{List, Parser};

use super::*;
use crate::cache::semantics::{
    status::{Forward, Forwarded, Handled, Status},
    storable::NotStored,
};

fn forwarded(why: Forward, change: impl FnOnce(&mut Forwarded)) -> Status {
    let mut status = Status::forwarded(why);
    if let Handled::Forwarded(forwarded) = &mut status.handled {
        change(forwarded);
    }
    status
}

#[test]
fn rfc9211_2_members_say_how_a_request_was_handled() {
    let meta = Exchange::control("max-age=60, stale-while-revalidate=60").meta();
    let table = [
        (Status::hit(&asked(&meta, "", after(30_000))), "fetchr; hit; ttl=30"),
        (Status::hit(&asked(&meta, "", after(70_500))), "fetchr; hit; ttl=-11; detail=StaleWhileRevalidate"),
        (Status::unusable(&asked(&meta, "", after(120_000))), "fetchr; fwd=stale; detail=Expired"),
        (Status::unusable(&asked(&meta, "no-cache", after(1))), "fetchr; fwd=request; detail=RequestNoCache"),
        (Status::unusable(&asked(&meta, "max-age=9", after(70_000))), "fetchr; fwd=stale; detail=RequestMaxAge"),
        (Status::unusable(&asked(&meta, "max-age=9", after(60_000))), "fetchr; fwd=stale; detail=RequestMaxAge"),
        (Status::unusable(&asked(&meta, "max-age=9", after(59_999))), "fetchr; fwd=request; detail=RequestMaxAge"),
        (forwarded(Forward::UriMiss, |_| {}), "fetchr; fwd=uri-miss"),
        (forwarded(Forward::VaryMiss, |forwarded| forwarded.stored = true), "fetchr; fwd=vary-miss; stored"),
        (forwarded(Forward::Stale, |forwarded| forwarded.status = Some(304)), "fetchr; fwd=stale; fwd-status=304"),
        (forwarded(Forward::UriMiss, |forwarded| forwarded.collapsed = Some(true)), "fetchr; fwd=uri-miss; collapsed"),
        (forwarded(Forward::Miss, |forwarded| forwarded.collapsed = Some(false)), "fetchr; fwd=miss; collapsed=?0"),
        (Status { detail: Some("Content"), ..forwarded(Forward::Bypass, |_| {}) }, "fetchr; fwd=bypass; detail=Content"),
        (forwarded(Forward::Method, |_| {}), "fetchr; fwd=method"),
        (forwarded(Forward::Partial, |forwarded| forwarded.status = Some(206)), "fetchr; fwd=partial; fwd-status=206"),
    ];
    for (status, expected) in table {
        assert_eq!(status.to_string(), expected);
        Parser::new(expected).parse::<List>().unwrap();
    }
}

#[test]
fn rfc9211_2_what_other_caches_said_stays_before_us() {
    let mut headers = fields(&[("cache-status", "OriginCache; hit; ttl=1100")]);
    Status::forwarded(Forward::UriMiss).append(&mut headers);
    let all: Vec<_> = headers.get_all("cache-status").iter().collect();
    assert_eq!(all, ["OriginCache; hit; ttl=1100", "fetchr; fwd=uri-miss"]);
}

#[test]
fn rfc9211_2_4_ttl_is_an_integer_of_structured_fields() {
    let endless = Meta { lifetime: u64::MAX, ..Exchange::control("max-age=60").meta() };
    let ancient = Meta { initial_age: u64::MAX, ..endless };
    for meta in [endless, ancient, Meta { lifetime: 0, ..ancient }] {
        let text = Status::hit(&asked(&meta, "", T0)).to_string();
        Parser::new(&text).parse::<List>().unwrap();
    }
}

#[test]
fn refusals_say_the_same_each_time() {
    for (why, reason, expected) in [
        (Forward::UriMiss, NotStored::NoFreshness, "fetchr; fwd=uri-miss; detail=NoFreshness"),
        (Forward::Stale, NotStored::Expired, "fetchr; fwd=stale; detail=Expired"),
        (Forward::UriMiss, NotStored::NoFreshness, "fetchr; fwd=uri-miss; detail=NoFreshness"),
    ] {
        let mut headers = HeaderMap::new();
        why.append_refusal(reason, &mut headers);
        assert_eq!(headers["cache-status"], expected);
    }
}
