//! Age (RFC 9111 section 4.2.3).

use http::{HeaderMap, header};

use super::{
    clock::{Millis, Now, Seconds, from_seconds},
    directives::{LONGEST, lines, seconds},
    list::members,
};

/// `corrected_initial_age`: how old a response was when it was received.
///
/// The delay of the answer is measured by the monotonic clock. `date` is the origin's, so what it says (`apparent_age`) is right only
/// where the wall clocks of both are; None leaves it out. It has whole seconds, and may be of the end of its second.
pub(crate) fn initial(headers: &HeaderMap, date: Option<Seconds>, sent: Now, received: Now) -> Millis {
    let delay = received.mono.saturating_sub(sent.mono);
    let corrected = from_seconds(value(headers)).saturating_add(delay);
    let apparent = date.map_or(0, |date| received.wall.saturating_sub(date.saturating_mul(1000).saturating_add(999)));
    corrected.max(u64::try_from(apparent).unwrap_or(0).min(from_seconds(LONGEST)))
}

/// `current_age`. Only the monotonic clock moves it.
pub(crate) fn current(initial: Millis, since: Millis, now: Now) -> Millis {
    initial.saturating_add(now.mono.saturating_sub(since))
}

/// The field `Age` in seconds: the first member of the first line; 0 if it is no number (section 5.1).
pub(crate) fn value(headers: &HeaderMap) -> u32 {
    lines(headers, &header::AGE).flat_map(members).next().and_then(seconds).unwrap_or(0)
}

/// What the field `Age` says of an age: whole seconds, at most [`LONGEST`].
pub(crate) fn in_seconds(age: Millis) -> u32 {
    u32::try_from(age / 1000).unwrap_or(LONGEST).min(LONGEST)
}
