//! The Services for all streams of one plan, and what is new in them.

use std::{cmp::Ordering, sync::Arc};

use crds::plan::ObjectRef;
use wire::v1;

/// A Service by its name; two sets that hold the same `Arc` say the same of it.
pub(super) type Entry = (ObjectRef, Arc<v1::Service>);

/// Services that a plan asks for, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// The resourceVersion up to which EndpointSlices had been seen.
    pub version: String,
    /// By namespace and name.
    pub services: Arc<[Entry]>,
    /// How many more Services the plan asks for than are in it.
    pub left_out: usize,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// What follows `svc` in the names of Services.
    pub cluster_domain: Arc<str>,
}

impl Set {
    /// Whether it says what another one says, seen at whatever time.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(mine, theirs): (&Entry, &Entry)| Arc::ptr_eq(&mine.1, &theirs.1);
        self.left_out == other.left_out
            && self.services.len() == other.services.len()
            && self.services.iter().zip(&*other.services).all(same)
    }

    /// The message for a stream that was told of `before`, or of nothing.
    pub fn since(&self, before: Option<&Self>) -> v1::Services {
        let (changed, gone) = changes(before.map_or(&[][..], |before| &before.services), &self.services);
        v1::Services {
            version: self.version.clone(),
            whole: before.is_none(),
            changed,
            gone,
            cluster_domain: self.cluster_domain.to_string(),
            left_out: u32::try_from(self.left_out).unwrap_or(u32::MAX),
        }
    }
}

/// What is new or other in `after`, and what it has no more. Both are sorted.
fn changes(mut before: &[Entry], mut after: &[Entry]) -> (Vec<v1::Service>, Vec<v1::ServiceName>) {
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    loop {
        let order = match (before.first(), after.first()) {
            (None, None) => return (changed, gone),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.0.cmp(&new.0),
        };
        let old = if order == Ordering::Greater { None } else { before.split_off_first() };
        let new = if order == Ordering::Less { None } else { after.split_off_first() };
        match (old, new) {
            (Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new) => {}
            (_, Some((_, new))) => changed.push(v1::Service::clone(new)),
            (Some((key, _)), None) => gone.push(v1::ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }),
            (None, None) => {}
        }
    }
}
