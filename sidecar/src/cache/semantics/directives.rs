//! The directives of a response (RFC 9111 section 5.2.2, RFC 5861, RFC 8246), read with tolerance and never to the laxer side: what
//! is said twice holds in its stricter form, and what can't be understood of a lifetime is a lifetime of nothing.

use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::list::{members, trim};

/// What a number of seconds too large for us is (RFC 9111 section 1.2.2).
pub(crate) const LONGEST: u32 = 1 << 31;

/// Field names in the arguments of `no-cache` and `private` above this are as if it had none: the stricter form.
const MOST_NAMES: usize = 32;

/// Names of fields.
pub(crate) type Names = SmallVec<[HeaderName; 4]>;

/// Directives for a shared cache. Lengths of time are in seconds, at most [`LONGEST`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Directives {
    pub(crate) max_age: Option<u32>,
    pub(crate) s_maxage: Option<u32>,
    pub(crate) stale_while_revalidate: Option<u32>,
    pub(crate) stale_if_error: Option<u32>,
    pub(crate) no_store: bool,
    /// Without field names, or with names that can't be read.
    pub(crate) no_cache: bool,
    /// Without field names, or with names that can't be read.
    pub(crate) private: bool,
    /// `no-cache` or `private` names fields: [`named`] tells them.
    pub(crate) names: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) public: bool,
    pub(crate) immutable: bool,
}

/// What stands behind the name of a directive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Argument<'a> {
    Absent,
    /// Without quotes.
    Text(&'a [u8]),
    Seconds(u32),
    /// Something of a form that the directive doesn't have.
    Broken,
}

impl Directives {
    /// Reads `Cache-Control`, all lines of it.
    pub(crate) fn cache_control<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut all = Self::default();
        for (name, argument) in lines.flat_map(directives) {
            all.take(name, argument);
        }
        all
    }

    /// Adds one directive. Unknown ones change nothing (section 5.2.3).
    pub(crate) fn take(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            6 if is("public") => self.public = true,
            7 if is("max-age") => least(&mut self.max_age, argument),
            7 if is("private") => restrict(&mut self.private, &mut self.names, argument),
            8 if is("no-cache") => restrict(&mut self.no_cache, &mut self.names, argument),
            8 if is("no-store") => self.no_store = true,
            8 if is("s-maxage") => least(&mut self.s_maxage, argument),
            9 if is("immutable") => self.immutable = true,
            14 if is("stale-if-error") => least(&mut self.stale_if_error, argument),
            15 if is("must-revalidate") => self.must_revalidate = true,
            15 if is("must-understand") => self.must_understand = true,
            16 if is("proxy-revalidate") => self.proxy_revalidate = true,
            22 if is("stale-while-revalidate") => least(&mut self.stale_while_revalidate, argument),
            _ => {}
        }
    }
}

/// Members of one line, as names and arguments.
pub(crate) fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], Argument<'_>)> {
    members(line).map(|member| match member.iter().position(|&byte| byte == b'=') {
        None => (member, Argument::Absent),
        Some(at) => {
            let (name, value) = (trim(&member[..at]), &member[at + 1..]);
            // No white space may stand around the sign. Names are found in spite of it, since they may forbid something.
            let spaced = name.len() != at || trim(value).len() != value.len();
            (name, if spaced { Argument::Broken } else { unquoted(value) })
        }
    })
}

/// A number of seconds: digits, and too many of them are [`LONGEST`].
pub(crate) fn seconds(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let read = digits.iter().fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    Some(u32::try_from(read).unwrap_or(LONGEST).min(LONGEST))
}

impl Argument<'_> {
    /// As a number of seconds. Both forms are taken, the token and the quoted string (section 5.2).
    pub(crate) fn seconds(self) -> Option<u32> {
        match self {
            Self::Text(digits) => seconds(digits),
            Self::Seconds(seconds) => Some(seconds.min(LONGEST)),
            Self::Absent | Self::Broken => None,
        }
    }
}

/// The fields that `no-cache` and `private` of these lines name.
pub(crate) fn named<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Names {
    let mut all = Names::new();
    for (name, argument) in lines.flat_map(directives) {
        if let Argument::Text(list) = argument
            && (name.eq_ignore_ascii_case(b"no-cache") || name.eq_ignore_ascii_case(b"private"))
        {
            all.extend(field_names(list).unwrap_or_default());
        }
    }
    all
}

/// Names of fields in a list; None if it holds something else, none at all or too many.
pub(crate) fn field_names(list: &[u8]) -> Option<Names> {
    let names: Names = members(list).take(MOST_NAMES + 1).map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<_>>()?;
    (1..=MOST_NAMES).contains(&names.len()).then_some(names)
}

/// All lines of a field.
pub(crate) fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(|value| value.as_bytes())
}

/// Keeps the smaller length of time; one that can't be read is zero.
fn least(kept: &mut Option<u32>, argument: Argument<'_>) {
    let value = argument.seconds().unwrap_or(0);
    *kept = Some(kept.map_or(value, |kept| kept.min(value)));
}

/// `no-cache` and `private`: for the whole response, unless their argument names fields.
fn restrict(whole: &mut bool, names: &mut bool, argument: Argument<'_>) {
    match argument {
        Argument::Text(list) if field_names(list).is_some() => *names = true,
        _ => *whole = true,
    }
}

/// Takes quotes off. A quoted string with escapes in it is broken: no directive has an argument that needs one.
fn unquoted(value: &[u8]) -> Argument<'_> {
    match value {
        [b'"', inner @ .., b'"'] if !inner.iter().any(|byte| matches!(byte, b'"' | b'\\')) => Argument::Text(inner),
        [] | [b'"', ..] => Argument::Broken,
        _ => Argument::Text(value),
    }
}
