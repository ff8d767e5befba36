//! What a limit counts apart.

use std::net::IpAddr;

use crds::policy::rate_limits::{Key, KeySource};
use http::HeaderName;
use smallvec::SmallVec;

use crate::{facts::Facts, fields};

/// Bytes of a key, most often few.
pub(super) type Bytes = SmallVec<[u8; 128]>;

/// One part of a key.
#[derive(Debug)]
pub(super) enum KeyPart {
    Client,
    Header(HeaderName),
    Cookie(Box<[u8]>),
    Query(Box<str>),
    Route,
    Host,
    Method,
}

impl KeyPart {
    pub(super) fn build(key: &Key) -> Result<Self, String> {
        let name = key.name.as_deref().unwrap_or_default();
        Ok(match key.source {
            KeySource::ClientIP => Self::Client,
            KeySource::Header => {
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?)
            }
            KeySource::Cookie => Self::Cookie(name.as_bytes().into()),
            KeySource::Query => Self::Query(name.into()),
            KeySource::Route => Self::Route,
            KeySource::Host => Self::Host,
            KeySource::Method => Self::Method,
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
            Self::Route => out.extend(matched.map(|matched| matched.saturating_add(1)).or(Some(0))),
            Self::Host => value(out, facts.host.as_bytes()),
            Self::Method => value(out, facts.method.as_str().as_bytes()),
        }
    }
}

/// Values of all parameters of a name, as they are spelled.
fn parameters<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a [u8]> {
    query.split('&').filter_map(move |parameter| {
        let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (found == name).then_some(value.as_bytes())
    })
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
