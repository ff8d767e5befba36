//! Which Services a plan asks for.

use std::collections::BTreeSet;

use crds::{
    check::parse_upstream,
    plan::{Attachment, ObjectRef, Plan},
    policy::{Direction, Mode, PolicyRule},
    proxy::InterceptionMode,
};
use wire::service::{Named, of_pattern};

/// The Services that a plan asks for, by name or by what they are.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Wanted {
    /// These, with their endpoints.
    pub services: BTreeSet<ObjectRef>,
    /// All of these namespaces, with their endpoints.
    pub namespaces: BTreeSet<String>,
    /// All of the cluster, with their endpoints.
    pub all: bool,
    /// Those with one of these ports whose protocol makes a difference, without endpoints.
    pub ports: BTreeSet<u16>,
}

impl Wanted {
    /// What a plan for pods of a namespace asks for.
    pub fn of(plan: &Plan, namespace: &str, cluster_domain: &str) -> Self {
        let mut wanted = Self { ports: intercepted(plan), ..Self::default() };
        let mut add = |pattern: &str| wanted.add(of_pattern(pattern, namespace, cluster_domain));
        let mut spreads = false;
        for policy in &plan.policies {
            let host = match &policy.attachment {
                Attachment::ExternalHost { host } => Some(host.as_str()),
                _ => None,
            };
            for rule in policy.rules.iter().filter(|rule| is_spread(rule)) {
                spreads = true;
                if policy.direction == Direction::Outbound {
                    hosts(rule, host).into_iter().for_each(&mut add);
                }
            }
        }
        if spreads {
            upstreams(plan).iter().for_each(|host| add(host));
        }
        // A rule for any host is for those that a pod calls by their first name; the cluster's are too many.
        if asks_for_any_host(plan) {
            wanted.namespaces.insert(namespace.to_owned());
        }
        wanted
    }

    fn add(&mut self, named: Option<Named<'_>>) {
        match named {
            Some(Named::One { namespace, name }) => {
                self.services.insert(ObjectRef::new(namespace, name));
            }
            Some(Named::Namespace(namespace)) => {
                self.namespaces.insert(namespace.to_owned());
            }
            Some(Named::All) => self.all = true,
            None => {}
        }
    }

    /// Whether it asks for nothing, whatever the cluster has.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the rule spreads requests.
fn is_spread(rule: &PolicyRule) -> bool {
    rule.load_balancing.as_ref().is_some_and(|section| section.mode != Mode::Disabled)
}

/// The hosts that the requests of a rule are for, as far as it says so.
fn hosts<'a>(rule: &'a PolicyRule, attached_to: Option<&'a str>) -> Vec<&'a str> {
    match attached_to {
        Some(host) => vec![host],
        None => rule.matches.iter().flat_map(|one| one.hosts.iter().map(String::as_str)).collect(),
    }
}

fn asks_for_any_host(plan: &Plan) -> bool {
    let outward = plan.policies.iter().filter(|policy| {
        policy.direction == Direction::Outbound && !matches!(policy.attachment, Attachment::ExternalHost { .. })
    });
    let any_host = |rule: &PolicyRule| rule.matches.is_empty() || rule.matches.iter().any(|one| one.hosts.is_empty());
    outward.flat_map(|policy| policy.rules.iter()).any(|rule| is_spread(rule) && any_host(rule))
}

/// The hosts of upstreams that requests are sent to by name.
fn upstreams(plan: &Plan) -> Vec<String> {
    let listeners = plan.settings.interception.listeners.iter().filter_map(|listener| listener.upstream.as_deref());
    let rules = plan.policies.iter().flat_map(|policy| policy.rules.iter());
    let standbys = rules.filter_map(|rule| rule.failover.as_ref()?.upstream.as_deref());
    let host = |upstream| parse_upstream(upstream).ok().map(|address| address.host.to_ascii_lowercase());
    listeners.chain(standbys).filter_map(host).collect()
}

/// The ports at which the application's connections come to the sidecar.
fn intercepted(plan: &Plan) -> BTreeSet<u16> {
    let interception = &plan.settings.interception;
    let ports = interception.outbound.ports.iter().filter(|_| interception.mode == InterceptionMode::Init);
    ports.filter_map(|port| u16::try_from(*port).ok()).collect()
}
