//! The stage of the section `rateLimits`: all limits of a request are charged, or none is.

pub mod gcra;
mod key;
mod local;
mod outcome;
#[allow(dead_code, unused_imports, reason = "no policy asks for it yet")]
mod shared;
mod stage;

use std::sync::{Arc, OnceLock};

use crds::policy::{Mode, RateLimit, rate_limits::LimitFields};

use self::{gcra::Gcra, key::KeyPart, stage::Counters};
pub use self::{
    outcome::{Denied, Outcome},
    stage::{CAPACITY, Limiter},
};

/// A limit of a rule, compiled.
#[derive(Debug)]
pub struct Limit {
    policy: Arc<str>,
    rule: Arc<str>,
    name: Arc<str>,
    mode: Mode,
    gcra: Gcra,
    key: Box<[KeyPart]>,
    fields: LimitFields,
    counters: OnceLock<Counters>,
}

impl Limit {
    /// Compiles a limit of a rule; `policy` is `namespace/name`.
    pub fn build(policy: &Arc<str>, rule: &Arc<str>, limit: &RateLimit) -> Result<Self, String> {
        let number = |value: i64| u32::try_from(value).ok();
        let requests = number(limit.limit.requests);
        let burst = number(limit.limit.burst.unwrap_or(limit.limit.requests));
        let gcra = requests.zip(burst).and_then(|(requests, burst)| Gcra::new(requests, limit.limit.per.0, burst));
        Ok(Self {
            policy: Arc::clone(policy),
            rule: Arc::clone(rule),
            name: limit.name.as_str().into(),
            mode: limit.mode,
            gcra: gcra.ok_or_else(|| format!("limit {}: requests, per and burst have to be greater than zero", limit.name))?,
            key: limit.key.iter().map(KeyPart::build).collect::<Result<_, _>>()?,
            fields: limit.fields,
            counters: OnceLock::new(),
        })
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

#[cfg(test)]
mod tests;
