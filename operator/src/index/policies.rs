//! FetchrPolicies.

use crds::{FetchrPolicy, plan::ObjectRef};

use super::{Index, Indexed, Kind, Objects, Raw, Stored, Touched};

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy(pub Stored<FetchrPolicy>);

impl Indexed for Policy {
    type Resource = Raw<FetchrPolicy>;
    const KIND: Kind = Kind::Policies;

    fn read(object: Self::Resource) -> Option<(ObjectRef, Self)> {
        Stored::read(object).map(|(key, stored)| (key, Self(stored)))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.policies
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let same = match (old, new) {
            (Some(old), Some(new)) => old.0.is_same(&new.0),
            (old, new) => old.is_none() && new.is_none(),
        };
        Touched { plans: !same, ..Touched::NOTHING }
    }
}
