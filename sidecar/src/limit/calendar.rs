//! Windows of the calendar, in a time zone.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use crds::policy::rate_limits::CalendarWindow;
use jiff::{Timestamp, ToSpan as _, Zoned, tz::TimeZone};

use super::shared::{Fixed, Micros};

const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;

/// A quota in each window of the calendar.
pub(super) struct Calendar {
    quota: u64,
    window: CalendarWindow,
    zone: TimeZone,
    /// The window that was asked for last: the same for a long time.
    last: ArcSwap<Fixed>,
}

impl Calendar {
    /// An error if there is no such zone.
    pub(super) fn new(quota: u64, window: CalendarWindow, zone: Option<&str>) -> Result<Self, String> {
        let name = zone.unwrap_or("UTC");
        let zone = TimeZone::get(name).map_err(|_| format!("{name:?} is no time zone"))?;
        let last = ArcSwap::from_pointee(fixed(quota, 0, 1, 2));
        Ok(Self { quota, window, zone, last })
    }

    /// What one window allows.
    pub(super) fn quota(&self) -> u64 {
        self.quota
    }

    /// The window that a time is in, and the one after it.
    pub(super) fn rule(&self, now: Micros) -> Fixed {
        let last = self.last.load();
        if last.has(now) {
            return **last;
        }
        let (start, end) = self.bounds(now);
        let rule = fixed(self.quota, start, end, self.bounds(end).1);
        self.last.store(Arc::new(rule));
        rule
    }

    fn bounds(&self, now: Micros) -> (Micros, Micros) {
        match self.window {
            CalendarWindow::Minute => self.by_clock(now, MINUTE),
            CalendarWindow::Hour => self.by_clock(now, HOUR),
            // Beyond the calendar, which nobody has got to, days have 24 hours.
            _ => self.by_date(now).unwrap_or_else(|| (now - now % DAY, now - now % DAY + DAY)),
        }
    }

    /// Full minutes and hours of the zone: its clock may be ahead by half an hour.
    fn by_clock(&self, now: Micros, length: Micros) -> (Micros, Micros) {
        let offset = time(now).map_or(0, |time| i64::from(self.zone.to_offset(time).seconds()) * 1_000_000);
        let local = now.saturating_add_signed(offset);
        let start = now.saturating_sub(local % length);
        (start, start + length)
    }

    fn by_date(&self, now: Micros) -> Option<(Micros, Micros)> {
        let date = time(now)?.to_zoned(self.zone.clone()).date();
        let (first, next) = match self.window {
            CalendarWindow::Week => {
                let monday = date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()?;
                (monday, monday.checked_add(1.week()).ok()?)
            }
            CalendarWindow::Month => (date.first_of_month(), date.first_of_month().checked_add(1.month()).ok()?),
            _ => (date, date.tomorrow().ok()?),
        };
        let midnight = |date: jiff::civil::Date| micros(&date.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?);
        Some((midnight(first)?, midnight(next)?))
    }
}

fn fixed(quota: u64, start: Micros, end: Micros, next_end: Micros) -> Fixed {
    Fixed::new(quota, start, end, next_end).unwrap_or(Fixed::BEFORE_ALL)
}

fn time(at: Micros) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(at).ok()?).ok()
}

fn micros(time: &Zoned) -> Option<Micros> {
    Micros::try_from(time.timestamp().as_microsecond()).ok()
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} each {:?} of {:?}", self.quota, self.window, self.zone.iana_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> Micros {
        Micros::try_from(time.parse::<Timestamp>().unwrap().as_microsecond()).unwrap()
    }

    #[test]
    fn windows_are_those_of_the_zones_own_clock() {
        use CalendarWindow::{Day, Hour, Minute, Month, Week};
        for (window, zone, now, start, end, next_end) in [
            (Day, "UTC", "2026-11-29T22:04:15Z", "2026-11-29T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"),
            (
                Day,
                "Europe/Berlin",
                "2026-11-29T23:30:00Z",
                "2026-11-29T23:00:00Z",
                "2026-11-30T23:00:00Z",
                "2026-12-01T23:00:00Z",
            ),
            // The day on which clocks go forward has 23 hours, and the one on which they go back 25.
            (
                Day,
                "Europe/Berlin",
                "2026-03-29T12:00:00Z",
                "2026-03-28T23:00:00Z",
                "2026-03-29T22:00:00Z",
                "2026-03-30T22:00:00Z",
            ),
            (
                Day,
                "Europe/Berlin",
                "2026-10-25T12:00:00Z",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
                "2026-10-26T23:00:00Z",
            ),
            // A zone in which midnight is skipped when clocks go forward.
            (
                Day,
                "America/Santiago",
                "2026-09-06T12:00:00Z",
                "2026-09-06T04:00:00Z",
                "2026-09-07T03:00:00Z",
                "2026-09-08T03:00:00Z",
            ),
            (Week, "UTC", "2026-11-29T22:04:15Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-07T00:00:00Z"),
            (Month, "UTC", "2027-01-31T22:04:15Z", "2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z"),
            (Month, "Asia/Tokyo", "2026-12-31T15:00:00Z", "2026-12-31T15:00:00Z", "2027-01-31T15:00:00Z", "2027-02-28T15:00:00Z"),
            (
                Hour,
                "Asia/Kolkata",
                "2026-11-29T22:04:15Z",
                "2026-11-29T21:30:00Z",
                "2026-11-29T22:30:00Z",
                "2026-11-29T23:30:00Z",
            ),
            (Minute, "UTC", "2026-11-29T22:04:15Z", "2026-11-29T22:04:00Z", "2026-11-29T22:05:00Z", "2026-11-29T22:06:00Z"),
        ] {
            let calendar = Calendar::new(7, window, Some(zone)).unwrap();
            let expected = Fixed::new(7, at(start), at(end), at(next_end)).unwrap();
            assert_eq!(calendar.rule(at(now)), expected, "{window:?} of {zone} at {now}");
            assert_eq!(calendar.rule(at(start)), expected, "its first microsecond");
            assert_eq!(calendar.rule(at(end) - 1), expected, "its last one");
            assert_ne!(calendar.rule(at(end)), expected, "the next one");
        }
    }

    #[test]
    fn zone_that_is_not_there_is_an_error() {
        assert!(Calendar::new(1, CalendarWindow::Day, Some("Europe/Nowhere")).is_err());
        assert!(Calendar::new(1, CalendarWindow::Day, None).is_ok());
    }
}
