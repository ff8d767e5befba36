//! One purge, from the side of who asked for it: appended, on so many replicas, applied by whom, complete or not.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    time::Duration,
};

use super::{
    Position, Rules, Uptime,
    log::{Census, Entry, MemberId, Present, PurgeId, Term},
};

/// Between two looks at the members, at first.
const FIRST_LOOK: Duration = Duration::from_millis(4);
/// And at most.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// A purge on its way.
#[derive(Debug)]
pub(crate) struct Purge {
    rules: Rules,
    entry: Entry,
    asked: Uptime,
    /// Whether it was sent before, so that the log may hold it already.
    sent: bool,
    appended: Option<Appended>,
    /// Who was in the list at its place.
    members: BTreeMap<MemberId, State>,
    complete: bool,
}

/// The purge in a generation.
#[derive(Debug)]
struct Appended {
    position: Position,
    term: Option<Term>,
    /// The server's time.
    at: u64,
    /// From when on the members known are all that matter.
    trusted: Uptime,
    /// From when on no lease is left of those who may not know of it.
    settled: Uptime,
    connected: u32,
    replicas: u32,
    looked: bool,
    next_look: Uptime,
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Its beats when the purge was appended.
    beats: u64,
    /// After how long it had acknowledged.
    lag: Option<Duration>,
}

/// What a purge needs next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Append it, and wait for it to be on so many replicas; `again` if the log may have it already.
    Append { again: bool, copies: u32 },
    /// Look at the members at this time, and wait for all so far to be on so many replicas.
    Look { at: Uptime, copies: u32 },
    /// It is complete.
    Done,
}

/// What became of a purge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Report {
    pub id: PurgeId,
    /// None if the log hasn't answered.
    pub position: Option<Position>,
    /// Whether no member answers from what was purged any more: with `Serve`, none that isn't cut off.
    pub complete: bool,
    /// Who has applied it, and how long after the log had it.
    pub acknowledged: Vec<(MemberId, Duration)>,
    /// Who hasn't, but has no lease any more.
    pub ran_out: Vec<MemberId>,
    /// Who hasn't, and may have one.
    pub pending: Vec<MemberId>,
    /// How long it takes at most until no lease is left, if the log stays where it is.
    pub settles_in: Duration,
    /// Replicas that have it.
    pub replicas: u32,
    /// Replicas that there are.
    pub connected: u32,
    /// Since it was asked for.
    pub took: Duration,
}

impl Purge {
    /// A purge that was asked for just now.
    pub(crate) fn new(rules: Rules, entry: Entry, now: Uptime) -> Self {
        Self { rules, entry, asked: now, sent: false, appended: None, members: BTreeMap::new(), complete: false }
    }

    /// What is appended.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether a log has it, as far as is known.
    pub(crate) fn is_appended(&self) -> bool {
        self.appended.is_some()
    }

    /// Since it was asked for.
    pub(crate) fn age(&self, now: Uptime) -> Duration {
        now.saturating_sub(self.asked)
    }

    /// What to do now. What an earlier step asked for and didn't get is asked for again.
    pub(crate) fn step(&mut self) -> Step {
        match &self.appended {
            _ if self.complete => Step::Done,
            None => Step::Append { again: mem::replace(&mut self.sent, true), copies: self.rules.replicas },
            Some(appended) => Step::Look { at: appended.next_look, copies: appended.copies(self.rules) },
        }
    }

    /// It was appended and is on so many replicas. `term` is what the purger's own beats said of the list of members.
    pub(crate) fn appended(&mut self, census: &Census, replicas: u32, term: Option<(Term, Uptime)>, now: Uptime) {
        let settled = now + self.rules.outlived();
        // Who has a lease and isn't in the list got it before the list's term.
        let trusted = match term {
            Some((term, since)) if census.term == Some(term) => since + self.rules.outlived(),
            _ => settled,
        };
        let members = census.members.iter();
        self.members = members.map(|present| (present.id.clone(), State { beats: present.beats, lag: None })).collect();
        self.appended = Some(Appended {
            position: Position { generation: census.generation, at: census.at },
            term: census.term,
            at: census.now,
            trusted,
            settled,
            connected: census.connected,
            replicas,
            looked: false,
            next_look: now + FIRST_LOOK,
            pause: FIRST_LOOK,
        });
    }

    /// The members, asked for at `sent`. All until then is on so many replicas.
    pub(crate) fn looked(&mut self, census: &Census, replicas: u32, sent: Uptime, now: Uptime) {
        let Some(appended) = &mut self.appended else { return };
        if census.generation != appended.position.generation || census.at < appended.position.at {
            // The log may have lost it: another place, and all waiting from the start.
            self.appended = None;
            return;
        }
        let limit = now.saturating_sub(self.asked);
        appended.note(&mut self.members, census, limit);
        let all = self.members.values().all(|state| state.lag.is_some());
        // What was asked before a lease ran out says nothing of a log that was lost just then.
        let outlived = sent >= appended.settled || (all && sent >= appended.trusted);
        appended.replicas = appended.replicas.max(replicas);
        appended.looked = true;
        // Replicas that follow this look: a primary that was replaced without knowing has none.
        self.complete |= outlived && replicas >= self.rules.replicas;
        appended.plan_look(all, now);
    }

    /// Members that have been silent since the purge was appended and are without a lease, with their beats then: to be
    /// taken off the list, if they have still been silent.
    pub(crate) fn silent(&self) -> impl Iterator<Item = (&MemberId, u64)> {
        let members = self.complete.then_some(&self.members).into_iter().flatten();
        members.filter(|(_, state)| state.lag.is_none()).map(|(id, state)| (id, state.beats))
    }

    /// How it stands.
    pub(crate) fn report(&self, now: Uptime) -> Report {
        let (acknowledged, missing): (Vec<_>, Vec<_>) = self.members.iter().partition(|(_, state)| state.lag.is_some());
        let missing = missing.into_iter().map(|(id, _)| id.clone()).collect();
        let (ran_out, pending) = if self.complete { (missing, Vec::new()) } else { (Vec::new(), missing) };
        let settled = self.appended.as_ref().map_or(now + self.rules.outlived(), |appended| appended.settled);
        Report {
            id: self.entry.id,
            position: self.appended.as_ref().map(|appended| appended.position),
            complete: self.complete,
            acknowledged: acknowledged.into_iter().filter_map(|(id, state)| Some((id.clone(), state.lag?))).collect(),
            ran_out,
            pending,
            settles_in: if self.complete { Duration::ZERO } else { settled.saturating_sub(now) },
            replicas: self.appended.as_ref().map_or(0, |appended| appended.replicas),
            connected: self.appended.as_ref().map_or(0, |appended| appended.connected),
            took: self.age(now),
        }
    }
}

#[cfg(test)]
impl Report {
    /// Who took longest to acknowledge, and how long.
    pub(crate) fn slowest(&self) -> Option<&(MemberId, Duration)> {
        self.acknowledged.iter().max_by_key(|(_, lag)| *lag)
    }
}

impl Appended {
    /// Who has acknowledged, and who has left.
    fn note(&self, members: &mut BTreeMap<MemberId, State>, census: &Census, limit: Duration) {
        let listed: HashMap<&MemberId, &Present> = census.members.iter().map(|present| (&present.id, present)).collect();
        // In the term of the append, nobody is taken off the list that may have a lease.
        let same = self.term.is_some() && census.term == self.term;
        members.retain(|id, state| state.lag.is_some() || !same || listed.contains_key(id));
        for (id, state) in members {
            let Some(present) = listed.get(id).filter(|_| state.lag.is_none()) else { continue };
            let applied = present.applied.filter(|applied| applied.generation == self.position.generation);
            if applied.is_some_and(|applied| applied.at >= self.position.at) {
                // By the server's clock, which may have stepped in between.
                let lag = Duration::from_micros(present.since.saturating_sub(self.at));
                state.lag = Some(lag.min(limit));
            }
        }
    }

    /// Those that must have it; once, to be able to say so, all.
    fn copies(&self, rules: Rules) -> u32 {
        if self.looked { rules.replicas } else { rules.replicas.max(self.connected) }
    }

    /// Looks come ever slower, but as soon as one may be the last.
    fn plan_look(&mut self, all: bool, now: Uptime) {
        self.pause = (self.pause * 2).min(LONGEST_LOOK);
        self.next_look = now + self.pause;
        let last = if all { self.trusted } else { self.settled };
        if now < last && (all || last < self.next_look) {
            self.next_look = last;
        }
    }
}

#[cfg(test)]
mod tests;
