//! RFC 9111 sections 4, 4.2.4 and 5.2.2, RFC 5861, RFC 8246.

use std::time::Duration;

use super::*;
use crate::cache::semantics::{
    meta::Flags,
    serve::{Verdict, may_answer_failure},
    status_code,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A policy that allows whatever a policy can allow.
fn lax(settings: &mut Settings) {
    settings.stale.while_revalidate = Some(MINUTE);
    settings.stale.if_error = Some(MINUTE);
}

fn tagged(control: &str) -> Exchange {
    Exchange::control(control).with(&[("etag", "\"1\"")])
}

#[test]
fn rfc9111_4_a_fresh_response_answers_and_says_its_age() {
    let meta = Exchange::control("max-age=60").with(&[("age", "5")]).meta();
    let decision = asked(&meta, "", after(10_500));
    assert_eq!((decision.verdict, decision.why), (Verdict::Fresh, Why::Fresh));
    assert_eq!((decision.age_field(), decision.ttl()), (15, 44));
    let stale = asked(&meta, "", after(55_001));
    assert_eq!((stale.verdict, stale.why, stale.ttl()), (Verdict::Revalidate { if_error: false }, Why::Expired, -1));
}

#[test]
fn rfc9111_4_of_several_responses_the_most_recent_is_used() {
    let older = Exchange::control("max-age=60").without("date").with(&[("date", "Sat, 28 Nov 2026 11:59:59 GMT")]).meta();
    let newer = Exchange::control("max-age=60").meta();
    assert!(newer.is_newer_than(&older) && !older.is_newer_than(&newer));
    let later = Exchange { at: after(10), ..Exchange::control("max-age=60") }.meta();
    assert!(later.is_newer_than(&newer), "the later one of two of the same second");
    assert!(!newer.is_newer_than(&newer));
}

#[test]
fn rfc9111_5_2_2_4_no_cache_is_validated_each_time() {
    for control in [
        "no-cache",
        "No-CaChE, max-age=60",
        "no-cache, s-maxage=60",
        "max-age=60, no-cache=\"\"",
        "max-age=60, no-cache=\"a b\"",
        "no-cache=, max-age=60",
        "max-age=60, no-cache, no-cache=\"x-a\"",
    ] {
        let meta = tagged(control).set(lax).meta();
        for request in ["", "max-stale", "max-stale=9, stale-if-error=9"] {
            let decision = asked(&meta, request, after(1));
            assert_eq!(
                (decision.verdict, decision.why),
                (Verdict::Revalidate { if_error: false }, Why::NoCache),
                "{control} {request}"
            );
        }
        assert!(!may_answer_failure(&meta, &wants("stale-if-error=99"), after(1)), "{control}");
    }
}

#[test]
fn rfc9111_5_2_2_4_no_cache_with_field_names_answers_without_those_fields() {
    for control in ["max-age=60, no-cache=\"x-user, x-more\"", "max-age=60, no-cache=X-User, no-cache=x-more"] {
        let exchange = tagged(control).with(&[("x-user", "ann"), ("x-more", "1"), ("x-other", "2")]);
        let stored = exchange.stored();
        assert_eq!(asked(&stored.meta, "", T0).verdict, Verdict::Fresh, "{control}");
        for (name, kept) in [("x-user", false), ("x-more", false), ("x-other", true), ("etag", true)] {
            assert_eq!(stored.cut.keeps(&HeaderName::from_static(name)), kept, "{control} {name}");
        }
    }
}

#[test]
fn rfc9111_5_2_2_6_no_transform_is_kept_for_whoever_is_behind_and_changes_nothing_else() {
    let (plain, marked) = (Exchange::control("max-age=60"), Exchange::control("max-age=60, no-transform"));
    assert_eq!(plain.meta(), marked.meta());
    assert!(marked.stored().cut.kept(&marked.response).any(|(_, value)| value == "max-age=60, no-transform"));
    assert_eq!(
        asked(&plain.meta(), "no-transform", T0),
        asked(&plain.meta(), "", T0),
        "section 5.2.1.6: nor does that of a request"
    );
}

#[test]
fn rfc9111_5_2_2_8_proxy_revalidate_is_must_revalidate_for_a_shared_cache() {
    for control in ["max-age=60, proxy-revalidate", "max-age=60, must-revalidate"] {
        let meta = tagged(control).set(lax).meta();
        assert_eq!(asked(&meta, "", after(59_999)).verdict, Verdict::Fresh, "{control}");
        assert_eq!(asked(&meta, "max-stale", after(60_000)).verdict, Verdict::Revalidate { if_error: false }, "{control}");
    }
}

#[test]
fn rfc9111_4_2_4_what_forbids_stale_answers_wins_over_all_that_allow_them() {
    let table = [
        ("max-age=60, must-revalidate", Why::MustRevalidate),
        ("max-age=60, Must-Revalidate=x", Why::MustRevalidate),
        ("max-age=60, proxy-revalidate", Why::MustRevalidate),
        ("s-maxage=60", Why::MustRevalidate),
        ("max-age=60, must-revalidate, stale-while-revalidate=99, stale-if-error=99", Why::MustRevalidate),
        ("max-age=60, proxy-revalidate, stale-while-revalidate=99, stale-if-error=99", Why::MustRevalidate),
        ("max-age=60, no-cache, stale-while-revalidate=99, stale-if-error=99", Why::NoCache),
    ];
    for (control, expected) in table {
        let meta = tagged(control).set(lax).meta();
        for request in ["", "max-stale", "max-stale=99", "stale-if-error=99"] {
            for origin in [Origin::Up, Origin::Down] {
                let decision = decide(&meta, &wants(request), after(60_000), origin);
                let nothing = Verdict::Revalidate { if_error: false };
                assert_eq!((decision.verdict, decision.why), (nothing, expected), "{control} {request} {origin:?}");
            }
            assert!(!may_answer_failure(&meta, &wants(request), after(60_000)), "{control} {request}");
        }
    }
}

#[test]
fn rfc9111_5_2_2_2_must_revalidate_is_used_while_fresh() {
    for control in ["max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "s-maxage=60"] {
        assert_eq!(asked(&tagged(control).meta(), "", after(59_999)).verdict, Verdict::Fresh, "{control}");
    }
}

#[test]
fn rfc9111_5_2_2_10_s_maxage_is_stale_only_as_the_origin_itself_says() {
    let meta = tagged("s-maxage=60, stale-while-revalidate=10, stale-if-error=20").set(lax).meta();
    assert_eq!(asked(&meta, "", after(69_999)).verdict, Verdict::StaleWhileRevalidate);
    assert_eq!(asked(&meta, "", after(70_000)).verdict, Verdict::Revalidate { if_error: true });
    assert_eq!(asked(&meta, "max-stale=999, stale-if-error=999", after(80_000)).verdict, Verdict::Revalidate { if_error: false });
    let overridden = tagged("s-maxage=60").set(lax).set(|settings| {
        settings.ttl.default = Some(MINUTE);
        settings.ttl.override_origin = true;
    });
    assert_eq!(
        asked(&overridden.meta(), "", after(60_000)).verdict,
        Verdict::StaleWhileRevalidate,
        "if the policy's lifetime holds, so do its windows"
    );
}

#[test]
fn rfc9111_4_2_4_nothing_is_served_stale_without_permission() {
    let meta = tagged("max-age=60").meta();
    for origin in [Origin::Up, Origin::Down] {
        let decision = decide(&meta, &wants(""), after(60_000), origin);
        assert_eq!(decision.verdict, Verdict::Revalidate { if_error: false }, "{origin:?}");
    }
    assert!(!may_answer_failure(&meta, &wants(""), after(60_000)));
}

#[test]
fn rfc9111_4_4_what_was_invalidated_is_validated_before_it_is_used() {
    let meta = tagged("max-age=60, stale-while-revalidate=99, stale-if-error=99").meta().invalidated();
    for request in ["", "max-stale"] {
        let decision = decide(&meta, &wants(request), after(1), Origin::Down);
        assert_eq!((decision.verdict, decision.why), (Verdict::Revalidate { if_error: false }, Why::Invalidated), "{request}");
    }
    assert!(!may_answer_failure(&meta, &wants(""), after(1)));
}

#[test]
fn rfc5861_3_stale_while_revalidate_answers_for_that_long() {
    let meta = tagged("max-age=600, stale-while-revalidate=30").meta();
    let table = [
        (599_999, Verdict::Fresh),
        (600_000, Verdict::StaleWhileRevalidate),
        (629_999, Verdict::StaleWhileRevalidate),
        (630_000, Verdict::Revalidate { if_error: false }),
    ];
    for (at, expected) in table {
        let decision = asked(&meta, "", after(at));
        assert_eq!(decision.verdict, expected, "{at} ms");
        assert_eq!(u64::from(decision.age_field()), at / 1000, "and is visibly stale");
    }
}

#[test]
fn rfc5861_3_windows_that_cannot_be_read_are_none() {
    for control in [
        "max-age=60, stale-while-revalidate",
        "max-age=60, stale-while-revalidate=x",
        "max-age=60, stale-while-revalidate=-1",
        "max-age=60, stale-while-revalidate=9, stale-while-revalidate=x",
    ] {
        let meta = tagged(control).set(lax).meta();
        assert_eq!(meta.while_revalidate, 0, "{control}");
    }
    assert_eq!(tagged("max-age=60, stale-while-revalidate=9, stale-while-revalidate=5").meta().while_revalidate, 5_000);
    assert_eq!(tagged("max-age=60, stale-while-revalidate=99999999999").meta().while_revalidate, 2_147_483_648_000);
}

#[test]
fn rfc5861_windows_of_a_policy_hold_where_the_origin_says_nothing() {
    let meta = tagged("max-age=60").set(lax).meta();
    assert_eq!((meta.while_revalidate, meta.if_error), (60_000, 60_000));
    let said = tagged("max-age=60, stale-while-revalidate=0, stale-if-error=5").set(lax).meta();
    assert_eq!((said.while_revalidate, said.if_error), (0, 5_000));
}

#[test]
fn rfc5861_4_stale_if_error_answers_when_the_origin_fails() {
    let meta = tagged("max-age=600, stale-if-error=1200").meta();
    for (at, allowed) in [(600_000, true), (900_000, true), (1_799_999, true), (1_800_000, false)] {
        assert_eq!(asked(&meta, "", after(at)).verdict, Verdict::Revalidate { if_error: allowed }, "{at}");
        assert_eq!(may_answer_failure(&meta, &wants(""), after(at)), allowed, "{at}");
        let down = decide(&meta, &wants(""), after(at), Origin::Down);
        assert_eq!(down.verdict == Verdict::Stale, allowed, "{at}");
        assert_eq!(down.why == Why::IfError, allowed, "{at}");
    }
}

#[test]
fn rfc5861_4_stale_if_error_of_a_request_is_for_that_request() {
    let meta = tagged("max-age=60").meta();
    for (request, allowed) in [
        ("stale-if-error=10", true),
        ("stale-if-error=5", false),
        ("stale-if-error", false),
        ("stale-if-error=x", false),
        ("", false),
    ] {
        assert_eq!(may_answer_failure(&meta, &wants(request), after(65_000)), allowed, "{request}");
    }
}

#[test]
fn rfc5861_4_errors_are_the_four_that_say_that_the_origin_failed() {
    let found: Vec<u16> = (100..600).filter(|status| status_code::is_failure(*status)).collect();
    assert_eq!(found, [500, 502, 503, 504]);
}

#[test]
fn rfc8246_2_1_immutable_is_not_validated_for_a_reload_while_fresh() {
    let meta = tagged("max-age=60, immutable").meta();
    let table = [
        ("max-age=0", 10_000, Verdict::Fresh, Why::Immutable),
        ("max-age=5", 10_000, Verdict::Fresh, Why::Immutable),
        ("no-cache", 10_000, Verdict::Revalidate { if_error: false }, Why::RequestNoCache),
        ("max-age=0", 60_000, Verdict::Revalidate { if_error: false }, Why::RequestMaxAge),
        ("", 60_000, Verdict::Revalidate { if_error: false }, Why::Expired),
    ];
    for (request, at, verdict, why) in table {
        let decision = asked(&meta, request, after(at));
        assert_eq!((decision.verdict, decision.why), (verdict, why), "{request} {at}");
    }
}

#[test]
fn rfc8246_2_arguments_and_repetitions_of_immutable_mean_nothing() {
    for control in ["max-age=60, immutable=x", "immutable, max-age=60, immutable", "max-age=60, IMMUTABLE=\"1\""] {
        assert!(tagged(control).meta().flags.any(Flags::IMMUTABLE), "{control}");
    }
    assert_eq!(wants("immutable"), Control::default(), "and nothing in a request");
    let never_fresh = tagged("immutable");
    assert_eq!(never_fresh.refused(), NotStored::NoFreshness, "it gives no lifetime");
}

#[test]
fn marks_are_read_again_as_they_were_written() {
    for control in ["max-age=60", "s-maxage=60, immutable", "no-cache, max-age=1", "must-revalidate, max-age=4"] {
        let flags = tagged(control).meta().flags;
        assert_eq!(Flags::from_bits(flags.bits()), flags, "{control}");
    }
    assert_eq!(
        Flags::from_bits(0xffff).source(),
        crate::cache::semantics::freshness::Source::Nobody,
        "of what isn't known nothing is made"
    );
}
