//! The section `loadBalancing`: one of a name's addresses, or of a Service's endpoints, for each try. Latency and requests under way are a worker's own estimates;
//! ejections hold for the pod.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use crds::policy::{
    LoadBalancing, Mode,
    load_balancing::{BalancePolicy, HashSource},
};
use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

pub(crate) use self::ejection::Cluster;
use self::ejection::{Ejecting, Health};
use self::{load::Load, ring::Ring};
use super::{
    Key, Verdict,
    standing::{Millis, Seen},
};

mod ejection;
mod load;
mod ring;

/// Names that a worker balances at a time; those that are idle are let go beyond that.
const MAX_GROUPS: usize = 512;

/// How often two addresses are drawn of all before those that are fit are looked up one by one.
const DRAWS: usize = 4;

/// The section, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Balancing {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    policy: BalancePolicy,
    hash: Option<Hashed>,
    ejecting: Ejecting,
}

#[derive(Clone, Debug)]
enum Hashed {
    Client,
    Field(HeaderName),
}

impl Balancing {
    pub(crate) fn build(label: &Arc<str>, section: &LoadBalancing) -> Result<Self, String> {
        let hash = section.hash.as_ref().map(|key| match (key.source, &key.name) {
            (HashSource::ClientIP, _) => Ok(Hashed::Client),
            (HashSource::Header, Some(name)) => name.parse().map(Hashed::Field).map_err(|_| format!("{name} is no header field")),
            (HashSource::Header, None) => Err("the hash has no header field".to_owned()),
        });
        Ok(Self {
            mode: section.mode,
            label: Arc::clone(label),
            policy: section.policy,
            hash: hash.transpose()?,
            ejecting: Ejecting::new(&section.ejection),
        })
    }

    /// What the requests that go to the same address have in common; none if the policy does not ask, or the request has none.
    pub(crate) fn hash(&self, headers: &HeaderMap, client: IpAddr) -> Option<u64> {
        match self.hash.as_ref()? {
            Hashed::Client => Some(ring::hash(client.to_string().as_bytes())),
            Hashed::Field(name) => headers.get(name).map(|value| ring::hash(value.as_bytes())),
        }
    }
}

/// The names that a worker balances.
#[derive(Default)]
pub(crate) struct Balancer {
    groups: RefCell<HashMap<Key, Rc<Group>>>,
}

/// Where the addresses of a name come from.
#[derive(Clone)]
pub(crate) enum Addresses {
    /// The resolver, and the port that was asked for.
    Resolved(Arc<[IpAddr]>, u16),
    /// The operator: endpoints of a Service, each with its port.
    Told(Arc<[SocketAddr]>),
}

impl Addresses {
    /// Whether nothing was said since.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Resolved(one, port), Self::Resolved(other, same)) => port == same && Arc::ptr_eq(one, other),
            (Self::Told(one), Self::Told(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// In ascending order, each once.
    fn sorted(&self) -> Vec<SocketAddr> {
        let mut sorted: Vec<SocketAddr> = match self {
            Self::Resolved(ips, port) => ips.iter().map(|ip| SocketAddr::new(*ip, *port)).collect(),
            Self::Told(addresses) => addresses.to_vec(),
        };
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    }
}

/// The addresses of one name.
pub(crate) struct Group {
    name: Key,
    cluster: Arc<Cluster>,
    /// What was said last, to see when something else is said.
    said: RefCell<Option<Addresses>>,
    members: RefCell<Vec<Rc<Member>>>,
    ring: RefCell<Option<Ring>>,
    turn: Cell<usize>,
}

/// One address.
pub(crate) struct Member {
    address: SocketAddr,
    key: Key,
    load: Load,
    health: RefCell<Arc<Health>>,
}

/// An address that was chosen for a try. What came of it must be told by [`Choice::end`], or it says only how long it took at least.
pub(crate) struct Choice {
    group: Rc<Group>,
    member: Rc<Member>,
    began: Instant,
    ended: Cell<bool>,
}

impl Balancer {
    /// The group of a name, with the addresses that it has now.
    pub(crate) fn group(&self, name: &Key, addresses: &Addresses, seen: &Seen) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        if groups.len() >= MAX_GROUPS && !groups.contains_key(name) {
            groups.retain(|_, group| Rc::strong_count(group) > 1);
        }
        let group = groups.entry(name.clone()).or_insert_with(|| {
            Rc::new(Group {
                name: name.clone(),
                cluster: seen.cluster(name),
                said: RefCell::default(),
                members: RefCell::default(),
                ring: RefCell::default(),
                turn: Cell::new(fastrand::usize(..1024)), // so that workers don't walk in step
            })
        });
        group.follow(addresses);
        Rc::clone(group)
    }
}

impl Group {
    /// Takes over what is said; addresses that stay keep what is known of them.
    fn follow(&self, addresses: &Addresses) {
        let mut said = self.said.borrow_mut();
        if said.as_ref().is_some_and(|known| known.is(addresses)) {
            return;
        }
        *said = Some(addresses.clone());
        let unique = addresses.sorted();
        let mut members = self.members.borrow_mut();
        // Asked also if the addresses are the same: one may have gone and come back meanwhile, and another worker has seen it.
        let healths = self.cluster.follow(&unique);
        let same =
            members.len() == unique.len() && members.iter().zip(&unique).all(|(member, address)| member.address == *address);
        if same {
            members.iter().zip(healths).for_each(|(member, health)| drop(member.health.replace(health)));
            return;
        }
        let known = std::mem::take(&mut *members);
        *members = unique
            .iter()
            .zip(healths)
            .map(|(address, health)| {
                if let Ok(at) = known.binary_search_by_key(address, |member| member.address) {
                    known[at].health.replace(health);
                    return Rc::clone(&known[at]);
                }
                Rc::new(Member::new(&self.name, *address, health))
            })
            .collect();
        *self.ring.borrow_mut() = None;
    }

    /// Chooses an address. One that was tried already is chosen only if there is no other.
    pub(crate) fn choose(
        self: &Rc<Self>,
        settings: &Balancing,
        hash: Option<u64>,
        tried: Option<&Key>,
        now: Instant,
    ) -> Option<Choice> {
        let members = self.members.borrow();
        let millis = Millis::now();
        let well = |index: &usize| !members[*index].health.borrow().is_ejected(millis);
        let new = |index: &usize| tried != Some(&members[*index].key);
        let all = || 0..members.len();
        let cost = |index: usize| members[index].load.cost(now);
        let drawn = match settings.policy {
            BalancePolicy::PeakEWMA if members.len() > 1 => {
                (0..DRAWS).find_map(|_| load::lower_if_both(members.len(), |index| well(&index) && new(&index), cost))
            }
            _ => None,
        };
        if let Some(index) = drawn {
            return Some(Choice::new(self, &members[index], now));
        }
        let mut fit: SmallVec<[usize; 16]> = all().filter(|index| well(index) && new(index)).collect();
        if fit.is_empty() {
            fit = all().filter(well).collect();
        }
        if fit.is_empty() {
            fit = all().collect(); // better one that fails than none
        }
        let chosen = match (settings.policy, hash) {
            (_, _) if fit.len() < 2 => *fit.first()?,
            (BalancePolicy::RingHash, Some(hash)) => {
                let mut ring = self.ring.borrow_mut();
                let ring = ring.get_or_insert_with(|| Ring::new(members.iter().map(|member| member.address)));
                ring.find(hash, |index| fit.contains(&index))?
            }
            (BalancePolicy::PeakEWMA, _) => load::lower_of_two(&fit, cost, |below| fastrand::usize(..below)),
            (BalancePolicy::RoundRobin | BalancePolicy::RingHash, _) => {
                let turn = self.turn.get();
                self.turn.set(turn.wrapping_add(1));
                fit[turn % fit.len()]
            }
        };
        Some(Choice::new(self, &members[chosen], now))
    }
}

impl Member {
    fn new(name: &Key, address: SocketAddr, health: Arc<Health>) -> Self {
        Self { address, key: name.at(address), load: Load::new(), health: RefCell::new(health) }
    }
}

impl Choice {
    fn new(group: &Rc<Group>, member: &Rc<Member>, began: Instant) -> Self {
        member.load.begin();
        Self { group: Rc::clone(group), member: Rc::clone(member), began, ended: Cell::new(false) }
    }

    /// Where the try goes.
    pub(crate) fn key(&self) -> &Key {
        &self.member.key
    }

    /// What came of the try. Tells whether the address is left out from now on.
    pub(crate) fn end(&self, settings: &Balancing, verdict: Verdict, now: Instant) -> bool {
        self.ended.set(true);
        let health = self.member.health.borrow();
        if verdict != Verdict::Neutral {
            self.member.load.observe(now.duration_since(self.began), now);
        }
        match verdict {
            Verdict::Good => {
                health.succeeded();
                false
            }
            Verdict::Bad => self.group.cluster.failed(&health, &settings.ejecting, Millis::now()),
            Verdict::Neutral => false,
        }
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.member.load.end();
        if !self.ended.get() {
            let now = Instant::now();
            self.member.load.observe_at_least(now.saturating_duration_since(self.began), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::{Endpoint, Protocol, standing::Standing};

    struct Worker {
        balancer: Balancer,
        seen: Seen,
        settings: Balancing,
    }

    impl Worker {
        fn of(standing: &Arc<Standing>, section: &str) -> Self {
            let settings = Balancing::build(&"shop/web/rule".into(), &serde_json::from_str(section).unwrap()).unwrap();
            Self { balancer: Balancer::default(), seen: Seen::new(Arc::clone(standing)), settings }
        }

        fn group(&self, addresses: &Addresses) -> Rc<Group> {
            let name = Key { endpoint: Endpoint::Name("web".into(), 80), protocol: Protocol::Http1, tls: None };
            self.balancer.group(&name, addresses, &self.seen)
        }
    }

    fn addresses(last: &[u8]) -> Addresses {
        Addresses::Resolved(last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect(), 80)
    }

    #[test]
    fn address_that_came_back_stands_the_same_for_all_workers() {
        let standing = Arc::default();
        let [a, b] = [(); 2].map(|()| {
            Worker::of(&standing, r#"{"policy": "RoundRobin", "ejection": {"consecutiveFailures": 1, "maxEjectedPercent": 100}}"#)
        });
        let before = addresses(&[1, 2]);
        a.group(&before);
        b.group(&before);
        a.group(&addresses(&[2]));
        let after = addresses(&[1, 2]);
        a.group(&after);
        b.group(&after);
        let choose = |worker: &Worker| worker.group(&after).choose(&worker.settings, None, None, Instant::now()).unwrap();
        let came_back = |choice: &Choice| choice.member.address == SocketAddr::from(([10, 0, 0, 1], 80));
        let failed = [choose(&b), choose(&b)].into_iter().find(came_back).unwrap();
        assert!(failed.end(&b.settings, Verdict::Bad, Instant::now()));
        assert!((0..4).all(|_| choose(&a).key() != failed.key()));
    }

    #[test]
    fn endpoints_keep_what_is_known_of_them_and_have_ports_of_their_own() {
        let worker = Worker::of(&Arc::default(), r#"{"ejection": {"consecutiveFailures": 1}}"#);
        let told = |ports: &[u16]| Addresses::Told(ports.iter().map(|port| SocketAddr::from(([10, 0, 0, 1], *port))).collect());
        let failed = worker.group(&told(&[81, 82])).choose(&worker.settings, None, None, Instant::now()).unwrap();
        assert!(failed.end(&worker.settings, Verdict::Bad, Instant::now()));
        let group = worker.group(&told(&[80, 81, 82, 83]));
        let chosen = || group.choose(&worker.settings, None, None, Instant::now()).unwrap().member.address.port();
        let seen: std::collections::BTreeSet<u16> = (0..200).map(|_| chosen()).collect();
        let left: Vec<u16> = [80, 81, 82, 83].into_iter().filter(|port| *port != failed.member.address.port()).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), left);
    }

    #[test]
    fn try_that_is_given_up_tells_that_its_address_is_slow() {
        let worker = Worker::of(&Arc::default(), "{}");
        let (group, now) = (worker.group(&addresses(&[1, 2])), Instant::now());
        for _ in 0..2 {
            let choice = group.choose(&worker.settings, None, None, now).unwrap();
            choice.end(&worker.settings, Verdict::Good, now + Duration::from_millis(10));
        }
        let began = now.checked_sub(Duration::from_secs(5)).unwrap();
        let hangs = group.choose(&worker.settings, None, None, began).unwrap();
        let slow = hangs.key().clone();
        drop(hangs);
        for _ in 0..20 {
            let choice = group.choose(&worker.settings, None, None, now).unwrap();
            assert_ne!(*choice.key(), slow);
            choice.end(&worker.settings, Verdict::Good, now);
        }
    }
}
