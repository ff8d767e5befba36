//! What supervisor and worker say to each other: JSON, one message a packet. After an upgrade the two are of different versions, so
//! fields are only ever added, and what is unknown is passed over.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::drain::Phase;

/// Version of this protocol. A worker that does not know the supervisor's does not start.
pub(super) const PROTOCOL: u32 = 1;

/// What the supervisor says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "say", rename_all = "camelCase")]
pub(super) enum Order {
    /// The first message of all.
    Welcome(Welcome),
    /// A listening socket that is held; it comes along.
    Socket {
        /// What it is called.
        label: String,
    },
    /// This worker is the one that serves: what it closes on purpose is closed for all.
    Lead {
        /// How far the drain has come by now; more than the welcome said, if it began while this worker started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain: Option<Draining>,
    },
    /// Another worker serves from now on: accept nothing more, finish what is open, end.
    Retire,
    /// The proxy is to end.
    End {
        /// Whether a person pressed Ctrl-C and does not want to wait.
        interrupted: bool,
    },
    /// End at once.
    Now,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

/// What a worker has to know before it starts.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Welcome {
    /// Version of the protocol.
    pub(super) protocol: u32,
    /// How many sockets follow.
    pub(super) sockets: usize,
    /// Whether a worker ran before this one.
    pub(super) again: bool,
    /// Workers that ended unasked so far.
    pub(super) restarts: u64,
    /// How far the drain had come when the last worker ended.
    pub(super) drain: Option<Draining>,
    /// Whether another worker serves, as it does in an upgrade. An earlier version does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<bool>,
}

/// A drain that a worker has begun, and the next one has to go on with.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Draining {
    /// How far it has come.
    pub(super) phase: Phase,
    /// How long ago it began.
    pub(super) age: Duration,
}

impl Draining {
    /// How far it has come, and how long ago it began.
    pub(super) fn parts(self) -> (Phase, Duration) {
        (self.phase, self.age)
    }
}

/// What a worker says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "say", rename_all = "camelCase")]
pub(super) enum Report {
    /// It listens on a new socket, of which a duplicate comes along.
    Holds {
        /// What it is called.
        label: String,
    },
    /// It has closed a socket on purpose.
    Closed {
        /// What it was called.
        label: String,
    },
    /// It serves.
    Ready {
        /// The version of its program.
        version: String,
    },
    /// The drain has come so far.
    Drains {
        /// The phase that was reached.
        phase: Phase,
    },
    /// It retires, and will have ended by then.
    Leaving {
        /// How long it may take.
        within: Duration,
    },
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was never started.
    NotStarted(String),
}

impl How {
    /// The exit code of what was never started.
    pub(super) const NOT_STARTED: u8 = 126;

    /// The exit code of whoever hands it on, as shells have it.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(*code).unwrap_or(1),
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            Self::NotStarted(_) => Self::NOT_STARTED,
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted(error) => write!(f, "it could not be started: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let drain = Some(Draining { phase: Phase::Closing, age: Duration::from_millis(1500) });
        let welcome = Welcome { protocol: PROTOCOL, sockets: 3, again: true, restarts: 7, drain, beside: Some(true) };
        for order in [
            Order::Welcome(welcome),
            Order::Socket { label: "a".into() },
            Order::Lead { drain },
            Order::End { interrupted: true },
            Order::Now,
        ] {
            assert_eq!(serde_json::from_slice::<Order>(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
        }
        for report in [Report::Ready { version: "1".into() }, Report::Leaving { within: Duration::from_secs(35) }] {
            assert_eq!(serde_json::from_slice::<Report>(&serde_json::to_vec(&report).unwrap()).unwrap(), report);
        }
    }

    #[test]
    fn words_of_a_later_version_are_passed_over() {
        assert_eq!(serde_json::from_str::<Order>(r#"{"say":"juggle"}"#).unwrap(), Order::Unknown);
        assert_eq!(serde_json::from_str::<Order>(r#"{"say":"retire","kindly":true}"#).unwrap(), Order::Retire);
        // As an earlier version says it.
        assert_eq!(serde_json::from_str::<Order>(r#"{"say":"lead"}"#).unwrap(), Order::Lead { drain: None });
        let welcome = r#"{"say":"welcome","protocol":1,"sockets":0,"again":false,"restarts":0,"weather":"fine"}"#;
        assert!(matches!(serde_json::from_str(welcome).unwrap(), Order::Welcome(Welcome { drain: None, beside: None, .. })));
    }

    #[test]
    fn end_by_a_signal_has_the_exit_code_of_shells() {
        assert_eq!((How::Code(3).code(), How::Signal(9).code()), (3, 137));
    }
}
