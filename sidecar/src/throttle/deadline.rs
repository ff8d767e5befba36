//! When a client does not wait any longer, as its request says.

use std::time::{Duration, Instant};

use crds::policy::throttle::Deadline as Spec;
use http::{HeaderMap, HeaderName};

use super::gate::now;

/// Longer than any client waits: what asks for more means this.
const LONGEST: Duration = Duration::from_secs(86_400);

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A time limit on a request, and when it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) limit: Duration,
}

impl Deadline {
    /// What is left until it ends.
    pub(crate) fn left(self) -> Duration {
        self.at.saturating_duration_since(now())
    }
}

/// What a policy says of deadlines, compiled.
#[derive(Debug)]
pub(super) struct Deadlines {
    header: Option<HeaderName>,
    default: Option<Duration>,
}

impl Deadlines {
    pub(super) fn build(spec: Option<&Spec>) -> Result<Self, String> {
        let Some(Spec { header, default }) = spec else { return Ok(Self { header: None, default: None }) };
        let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"));
        Ok(Self { header: header.as_ref().map(name).transpose()?, default: default.map(|limit| limit.0) })
    }

    /// When a request that began at `started` is too late; none if nobody says so.
    pub(super) fn of(&self, headers: &HeaderMap, grpc: bool, started: Instant) -> Option<Deadline> {
        let asked = self.header.as_ref().and_then(|name| parse(headers.get(name)?.to_str().ok()?));
        let called = || parse_grpc(headers.get(GRPC_TIMEOUT)?.to_str().ok()?);
        let limit = [asked.or(self.default), if grpc { called() } else { None }].into_iter().flatten().min()?;
        Some(Deadline { at: started + limit, limit })
    }
}

/// `2.5`, `2.5s`, `250ms` or `1m`. Nothing of what is none, or less than nothing.
fn parse(value: &str) -> Option<Duration> {
    let value = value.trim();
    let (number, seconds) = [("ms", 0.001), ("s", 1.0), ("m", 60.0)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((value.strip_suffix(unit)?, seconds)))
        .unwrap_or((value, 1.0));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let limit = number.parse::<f64>().ok()? * seconds;
    Some(Duration::try_from_secs_f64(limit).unwrap_or(LONGEST).min(LONGEST))
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: up to eight digits, and a unit.
fn parse_grpc(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&number.len()) || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    let limit = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(limit.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    #[test]
    fn limits_are_read_as_clients_write_them() {
        for (value, limit) in [
            ("2.5", ms(2500)),
            ("3", ms(3000)),
            (" 250ms", ms(250)),
            ("1.5s", ms(1500)),
            ("2m", ms(120_000)),
            ("0", ms(0)),
            ("1e3", None),
            ("-1", None),
            ("", None),
            ("s", None),
            (".", None),
            ("inf", None),
            ("99999999999999999999999", Some(LONGEST)),
        ] {
            assert_eq!(parse(value), limit, "{value:?}");
        }
        for (value, limit) in [
            ("100m", ms(100)),
            ("1S", ms(1000)),
            ("2M", ms(120_000)),
            ("1H", ms(3_600_000)),
            ("5000u", ms(5)),
            ("5000000n", ms(5)),
            ("99999999H", Some(LONGEST)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("ü", None),
        ] {
            assert_eq!(parse_grpc(value), limit, "{value:?}");
        }
    }

    #[test]
    fn earliest_limit_holds_and_that_of_grpc_for_calls_only() {
        let deadlines = |json: &str| Deadlines::build(Some(&serde_json::from_str(json).unwrap())).unwrap();
        let both = deadlines(r#"{"header": "X-Timeout", "default": "5s"}"#);
        let now = Instant::now();
        let limit = |deadlines: &Deadlines, fields: &[(&'static str, &'static str)], grpc| {
            let headers = fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
            deadlines.of(&headers, grpc, now).map(|deadline| {
                assert_eq!(deadline.at, now + deadline.limit);
                deadline.limit
            })
        };
        assert_eq!(limit(&both, &[], false), ms(5000));
        assert_eq!(limit(&both, &[("x-timeout", "9")], false), ms(9000), "the client's own word");
        assert_eq!(limit(&both, &[("x-timeout", "soon")], false), ms(5000));
        assert_eq!(limit(&both, &[("x-timeout", "9"), ("grpc-timeout", "2S")], true), ms(2000));
        assert_eq!(limit(&both, &[("grpc-timeout", "2S")], false), ms(5000));
        let none = Deadlines::build(None).unwrap();
        assert_eq!(limit(&none, &[("grpc-timeout", "2S")], true), ms(2000));
        assert_eq!(limit(&none, &[("x-timeout", "2")], false), None);
    }
}
