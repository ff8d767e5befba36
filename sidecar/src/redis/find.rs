//! Which server is the primary of which slot, as far as is known, and who doubts it.

use std::{collections::BTreeSet, sync::Arc};

use redis::RedisResult;
use tokio::sync::{Notify, watch};

use super::{
    failed,
    map::{Map, Slot},
    metrics::Metrics,
    settings::{Address, Mode, Settings},
};

/// What is known of a Redis, for all that use it. One task looks where there is doubt.
pub(super) struct Finder {
    settings: Settings,
    known: watch::Sender<Known>,
    /// Sentinels say that there is another primary: look at once.
    pub(super) hurry: Notify,
    pub(super) metrics: Metrics,
}

/// What the last look found, and what was doubted since.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) map: Arc<Map>,
    doubts: Doubts,
    /// Those that the look under way is about.
    looked_at: Doubts,
    /// Looks that have ended, and why the last one failed.
    looks: u64,
    why: Option<Arc<str>>,
}

/// Servers that did not answer, or not as primaries do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Doubts {
    /// Any may have been replaced.
    all: bool,
    of: BTreeSet<Address>,
}

impl Doubts {
    fn is_of(&self, address: Option<&Address>) -> bool {
        self.all || address.is_none_or(|address| self.of.contains(address))
    }

    fn is_none(&self) -> bool {
        !self.all && self.of.is_empty()
    }

    fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.of.extend(other.of);
    }
}

impl Finder {
    pub(super) fn new(settings: Settings, metrics: Metrics) -> Self {
        let known = match &settings.mode {
            Mode::Single(address) => Known { map: Arc::new(Map::one(address.clone())), ..Known::default() },
            Mode::Sentinel { .. } | Mode::Cluster { .. } => {
                Known { doubts: Doubts { all: true, ..Doubts::default() }, ..Known::default() }
            }
        };
        Self { settings, known: watch::Sender::new(known), hurry: Notify::new(), metrics }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What is known now, and from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// As far as is known.
    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.known.borrow().map)
    }

    /// Whether, as far as is known, this is the primary of a slot.
    pub(super) fn is_primary(&self, slot: Slot, address: &Address) -> bool {
        self.known.borrow().map.at(slot) == Some(address)
    }

    /// The primary of a slot. If it is doubted, waits for the next look; who asks bounds how long.
    ///
    /// # Errors
    /// Why it wasn't found.
    pub(super) async fn primary(&self, slot: Slot) -> RedisResult<Address> {
        let mut known = self.known.subscribe();
        let before = known.borrow().looks;
        loop {
            {
                let known = known.borrow_and_update();
                let address = known.map.at(slot);
                let is_doubted = known.doubts.is_of(address) || known.looked_at.is_of(address);
                match (address, &known.why) {
                    (Some(address), _) if !is_doubted => return Ok(address.clone()),
                    (_, Some(why)) if known.looks > before => return Err(failed(why.to_string())),
                    (None, None) if known.looks > before => {
                        return Err(failed("no node of the cluster has this slot".to_owned()));
                    }
                    _ => {}
                }
                if address.is_none() {
                    drop(known);
                    self.doubt_slots();
                }
            }
            // The sender lives as long as this.
            let _ = known.changed().await;
        }
    }

    /// A server did not answer, or not as a primary does.
    pub(super) fn doubt(&self, address: &Address) {
        self.known.send_if_modified(|known| {
            let matters = !matches!(self.settings.mode, Mode::Single(_)) && known.map.primaries().contains(address);
            matters && known.doubts.of.insert(address.clone())
        });
    }

    /// Any server may have been replaced.
    pub(super) fn doubt_all(&self) {
        self.doubt_slots();
        self.hurry.notify_one();
    }

    fn doubt_slots(&self) {
        self.known.send_if_modified(|known| !std::mem::replace(&mut known.doubts.all, true));
    }

    /// Doubts a server unless what is tried with it ends well: also if it is given up, for it takes too long.
    pub(super) fn trying(self: &Arc<Self>, address: &Address) -> Trying {
        Trying { finder: Arc::clone(self), address: address.clone(), went_well: false }
    }

    /// Waits for a doubt. A look at all that is doubted begins now.
    pub(super) async fn begin_look(&self) {
        let mut known = self.known.subscribe();
        // The sender lives as long as this.
        let _ = known.wait_for(|known| !known.doubts.is_none()).await;
        self.known.send_modify(|known| known.looked_at = std::mem::take(&mut known.doubts));
    }

    /// What it found. What was doubted meanwhile still is.
    pub(super) fn end_look(&self, found: Result<Map, String>) {
        let mut result = "failed";
        self.known.send_modify(|known| {
            known.looks += 1;
            let looked_at = std::mem::take(&mut known.looked_at);
            match found {
                Ok(map) => {
                    known.why = None;
                    result = if *known.map == map { "same" } else { "moved" };
                    if result == "moved" {
                        known.map = Arc::new(map);
                        known.doubts.of.retain(|address| known.map.primaries().contains(address));
                    }
                }
                Err(why) => {
                    known.why = Some(why.into());
                    known.doubts.merge(looked_at);
                }
            }
        });
        self.metrics.looked(result);
    }
}

/// Something that is tried with a server.
pub(super) struct Trying {
    finder: Arc<Finder>,
    address: Address,
    went_well: bool,
}

impl Trying {
    /// It answers as the one to ask does.
    pub(super) fn went_well(mut self) {
        self.went_well = true;
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if !self.went_well {
            self.finder.doubt(&self.address);
        }
    }
}
