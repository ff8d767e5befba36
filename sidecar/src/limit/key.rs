//! What a limit counts apart.

mod named;

use std::net::IpAddr;

use crds::{
    check::{Segment, parse_template},
    policy::{
        Match,
        matches::PathKind,
        rate_limits::{Key, KeySource, parse_network},
    },
};
use http::HeaderName;
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::{
    facts::Facts,
    fields,
    route::{Evaluated, Expression},
};

/// Bytes of a key, most often few.
pub(super) type Bytes = SmallVec<[u8; 128]>;

/// One part of a key.
#[derive(Debug)]
pub(super) enum KeyPart {
    Client,
    Header(HeaderName),
    Cookie(Box<[u8]>),
    Query(Box<str>),
    /// Where the placeholder stands in each match of the rule, if it does.
    Path(Box<[Option<Place>]>),
    Route,
    Host,
    Method,
    Expression(Expression),
}

/// Where a placeholder stands in a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    segment: usize,
    /// Whether it stands for all that follows.
    rest: bool,
}

/// What a part of a key has to be.
#[derive(Debug)]
pub(super) enum Wish {
    Any,
    Network(IpNet),
    Text(Box<[u8]>),
}

impl KeyPart {
    /// Compiles a part of the key of a limit, in a rule with these matches.
    pub(super) fn build(key: &Key, matches: &[Match]) -> Result<Self, String> {
        let name = key.name.as_deref().unwrap_or_default();
        Ok(match key.source {
            KeySource::ClientIP => Self::Client,
            KeySource::Header => {
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?)
            }
            KeySource::Cookie => Self::Cookie(name.as_bytes().into()),
            KeySource::Query => Self::Query(name.into()),
            KeySource::PathParameter => Self::Path(matches.iter().map(|one| place(one, name)).collect()),
            KeySource::Route => Self::Route,
            KeySource::Host => Self::Host,
            KeySource::Method => Self::Method,
            KeySource::CEL => Self::Expression(Expression::compile(key.cel.as_deref().unwrap_or_default())?),
        })
    }

    /// Writes the part of a request: no other request's looks the same unless it is. All pods write the same bytes.
    pub(super) fn write(&self, facts: &Facts<'_>, matched: Option<u8>, out: &mut Bytes) {
        match self {
            Self::Client => match facts.client.to_canonical() {
                IpAddr::V4(address) => value(out, &address.octets()),
                // A host owns its whole /64, so a longer part would give it as many counts as it likes.
                IpAddr::V6(address) => value(out, &address.octets()[..8]),
            },
            Self::Header(name) => values(out, facts.headers.get_all(name).iter().map(|line| line.as_bytes())),
            Self::Cookie(name) => values(out, fields::cookies(facts.headers, name)),
            Self::Query(name) => values(out, parameters(facts.query.unwrap_or_default(), name)),
            Self::Path(places) => values(out, segment(places, matched, facts.path).into_iter()),
            Self::Route => out.extend(matched.map(|matched| matched.saturating_add(1)).or(Some(0))),
            Self::Host => value(out, facts.host.as_bytes()),
            Self::Method => value(out, facts.method.as_str().as_bytes()),
            Self::Expression(expression) => {
                let text = expression.text(&Evaluated::new(facts, facts.path));
                values(out, text.as_deref().map(str::as_bytes).into_iter());
            }
        }
    }

    /// What the part of a request has to be by the words of a policy.
    pub(super) fn wish(&self, text: &str) -> Result<Wish, String> {
        Ok(match self {
            _ if text == "*" => Wish::Any,
            Self::Client => Wish::Network(parse_network(text).ok_or_else(|| format!("{text:?} is no address and no network"))?),
            Self::Host => Wish::Text(text.to_ascii_lowercase().into_bytes().into()),
            _ => Wish::Text(text.as_bytes().into()),
        })
    }

    /// Whether the part of a request is what it has to be.
    pub(super) fn is(&self, wish: &Wish, facts: &Facts<'_>, matched: Option<u8>) -> bool {
        match wish {
            Wish::Any => true,
            Wish::Network(network) => network.contains(&facts.client.to_canonical()),
            Wish::Text(text) => match self {
                Self::Client => false,
                Self::Header(name) => is_only(text, facts.headers.get_all(name).iter().map(|line| line.as_bytes())),
                Self::Cookie(name) => is_only(text, fields::cookies(facts.headers, name)),
                Self::Query(name) => is_only(text, parameters(facts.query.unwrap_or_default(), name)),
                Self::Path(places) => is_only(text, segment(places, matched, facts.path).into_iter()),
                Self::Route => matched.is_some_and(|matched| matched.to_string().as_bytes() == &**text),
                Self::Host => facts.host.as_bytes() == &**text,
                Self::Method => facts.method.as_str().as_bytes() == &**text,
                Self::Expression(expression) => {
                    expression.text(&Evaluated::new(facts, facts.path)).is_some_and(|found| found.as_bytes() == &**text)
                }
            },
        }
    }
}

fn place(one: &Match, name: &str) -> Option<Place> {
    let path = one.path.as_ref().filter(|path| path.kind == PathKind::Template)?;
    let segments = parse_template(&path.value).ok()?;
    segments.iter().enumerate().find_map(|(at, segment)| match segment {
        Segment::One(found) if found == name => Some(Place { segment: at, rest: false }),
        Segment::Rest(found) if found == name => Some(Place { segment: at, rest: true }),
        _ => None,
    })
}

/// What of a path stands in the place of a placeholder.
fn segment<'a>(places: &[Option<Place>], matched: Option<u8>, path: &'a str) -> Option<&'a [u8]> {
    let place = (*places.get(usize::from(matched?))?)?;
    let mut rest = path.strip_prefix('/')?;
    for _ in 0..place.segment {
        rest = rest.split_once('/')?.1;
    }
    let found = if place.rest { rest } else { rest.split('/').next()? };
    Some(found.as_bytes())
}

/// Values of all parameters of a name, as they are spelled.
fn parameters<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a [u8]> {
    query.split('&').filter_map(move |parameter| {
        let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (found == name).then_some(value.as_bytes())
    })
}

fn is_only<'a>(text: &[u8], mut values: impl Iterator<Item = &'a [u8]>) -> bool {
    values.next() == Some(text) && values.next().is_none()
}

/// A list of which the end can be told.
fn values<'a>(out: &mut Bytes, values: impl Iterator<Item = &'a [u8]>) {
    for one in values {
        out.push(1);
        value(out, one);
    }
    out.push(0);
}

fn value(out: &mut Bytes, value: &[u8]) {
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value);
}
