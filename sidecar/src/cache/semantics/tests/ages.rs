//! Age: RFC 9111 sections 4.2, 4.2.3 and 5.1.

use super::*;
use crate::cache::semantics::{
    age::{self, initial},
    meta::Flags,
};

#[test]
fn rfc9111_4_2_a_response_is_fresh_while_its_lifetime_is_greater_than_its_age() {
    let meta = Exchange::control("max-age=60").meta();
    let table = [(0, true), (1, true), (59_999, true), (60_000, false), (60_001, false)];
    for (at, fresh) in table {
        assert_eq!(meta.is_fresh(after(at)), fresh, "{at} ms");
        assert_eq!(meta.staleness(after(at)), at.saturating_sub(60_000), "{at} ms");
    }
}

#[test]
fn rfc9111_4_2_3_initial_age_is_the_larger_of_what_age_and_date_say() {
    let at = |date: Option<i64>, age: &str, delay: u64| {
        let headers = if age.is_empty() { HeaderMap::new() } else { fields(&[("age", age)]) };
        initial(&headers, date.map(|ago| T0.seconds() - ago), T0, after(delay))
    };
    let table = [
        (Some(0), "", 0, 0),
        (Some(0), "30", 0, 30_000),
        (Some(0), "30", 2_000, 32_000),
        (Some(100), "30", 0, 99_001),
        (Some(20), "30", 0, 30_000),
        (Some(-500), "", 0, 0),
        (Some(0), "", 5_000, 5_000),
        (None, "30", 1_000, 31_000),
        (Some(i64::MAX), "", 0, 2_147_483_648_000),
    ];
    for (date, age, delay, expected) in table {
        assert_eq!(at(date, age, delay), expected, "{date:?} {age} {delay}");
    }
    let second = initial(&HeaderMap::new(), Some(T0.seconds()), T0, after(900));
    assert_eq!(second, 900, "a date is rounded down, which is no age");
}

#[test]
fn rfc9111_4_2_3_date_counts_unless_the_policy_says_otherwise() {
    let old = Exchange::control("max-age=3600").without("date").with(&[("date", "Sat, 28 Nov 2026 11:50:00 GMT")]);
    assert_eq!(old.meta().age(T0), 599_001);
    assert_eq!(old.set(|settings| settings.apparent_age = false).meta().age(T0), 0);
}

#[test]
fn rfc9111_4_2_3_current_age_adds_the_time_in_the_store() {
    let exchange = Exchange { at: after(1_000), ..Exchange::control("max-age=60").with(&[("age", "5")]) };
    let meta = exchange.meta();
    assert_eq!(meta.initial_age, 6_000, "counted from when the request was sent");
    for (later, expected) in [(1_000, 6_000), (1_500, 6_500), (61_000, 66_000)] {
        assert_eq!(meta.age(after(later)), expected);
    }
}

#[test]
fn rfc9111_5_1_the_first_age_counts_and_what_is_no_number_is_none() {
    let table: [(&[&str], u32); 14] = [
        (&["7200"], 7200),
        (&["7200, 0"], 7200),
        (&["0, 7200"], 0),
        (&["7200", "0"], 7200),
        (&["0", "7200"], 0),
        (&["0, 0"], 0),
        (&["abc"], 0),
        (&["-7200"], 0),
        (&["7200.0"], 0),
        (&["7200;foo=1"], 0),
        (&["\"7200\""], 0),
        (&[""], 0),
        (&["2147483647"], 2_147_483_647),
        (&["99999999999999999999"], 1 << 31),
    ];
    for (lines, expected) in table {
        let lines: Vec<_> = lines.iter().map(|line| ("age", *line)).collect();
        assert_eq!(age::value(&fields(&lines)), expected, "{lines:?}");
    }
}

#[test]
fn rfc9111_5_1_age_is_sent_in_whole_seconds() {
    for (age, expected) in [(0, 0), (999, 0), (1_000, 1), (61_999, 61), (u64::MAX, 1 << 31)] {
        assert_eq!(age::in_seconds(age), expected);
    }
}

#[test]
fn clocks_that_jump_change_no_age() {
    let meta = Exchange::control("max-age=60").meta();
    for jump in [3_600_000, -3_600_000, 315_360_000_000, i64::MIN / 2] {
        let now = Now { wall: T0.wall.saturating_add(jump), mono: T0.mono + 30_000 };
        assert_eq!(meta.age(now), 30_000, "{jump}");
    }
    let back = Now { wall: T0.wall, mono: 0 };
    assert_eq!(meta.age(back), 0, "a monotonic clock that falls isn't believed");
}

#[test]
fn what_another_process_stored_ages_by_the_wall_clock() {
    let stored = Exchange::control("max-age=60").with(&[("age", "5")]).meta();
    let table =
        [(0, 5_000, false), (30_000, 35_000, false), (-1_000, 5_000, false), (-5_000, 5_000, false), (-5_001, 5_000, true)];
    for (away, age, undated) in table {
        let now = Now { wall: T0.wall + away, mono: 77 };
        let revived = stored.revived(now);
        assert_eq!((revived.age(now), revived.flags.any(Flags::UNDATED)), (age, undated), "{away}");
        assert_eq!(revived.age(Now { mono: 1_077, ..now }), age + 1_000, "and by the monotonic one from then on");
        assert_eq!(asked(&revived, "", now).is_hit(), !undated, "{away}: what can't be dated is validated");
    }
    let jumped = Now { wall: T0.wall + 3_600_000, mono: T0.mono + 10_000 };
    let sent = stored.departing(jumped).revived(Now { wall: jumped.wall + 1_000, mono: 3 });
    assert_eq!(sent.age(Now { wall: 0, mono: 3 }), 16_000, "a jump before it was sent doesn't count");
}

#[test]
fn objects_die_when_nothing_can_be_done_with_them() {
    let base = "max-age=60, stale-while-revalidate=30, stale-if-error=90";
    let bare = Exchange::control(base).meta();
    let tagged = Exchange::control(base).with(&[("etag", "\"1\"")]).meta();
    for (meta, dies) in [(bare, 150_000), (tagged, 750_000)] {
        assert_eq!(meta.dies(), T0.mono + dies);
        assert_eq!(meta.left(after(1_000)), dies - 1_000);
        assert!(!meta.is_dead(after(dies)) && meta.is_dead(after(dies + 1)));
    }
}
