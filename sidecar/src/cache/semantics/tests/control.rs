//! Requests: RFC 9111 sections 4, 5.2.1 and 5.4, RFC 9110 sections 9.2 and 9.3.

use super::*;
use crate::cache::semantics::{
    directives::{Argument, directives},
    request::{Bypass, Has, Kind},
    serve::Verdict,
};

const ASK: Verdict = Verdict::Revalidate { if_error: false };

fn of(method: &str, lines: Lines<'_>) -> Asks {
    Asks::of(&Method::from_bytes(method.as_bytes()).unwrap(), &fields(lines), false)
}

#[test]
fn rfc9111_5_2_directives_are_tokens_with_an_argument_of_either_form() {
    use Argument::{Absent, Broken, Text};
    let table: [(&str, &[(&str, Argument<'_>)]); 9] = [
        ("a, b=c, d=\"e\"", &[("a", Absent), ("b", Text(b"c")), ("d", Text(b"e"))]),
        (",, a ,\t,", &[("a", Absent)]),
        ("a=\"x, max-age=1\", b", &[("a", Text(b"x, max-age=1")), ("b", Absent)]),
        ("a=\"x", &[("a", Broken)]),
        ("a=\"x\"y", &[("a", Broken)]),
        ("a=\"x\\\"y\", b", &[("a", Broken), ("b", Absent)]),
        ("a =1", &[("a", Broken)]),
        ("a= 1", &[("a", Broken)]),
        ("a=b=c", &[("a", Text(b"b=c"))]),
    ];
    for (line, expected) in table {
        let found: Vec<_> =
            directives(line.as_bytes()).map(|(name, argument)| (std::str::from_utf8(name).unwrap(), argument)).collect();
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn rfc9111_5_2_3_unknown_directives_change_nothing() {
    let known = Exchange::control("max-age=60").meta();
    for control in
        ["max-age=60, community=\"UCI\"", "foo, max-age=60, no-transform", "max-age=60, no-stored, privates, x-no-cache"]
    {
        assert_eq!(Exchange::control(control).meta(), known, "{control}");
    }
    assert_eq!(wants("foo, bar=1, no-transform"), Control::default());
}

#[test]
fn rfc9110_9_2_3_only_get_and_head_are_answered_from_the_store() {
    let table = [
        ("GET", Ok(()), Kind::Get),
        ("HEAD", Ok(()), Kind::Head),
        ("POST", Err(Bypass::Method), Kind::Post),
        ("PUT", Err(Bypass::Method), Kind::Unsafe),
        ("DELETE", Err(Bypass::Method), Kind::Unsafe),
        ("PATCH", Err(Bypass::Method), Kind::Unsafe),
        ("CONNECT", Err(Bypass::Method), Kind::Unsafe),
        ("OPTIONS", Err(Bypass::Method), Kind::Safe),
        ("TRACE", Err(Bypass::Method), Kind::Safe),
        ("PROPFIND", Err(Bypass::Method), Kind::Safe),
        ("QUERY", Err(Bypass::Method), Kind::Safe),
        ("PURGE", Err(Bypass::Method), Kind::Unsafe),
        ("get", Err(Bypass::Method), Kind::Unsafe),
    ];
    for (method, lookup, kind) in table {
        let asks = of(method, &[]);
        assert_eq!((asks.lookup(), asks.kind), (lookup, kind), "{method}");
    }
}

#[test]
fn rfc9111_4_unsafe_methods_are_written_through() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
        assert_eq!(of(method, &[("cache-control", "only-if-cached")]).lookup(), Err(Bypass::Method), "{method}");
    }
}

#[test]
fn rfc9111_4_3_2_preconditions_for_an_origin_are_left_to_it() {
    for name in ["if-match", "if-unmodified-since"] {
        assert_eq!(of("GET", &[(name, "x")]).lookup(), Err(Bypass::Precondition), "{name}");
    }
    for name in ["if-none-match", "if-modified-since", "if-range", "range"] {
        assert_eq!(of("GET", &[(name, "x")]).lookup(), Ok(()), "{name}");
    }
}

#[test]
fn rfc9111_3_3_requests_for_one_part_without_other_conditions_may_store_it() {
    let table: [(&str, Lines<'_>, bool, bool); 9] = [
        ("GET", &[], false, true),
        ("GET", &[("range", "bytes=0-9")], true, true),
        ("GET", &[("range", "bytes=-9"), ("if-range", "\"1\"")], true, true),
        ("GET", &[("range", "bytes=0-9,20-29")], false, false),
        ("GET", &[("range", "lines=0-9")], false, false),
        ("GET", &[("range", "bytes=0-9"), ("if-none-match", "\"1\"")], false, false),
        ("GET", &[("range", "bytes=0-9"), ("if-modified-since", DATE)], false, false),
        ("GET", &[("range", "bytes=0-9"), ("cache-control", "no-store")], true, false),
        ("HEAD", &[("range", "bytes=0-9")], false, false),
    ];
    for (method, lines, part, stores) in table {
        let asks = of(method, lines);
        assert_eq!((asks.is_for_part(&fields(lines)), asks.stores(&fields(lines))), (part, stores), "{method} {lines:?}");
    }
}

#[test]
fn rfc9110_9_3_1_content_of_a_get_is_not_part_of_the_key_so_it_is_passed_on() {
    assert_eq!(Asks::of(&Method::GET, &HeaderMap::new(), true).lookup(), Err(Bypass::Content));
    assert_eq!(Asks::of(&Method::HEAD, &HeaderMap::new(), true).lookup(), Err(Bypass::Content));
    assert_eq!(of("GET", &[("upgrade", "websocket")]).lookup(), Err(Bypass::Upgrade));
}

#[test]
fn rfc9111_5_2_1_1_max_age_of_a_request_limits_the_age() {
    let meta = Exchange::control("max-age=3600").with(&[("age", "1800")]).meta();
    let table = [
        ("max-age=1800", Verdict::Fresh),
        ("max-age=1799", ASK),
        ("max-age=0", ASK),
        ("max-age=x", ASK),
        ("max-age=9999, max-age=5", ASK),
        ("max-age=9999", Verdict::Fresh),
    ];
    for (request, expected) in table {
        assert_eq!(asked(&meta, request, T0).verdict, expected, "{request}");
    }
}

#[test]
fn rfc9111_5_2_1_1_with_max_age_a_client_wants_nothing_stale() {
    let meta = Exchange::control("max-age=60, stale-while-revalidate=60").meta();
    assert_eq!(asked(&meta, "", after(70_000)).verdict, Verdict::StaleWhileRevalidate);
    let decision = asked(&meta, "max-age=100", after(70_000));
    assert_eq!((decision.verdict, decision.why), (ASK, Why::RequestMaxAge));
    assert_eq!(asked(&meta, "max-age=100, max-stale=5", after(70_000)).verdict, Verdict::StaleWhileRevalidate);
    assert_eq!(asked(&meta, "max-age=65, max-stale=50", after(70_000)).verdict, ASK, "it is too old whatever else");
}

#[test]
fn rfc9111_5_2_1_2_max_stale_allows_stale_answers() {
    let meta = Exchange::control("max-age=60").with(&[("etag", "\"1\"")]).meta();
    let table = [
        ("max-stale", true),
        ("max-stale=30", true),
        ("max-stale=\"30\"", true),
        ("max-stale=29", false),
        ("max-stale=x", false),
        ("max-stale=", false),
        ("max-stale=99, max-stale=1", false),
        ("max-stale, max-stale=1", false),
        ("", false),
    ];
    for (request, allowed) in table {
        let decision = asked(&meta, request, after(90_000));
        let expected = if allowed { (Verdict::Stale, Why::MaxStale) } else { (ASK, Why::Expired) };
        assert_eq!((decision.verdict, decision.why), expected, "{request}");
    }
}

#[test]
fn rfc9111_5_2_1_3_min_fresh_wants_freshness_that_lasts() {
    let meta = Exchange::control("max-age=60, stale-while-revalidate=60").meta();
    let table = [
        ("min-fresh=50", Verdict::Fresh),
        ("min-fresh=51", ASK),
        ("min-fresh=9999999999999", ASK),
        ("min-fresh=1, min-fresh=51", ASK),
    ];
    for (request, expected) in table {
        assert_eq!(asked(&meta, request, after(10_000)).verdict, expected, "{request}");
    }
    assert_eq!(asked(&meta, "min-fresh=0", after(60_000)).why, Why::RequestMinFresh, "a stale one isn't fresh for any time");
}

#[test]
fn rfc9111_5_2_1_4_no_cache_of_a_request_asks_for_validation() {
    let meta = Exchange::control("max-age=60, immutable, stale-while-revalidate=9").meta();
    for request in ["no-cache", "No-Cache", "no-cache=x", "max-age=60, no-cache"] {
        let decision = asked(&meta, request, after(1));
        assert_eq!((decision.verdict, decision.why), (ASK, Why::RequestNoCache), "{request}");
    }
}

#[test]
fn rfc9111_5_2_1_5_no_store_of_a_request_does_not_apply_to_what_is_stored() {
    let meta = Exchange::control("max-age=60").meta();
    assert_eq!(asked(&meta, "no-store", after(1)).verdict, Verdict::Fresh);
}

#[test]
fn rfc9111_5_2_1_7_only_if_cached_gets_a_stored_answer_or_504() {
    let meta = Exchange::control("max-age=60, stale-while-revalidate=10").with(&[("etag", "\"1\"")]).meta();
    let table = [
        ("only-if-cached", 59_000, Verdict::Fresh),
        ("only-if-cached", 65_000, Verdict::StaleWhileRevalidate),
        ("only-if-cached", 70_000, Verdict::GatewayTimeout),
        ("only-if-cached, max-stale", 70_000, Verdict::Stale),
        ("only-if-cached, no-cache", 1_000, Verdict::GatewayTimeout),
        ("only-if-cached, max-age=0", 1_000, Verdict::GatewayTimeout),
        ("only-if-cached, min-fresh=60", 1_000, Verdict::GatewayTimeout),
    ];
    for (request, at, expected) in table {
        assert_eq!(asked(&meta, request, after(at)).verdict, expected, "{request} {at}");
    }
}

#[test]
fn rfc9111_5_4_pragma_counts_in_requests_without_cache_control() {
    let table: [(Lines<'_>, bool); 5] = [
        (&[("pragma", "no-cache")], true),
        (&[("pragma", "foo, No-Cache")], true),
        (&[("pragma", "foo")], false),
        (&[("pragma", "no-cache"), ("cache-control", "max-age=60")], false),
        (&[("pragma", "no-cache"), ("cache-control", "no-cache")], true),
    ];
    for (lines, expected) in table {
        assert_eq!(of("GET", lines).control.no_cache, expected, "{lines:?}");
    }
}

#[test]
fn rfc9111_5_2_1_a_policy_may_heed_no_request() {
    let settings = Settings { obey_requests: false, ..Settings::default() };
    let asks = of(
        "GET",
        &[("cache-control", "no-cache, max-age=0, min-fresh=9, max-stale, stale-if-error=9, no-store, only-if-cached")],
    );
    let heeded = asks.heeded(&settings);
    assert_eq!(heeded, Control { no_store: true, only_if_cached: true, ..Control::default() });
    assert_eq!(asks.heeded(&Settings::default()), asks.control);
}

#[test]
fn fields_that_matter_are_seen_by_one_look() {
    let asks = of("GET", &[("authorization", "x"), ("range", "bytes=0-"), ("accept", "*/*"), ("x-other", "1")]);
    assert!(asks.has.any(Has::AUTHORIZATION) && asks.has.any(Has::RANGE));
    assert!(!asks.has.any(Has::IF_RANGE.and(Has::IF_NONE_MATCH).and(Has::CACHE_CONTROL)));
}
