//! What ends this process, and what it goes on with: a supervisor has orders and a past, without one there are signals.

use std::{io, time::Duration};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::Shared,
    drain::{self, Phase},
    sockets::Sockets,
    source::state::StateDir,
    supervisor::{self, Link, Teller, Wish},
};

/// Where orders come from.
pub(super) enum Orders {
    /// From the system.
    Signals { terminate: Signal, interrupt: Signal },
    /// From the supervisor.
    Supervisor { orders: supervisor::Orders, teller: Teller, sockets: Sockets },
}

impl Orders {
    pub(super) fn listen(link: Option<Link>) -> io::Result<(Sockets, Self)> {
        let Some(link) = link else {
            let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            return Ok((Sockets::default(), Self::Signals { terminate, interrupt }));
        };
        let (sockets, orders, teller) = link.split()?;
        Ok((sockets.clone(), Self::Supervisor { orders, teller, sockets }))
    }

    /// This process serves; from now on the supervisor hears how its drain goes on.
    pub(super) fn ready(&self, drain: &drain::Handle) {
        if let Self::Supervisor { teller, .. } = self {
            teller.ready();
            tokio::spawn(tell_drain(drain.clone(), teller.clone()));
        }
    }

    /// This process will have ended within so long.
    pub(super) fn leaving(&self, within: Duration) {
        if let Self::Supervisor { teller, .. } = self {
            teller.leaving(within);
        }
    }

    /// Waits for the next order.
    pub(super) async fn next(&mut self) -> Wish {
        match self {
            Self::Signals { terminate, interrupt } => tokio::select! {
                _ = terminate.recv() => Wish::Terminate,
                _ = interrupt.recv() => Wish::Interrupt,
            },
            Self::Supervisor { orders, sockets, .. } => {
                let wish = orders.next().await;
                match wish {
                    Wish::Lead(_) => sockets.lead(),
                    Wish::Retire => sockets.retire(),
                    Wish::Terminate | Wish::Interrupt | Wish::AtOnce => {}
                }
                wish
            }
        }
    }

    /// Waits for the order to end at once, after another one: a second signal, of which the supervisor makes an order of its own.
    pub(super) async fn at_once(&mut self) {
        let from_system = matches!(self, Self::Signals { .. });
        while self.next().await != Wish::AtOnce && !from_system {}
    }
}

async fn tell_drain(drain: drain::Handle, teller: Teller) {
    for phase in [Phase::Announced, Phase::Closing, Phase::Drained] {
        drain.reached(phase).await;
        teller.drains(phase);
    }
}

/// Goes on with a drain that another worker began, as far as it has come since so long, if it is not further here.
pub(super) fn go_on(begun: Option<(Phase, Duration)>, drain: &drain::Handle, shared: &Shared) {
    if let Some((phase, age)) = begun {
        let settings = shared.load().settings().drain.clone();
        drain.resume(phase, age, settings.delay.0, settings.timeout.0);
    }
}

/// What a worker before this one left.
pub(super) struct Before {
    again: bool,
    restarts: Option<u64>,
    drain: Option<(Phase, Duration)>,
    /// Whether it may serve still.
    pub(super) beside: bool,
}

impl Before {
    pub(super) fn of(link: Option<&Link>) -> Self {
        Self {
            again: link.is_some_and(Link::again),
            restarts: link.map(Link::restarts),
            drain: link.and_then(Link::drain),
            beside: link.is_some_and(Link::beside),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        if let Some(restarts) = self.restarts {
            let counter: Counter = Counter::default();
            counter.inc_by(restarts);
            registry.register("fetchr_worker_restarts", "Workers that ended unasked and were started again", counter);
        }
    }

    /// Goes on with the drain.
    pub(super) fn go_on(&self, drain: &drain::Handle, shared: &Shared) {
        go_on(self.drain, drain, shared);
    }

    /// The token of the worker before, which may be in somebody's hands; else a new one.
    pub(super) fn admin_token(&self, state: &StateDir) -> io::Result<String> {
        if self.again { state.same_admin_token() } else { state.new_admin_token() }
    }
}
