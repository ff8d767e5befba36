//! What goes wrong, where, and what would be right.

use std::{error::Error as StdError, fmt};

/// What went wrong with an object.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    place: String,
    what: String,
    hint: Option<&'static str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What kind of error it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// There is no such object, or no such bucket.
    NotFound,
    /// There is one already.
    Exists,
    /// Whoever asks may not.
    Denied,
    /// The store can't be reached, or can't do it now: later it may.
    Unavailable,
    /// What is asked for can't be: a key, a folder, a setting.
    Wrong,
    /// What was to be put broke off.
    Source,
}

impl Kind {
    /// Whether the same may be asked again later.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::Source)
    }
}

impl Error {
    pub(crate) fn new(kind: Kind, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { kind, place: place.into(), what: what.into(), hint: None, source: None }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// It with all of its causes, in one line.
    pub fn chain(&self) -> String {
        let (mut text, mut cause) = (self.to_string(), self.source());
        while let Some(error) = cause {
            let more = error.to_string();
            // Some say what their causes say.
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        self.hint.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_says_where_what_and_why_once() {
        let cause = std::io::Error::other("no route");
        let error = Error::new(Kind::Unavailable, "s3://b/k", "it can't be put").hint("is it up?").because(cause);
        assert_eq!(error.to_string(), "s3://b/k: it can't be put (is it up?)");
        assert_eq!(error.chain(), "s3://b/k: it can't be put (is it up?): no route");
        assert!(error.kind().may_pass() && !Kind::Denied.may_pass());
    }
}
