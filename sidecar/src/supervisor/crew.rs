//! Which worker serves, which is about to, which leaves. It decides and does nothing itself; time is an argument.

use std::time::{Duration, Instant};

use super::{
    backoff::Backoff,
    message::{Draining, How, Order, Welcome},
};
use crate::drain::Phase;

/// How long a worker may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the worker of an upgrade may take; the old one serves meanwhile.
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);
/// How long a worker that retires may be silent about when it will have ended, and late after that.
const SLACK: Duration = Duration::from_secs(10);
/// How long a worker may take that was told to end at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Workers that retire at a time, at most; more would be much memory.
const MOST_RETIRED: usize = 3;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Start a worker.
    Start {
        /// Its number.
        number: u64,
        /// From the file on disk instead of the program that runs.
        from_disk: bool,
        /// What it is told first; the sockets are counted by whoever sends them.
        welcome: Welcome,
    },
    /// Say something to a worker.
    Tell(u64, Order),
    /// Kill a worker.
    Kill(u64),
    /// The program of this worker is the one that is started again from now on.
    Adopt(u64),
    /// Close what a worker opened.
    CloseSocketsOf(u64),
    /// End with this code.
    Exit(u8),
}

/// What happened, for whoever asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// Workers that ended unasked.
    pub(super) restarts: u64,
    /// Workers that took over from another.
    pub(super) upgrades: u64,
    /// Upgrades that failed.
    pub(super) refused: u64,
    /// Why the last one failed.
    pub(super) refusal: String,
    /// Version of the worker that serves.
    pub(super) version: String,
    /// Number of the worker that serves, or is about to.
    pub(super) main: Option<u64>,
    /// Whether it has said that it serves.
    pub(super) serves: bool,
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Crew {
    main: Option<Member>,
    /// The worker of an upgrade, until it serves.
    candidate: Option<Member>,
    retired: Vec<Member>,
    backoff: Backoff,
    /// When the next worker is started.
    restart: Option<Instant>,
    /// Whether any worker has ever served.
    served: bool,
    drain: Option<(Phase, Instant)>,
    ending: Option<Ending>,
    started: u64,
    tally: Tally,
}

#[derive(Debug)]
struct Member {
    number: u64,
    ready: Option<Instant>,
    /// When it is killed.
    until: Option<Instant>,
    /// Whether it has said that it retires: from then on it decides nothing, and answers nothing from its cache.
    left: bool,
}

#[derive(Debug, Default)]
struct Ending {
    code: u8,
    kill: Option<Instant>,
}

impl Crew {
    /// Starts the first worker.
    pub(super) fn start(&mut self, now: Instant) -> Vec<Action> {
        vec![self.start_main(now)]
    }

    /// What has happened so far.
    pub(super) fn tally(&self) -> Tally {
        let (main, serves) = self.main.as_ref().map_or((None, false), |main| (Some(main.number), main.ready.is_some()));
        Tally { main, serves, ..self.tally.clone() }
    }

    /// A worker serves.
    pub(super) fn ready(&mut self, number: u64, version: String, now: Instant) -> Vec<Action> {
        if let Some(main) = self.main.as_mut().filter(|main| main.number == number) {
            (main.ready, main.until, self.served) = (Some(now), None, true);
            self.tally.version = version;
            return self.lead_if_alone(now);
        }
        match self.candidate.take_if(|candidate| candidate.number == number) {
            Some(candidate) => self.promote(candidate.number, version, now),
            None => Vec::new(),
        }
    }

    /// The worker of an upgrade takes over.
    fn promote(&mut self, number: u64, version: String, now: Instant) -> Vec<Action> {
        tracing::info!(version, before = self.tally.version, "Upgraded: a new worker serves.");
        let mut actions = Vec::new();
        if let Some(mut old) = self.main.take() {
            if old.ready.is_some() {
                actions.push(Action::Tell(old.number, Order::Retire));
                old.until = Some(now + SLACK);
                self.retired.push(old);
            } else {
                actions.push(Action::Kill(old.number));
            }
        }
        actions.push(Action::Adopt(number));
        self.main = Some(Member { number, ready: Some(now), until: None, left: false });
        actions.extend(self.lead_if_alone(now));
        (self.restart, self.backoff, self.served) = (None, Backoff::default(), true);
        self.tally.upgrades += 1;
        self.tally.version = version;
        actions
    }

    /// A worker that retires says by when it will have ended.
    pub(super) fn leaving(&mut self, number: u64, within: Duration, now: Instant) -> Vec<Action> {
        match self.retired.iter_mut().find(|old| old.number == number) {
            Some(old) => {
                old.until = now.checked_add(within.saturating_add(SLACK));
                let is_news = !std::mem::replace(&mut old.left, true);
                if is_news { self.lead_if_alone(now) } else { Vec::new() }
            }
            None => Vec::new(),
        }
    }

    /// The worker that serves leads once those before it have said that they retire, or have ended: never do two.
    fn lead_if_alone(&self, now: Instant) -> Vec<Action> {
        let ready = self.main.as_ref().filter(|main| main.ready.is_some() && self.retired.iter().all(|old| old.left));
        ready.map(|main| Action::Tell(main.number, self.lead(now))).into_iter().collect()
    }

    /// The worker that serves has begun to drain, or has come further.
    pub(super) fn drains(&mut self, number: u64, phase: Phase, now: Instant) {
        if self.is_main(number) {
            let since = self.drain.map_or(now, |(_, since)| since);
            self.drain = Some((phase, since));
        }
    }

    /// Whether sockets that this worker opens are to be held.
    pub(super) fn may_hold(&self, number: u64) -> bool {
        self.main.iter().chain(&self.candidate).any(|member| member.number == number)
    }

    /// Whether what this worker closes is closed for all.
    pub(super) fn is_main(&self, number: u64) -> bool {
        self.main.as_ref().is_some_and(|main| main.number == number)
    }

    /// A worker has ended.
    pub(super) fn ended(&mut self, number: u64, how: &How, now: Instant) -> Vec<Action> {
        if let Some(main) = self.main.take_if(|main| main.number == number) {
            return self.main_ended(&main, how, now);
        }
        if self.candidate.take_if(|candidate| candidate.number == number).is_some() {
            self.refuse(format!("the new worker ended before it served ({how})"));
            return vec![Action::CloseSocketsOf(number)];
        }
        let Some(at) = self.retired.iter().position(|old| old.number == number) else { return self.exit_if_empty() };
        let old = self.retired.swap_remove(at);
        tracing::info!(%how, "The worker from before the upgrade ended.");
        let mut actions = self.exit_if_empty();
        if !old.left {
            actions.extend(self.lead_if_alone(now));
        }
        actions
    }

    fn main_ended(&mut self, main: &Member, how: &How, now: Instant) -> Vec<Action> {
        if let Some(ending) = &mut self.ending {
            ending.code = how.code();
            return self.exit_if_empty();
        }
        if !self.served {
            // A mistake in what it was told: it has said so itself, and would say so again and again.
            if !matches!(how, How::Code(_)) {
                tracing::error!(%how, "The worker ended before it served.");
            }
            return vec![Action::Exit(how.code())];
        }
        self.tally.restarts += 1;
        let wait = self.backoff.after(main.ready.map_or(Duration::ZERO, |ready| now.saturating_duration_since(ready)));
        tracing::error!(%how, restarts = self.tally.restarts, ?wait, "The worker ended unasked; it is started again.");
        self.restart = Some(now + wait);
        self.tick(now)
    }

    /// A signal says that the proxy is to end.
    pub(super) fn end(&mut self, interrupted: bool, now: Instant) -> Vec<Action> {
        self.restart = None;
        if let Some(ending) = &mut self.ending {
            ending.kill.get_or_insert(now + AT_ONCE);
            return self.members().map(|number| Action::Tell(number, Order::Now)).collect();
        }
        self.ending = Some(Ending::default());
        let mut actions: Vec<Action> = self.candidate.take().into_iter().map(|new| Action::Kill(new.number)).collect();
        actions.extend(self.main.as_ref().map(|main| Action::Tell(main.number, Order::End { interrupted })));
        actions.extend(self.exit_if_empty());
        actions
    }

    /// A signal says that the program on disk is to take over.
    pub(super) fn upgrade(&mut self, now: Instant) -> Vec<Action> {
        if self.candidate.is_some() {
            tracing::info!("An upgrade is under way already.");
            return Vec::new(); // what comes of it is the answer to both
        }
        let refusal = match &self.ending {
            Some(_) => Some("the proxy is ending"),
            None if self.retired.len() >= MOST_RETIRED => Some("workers of earlier upgrades still finish their connections"),
            None if !self.served => Some("no worker has served yet"),
            None => None,
        };
        if let Some(refusal) = refusal {
            self.refuse(refusal.to_owned());
            return Vec::new();
        }
        tracing::info!("Upgrading: a worker is started from the file on disk.");
        let number = self.next_number();
        self.candidate = Some(Member { number, ready: None, until: Some(now + UPGRADE_LIMIT), left: false });
        vec![Action::Start { number, from_disk: true, welcome: self.welcome(now) }]
    }

    /// Notes an upgrade that did not come about.
    pub(super) fn refuse(&mut self, why: String) {
        tracing::error!(why, "There was no upgrade; the worker goes on.");
        self.tally.refused += 1;
        self.tally.refusal = why;
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let mut actions = Vec::new();
        if due(&mut self.restart) {
            actions.push(self.start_main(now));
        }
        if let Some(new) = self.candidate.take_if(|new| new.until.is_some_and(|until| until <= now)) {
            self.refuse(format!("the new worker did not serve within {} s", UPGRADE_LIMIT.as_secs()));
            actions.extend([Action::Kill(new.number), Action::CloseSocketsOf(new.number)]);
        }
        for member in self.main.iter_mut().chain(&mut self.retired).filter_map(|member| due(&mut member.until).then_some(member))
        {
            tracing::error!(ready = member.ready.is_some(), "A worker took too long and is killed.");
            actions.push(Action::Kill(member.number));
        }
        if self.ending.as_mut().is_some_and(|ending| due(&mut ending.kill)) {
            actions.extend(self.members().map(Action::Kill));
        }
        actions
    }

    /// When the next thing is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let members = self.main.iter().chain(&self.candidate).chain(&self.retired).filter_map(|member| member.until);
        members.chain(self.restart).chain(self.ending.as_ref().and_then(|ending| ending.kill)).min()
    }

    fn start_main(&mut self, now: Instant) -> Action {
        let number = self.next_number();
        self.main = Some(Member { number, ready: None, until: Some(now + START_LIMIT), left: false });
        Action::Start { number, from_disk: false, welcome: self.welcome(now) }
    }

    fn next_number(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    fn welcome(&self, now: Instant) -> Welcome {
        let drain = self.draining(now);
        let beside = Some(self.candidate.is_some() || self.retired.iter().any(|old| !old.left));
        Welcome { again: self.started > 1, restarts: self.tally.restarts, drain, beside, ..Welcome::default() }
    }

    fn lead(&self, now: Instant) -> Order {
        Order::Lead { drain: self.draining(now) }
    }

    fn draining(&self, now: Instant) -> Option<Draining> {
        self.drain.map(|(phase, since)| Draining { phase, age: now.saturating_duration_since(since) })
    }

    fn members(&self) -> impl Iterator<Item = u64> {
        self.main.iter().chain(&self.retired).map(|member| member.number)
    }

    fn exit_if_empty(&self) -> Vec<Action> {
        let ending = self.ending.as_ref().filter(|_| self.main.is_none() && self.retired.is_empty());
        ending.map(|ending| Action::Exit(ending.code)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
