//! A worker's end of the channel.

use std::{io, net::TcpListener, os::fd::AsFd, sync::Arc, time::Duration};

use tokio::io::unix::AsyncFd;

use super::{
    channel::{Channel, Packet},
    message::{Draining, Order, PROTOCOL, Report, Welcome},
    process::inherited_channel,
};
use crate::{drain::Phase, sockets::Sockets};

/// What this process was told when its supervisor started it.
#[derive(Debug)]
pub struct Link {
    channel: Arc<Channel>,
    welcome: Welcome,
    sockets: Vec<(String, TcpListener)>,
}

/// Why a process that a supervisor started can't be its worker.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The channel is not there, or broken.
    #[error("the supervisor can't be heard")]
    Channel(#[from] io::Error),
    /// Something else came.
    #[error("the supervisor said something unexpected")]
    Unexpected,
    /// The supervisor is of another kind.
    #[error("the supervisor speaks version {0} of its protocol, and this program another: stop and start the proxy once")]
    Protocol(u32),
}

impl Link {
    /// The link of this process, if a supervisor has started it. May be asked once.
    ///
    /// # Errors
    /// The supervisor is not understood.
    pub fn of_process() -> Result<Option<Self>, LinkError> {
        inherited_channel()?.map(Self::over).transpose()
    }

    /// The link of a process that is a copy of its supervisor.
    pub(super) fn of_copy(channel: Channel) -> Self {
        Self::over(channel).unwrap_or_else(|error| {
            // It must not go on as a second supervisor.
            tracing::error!(%error, "The worker could not start.");
            std::process::exit(1)
        })
    }

    fn over(channel: Channel) -> Result<Self, LinkError> {
        let Packet::Message(Order::Welcome(welcome), None) = channel.receive()? else { return Err(LinkError::Unexpected) };
        if welcome.protocol != PROTOCOL {
            return Err(LinkError::Protocol(welcome.protocol));
        }
        let mut sockets = Vec::new();
        for _ in 0..welcome.sockets {
            match channel.receive()? {
                Packet::Message(Order::Socket { label }, Some(socket)) => sockets.push((label, socket.into())),
                _ => return Err(LinkError::Unexpected),
            }
        }
        Ok(Self { channel: Arc::new(channel), welcome, sockets })
    }

    /// Whether a worker has run before this one, under the same supervisor.
    pub fn again(&self) -> bool {
        self.welcome.again
    }

    /// Whether another worker may serve until this one [leads](Wish::Lead).
    pub(crate) fn beside(&self) -> bool {
        self.welcome.beside.unwrap_or(self.welcome.again)
    }

    /// Workers that ended unasked so far.
    pub(crate) fn restarts(&self) -> u64 {
        self.welcome.restarts
    }

    /// The drain that the worker before had begun.
    pub(crate) fn drain(&self) -> Option<(Phase, Duration)> {
        self.welcome.drain.map(Draining::parts)
    }

    /// The sockets that are held, and the orders to come.
    pub(crate) fn split(self) -> io::Result<(Sockets, Orders, Teller)> {
        let teller = Teller(self.channel);
        // SAFETY: the teller owns its descriptor, through an Arc of its own, and never replaces it.
        let channel = unsafe { AsyncFd::register(teller.clone()) }?;
        let orders = Orders { channel, ended: false };
        Ok((Sockets::held(self.sockets, teller.clone()), orders, teller))
    }
}

/// Tells the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Teller(Arc<Channel>);

impl Teller {
    /// It serves.
    pub(crate) fn ready(&self) {
        self.tell(&Report::Ready { version: env!("CARGO_PKG_VERSION").to_owned() }, None);
    }

    /// It listens on a new socket.
    pub(crate) fn holds(&self, label: &str, socket: &impl AsFd) {
        self.tell(&Report::Holds { label: label.to_owned() }, Some(socket.as_fd()));
    }

    /// It has closed a socket for all.
    pub(crate) fn closed(&self, label: &str) {
        self.tell(&Report::Closed { label: label.to_owned() }, None);
    }

    /// The drain has reached a phase.
    pub(crate) fn drains(&self, phase: Phase) {
        self.tell(&Report::Drains { phase }, None);
    }

    /// It retires, and will have ended within so long.
    pub(crate) fn leaving(&self, within: Duration) {
        self.tell(&Report::Leaving { within }, None);
    }

    fn tell(&self, report: &Report, socket: Option<std::os::fd::BorrowedFd<'_>>) {
        if let Err(error) = self.0.send(report, socket) {
            tracing::warn!(%error, ?report, "The supervisor could not be told.");
        }
    }
}

impl std::os::fd::AsRawFd for Teller {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// End, without haste.
    Terminate,
    /// End; somebody waits.
    Interrupt,
    /// End at once.
    AtOnce,
    /// Another worker serves: finish what is open, then end.
    Retire,
    /// It is the one that serves, and goes on with this drain.
    Lead(Option<(Phase, Duration)>),
}

/// Orders of the supervisor.
#[derive(Debug)]
pub(crate) struct Orders {
    channel: AsyncFd<Teller>,
    ended: bool,
}

impl Orders {
    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Wish {
        loop {
            if self.ended {
                return std::future::pending().await;
            }
            let received = match self.channel.readable().await {
                Ok(mut ready) => ready.try_io(|channel| channel.get_ref().0.receive::<Order>()),
                Err(error) => Ok(Err(error)),
            };
            match received {
                Ok(Ok(Packet::Message(order, _))) => match order {
                    Order::Lead { drain } => return Wish::Lead(drain.map(Draining::parts)),
                    Order::Retire => return Wish::Retire,
                    Order::End { interrupted: true } => return Wish::Interrupt,
                    Order::End { interrupted: false } => return Wish::Terminate,
                    Order::Now => return Wish::AtOnce,
                    Order::Welcome(_) | Order::Socket { .. } | Order::Unknown => {}
                },
                Ok(Ok(Packet::Garbage)) | Err(_) => {} // the latter: nothing is there yet
                // Without a supervisor nobody could end this process in an orderly way.
                Ok(Ok(Packet::End) | Err(_)) => {
                    self.ended = true;
                    return Wish::Terminate;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_takes_what_it_is_told_first_and_refuses_another_protocol() {
        let (ours, theirs) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let welcome = Welcome { protocol: PROTOCOL, sockets: 1, again: true, restarts: 2, ..Welcome::default() };
        ours.send(&Order::Welcome(welcome), None).unwrap();
        ours.send(&Order::Socket { label: "web".into() }, Some(listener.as_fd())).unwrap();
        let link = Link::over(theirs).unwrap();
        assert!(link.again() && link.beside() && link.restarts() == 2 && link.sockets[0].0 == "web");

        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Order::Welcome(Welcome { protocol: 9, ..welcome }), None).unwrap();
        assert!(Link::over(theirs).unwrap_err().to_string().contains("version 9"));
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Order::Lead { drain: None }, None).unwrap();
        assert!(matches!(Link::over(theirs), Err(LinkError::Unexpected)));
        let (ours, theirs) = Channel::pair().unwrap();
        drop(ours);
        assert!(matches!(Link::over(theirs), Err(LinkError::Unexpected)));
    }
}
