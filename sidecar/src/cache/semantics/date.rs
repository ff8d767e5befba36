//! Dates of HTTP (RFC 9110 section 5.6.7), read as caches have to (RFC 9111 section 4.2): all three formats, in any case, in GMT and
//! nothing else.

use std::time::{Duration, UNIX_EPOCH};

use super::{clock::Seconds, list::trim};

/// A year of two digits that is further ahead than this is one of the last century.
const AHEAD: i64 = 50;

/// The last second that the format can say: the end of the year 9999.
const LAST: Seconds = 253_402_300_799;

/// Reads a date; `now` decides what century a year of two digits is in. None if it is none.
///
/// Whether the day of the week is the right one isn't looked at: it says nothing that the date doesn't.
pub(crate) fn parse(value: &[u8], now: Seconds) -> Option<Seconds> {
    let text = trim(value);
    let comma = text.iter().position(|&byte| byte == b',');
    match comma {
        Some(3) => imf_fixdate(text),
        Some(at) => rfc850(&text[..at], &text[at..], now),
        None => asctime(text),
    }
}

/// Writes a date. What lies outside the years 1970 to 9999 is moved to the nearest end.
pub(crate) fn format(date: Seconds) -> String {
    let seconds = u64::try_from(date.clamp(0, LAST)).unwrap_or_default();
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<Seconds> {
    let [w0, w1, w2, b',', b' ', d0, d1, b' ', m0, m1, m2, b' ', y0, y1, y2, y3, b' ', rest @ ..] = text else { return None };
    short_weekday([*w0, *w1, *w2])?;
    let year = number(&[*y0, *y1, *y2, *y3])?;
    instant(year, month(&[*m0, *m1, *m2])?, number(&[*d0, *d1])?, time_gmt(rest)?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(day_name: &[u8], rest: &[u8], now: Seconds) -> Option<Seconds> {
    let [b',', b' ', d0, d1, b'-', m0, m1, m2, b'-', y0, y1, b' ', rest @ ..] = rest else { return None };
    weekday(day_name)?;
    let this_year = civil_year(now);
    let mut year = this_year - this_year.rem_euclid(100) + number(&[*y0, *y1])?;
    // The century is the one that brings the year nearest, and never more than 50 years ahead.
    if year > this_year + AHEAD {
        year -= 100;
    } else if year + 100 <= this_year + AHEAD {
        year += 100;
    }
    instant(year, month(&[*m0, *m1, *m2])?, number(&[*d0, *d1])?, time_gmt(rest)?)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<Seconds> {
    let [w0, w1, w2, b' ', m0, m1, m2, b' ', d0, d1, b' ', rest @ ..] = text else { return None };
    short_weekday([*w0, *w1, *w2])?;
    let (time, year) = rest.split_at_checked(8)?;
    let [b' ', year @ ..] = year else { return None };
    let day = if *d0 == b' ' { number(&[*d1])? } else { number(&[*d0, *d1])? };
    let year = if year.len() == 4 { number(year)? } else { return None };
    instant(year, month(&[*m0, *m1, *m2])?, day, time_of_day(time)?)
}

/// `08:49:37 GMT`
fn time_gmt(text: &[u8]) -> Option<i64> {
    let (time, zone) = text.split_at_checked(8)?;
    if zone.eq_ignore_ascii_case(b" GMT") { time_of_day(time) } else { None }
}

/// Seconds since midnight. A leap second is the one before it, for an expiry may come early and never late.
fn time_of_day(text: &[u8]) -> Option<i64> {
    let [h0, h1, b':', m0, m1, b':', s0, s1] = text else { return None };
    let (hour, minute, second) = (number(&[*h0, *h1])?, number(&[*m0, *m1])?, number(&[*s0, *s1])?);
    (hour < 24 && minute < 60 && second <= 60).then(|| hour * 3600 + minute * 60 + second.min(59))
}

fn instant(year: i64, month: i64, day: i64, time: i64) -> Option<Seconds> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    ((1..=length).contains(&day)).then(|| days(year, month, day) * 86_400 + time)
}

/// Days from 1970-01-01 in the Gregorian calendar. Years begin in March here, so that the leap day is the last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// The year of a moment; a day too early or too late at its ends does no harm to who asks.
fn civil_year(moment: Seconds) -> i64 {
    let day = moment.div_euclid(86_400);
    1970 + (day * 400).div_euclid(146_097)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
}

fn month(name: &[u8; 3]) -> Option<i64> {
    Some(match &name.map(|byte| byte.to_ascii_lowercase()) {
        b"jan" => 1,
        b"feb" => 2,
        b"mar" => 3,
        b"apr" => 4,
        b"may" => 5,
        b"jun" => 6,
        b"jul" => 7,
        b"aug" => 8,
        b"sep" => 9,
        b"oct" => 10,
        b"nov" => 11,
        b"dec" => 12,
        _ => return None,
    })
}

/// The name of a day, of three letters.
fn short_weekday(name: [u8; 3]) -> Option<()> {
    matches!(&name.map(|byte| byte.to_ascii_lowercase()), b"mon" | b"tue" | b"wed" | b"thu" | b"fri" | b"sat" | b"sun")
        .then_some(())
}

/// The whole name of a day.
fn weekday(name: &[u8]) -> Option<()> {
    const NAMES: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    NAMES.iter().any(|day| name.eq_ignore_ascii_case(day.as_bytes())).then_some(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    /// 2026-11-28.
    const NOW: Seconds = 1_795_824_000;

    #[test]
    fn rfc9110_5_6_7_all_three_formats_are_read() {
        let table = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
            ("Sun Nov  6 08:49:37 1994", 784_111_777),
            ("Sun Nov 16 08:49:37 1994", 784_975_777),
            (" Sun, 06 Nov 1994 08:49:37 GMT\t", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
            ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
            ("Tue, 29 Feb 2000 00:00:00 GMT", 951_782_400),
            ("Fri, 31 Dec 9999 23:59:59 GMT", LAST),
            ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_799),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.as_bytes(), NOW), Some(expected), "{text}");
        }
    }

    #[test]
    fn rfc9110_5_6_7_two_digits_of_a_year_are_at_most_fifty_years_ahead() {
        let table = [("26", 2026), ("76", 2076), ("77", 1977), ("94", 1994), ("00", 2000)];
        for (digits, year) in table {
            let read = parse(format!("Sunday, 06-Nov-{digits} 08:49:37 GMT").as_bytes(), NOW);
            assert_eq!(read, parse(format!("Sun, 06 Nov {year} 08:49:37 GMT").as_bytes(), NOW), "{digits}");
        }
        let in_2090 = parse(b"Fri, 01 Sep 2090 00:00:00 GMT", NOW).unwrap();
        let read = parse(b"Sunday, 06-Nov-05 08:49:37 GMT", in_2090);
        assert_eq!(read, parse(b"Sun, 06 Nov 2105 08:49:37 GMT", NOW), "and may be in the next century");
    }

    #[test]
    fn rfc9111_4_2_dates_are_read_in_any_case() {
        for text in ["sun, 06 nov 1994 08:49:37 gmt", "SUN, 06 NOV 1994 08:49:37 GMT", "sUNDAY, 06-nOV-94 08:49:37 Gmt"] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn rfc9111_4_2_what_is_no_date_is_none() {
        let table = [
            "",
            "0",
            "-1",
            "now",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 2023 08:49:37 GMT",
            "Mon, 29 Feb 2100 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Son, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun Nov  6 08:49:37 94",
        ];
        for text in table {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(date in 0..=LAST) {
            prop_assert_eq!(parse(format(date).as_bytes(), NOW), Some(date));
        }

        #[test]
        fn dates_are_those_of_httpdate(text in "(Mon|Tue|Sunday),? [0-3][0-9][ -](Jan|Feb|Nov|Dec)[ -](19|20)[0-9]{2} [0-2][0-9]:[0-5][0-9]:[0-5][0-9] GMT") {
            // It asks for the right day of the week too, so it knows fewer dates.
            if let Ok(theirs) = httpdate::parse_http_date(&text) {
                let theirs = theirs.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
                prop_assert_eq!(parse(text.as_bytes(), NOW), Some(Seconds::try_from(theirs).unwrap()));
            }
        }

        #[test]
        fn any_bytes_are_a_date_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40), now: i32) {
            let _ = parse(&bytes, i64::from(now));
        }
    }
}
