//! Whether one match is for every request that another one is for.
//!
//! This decides, without traffic, that a section can never take effect. It may miss a case (two regular expressions that mean the
//! same), it never claims one.

use crate::policy::{
    Match,
    matches::{PathKind, PathMatch},
};

/// Whether every request that `inner` is for meets one of `outer`. No matches at all stand for every request.
pub(super) fn all_covered(outer: &[Match], inner: &Match) -> bool {
    outer.is_empty() || outer.iter().any(|one| covers(one, inner))
}

/// Whether `outer` is for every request that `inner` is for.
fn covers(outer: &Match, inner: &Match) -> bool {
    let Match { path, hosts, methods, headers, query, cel } = outer;
    path.as_ref().is_none_or(|path| path_covers(path, inner.path.as_ref()))
        && (hosts.is_empty()
            || (!inner.hosts.is_empty() && inner.hosts.iter().all(|host| hosts.iter().any(|one| host_covers(one, host)))))
        && (methods.is_empty() || (!inner.methods.is_empty() && inner.methods.iter().all(|method| methods.contains(method))))
        && headers.iter().all(|header| inner.headers.contains(header))
        && query.iter().all(|parameter| inner.query.contains(parameter))
        && cel.as_ref().is_none_or(|cel| inner.cel.as_ref() == Some(cel))
}

fn path_covers(outer: &PathMatch, inner: Option<&PathMatch>) -> bool {
    let everything = outer.kind == PathKind::Prefix && outer.value == "/";
    let Some(inner) = inner else {
        return everything;
    };
    if everything || outer == inner {
        return true;
    }
    let literal = match inner.kind {
        PathKind::Exact | PathKind::Prefix => inner.value.as_str(),
        PathKind::Template => inner.value.split("/{").next().unwrap_or_default(),
        PathKind::Regex => return false,
    };
    outer.kind == PathKind::Prefix && is_below(outer.value.trim_end_matches('/'), literal.trim_end_matches('/'))
}

fn is_below(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether host pattern `outer` is for every host that `inner` is for; `*.example.org` stands for one label or more.
pub(super) fn host_covers(outer: &str, inner: &str) -> bool {
    if outer.eq_ignore_ascii_case(inner) {
        return true;
    }
    let Some(suffix) = outer.strip_prefix('*') else {
        return false;
    };
    let host = inner.strip_prefix('*').unwrap_or(inner).to_ascii_lowercase();
    host.len() > suffix.len() && host.ends_with(&suffix.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(kind: PathKind, value: &str) -> Match {
        Match { path: Some(PathMatch { kind, value: value.to_owned() }), ..Match::default() }
    }

    fn hosts(hosts: &[&str]) -> Match {
        Match { hosts: hosts.iter().map(|&host| host.to_owned()).collect(), ..Match::default() }
    }

    #[test]
    fn prefix_covers_what_lies_below_it() {
        let outer = path(PathKind::Prefix, "/a");
        for inner in [
            path(PathKind::Prefix, "/a"),
            path(PathKind::Prefix, "/a/"),
            path(PathKind::Exact, "/a"),
            path(PathKind::Exact, "/a/b"),
            path(PathKind::Template, "/a/{id}"),
        ] {
            assert!(covers(&outer, &inner), "{inner:?}");
        }
        for inner in [
            path(PathKind::Prefix, "/ab"),
            path(PathKind::Template, "/{id}/a"),
            path(PathKind::Regex, "/a/b"),
            path(PathKind::Prefix, "/"),
            Match::default(),
        ] {
            assert!(!covers(&outer, &inner), "{inner:?}");
        }
    }

    #[test]
    fn everything_is_covered_by_no_condition_and_by_the_root() {
        assert!(covers(&Match::default(), &path(PathKind::Regex, "x")));
        assert!(covers(&path(PathKind::Prefix, "/"), &Match::default()));
        assert!(all_covered(&[], &Match::default()));
    }

    #[test]
    fn host_patterns_cover_longer_ones_only() {
        let outer = hosts(&["*.example.org"]);
        assert!(covers(&outer, &hosts(&["api.example.org", "*.eu.example.org", "*.EXAMPLE.org"])));
        assert!(!covers(&outer, &hosts(&["example.org"])));
        assert!(!covers(&outer, &hosts(&["api.example.org", "example.com"])));
        assert!(!covers(&outer, &Match::default()));
    }

    #[test]
    fn more_conditions_never_cover_fewer() {
        let method = Match { methods: vec!["GET".to_owned()], ..path(PathKind::Prefix, "/a") };
        assert!(covers(&path(PathKind::Prefix, "/a"), &method));
        assert!(!covers(&method, &path(PathKind::Prefix, "/a")));
        let cel = Match { cel: Some("true".to_owned()), ..method.clone() };
        assert!(covers(&method, &cel) && covers(&cel, &cel) && !covers(&cel, &method));
    }
}
