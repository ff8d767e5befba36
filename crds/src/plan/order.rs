//! In which order the matches of one policy are tried.

use std::cmp::Reverse;

use crate::policy::{
    Match, PolicyRule,
    matches::{PathKind, PathMatch},
};

/// Each rule with each of its matches, the best first: exact path, longer prefix, template, regex, method, more header fields,
/// earlier in the document. A rule without matches stands last, with `None`: it holds the policy's defaults.
///
/// The numbers are indices into `rules` and into the `matches` of that rule.
pub fn ordered_matches(rules: &[PolicyRule]) -> Vec<(usize, Option<usize>)> {
    let mut order: Vec<(usize, Option<usize>)> = rules
        .iter()
        .enumerate()
        .flat_map(|(rule, PolicyRule { matches, .. })| {
            let whole = matches.is_empty().then_some((rule, None));
            whole.into_iter().chain((0..matches.len()).map(move |index| (rule, Some(index))))
        })
        .collect();
    // The sort is stable, so what is equal stays in the order of the document.
    order.sort_by_key(|(rule, index)| index.map_or(rank_of_defaults(), |index| rank(&rules[*rule].matches[index])));
    order
}

/// Smaller is better, component by component.
type Rank = (bool, u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>, bool);

fn rank(one: &Match) -> Rank {
    let (kind, length) = match &one.path {
        Some(PathMatch { kind: PathKind::Exact, .. }) => (0, 0),
        // The prefix `/` and a path that is not mentioned mean the same.
        Some(PathMatch { kind: PathKind::Prefix, value }) if value != "/" => (1, value.trim_end_matches('/').len()),
        Some(PathMatch { kind: PathKind::Template, value }) => (2, literal_length(value)),
        Some(PathMatch { kind: PathKind::Regex, .. }) => (3, 0),
        _ => (4, 0),
    };
    let query = one.query.len();
    (false, kind, Reverse(length), one.methods.is_empty(), Reverse(one.headers.len()), Reverse(query), one.cel.is_none())
}

fn rank_of_defaults() -> Rank {
    (true, 0, Reverse(0), true, Reverse(0), Reverse(0), true)
}

/// Length of what is not a placeholder: the template that fixes more is the better match.
fn literal_length(template: &str) -> usize {
    template.split('/').filter(|segment| !segment.starts_with('{')).map(|segment| segment.len() + 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::matches::ValueMatch;

    fn path(kind: PathKind, value: &str) -> Match {
        Match { path: Some(PathMatch { kind, value: value.to_owned() }), ..Match::default() }
    }

    fn rule(matches: Vec<Match>) -> PolicyRule {
        PolicyRule { name: "rule".to_owned(), matches, ..PolicyRule::default() }
    }

    #[test]
    fn better_paths_come_first() {
        let rules = [
            rule(vec![]),
            rule(vec![Match::default()]),
            rule(vec![path(PathKind::Regex, "/a/.*")]),
            rule(vec![path(PathKind::Template, "/{x}/b")]),
            rule(vec![path(PathKind::Template, "/a/b/{x}")]),
            rule(vec![path(PathKind::Prefix, "/a"), path(PathKind::Exact, "/a/b/c")]),
            rule(vec![path(PathKind::Prefix, "/a/b/")]),
        ];
        let order = ordered_matches(&rules);
        let best_first =
            [(5, Some(1)), (6, Some(0)), (5, Some(0)), (4, Some(0)), (3, Some(0)), (2, Some(0)), (1, Some(0)), (0, None)];
        assert_eq!(order, best_first);
    }

    #[test]
    fn methods_and_then_more_headers_break_a_tie() {
        let header = |name: &str| ValueMatch { kind: Default::default(), name: name.to_owned(), value: Some("1".to_owned()) };
        let base = path(PathKind::Prefix, "/a");
        let two_headers = Match { headers: vec![header("a"), header("b")], ..base.clone() };
        let one_header = Match { headers: vec![header("a")], ..base.clone() };
        let method = Match { methods: vec!["GET".to_owned()], ..base.clone() };
        let order = ordered_matches(&[rule(vec![base, one_header, two_headers, method])]);
        assert_eq!(order, [(0, Some(3)), (0, Some(2)), (0, Some(1)), (0, Some(0))]);
    }

    #[test]
    fn equal_matches_stay_in_the_order_of_the_document() {
        let rules = [rule(vec![path(PathKind::Prefix, "/a")]), rule(vec![path(PathKind::Prefix, "/a/")])];
        assert_eq!(ordered_matches(&rules), [(0, Some(0)), (1, Some(0))]);
    }

    #[test]
    fn prefix_of_everything_is_no_better_than_no_path() {
        let rules =
            [rule(vec![path(PathKind::Prefix, "/")]), rule(vec![Match::default()]), rule(vec![path(PathKind::Regex, ".*")])];
        assert_eq!(ordered_matches(&rules), [(2, Some(0)), (0, Some(0)), (1, Some(0))]);
    }
}
