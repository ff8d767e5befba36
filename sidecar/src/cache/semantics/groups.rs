//! Groups of stored responses (RFC 9875).

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, List, ListEntry, Parser};
use smallvec::SmallVec;

use super::directives::lines;

/// The groups that a response belongs to.
pub(crate) const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

/// The groups that the answer to an unsafe request invalidates.
pub(crate) const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// Groups in a field. The RFC asks for 32 at least.
pub(crate) const MOST_GROUPS: usize = 128;

/// Bytes of a group's name. The RFC asks for 32 at least.
pub(crate) const MOST_BYTES: usize = 256;

/// Names of groups. They are compared as they are, and only within one origin (section 2.1): a store's key for one holds both.
pub(crate) type Groups = SmallVec<[Box<str>; 2]>;

/// More groups than [`MOST_GROUPS`], or one longer than [`MOST_BYTES`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooMany;

/// The groups that a response belongs to. A response with too many can't be stored, for the groups that were left out couldn't
/// remove it. A field that isn't a list of strings is as none.
pub(crate) fn of(headers: &HeaderMap) -> Result<Groups, TooMany> {
    let (groups, dropped) = read(headers, &CACHE_GROUPS);
    if dropped > 0 { Err(TooMany) } else { Ok(groups) }
}

/// The groups that a response invalidates, and how many more it names than we look at. For an answer to an unsafe request only.
pub(super) fn invalidated(headers: &HeaderMap) -> (Groups, usize) {
    read(headers, &CACHE_GROUP_INVALIDATION)
}

fn read(headers: &HeaderMap, name: &HeaderName) -> (Groups, usize) {
    if !headers.contains_key(name) {
        return <_>::default();
    }
    let value = lines(headers, name).collect::<Vec<_>>().join(&b", "[..]);
    let Ok(list) = Parser::new(&value).parse::<List>() else { return <_>::default() };
    let named: Option<Vec<&str>> = list.iter().map(string).collect();
    let named = named.unwrap_or_default();
    let mut groups: Groups =
        named.iter().filter(|name| name.len() <= MOST_BYTES).take(MOST_GROUPS).map(|name| (*name).into()).collect();
    let dropped = named.len() - groups.len();
    groups.sort_unstable();
    groups.dedup();
    (groups, dropped)
}

fn string(member: &ListEntry) -> Option<&str> {
    match member {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::String(name) => Some(name.as_str()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    }
}
