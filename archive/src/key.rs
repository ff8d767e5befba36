//! Names of objects.

use std::fmt;

use crate::{Error, Kind};

/// The longest key, as S3 has it.
const LONGEST: usize = 1024;

/// The name of an object: segments between slashes. None of them is empty, `.` or `..`, so that it means the same to every store.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(String);

impl Key {
    /// Reads a key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self, Error> {
        let text = text.into();
        let wrong = |what: &str| Err(Error::new(Kind::Wrong, format!("{text:?}"), format!("this is no key: {what}")));
        if text.is_empty() || text.len() > LONGEST {
            return wrong("it has 1 to 1024 bytes");
        }
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return wrong("it has neither control characters nor backslashes");
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return wrong("between its slashes stands something, and neither . nor ..");
        }
        Ok(Self(text))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_the_same_to_every_store() {
        for good in ["a", "a/b/c.fxc", "shop/Deployment/web/cache.fxc", "a b", "ü", "...", &"a".repeat(1024)] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        for wrong in ["", "/", "/a", "a/", "a//b", ".", "a/./b", "../a", "a/..", "a\\..\\b", "a\0", "a\n", &"a".repeat(1025)] {
            let error = Key::new(wrong).unwrap_err();
            assert_eq!(error.kind(), Kind::Wrong, "{wrong:?}");
            assert!(error.to_string().contains("is no key"), "{error}");
        }
    }
}
