//! Scalars that a document spells as strings: durations (`1m30s`, `500ms`), sizes (`64Ki`).

use std::{borrow::Cow, fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A length of time in the format of the Gateway API (GEP-2257): up to four of `{number}{h|m|s|ms}`, such as `1m30s`. The longest
/// that can be written is `99999h59m59s999ms`; what adds up to more is read as that.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Duration(pub time::Duration);

impl Duration {
    /// The pattern that the schema carries.
    pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

    const LONGEST_MILLIS: u64 = 100_000 * 3_600_000 - 1;
    const LONGEST: Self = Self::from_millis(Self::LONGEST_MILLIS);

    /// A duration of whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(time::Duration::from_millis(millis))
    }

    /// A duration of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(time::Duration::from_secs(secs))
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration: write up to four of {{number}}{{h|m|s|ms}}, such as 500ms or 1m30s");
        let mut total = time::Duration::ZERO;
        let mut rest = text;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            if !(1..=5).contains(&digits) || parts == 4 {
                return Err(wrong());
            }
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let units: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
            let (unit, millis) = units.into_iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(wrong)?;
            total += time::Duration::from_millis(number * millis);
            rest = &tail[unit.len()..];
            parts += 1;
        }
        if parts == 0 { Err(wrong()) } else { Ok(Self(total).min(Self::LONGEST)) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": Self::PATTERN, "maxLength": 24})
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A number of bytes in the binary units of Kubernetes quantities: `512`, `64Ki`, `1Mi`, `2Gi`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Size(pub u64);

impl Size {
    /// The pattern that the schema carries.
    pub const PATTERN: &str = "^[0-9]{1,10}(Ki|Mi|Gi)?$";

    /// So many times 1,024 bytes.
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: write bytes, or a number with Ki, Mi or Gi, such as 64Ki");
        let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
        let cut = units.into_iter().find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, shift)));
        let (digits, shift) = cut.unwrap_or((text, 0));
        let right = (1..=10).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = digits.parse().ok().filter(|_| right).ok_or_else(wrong)?;
        Ok(Self(number << shift))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
        match units.into_iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": Self::PATTERN, "maxLength": 12})
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_written_in_the_largest_units() {
        let cases = [("90s", "1m30s"), ("1000ms", "1s"), ("0ms", "0s"), ("1m1m", "2m"), ("24h", "24h"), ("1h0m5ms", "1h5ms")];
        for (text, canonical) in cases {
            assert_eq!(text.parse::<Duration>().map(|duration| duration.to_string()), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_what_would_be_right() {
        for text in ["", "5", "s", "1.5s", "-1s", "1d", "100000s", "1s1s1s1s1s", " 1s", "1s ", "1 s", "1us"] {
            let refused = text.parse::<Duration>().expect_err(text);
            assert!(refused.contains("such as 500ms or 1m30s"), "{refused}");
        }
    }

    #[test]
    fn longest_duration_can_be_written() {
        let longest = "99999h".repeat(4).parse::<Duration>();
        assert_eq!(longest, Ok(Duration::LONGEST));
        assert_eq!(Duration::LONGEST.to_string().parse(), longest);
    }

    #[test]
    fn sizes_are_read_and_written_in_the_largest_unit() {
        for (text, bytes, canonical) in
            [("0", 0, "0"), ("512", 512, "512"), ("1024", 1024, "1Ki"), ("64Ki", 65536, "64Ki"), ("2048Mi", 2 << 30, "2Gi")]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string(), canonical);
        }
        for text in ["", "Ki", "1K", "1k", "1.5Mi", "-1", "+1", "1 Ki", "12345678901"] {
            assert!(text.parse::<Size>().expect_err(text).contains("such as 64Ki"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(millis in 0..=Duration::LONGEST_MILLIS) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn whatever_meets_the_pattern_is_read(text in "([0-9]{1,5}(h|m|s|ms)){1,4}") {
            let duration = text.parse::<Duration>();
            prop_assert!(text.len() > 24 || duration.is_ok_and(|duration| duration.to_string().len() <= 24), "{text}");
        }
    }
}
