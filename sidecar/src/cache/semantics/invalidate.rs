//! What the answer to an unsafe request removes from the store (RFC 9111 section 4.4, RFC 9875).

use http::{HeaderMap, StatusCode, header};
use smallvec::SmallVec;

use super::{
    directives::lines,
    groups::{self, Groups},
    request::Kind,
    uri::Target,
};

/// What is to be invalidated: all stored responses of these resources of the target's origin, whatever their variant.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Invalidated {
    /// Paths with queries, the target's own first. They are of one origin, for others may not be touched.
    pub(crate) paths: SmallVec<[String; 3]>,
    /// Groups of that origin.
    pub(crate) groups: Groups,
    /// Groups that were named and are too many.
    pub(crate) dropped: usize,
}

/// What an answer invalidates. Nothing, if the method is safe or the answer is an error.
pub(crate) fn invalidated(kind: Kind, target: Target<'_>, status: StatusCode, headers: &HeaderMap) -> Invalidated {
    if !kind.is_unsafe() || !(status.is_success() || status.is_redirection()) {
        return Invalidated::default();
    }
    let mut paths = SmallVec::new();
    paths.push(target.path_and_query.to_owned());
    for reference in [header::LOCATION, header::CONTENT_LOCATION].iter().flat_map(|name| lines(headers, name).next()) {
        paths.extend(target.resolve(reference).filter(|path| !paths.contains(path)));
    }
    let (groups, dropped) = groups::invalidated(headers);
    Invalidated { paths, groups, dropped }
}
