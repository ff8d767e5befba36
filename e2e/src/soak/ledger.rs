//! Who asked, what the origins saw, and what came of it: nothing may be lost, doubled or mixed up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ask::{Ask, Told};

/// How many broken promises are told at once.
const TOLD: u64 = 20;
/// More often no origin may see a request that may be repeated: three tries, each of which may find its connection gone once.
const MOST_TRIES: u8 = 6;

/// A kind of load; a line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Http1,
    Tls1,
    Http2,
    Tls2,
    WebSocket1,
    WebSocket2,
    Grpc,
    Uploads,
    Slow,
    Leaving1,
    Leaving2,
    Faulty1,
    Faulty2,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, connections that stay open",
            Self::Tls1 => "the same over TLS",
            Self::Http2 => "HTTP/2, several streams a connection",
            Self::Tls2 => "the same over TLS",
            Self::WebSocket1 => "WebSocket over HTTP/1.1",
            Self::WebSocket2 => "WebSocket over HTTP/2",
            Self::Grpc => "streams with trailers, as gRPC's",
            Self::Uploads => "uploads, 100 KiB to 1 MiB",
            Self::Slow => "slow readers and writers",
            Self::Leaving1 => "clients that leave, HTTP/1.1",
            Self::Leaving2 => "clients that leave, HTTP/2",
            Self::Faulty1 => "origins that reset, stall, cut off or close, HTTP/1.1",
            Self::Faulty2 => "the same over HTTP/2",
        }
    }

    /// Whether the origin may make it fail.
    fn may_fail(self) -> bool {
        matches!(self, Self::Faulty1 | Self::Faulty2)
    }
}

/// What a client got.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Answer),
    /// The connection or the stream ended without a head.
    Gone(String),
    /// Nothing in time.
    Late,
}

/// An answer, or as much of it as came.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The exchange that it says it is of; errors of the proxy say none.
    pub(super) id: Option<u64>,
    /// Bytes of the upload that the origin says it has got.
    pub(super) got: Option<usize>,
    /// Which change of the policies it shows.
    pub(super) round: Option<u64>,
    /// Why the proxy answered by itself.
    pub(super) reason: Option<String>,
    /// Bytes of the body that came.
    pub(super) len: usize,
    /// Whether they were those of the exchange.
    pub(super) good: bool,
    /// Whether its end came, and was no break.
    pub(super) whole: bool,
    /// Whether the connection serves no further request.
    pub(super) closes: bool,
}

/// How often what became of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) whole: u64,
    pub(super) refused: BTreeMap<u16, u64>,
    pub(super) cut: u64,
    pub(super) left: u64,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// How often origins saw each exchange; the index is its id.
    seen: Mutex<Vec<u8>>,
    tallies: Mutex<BTreeMap<Kind, Tally>>,
    /// How many promises were broken, and the first.
    breaches: Mutex<(u64, Option<String>)>,
    round: AtomicU64,
}

impl Ledger {
    /// The id of a new exchange.
    pub(super) fn open(&self) -> u64 {
        let mut seen = lock(&self.seen);
        seen.push(0);
        seen.len() as u64 - 1
    }

    /// An origin saw a request, the n-th time.
    pub(super) fn note(&self, told: &Told, once: bool) -> u8 {
        let mut seen = lock(&self.seen);
        let Some(count) = usize::try_from(told.id).ok().and_then(|id| seen.get_mut(id)) else {
            drop(seen);
            self.breach(&format!("an origin saw {}, which nobody asked for", told.id));
            return 0;
        };
        *count = count.saturating_add(1);
        let count = *count;
        drop(seen);
        if count > if once { 1 } else { MOST_TRIES } {
            self.breach(&format!("doubled: an origin saw {} {count} times ({told:?})", told.id));
        }
        count
    }

    fn seen(&self, id: u64) -> u8 {
        usize::try_from(id).ok().and_then(|id| lock(&self.seen).get(id).copied()).unwrap_or_default()
    }

    /// What an origin got of an upload that ended in order.
    pub(super) fn uploaded(&self, told: &Told, len: usize, good: bool) {
        if len != told.upload || !good {
            self.breach(&format!("an origin took {len} bytes (right: {good}) for the whole upload of {told:?}"));
        }
    }

    /// Books what came of an exchange, and says so if it should not have.
    pub(super) fn close(&self, kind: Kind, ask: &Ask, outcome: &Outcome) {
        match judge(kind, ask, outcome, self.seen(ask.id)) {
            Ok(end) => self.tally(kind, end),
            Err(why) => self.breach(&format!("{kind:?}: {why}: {ask:?}, {outcome:?}")),
        }
        if let Outcome::Answer(Answer { round: Some(round), .. }) = outcome {
            self.round.fetch_max(*round, Ordering::Relaxed);
        }
    }

    /// Books a tunnel or a stream that both sides ended in order, or that the client left.
    pub(super) fn tally(&self, kind: Kind, end: End) {
        let mut tallies = lock(&self.tallies);
        let tally = tallies.entry(kind).or_default();
        match end {
            End::Whole => tally.whole += 1,
            End::Refused(status) => *tally.refused.entry(status).or_default() += 1,
            End::Cut => tally.cut += 1,
            End::Left => tally.left += 1,
        }
    }

    /// A promise was broken.
    pub(super) fn breach(&self, how: &str) {
        let mut breaches = lock(&self.breaches);
        breaches.0 += 1;
        if breaches.0 <= TOLD {
            eprintln!("soak: {how}");
        }
        breaches.1.get_or_insert_with(|| how.to_owned());
    }

    /// How many promises were broken, and the first of them.
    pub(super) fn breaches(&self) -> (u64, Option<String>) {
        lock(&self.breaches).clone()
    }

    pub(super) fn tallies(&self) -> BTreeMap<Kind, Tally> {
        lock(&self.tallies).clone()
    }

    /// The last change of the policies that an answer has shown.
    pub(super) fn round(&self) -> u64 {
        self.round.load(Ordering::Relaxed)
    }
}

/// How an exchange may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    Refused(u16),
    Cut,
    Left,
}

fn judge(kind: Kind, ask: &Ask, outcome: &Outcome, seen: u8) -> Result<End, String> {
    let answer = match outcome {
        Outcome::Answer(answer) => answer,
        // A head that waits for the first bytes of its body goes with them.
        Outcome::Gone(_) if kind.may_fail() && seen > 0 => return Ok(End::Cut),
        // Who leaves too many streams of a connection loses the others with it.
        Outcome::Gone(_) if kind == Kind::Leaving2 => return Ok(End::Left),
        Outcome::Gone(why) => return Err(format!("no answer, {why}")),
        Outcome::Late => return Err("no answer in time".to_owned()),
    };
    let wrong = match answer.id {
        Some(id) if id != ask.id => Some("mixed up: the answer to another"),
        Some(_) if !answer.good => Some("mixed up: bytes of another"),
        _ if !answer.whole && kind.may_fail() => return Ok(End::Cut),
        _ if !answer.whole && kind == Kind::Leaving2 => return Ok(End::Left),
        _ if !answer.whole => Some("cut off"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        return Err(wrong.to_owned());
    }
    let wrong = match answer.status {
        200 if answer.id.is_none() || seen == 0 => "answered, but no origin has seen it",
        200 if answer.len != ask.answer => "a part of the answer was taken for the whole",
        200 if ask.does.cuts() && seen < 2 => "the origin sent a part, and the client got the whole",
        200 if answer.got != Some(ask.upload) => "the origin has not got the upload",
        200 if answer.round.is_none() => "no policy held",
        200 => return Ok(End::Whole),
        429 if ask.path == super::proxy::LIMITED => return Ok(End::Refused(429)),
        status @ (413 | 502 | 503 | 504) if kind.may_fail() => return Ok(End::Refused(status)),
        _ => return Err(format!("refused, {:?}", answer.reason)),
    };
    Err(wrong.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::ask::{Does, Framing};

    fn whole(id: u64, len: usize) -> Answer {
        Answer { status: 200, id: Some(id), got: Some(0), round: Some(1), len, good: true, whole: true, ..Answer::default() }
    }

    #[test]
    fn only_whole_answers_of_the_exchange_itself_are_good() {
        let ask = Ask::get(3, "/plain", 10);
        let judged = |kind, answer, seen| judge(kind, &ask, &Outcome::Answer(answer), seen);
        assert_eq!(judged(Kind::Http1, whole(3, 10), 1), Ok(End::Whole));
        for (answer, seen, why) in [
            (whole(4, 10), 1, "mixed up: the answer to another"),
            (Answer { good: false, ..whole(3, 10) }, 1, "mixed up: bytes of another"),
            (whole(3, 10), 0, "answered, but no origin has seen it"),
            (whole(3, 9), 1, "a part of the answer was taken for the whole"),
            (Answer { got: Some(1), ..whole(3, 10) }, 1, "the origin has not got the upload"),
            (Answer { whole: false, ..whole(3, 9) }, 1, "cut off"),
            (Answer { status: 503, id: None, ..whole(3, 0) }, 0, "refused, None"),
        ] {
            assert_eq!(judged(Kind::Http1, answer, seen), Err(why.to_owned()));
        }
    }

    #[test]
    fn faults_of_the_origin_show_and_are_never_covered_up() {
        let ask = Ask { does: Does::Part, ..Ask::get(3, "/faulty", 10) };
        let judged = |answer, seen| judge(Kind::Faulty1, &ask, &Outcome::Answer(answer), seen);
        assert_eq!(judged(Answer { whole: false, ..whole(3, 5) }, 1), Ok(End::Cut));
        assert_eq!(judged(Answer { status: 502, id: None, ..whole(3, 0) }, 1), Ok(End::Refused(502)));
        assert_eq!(judged(whole(3, 10), 2), Ok(End::Whole), "a further try has succeeded");
        assert!(judged(whole(3, 10), 1).is_err() && judged(whole(4, 10), 2).is_err());
    }

    #[test]
    fn request_with_an_effect_that_comes_twice_is_a_breach() {
        let ledger = Ledger::default();
        let id = ledger.open();
        let told = Told { id, upload: 0, answer: 0, framing: Framing::Length, does: Does::Answer };
        assert_eq!((ledger.note(&told, true), ledger.breaches().0), (1, 0));
        assert_eq!((ledger.note(&told, true), ledger.breaches().0), (2, 1));
        ledger.note(&Told { id: 99, ..told }, false);
        assert_eq!(ledger.breaches().0, 2, "nobody asked for 99");
    }
}
