//! Parts of a key by their texts, as administrators write and read them.

use std::net::IpAddr;

use crds::policy::rate_limits::parse_network;
use ipnet::IpNet;

use super::{Bytes, KeyPart, Wish, parameters, segment, value, values};
use crate::{
    facts::Facts,
    fields,
    route::{Evaluated, Expression},
};

/// The part of an IPv6 address that is counted.
const PREFIX: u8 = 64;
/// Words in a name by which its values may be secrets.
const SECRET: [&str; 10] = ["auth", "cookie", "cred", "jwt", "key", "pass", "secret", "session", "sid", "token"];

impl KeyPart {
    /// Writes the part of those requests of which this is the text: the same bytes as for one of them. An empty text stands for requests
    /// without it, the number of a match for a route; of an IPv6 address its /64 counts.
    ///
    /// # Errors
    /// The text can't be one of the part.
    pub(in crate::limit) fn write_text(&self, text: &str, out: &mut Bytes) -> Result<(), String> {
        match self {
            Self::Client => match client(text).ok_or_else(|| format!("{text:?} is no address of a client"))? {
                IpAddr::V4(address) => value(out, &address.octets()),
                IpAddr::V6(address) => value(out, &address.octets()[..usize::from(PREFIX / 8)]),
            },
            Self::Route if text.is_empty() => out.push(0),
            Self::Route => {
                let matched: u8 = text.parse().map_err(|_| format!("{text:?} is no number of a match"))?;
                out.push(matched.saturating_add(1));
            }
            Self::Host => value(out, text.to_ascii_lowercase().as_bytes()),
            Self::Method => value(out, text.as_bytes()),
            Self::Header(_) | Self::Cookie(_) | Self::Query(_) | Self::Path(_) | Self::Expression(_) => {
                values(out, Some(text.as_bytes()).filter(|text| !text.is_empty()).into_iter());
            }
        }
        Ok(())
    }

    /// Whether the part of those requests is what it has to be.
    pub(in crate::limit) fn is_text(&self, wish: &Wish, text: &str) -> bool {
        match (wish, self) {
            (Wish::Any, _) => true,
            (Wish::Network(network), _) => client(text).is_some_and(|address| network.contains(&address)),
            (Wish::Text(wanted), Self::Host) => text.to_ascii_lowercase().as_bytes() == &**wanted,
            (Wish::Text(wanted), _) => !text.is_empty() && text.as_bytes() == &**wanted,
        }
    }

    /// The text of a request's part. Several values are one after another.
    pub(in crate::limit) fn text(&self, facts: &Facts<'_>, matched: Option<u8>) -> String {
        match self {
            Self::Client => match facts.client.to_canonical() {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => {
                    IpNet::new(address.into(), PREFIX).map_or_else(|_| address.to_string(), |network| network.trunc().to_string())
                }
            },
            Self::Header(name) => listed(facts.headers.get_all(name).iter().map(|line| line.as_bytes())),
            Self::Cookie(name) => listed(fields::cookies(facts.headers, name)),
            Self::Query(name) => listed(parameters(facts.query.unwrap_or_default(), name)),
            Self::Path(places) => listed(segment(places, matched, facts.path).into_iter()),
            Self::Route => matched.map(|matched| matched.to_string()).unwrap_or_default(),
            Self::Host => facts.host.to_owned(),
            Self::Method => facts.method.to_string(),
            Self::Expression(expression) => expression.text(&Evaluated::new(facts, facts.path)).unwrap_or_default(),
        }
    }

    /// Whether its values may be secrets, by what they are called.
    pub(in crate::limit) fn is_secret(&self) -> bool {
        match self {
            Self::Header(name) => sounds_secret(name.as_str()),
            Self::Cookie(name) => sounds_secret(&String::from_utf8_lossy(name)),
            Self::Query(name) => sounds_secret(name),
            Self::Expression(expression) => sounds_secret(Expression::source(expression)),
            Self::Client | Self::Path(_) | Self::Route | Self::Host | Self::Method => false,
        }
    }
}

/// An address, or the /64 that stands for all of its addresses.
fn client(text: &str) -> Option<IpAddr> {
    let network = parse_network(text)?;
    let is_one = network.prefix_len() == network.max_prefix_len();
    let is_host = matches!(network, IpNet::V6(_)) && network.prefix_len() == PREFIX;
    (is_one || is_host).then(|| network.addr().to_canonical())
}

fn listed<'a>(values: impl Iterator<Item = &'a [u8]>) -> String {
    values.map(String::from_utf8_lossy).collect::<Vec<_>>().join(", ")
}

fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use crds::policy::{
        Match,
        matches::{PathKind, PathMatch},
        rate_limits::{Key, KeySource},
    };
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;

    fn part(source: KeySource, name: Option<&str>) -> KeyPart {
        let matches = [Match {
            path: Some(PathMatch { kind: PathKind::Template, value: "/users/{id}/{*rest}".to_owned() }),
            ..Match::default()
        }];
        let cel = (source == KeySource::CEL).then(|| "request.headers['x-tier']".to_owned());
        KeyPart::build(&Key { source, name: name.map(str::to_owned), cel }, &matches).unwrap()
    }

    #[test]
    fn text_is_written_as_the_request_is_that_it_is_of() {
        let mut headers = HeaderMap::new();
        headers.insert("x-tier", HeaderValue::from_static("gold"));
        headers.insert("cookie", HeaderValue::from_static("theme=dark; sid=s1"));
        let full = ("/users/7/orders", Some("page=2&page_size=5"), &headers);
        let none = ("/users", None, &HeaderMap::new());
        for (source, name, facts, matched, client, text) in [
            (KeySource::ClientIP, None, full, None, "10.0.0.1", "10.0.0.1"),
            (KeySource::ClientIP, None, full, None, "::ffff:10.0.0.1", "10.0.0.1"),
            (KeySource::ClientIP, None, full, None, "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            (KeySource::Header, Some("x-tier"), full, None, "::1", "gold"),
            (KeySource::Header, Some("x-tier"), none, None, "::1", ""),
            (KeySource::Cookie, Some("sid"), full, None, "::1", "s1"),
            (KeySource::Query, Some("page"), full, None, "::1", "2"),
            (KeySource::Query, Some("page"), none, None, "::1", ""),
            (KeySource::PathParameter, Some("id"), full, Some(0), "::1", "7"),
            (KeySource::PathParameter, Some("id"), full, None, "::1", ""),
            (KeySource::Route, None, full, Some(3), "::1", "3"),
            (KeySource::Route, None, full, None, "::1", ""),
            (KeySource::Host, None, full, None, "::1", "shop.example"),
            (KeySource::Method, None, full, None, "::1", "GET"),
            (KeySource::CEL, None, full, None, "::1", "gold"),
            (KeySource::CEL, None, none, None, "::1", ""),
        ] {
            let (part, (path, query, headers)) = (part(source, name), facts);
            let (method, client) = (&Method::GET, client.parse().unwrap());
            let facts = Facts { method, scheme: "http", host: "shop.example", path, query, headers, client };
            let (mut of_request, mut of_text) = (Bytes::new(), Bytes::new());
            part.write(&facts, matched, &mut of_request);
            assert_eq!(part.text(&facts, matched), text, "{source:?} {name:?}");
            part.write_text(text, &mut of_text).unwrap();
            assert_eq!(of_request, of_text, "{source:?} {name:?} {text}");
            let mut of_another = Bytes::new();
            let other = if source == KeySource::Route { "9" } else { "192.0.2.9" };
            part.write_text(other, &mut of_another).unwrap();
            assert_ne!(of_request, of_another, "{source:?}");
            for wanted in [text, other, "*"].into_iter().filter(|wanted| !wanted.is_empty()) {
                let wish = part.wish(wanted).unwrap();
                assert_eq!(part.is(&wish, &facts, matched), part.is_text(&wish, text), "{source:?}: {text:?} is {wanted:?}");
            }
        }
    }

    #[test]
    fn address_has_many_spellings_and_a_network_is_none() {
        let bytes = |text: &str| {
            let mut bytes = Bytes::new();
            part(KeySource::ClientIP, None).write_text(text, &mut bytes).map(|()| bytes)
        };
        assert_eq!(bytes("2001:DB8::1"), bytes("2001:db8::/64"));
        assert_eq!(bytes("10.0.0.1"), bytes("10.0.0.1/32"));
        for wrong in ["10.0.0.0/8", "2001:db8::/32", "gold", ""] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(part(KeySource::Route, None).write_text("first", &mut Bytes::new()).is_err());
    }

    #[test]
    fn names_of_secrets_are_known() {
        for (source, name, is_secret) in [
            (KeySource::Header, "authorization", true),
            (KeySource::Header, "X-Api-Key", true),
            (KeySource::Header, "x-tier", false),
            (KeySource::Cookie, "SID", true),
            (KeySource::Query, "access_token", true),
            (KeySource::Query, "page", false),
        ] {
            assert_eq!(part(source, Some(name)).is_secret(), is_secret, "{name}");
        }
        assert!(!part(KeySource::ClientIP, None).is_secret());
    }
}
