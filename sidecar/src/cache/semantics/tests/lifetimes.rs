//! Lifetimes: RFC 9111 sections 4.2.1, 4.2.2 and 5.3.

use std::time::Duration;

use super::*;
use crate::cache::semantics::{
    freshness::{Source, jittered},
    meta::Flags,
    settings::StatusTtl,
};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn rfc9111_4_2_1_the_first_rule_that_matches_gives_the_lifetime() {
    const EXPIRES: &str = "Sat, 28 Nov 2026 12:05:00 GMT";
    let table: [(Lines<'_>, u64, Source); 10] = [
        (&[("cache-control", "s-maxage=10, max-age=20"), ("expires", EXPIRES)], 10, Source::SMaxage),
        (&[("cache-control", "max-age=20, s-maxage=10")], 10, Source::SMaxage),
        (&[("cache-control", "max-age=20"), ("cache-control", "s-maxage=3600")], 3600, Source::SMaxage),
        (&[("cache-control", "max-age=0, s-maxage=60"), ("expires", "0")], 60, Source::SMaxage),
        (&[("cache-control", "max-age=20"), ("expires", EXPIRES)], 20, Source::MaxAge),
        (&[("cache-control", "max-age=20"), ("expires", "0")], 20, Source::MaxAge),
        (&[("cache-control", "x=1"), ("expires", EXPIRES)], 300, Source::Expires),
        (&[("cache-control", "public"), ("expires", EXPIRES)], 300, Source::Expires),
        (&[("cache-control", "extension=\"max-age=3600\", max-age=1")], 1, Source::MaxAge),
        (&[("cache-control", "MaX-aGe=20, foo, bar=\"baz\"")], 20, Source::MaxAge),
    ];
    for (response, expected, source) in table {
        let meta = Exchange::get(response).meta();
        assert_eq!((meta.lifetime / 1000, meta.flags.source()), (expected, source), "{response:?}");
    }
    let zero = Exchange::get(&[("cache-control", "max-age=0"), ("expires", EXPIRES)]);
    assert_eq!(zero.refused(), NotStored::Expired);
}

#[test]
fn rfc9111_4_2_1_of_two_values_the_smaller_one_holds() {
    let table: [(Lines<'_>, u64); 5] = [
        (&[("cache-control", "max-age=1800, max-age=1")], 1),
        (&[("cache-control", "max-age=1, max-age=1800")], 1),
        (&[("cache-control", "max-age=1800"), ("cache-control", "max-age=1")], 1),
        (&[("cache-control", "s-maxage=5, s-maxage=9")], 5),
        (&[("cache-control", "max-age=60, max-age=60")], 60),
    ];
    for (response, expected) in table {
        assert_eq!(lifetime(&Exchange::get(response)), expected, "{response:?}");
    }
    assert!(is_never_fresh(&Exchange::control("max-age=60, max-age=x")));
}

#[test]
fn rfc9111_4_2_1_a_lifetime_that_cannot_be_read_is_none() {
    let table = [
        "max-age=-1",
        "max-age=3600.0",
        "max-age=3600.5",
        "max-age=a100",
        "max-age=100a",
        "max-age='100'",
        "max-age=",
        "max-age",
        "max-age= 3600",
        "max-age =3600",
        "max-age=\"36",
        "max-age=\"36\\00\"",
        "max-age=\"\"",
        "max-age=1 2",
        "s-maxage=x, max-age=60",
    ];
    for control in table {
        assert!(is_never_fresh(&Exchange::control(control)), "{control}");
        let default = Exchange::control(control).set(|settings| settings.ttl.default = Some(secs(60)));
        assert!(is_never_fresh(&default), "{control}: a default isn't for those");
    }
    for control in ["max-age=003600", "max-age=\"3600\"", "max-age=3600;x, max-age=3600"] {
        let expected = if control.contains(';') { 0 } else { 3600 };
        assert_eq!(Exchange::control(control).judged().map_or(0, |stored| stored.meta.lifetime / 1000), expected, "{control}");
    }
}

#[test]
fn rfc9111_1_2_2_numbers_that_are_too_large_are_the_largest() {
    for control in ["max-age=2147483648", "max-age=2147483649", "max-age=99999999999", "max-age=99999999999999999999999999999"] {
        assert_eq!(lifetime(&Exchange::control(control)), 1 << 31, "{control}");
    }
    assert_eq!(lifetime(&Exchange::control("max-age=2147483647")), (1 << 31) - 1);
    let old = Exchange::control("max-age=2147483648, stale-if-error=9").with(&[("age", "99999999999999999999")]);
    assert!(!old.meta().is_fresh(T0));
}

#[test]
fn rfc9111_5_3_expires_counts_from_date() {
    let table: [(&str, u64); 6] = [
        ("Sat, 28 Nov 2026 12:01:00 GMT", 60),
        ("Saturday, 28-Nov-26 12:01:00 GMT", 60),
        ("Sat Nov 28 12:01:00 2026", 60),
        ("sat, 28 nov 2026 12:01:00 gmt", 60),
        ("Tue, 19 Jan 2038 03:14:07 GMT", 351_616_447),
        ("Fri, 01 Jan 9999 00:00:00 GMT", 1 << 31),
    ];
    for (expires, expected) in table {
        assert_eq!(lifetime(&Exchange::get(&[("expires", expires)])), expected, "{expires}");
    }
    let skewed = Exchange::get(&[("expires", "Fri, 27 Nov 2026 12:01:00 GMT")])
        .without("date")
        .with(&[("date", "Fri, 27 Nov 2026 12:00:00 GMT")]);
    assert_eq!(lifetime(&skewed.set(|settings| settings.apparent_age = false)), 60, "by the origin's clock, whatever ours says");
    let undated = Exchange::get(&[("expires", "Sat, 28 Nov 2026 12:01:00 GMT")]).without("date");
    assert_eq!(lifetime(&undated), 60, "without a Date, from when it was received");
}

#[test]
fn rfc9111_5_3_expires_that_is_no_date_is_in_the_past() {
    let table = [
        "0",
        "-1",
        "",
        "never",
        "Sat, 28 Nov 2026 12:01:00 UTC",
        "Sat, 28 Nov 2026 12:01:00 +0100",
        "Sat, 28 Nov 26 12:01:00 GMT",
        "Sat 28 Nov 2026 12:01:00 GMT",
        "Sat, 28-Nov-2026 12:01:00 GMT",
        "Sat, 28 Nov 2026 2:01:00 GMT",
        DATE,
    ];
    for expires in table {
        assert!(is_never_fresh(&Exchange::get(&[("expires", expires)])), "{expires}");
        let default = Exchange::get(&[("expires", expires)]).set(|settings| settings.ttl.default = Some(secs(60)));
        assert!(is_never_fresh(&default), "{expires}: the origin has spoken");
    }
}

#[test]
fn rfc9111_4_2_1_two_expires_that_differ_are_in_the_past() {
    let two = |other| Exchange::get(&[("expires", "Sat, 28 Nov 2026 12:01:00 GMT"), ("expires", other)]);
    assert!(is_never_fresh(&two("Sat, 28 Nov 2026 12:02:00 GMT")));
    assert!(is_never_fresh(&two("0")));
    assert_eq!(lifetime(&two("Sat, 28 Nov 2026 12:01:00 GMT")), 60);
}

#[test]
fn rfc9111_4_2_2_a_guess_is_a_tenth_of_the_time_without_change_and_at_most_a_day() {
    let heuristic: fn(&mut Settings) = |settings| settings.heuristic = true;
    let table = [
        ("Sat, 28 Nov 2026 11:00:00 GMT", 360),
        ("Fri, 27 Nov 2026 12:00:00 GMT", 8_640),
        ("Mon, 28 Nov 2016 12:00:00 GMT", 86_400),
    ];
    for (modified, expected) in table {
        let exchange = Exchange::get(&[("last-modified", modified)]);
        assert_eq!(exchange.refused(), NotStored::NoFreshness, "none without being told to");
        let meta = exchange.set(heuristic).meta();
        assert_eq!((meta.lifetime / 1000, meta.flags.source()), (expected, Source::Heuristic), "{modified}");
    }
    for odd in ["x", "Sat, 28 Nov 2026 13:00:00 GMT"] {
        assert!(is_never_fresh(&Exchange::get(&[("last-modified", odd)]).set(heuristic)), "{odd}");
    }
}

#[test]
fn rfc9111_4_2_2_no_guess_where_there_is_an_explicit_time_or_a_status_that_forbids() {
    let modified = [("last-modified", "Mon, 28 Nov 2016 12:00:00 GMT")];
    let judged = |exchange: Exchange| exchange.with(&modified).set(|settings| settings.heuristic = true).judged();
    for control in ["max-age=0", "max-age=x", "s-maxage=0", "no-cache"] {
        assert!(judged(Exchange::control(control)).is_ok_and(|stored| stored.meta.lifetime == 0), "{control}");
    }
    assert!(judged(Exchange::get(&[("expires", "0")])).is_ok_and(|stored| stored.meta.lifetime == 0));
    assert_eq!(judged(Exchange::get(&[]).status(302)).err(), Some(NotStored::NoFreshness));
    assert_eq!(judged(Exchange::get(&[]).status(500)).err(), Some(NotStored::NoFreshness));
    assert!(judged(Exchange::get(&[("cache-control", "public")]).status(302)).is_ok_and(|stored| stored.meta.lifetime > 0));
}

#[test]
fn rfc9111_5_4_pragma_in_a_response_takes_no_lifetime_away_and_none_is_made_up() {
    let pragma = [("pragma", "no-cache")];
    assert_eq!(lifetime(&Exchange::control("max-age=60").with(&pragma)), 60);
    let guess = Exchange::get(&[("last-modified", "Mon, 28 Nov 2016 12:00:00 GMT")]).with(&pragma);
    let made_up = guess.set(|settings| (settings.heuristic, settings.ttl.default) = (true, Some(secs(60))));
    assert_eq!(made_up.refused(), NotStored::NoFreshness);
}

#[test]
fn policies_give_lifetimes_where_the_origin_gives_none() {
    let rows = |from, to, ttl| vec![StatusTtl { from, to, ttl: secs(ttl) }];
    let all = |settings: &mut Settings| {
        settings.ttl.default = Some(secs(1));
        settings.ttl.by_status = rows(300, 399, 2);
        settings.negative = rows(404, 404, 3);
    };
    let table = [(200, 1, Source::Default), (301, 2, Source::ByStatus), (302, 2, Source::ByStatus), (404, 3, Source::Negative)];
    for (status, expected, source) in table {
        let meta = Exchange::get(&[]).status(status).set(all).meta();
        assert_eq!((meta.lifetime / 1000, meta.flags.source()), (expected, source), "{status}");
        let said = Exchange::control("max-age=9").status(status).set(all);
        assert_eq!(lifetime(&said), 9, "{status}: the origin wins");
        let forced = said.set(|settings| settings.ttl.override_origin = true).meta();
        assert_eq!(
            (forced.lifetime / 1000, forced.flags.source()),
            (expected, Source::Override),
            "{status}: unless told otherwise"
        );
        let disobeyed = Exchange::control("no-cache")
            .status(status)
            .with(&[("etag", "\"1\"")])
            .set(all)
            .set(|settings| settings.ttl.override_origin = true);
        assert!(disobeyed.judged().is_err() || !asked(&disobeyed.meta(), "", T0).is_hit(), "{status}: no-cache stands");
    }
    assert!(Exchange::get(&[]).status(404).set(all).meta().flags.any(Flags::NEGATIVE));
}

#[test]
fn bounds_of_a_policy_hold_for_all_lifetimes_but_zero() {
    let bounds = |settings: &mut Settings| (settings.ttl.min, settings.ttl.max) = (secs(10), Some(secs(100)));
    for (said, expected) in [(1, 10), (10, 10), (50, 50), (100, 100), (1000, 100)] {
        assert_eq!(lifetime(&Exchange::control(&format!("max-age={said}")).set(bounds)), expected, "{said}");
    }
    assert!(is_never_fresh(&Exchange::control("max-age=0").set(bounds)), "an origin that wants validation gets it");
    let negative = |settings: &mut Settings| settings.negative = vec![StatusTtl { from: 404, to: 404, ttl: secs(2) }];
    assert_eq!(
        lifetime(&Exchange::get(&[]).status(404).set(bounds).set(negative)),
        2,
        "nor is what the policy says itself lengthened"
    );
}

#[test]
fn jitter_shortens_by_no_more_than_it_says() {
    let table = [
        (0, 0, 1000),
        (0, u32::MAX, 1000),
        (10, 0, 1000),
        (10, u32::MAX, 900),
        (10, u32::MAX / 2, 951),
        (100, u32::MAX, 0),
        (255, u32::MAX, 0),
    ];
    for (percent, random, expected) in table {
        assert_eq!(jittered(1000, percent, random), expected, "{percent} {random}");
    }
    assert_eq!(jittered(u64::MAX, 100, u32::MAX), 0);
}
