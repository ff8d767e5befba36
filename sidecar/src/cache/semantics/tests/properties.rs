//! What holds whatever comes in.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::cache::semantics::{
    conditional::{Answer, answer},
    freshness::jittered,
    meta::Flags,
    parts::{Content, Pieces, Slice},
    range::{ByteRange, select},
    serve::{Verdict, may_answer_failure},
    settings::{SetCookie, StatusTtl},
    validators::Validators,
    vary::variant,
};

/// Directives as origins and attackers write them.
fn directive() -> impl Strategy<Value = String> {
    let names = prop_oneof![
        Just("max-age"),
        Just("s-maxage"),
        Just("stale-while-revalidate"),
        Just("stale-if-error"),
        Just("no-cache"),
        Just("must-revalidate"),
        Just("proxy-revalidate"),
        Just("public"),
        Just("immutable"),
        Just("must-understand"),
        Just("x-other"),
    ];
    let arguments = prop_oneof![
        4 => (0..200u32).prop_map(|seconds| format!("={seconds}")),
        2 => Just(String::new()),
        1 => Just("=\"x-a\"".to_owned()),
        1 => Just("=99999999999".to_owned()),
        1 => "=[ -~]{0,6}".prop_filter("no quote stays open", |text| text.matches('"').count().is_multiple_of(2) && !text.contains('\\')),
    ];
    (names, arguments).prop_map(|(name, argument)| format!("{name}{argument}"))
}

fn cache_control() -> impl Strategy<Value = String> {
    vec(directive(), 0..6).prop_map(|all| all.join(", "))
}

fn settings() -> impl Strategy<Value = Settings> {
    (any::<[bool; 7]>(), 0..300u64, 0..100u8).prop_map(|(flags, seconds, jitter)| {
        let mut settings = Settings::default();
        let ttl = Duration::from_secs(seconds);
        settings.ttl.default = flags[0].then_some(ttl);
        settings.ttl.override_origin = flags[1];
        settings.ttl.by_status = if flags[2] { vec![StatusTtl { from: 200, to: 599, ttl }] } else { Vec::new() };
        settings.heuristic = flags[3];
        settings.stale.while_revalidate = flags[4].then_some(ttl);
        settings.stale.if_error = flags[5].then_some(ttl);
        settings.set_cookie = if flags[6] { SetCookie::Strip } else { SetCookie::Refuse };
        settings.jitter = jitter;
        settings
    })
}

fn status() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(200), 1 => 200..600u16]
}

fn exchange() -> impl Strategy<Value = Exchange> {
    (cache_control(), settings(), status(), 0..400u32, any::<bool>(), any::<u32>()).prop_map(
        |(control, settings, status, age, tagged, random)| {
            let exchange = Exchange::get(&[("age", &age.to_string()), ("last-modified", "Fri, 27 Nov 2026 12:00:00 GMT")]);
            let exchange = if tagged { exchange.with(&[("etag", "\"1\"")]) } else { exchange };
            let exchange = if control.is_empty() { exchange } else { exchange.with(&[("cache-control", &control)]) };
            Exchange { settings, random, ..exchange.status(status) }
        },
    )
}

fn request() -> impl Strategy<Value = Control> {
    let directives = prop_oneof![
        Just(String::new()),
        Just("max-stale".to_owned()),
        (0..300u32).prop_map(|seconds| format!("max-stale={seconds}, stale-if-error={seconds}")),
        (0..300u32).prop_map(|seconds| format!("max-age={seconds}")),
        (0..300u32).prop_map(|seconds| format!("min-fresh={seconds}, max-stale={seconds}")),
        Just("no-cache, only-if-cached".to_owned()),
    ];
    directives.prop_map(|directives| wants(&directives))
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![Just(Origin::Up), Just(Origin::Down)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_store_and_private_are_never_stored(
        exchange in exchange(),
        forbidden in prop_oneof![Just("no-store"), Just("private"), Just("No-Store=x"), Just("PRIVATE=\"\""), Just(" private =a"), Just("no-store = ")],
        first in any::<bool>(),
    ) {
        let control = exchange.response.get("cache-control").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        // The only thing that goes before `no-store` is `must-understand`, which is how an origin allows it.
        prop_assume!(!control.contains("must-understand"));
        let control = if first { format!("{forbidden}, {control}") } else { format!("{control}, {forbidden}") };
        let exchange = exchange.without("cache-control").with(&[("cache-control", &control)]);
        prop_assert!(exchange.judged().is_err(), "{}", control);
    }

    #[test]
    fn age_never_falls(exchange in exchange(), steps in vec((0..100_000u64, any::<i64>()), 0..20)) {
        let Ok(Storable { mut meta, .. }) = exchange.judged() else { return Ok(()) };
        let (mut now, mut age) = (T0, meta.age(T0));
        for (passed, wall) in steps {
            now = Now { wall, mono: now.mono + passed };
            prop_assert_eq!(meta.age(now), age + passed, "time goes by and nothing else");
            age += passed;
            if wall % 3 == 0 {
                // To another process and back.
                meta = meta.departing(now).revived(Now { mono: 5, ..now });
                now.mono = 5;
                prop_assert_eq!(meta.age(now), age);
            }
        }
    }

    #[test]
    fn what_is_stale_is_never_fresh_again_wherever_the_wall_clock_steps(
        exchange in exchange(),
        steps in vec((0..100_000u64, any::<i64>(), any::<bool>()), 0..20),
    ) {
        let Ok(Storable { mut meta, .. }) = exchange.judged() else { return Ok(()) };
        let (mut now, mut fresh, mut dead) = (T0, true, false);
        for (passed, wall, moves) in steps {
            now = Now { wall, mono: now.mono + passed };
            if moves {
                // To another process, whose wall clock may stand elsewhere.
                meta = meta.departing(now).revived(Now { wall: wall.saturating_add(wall % 100_000), mono: 7 });
                now.mono = 7;
            }
            let usable = decide(&meta, &wants(""), now, Origin::Up).verdict == Verdict::Fresh;
            prop_assert!(fresh || !usable);
            prop_assert!(moves || !dead || meta.is_dead(now));
            (fresh, dead) = (fresh && usable, meta.is_dead(now));
        }
    }

    #[test]
    fn revived_objects_are_as_old_as_they_were_or_are_not_used(exchange in exchange(), away in -100_000..100_000i64) {
        let Ok(Storable { meta, .. }) = exchange.judged() else { return Ok(()) };
        let now = Now { wall: T0.wall + away, mono: 9 };
        let revived = meta.revived(now);
        prop_assert!(revived.age(now) >= meta.initial_age);
        prop_assert!(away >= -5_000 || !decide(&revived, &wants(""), now, Origin::Down).is_hit());
    }

    #[test]
    fn nothing_is_stale_without_permission(exchange in exchange(), control in request(), later in 0..1_000_000u64, origin in origin()) {
        let Ok(Storable { meta, .. }) = exchange.judged() else { return Ok(()) };
        let now = after(later);
        let decision = decide(&meta, &control, now, origin);
        let (age, staleness) = (meta.age(now), meta.staleness(now));
        prop_assert_eq!(decision.age, age);
        let own = staleness < meta.while_revalidate || staleness < meta.if_error;
        let strict = meta.flags.any(Flags::MUST_REVALIDATE.and(Flags::S_MAXAGE));
        let asked = control.max_stale.or(control.stale_if_error).is_some();
        if decision.is_hit() && meta.lifetime <= age {
            prop_assert!(own || (asked && !strict), "{:?}", decision);
            prop_assert!(!meta.flags.any(Flags::MUST_REVALIDATE));
        }
        if decision.is_hit() || decision.verdict == (Verdict::Revalidate { if_error: true }) {
            prop_assert!(!meta.flags.any(Flags::NO_CACHE.and(Flags::INVALID).and(Flags::UNDATED)));
        }
        prop_assert!(decision.verdict != Verdict::Fresh || meta.lifetime > age);
        if let Verdict::Revalidate { if_error } = decision.verdict {
            prop_assert_eq!(if_error, may_answer_failure(&meta, &control, now));
            prop_assert!(!control.only_if_cached);
        }
    }

    #[test]
    fn the_lifetime_is_never_longer_than_the_origin_says(seconds in 0..=u32::MAX, jitter in 0..=255u8, random: u32) {
        let exchange = Exchange::control(&format!("max-age={seconds}")).with(&[("etag", "\"1\"")]);
        let exchange = Exchange { random, ..exchange }.set(|settings| settings.jitter = jitter);
        prop_assert!(exchange.meta().lifetime <= u64::from(seconds) * 1000);
        prop_assert!(jittered(u64::from(seconds), jitter, random) <= u64::from(seconds));
    }

    #[test]
    fn ranges_that_are_sent_lie_in_the_content_and_apart(value in "bytes=([0-9]{0,3}-[0-9]{0,3},? ?){0,12}", length in 0..2_000u64) {
        if let Answer::Parts(parts) = select([value.as_bytes()].into_iter(), length) {
            prop_assert!(!parts.is_empty());
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(part.first <= part.last && part.last < length);
                prop_assert!(parts[..index].iter().all(|other| other.last < part.first || part.last < other.first));
            }
        }
    }

    #[test]
    fn pieces_are_those_that_were_added(added in vec((0..200u64, 0..30u64), 0..40), wanted in (0..200u64, 0..30u64)) {
        let mut pieces = Pieces::default();
        let mut model = [false; 240];
        for (first, length) in added {
            if pieces.add(ByteRange { first, last: first + length }) {
                (first..=first + length).for_each(|at| model[usize::try_from(at).unwrap()] = true);
            }
        }
        prop_assert!(pieces.ranges().windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        let wanted = ByteRange { first: wanted.0, last: wanted.0 + wanted.1 };
        let there = |at: u64| model[usize::try_from(at).unwrap()];
        prop_assert_eq!(pieces.covers(wanted), (wanted.first..=wanted.last).all(there));
    }

    #[test]
    fn joined_parts_are_never_anything_but_the_bytes_of_the_whole(
        whole in vec(any::<u8>(), 1..400),
        parts in vec((0..400u64, 1..120u64), 1..40),
        most in prop_oneof![Just(u64::MAX), 120..300u64],
        asked in vec((0..400u64, 1..100u64), 1..20),
    ) {
        let complete = whole.len() as u64;
        let clip = |(first, length): (u64, u64)| {
            let first = first % complete;
            ByteRange { first, last: (first + length - 1).min(complete - 1) }
        };
        let of_whole = |range: ByteRange| whole[range.first as usize..=range.last as usize].to_vec();
        let (mut content, mut body) = (Content { pieces: Pieces::default(), complete }, Vec::new());
        for part in parts.into_iter().map(clip) {
            let joined = content.joined(part, most);
            if let Some(slices) = joined.slices {
                let of = |slice: &Slice| match slice {
                    Slice::Stored(range) => body[range.start as usize..range.end as usize].to_vec(),
                    Slice::Newer => of_whole(part),
                };
                body = slices.iter().flat_map(of).collect();
            }
            content = joined.content;
            prop_assert!(content.pieces.covers(part), "a part that has just come is there");
            prop_assert_eq!(content.length(), body.len() as u64);
            prop_assert!(content.length() <= most.max(part.length()));
            prop_assert_eq!(content.is_whole(), body == whole);
            let mut noted = HeaderMap::new();
            content.note(&mut noted);
            prop_assert!(content.is_whole() || Content::of(&noted).as_ref() == Some(&content));
            for wanted in asked.iter().copied().map(clip) {
                let found = content.place(wanted).map(|place| body[place.start as usize..place.end as usize].to_vec());
                prop_assert_eq!(found.is_some(), content.pieces.covers(wanted));
                prop_assert!(found.is_none_or(|found| found == of_whole(wanted)));
            }
        }
    }

    #[test]
    fn variants_are_the_same_for_the_same_values_only(
        names in vec("x-[ab]", 1..3),
        first in vec(prop::option::of("[ -~]{0,8}"), 2),
        second in vec(prop::option::of("[ -~]{0,8}"), 2),
    ) {
        let request = |values: &[Option<String>]| {
            let lines = ["x-a", "x-b"].into_iter().zip(values).filter_map(|(name, value)| Some((name, value.as_deref()?))).collect::<Vec<_>>();
            fields(&lines)
        };
        let selecting: Vec<_> = names.iter().map(|name| HeaderName::try_from(name.as_str()).unwrap()).collect();
        let key = |headers: &HeaderMap| {
            let mut out = Vec::new();
            variant(&selecting, headers, &mut out).unwrap();
            out
        };
        let (first, second) = (request(&first), request(&second));
        let values = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().trim_matches([' ', '\t']).to_owned());
        let same = names.iter().all(|name| values(&first, name) == values(&second, name));
        prop_assert_eq!(key(&first) == key(&second), same);
    }

    #[test]
    fn any_bytes_in_any_field_are_judged(
        request in vec((0..8usize, vec(any::<u8>(), 0..40)), 0..6),
        response in vec((0..14usize, vec(any::<u8>(), 0..40)), 0..10),
        status in 100..1000u16,
    ) {
        const ASKS: [&str; 8] = ["cache-control", "pragma", "range", "if-range", "if-none-match", "if-modified-since", "accept-encoding", "accept-language"];
        const SAYS: [&str; 14] = [
            "cache-control", "cdn-cache-control", "fetchr-cache-control", "expires", "date", "age", "etag", "last-modified", "vary", "connection",
            "content-range", "content-length", "cache-groups", "location",
        ];
        let of = |lines: &[(usize, Vec<u8>)], names: &[&'static str]| {
            let mut all = HeaderMap::new();
            for (name, value) in lines {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    all.append(HeaderName::from_static(names[*name]), value);
                }
            }
            all
        };
        let exchange = Exchange { request: of(&request, &ASKS), response: of(&response, &SAYS), status, ..Exchange::get(&[]) };
        let exchange = exchange.set(|settings| settings.heuristic = true);
        let mut key = Vec::new();
        let _ = variant(ASKS.map(HeaderName::from_static), &exchange.request, &mut key);
        if let Ok(stored) = exchange.judged() {
            let _ = decide(&stored.meta, &exchange.asks().control, after(5_000), Origin::Up);
            let _ = answer(&exchange.asks(), &exchange.request, &stored.meta, &Validators::of(&exchange.response), Some(100));
        }
    }
}
