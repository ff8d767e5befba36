//! Makes the sets of all plans, and keeps what stayed the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use crds::plan::ObjectRef;
use wire::v1;

use super::{
    MAX_ENDPOINTS, MAX_SERVICES, Set, Wanted,
    one::{self, count},
};
use crate::index::{Index, Service, Slice};

/// What sidecars were told of Services last: with their endpoints, or only what they speak.
type Told = HashMap<(ObjectRef, bool), Arc<v1::Service>>;

/// The sets that are in use.
#[derive(Debug, Default)]
pub struct Catalog {
    told: Told,
    /// Services of all sets together.
    pub services: usize,
    /// Endpoints of all sets together.
    pub endpoints: usize,
}

impl Catalog {
    /// The sets that are wanted, as the index has them now. What nobody wants any more is forgotten.
    pub fn sets<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a Arc<Wanted>>,
        index: &Index,
        cluster_domain: &Arc<str>,
    ) -> HashMap<Arc<Wanted>, Arc<Set>> {
        let mut sets = HashMap::new();
        let mut making = Making { index, slices: None, before: std::mem::take(&mut self.told), told: HashMap::new() };
        for wanted in wanted {
            if let Entry::Vacant(entry) = sets.entry(Arc::clone(wanted)) {
                entry.insert(Arc::new(making.set(wanted, cluster_domain)));
            }
        }
        self.told = making.told;
        self.count(sets.values());
        sets
    }

    fn count<'a>(&mut self, sets: impl Iterator<Item = &'a Arc<Set>>) {
        let services = sets.flat_map(|set| set.services.iter());
        let distinct: HashMap<_, _> = services.map(|(_, service)| (Arc::as_ptr(service), count(service))).collect();
        (self.services, self.endpoints) = (distinct.len(), distinct.values().sum());
    }
}

/// One run over the index.
struct Making<'a> {
    index: &'a Index,
    /// The slices of each Service; gathered when the first is asked for.
    slices: Option<HashMap<(&'a str, &'a str), Vec<&'a Slice>>>,
    before: Told,
    told: Told,
}

impl<'a> Making<'a> {
    fn set(&mut self, wanted: &Wanted, cluster_domain: &Arc<str>) -> Set {
        let mut set =
            Set { version: self.index.slices_seen().to_owned(), cluster_domain: Arc::clone(cluster_domain), ..Set::default() };
        // One may be left out with its endpoints, and come in with only what it speaks.
        let (mut chosen, mut left_out) = (BTreeMap::new(), BTreeSet::new());
        for (key, service, is_spread) in candidates(self.index, wanted) {
            if chosen.contains_key(key) {
                continue;
            }
            if chosen.len() >= MAX_SERVICES {
                left_out.insert(key);
                continue;
            }
            let told = self.tell(key, service, is_spread);
            let endpoints = count(&told);
            if set.endpoints + endpoints > MAX_ENDPOINTS {
                left_out.insert(key);
                continue;
            }
            set.endpoints += endpoints;
            left_out.remove(key);
            chosen.insert(key.clone(), told);
        }
        set.left_out = left_out.len();
        set.services = chosen.into_iter().collect();
        set
    }

    fn tell(&mut self, key: &ObjectRef, service: &Service, is_spread: bool) -> Arc<v1::Service> {
        let id = (key.clone(), is_spread);
        if let Some(told) = self.told.get(&id) {
            return Arc::clone(told);
        }
        let new = if is_spread {
            let slices = self.slices.get_or_insert_with(|| by_service(self.index));
            let of_service = slices.get(&(key.namespace.as_str(), key.name.as_str())).map_or(&[][..], Vec::as_slice);
            one::spread(key, service, of_service)
        } else {
            one::spoken(key, service)
        };
        let told = self.before.remove(&id).filter(|before| **before == new).unwrap_or_else(|| Arc::new(new));
        self.told.insert(id, Arc::clone(&told));
        told
    }
}

fn by_service(index: &Index) -> HashMap<(&str, &str), Vec<&Slice>> {
    let mut slices: HashMap<_, Vec<_>> = HashMap::new();
    for (key, slice) in index.slices.iter() {
        slices.entry((key.namespace.as_str(), slice.service.as_str())).or_default().push(slice);
    }
    slices
}

/// The Services that are wanted, those first that were named, and whether with their endpoints. One may come twice.
fn candidates<'a>(index: &'a Index, wanted: &'a Wanted) -> impl Iterator<Item = (&'a ObjectRef, &'a Service, bool)> {
    let services = &index.services;
    let named = wanted.services.iter().filter_map(move |key| Some((key, services.get(key)?)));
    let of_namespaces = wanted.namespaces.iter().flat_map(move |namespace| services.in_namespace(namespace));
    let of_all = services.iter().take(if wanted.all { usize::MAX } else { 0 });
    let spread = named.chain(of_namespaces).chain(of_all).filter(|(_, service)| service.is_spreadable());
    let speaking = services.iter().take(if wanted.ports.is_empty() { 0 } else { usize::MAX });
    let speaking = speaking.filter(move |(_, service)| !service.cluster_ips.is_empty() && matters(service, wanted));
    spread.map(|(key, service)| (key, service, true)).chain(speaking.map(|(key, service)| (key, service, false)))
}

/// Whether it makes a difference to know what a Service speaks on a port that is intercepted.
fn matters(service: &Service, wanted: &Wanted) -> bool {
    use wire::speaker::Spoken::{H2c, ServerFirst};
    service.ports.iter().any(|port| matches!(port.spoken, Some(H2c | ServerFirst)) && wanted.ports.contains(&port.port))
}
