//! Texts that were found good before.
//!
//! The operator checks every policy whenever anything in the cluster changes; parsing the same expressions each time would take a
//! second for a thousand policies. What is good stays good, so this changes nothing but the time.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Most texts that are remembered, of at most 1 KiB each. Then it starts anew.
const MAX_TEXTS: usize = 8192;

/// Remembers the texts that passed one check.
pub(crate) struct Known(Mutex<Option<HashSet<Box<str>>>>);

impl Known {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The outcome of `check` for `text`, which is not called for a text that has passed it before.
    pub(crate) fn check(&self, text: &str, check: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
        if self.with(|texts| texts.contains(text)) {
            return Ok(());
        }
        check(text)?;
        self.with(|texts| {
            if texts.len() >= MAX_TEXTS {
                texts.clear();
            }
            texts.insert(text.into());
        });
        Ok(())
    }

    fn with<T>(&self, read: impl FnOnce(&mut HashSet<Box<str>>) -> T) -> T {
        read(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_text_is_checked_once_and_a_bad_one_each_time() {
        let known = Known::new();
        let mut calls = 0;
        for _ in 0..3 {
            assert_eq!(
                known.check("good", |_| {
                    calls += 1;
                    Ok(())
                }),
                Ok(())
            );
            assert_eq!(
                known.check("bad", |_| {
                    calls += 10;
                    Err("bad".to_owned())
                }),
                Err("bad".to_owned())
            );
        }
        assert_eq!(calls, 31);
    }

    #[test]
    fn memory_is_bounded() {
        let known = Known::new();
        for index in 0..=MAX_TEXTS {
            assert_eq!(known.check(&index.to_string(), |_| Ok(())), Ok(()));
        }
        assert_eq!(known.with(|texts| texts.len()), 1);
    }
}
