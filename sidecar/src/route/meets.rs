//! Matches of a section: which of the requests that its rule is for it means.

use crds::policy::Match;

use super::{Route, Spelling, cel, condition::Conditions, path::Pattern};
use crate::facts::Facts;

/// Matches, of which a request meets one or none.
#[derive(Debug)]
pub(crate) struct OneOf(Box<[(Pattern, Conditions)]>);

impl OneOf {
    pub(crate) fn build(matches: &[Match], spelling: &Spelling) -> Result<Self, String> {
        let one = |one: &Match| Ok((Pattern::build(one.path.as_ref(), spelling)?, Conditions::build(one)?));
        matches.iter().map(one).collect::<Result<_, String>>().map(Self)
    }
}

impl Route {
    /// The first of some sets of which a request meets a match. A condition that ends in an error is counted, and not met.
    pub(crate) fn first_met<'a>(&self, facts: &Facts<'_>, mut sets: impl Iterator<Item = &'a OneOf> + Clone) -> Option<usize> {
        if sets.clone().all(|OneOf(matches)| matches.is_empty()) {
            return None;
        }
        let (path, others) = self.table.spelling.readings(facts.path);
        let request = cel::Request::new(facts, &path);
        let on_path = |pattern: &Pattern| pattern.matches(&path) || others.iter().any(|other| pattern.matches(other));
        sets.position(|OneOf(matches)| {
            matches.iter().any(|(pattern, conditions)| on_path(pattern) && super::met(conditions.check(facts, &request)).is_ok())
        })
    }
}
