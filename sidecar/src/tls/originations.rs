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

/// Hosts that are remembered under the same settings. Beyond that those go that nobody is connected to.
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
}

/// Settings as their files say, and the hosts that are spoken to with them.
struct Known {
    offers: Offers,
    read: Read,
    hosts: HashMap<Arc<str>, Origination>,
}

impl Originations {
    pub(crate) fn new(secrets: Secrets, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { secrets, metrics, state: Mutex::default() })
    }

    /// The TLS of a host. Settings that are met for the first time are read here; for those of the configuration [`Self::follow`] has done it.
    pub(crate) fn of(&self, host: &Arc<str>, settings: &UpstreamTls) -> Result<Origination, TlsError> {
        let mut state = self.state();
        if !state.settings.contains_key(settings) {
            let (offers, read) = self.read(settings);
            state.settings.insert(settings.clone(), Known { offers: offers?, read, hosts: HashMap::new() });
        }
        let Some(Known { offers, hosts, .. }) = state.settings.get_mut(settings) else {
            return Err(TlsError::Nowhere); // it was put there above
        };
        if let Some(known) = hosts.get(host) {
            return Ok(known.clone());
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, known| known.is_shared());
        }
        let new = Origination::with(settings.server_name.as_deref().unwrap_or(host), offers.clone(), self.metrics.clone())?;
        if hosts.len() < MAX_HOSTS {
            hosts.insert(Arc::clone(host), new.clone());
        }
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
