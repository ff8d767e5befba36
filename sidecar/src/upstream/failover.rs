//! The section `failover`: a second upstream.

use std::sync::Arc;

use crds::policy::{Failover, Mode};

use super::Key;
use crate::listen::parse_upstream;

/// The section, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Standby {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    /// Where to; none only in mode Disabled.
    pub(crate) key: Option<Key>,
}

impl Standby {
    pub(crate) fn build(label: &Arc<str>, section: &Failover) -> Result<Self, String> {
        let key = section.upstream.as_deref().map(parse_upstream).transpose()?;
        Ok(Self { mode: section.mode, label: Arc::clone(label), key })
    }
}
