//! The configuration: one immutable value, built whole and swapped whole. A request keeps the one that it started with.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use crds::{
    plan::{Identity, Plan, Position},
    policy::Direction,
    proxy::{FetchrProxySpec, OnNoConfig, PathForward},
};
use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::watch;

pub use crate::route::ConfigError;
use crate::{
    route::{BadPath, Routes, Spelling},
    services::Services,
};

/// Where a plan came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum PlanSource {
    /// The operator's stream.
    Stream,
    /// The mounted ConfigMap `fetchr-plan`.
    ConfigMap,
    /// The state folder, kept by an earlier start.
    StateDir,
    /// Files, standalone.
    File,
    /// There is no plan.
    None,
}

impl fmt::Display for PlanSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A plan with what tells it from others.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The plan.
    pub plan: Arc<Plan>,
    /// SHA-256 of its document, lower-case hexadecimal.
    pub digest: String,
    /// How far its maker had seen.
    pub position: Position,
    /// Where it came from.
    pub source: PlanSource,
}

/// Whether there is a plan, and what happens without.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Standing {
    /// A plan is in force.
    Planned,
    /// The first plan is still awaited; requests are answered with 503.
    Waiting,
    /// No plan came in time; requests pass without policy.
    PassThrough,
    /// No plan came in time; requests are answered with 503.
    Block,
}

/// A compiled configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The plan that it was built from; none before the first one.
    pub planned: Option<Planned>,
    /// The pod's place.
    pub identity: Identity,
    /// Policies for requests to the application.
    pub inbound: Routes,
    /// Policies for requests from the application.
    pub outbound: Routes,
    /// Whether there is a plan, and what happens without.
    pub standing: Standing,
    settings: Arc<FetchrProxySpec>,
    trusted: Vec<IpNet>,
    spelling: Spelling,
}

impl Config {
    /// Compiles a plan for a pod. The error names policy and rule; it is what a nack tells.
    pub fn build(planned: Planned, identity: Identity) -> Result<Self, ConfigError> {
        let plan = &planned.plan;
        let settings = Arc::new(plan.settings.clone());
        Ok(Self {
            inbound: Routes::build(plan, &identity, Direction::Inbound)?,
            outbound: Routes::build(plan, &identity, Direction::Outbound)?,
            standing: Standing::Planned,
            trusted: trusted(&settings)?,
            spelling: Spelling::new(settings.http.path),
            settings,
            identity,
            planned: Some(planned),
        })
    }

    /// The same compiled plan, offered at another position or by another source.
    pub fn moved(&self, position: Position, source: PlanSource) -> Self {
        let planned = self.planned.clone().map(|planned| Planned { position, source, ..planned });
        Self { planned, ..self.clone() }
    }

    /// What holds before the first plan: nothing passes.
    pub fn waiting(settings: FetchrProxySpec) -> Self {
        Self::without_plan(settings, Standing::Waiting)
    }

    /// What holds when no plan came in time: all passes without policy, or nothing passes.
    pub fn given_up(settings: FetchrProxySpec, on_no_config: OnNoConfig) -> Self {
        let standing = match on_no_config {
            OnNoConfig::PassThrough => Standing::PassThrough,
            OnNoConfig::Block => Standing::Block,
        };
        Self::without_plan(settings, standing)
    }

    fn without_plan(settings: FetchrProxySpec, standing: Standing) -> Self {
        Self {
            planned: None,
            identity: Identity::default(),
            inbound: Routes::empty(Direction::Inbound),
            outbound: Routes::empty(Direction::Outbound),
            standing,
            trusted: trusted(&settings).unwrap_or_default(),
            spelling: Spelling::new(settings.http.path),
            settings: Arc::new(settings),
        }
    }

    /// Whether every request is to be answered with 503, since there is no plan and none may pass without.
    pub fn blocks(&self) -> bool {
        matches!(self.standing, Standing::Waiting | Standing::Block)
    }

    /// The match table of a direction.
    pub fn routes(&self, direction: Direction) -> &Routes {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Settings of the FetchrProxy, defaults filled in.
    pub fn settings(&self) -> &Arc<FetchrProxySpec> {
        &self.settings
    }

    /// How paths are spelled before policies look at them (`http.path`).
    pub fn spelling(&self) -> &Spelling {
        &self.spelling
    }

    /// A path as policies look at it and the application gets it, or why it is refused.
    pub(crate) fn spelled<'a>(&self, direction: Direction, path: &'a str) -> Result<Cow<'a, str>, BadPath> {
        self.spelling.check(path)?;
        Ok(if self.forwards_normalized(direction) { self.spelling.normal(path) } else { Cow::Borrowed(path) })
    }

    /// Whether the path goes on in the spelling that policies looked at (`http.path.forward`).
    pub fn forwards_normalized(&self, direction: Direction) -> bool {
        match self.settings.http.path.forward {
            Some(forward) => forward == PathForward::Normalized,
            None => direction == Direction::Inbound,
        }
    }

    /// Whether a peer may say who the client is (`clientAddress.trustedCIDRs`).
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|net| net.contains(&peer))
    }

    /// Digest of the plan in force; empty if there is none.
    pub fn digest(&self) -> &str {
        self.planned.as_ref().map_or("", |planned| &planned.digest)
    }

    /// Where the plan in force came from.
    pub fn source(&self) -> PlanSource {
        self.planned.as_ref().map_or(PlanSource::None, |planned| planned.source)
    }
}

fn trusted(settings: &FetchrProxySpec) -> Result<Vec<IpNet>, ConfigError> {
    let parse = |cidr: &String| {
        cidr.parse::<IpNet>().map_err(|_| ConfigError {
            policy: None,
            rule: None,
            message: format!("clientAddress.trustedCIDRs: {cidr:?} is not a network such as 10.0.0.0/8"),
        })
    };
    settings.client_address.trusted_cidrs.iter().map(parse).collect()
}

/// The configuration in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Shared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    current: ArcSwap<Config>,
    services: ArcSwap<Services>,
    changed: watch::Sender<u64>,
}

impl Shared {
    /// Starts with a configuration; usually [`Config::waiting`].
    pub fn new(config: Config) -> Self {
        let (current, services) = (ArcSwap::from_pointee(config), ArcSwap::default());
        Self { inner: Arc::new(Inner { current, services, changed: watch::Sender::new(0) }) }
    }

    /// The configuration of now; hold it for one request.
    pub fn load(&self) -> Arc<Config> {
        self.inner.current.load_full()
    }

    /// Puts another configuration in force, for requests that start from now on.
    pub fn replace(&self, config: Config) {
        self.inner.current.store(Arc::new(config));
        self.inner.changed.send_modify(|version| *version += 1);
    }

    /// Who stands behind Services now; empty where no operator has told.
    pub fn services(&self) -> Guard<Arc<Services>> {
        self.inner.services.load()
    }

    /// Takes over who stands behind Services, for tries that start from now on. The configuration stays as it is.
    pub fn follow(&self, services: Arc<Services>) {
        self.inner.services.store(services);
    }

    /// Gives up waiting: without a plan, `on_no_config` holds until one comes. Returns whether that is so.
    pub fn give_up(&self, on_no_config: OnNoConfig) -> bool {
        let current = self.inner.current.load_full();
        if current.standing != Standing::Waiting {
            return false;
        }
        let given_up = Arc::new(Config::given_up((*current.settings).clone(), on_no_config));
        // A plan that comes at this moment must not be overwritten.
        let swapped = Arc::ptr_eq(&self.inner.current.compare_and_swap(&current, given_up), &current);
        if swapped {
            self.inner.changed.send_modify(|version| *version += 1);
        }
        swapped
    }

    /// Tells when the configuration changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use crds::{plan::ObjectRef, proxy::ClientAddress};

    use super::*;

    fn planned(settings: FetchrProxySpec) -> Planned {
        let plan = Plan { proxy: ObjectRef::new("shop", "web"), settings, policies: Vec::new() };
        Planned { plan: Arc::new(plan), digest: "d".to_owned(), position: Position::default(), source: PlanSource::File }
    }

    fn trusting(cidr: &str) -> FetchrProxySpec {
        let client_address = ClientAddress { trusted_cidrs: vec![cidr.to_owned()] };
        FetchrProxySpec { client_address, ..FetchrProxySpec::default() }
    }

    #[test]
    fn trusted_peers_are_known_in_either_spelling() {
        let config = Config::build(planned(trusting("10.0.0.0/8")), Identity::default()).unwrap();
        assert!(config.trusts("10.1.2.3".parse().unwrap()));
        assert!(config.trusts("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!config.trusts("11.0.0.1".parse().unwrap()));
    }

    #[test]
    fn wrong_network_is_named() {
        let refused = Config::build(planned(trusting("10.0.0.0/99")), Identity::default()).unwrap_err();
        assert!(refused.to_string().contains("10.0.0.0/99"), "{refused}");
    }

    #[test]
    fn giving_up_never_overwrites_a_plan() {
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        assert!(shared.give_up(OnNoConfig::PassThrough));
        assert!(!shared.load().blocks());
        shared.replace(Config::build(planned(FetchrProxySpec::default()), Identity::default()).unwrap());
        assert!(!shared.give_up(OnNoConfig::Block));
        assert_eq!(shared.load().standing, Standing::Planned);
    }

    #[tokio::test]
    async fn change_is_told_and_old_holders_keep_theirs() {
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        let (old, mut changes) = (shared.load(), shared.subscribe());
        shared.replace(Config::build(planned(FetchrProxySpec::default()), Identity::default()).unwrap());
        changes.changed().await.unwrap();
        assert!(old.blocks() && old.digest().is_empty());
        assert!(!shared.load().blocks() && shared.load().source() == PlanSource::File);
    }
}
