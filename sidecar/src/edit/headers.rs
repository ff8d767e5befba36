//! The section `headers`, compiled: fields are removed, then set, then added.

use crds::policy::{Headers, Mode, headers as spec};
use http::{HeaderMap, HeaderName, HeaderValue};

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

/// The section of one rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdits {
    /// Whether it acts.
    pub mode: Mode,
    request: Edits,
    response: Edits,
}

impl HeaderEdits {
    /// Compiles a section; the error says which field is wrong.
    pub fn build(section: &Headers) -> Result<Self, String> {
        let edits = |edits: &Option<spec::Edits>| edits.as_ref().map(Edits::build).transpose().map(Option::unwrap_or_default);
        Ok(Self { mode: section.mode, request: edits(&section.request)?, response: edits(&section.response)? })
    }

    /// Changes the fields of a request, if the section acts.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        if self.mode == Mode::Enforce {
            self.request.apply(headers);
        }
    }

    /// Changes the fields of a response, if the section acts.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        if self.mode == Mode::Enforce {
            self.response.apply(headers);
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl Edits {
    fn build(edits: &spec::Edits) -> Result<Self, String> {
        let fields = |fields: &[spec::Field]| fields.iter().map(field).collect::<Result<_, String>>();
        Ok(Self {
            remove: edits.remove.iter().map(|removed| name(removed)).collect::<Result<_, _>>()?,
            set: fields(&edits.set)?,
            add: fields(&edits.add)?,
        })
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

    fn edited(section: &Headers) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("old"));
        headers.append("a", HeaderValue::from_static("older"));
        headers.append("b", HeaderValue::from_static("old"));
        HeaderEdits::build(section).unwrap().edit_request(&mut headers);
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
    fn framing_fields_are_refused() {
        for name in ["Transfer-Encoding", "content-length", "Connection", "HOST", "Upgrade", "TE"] {
            let refused = HeaderEdits::build(&section(&[(name, "x")], &[], &[])).unwrap_err();
            assert!(refused.contains("can't be edited"), "{refused}");
            assert!(HeaderEdits::build(&section(&[], &[], &[name])).is_err());
        }
    }

    #[test]
    fn value_that_would_split_a_response_is_refused() {
        assert!(HeaderEdits::build(&section(&[("a", "x\r\nb: y")], &[], &[])).is_err());
        assert!(HeaderEdits::build(&section(&[("a b", "x")], &[], &[])).is_err());
    }
}
