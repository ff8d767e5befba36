//! The section `failover`: a second upstream.

use std::sync::Arc;

use crds::policy::{Failover, Mode};

use super::Key;

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
        let key = section.upstream.as_deref().map(Key::parse_in_clear).transpose()?;
        Ok(Self { mode: section.mode, label: Arc::clone(label), key })
    }
}
