//! A request at the throttles that hold for it: all let it through, one after the other, or it is turned away.

use std::{
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
use crate::{error::ForwardError, facts::Facts, flow::Flow, route::Route};

/// A request that throttles hold for, with what they have to know of it.
#[derive(Debug)]
pub(crate) struct Turn {
    holds: SmallVec<[Held; 1]>,
    deadline: Option<Deadline>,
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

/// A request that was let through. Dropped, others have its room.
#[derive(Debug)]
pub(crate) struct Admitted {
    permits: SmallVec<[Permit; 1]>,
    download: SmallVec<[Arc<Bandwidth>; 1]>,
    deadline: Option<Deadline>,
    began: Instant,
}

impl Turn {
    /// What the throttles of a route have to know of a request; none if none holds for it.
    pub(crate) fn of(throttles: &Throttles, route: &Route, facts: &Facts<'_>, grpc: bool, started: Instant) -> Option<Box<Self>> {
        let mut turn = Self { holds: SmallVec::new(), deadline: None };
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
        (!turn.holds.is_empty()).then(|| Box::new(turn))
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

    /// Waits until all throttles have let it through.
    ///
    /// # Errors
    /// That one has turned it away, or that its deadline has passed.
    pub(crate) async fn admit(&self) -> Result<Admitted, ForwardError> {
        let mut permits = SmallVec::new();
        for held in &self.holds {
            if held.throttle.mode == Mode::Shadow {
                permits.push(held.watch());
                continue;
            }
            match held.enter(self.deadline).await {
                Ok((permit, outcome)) => {
                    held.gate.figures.count(Mode::Enforce, outcome);
                    permits.push(permit);
                }
                Err((outcome, again)) => {
                    held.gate.figures.count(Mode::Enforce, outcome);
                    return Err(self.refused(held, outcome, again));
                }
            }
        }
        let download = self.enforced().filter(|held| held.throttle.downloads).map(|held| Arc::clone(&held.gate.download));
        Ok(Admitted { permits, download: download.collect(), deadline: self.deadline, began: now() })
    }

    fn refused(&self, held: &Held, outcome: Outcome, again: Duration) -> ForwardError {
        match self.deadline {
            Some(deadline) if outcome == Outcome::Deadline => ForwardError::DeadlineExceeded(deadline.limit),
            _ => ForwardError::Throttled { rule: Arc::clone(&held.throttle.label), outcome, retry_after: again },
        }
    }
}

impl Held {
    /// Waits for a time that the rate gives, and then for room.
    async fn enter(&self, deadline: Option<Deadline>) -> Result<(Permit, Outcome), Refusal> {
        let until = deadline.map(|deadline| deadline.at);
        let is_late = || until.is_some_and(|until| now() >= until);
        let late = (Outcome::Deadline, Duration::ZERO);
        if is_late() {
            return Err(late);
        }
        let mut outcome = Outcome::Admitted;
        if let Some(pacing) = self.throttle.pacing {
            let shaped = self.gate.shape(pacing, until)?;
            if let Some(at) = shaped.at() {
                let since = now();
                sleep_until(at.into()).await;
                self.gate.waited(self.level, now().saturating_duration_since(since));
                outcome = Outcome::Queued;
            }
        }
        let longest = self.throttle.max_wait;
        let expires = until.map_or(now() + longest, |until| until.min(now() + longest));
        let permit = match self.gate.try_enter(Asks { level: self.level, hash: self.hash, expires }) {
            Ok(permit) => permit,
            Err(Err(full)) => return Err((full, longest)),
            Err(Ok(waiting)) => {
                outcome = Outcome::Queued;
                waiting.turn().await.map_err(|why| if is_late() { late } else { (why, longest) })?
            }
        };
        // What has had to wait must not go too late; the permit goes back then.
        if is_late() { Err(late) } else { Ok((permit, outcome)) }
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
    /// The head of an answer is here. The request was sent whole at `sent`, if it was; its body ends what was admitted.
    pub(crate) fn answered(mut self, response: &mut Response<Flow>, sent: Option<Instant>) {
        let overloaded = matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
        if overloaded {
            self.note(Sample::Overloaded);
        } else if let Some(sent) = sent {
            // How fast a client sends says nothing about the upstream.
            self.note(Sample::Answered(now().saturating_duration_since(self.began.max(sent))));
        }
        // A stream of events has no end.
        let kind = response.headers().get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        if kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"text/event-stream")) {
            self.permits.clear();
        }
        response.body_mut().hold(self.permits, Paced::by(self.download));
    }

    /// There was no answer.
    pub(crate) fn failed(self, error: &ForwardError) {
        let late = self.deadline.is_some_and(|deadline| now() >= deadline.at);
        match error {
            // Not in the time of its client, who may be in a hurry: then it would have taken this long at least.
            ForwardError::ResponseTimeout(_) if late => self.note(Sample::Answered(now().saturating_duration_since(self.began))),
            ForwardError::ResponseTimeout(_) | ForwardError::ConnectTimeout { .. } | ForwardError::ConnectionLimit { .. } => {
                self.note(Sample::Overloaded);
            }
            _ => {}
        }
    }

    fn note(&self, sample: Sample) {
        self.permits.iter().for_each(|permit| permit.note(sample));
    }
}
