//! The sending half of a stream: Identity, then Plan, then Services, and each again when it changes, until the token ends that opened it.

use std::{sync::Arc, time::Duration};

use crds::plan::Identity;
use futures::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tonic::Status;
use wire::v1::{self, down::Message};

use crate::{
    certs::Certs,
    deliver::{Document, Hub, Inbox, Session},
    services::Set,
};

/// How often a plan that was not answered is sent again, if its position is a newer one by then: the sidecar may have refused it as
/// older than what another replica sent.
const AGAIN: Duration = Duration::from_secs(5);

/// Takes the session out of the hub when the sending half is dropped, which is how a lost connection shows.
pub(super) struct Guard {
    hub: Hub,
    session: Arc<Session>,
}

impl Guard {
    pub(super) fn new(hub: Hub, session: Arc<Session>) -> Self {
        Self { hub, session }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.hub.leave(&self.session);
    }
}

pub(super) struct Outgoing {
    guard: Guard,
    inbox: Inbox,
    certs: Certs,
    /// The trust that was sent last.
    trust: Option<v1::Trust>,
    /// The plan that was sent last.
    sent: Option<Arc<Document>>,
    /// The Services that were sent last.
    served: Option<Arc<Set>>,
    identified: bool,
    again: Interval,
    /// When the token ends that opened the stream.
    until: Instant,
}

impl Outgoing {
    pub(super) fn new(guard: Guard, mut inbox: Inbox, mut certs: Certs, until: Instant) -> Self {
        inbox.identity.mark_changed();
        certs.mark_changed();
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { guard, inbox, certs, trust: None, sent: None, served: None, identified: false, again, until }
    }

    /// Each message is made when the transport asks for it, so a slow sidecar skips what it has missed.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::Down, Status>> {
        stream::unfold(Some(self), |outgoing| async {
            let mut outgoing = outgoing?;
            match outgoing.next().await? {
                Ok(message) => Some((Ok(v1::Down { message: Some(message) }), Some(outgoing))),
                Err(end) => Some((Err(end), None)),
            }
        })
    }

    async fn next(&mut self) -> Option<Result<Message, Status>> {
        let session = self.guard.session.clone();
        loop {
            let message = tokio::select! {
                biased;
                () = session.ended().cancelled() => return None,
                () = sleep_until(self.until) => {
                    self.guard.hub.expired();
                    return Some(Err(Status::unauthenticated("the token that opened this stream has ended; open another with the newer one")));
                }
                Ok(()) = self.certs.changed() => self.trust(),
                Ok(()) = self.inbox.identity.changed() => self.identity(),
                // A sidecar that does not know its place could not tell which policies of a plan are its own.
                Ok(()) = self.inbox.plan.changed(), if self.identified => self.plan(),
                () = changed(self.inbox.services.as_mut()), if self.sent.is_some() => self.services(),
                Some(command) = self.inbox.commands.recv() => Some(Message::Command(command)),
                _ = self.again.tick() => self.plan_again(),
            };
            if let Some(message) = message {
                return Some(Ok(message));
            }
        }
    }

    /// The certificates change more often than what is to be trusted.
    fn trust(&mut self) -> Option<Message> {
        let trust = self.certs.borrow_and_update().as_ref()?.trust.clone();
        let is_news = self.trust.as_ref() != Some(&trust);
        self.trust = Some(trust.clone());
        is_news.then_some(Message::Trust(trust))
    }

    fn identity(&mut self) -> Option<Message> {
        // A pod knows its namespace.
        let Identity { namespace: _, workload_kind, workload_name, services, live_pods } =
            self.inbox.identity.borrow_and_update().clone()?;
        self.identified = true;
        Some(Message::Identity(v1::Identity { workload_kind, workload_name, services, live_pods }))
    }

    fn plan(&mut self) -> Option<Message> {
        let document = self.inbox.plan.borrow_and_update().clone()?;
        let message = Message::Plan(document.message());
        self.sent = Some(document);
        Some(message)
    }

    /// What is new of the Services since they were sent last.
    fn services(&mut self) -> Option<Message> {
        let set = self.inbox.services.as_mut()?.borrow_and_update().clone()?;
        let message = set.since(self.served.as_deref());
        self.served = Some(set);
        self.guard.hub.told_services();
        Some(Message::Services(message))
    }

    fn plan_again(&mut self) -> Option<Message> {
        let sent = self.sent.as_ref()?;
        let moved = self.inbox.plan.borrow().as_ref().is_some_and(|newest| newest.position != sent.position);
        if !moved || self.guard.session.has_answered(&sent.digest) {
            return None;
        }
        self.plan()
    }
}

/// Waits for a change; for ever, if there is nothing that could change.
async fn changed<T>(receiver: Option<&mut watch::Receiver<T>>) {
    let is_open = match receiver {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => false,
    };
    if !is_open {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use crds::plan::{ObjectRef, PlanKey};
    use futures::StreamExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        deliver::{Hello, Metrics},
        https::testing::installer,
        index::Index,
    };

    #[tokio::test(start_paused = true)]
    async fn stream_ends_with_the_token_that_opened_it() {
        let hub = Hub::new(Metrics::default(), "cluster.local");
        let hello = Hello {
            pod: ObjectRef::new("shop", "web-1"),
            uid: "u1".to_owned(),
            key: PlanKey { pod_namespace: "shop".to_owned(), proxy: ObjectRef::new("shop", "web") },
            features: Default::default(),
            version: "0.1.0".to_owned(),
            digest: String::new(),
            takes_services: true,
        };
        let (session, inbox) = hub.join(hello, &Index::default(), &CancellationToken::new());
        let until = Instant::now() + Duration::from_secs(3600);
        let guard = Guard::new(hub.clone(), session.clone());
        let mut messages = Box::pin(Outgoing::new(guard, inbox, installer().certs(), until).into_stream());
        let end = loop {
            match messages.next().await.expect("it says why it ends") {
                Ok(_) => assert!(Instant::now() < until),
                Err(end) => break end,
            }
        };
        assert_eq!(end.code(), tonic::Code::Unauthenticated);
        assert!(Instant::now() >= until && Instant::now() < until + Duration::from_secs(1));
        assert!(messages.next().await.is_none());
        assert!(session.ended().is_cancelled() && hub.reports().is_empty(), "nobody counts it any more");
    }
}
