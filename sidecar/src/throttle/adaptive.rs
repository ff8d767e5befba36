//! How many requests an upstream takes at a time, found from how long it takes to answer. Pure; time is passed in.
//!
//! The limit moves by the gradient: what an answer takes when few requests are under way, by what it takes now. The first is measured again
//! and again, with a fifth fewer requests for a moment: an upstream that was overloaded when it was measured answers faster then, and with
//! each measurement the figure comes nearer to the truth, from above or from below. Only requests that began after a measurement began are
//! part of it, so each has met an upstream with at most the limit under way.

use std::time::{Duration, Instant};

use crds::policy::throttle::Concurrency;

/// The part of the limit that is let through while the latency of an upstream that is not busy is measured.
const PROBE: f64 = 0.8;
/// Time between two such measurements, at least, and in latencies.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_EVERY_LATENCIES: u32 = 50;
/// A limit that has fallen to this part since the last one asks for another.
const FALLEN: f64 = 0.6;
/// The part of the limit that has to be in use for it to grow.
const WELL_USED: f64 = 0.7;
/// How far the limit follows one gradient.
const STEP: f64 = 0.3;
/// Standard errors that a mean differs by chance, in a gradient and where it has to be sure.
const CHANCE: f64 = 0.5;
const SURE: f64 = 3.0;
/// How much faster and slower, as logarithms, an upstream is that has changed.
const FASTER: f64 = 0.1;
const SLOWER: f64 = 0.3;
/// A gradient from which on there is room for more.
const ROOM: f64 = 0.97;
/// The most that one gradient may say.
const GRADIENTS: (f64, f64) = (0.5, 1.2);
/// Windows in a row with room, after which growth gets no faster.
const FASTEST: u32 = 8;
/// The part of the answers that are signs of overload beyond which the limit falls, and how far.
const OVERLOADED: f64 = 0.05;
const FALL: f64 = 0.8;
/// Length of a window, at least, and answers in it.
const WINDOW: Duration = Duration::from_millis(100);
const SAMPLES: (f64, f64) = (50.0, 400.0);
/// A window in which so few answers come is closed after this time, and after so many latencies, with fewer of them.
const SLOW_WINDOW: Duration = Duration::from_secs(1);
const SLOW_WINDOW_LATENCIES: u32 = 10;
const LEAST_SAMPLES: u32 = 8;
/// A client that leaves after so many latencies tells of overload; one that leaves before may be in a hurry.
const LEFT_LATENCIES: u32 = 3;

/// What became of a request, as far as it tells about its upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sample {
    /// It was answered after this time.
    Answered(Duration),
    /// There was no answer in time, or one that says that there is too much to do.
    Overloaded,
    /// Its client waited for no longer than this.
    Left(Duration),
}

/// What is found of one upstream.
#[derive(Debug)]
pub(super) struct Adaptive {
    least: f64,
    most: f64,
    limit: f64,
    gradient: f64,
    /// Logarithm of the latency when it is not busy, in seconds.
    baseline: Option<f64>,
    window: Window,
    probing: bool,
    probe_at: Instant,
    /// The limit when it was measured last.
    measured_at: f64,
    /// Windows in a row in which there was room.
    growing: u32,
}

/// What came in a stretch of time.
#[derive(Debug)]
struct Window {
    began: Instant,
    /// Sum of the logarithms of latencies, and of their squares: a long tail counts no more than what varies in the middle.
    logs: f64,
    squares: f64,
    answered: u32,
    overloaded: u32,
    /// Requests under way, at most.
    in_flight: u32,
}

/// The mean of logarithms of latencies, and its standard error.
#[derive(Clone, Copy, Debug)]
struct Mean {
    log: f64,
    error: f64,
}

impl Mean {
    /// How far it lies above another figure, or below, beyond what chance makes of it most often; so and so many errors are chance.
    fn beyond(self, other: f64, errors: f64) -> f64 {
        let differs = self.log - other;
        differs.signum() * (differs.abs() - errors * self.error).max(0.0)
    }
}

impl Window {
    fn new(began: Instant, in_flight: u32) -> Self {
        Self { began, logs: 0.0, squares: 0.0, answered: 0, overloaded: 0, in_flight }
    }

    /// The mean, if enough came for one.
    fn mean(&self) -> Option<Mean> {
        let count = f64::from(self.answered);
        let log = self.logs / count;
        let variance = (self.squares / count - log * log).max(0.0);
        (self.answered >= LEAST_SAMPLES).then(|| Mean { log, error: (variance / count).sqrt() })
    }
}

impl Adaptive {
    pub(super) fn new(settings: &Concurrency, now: Instant) -> Self {
        let (least, most, first) = settings.bounds();
        Self {
            least: least.into(),
            most: most.into(),
            limit: first.into(),
            gradient: 1.0,
            baseline: None,
            window: Window::new(now, 0),
            probing: false,
            probe_at: now + PROBE_EVERY,
            measured_at: first.into(),
            growing: 0,
        }
    }

    /// Takes over other bounds; what was found stays.
    pub(super) fn configure(&mut self, settings: &Concurrency) {
        let (least, most, _) = settings.bounds();
        (self.least, self.most) = (least.into(), most.into());
        self.limit = self.limit.clamp(self.least, self.most);
    }

    /// Requests that may be under way now.
    pub(super) fn limit(&self) -> u32 {
        let limit = if self.probing { (self.limit * PROBE).max(self.least) } else { self.limit };
        limit as u32
    }

    /// The same, but for the moments of a measurement.
    pub(super) fn found(&self) -> u32 {
        self.limit as u32
    }

    /// What the last window came to: below 1, answers take longer than when few are under way.
    pub(super) fn gradient(&self) -> f64 {
        self.gradient
    }

    /// What an answer takes when few are under way.
    pub(super) fn baseline(&self) -> Option<Duration> {
        self.baseline.and_then(|log| Duration::try_from_secs_f64(log.exp()).ok())
    }

    /// Another request is under way, with the others so many.
    pub(super) fn began(&mut self, in_flight: u32) {
        self.window.in_flight = self.window.in_flight.max(in_flight);
    }

    /// What became of a request that began at `admitted`; with the others, so many are under way.
    pub(super) fn note(&mut self, admitted: Instant, sample: Sample, in_flight: u32, now: Instant) {
        if admitted >= self.window.began {
            match sample {
                Sample::Answered(latency) => {
                    self.window.answered += 1;
                    let log = latency.as_secs_f64().max(1e-6).ln();
                    self.window.logs += log;
                    self.window.squares += log * log;
                }
                Sample::Overloaded => self.window.overloaded += 1,
                Sample::Left(after) if self.baseline().is_some_and(|baseline| after > baseline * LEFT_LATENCIES) => {
                    self.window.overloaded += 1;
                }
                Sample::Left(_) => {}
            }
        }
        if self.is_over(now.saturating_duration_since(admitted), now) {
            self.close(in_flight, now);
        }
    }

    /// Whether the window is over when a request of this age ends. One that is older than the window says nothing of it; a window without
    /// answers waits for longer than answers take, or none would ever be part of one.
    fn is_over(&self, age: Duration, now: Instant) -> bool {
        let (window, since) = (&self.window, now.saturating_duration_since(self.window.began));
        let came = window.answered + window.overloaded;
        let slow = SLOW_WINDOW.max(self.baseline().unwrap_or_default() * SLOW_WINDOW_LATENCIES);
        let enough = (2.0 * self.limit).clamp(SAMPLES.0, SAMPLES.1);
        since >= WINDOW && (f64::from(came) >= enough || (since >= slow && came >= LEAST_SAMPLES)) || since >= 4 * slow.max(age)
    }

    fn close(&mut self, in_flight: u32, now: Instant) {
        let window = std::mem::replace(&mut self.window, Window::new(now, in_flight));
        let quiet = f64::from(window.in_flight) < PROBE * self.limit;
        let came = f64::from(window.answered + window.overloaded);
        if window.answered + window.overloaded >= LEAST_SAMPLES && f64::from(window.overloaded) > OVERLOADED * came {
            self.limit = (self.limit * FALL).max(self.least);
            (self.growing, self.probing) = (0, false);
            return;
        }
        if self.probing || quiet {
            if let Some(mean) = window.mean() {
                self.measured(mean);
            }
            self.probing = false;
            self.probe_at = now + self.probe_every();
        } else if let Some(mean) = window.mean() {
            let was_least = self.limit <= self.least;
            self.follow(mean, &window);
            // An upstream that has become slower as such is not to be left with nothing to do.
            let (fallen, due) = (self.limit < FALLEN * self.measured_at, now >= self.probe_at);
            self.probing = (fallen || due) && self.limit > self.least;
            if was_least && due && !self.probing {
                // Fewer than the least are never let through: what answers take with them is all there is to measure.
                self.measured(mean);
                self.probe_at = now + self.probe_every();
            }
        }
    }

    fn probe_every(&self) -> Duration {
        PROBE_EVERY.max(self.baseline().unwrap_or_default() * PROBE_EVERY_LATENCIES)
    }

    /// The latency when it is not busy was measured again: little differences are chance, larger ones are true.
    fn measured(&mut self, mean: Mean) {
        self.measured_at = self.limit;
        let Some(baseline) = self.baseline else {
            self.baseline = Some(mean.log);
            return;
        };
        let weight = match mean.beyond(baseline, SURE) {
            less if less < -FASTER => 1.0,
            more if more > SLOWER => 0.8,
            _ => 0.3,
        };
        self.baseline = Some(baseline + weight * (mean.log - baseline));
    }

    /// Moves the limit by what a busy window took.
    fn follow(&mut self, mean: Mean, window: &Window) {
        let baseline = *self.baseline.get_or_insert(mean.log);
        if mean.beyond(baseline, SURE) < -FASTER {
            self.baseline = Some(mean.log); // although it is busy
        }
        self.gradient = (-mean.beyond(baseline, CHANCE)).exp().clamp(GRADIENTS.0, GRADIENTS.1);
        self.growing = if self.gradient >= ROOM { (self.growing + 1).min(FASTEST) } else { 0 };
        let moved = self.limit * (1.0 + STEP * (self.gradient - 1.0)) + f64::from(self.growing);
        let well_used = f64::from(window.in_flight) > WELL_USED * self.limit;
        if moved < self.limit || well_used {
            self.limit = moved.clamp(self.least, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adaptive(json: &str, now: Instant) -> Adaptive {
        Adaptive::new(&serde_json::from_str(json).unwrap(), now)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// As many requests as may are under way for some seconds, each for as long as it takes.
    fn load(adaptive: &mut Adaptive, now: &mut Instant, seconds: u64, took: Duration, sample: Sample) {
        let end = *now + Duration::from_secs(seconds);
        while *now < end {
            let (admitted, limit) = (*now, adaptive.limit());
            adaptive.began(limit);
            *now += took;
            for _ in 0..limit {
                adaptive.note(admitted, sample, limit, *now);
            }
        }
    }

    #[test]
    fn upstream_that_hangs_for_long_is_seen() {
        for took in [5, 30] {
            let mut now = Instant::now();
            let mut adaptive = adaptive(r#"{"type": "Adaptive"}"#, now);
            load(&mut adaptive, &mut now, 5, ms(10), Sample::Answered(ms(10)));
            let before = adaptive.found();
            load(&mut adaptive, &mut now, 10 * took, Duration::from_secs(took), Sample::Overloaded);
            assert!(adaptive.found() < before / 2, "{before} -> {}", adaptive.found());
        }
    }

    #[test]
    fn limit_at_its_least_grows_again_where_the_upstream_is_slower_for_good() {
        let mut now = Instant::now();
        let mut adaptive = adaptive(r#"{"type": "Adaptive", "min": 4, "initial": 4}"#, now);
        load(&mut adaptive, &mut now, 1, ms(10), Sample::Answered(ms(10)));
        adaptive.limit = 4.0;
        load(&mut adaptive, &mut now, 60, ms(100), Sample::Answered(ms(100)));
        assert!(adaptive.found() > 20, "{}", adaptive.found());
    }

    #[test]
    fn one_bad_answer_among_few_does_not_move_the_limit() {
        let mut now = Instant::now();
        let mut adaptive = adaptive(r#"{"type": "Adaptive"}"#, now);
        for minute in 0..10 {
            let sample = if minute % 2 == 0 { Sample::Overloaded } else { Sample::Answered(ms(10)) };
            adaptive.began(1);
            now += Duration::from_secs(60);
            adaptive.note(now - ms(10), sample, 0, now);
        }
        assert_eq!(adaptive.found(), 20);
    }

    #[test]
    fn client_that_leaves_late_tells_of_overload_and_one_in_a_hurry_of_nothing() {
        for (after, falls) in [(5, false), (25, false), (500, true)] {
            let mut now = Instant::now();
            let mut adaptive = adaptive(r#"{"type": "Adaptive"}"#, now);
            load(&mut adaptive, &mut now, 2, ms(10), Sample::Answered(ms(10)));
            let before = adaptive.found();
            load(&mut adaptive, &mut now, 10, ms(after), Sample::Left(ms(after)));
            assert_eq!(adaptive.found() < before, falls, "{after}: {before} -> {}", adaptive.found());
        }
    }
}
