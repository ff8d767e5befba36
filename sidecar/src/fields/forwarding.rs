//! What tells upstreams where a request comes from: `Via` (RFC 9110, section 7.6.3), `Forwarded` (RFC 7239) and its forerunners.

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{self, Entry},
};

use super::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Present};

/// The `Via` values of a proxy, made once.
#[derive(Clone, Debug)]
pub(crate) struct Via {
    /// How the proxy names itself.
    pub(crate) pseudonym: String,
    http10: HeaderValue,
    http11: HeaderValue,
    http2: HeaderValue,
    http3: HeaderValue,
}

impl Via {
    /// `pseudonym` holds token characters only.
    pub(crate) fn new(pseudonym: &str) -> Self {
        let value = |version: &str| {
            HeaderValue::try_from(format!("{version} {pseudonym}")).expect("a pseudonym holds token characters only")
        };
        Self {
            http10: value("1.0"),
            http11: value("1.1"),
            http2: value("2.0"),
            http3: value("3.0"),
            pseudonym: pseudonym.to_owned(),
        }
    }

    fn value(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_3 => &self.http3,
            Version::HTTP_2 => &self.http2,
            Version::HTTP_10 => &self.http10,
            _ => &self.http11,
        }
    }

    /// Appends this hop, which got the message in that version.
    pub(crate) fn append(&self, headers: &mut HeaderMap, version: Version) {
        headers.append(header::VIA, self.value(version).clone());
    }
}

/// The hop that a connection's requests have taken, made once for each host that they name in turn.
pub(crate) struct Forwarding {
    scheme: &'static str,
    /// The client, where the upstream is to know of it.
    peer: Option<IpAddr>,
    last: RefCell<Option<Rc<Hop>>>,
}

impl Forwarding {
    /// For a connection of `http` or `https`.
    pub(crate) fn of(scheme: &'static str, peer: Option<IpAddr>) -> Self {
        Self { scheme, peer: peer.map(|peer| peer.to_canonical()), last: RefCell::default() }
    }

    /// The hop of a request for that host, which came in that version.
    pub(crate) fn hop(&self, host: &str, version: Version, via: &Via) -> Rc<Hop> {
        let mut last = self.last.borrow_mut();
        match &*last {
            Some(hop) if hop.host == host && hop.version == version => Rc::clone(hop),
            _ => {
                let origin = self.peer.map(|peer| Origin::new(peer, host, self.scheme));
                Rc::clone(last.insert(Rc::new(Hop::new(host, version, origin, via.value(version).clone()))))
            }
        }
    }
}

/// One hop of a request.
pub(crate) struct Hop {
    host: String,
    version: Version,
    origin: Option<Origin>,
    via: HeaderValue,
    lines: Vec<u8>,
}

/// Where a hop begins.
struct Origin {
    forwarded_for: HeaderValue,
    forwarded: HeaderValue,
    forwarded_proto: HeaderValue,
    forwarded_host: Option<HeaderValue>,
}

impl Origin {
    fn new(peer: IpAddr, host: &str, scheme: &'static str) -> Self {
        let quoted = host.replace(['"', '\\'], "");
        let forwarded = match peer {
            IpAddr::V4(_) => format!("for={peer};host=\"{quoted}\";proto={scheme}"),
            IpAddr::V6(_) => format!("for=\"[{peer}]\";host=\"{quoted}\";proto={scheme}"),
        };
        Self {
            forwarded_for: ascii(peer.to_string()),
            forwarded: ascii(forwarded),
            forwarded_proto: HeaderValue::from_static(scheme),
            forwarded_host: HeaderValue::from_str(host).ok(),
        }
    }
}

impl Hop {
    fn new(host: &str, version: Version, origin: Option<Origin>, via: HeaderValue) -> Self {
        let mut hop = Self { host: host.to_owned(), version, origin, via, lines: Vec::new() };
        let mut alone = HeaderMap::new();
        hop.add(&mut alone, Present::default(), false);
        for (name, value) in &alone {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                hop.lines.extend_from_slice(part);
            }
        }
        hop
    }

    /// Adds the hop's fields to those of a request. What a trusted peer said is extended; what others said is replaced.
    pub(crate) fn add(&self, headers: &mut HeaderMap, present: Present, trusted: bool) {
        if let Some(origin) = &self.origin {
            if present.any(Present::FORWARDED) && !trusted {
                remove_forwarded(headers);
            }
            append_to_list(headers, FORWARDED_FOR, &origin.forwarded_for);
            append_to_list(headers, header::FORWARDED, &origin.forwarded);
            headers.entry(FORWARDED_PROTO).or_insert_with(|| origin.forwarded_proto.clone());
            if let Some(host) = &origin.forwarded_host {
                headers.entry(FORWARDED_HOST).or_insert_with(|| host.clone());
            }
        }
        headers.append(header::VIA, self.via.clone());
    }

    /// The same as lines of HTTP/1, for a request that has none of them yet.
    pub(crate) fn lines(&self) -> &[u8] {
        &self.lines
    }
}

fn remove_forwarded(headers: &mut HeaderMap) {
    headers.remove(header::FORWARDED);
    let names: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    names.into_iter().for_each(|name| drop(headers.remove(name)));
}

/// Adds a member at the end of a list that may stand on several lines.
fn append_to_list(headers: &mut HeaderMap, name: HeaderName, member: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => drop(vacant.insert(member.clone())),
        Entry::Occupied(mut occupied) => {
            let mut joined = Vec::new();
            for line in occupied.iter() {
                joined.extend_from_slice(line.as_bytes());
                joined.extend_from_slice(b", ");
            }
            joined.extend_from_slice(member.as_bytes());
            occupied.insert(HeaderValue::from_bytes(&joined).unwrap_or_else(|_| member.clone()));
        }
    }
}

fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap());
        lines.iter().map(line).collect()
    }

    fn add(request: &mut HeaderMap, peer: &str, trusted: bool) {
        let forwarding = Forwarding::of("http", Some(peer.parse().unwrap()));
        let hop = forwarding.hop("shop.example", Version::HTTP_11, &Via::new("here"));
        hop.add(request, Present::of(request), trusted);
    }

    #[test]
    fn strangers_forwarded_fields_are_replaced() {
        let mut request = headers(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-port", "1"), ("forwarded", "for=6.6.6.6")]);
        add(&mut request, "9.9.9.9", false);
        assert_eq!(request["x-forwarded-for"], "9.9.9.9");
        assert_eq!(request["forwarded"], "for=9.9.9.9;host=\"shop.example\";proto=http");
        assert_eq!(request["x-forwarded-host"], "shop.example");
        assert!(!request.contains_key("x-forwarded-port"));
    }

    #[test]
    fn trusted_forwarded_fields_are_extended() {
        let mut request = headers(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("via", "1.0 there")]);
        add(&mut request, "10.0.0.1", true);
        assert_eq!(request["x-forwarded-for"], "1.2.3.4, 10.0.0.1");
        assert_eq!(request["x-forwarded-proto"], "https");
        assert_eq!(request.get_all("via").iter().collect::<Vec<_>>(), ["1.0 there", "1.1 here"]);
    }

    #[test]
    fn lines_say_what_is_added_to_a_request_without_any() {
        let forwarding = Forwarding::of("https", Some("::ffff:9.9.9.9".parse().unwrap()));
        let hop = forwarding.hop("shop.example", Version::HTTP_2, &Via::new("here"));
        assert_eq!(
            str::from_utf8(hop.lines()).unwrap(),
            "x-forwarded-for: 9.9.9.9\r\nforwarded: for=9.9.9.9;host=\"shop.example\";proto=https\r\nx-forwarded-proto: https\r\n\
             x-forwarded-host: shop.example\r\nvia: 2.0 here\r\n"
        );
        let silent = Forwarding::of("https", None).hop("shop.example", Version::HTTP_10, &Via::new("here"));
        assert_eq!(str::from_utf8(silent.lines()).unwrap(), "via: 1.0 here\r\n");
    }

    #[test]
    fn hop_is_made_anew_for_another_host_or_version() {
        let (forwarding, via) = (Forwarding::of("http", None), Via::new("here"));
        let first = forwarding.hop("a", Version::HTTP_11, &via);
        assert!(Rc::ptr_eq(&first, &forwarding.hop("a", Version::HTTP_11, &via)));
        assert!(!Rc::ptr_eq(&first, &forwarding.hop("b", Version::HTTP_11, &via)));
        assert_eq!(forwarding.hop("b", Version::HTTP_10, &via).lines(), b"via: 1.0 here\r\n");
    }
}
