//! A plan as bytes.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use crds::plan::{ObjectRef, Plan, Position};
use wire::v1;

use super::Features;

/// A plan as bytes, for all sidecars that know the same features.
#[derive(Clone, Debug)]
pub struct Document {
    /// SHA-256 of the bytes.
    pub digest: String,
    /// The plan as canonical JSON.
    pub bytes: Bytes,
    /// Up to where each kind was seen.
    pub position: Arc<BTreeMap<String, String>>,
    /// Policies that were left out, because they have a section that these sidecars don't know.
    pub left_out: Arc<[ObjectRef]>,
}

impl Document {
    /// The plan for sidecars with these features.
    pub fn new(plan: &Plan, features: &Features, position: &Position) -> Self {
        let (plan, left_out) = plan.clone().for_features(features);
        let bytes = Bytes::from(plan.to_bytes());
        Self {
            digest: crds::plan::digest_bytes(&bytes),
            bytes,
            position: Arc::new(position.clone().into_iter().collect()),
            left_out: left_out.into(),
        }
    }

    /// The same plan, seen later.
    #[must_use]
    pub fn at(&self, position: &Position) -> Self {
        Self { position: Arc::new(position.clone().into_iter().collect()), ..self.clone() }
    }

    /// The message for a stream; the document's bytes are shared.
    pub fn message(&self) -> v1::Plan {
        v1::Plan { digest: self.digest.clone(), document: self.bytes.clone(), position: (*self.position).clone() }
    }
}
