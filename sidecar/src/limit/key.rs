//! What a limit counts apart.

use std::{
    hash::{Hash as _, Hasher},
    net::IpAddr,
};

use crds::policy::rate_limits::{Key, KeySource};
use http::HeaderName;

use crate::facts::Facts;

/// One part of a key.
#[derive(Debug)]
pub(super) enum KeyPart {
    Client,
    Header(HeaderName),
    Route,
    Host,
    Method,
}

impl KeyPart {
    pub(super) fn build(key: &Key) -> Result<Self, String> {
        Ok(match key.source {
            KeySource::ClientIP => Self::Client,
            KeySource::Header => {
                let name = key.name.as_deref().unwrap_or_default();
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?)
            }
            KeySource::Route => Self::Route,
            KeySource::Host => Self::Host,
            KeySource::Method => Self::Method,
        })
    }

    pub(super) fn hash(&self, facts: &Facts<'_>, matched: Option<u8>, state: &mut impl Hasher) {
        match self {
            Self::Client => match facts.client.to_canonical() {
                IpAddr::V4(address) => address.octets().hash(state),
                // A host owns its whole /64, so a longer part would give it as many counts as it likes.
                IpAddr::V6(address) => address.octets()[..8].hash(state),
            },
            Self::Header(name) => {
                let lines = facts.headers.get_all(name);
                lines.iter().count().hash(state);
                lines.iter().for_each(|line| line.as_bytes().hash(state));
            }
            Self::Route => matched.hash(state),
            Self::Host => facts.host.hash(state),
            Self::Method => facts.method.as_str().hash(state),
        }
    }
}
