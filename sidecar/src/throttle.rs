//! The stage of the section `throttle`: how much goes to the upstream at a time, who waits for it, and for how long.
//!
//! The decisions are pure: `adaptive` finds the limit, `queue` says whose turn is next, `state` puts the two together, `shaper` gives times
//! at a rate, `bandwidth` keeps account of bytes, `deadline` reads how long clients wait. `gate` is what a pod counts of one throttle, and
//! `stage` takes a request past all that hold for it.

mod adaptive;
mod bandwidth;
mod counted;
mod deadline;
mod gate;
mod queue;
mod shaper;
mod show;
#[cfg(test)]
mod sim;
mod stage;
mod state;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use crds::policy::{
    Direction, Mode, Throttle as Spec,
    throttle::{FairnessKey, FairnessSource},
};
use http::HeaderName;
use prometheus_client::registry::Registry;

pub use self::show::{PodThrottles, ThrottleFigures};
use self::{adaptive::Sample, counted::Metrics, deadline::Deadlines, gate::Gate, shaper::Pacing};
pub(crate) use self::{
    bandwidth::{Bandwidth, Paced},
    counted::Outcome,
    deadline::Deadline,
    gate::Permit,
    stage::{Admitted, Asked, Turn},
};
use crate::{
    config::Config,
    facts::Facts,
    route::{OneOf, Route, Spelling},
};

/// Name of the priority of requests that meet none, where each has matches.
const DEFAULT: &str = "default";

/// The section, compiled.
#[derive(Debug)]
pub struct Throttle {
    mode: Mode,
    /// `namespace/policy/rule`.
    label: Arc<str>,
    policy: Arc<str>,
    rule: Arc<str>,
    spec: Spec,
    max_wait: Duration,
    pacing: Option<Pacing>,
    deadlines: Deadlines,
    /// Whether there is anything that a request could be too late for.
    waits: bool,
    downloads: bool,
    uploads: bool,
    exempt: OneOf,
    /// Names of the priorities, the highest first, and what their requests meet.
    names: Vec<Arc<str>>,
    matches: Vec<OneOf>,
    /// The priority of requests that meet none.
    others: u8,
    key: Vec<KeyPart>,
    /// What the pod counts of it, once it was asked.
    gate: OnceLock<Arc<Gate>>,
}

/// A part of what tells clients apart.
#[derive(Debug)]
enum KeyPart {
    Client,
    Header(HeaderName),
    Host,
}

impl Throttle {
    /// Compiles the section of a rule; `policy` is `namespace/name`.
    pub(crate) fn build(policy: &Arc<str>, rule: &Arc<str>, spec: &Spec, spelling: &Spelling) -> Result<Self, String> {
        let mut names: Vec<Arc<str>> = spec.priorities.iter().map(|priority| priority.name.as_str().into()).collect();
        let others = spec.priorities.iter().position(|priority| priority.matches.is_empty());
        if others.is_none() {
            names.push(DEFAULT.into());
        }
        let fairness = spec.queue.as_ref().and_then(|queue| queue.fairness.as_ref());
        Ok(Self {
            mode: spec.mode,
            label: format!("{policy}/{rule}").into(),
            policy: Arc::clone(policy),
            rule: Arc::clone(rule),
            max_wait: spec.queue.clone().unwrap_or_default().max_wait.0,
            pacing: spec.rate.as_ref().map(Pacing::of),
            deadlines: Deadlines::build(spec.deadline.as_ref())?,
            waits: spec.concurrency.is_some() || spec.rate.is_some() || spec.deadline.is_some(),
            downloads: spec.bandwidth.is_some_and(|bandwidth| bandwidth.download.is_some()),
            uploads: spec.bandwidth.is_some_and(|bandwidth| bandwidth.upload.is_some()),
            exempt: OneOf::build(&spec.exempt, spelling)?,
            matches: spec
                .priorities
                .iter()
                .map(|priority| OneOf::build(&priority.matches, spelling))
                .collect::<Result<_, _>>()?,
            others: u8::try_from(others.unwrap_or(names.len() - 1)).map_err(|_| "there are too many priorities".to_owned())?,
            names,
            key: fairness.into_iter().flat_map(|fairness| &fairness.key).map(KeyPart::build).collect::<Result<_, _>>()?,
            spec: spec.clone(),
            gate: OnceLock::new(),
        })
    }

    /// Whether it acts.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// What the pod counts of it.
    fn gate(&self, throttles: &Throttles) -> &Arc<Gate> {
        self.gate.get_or_init(|| throttles.gate(self))
    }

    /// The priority of a request, 0 being the highest.
    fn level(&self, route: &Route, facts: &Facts<'_>) -> u8 {
        let met = if self.matches.is_empty() { None } else { route.first_met(facts, self.matches.iter()) };
        met.and_then(|met| u8::try_from(met).ok()).unwrap_or(self.others)
    }
}

impl KeyPart {
    fn build(key: &FairnessKey) -> Result<Self, String> {
        let name = key.name.as_deref().unwrap_or_default();
        Ok(match key.source {
            FairnessSource::ClientIP => Self::Client,
            FairnessSource::Header => {
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?)
            }
            FairnessSource::Host => Self::Host,
        })
    }
}

/// The throttles of a pod, for all workers. What they count outlives a configuration, by the name of the rule.
#[derive(Debug, Default)]
pub(crate) struct Throttles {
    gates: Mutex<HashMap<Arc<str>, Arc<Gate>>>,
    metrics: Metrics,
    hasher: RandomState,
}

impl Throttles {
    /// Adds their figures to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Goes on with what the configuration says: with other limits, and without the throttles that it does not name any more.
    pub(crate) fn apply(&self, config: &Config) {
        let both = [Direction::Inbound, Direction::Outbound].map(|direction| config.routes(direction));
        let named: Vec<&Arc<Throttle>> =
            both.iter().flat_map(|routes| routes.throttles()).filter(|throttle| throttle.mode != Mode::Disabled).collect();
        for throttle in &named {
            throttle.gate(self).configure(&throttle.spec, &throttle.names);
        }
        let kept: HashSet<&Arc<str>> = named.iter().map(|throttle| &throttle.label).collect();
        self.gates().retain(|label, gate| {
            let keeps = kept.contains(label);
            if !keeps {
                gate.forget();
            }
            keeps
        });
    }

    fn gate(&self, throttle: &Throttle) -> Arc<Gate> {
        let mut gates = self.gates();
        let made = || {
            let figures = self.metrics.of(&throttle.policy, &throttle.rule);
            Gate::new(Arc::clone(&throttle.label), &throttle.spec, &throttle.names, figures)
        };
        Arc::clone(gates.entry(Arc::clone(&throttle.label)).or_insert_with(made))
    }

    /// Of what tells the client of a request.
    fn hash(&self, throttle: &Throttle, facts: &Facts<'_>) -> u64 {
        if throttle.key.is_empty() {
            return 0;
        }
        self.hasher.hash_one(throttle.key.iter().map(|part| part.of(facts)).collect::<Vec<_>>())
    }

    fn figures(&self) -> Vec<ThrottleFigures> {
        let gates: BTreeMap<_, _> = self.gates().iter().map(|(label, gate)| (Arc::clone(label), Arc::clone(gate))).collect();
        gates.values().map(|gate| gate.show_all()).collect()
    }

    fn gates(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyPart {
    /// The part of a request.
    fn of<'a>(&self, facts: &Facts<'a>) -> Part<'a> {
        match self {
            Self::Client => match facts.client.to_canonical() {
                IpAddr::V4(address) => Part::Number(u32::from(address).into()),
                // A host owns its whole /64.
                IpAddr::V6(address) => Part::Number(u128::from(address) >> 64),
            },
            Self::Header(name) => facts.headers.get(name).map_or(Part::None, |value| Part::Bytes(value.as_bytes())),
            Self::Host => Part::Bytes(facts.host.as_bytes()),
        }
    }
}

/// What a request has there.
#[derive(Hash)]
enum Part<'a> {
    None,
    Number(u128),
    Bytes(&'a [u8]),
}
