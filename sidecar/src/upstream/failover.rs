//! The section `failover`: a second upstream.

use std::sync::Arc;

use crds::{
    check::{self, UpstreamScheme},
    policy::{Failover, Mode},
    proxy::UpstreamTls,
};

use super::{Endpoint, Key, Protocol};
use crate::tls::{Originations, TlsError};

/// The section, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Standby {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    /// Where to; none only in mode Disabled.
    upstream: Option<Second>,
}

#[derive(Clone, Debug)]
enum Second {
    InClear(Key),
    /// A host and port; what is read from the files of its settings is shared by all who have the same.
    Tls(Arc<str>, u16, Box<UpstreamTls>),
}

impl Standby {
    pub(crate) fn build(label: &Arc<str>, section: &Failover) -> Result<Self, String> {
        let upstream = section.upstream.as_deref().map(|upstream| Second::build(upstream, section)).transpose()?;
        Ok(Self { mode: section.mode, label: Arc::clone(label), upstream })
    }

    /// Where to.
    pub(crate) fn key(&self, originations: &Originations) -> Result<Option<Key>, TlsError> {
        match &self.upstream {
            None => Ok(None),
            Some(Second::InClear(key)) => Ok(Some(key.clone())),
            Some(Second::Tls(host, port, settings)) => {
                let endpoint = Endpoint::of(host, *port);
                let tls = Some(originations.of(&endpoint, settings)?);
                Ok(Some(Key { endpoint, protocol: Protocol::Http1, tls }))
            }
        }
    }

    /// Its TLS, if it has any.
    pub(crate) fn tls(&self) -> Option<&UpstreamTls> {
        match &self.upstream {
            Some(Second::Tls(_, _, settings)) => Some(settings),
            _ => None,
        }
    }
}

impl Second {
    fn build(upstream: &str, section: &Failover) -> Result<Self, String> {
        let address = check::parse_upstream(upstream)?;
        if address.scheme != UpstreamScheme::Https {
            return Key::parse_in_clear(upstream).map(Self::InClear);
        }
        let settings = section.upstream_tls.clone().unwrap_or_default();
        Ok(Self::Tls(address.host.to_ascii_lowercase().into(), address.port, Box::new(settings)))
    }
}
