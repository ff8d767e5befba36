//! Whether the sidecar is alive, ready, or on its way out.

use std::fmt;

use tokio::sync::watch;

use crate::{
    config::{Shared, Standing},
    drain::{self, Phase},
};

/// The sidecar's state of health. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    shared: Shared,
    drain: drain::Handle,
    listening: watch::Sender<bool>,
}

/// Why the sidecar is not ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unready {
    /// Its listeners are not open yet.
    Starting,
    /// The first configuration has not come yet.
    Waiting,
    /// No configuration came in time, and none may pass without.
    Blocked,
    /// The pod is ending.
    Draining,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "the listeners are not open yet",
            Self::Waiting => "waiting for the first configuration",
            Self::Blocked => "no configuration came in time; requests are answered with 503 (startup.onNoConfig: Block)",
            Self::Draining => "draining",
        })
    }
}

impl Health {
    /// A sidecar whose listeners are not open yet.
    pub fn new(shared: Shared, drain: drain::Handle) -> Self {
        Self { shared, drain, listening: watch::Sender::new(false) }
    }

    /// Notes that all listeners are open.
    pub fn listening(&self) {
        self.listening.send_replace(true);
    }

    /// Whether requests may be sent here.
    pub fn readiness(&self) -> Result<(), Unready> {
        if self.drain.is_draining() {
            return Err(Unready::Draining);
        }
        if !*self.listening.borrow() {
            return Err(Unready::Starting);
        }
        match self.shared.load().standing {
            Standing::Planned | Standing::PassThrough => Ok(()),
            Standing::Waiting => Err(Unready::Waiting),
            Standing::Block => Err(Unready::Blocked),
        }
    }

    /// What a person should know although the sidecar is ready.
    pub fn remark(&self) -> Option<&'static str> {
        let passes = self.shared.load().standing == Standing::PassThrough;
        passes.then_some("no configuration came in time; requests pass without policy (startup.onNoConfig: PassThrough)")
    }

    /// Whether the pod is ending.
    pub fn is_draining(&self) -> bool {
        self.drain.is_draining()
    }

    /// Waits until the pod is ending.
    pub async fn draining(&self) {
        self.drain.reached(Phase::Announced).await;
    }

    /// Waits until the listeners are open.
    pub async fn opened(&self) {
        let mut listening = self.listening.subscribe();
        // The sender lives in `self`.
        let _ = listening.wait_for(|open| *open).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crds::proxy::{FetchrProxySpec, OnNoConfig};

    use super::*;
    use crate::config::Config;

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_listeners_configuration_and_drain() {
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        let drain = drain::Handle::new();
        let health = Health::new(shared.clone(), drain.clone());
        assert_eq!(health.readiness(), Err(Unready::Starting));
        health.listening();
        assert_eq!(health.readiness(), Err(Unready::Waiting));
        shared.give_up(OnNoConfig::Block);
        assert_eq!(health.readiness(), Err(Unready::Blocked));
        shared.replace(Config::given_up(FetchrProxySpec::default(), OnNoConfig::PassThrough));
        assert_eq!(health.readiness(), Ok(()));
        assert!(health.remark().is_some());
        drain.drain_inbound(Duration::ZERO, Duration::ZERO).await;
        assert_eq!(health.readiness(), Err(Unready::Draining));
    }
}
