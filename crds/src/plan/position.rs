//! How far into the cluster's history a plan has seen, and which of two plans is older.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map},
};

use serde::{Deserialize, Serialize};

/// For each kind of input (proxies, policies, namespaces, ...), the resourceVersion up to which the replica that compiled a plan
/// had seen that kind.
///
/// Versions are compared within a kind only: as decimal numbers of any length, a longer one being greater. Two different
/// versions of which one is not a number can't be compared, and neither is lower. A kind that was not seen at all is lower
/// than any version of it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Position(BTreeMap<String, String>);

impl Position {
    /// Notes that `kind` was seen up to `version`.
    pub fn set(&mut self, kind: impl Into<String>, version: impl Into<String>) {
        self.0.insert(kind.into(), version.into());
    }

    /// The version up to which `kind` was seen.
    pub fn version(&self, kind: &str) -> Option<&str> {
        self.0.get(kind).map(String::as_str)
    }

    /// Each kind with its version, by name.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    /// Whether a plan of this position may replace one of position `current`: it is lower in no component.
    pub fn may_follow(&self, current: &Self) -> bool {
        self.lower_than(current).next().is_none()
    }

    /// The kinds in which this position is lower than `other`.
    pub fn lower_than<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        other
            .0
            .iter()
            .filter(|(kind, version)| compare_versions(self.version(kind), Some(version)) == Some(Ordering::Less))
            .map(|(kind, _)| kind.as_str())
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let kinds = self.0.keys().chain(other.0.keys());
        let mut found = Ordering::Equal;
        for kind in kinds {
            match (found, compare_versions(self.version(kind), other.version(kind))?) {
                (_, Ordering::Equal) => {}
                (Ordering::Equal, order) => found = order,
                (known, order) if known == order => {}
                _ => return None,
            }
        }
        Some(found)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Position {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(versions: I) -> Self {
        Self(versions.into_iter().map(|(kind, version)| (kind.into(), version.into())).collect())
    }
}

impl IntoIterator for Position {
    type Item = (String, String);
    type IntoIter = btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn compare_versions(left: Option<&str>, right: Option<&str>) -> Option<Ordering> {
    let (Some(left), Some(right)) = (left, right) else {
        return Some(left.is_some().cmp(&right.is_some()));
    };
    if left == right {
        return Some(Ordering::Equal);
    }
    let (left, right) = (digits(left)?, digits(right)?);
    Some(left.len().cmp(&right.len()).then_with(|| left.cmp(right)))
}

/// The number without leading zeros, if it is one.
fn digits(version: &str) -> Option<&str> {
    let number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| version.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(versions: &[(&str, &str)]) -> Position {
        versions.iter().copied().collect()
    }

    #[test]
    fn longer_number_is_greater() {
        assert!(position(&[("policies", "1000")]).may_follow(&position(&[("policies", "999")])));
        assert!(!position(&[("policies", "999")]).may_follow(&position(&[("policies", "1000")])));
        let beyond_u64 = ("1".to_owned() + &"0".repeat(30), "9".repeat(30));
        assert!(position(&[("policies", &beyond_u64.0)]) > position(&[("policies", &beyond_u64.1)]));
    }

    #[test]
    fn one_lower_component_is_enough_to_refuse() {
        let current = position(&[("policies", "10"), ("proxies", "10")]);
        let offered = position(&[("policies", "11"), ("proxies", "9")]);
        assert!(!offered.may_follow(&current));
        assert_eq!(offered.lower_than(&current).collect::<Vec<_>>(), ["proxies"]);
        assert_eq!(offered.partial_cmp(&current), None);
    }

    #[test]
    fn kind_not_seen_is_lower_than_any_version() {
        let current = position(&[("policies", "10")]);
        assert!(!Position::default().may_follow(&current));
        assert!(current.may_follow(&Position::default()));
    }

    #[test]
    fn versions_that_are_no_numbers_cannot_be_compared() {
        let (left, right) = (position(&[("policies", "abc")]), position(&[("policies", "12")]));
        assert_eq!(left.partial_cmp(&right), None);
        assert!(left.may_follow(&right) && right.may_follow(&left));
        assert_eq!(left.partial_cmp(&left.clone()), Some(Ordering::Equal));
    }

    #[test]
    fn leading_zeros_do_not_count() {
        assert!(!position(&[("policies", "009")]).may_follow(&position(&[("policies", "10")])));
        assert!(position(&[("policies", "0")]).may_follow(&position(&[("policies", "000")])));
    }

    fn positions() -> impl Strategy<Value = Position> {
        let versions =
            prop_oneof![(0u64..30).prop_map(|version| version.to_string()), any::<u64>().prop_map(|version| version.to_string())];
        proptest::collection::btree_map(prop::sample::select(vec!["policies", "proxies", "namespaces"]), versions, 0..=3)
            .prop_map(|versions| versions.into_iter().collect())
    }

    proptest! {
        #[test]
        fn order_of_numbers_is_the_order_of_versions(left: u64, right: u64) {
            let order = position(&[("policies", &left.to_string())]).partial_cmp(&position(&[("policies", &right.to_string())]));
            prop_assert_eq!(order, Some(left.cmp(&right)));
        }

        #[test]
        fn what_may_follow_both_ways_is_equal(left in positions(), right in positions()) {
            prop_assert!(left.may_follow(&left));
            if left.may_follow(&right) && right.may_follow(&left) {
                prop_assert_eq!(left.partial_cmp(&right), Some(Ordering::Equal));
            }
            prop_assert_eq!(left.may_follow(&right), matches!(left.partial_cmp(&right), Some(Ordering::Greater | Ordering::Equal)));
        }

        #[test]
        fn following_never_goes_back_over_several_steps(a in positions(), b in positions(), c in positions()) {
            if b.may_follow(&a) && c.may_follow(&b) {
                prop_assert!(c.may_follow(&a));
            }
        }
    }
}
