//! A request at the throttles that hold for it: all let it through, one after the other, or it is turned away.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::policy::Mode;
use http::{Response, StatusCode, header};
use smallvec::SmallVec;
use tokio::time::sleep_until;

use super::{
    Bandwidth, Deadline, Paced, Sample, Throttle, Throttles,
    counted::Outcome,
    gate::{Gate, Permit, Refusal, now},
    state::Asks,
};
use crate::{
    error::ForwardError,
    facts::Facts,
    flow::{Flow, Upload},
    reply::GRPC_STATUS,
    route::Route,
};

const LATE: Refusal = (Outcome::Deadline, Duration::ZERO);

/// A request that throttles hold for, with what they have to know of it.
#[derive(Debug)]
pub(crate) struct Turn {
    holds: SmallVec<[Held; 1]>,
    deadline: Option<Deadline>,
    /// Until when it may wait: its own time limit ends that too.
    until: Option<Deadline>,
}

/// What a request says of its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Whether it is a gRPC call.
    pub(crate) grpc: bool,
    pub(crate) started: Instant,
    /// How long it may take until its answer begins, by its policies.
    pub(crate) limit: Option<Duration>,
}

/// What one of them has to know.
#[derive(Debug)]
struct Held {
    throttle: Arc<Throttle>,
    gate: Arc<Gate>,
    level: u8,
    hash: u64,
    /// When its client does not wait any longer, by this throttle alone.
    deadline: Option<Deadline>,
}

/// A request that was let through. Dropped, others have its room; its client has left then.
pub(crate) struct Admitted {
    permits: SmallVec<[Permit; 1]>,
    download: SmallVec<[Arc<Bandwidth>; 1]>,
    began: Instant,
    /// What is sent of it; none once it is known what became of it.
    upload: Option<Upload>,
}

impl Turn {
    /// What the throttles of a route have to know of a request; none if none holds for it.
    pub(crate) fn of(throttles: &Throttles, route: &Route, facts: &Facts<'_>, asked: Asked) -> Option<Box<Self>> {
        let Asked { grpc, started, limit } = asked;
        let mut turn = Self { holds: SmallVec::new(), deadline: None, until: None };
        for throttle in route.throttles().filter(|throttle| throttle.mode != Mode::Disabled) {
            if route.first_met(facts, [&throttle.exempt].into_iter()).is_some() {
                continue;
            }
            let deadline = if throttle.waits { throttle.deadlines.of(facts.headers, grpc, started) } else { None };
            if throttle.mode == Mode::Enforce {
                turn.deadline = [turn.deadline, deadline].into_iter().flatten().min_by_key(|deadline| deadline.at);
            }
            turn.holds.push(Held {
                gate: Arc::clone(throttle.gate(throttles)),
                level: throttle.level(route, facts),
                hash: throttles.hash(throttle, facts),
                throttle: Arc::clone(throttle),
                deadline,
            });
        }
        let limit = limit.map(|limit| Deadline { at: started + limit, limit });
        turn.until = [turn.deadline, limit].into_iter().flatten().min_by_key(|deadline| deadline.at);
        (!turn.holds.is_empty()).then(|| Box::new(turn))
    }

    /// Its client has an answer already, and waits for none.
    pub(crate) fn is_for_nobody(&mut self) {
        (self.deadline, self.until) = (None, None);
        self.holds.iter_mut().for_each(|held| held.deadline = None);
    }

    /// When its client does not wait any longer.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// What the body of the request keeps to.
    pub(crate) fn upload(&self) -> Option<Box<Paced>> {
        Paced::by(self.enforced().filter(|held| held.throttle.uploads).map(|held| Arc::clone(&held.gate.upload)).collect())
    }

    fn enforced(&self) -> impl Iterator<Item = &Held> {
        self.holds.iter().filter(|held| held.throttle.mode == Mode::Enforce)
    }

    /// Waits until all throttles have let it through: for the times that all rates give, and then for room, so that it takes none while it
    /// waits for a time.
    ///
    /// # Errors
    /// That one has turned it away, or that its deadline has passed.
    pub(crate) async fn admit(&self) -> Result<Admitted, ForwardError> {
        let mut delayed: SmallVec<[bool; 4]> = SmallVec::new();
        for held in &self.holds {
            let shaped = if held.throttle.mode == Mode::Shadow { Ok(false) } else { held.keep_pace(self.until).await };
            delayed.push(shaped.map_err(|refusal| self.refused(held, refusal))?);
        }
        let mut permits = SmallVec::new();
        for (held, delayed) in self.holds.iter().zip(delayed) {
            if held.throttle.mode == Mode::Shadow {
                permits.push(held.watch());
                continue;
            }
            let (permit, queued) = held.enter(self.until).await.map_err(|refusal| self.refused(held, refusal))?;
            let outcome = if delayed || queued { Outcome::Queued } else { Outcome::Admitted };
            held.gate.figures.count(Mode::Enforce, outcome);
            permits.push(permit);
        }
        let download = self.enforced().filter(|held| held.throttle.downloads).map(|held| Arc::clone(&held.gate.download));
        Ok(Admitted { permits, download: download.collect(), began: now(), upload: None })
    }

    /// Counts a request that is turned away, and says why.
    fn refused(&self, held: &Held, (outcome, again): Refusal) -> ForwardError {
        held.gate.figures.count(Mode::Enforce, outcome);
        match self.until {
            Some(deadline) if outcome == Outcome::Deadline => ForwardError::DeadlineExceeded(deadline.limit),
            _ => ForwardError::Throttled { rule: Arc::clone(&held.throttle.label), outcome, retry_after: again },
        }
    }
}

impl Held {
    /// Waits for a time that the rate gives. Whether it had to.
    async fn keep_pace(&self, deadline: Option<Deadline>) -> Result<bool, Refusal> {
        let until = deadline.map(|deadline| deadline.at);
        if until.is_some_and(|until| now() >= until) {
            return Err(LATE);
        }
        let Some(pacing) = self.throttle.pacing else { return Ok(false) };
        let shaped = self.gate.shape(pacing, until)?;
        let Some(at) = shaped.at() else { return Ok(false) };
        let since = now();
        sleep_until(at.into()).await;
        self.gate.waited(self.level, now().saturating_duration_since(since));
        Ok(true)
    }

    /// Waits for room. Whether it had to.
    async fn enter(&self, deadline: Option<Deadline>) -> Result<(Permit, bool), Refusal> {
        let until = deadline.map(|deadline| deadline.at);
        let is_late = || until.is_some_and(|until| now() >= until);
        let mut queued = false;
        let longest = self.throttle.max_wait;
        let expires = until.map_or(now() + longest, |until| until.min(now() + longest));
        let permit = match self.gate.try_enter(Asks { level: self.level, hash: self.hash, expires }) {
            Ok(permit) => permit,
            Err(Err(full)) => return Err((full, longest)),
            Err(Ok(waiting)) => {
                queued = true;
                waiting.turn().await.map_err(|why| if is_late() { LATE } else { (why, longest) })?
            }
        };
        // What has had to wait must not go too late; the permit goes back then.
        if is_late() { Err(LATE) } else { Ok((permit, queued)) }
    }

    /// Counts what would have become of it.
    fn watch(&self) -> Permit {
        let (permit, mut outcome) = self.gate.watch();
        if let Some(pacing) = self.throttle.pacing {
            match self.gate.shape(pacing, None) {
                Ok(shaped) if shaped.at().is_some() => {
                    shaped.pass();
                    outcome = if outcome == Outcome::Admitted { Outcome::Queued } else { outcome };
                }
                Ok(_) => {}
                Err((refused, _)) => outcome = refused,
            }
        }
        if self.deadline.is_some_and(|deadline| now() >= deadline.at) {
            outcome = Outcome::Deadline;
        }
        self.gate.figures.count(Mode::Shadow, outcome);
        permit
    }
}

impl Admitted {
    /// It is sent to the upstream from now on.
    pub(crate) fn sending(mut self, upload: Upload) -> Self {
        self.upload = Some(upload);
        self
    }

    /// The head of an answer is here; its body ends what was admitted.
    pub(crate) fn answered(mut self, response: &mut Response<Flow>) {
        let took = self.took();
        self.upload = None;
        if let Some(sample) = Sample::of(response, took) {
            self.note(sample);
        }
        // A stream of events has no end.
        let kind = response.headers().get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        if kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"text/event-stream")) {
            self.permits.clear();
        }
        response.body_mut().hold(mem::take(&mut self.permits), Paced::by(mem::take(&mut self.download)));
    }

    /// There was no answer.
    pub(crate) fn failed(mut self, error: &ForwardError) {
        match error {
            ForwardError::TooLate(_) => return, // its client has left, as it were
            ForwardError::ResponseTimeout(_) | ForwardError::ConnectTimeout { .. } | ForwardError::ConnectionLimit { .. } => {
                self.note(Sample::Overloaded);
            }
            _ => {}
        }
        self.upload = None;
    }

    /// Both sides speak another protocol from now on.
    pub(crate) fn switched(mut self) {
        self.upload = None;
    }

    /// How long its upstream has had all of it; none if it has not. How fast a client sends says nothing about the upstream.
    fn took(&self) -> Option<Duration> {
        let upload = self.upload.as_ref().filter(|upload| upload.is_done())?;
        Some(now().saturating_duration_since(self.began.max(upload.moved().into_std())))
    }

    fn note(&self, sample: Sample) {
        self.permits.iter().for_each(|permit| permit.note(sample));
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(took) = self.took() {
            self.note(Sample::Left(took));
        }
    }
}

impl Sample {
    /// What an answer says; it took so long, if that is known.
    fn of<B>(response: &Response<B>, took: Option<Duration>) -> Option<Self> {
        // An error is soon made: it says nothing of how long an answer takes.
        let of_grpc = response.headers().get(GRPC_STATUS).map(http::HeaderValue::as_bytes);
        match (response.status(), of_grpc) {
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _) => Some(Self::Overloaded),
            // DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE.
            (_, Some(b"4" | b"8" | b"14")) => Some(Self::Overloaded),
            // UNKNOWN, INTERNAL.
            (_, Some(b"2" | b"13")) => None,
            (StatusCode::TOO_MANY_REQUESTS, _) => None,
            (status, _) if status.is_server_error() => None,
            _ => took.map(Self::Answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_no_fast_answers() {
        let took = Duration::from_millis(1);
        let answered = Some(Sample::Answered(took));
        let cases = [
            (200, "", answered),
            (200, "0", answered),
            (404, "", answered),
            (429, "", None),
            (500, "", None),
            (502, "", None),
            (503, "", Some(Sample::Overloaded)),
            (504, "", Some(Sample::Overloaded)),
            (200, "14", Some(Sample::Overloaded)),
            (200, "8", Some(Sample::Overloaded)),
            (200, "4", Some(Sample::Overloaded)),
            (200, "13", None),
        ];
        for (status, of_grpc, expected) in cases {
            let mut response = Response::builder().status(status).body(()).unwrap();
            if !of_grpc.is_empty() {
                response.headers_mut().insert(GRPC_STATUS, http::HeaderValue::from_static(of_grpc));
            }
            assert_eq!(Sample::of(&response, Some(took)), expected, "{status} {of_grpc}");
        }
    }
}
