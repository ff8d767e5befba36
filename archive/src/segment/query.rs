//! Which frames a query has to look into.

use std::ops::RangeInclusive;

use super::Head;

/// What is looked for. An empty one finds all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Of that time, in nanoseconds since 1970.
    pub time: Option<RangeInclusive<i64>>,
    /// With such a status.
    pub status: Option<RangeInclusive<u16>>,
    /// With one term of each of these.
    pub terms: Vec<Vec<u64>>,
}

impl Query {
    /// Whether a record of it may be in the frame. If not, none is.
    pub fn may_match(&self, head: &Head) -> bool {
        let time = self.time.as_ref().is_none_or(|time| *time.start() <= head.last && head.first <= *time.end());
        time && self.may_match_facts(head)
    }

    fn may_match_facts(&self, head: &Head) -> bool {
        // What is encrypted, and has not been decrypted, may be anything.
        let Some(facts) = &head.facts else { return true };
        let status =
            self.status.as_ref().is_none_or(|status| *status.start() <= facts.statuses.1 && facts.statuses.0 <= *status.end());
        status && self.terms.iter().all(|any| any.iter().any(|term| facts.may_hold(*term)))
    }
}
