//! The section `headers`, compiled: fields are removed, then set, then added.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use crds::policy::{Headers, Mode, headers as spec};
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Fields that carry the framing or belong to one connection (RFC 9110 7.6.1, RFC 9112); no policy may touch them. `Host` is
/// routing, not a field to edit, and so are the pseudo-headers, which are no field names anyway.
const UNTOUCHABLE: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Rules with a series of their own; what comes later is counted under `_OTHER`.
const MAX_SERIES: usize = 2000;

static EDITED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);
static SERIES: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    route: Arc<str>,
    part: &'static str,
    mode: &'static str,
}

/// Adds the section's figures to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(
        "fetchr_header_edits",
        "Requests and responses whose fields were edited, or would have been",
        EDITED.clone(),
    );
}

/// The section of one rule.
#[derive(Clone, Debug)]
pub struct HeaderEdits {
    /// Whether it acts.
    pub mode: Mode,
    request: Edits,
    response: Edits,
}

impl HeaderEdits {
    /// Compiles the section of a rule, `namespace/policy/rule`. The error says which field is wrong.
    pub fn build(route: &Arc<str>, section: &Headers) -> Result<Self, String> {
        let edits = |edits: &Option<spec::Edits>, part| Edits::build(edits.as_ref(), counter(route, part, section.mode));
        Ok(Self {
            mode: section.mode,
            request: edits(&section.request, "request")?,
            response: edits(&section.response, "response")?,
        })
    }

    /// Whether it has anything to do with requests.
    pub fn touches_requests(&self) -> bool {
        self.mode != Mode::Disabled && !self.request.is_empty()
    }

    /// Changes the fields of a request, if the section acts; counts it, if it is not disabled.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        self.request.act(self.mode, headers);
    }

    /// Changes the fields of a response, if the section acts; counts it, if it is not disabled.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        self.response.act(self.mode, headers);
    }

    /// Changes the fields of an interim response, if the section acts. Only the final one counts.
    pub fn edit_interim(&self, headers: &mut HeaderMap) {
        if self.mode == Mode::Enforce {
            self.response.apply(headers);
        }
    }
}

fn counter(route: &Arc<str>, part: &'static str, mode: Mode) -> Counter {
    let mode = if mode == Mode::Shadow { "shadow" } else { "enforce" };
    let mut labels = Labels { route: Arc::clone(route), part, mode };
    // The guard must not live on: the family is locked while it does.
    let known = EDITED.get(&labels).is_some();
    if !known && SERIES.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
        labels.route = "_OTHER".into();
    }
    EDITED.get_or_create_owned(&labels)
}

#[derive(Clone, Debug)]
struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    count: Counter,
}

impl Edits {
    fn build(edits: Option<&spec::Edits>, count: Counter) -> Result<Self, String> {
        let fields = |fields: &[spec::Field]| fields.iter().map(field).collect::<Result<_, String>>();
        let spec::Edits { set, add, remove } = edits.cloned().unwrap_or_default();
        Ok(Self {
            remove: remove.iter().map(|removed| name(removed)).collect::<Result<_, _>>()?,
            set: fields(&set)?,
            add: fields(&add)?,
            count,
        })
    }

    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    fn act(&self, mode: Mode, headers: &mut HeaderMap) {
        if mode == Mode::Disabled || self.is_empty() {
            return;
        }
        self.count.inc();
        if mode == Mode::Enforce {
            self.apply(headers);
        }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        // Lines of one name in `set` replace what was there, not each other.
        for (at, (name, value)) in self.set.iter().enumerate() {
            if self.set[..at].iter().any(|(earlier, _)| earlier == name) {
                headers.append(name, value.clone());
            } else {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

fn field(field: &spec::Field) -> Result<(HeaderName, HeaderValue), String> {
    let value = HeaderValue::from_str(&field.value)
        .map_err(|_| format!("the value of field {} holds control characters; use visible ones, blanks and tabs", field.name))?;
    Ok((name(&field.name)?, value))
}

fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no field name"))?;
    if UNTOUCHABLE.contains(&name.as_str()) {
        return Err(format!("field {name} belongs to the connection or the framing and can't be edited"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Vec<spec::Field> {
        fields.iter().map(|(name, value)| spec::Field { name: (*name).to_owned(), value: (*value).to_owned() }).collect()
    }

    fn section(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Headers {
        let remove = remove.iter().map(|&name| name.to_owned()).collect();
        Headers { request: Some(spec::Edits { set: fields(set), add: fields(add), remove }), ..Headers::default() }
    }

    fn build(section: &Headers) -> Result<HeaderEdits, String> {
        HeaderEdits::build(&"shop/p/r".into(), section)
    }

    fn edited(section: &Headers) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("old"));
        headers.append("a", HeaderValue::from_static("older"));
        headers.append("b", HeaderValue::from_static("old"));
        HeaderEdits::build(&"shop/p/r".into(), section).unwrap().edit_request(&mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let edits = section(&[("A", "new"), ("c", "1"), ("c", "2")], &[("a", "more")], &["A", "B"]);
        let expected = [("a", "new"), ("a", "more"), ("c", "1"), ("c", "2")];
        assert_eq!(edited(&edits), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn shadow_and_disabled_change_nothing() {
        for mode in [Mode::Shadow, Mode::Disabled] {
            let edits = Headers { mode, ..section(&[("a", "new")], &[], &["b"]) };
            assert_eq!(edited(&edits).len(), 3);
        }
    }

    #[test]
    fn what_shadow_would_have_done_is_counted() {
        let route: Arc<str> = "shop/p/counted".into();
        let shadow = Headers { mode: Mode::Shadow, ..section(&[("a", "new")], &[], &[]) };
        let edits = HeaderEdits::build(&route, &shadow).unwrap();
        edits.edit_request(&mut HeaderMap::new());
        edits.edit_response(&mut HeaderMap::new());
        assert_eq!(counter(&route, "request", Mode::Shadow).get(), 1);
        assert_eq!(counter(&route, "response", Mode::Shadow).get(), 0, "there is nothing to edit");
    }

    #[test]
    fn framing_fields_are_refused() {
        for name in ["Transfer-Encoding", "content-length", "Connection", "HOST", "Upgrade", "TE"] {
            let refused = build(&section(&[(name, "x")], &[], &[])).unwrap_err();
            assert!(refused.contains("can't be edited"), "{refused}");
            assert!(build(&section(&[], &[], &[name])).is_err());
        }
    }

    #[test]
    fn value_that_would_split_a_response_is_refused() {
        assert!(build(&section(&[("a", "x\r\nb: y")], &[], &[])).is_err());
        assert!(build(&section(&[("a b", "x")], &[], &[])).is_err());
    }
}
