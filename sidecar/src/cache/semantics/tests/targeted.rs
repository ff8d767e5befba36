//! RFC 9213.

use std::time::Duration;

use super::*;
use crate::cache::semantics::{freshness::Source, serve::Verdict};

const FUTURE: &str = "Sat, 28 Nov 2026 13:00:00 GMT";

#[test]
fn rfc9213_2_2_the_first_valid_field_of_the_list_decides() {
    let table: [(Lines<'_>, Option<u64>); 12] = [
        (&[("cdn-cache-control", "max-age=600"), ("cache-control", "max-age=60")], Some(600)),
        (&[("cdn-cache-control", "max-age=60"), ("cache-control", "max-age=600")], Some(60)),
        (
            &[("fetchr-cache-control", "max-age=5"), ("cdn-cache-control", "max-age=600"), ("cache-control", "max-age=60")],
            Some(5),
        ),
        (&[("cdn-cache-control", "max-age=600"), ("fetchr-cache-control", "max-age=5")], Some(5)),
        (&[("cdn-cache-control", "max-age=600"), ("cache-control", "no-store")], Some(600)),
        (&[("cdn-cache-control", "max-age=600"), ("cache-control", "private, max-age=60")], Some(600)),
        (&[("cdn-cache-control", "max-age=600"), ("expires", "0")], Some(600)),
        (&[("cdn-cache-control", "s-maxage=60, max-age=600"), ("cache-control", "s-maxage=9")], Some(60)),
        (&[("fetchr-cache-control", ""), ("cdn-cache-control", "max-age=600")], Some(600)),
        (&[("fetchr-cache-control", "max-age =5"), ("cdn-cache-control", "max-age=600")], Some(600)),
        (&[("surrogate-cache-control", "max-age=600"), ("cache-control", "max-age=60")], Some(60)),
        (&[("cdn-cache-control", "none"), ("cache-control", "max-age=60"), ("expires", FUTURE)], None),
    ];
    for (response, expected) in table {
        assert_eq!(Exchange::get(response).judged().ok().map(|stored| stored.meta.lifetime / 1000), expected, "{response:?}");
    }
}

#[test]
fn rfc9213_2_1_a_field_that_is_no_dictionary_or_is_empty_is_ignored() {
    let invalid = [
        "",
        "  ",
        "max-age=600,",
        "max-age =600",
        "max-age= 600",
        "MaX-aGe=600",
        "max-age=600; ",
        "a=\"x",
        "=",
        "max-age=&",
        "max-age=1.2345",
    ];
    for value in invalid {
        let both = Exchange::get(&[("cdn-cache-control", value), ("cache-control", "max-age=60")]);
        assert_eq!(lifetime(&both), 60, "{value}");
        let store = Exchange::get(&[("cdn-cache-control", value), ("cache-control", "no-store")]);
        assert_eq!(store.refused(), NotStored::NoStore, "{value}");
    }
}

#[test]
fn rfc9213_2_2_expires_is_ignored_beside_a_targeted_field() {
    let exchange = Exchange::get(&[("cdn-cache-control", "public"), ("expires", FUTURE)]);
    assert_eq!(exchange.refused(), NotStored::NoFreshness);
    assert_eq!(lifetime(&exchange.set(|settings| settings.ttl.default = Some(Duration::from_secs(7)))), 7);
}

#[test]
fn rfc9213_2_2_the_directives_that_have_to_be_implemented_are() {
    let target = |value: &str| {
        Exchange::get(&[("cdn-cache-control", value), ("cache-control", "max-age=600"), ("expires", FUTURE), ("etag", "\"1\"")])
    };
    assert_eq!(target("no-store").refused(), NotStored::NoStore);
    assert_eq!(target("max-age=600, no-store").refused(), NotStored::NoStore, "max-age is inoperative then");
    assert_eq!(target("private").refused(), NotStored::Private);
    assert_eq!(asked(&target("no-cache, max-age=600").meta(), "", T0).why, Why::NoCache);
    let strict = target("max-age=60, must-revalidate, stale-if-error=99").meta();
    assert_eq!(why(&strict, "max-stale", after(60_000)), Why::MustRevalidate);
    let lax = target("max-age=60, stale-while-revalidate=9").meta();
    assert_eq!(asked(&lax, "", after(60_000)).verdict, Verdict::StaleWhileRevalidate);
    let shared = target("max-age=60, public").asking(&[("authorization", "x")]);
    assert_eq!(shared.meta().flags.source(), Source::MaxAge);
    let understood = target("max-age=60, must-understand, no-store");
    assert_eq!(lifetime(&understood), 60);
}

#[test]
fn rfc9213_2_1_fields_that_are_named_are_kept_out() {
    let exchange = Exchange::get(&[
        ("fetchr-cache-control", "max-age=60, private=\"set-cookie, x-user\", no-cache=\"x-more\""),
        ("set-cookie", "a=b"),
    ]);
    let stored = exchange.stored();
    for name in ["set-cookie", "x-user", "x-more"] {
        assert!(!stored.cut.keeps(&HeaderName::from_static(name)), "{name}");
    }
    assert!(asked(&stored.meta, "", T0).is_hit());
    let unqualified = Exchange::get(&[("cdn-cache-control", "max-age=60, private=token")]);
    assert_eq!(unqualified.refused(), NotStored::Private, "a value of the wrong type names none");
}

#[test]
fn rfc9213_2_1_values_of_another_type_are_not_made_to_fit() {
    for value in [
        "max-age=60.0",
        "max-age=60.5",
        "max-age=\"60\"",
        "max-age=abc",
        "max-age",
        "max-age=-60",
        "max-age=(60)",
        "max-age=:YQ==:",
    ] {
        assert!(is_never_fresh(&Exchange::get(&[("cdn-cache-control", value), ("cache-control", "max-age=60")])), "{value}");
    }
    let table = [
        ("max-age=60;x=1", Some(60)),
        ("max-age=2147483649", Some(1 << 31)),
        ("max-age=99999999999", Some(1 << 31)),
        ("max-age=1, max-age=60", Some(60)),
        ("max-age=60, no-store=?0", Some(60)),
    ];
    for (value, expected) in table {
        let judged = Exchange::get(&[("cdn-cache-control", value)]).judged();
        assert_eq!(
            judged.ok().map(|stored| stored.meta.lifetime / 1000),
            expected,
            "{value}: parameters mean nothing, and the last of a name holds"
        );
    }
}

#[test]
fn rfc9213_2_2_age_counts_against_a_targeted_lifetime() {
    let exchange = Exchange::get(&[("cdn-cache-control", "max-age=3600"), ("age", "7200"), ("etag", "\"1\"")]);
    assert!(!exchange.meta().is_fresh(T0));
}

#[test]
fn rfc9213_2_1_lines_are_one_dictionary() {
    let exchange = Exchange::get(&[
        ("cdn-cache-control", "max-age=60"),
        ("cdn-cache-control", "stale-if-error=9"),
        ("cache-control", "max-age=1"),
    ]);
    let meta = exchange.meta();
    assert_eq!((meta.lifetime, meta.if_error), (60_000, 9_000));
}

#[test]
fn rfc9213_3_targeted_fields_are_passed_on() {
    let exchange = Exchange::get(&[
        ("cdn-cache-control", "max-age=60"),
        ("fetchr-cache-control", "max-age=60"),
        ("other-cache-control", "max-age=60"),
    ]);
    let kept = exchange.stored().cut;
    for name in ["cdn-cache-control", "fetchr-cache-control", "other-cache-control"] {
        assert!(kept.keeps(&HeaderName::from_static(name)), "{name}");
    }
}
