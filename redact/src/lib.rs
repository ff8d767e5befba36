//! Takes secrets out of requests and answers before anything of them is stored: [`Rules`] say what, a [`Redactor`] does it.
//!
//! Pure: no I/O, no clock. All work is bounded by the length of what is read. What can't be read under a rule is dropped, not stored, and
//! neither errors nor debug output tell what was found.

mod cookie;
mod decode;
mod detect;
mod form;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod json;
mod multipart;
mod name;
mod percent;
mod redactor;
mod replace;
mod rules;
mod tally;
mod text;

pub use self::{
    redactor::{Body, Reason, Redacted, Redactor, RulesError},
    replace::{Key, MASK},
    rules::{Action, Detector, Limits, Rule, Rules, What},
    tally::Tally,
};
