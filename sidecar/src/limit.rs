//! The stage of the section `rateLimits`: all limits of a request are charged, or none is.

mod counted;
pub mod gcra;
mod key;
mod local;
mod outcome;
#[allow(dead_code, unused_imports, reason = "no policy asks yet for windows, slots, leases and costs")]
mod shared;
mod sharing;
mod stage;

use std::sync::Arc;

use crds::{
    plan::{Attachment, ObjectRef},
    policy::{
        Mode, RateLimit,
        rate_limits::{LimitFields, OnStoreFailure, Scope},
    },
};
use sha2::{Digest as _, Sha256};

use self::{counted::Counters, gcra::Gcra, key::KeyPart, shared::Bucket};
pub(crate) use self::{outcome::Stops, sharing::StoreSettings};
pub use self::{
    outcome::{Denied, Outcome},
    stage::{CAPACITY, Limiter},
};
use crate::facts::Facts;

/// A limit of a rule, compiled.
#[derive(Debug)]
pub struct Limit {
    policy: Arc<str>,
    rule: Arc<str>,
    name: Arc<str>,
    mode: Mode,
    gcra: Gcra,
    key: Box<[KeyPart]>,
    scope: Scope,
    on_store_failure: OnStoreFailure,
    /// The limit as the store counts it; one of scope Shared has it.
    bucket: Option<Bucket>,
    /// What the names of its counts in the store have in common, behind the namespace.
    shared_prefix: Box<str>,
    fields: LimitFields,
    counters: Counters,
}

impl Limit {
    /// Compiles a limit of a rule; `policy` is `namespace/name`, and pods at the same place `at` count together.
    pub fn build(policy: &Arc<str>, at: &str, rule: &Arc<str>, limit: &RateLimit) -> Result<Self, String> {
        let number = |value: i64| u32::try_from(value).ok();
        let requests = number(limit.limit.requests);
        let burst = number(limit.limit.burst.unwrap_or(limit.limit.requests));
        let gcra = requests.zip(burst).and_then(|(requests, burst)| Gcra::new(requests, limit.limit.per.0, burst));
        let bucket =
            requests.zip(burst).and_then(|(requests, burst)| Bucket::new(requests.into(), limit.limit.per.0, burst.into()));
        if limit.scope == Scope::Shared && bucket.is_none() {
            return Err(format!("limit {}: it can't be counted exactly in Redis", limit.name));
        }
        Ok(Self {
            policy: Arc::clone(policy),
            rule: Arc::clone(rule),
            name: limit.name.as_str().into(),
            mode: limit.mode,
            gcra: gcra.ok_or_else(|| format!("limit {}: requests, per and burst have to be greater than zero", limit.name))?,
            key: limit.key.iter().map(KeyPart::build).collect::<Result<_, _>>()?,
            scope: limit.scope,
            on_store_failure: limit.on_store_failure.unwrap_or_default(),
            bucket,
            // All limits of a policy in one slot of a cluster, so that they are charged at once.
            shared_prefix: format!("{{limit:{policy}:{at}}}:{rule}/{}", limit.name).into(),
            fields: limit.fields,
            counters: Counters::default(),
        })
    }

    /// What of a request is counted apart; `matched` is the match that it met.
    fn key_of(&self, facts: &Facts<'_>, matched: Option<u8>) -> key::Bytes {
        let mut bytes = key::Bytes::new();
        self.key.iter().for_each(|part| part.write(facts, matched, &mut bytes));
        bytes
    }

    /// The name of a request's count in the store: what is counted apart is in it as a digest, for it may be long, or a secret.
    fn shared_name(&self, namespace: &str, key: &key::Bytes) -> String {
        let digest = Sha256::digest(key);
        let digest = u128::from_be_bytes(std::array::from_fn(|at| digest[at]));
        format!("fetchr:{namespace}:{}:{digest:032x}", self.shared_prefix)
    }

    /// Whether it acts, and pods count it together.
    pub(crate) fn is_shared(&self) -> bool {
        self.scope == Scope::Shared && self.mode != Mode::Disabled
    }

    /// Name of the limit, as clients see it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it acts.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

/// Where a policy is attached for pods of a proxy: those at the same place count together.
pub(crate) fn place(at: &Attachment, proxy: &ObjectRef) -> String {
    match at {
        Attachment::Platform => "platform".to_owned(),
        Attachment::Namespace => "namespace".to_owned(),
        Attachment::Proxy => format!("FetchrProxy/{proxy}"),
        Attachment::Service { name } => format!("Service/{name}"),
        Attachment::Workload { workload_kind, name } => format!("{workload_kind}/{name}"),
        Attachment::ExternalHost { .. } => "host".to_owned(),
    }
}

#[cfg(test)]
mod tests;
