//! TLS with upstreams that have no listener of their own: the second upstreams of policies, and the hosts that clients of a forward proxy
//! ask for.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crds::proxy::UpstreamTls;

use super::{
    Metrics, Origination, Read, Secrets,
    client::Offers,
    load::{Reader, TlsError},
};
use crate::upstream::Endpoint;

/// Hosts, each with its port, that are remembered under the same settings. Beyond that those go that nobody is connected to, or else the one that
/// was not asked for for the longest time.
const MAX_HOSTS: usize = 512;

/// What is known of them, for all workers.
pub(crate) struct Originations {
    secrets: Secrets,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    settings: HashMap<UpstreamTls, Known>,
    /// Files that were read, also in vain.
    files: BTreeSet<PathBuf>,
    /// Look-ups so far.
    asked: u64,
}

/// Settings as their files say, and the hosts that are spoken to with them.
struct Known {
    offers: Offers,
    read: Read,
    /// By the port too: behind each of them is another server, which may speak another protocol.
    hosts: HashMap<Endpoint, Host>,
}

struct Host {
    origination: Origination,
    /// When it was asked for last, in look-ups.
    asked: u64,
}

impl Originations {
    pub(crate) fn new(secrets: Secrets, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { secrets, metrics, state: Mutex::default() })
    }

    /// The TLS of a host. Settings that are met for the first time are read here; for those of the configuration [`Self::follow`] has done it.
    pub(crate) fn of(&self, host: &Endpoint, settings: &UpstreamTls) -> Result<Origination, TlsError> {
        let state = &mut *self.state();
        state.asked += 1;
        let asked = state.asked;
        if !state.settings.contains_key(settings) {
            let (offers, read) = self.read(settings);
            state.settings.insert(settings.clone(), Known { offers: offers?, read, hosts: HashMap::new() });
        }
        let Some(Known { offers, hosts, .. }) = state.settings.get_mut(settings) else {
            return Err(TlsError::Nowhere); // it was put there above
        };
        if let Some(known) = hosts.get_mut(host) {
            known.asked = asked;
            return Ok(known.origination.clone());
        }
        let name = settings.server_name.as_deref().map_or_else(|| host.host(), Arc::from);
        let new = Origination::with(&name, offers.clone(), self.metrics.clone())?;
        make_room(hosts);
        hosts.insert(host.clone(), Host { origination: new.clone(), asked });
        Ok(new)
    }

    /// Reads the settings that a configuration names, and forgets others. Where files have changed, new connections follow; what can't be used
    /// leaves what was before in force.
    pub(crate) fn follow<'a, T>(&self, wanted: impl Iterator<Item = (T, &'a UpstreamTls)>) -> Vec<(T, TlsError)> {
        let (mut errors, mut wants) = (Vec::new(), HashMap::new());
        for (name, settings) in wanted {
            wants.entry(settings).or_insert(name);
        }
        let read: Vec<_> = wants.into_iter().map(|(settings, name)| (settings, name, self.read(settings))).collect();
        let state = &mut *self.state();
        state.files = read.iter().flat_map(|(_, _, (_, read))| read.paths.iter().cloned()).collect();
        let mut before = std::mem::take(&mut state.settings);
        // The system's CAs, which change with the image only.
        state.settings.extend(before.remove_entry(&UpstreamTls::default()));
        for (settings, name, (offers, read)) in read {
            let before = before.remove(settings).or_else(|| state.settings.remove(settings));
            let changed = before.as_ref().is_some_and(|before| before.read != read);
            if changed {
                self.metrics.reloaded(offers.is_ok());
            }
            let known = match (offers, before) {
                (Ok(_), Some(before)) if !changed => Some(before),
                (Ok(offers), _) => Some(Known { offers, read, hosts: HashMap::new() }),
                (Err(error), before) => {
                    errors.push((name, error));
                    before
                }
            };
            state.settings.extend(known.map(|known| (settings.clone(), known)));
        }
        errors
    }

    /// Files that settings were read from.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        self.state().files.clone()
    }

    fn read(&self, settings: &UpstreamTls) -> (Result<Offers, TlsError>, Read) {
        let mut reader = Reader::new(&self.secrets);
        let offers = Offers::read(settings, &mut reader);
        (offers, reader.finish())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets hosts if there are as many as may be. Connections to one that is forgotten serve what is under way on them.
fn make_room(hosts: &mut HashMap<Endpoint, Host>) {
    if hosts.len() < MAX_HOSTS {
        return;
    }
    hosts.retain(|_, known| known.origination.is_shared());
    if hosts.len() < MAX_HOSTS {
        return;
    }
    let oldest = hosts.iter().min_by_key(|(_, known)| known.asked).map(|(host, _)| host.clone());
    oldest.and_then(|host| hosts.remove(&host));
}

#[cfg(test)]
mod tests {
    use crds::proxy::CaBundle;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    #[test]
    fn beyond_the_limit_the_host_goes_that_was_not_asked_for_for_longest() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.crt");
        let CertifiedKey { cert, .. } = generate_simple_self_signed(vec!["ca.example".to_owned()]).unwrap();
        std::fs::write(&ca, cert.pem()).unwrap();
        let bundle = CaBundle { secret_ref: None, file: Some(ca.display().to_string()) };
        let settings = UpstreamTls { ca: Some(bundle), ..UpstreamTls::default() };
        let known = Originations::new(Secrets(None), Metrics::default());
        let of = |n: usize| known.of(&Endpoint::of(&format!("host-{n}.example"), 443), &settings).unwrap();
        let connected: Vec<_> = (0..MAX_HOSTS).map(of).collect();
        assert_eq!(of(0), connected[0]);
        let next = of(MAX_HOSTS);
        assert_eq!(of(MAX_HOSTS), next, "a new one is remembered");
        assert_eq!(of(0), connected[0]);
        assert_eq!(of(MAX_HOSTS - 1), connected[MAX_HOSTS - 1]);
        assert_ne!(of(1), connected[1]);
    }
}
