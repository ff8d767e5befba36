//! A throttle before a server that can do a hundred things at a time, in virtual time: what `docs/throttling.md` promises. With
//! `--nocapture` the tests print the figures.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use crds::policy::{Throttle, throttle::Concurrency};

use super::{
    adaptive::Sample,
    queue::{Place, Settings},
    state::{Asks, Entered, State},
};

/// What the server does at a time, and how long it takes for each, on average.
const CAPACITY: usize = 100;
const SERVICE: Duration = Duration::from_millis(100);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How late a timer may tell that a request waits no longer: on a busy thread its turn may come first.
const TIMERS_LAG: Duration = Duration::from_millis(50);

/// Sends requests at random times.
#[derive(Clone, Copy)]
struct Client {
    /// Requests a second, by the second.
    rate: fn(f64) -> f64,
}

/// How the server is.
#[derive(Clone, Copy)]
struct Server {
    /// How much longer it takes than usual, by the second.
    slower: fn(f64) -> f64,
    /// Whether the time that it takes is random (exponential), and not about the same each time.
    random: bool,
}

const STEADY: Server = Server { slower: |_| 1.0, random: false };

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    /// The client of this number sends a request.
    Sends(usize),
    /// The server has answered this request.
    Answers(usize),
    /// This request does not wait any longer.
    Expires(usize),
    /// A tenth of a second has passed.
    Tick,
}

struct Request {
    client: usize,
    sent: Instant,
    admitted: Option<Instant>,
    place: Option<Place>,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// By second: the limit at its end, answers in time, requests.
    limits: Vec<u32>,
    good: Vec<u32>,
    sent: Vec<u32>,
    shed: u32,
    /// Answers that came after the client had left.
    late: u32,
    /// Requests that reached the server after their deadline.
    too_late: u32,
    /// Seconds that answers took, by client.
    latencies: Vec<Vec<f64>>,
}

struct World {
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    numbers: u64,
    requests: Vec<Request>,
    state: State<usize>,
    max_wait: Duration,
    server: Server,
    /// What the server does, and what waits in it.
    busy: usize,
    waiting: std::collections::VecDeque<usize>,
    random: fastrand::Rng,
    clients: Vec<Client>,
    outcome: Outcome,
}

/// Plays some seconds.
fn play(throttle: &str, clients: &[Client], server: Server, seconds: u64) -> Outcome {
    let spec: Throttle = serde_json::from_str(throttle).unwrap();
    let start = Instant::now();
    let queue = spec.queue.clone().unwrap_or_default();
    let mut world = World {
        start,
        now: start,
        events: BinaryHeap::new(),
        numbers: 0,
        requests: Vec::new(),
        state: State::new(spec.concurrency.as_ref(), Settings::of(&queue), start),
        max_wait: queue.max_wait.0,
        server,
        busy: 0,
        waiting: std::collections::VecDeque::new(),
        random: fastrand::Rng::with_seed(7),
        clients: clients.to_vec(),
        outcome: Outcome {
            latencies: vec![Vec::new(); clients.len()],
            good: vec![0; seconds as usize + 1],
            ..Outcome::default()
        },
    };
    (0..clients.len()).for_each(|client| world.plan_next(client));
    world.at(start + Duration::from_millis(100), Event::Tick);
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        if at > start + Duration::from_secs(seconds) {
            break;
        }
        world.now = at;
        world.happens(event);
    }
    world.outcome
}

impl World {
    fn at(&mut self, when: Instant, event: Event) {
        self.numbers += 1;
        self.events.push(Reverse((when, self.numbers, event)));
    }

    fn second(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }

    fn plan_next(&mut self, client: usize) {
        let rate = (self.clients[client].rate)(self.second()).max(0.1);
        let pause = -(1.0 - self.random.f64()).ln() / rate;
        self.at(self.now + Duration::from_secs_f64(pause), Event::Sends(client));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Sends(client) => {
                self.plan_next(client);
                self.sends(client);
            }
            Event::Answers(request) => self.answers(request),
            Event::Expires(request) => {
                if let Some(place) = self.requests[request].place.take()
                    && self.state.give_up(place)
                {
                    self.outcome.shed += 1;
                }
            }
            Event::Tick => {
                let limit = self.state.found().unwrap_or(0);
                *counted(self.second(), &mut self.outcome.limits) = limit;
                self.at(self.now + Duration::from_millis(100), Event::Tick);
            }
        }
        while let Some(next) = self.state.next(self.now) {
            self.admit(next);
        }
    }

    fn sends(&mut self, client: usize) {
        let (now, id) = (self.now, self.requests.len());
        *counted(self.second(), &mut self.outcome.sent) += 1;
        let expires = now + self.max_wait.min(PATIENCE);
        let hash = (client as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let entered = self.state.enter(Asks { level: 0, hash, expires }, now, || id);
        let mut request = Request { client, sent: now, admitted: None, place: None };
        match entered {
            Entered::Admitted => {
                self.requests.push(request);
                self.admit(id);
            }
            Entered::Waits(place, gone) => {
                request.place = Some(place);
                self.requests.push(request);
                self.at(expires + TIMERS_LAG, Event::Expires(id));
                if let Some(gone) = gone {
                    self.requests[gone].place = None;
                    self.outcome.shed += 1;
                }
            }
            Entered::Full => {
                self.requests.push(request);
                self.outcome.shed += 1;
            }
        }
    }

    fn admit(&mut self, request: usize) {
        let now = self.now;
        let one = &mut self.requests[request];
        (one.admitted, one.place) = (Some(now), None);
        self.outcome.too_late += u32::from(now >= one.sent + PATIENCE);
        if self.busy < CAPACITY {
            self.serve(request);
        } else {
            self.waiting.push_back(request);
        }
    }

    fn serve(&mut self, request: usize) {
        self.busy += 1;
        let factor = if self.server.random { -(1.0 - self.random.f64()).ln() } else { 0.8 + 0.4 * self.random.f64() };
        let time = SERVICE.mul_f64(factor * (self.server.slower)(self.second()));
        self.at(self.now + time, Event::Answers(request));
    }

    fn answers(&mut self, request: usize) {
        self.busy -= 1;
        if let Some(next) = self.waiting.pop_front() {
            self.serve(next);
        }
        let Request { client, sent, admitted, .. } = self.requests[request];
        let admitted = admitted.expect("the server has it");
        let took = self.now - sent;
        self.state.note(admitted, Sample::Answered(self.now - admitted), self.now);
        self.state.leave();
        if took <= PATIENCE {
            *counted(self.second(), &mut self.outcome.good) += 1;
            self.outcome.latencies[client].push(took.as_secs_f64());
        } else {
            self.outcome.late += 1;
        }
    }
}

/// The count of a second.
fn counted(second: f64, series: &mut Vec<u32>) -> &mut u32 {
    let at = second as usize;
    if series.len() <= at {
        series.resize(at + 1, 0);
    }
    &mut series[at]
}

impl Outcome {
    fn goodput(&self, seconds: std::ops::Range<usize>) -> f64 {
        let length = seconds.len() as f64;
        self.good[seconds].iter().map(|good| f64::from(*good)).sum::<f64>() / length
    }

    fn limits(&self, seconds: std::ops::Range<usize>) -> (u32, f64, u32) {
        let limits = &self.limits[seconds];
        let mean = limits.iter().map(|limit| f64::from(*limit)).sum::<f64>() / limits.len() as f64;
        (*limits.iter().min().unwrap(), mean, *limits.iter().max().unwrap())
    }

    fn p99(&self, clients: std::ops::Range<usize>) -> f64 {
        let mut all: Vec<f64> = self.latencies[clients].iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        all[all.len() * 99 / 100]
    }
}

const ADAPTIVE: &str = r#"{"concurrency": {"type": "Adaptive"}, "queue": {"maxLength": 100, "maxWait": "300ms"}}"#;
const THREE_TIMES: [Client; 1] = [Client { rate: |_| 3000.0 }];

#[test]
fn adaptive_limit_finds_the_capacity_and_keeps_the_goodput_at_three_times_the_load() {
    for server in [STEADY, Server { random: true, ..STEADY }] {
        let outcome = play(ADAPTIVE, &THREE_TIMES, server, 120);
        let (least, mean, most) = outcome.limits(30..120);
        let goodput = outcome.goodput(30..120);
        println!("3 times the load, random {}: limit {least}..{most}, mean {mean:.0}; goodput {goodput:.0}/s", server.random);
        println!("{:?}", &outcome.limits);
        assert!((90.0..=110.0).contains(&mean), "{mean}");
        assert!(goodput >= 900.0, "{goodput}");
        assert_eq!(outcome.too_late, 0, "no request reaches the server after its deadline");
        assert!(server.random || outcome.late == 0, "{}", outcome.late);
    }
}

#[test]
fn no_request_reaches_the_server_after_its_deadline() {
    for order in ["FIFO", "AdaptiveLIFO"] {
        let throttle = format!(
            r#"{{"concurrency": {{"type": "Fixed", "limit": 100}}, "queue": {{"maxLength": 3000, "maxWait": "10s", "order": "{order}"}}}}"#
        );
        let server = Server { slower: |second| if (10.0..20.0).contains(&second) { 5.0 } else { 1.0 }, random: true };
        let outcome = play(&throttle, &THREE_TIMES, server, 40);
        let goodput = outcome.goodput(30..40);
        println!(
            "a long queue, {order}: {} of {} late; goodput {goodput:.0}/s",
            outcome.too_late,
            outcome.sent.iter().sum::<u32>()
        );
        assert!(outcome.too_late == 0 && outcome.shed > 1000, "{} {}", outcome.too_late, outcome.shed);
        assert_eq!(goodput > 900.0, order == "AdaptiveLIFO", "{goodput}");
    }
}

#[test]
fn without_a_limit_the_same_load_leaves_no_goodput() {
    let outcome = play("{}", &THREE_TIMES, STEADY, 30);
    let goodput = outcome.goodput(10..30);
    println!("3 times the load without a throttle: goodput {goodput:.0}/s");
    assert!(goodput < 100.0, "or the other tests show nothing: {goodput}");
}

#[test]
fn adaptive_limit_recovers_after_a_brown_out() {
    let server = Server { slower: |second| if (40.0..60.0).contains(&second) { 5.0 } else { 1.0 }, random: false };
    let outcome = play(ADAPTIVE, &THREE_TIMES, server, 120);
    let back = (60..120).find(|second| outcome.good[*second] >= 900).unwrap() - 60;
    let (least, mean, most) = outcome.limits(90..120);
    let meanwhile = outcome.goodput(50..60);
    println!("brown-out of 20 s to a fifth: goodput {meanwhile:.0}/s, whole {back} s after it, then limit {least}..{most}");
    assert!(meanwhile >= 40.0, "it is not left with nothing to do: {meanwhile}");
    println!("{:?}", &outcome.limits);
    assert!(back <= 10, "{back}");
    assert!((90.0..=110.0).contains(&mean) && outcome.goodput(90..120) >= 900.0, "{mean} {}", outcome.goodput(90..120));
}

#[test]
fn baseline_that_was_taken_overloaded_comes_down() {
    let throttle = ADAPTIVE.replace(r#""Adaptive""#, r#""Adaptive", "initial": 400, "max": 400"#);
    let outcome = play(&throttle, &THREE_TIMES, STEADY, 120);
    let (_, mean, most) = outcome.limits(90..120);
    println!("begun at 4 times the capacity: limit {mean:.0} after 90 s");
    println!("{:?}", &outcome.limits);
    assert!((90.0..=110.0).contains(&mean) && most < 130, "{mean} {most}");
}

#[test]
fn mild_overload_does_not_let_the_limit_grow_without_bound() {
    let outcome = play(ADAPTIVE, &[Client { rate: |_| 1050.0 }], STEADY, 600);
    let (least, mean, most) = outcome.limits(60..600);
    println!("1.05 times the load for 10 min: limit {least}..{most}, mean {mean:.0}; goodput {:.0}/s", outcome.goodput(60..600));
    assert!(most < 150 && outcome.goodput(60..600) >= 900.0, "{most}");
}

#[test]
fn nothing_is_shed_when_there_is_little_to_do() {
    let outcome = play(ADAPTIVE, &[Client { rate: |_| 100.0 }], STEADY, 120);
    println!("a tenth of the load: {} of {} shed", outcome.shed, outcome.sent.iter().sum::<u32>());
    assert_eq!(outcome.shed, 0);
    let busier = play(ADAPTIVE, &[Client { rate: |second| if second < 60.0 { 100.0 } else { 700.0 } }], STEADY, 120);
    println!("then 7 tenths: {} of {} shed", busier.shed, busier.sent.iter().sum::<u32>());
    assert!(busier.shed * 100 <= busier.sent.iter().sum::<u32>(), "{}", busier.shed);
}

#[test]
fn one_client_at_fifty_times_the_load_hardly_moves_the_others() {
    let fair = r#"{"concurrency": {"type": "Fixed", "limit": 100},
        "queue": {"maxLength": 400, "maxWait": "1s", "fairness": {"key": [{"source": "ClientIP"}], "queues": 128, "handSize": 6}}}"#;
    let one_queue = r#"{"concurrency": {"type": "Fixed", "limit": 100}, "queue": {"maxLength": 400, "maxWait": "1s"}}"#;
    let others = [Client { rate: |_| 40.0 }; 10];
    let heavy: Vec<Client> = [Client { rate: |_| 2000.0 }].into_iter().chain(others).collect();
    let server = Server { random: true, ..STEADY };
    let alone = play(fair, &others, server, 60).p99(0..10);
    let beside = play(fair, &heavy, server, 60).p99(1..11);
    let unfair = play(one_queue, &heavy, server, 60).p99(1..11);
    let moved = beside / alone - 1.0;
    println!("p99 of ten clients: alone {alone:.3} s, beside one with 50 times theirs {beside:.3} s, in one queue {unfair:.3} s");
    assert!(moved < 0.2, "{moved}");
    assert!(unfair > 1.5 * alone, "or the test shows nothing: {unfair}");
}

#[test]
fn concurrency_settings_are_read_as_documents_have_them() {
    let settings: Concurrency = serde_json::from_str(r#"{"type": "Adaptive", "max": 10}"#).unwrap();
    assert_eq!(settings.bounds(), (4, 10, 10));
}
