//! Which field speaks to this cache: a targeted one (RFC 9213) if there is one, else `Cache-Control` and `Expires`.

use http::{HeaderMap, HeaderName, header::CACHE_CONTROL};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::directives::{Argument, Directives, LONGEST, Names, field_names, lines, named};

/// Our own targeted field: for fetchr and no other cache.
pub(crate) const FETCHR_CACHE_CONTROL: HeaderName = HeaderName::from_static("fetchr-cache-control");

/// The field for caches that act for an origin (RFC 9213 section 3).
pub(crate) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// The target list (RFC 9213 section 2.2): the first with a valid value that isn't empty decides.
pub(super) static TARGETS: [HeaderName; 2] = [FETCHR_CACHE_CONTROL, CDN_CACHE_CONTROL];

/// What a response says to this cache.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Say {
    pub(crate) directives: Directives,
    /// A targeted field decides, so `Cache-Control` and `Expires` are as if they weren't there.
    pub(crate) targeted: bool,
    /// Fields that mustn't be stored, or not be used again without validation.
    pub(crate) names: Names,
}

impl Say {
    /// Reads it from the fields of a response.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        TARGETS.iter().find_map(|target| targeted(headers, target)).unwrap_or_else(|| Self::cache_control(headers))
    }

    fn cache_control(headers: &HeaderMap) -> Self {
        let directives = Directives::cache_control(lines(headers, &CACHE_CONTROL));
        let names = if directives.names { named(lines(headers, &CACHE_CONTROL)) } else { Names::new() };
        Self { directives, targeted: false, names }
    }
}

/// A targeted field; None if it isn't there, is empty or isn't a dictionary (RFC 9213 section 2.1).
fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Say> {
    headers.get(name)?;
    let value = lines(headers, name).collect::<Vec<_>>().join(&b", "[..]);
    let members = Parser::new(&value).parse::<Dictionary>().ok().filter(|members| !members.is_empty())?;
    let mut say = Say { targeted: true, ..Say::default() };
    for (name, member) in &members {
        let ListEntry::Item(item) = member else {
            say.directives.take(name.as_str().as_bytes(), Argument::Broken);
            continue;
        };
        let names_fields = matches!(name.as_str(), "no-cache" | "private");
        let argument = match &item.bare_item {
            BareItem::Boolean(true) => Argument::Absent,
            BareItem::Boolean(false) => continue,
            BareItem::Integer(number) if i64::from(*number) >= 0 => {
                Argument::Seconds(u32::try_from(i64::from(*number)).unwrap_or(LONGEST))
            }
            BareItem::String(list) if names_fields => {
                say.names.extend(field_names(list.as_str().as_bytes()).unwrap_or_default());
                Argument::Text(list.as_str().as_bytes())
            }
            // A value of another type isn't to be made to fit (RFC 9213 section 2.1): a lifetime is none then, a prohibition stands.
            _ => Argument::Broken,
        };
        say.directives.take(name.as_str().as_bytes(), argument);
    }
    Some(say)
}
