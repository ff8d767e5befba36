//! What was charged, and can be given back.

use smallvec::SmallVec;

use crate::limit::shared::{
    rule::{ChargeId, Rule},
    script::Charged,
};

/// What a pass charged. Dropped, it stays charged.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    id: ChargeId,
    /// By slot of a cluster.
    groups: SmallVec<[Vec<Charged>; 1]>,
}

/// A slot that a request has taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Held {
    pub(super) name: String,
    pub(super) id: ChargeId,
}

impl Held {
    /// The slot of a count that a charge with this id has.
    pub(crate) fn new(key: &str, id: ChargeId) -> Self {
        Self { name: format!("{key}:s"), id }
    }

    /// Whether it is of a count.
    pub(crate) fn is_of(&self, key: &str) -> bool {
        self.name.strip_prefix(key).is_some_and(|kind| kind == ":s")
    }
}

impl Ticket {
    pub(super) fn new(id: ChargeId) -> Self {
        Self { id, groups: SmallVec::new() }
    }

    /// Its id: also that of its slots.
    pub(crate) fn id(&self) -> ChargeId {
        self.id
    }

    /// Whether nothing was charged.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Slots among it, which are released when the request ends.
    pub(crate) fn held(&self) -> impl Iterator<Item = Held> {
        let slots = self.groups.iter().flatten().filter(|charged| matches!(charged.rule, Rule::Slots(_)));
        slots.map(|charged| Held { name: charged.name.clone(), id: self.id })
    }

    pub(super) fn add(&mut self, charged: Vec<Charged>) {
        if !charged.is_empty() {
            self.groups.push(charged);
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.groups.iter().flatten().any(|charged| charged.name == name)
    }

    pub(super) fn take(&mut self) -> Self {
        Self { id: self.id, groups: std::mem::take(&mut self.groups) }
    }

    pub(super) fn into_parts(self) -> (ChargeId, SmallVec<[Vec<Charged>; 1]>) {
        (self.id, self.groups)
    }
}
