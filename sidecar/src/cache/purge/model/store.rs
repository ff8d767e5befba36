//! The scripts' other telling: a Redis in memory, whose clock steps, whose replica lags and whose runs end.

use std::collections::BTreeMap;

use super::super::log::{Census, Content, Entry, Generation, LAST_PLACE, MemberId, Page, Position, Present, Record, Term};

/// What a scope is bounded by.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Bounds {
    pub page: usize,
    pub silence: u64,
    pub records: usize,
    pub kept: u64,
}

/// What Redis holds of a scope.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct State {
    pub log: Option<Vec<Record>>,
    pub list: Option<List>,
}

#[derive(Clone, Debug)]
pub(in super::super) struct List {
    term: (Generation, Term),
    members: BTreeMap<MemberId, Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    applied: Option<Position>,
    since: u64,
    seen: u64,
    beats: u64,
}

/// One run of a Redis.
#[derive(Debug)]
pub(in super::super) struct Server {
    pub state: State,
    /// Names this run.
    history: u64,
    bounds: Bounds,
    /// Whether it counts, instead of what the design says: places 1, 2, 3, and no generations.
    counts: bool,
}

impl Server {
    pub(in super::super) fn new(state: State, history: u64, bounds: Bounds, counts: bool) -> Self {
        Self { state, history, bounds, counts }
    }

    /// Its history of writes is another from now on.
    pub(in super::super) fn restart(&mut self, history: u64) {
        self.history = history;
    }

    /// `beat.lua`. `pick` chooses the member that is looked at for silence.
    pub(in super::super) fn beat(&mut self, id: &MemberId, applied: Option<Position>, fresh: u64, now: u64, pick: usize) -> Page {
        let (current, last) = self.generation(applied, fresh, now);
        self.term(current, fresh);
        self.drop_silent(id, current, fresh, now, pick);
        let term = self.term(current, fresh);
        let members = &mut self.list().members;
        let before = members.get(id).copied();
        let since = before.filter(|kept| kept.applied == applied).map_or(now, |kept| kept.since);
        let beats = before.map_or(1, |kept| kept.beats + 1);
        members.insert(id.clone(), Kept { applied, since, seen: now, beats });
        let from = applied.filter(|applied| applied.generation == current).map_or(0, |applied| applied.at + 1);
        let log = self.log();
        let records = log.iter().filter(|record| record.position.at >= from);
        let records = records.take(self.bounds.page).cloned().collect();
        Page { generation: current, term: Some(term), tail: log[0].position.at, last, records }
    }

    /// `append.lua`.
    pub(in super::super) fn append(&mut self, entry: &Entry, again: bool, fresh: u64, now: u64) -> Census {
        let (current, last) = self.generation(None, fresh, now);
        let held = self.log().iter().rev().find(|record| again && record.content == Content::Purge(entry.clone()));
        let at = held.map(|record| record.position.at);
        let at = at.unwrap_or_else(|| {
            let at = self.next(now, last);
            let (from, most) = (now.saturating_sub(self.bounds.kept).min(last), self.bounds.records);
            let log = self.state.log.get_or_insert_default();
            log.retain(|record| record.position.at >= from);
            let position = Position { generation: current, at };
            log.push(Record { position, content: Content::Purge(entry.clone()) });
            log.drain(..log.len().saturating_sub(most));
            at
        });
        self.census(current, at, fresh, now)
    }

    /// `look.lua`.
    pub(in super::super) fn look(&mut self, fresh: u64, now: u64) -> Census {
        let (current, last) = self.generation(None, fresh, now);
        self.census(current, last, fresh, now)
    }

    /// `forget.lua`.
    pub(in super::super) fn forget(&mut self, silent: &[(MemberId, u64)]) {
        let Some(list) = &mut self.state.list else { return };
        list.members.retain(|id, kept| !silent.contains(&(id.clone(), kept.beats)));
    }

    /// A member that has left.
    pub(in super::super) fn leave(&mut self, id: &MemberId) {
        if let Some(list) = &mut self.state.list {
            list.members.remove(id);
        }
    }

    fn census(&mut self, generation: Generation, at: u64, fresh: u64, now: u64) -> Census {
        let term = Some(self.term(generation, fresh));
        let members = self.list().members.iter();
        let members = members
            .map(|(id, kept)| Present { id: id.clone(), applied: kept.applied, since: kept.since, beats: kept.beats })
            .collect();
        Census { generation, term, at, now, connected: 0, members }
    }

    fn generation(&mut self, claimed: Option<Position>, fresh: u64, now: u64) -> (Generation, u64) {
        let newest = self.state.log.as_ref().and_then(|log| log.last()).map(|record| record.position);
        if let Some(newest) = newest {
            let regressed = claimed.is_some_and(|claimed| claimed.generation == newest.generation && claimed.at > newest.at);
            let mine = newest.generation.0 >> 64 == u128::from(self.history);
            if self.counts || (mine && !regressed && newest.at < LAST_PLACE) {
                return (newest.generation, newest.at);
            }
        }
        let before = newest.filter(|newest| newest.at < LAST_PLACE);
        if before.is_none() {
            self.state.log = None;
        }
        let at = self.next(now, before.map_or(0, |before| before.at));
        let generation = Generation(if self.counts { 0 } else { u128::from(self.history) << 64 | u128::from(fresh) });
        let record = Record { position: Position { generation, at }, content: Content::Begin(before) };
        self.state.log.get_or_insert_default().push(record);
        (generation, at)
    }

    fn term(&mut self, current: Generation, fresh: u64) -> Term {
        match &self.state.list {
            Some(list) if list.term.0 == current => list.term.1,
            _ => self.begin_term(current, fresh),
        }
    }

    fn begin_term(&mut self, current: Generation, fresh: u64) -> Term {
        let term = Term(u128::from(self.history) << 64 | u128::from(fresh));
        let members = self.state.list.take().map(|list| list.members).unwrap_or_default();
        self.state.list = Some(List { term: (current, term), members });
        term
    }

    fn drop_silent(&mut self, but: &MemberId, current: Generation, fresh: u64, now: u64, pick: usize) {
        let silence = self.bounds.silence;
        let members = &mut self.list().members;
        let Some((id, kept)) = members.iter_mut().nth(pick) else { return };
        if id == but {
        } else if now.saturating_sub(kept.seen) > silence {
            let id = id.clone();
            members.remove(&id);
            self.begin_term(current, fresh);
        } else if kept.seen.saturating_sub(now) > silence {
            kept.seen = now;
        }
    }

    fn next(&self, now: u64, last: u64) -> u64 {
        if self.counts { last + 1 } else { now.max(last + 1) }
    }

    fn log(&self) -> &[Record] {
        self.state.log.as_deref().expect("every script begins by making the log")
    }

    fn list(&mut self) -> &mut List {
        self.state.list.as_mut().expect("a term was asked for before")
    }
}
