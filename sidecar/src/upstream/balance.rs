//! The section `loadBalancing`: one of a name's addresses for each try. Latency and requests under way are a worker's own estimates;
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
    Endpoint, Key, Verdict,
    standing::{Millis, Seen},
};

mod ejection;
mod load;
mod ring;

/// Names that a worker balances at a time; those that are idle are let go beyond that.
const MAX_GROUPS: usize = 512;

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

/// The addresses of one name.
pub(crate) struct Group {
    name: Key,
    port: u16,
    cluster: Arc<Cluster>,
    /// What the resolver said, to see when it says something else.
    resolved: RefCell<Option<Arc<[IpAddr]>>>,
    members: RefCell<Vec<Rc<Member>>>,
    ring: RefCell<Option<Ring>>,
    turn: Cell<usize>,
}

/// One address.
pub(crate) struct Member {
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
    pub(crate) fn group(&self, name: &Key, port: u16, addresses: &Arc<[IpAddr]>, seen: &Seen) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        if groups.len() >= MAX_GROUPS && !groups.contains_key(name) {
            groups.retain(|_, group| Rc::strong_count(group) > 1);
        }
        let group = groups.entry(name.clone()).or_insert_with(|| {
            Rc::new(Group {
                name: name.clone(),
                port,
                cluster: seen.cluster(name),
                resolved: RefCell::default(),
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
    /// Takes over what the resolver says; addresses that stay keep what is known of them.
    fn follow(&self, addresses: &Arc<[IpAddr]>) {
        let mut resolved = self.resolved.borrow_mut();
        if resolved.as_ref().is_some_and(|known| Arc::ptr_eq(known, addresses)) {
            return;
        }
        *resolved = Some(Arc::clone(addresses));
        let mut unique: Vec<IpAddr> = addresses.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let mut members = self.members.borrow_mut();
        // Asked also if the addresses are the same: one may have gone and come back meanwhile, and another worker has seen it.
        let healths = self.cluster.follow(&unique);
        let same = members.len() == unique.len() && members.iter().zip(&unique).all(|(member, ip)| member.ip() == Some(*ip));
        if same {
            members.iter().zip(healths).for_each(|(member, health)| drop(member.health.replace(health)));
            return;
        }
        let known = std::mem::take(&mut *members);
        *members = unique
            .iter()
            .zip(healths)
            .map(|(ip, health)| {
                if let Some(stays) = known.iter().find(|member| member.ip() == Some(*ip)) {
                    stays.health.replace(health);
                    return Rc::clone(stays);
                }
                Rc::new(Member::new(self.name.at(SocketAddr::new(*ip, self.port)), health))
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
                let ring = ring.get_or_insert_with(|| Ring::new(members.iter().filter_map(|member| member.ip())));
                ring.find(hash, |index| fit.contains(&index))?
            }
            (BalancePolicy::PeakEWMA, _) => {
                load::lower_of_two(&fit, |index| members[index].load.cost(now), |below| fastrand::usize(..below))
            }
            (BalancePolicy::RoundRobin | BalancePolicy::RingHash, _) => {
                let turn = self.turn.get();
                self.turn.set(turn.wrapping_add(1));
                fit[turn % fit.len()]
            }
        };
        let member = Rc::clone(&members[chosen]);
        member.load.begin();
        Some(Choice { group: Rc::clone(self), member, began: now, ended: Cell::new(false) })
    }
}

impl Member {
    fn new(key: Key, health: Arc<Health>) -> Self {
        Self { key, load: Load::new(), health: RefCell::new(health) }
    }

    fn ip(&self) -> Option<IpAddr> {
        match self.key.endpoint {
            Endpoint::Address(address) => Some(address.ip()),
            Endpoint::Name(..) => None,
        }
    }
}

impl Choice {
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
    use crate::upstream::{Protocol, standing::Standing};

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

        fn group(&self, addresses: &Arc<[IpAddr]>) -> Rc<Group> {
            let name = Key { endpoint: Endpoint::Name("web".into(), 80), protocol: Protocol::Http1, tls: None };
            self.balancer.group(&name, 80, addresses, &self.seen)
        }
    }

    fn addresses(last: &[u8]) -> Arc<[IpAddr]> {
        last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect()
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
        let came_back = |choice: &Choice| choice.member.ip() == Some(IpAddr::from([10, 0, 0, 1]));
        let failed = [choose(&b), choose(&b)].into_iter().find(came_back).unwrap();
        assert!(failed.end(&b.settings, Verdict::Bad, Instant::now()));
        assert!((0..4).all(|_| choose(&a).key() != failed.key()));
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
