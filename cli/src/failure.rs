//! How a command ends when it does not succeed: what went wrong, where, what would be right, and the exit code.

use std::{fmt, process::ExitCode};

use crate::output::Paint;

/// Exit codes, the same for every command. Usage errors (2) are clap's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// Everything asked for was done, and the answer is good.
    Ok,
    /// It was done and the answer is bad (problems found, a check failed), or it could not be done.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The cluster or the proxy could not be reached, so there is no answer.
    Unreachable,
    /// What another process ended with.
    Code(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 4,
            Exit::Code(code) => code,
        })
    }
}

/// Printed as `error: what`, then where and a hint, each on a line of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    place: Option<String>,
    hint: Option<String>,
    exit: Exit,
}

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None, hint: None, exit: Exit::Failed }
    }

    /// A mistake in the command line that clap can't see, with exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(what) }
    }

    /// A peer that gives no answer, with exit code 4.
    pub(crate) fn unreachable(what: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, ..Self::new(what) }
    }

    /// Where it went wrong: a file, an address, an object.
    #[must_use]
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// What would be right.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What went wrong.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// The exit code that goes with it.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The text for standard error.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let mut text = format!("{} {}\n", paint.bad("error:"), self.what);
        for line in self.place.iter().chain(&self.hint).flat_map(|part| part.lines()) {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_says_what_where_and_what_would_be_right() {
        let failure = Failure::new("no documents").at("examples/").hint("write a FetchrProxy\nor two");
        assert_eq!(failure.render(Paint::off()), "error: no documents\n  examples/\n  write a FetchrProxy\n  or two\n");
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
