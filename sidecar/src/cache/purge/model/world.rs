//! Pods, Redis, origin and network in virtual time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use fastrand::Rng;

use super::{
    super::{
        completion::{Purge, Step},
        log::{Census, Entry, MemberId, Page},
        member::Beat,
    },
    checker::Checker,
    plan::{Broken, Fault, Instant, LAG, MILLI, Plan, SECOND},
    pod::{Objects, Pod},
    redis::Redis,
};

/// After which an answer isn't waited for.
const GIVE_UP: u64 = 900 * MILLI;

/// What a message asks of Redis.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Beat(MemberId, Beat),
    Append(Entry, bool),
    Look,
    Forget(Vec<(MemberId, u64)>),
    Leave(MemberId),
}

/// And what it answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Page(Page),
    Census(Census),
    Done,
}

/// A message and who waits for its answer.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub pod: usize,
    pub life: u64,
    /// The purge that it is of, or the beat.
    pub purge: Option<u64>,
    pub token: u64,
    pub call: Call,
    pub copies: u32,
}

#[derive(Debug)]
enum Event {
    BeatDue {
        pod: usize,
        due: u64,
    },
    News {
        pod: usize,
        life: u64,
    },
    PurgeDue {
        pod: usize,
        life: u64,
        purge: u64,
    },
    Sent {
        server: usize,
        message: Message,
    },
    /// A write is on the replica, or should be.
    Copied {
        server: usize,
        link: u64,
        message: Message,
        answer: Answer,
    },
    Answered {
        message: Message,
        answer: Answer,
        replicas: u32,
    },
    GivenUp {
        pod: usize,
        life: u64,
        purge: Option<u64>,
        token: u64,
    },
    Lookup {
        pod: usize,
    },
    Origin {
        pod: usize,
        life: u64,
        fetch: u64,
    },
    Fetched {
        pod: usize,
        life: u64,
        fetch: u64,
    },
    Publish,
    Fault(usize),
    /// The replica hears of everything again.
    Linked {
        server: usize,
    },
    Calm,
}

#[derive(Debug)]
pub(super) struct World {
    pub rng: Rng,
    pub plan: Plan,
    pub now: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    sequence: u64,
    pub redis: Redis,
    pub pods: Vec<Pod>,
    pub shared: VecDeque<(Instant, Objects)>,
    pub checker: Checker,
    pub next: u64,
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::random(&mut rng, broken);
        let redis = Redis::new(&mut rng, &plan);
        let mut world = Self {
            pods: (0..plan.pods).map(|pod| Pod::new(pod, &mut rng, &plan)).collect(),
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            events: std::collections::HashMap::new(),
            sequence: 0,
            redis,
            shared: VecDeque::from([(0, Objects::new())]),
            checker: Checker::default(),
            next: 0,
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for pod in 0..self.plan.pods {
            let after = self.rng.u64(0..SECOND);
            self.rest(pod, after);
            self.after(after, Event::Lookup { pod });
        }
        for fault in 0..self.plan.faults.len() {
            self.after(self.plan.faults[fault].0, Event::Fault(fault));
        }
        self.after(SECOND, Event::Publish);
        self.after(self.plan.calm, Event::Calm);
    }

    /// Runs to the end, or to the first answer that breaks the promise.
    pub(super) fn run(mut self) -> Checker {
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            if at > self.plan.end || self.checker.violation.is_some() {
                break;
            }
            self.now = at;
            if let Some(event) = self.events.remove(&sequence) {
                self.happen(event);
            }
        }
        self.checker.finish(&self.pods);
        self.checker
    }

    fn happen(&mut self, event: Event) {
        if std::env::var_os("TRACE").is_some()
            && !matches!(event, Event::Lookup { .. } | Event::Origin { .. } | Event::Fetched { .. })
        {
            println!("{} {:?}", self.now, event);
        }
        match event {
            Event::BeatDue { pod, due } if self.pods[pod].due == due => self.beat(pod),
            Event::News { pod, life } if self.pods[pod].life == life => match self.pods[pod].beating {
                Some(_) => self.pods[pod].news = true,
                None => self.beat(pod),
            },
            Event::PurgeDue { pod, life, purge } if self.pods[pod].life == life => self.purge_step(pod, purge),
            Event::Sent { server, message } => self.arrive(server, message),
            Event::Copied { server, link, message, answer } if self.redis.servers[server].alive => {
                let replicas = u32::from(self.redis.servers[server].link == link);
                self.answer(message, answer, replicas);
            }
            Event::Answered { message, answer, replicas } if self.pods[message.pod].life == message.life => {
                self.answered(&message, answer, replicas);
            }
            Event::GivenUp { pod, life, purge, token } if self.pods[pod].life == life => self.given_up(pod, purge, token),
            Event::Lookup { pod } => {
                self.lookup(pod);
                let after = self.rng.u64(5 * MILLI..120 * MILLI);
                self.after(after, Event::Lookup { pod });
            }
            Event::Origin { pod, life, fetch } if self.pods[pod].life == life => self.pods[pod].read_origin(fetch, &self.checker),
            Event::Fetched { pod, life, fetch } if self.pods[pod].life == life => self.fetched(pod, fetch),
            Event::Publish => self.publish(),
            Event::Fault(fault) => self.fault(self.plan.faults[fault].1),
            Event::Linked { server } => self.redis.link(server, self.now),
            Event::Calm => self.calm(),
            _ => {}
        }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn local(&self, pod: usize) -> super::super::Uptime {
        self.pods[pod].clock.local(self.now)
    }

    // Beats.

    fn beat(&mut self, pod: usize) {
        let now = self.local(pod);
        let life = self.pods[pod].life;
        let beat = self.pods[pod].member.beat(now);
        self.next += 1;
        (self.pods[pod].beating, self.pods[pod].due, self.pods[pod].news) = (Some(self.next), 0, false);
        let call = Call::Beat(self.pods[pod].id.clone(), beat);
        let message = Message { pod, life, purge: None, token: self.next, call, copies: self.plan.rules.replicas };
        self.send(message);
    }

    fn rest(&mut self, pod: usize, after: u64) {
        self.next += 1;
        self.pods[pod].due = self.next;
        self.after(after, Event::BeatDue { pod, due: self.next });
    }

    // Purges.

    fn purge_step(&mut self, pod: usize, purge: u64) {
        let (life, now) = (self.pods[pod].life, self.local(pod));
        let Some(task) = self.pods[pod].purges.get_mut(&purge) else { return };
        let (call, copies) = match task.purge.step() {
            Step::Append { again, copies } => (Call::Append(task.purge.entry().clone(), again), copies),
            Step::Look { at, .. } if at > now => {
                let after = self.pods[pod].clock.until(at, self.now);
                self.after(after, Event::PurgeDue { pod, life, purge });
                return;
            }
            Step::Look { copies, .. } => (Call::Look, copies),
            Step::Done => return self.purged(pod, purge),
        };
        self.next += 1;
        (task.token, task.sent) = (self.next, now);
        self.send(Message { pod, life, purge: Some(purge), token: self.next, call, copies });
    }

    fn purged(&mut self, pod: usize, purge: u64) {
        let (life, now) = (self.pods[pod].life, self.local(pod));
        let Some(task) = self.pods[pod].purges.remove(&purge) else { return };
        if std::env::var_os("TRACE").is_some() {
            println!("{} COMPLETE {:?}", self.now, task.purge.report(now));
        }
        self.checker.complete(&task, &task.purge.report(now));
        let silent: Vec<_> = task.purge.silent().map(|(id, beats)| (id.clone(), beats)).collect();
        if !silent.is_empty() {
            self.send(Message { pod, life, purge: None, token: 0, call: Call::Forget(silent), copies: 0 });
        }
    }

    fn publish(&mut self) {
        let calm = self.now >= self.plan.calm;
        let pod = self.rng.usize(0..self.plan.pods);
        self.next += 1;
        let (what, strength) = self.checker.publish(&mut self.rng);
        let entry = Entry { id: super::super::log::PurgeId(self.next.into()), what, strength };
        let mut rules = self.plan.rules;
        if self.plan.broken == Some(Broken::ImpatientPurger) {
            rules.lag /= 2;
        }
        let purge = Purge::new(rules, entry, self.local(pod));
        let task = self.checker.task(purge);
        self.pods[pod].purges.insert(self.next, task);
        self.purge_step(pod, self.next);
        if !calm {
            let after = self.rng.u64(50 * MILLI..2 * SECOND);
            self.after(after, Event::Publish);
        }
    }

    // The network.

    fn send(&mut self, message: Message) {
        let Message { pod, life, purge, token, .. } = message;
        if token != 0 {
            self.after(GIVE_UP, Event::GivenUp { pod, life, purge, token });
        }
        let delay = self.delay(pod);
        if let Some(delay) = delay {
            let server = self.redis.route(pod, self.now);
            self.after(delay, Event::Sent { server, message });
        }
    }

    /// How long a message takes now; None if it is lost.
    fn delay(&mut self, pod: usize) -> Option<u64> {
        if self.pods[pod].cut.contains(&self.now) {
            return None;
        }
        let usual = self.rng.u64(200..2 * MILLI);
        Some(if self.now < self.pods[pod].slow_until { self.rng.u64(10 * MILLI..800 * MILLI) } else { usual })
    }

    fn arrive(&mut self, server: usize, message: Message) {
        let fresh = self.rng.u64(..);
        let pick = self.rng.usize(0..6);
        let Some(answer) = self.redis.call(server, &message.call, fresh, pick, self.now) else { return };
        self.redis.write(server, self.now, &mut self.rng);
        if matches!(message.call, Call::Append(..)) {
            self.news(server);
        }
        let at = self.redis.servers[server].copied(self.now);
        match at {
            Some(at) if message.copies > 0 && at - self.now < 100 * MILLI => {
                let link = self.redis.servers[server].link;
                self.after(at - self.now, Event::Copied { server, link, message, answer });
            }
            _ => self.answer(message, answer, 0),
        }
    }

    fn news(&mut self, server: usize) {
        for pod in 0..self.plan.pods {
            if self.redis.route(pod, self.now) == server
                && self.rng.u8(0..10) > 0
                && let Some(delay) = self.delay(pod)
            {
                let life = self.pods[pod].life;
                self.after(delay, Event::News { pod, life });
            }
        }
    }

    fn answer(&mut self, message: Message, answer: Answer, replicas: u32) {
        if let Some(delay) = self.delay(message.pod) {
            self.after(delay, Event::Answered { message, answer, replicas });
        }
    }

    fn given_up(&mut self, pod: usize, purge: Option<u64>, token: u64) {
        match purge {
            None if self.pods[pod].beating == Some(token) => {
                self.pods[pod].beating = None;
                self.rest(pod, 0);
            }
            Some(purge) if self.pods[pod].purges.get(&purge).is_some_and(|task| task.token == token) => {
                self.purge_step(pod, purge)
            }
            _ => {}
        }
    }

    fn answered(&mut self, message: &Message, answer: Answer, replicas: u32) {
        let pod = message.pod;
        match (&message.call, answer, message.purge) {
            (Call::Beat(_, beat), Answer::Page(page), _) if self.pods[pod].beating == Some(message.token) => {
                self.pods[pod].beating = None;
                let now = self.local(pod);
                let from_answer = self.plan.broken == Some(Broken::LeaseFromAnswer);
                if let Some(soon) = self.pods[pod].answered(*beat, &page, replicas, now, from_answer) {
                    let soon = soon || self.pods[pod].news;
                    self.rest(pod, if soon { 0 } else { LAG / 4 });
                }
            }
            (Call::Append(..) | Call::Look, Answer::Census(census), Some(purge)) => {
                self.counted(pod, purge, message, census, replicas)
            }
            _ => {}
        }
    }

    fn counted(&mut self, pod: usize, purge: u64, message: &Message, mut census: Census, replicas: u32) {
        let now = self.local(pod);
        let broken = self.plan.broken;
        if broken == Some(Broken::SilentIgnored) {
            let reached: Vec<_> = self.pods.iter().filter(|pod| !pod.cut.contains(&self.now)).map(|pod| pod.id.clone()).collect();
            census.members.retain(|member| reached.contains(&member.id));
        }
        let mut term = self.pods[pod].member.term();
        if broken == Some(Broken::TermIgnored) {
            term = census.term.map(|term| (term, super::super::Uptime::ZERO));
        }
        let Some(task) = self.pods[pod].purges.get_mut(&purge).filter(|task| task.token == message.token) else { return };
        if matches!(message.call, Call::Append(..)) {
            task.appended = Some((census.generation, census.at));
            task.purge.appended(&census, replicas, term, now);
        } else {
            if let (Some(Broken::LossIgnored), Some((generation, at))) = (broken, task.appended) {
                (census.generation, census.at) = (generation, at);
            }
            task.looks += 1;
            task.purge.looked(&census, replicas, task.sent, now);
        }
        self.purge_step(pod, purge);
    }

    // Requests.

    fn lookup(&mut self, pod: usize) {
        let object = self.checker.any(&mut self.rng);
        let now = self.local(pod);
        let shared = &self.shared.back().expect("there is always one").1;
        let any = self.plan.broken == Some(Broken::AnyFillJoined);
        let fetch = self.pods[pod].lookup(object, now, shared, any, &mut self.checker);
        if let Some(fetch) = fetch {
            let life = self.pods[pod].life;
            let (origin, done) = (self.rng.u64(0..200 * MILLI), self.rng.u64(0..1500 * MILLI));
            self.after(origin, Event::Origin { pod, life, fetch });
            self.after(origin + done, Event::Fetched { pod, life, fetch });
        }
    }

    fn fetched(&mut self, pod: usize, fetch: u64) {
        let late = self.plan.broken == Some(Broken::StampAtEnd);
        let Some((object, version, position)) = self.pods[pod].fetched(fetch, late, &mut self.checker) else { return };
        let Some(position) = position else { return };
        let mut objects = self.shared.back().expect("there is always one").1.clone();
        objects.insert(object, (version, position));
        self.shared.push_back((self.now, objects));
        if self.shared.len() > 20 {
            self.shared.pop_front();
        }
    }

    // Faults.

    fn fault(&mut self, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Partition { pod, until } => self.pods[pod].cut = now..now + until,
            Fault::Stall { pod, until } => {
                let from = now + self.rng.u64(100 * MILLI..SECOND);
                (self.pods[pod].slow_until, self.pods[pod].cut) = (from, from..from + until);
            }
            Fault::Slow { pod, until } => self.pods[pod].slow_until = now + until,
            Fault::RestartPod { pod } => self.replace(pod),
            Fault::Leave { pod } => self.leave(pod),
            Fault::OldObjects => self.shared.truncate(1),
            Fault::Unreplicated { until } => {
                let server = self.redis.primary;
                self.redis.unlink(server, now);
                self.after(until, Event::Linked { server });
            }
            Fault::Failover { down, two } => {
                self.redis.fail_over(now, down, two, &mut self.rng, &self.plan);
                if self.rng.bool() {
                    self.shared.truncate(self.shared.len().saturating_sub(self.rng.usize(0..3)).max(1));
                }
                let (server, after) = (self.redis.primary, down + self.rng.u64(10 * MILLI..2 * SECOND));
                self.after(after, Event::Linked { server });
            }
            Fault::Restart { back, down } => {
                self.redis.restart(now, back, down, &mut self.rng, &self.plan);
                let server = self.redis.primary;
                self.after(down + 50 * MILLI, Event::Linked { server });
            }
            _ => self.redis.harm(fault),
        }
        self.checker.faults += 1;
    }

    fn replace(&mut self, pod: usize) {
        let cut = self.pods[pod].cut.clone();
        let purges = std::mem::take(&mut self.pods[pod].purges);
        self.checker.abandoned += purges.len();
        self.pods[pod] = Pod::new(pod, &mut self.rng, &self.plan);
        self.pods[pod].cut = cut;
        let after = self.rng.u64(0..500 * MILLI);
        self.rest(pod, after);
    }

    fn leave(&mut self, pod: usize) {
        self.pods[pod].member.leave();
        let (life, id) = (self.pods[pod].life, self.pods[pod].id.clone());
        self.send(Message { pod, life, purge: None, token: 0, call: Call::Leave(id), copies: 0 });
        self.replace(pod);
    }

    fn calm(&mut self) {
        for pod in &mut self.pods {
            (pod.cut, pod.slow_until) = (0..0, 0);
        }
        self.redis.calm();
        let server = self.redis.primary;
        self.redis.link(server, self.now);
        self.after(2 * LAG, Event::Publish);
    }
}
