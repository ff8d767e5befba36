//! What the streams tell of Services, and which of it is in force: of the replica that has seen most.

use std::{collections::HashMap, sync::Arc, time::Instant};

use crds::plan::Position;
use wire::v1;

use crate::{
    services::{BadServices, Services},
    source::order::{Order, StreamId, Verdict},
};

/// The kind whose versions tell which replica has seen more.
const KIND: &str = "endpointslices";

/// What the live streams tell. Order and patience are those of plans: a replica with a stalled watch brings back no pod that has gone, and
/// if all offer only what is older, for the cluster itself went back, the best of them is believed.
pub(super) struct Offers {
    namespace: String,
    /// What each stream has told; nothing of one that told too much, for what follows builds on that.
    told: HashMap<StreamId, Option<Arc<Services>>>,
    order: Order<Arc<Services>>,
    offers: u64,
}

/// What is to be put in force, and whose it is.
pub(super) type Taken = (StreamId, Arc<Services>);

impl Offers {
    /// For a pod of a namespace.
    pub(super) fn new(namespace: String) -> Self {
        Self { namespace, told: HashMap::new(), order: Order::default(), offers: 0 }
    }

    /// A stream tells what is new. Nothing comes of it if another stream has told of later times.
    pub(super) fn offer(
        &mut self,
        stream: StreamId,
        message: v1::Services,
        in_force: &Services,
        now: Instant,
    ) -> Result<Option<Taken>, BadServices> {
        let before = self.told.insert(stream, None);
        let before = if message.whole { None } else { Some(before.flatten().ok_or(BadServices::Unfounded)?) };
        let position = position(&message.version);
        let services = Arc::new(Services::after(before.as_deref(), message, &self.namespace, in_force)?);
        self.told.insert(stream, Some(Arc::clone(&services)));
        self.offers += 1;
        let name = self.offers.to_string();
        if self.order.offer(stream, name.clone(), position.clone(), Arc::clone(&services), now) != Verdict::Take {
            return Ok(None);
        }
        self.order.took(name, position, now);
        Ok(Some((stream, services)))
    }

    /// A stream has ended. What it told stays in force until another one tells of later times.
    pub(super) fn closed(&mut self, stream: StreamId, now: Instant) {
        self.told.remove(&stream);
        self.order.closed(stream, now);
    }

    /// When [`restored`](Self::restored) has to be asked next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.order.deadline()
    }

    /// What is to be put in force, since all streams have told only of earlier times for long enough.
    pub(super) fn restored(&mut self, now: Instant) -> Option<Taken> {
        let (stream, services) = self.order.restored(now).map(|(stream, services)| (stream, Arc::clone(services)))?;
        self.offers += 1;
        self.order.took(self.offers.to_string(), position(services.version()), now);
        Some((stream, services))
    }
}

fn position(version: &str) -> Position {
    [(KIND, version)].into_iter().collect()
}
