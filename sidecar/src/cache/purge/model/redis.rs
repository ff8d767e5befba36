//! A primary with a replica, and what becomes of them.

use std::collections::VecDeque;

use fastrand::Rng;

use super::{
    plan::{Broken, Fault, Instant, MILLI, Plan, SECOND},
    store::{Server, State},
    world::{Answer, Call},
};

/// A server and its replica.
#[derive(Debug)]
pub(super) struct Node {
    server: Server,
    pub alive: bool,
    /// It answers nobody until then.
    down_until: Instant,
    clock: i64,
    replica: State,
    /// On their way to the replica.
    writes: VecDeque<(Instant, State)>,
    linked: bool,
    /// Changes with the link.
    pub link: u64,
    /// What it would find on its disk, if it lost so much.
    before: VecDeque<(Instant, State)>,
}

#[derive(Debug)]
pub(super) struct Redis {
    pub servers: Vec<Node>,
    pub primary: usize,
    /// Another that takes itself for the primary, the pods that believe it, and until when.
    other: Option<(usize, u8, Instant)>,
}

impl Redis {
    pub(super) fn new(rng: &mut Rng, plan: &Plan) -> Self {
        // Far from zero: beyond all steps back.
        let mut node = Node::new(State::default(), rng, plan, 1_000_000 * SECOND as i64);
        node.linked = true;
        Self { servers: vec![node], primary: 0, other: None }
    }

    /// Where a pod's messages go.
    pub(super) fn route(&mut self, pod: usize, now: Instant) -> usize {
        match self.other {
            Some((other, pods, until)) if now < until && pods >> pod & 1 == 1 => return other,
            Some((other, _, until)) if now >= until => {
                self.servers[other].alive = false;
                self.other = None;
            }
            _ => {}
        }
        self.primary
    }

    /// Runs a script. None if nobody answers.
    pub(super) fn call(&mut self, server: usize, call: &Call, fresh: u64, pick: usize, now: Instant) -> Option<Answer> {
        let node = &mut self.servers[server];
        if !node.alive || now < node.down_until {
            return None;
        }
        let time = now.saturating_add_signed(node.clock);
        let connected = u32::from(node.linked);
        Some(match call {
            Call::Beat(id, beat) => Answer::Page(node.server.beat(id, beat.applied, fresh, time, pick)),
            Call::Append(entry, again) => {
                let mut census = node.server.append(entry, *again, fresh, time);
                census.connected = connected;
                Answer::Census(census)
            }
            Call::Look => {
                let mut census = node.server.look(fresh, time);
                census.connected = connected;
                Answer::Census(census)
            }
            Call::Forget(silent) => {
                node.server.forget(silent);
                Answer::Done
            }
            Call::Leave(id) => {
                node.server.leave(id);
                Answer::Done
            }
        })
    }

    /// What was just written goes to the replica, and to disk.
    pub(super) fn write(&mut self, server: usize, now: Instant, rng: &mut Rng) {
        let node = &mut self.servers[server];
        node.deliver(now);
        if node.linked {
            let at = node.writes.back().map_or(now, |(at, _)| *at).max(now + rng.u64(100..3 * MILLI));
            node.writes.push_back((at, node.server.state.clone()));
        }
        node.before.push_back((now, node.server.state.clone()));
        while node.before.front().is_some_and(|(at, _)| at + SECOND < now) {
            node.before.pop_front();
        }
    }

    /// The replica gets everything.
    pub(super) fn link(&mut self, server: usize, now: Instant) {
        let node = &mut self.servers[server];
        // One that was replaced has lost its replica for good.
        if server == self.primary && !node.linked {
            node.linked = true;
            node.link += 1;
            node.writes.push_back((now + 5 * MILLI, node.server.state.clone()));
        }
    }

    /// The replica gets nothing more.
    pub(super) fn unlink(&mut self, server: usize, now: Instant) {
        let node = &mut self.servers[server];
        node.deliver(now);
        node.linked = false;
        node.link += 1;
        node.writes.clear();
    }

    pub(super) fn fail_over(&mut self, now: Instant, down: u64, two: Option<(u8, Instant)>, rng: &mut Rng, plan: &Plan) {
        let old = self.primary;
        if now < self.servers[old].down_until || self.other.is_some() {
            return;
        }
        self.unlink(old, now);
        let clock = self.servers[old].clock + rng.i64(-30 * SECOND as i64..30 * SECOND as i64);
        let mut node = Node::new(self.servers[old].replica.clone(), rng, plan, clock);
        node.down_until = now + down;
        self.servers.push(node);
        self.primary = self.servers.len() - 1;
        match two {
            Some((pods, until)) => self.other = Some((old, pods, now + until)),
            None => self.servers[old].alive = false,
        }
    }

    pub(super) fn restart(&mut self, now: Instant, back: u64, down: u64, rng: &mut Rng, plan: &Plan) {
        let old = self.primary;
        let kept =
            self.servers[old].before.iter().rev().find(|(at, _)| at.saturating_add(back) <= now).map(|(_, state)| state.clone());
        let clock = self.servers[old].clock;
        self.servers[old].alive = false;
        let mut node = Node::new(kept.unwrap_or_default(), rng, plan, clock);
        node.down_until = now + down;
        self.servers.push(node);
        self.primary = self.servers.len() - 1;
    }

    pub(super) fn harm(&mut self, fault: Fault) {
        let node = &mut self.servers[self.primary];
        match fault {
            Fault::Flush => node.server.state = State::default(),
            Fault::LoseLog => node.server.state.log = None,
            Fault::LoseList => node.server.state.list = None,
            Fault::Step { by } => node.clock += by,
            _ => {}
        }
    }

    pub(super) fn calm(&mut self) {
        self.servers[self.primary].down_until = 0;
        if let Some((other, ..)) = self.other.take() {
            self.servers[other].alive = false;
        }
    }
}

impl Node {
    fn new(state: State, rng: &mut Rng, plan: &Plan, clock: i64) -> Self {
        let counts = plan.broken == Some(Broken::BareCounter);
        Self {
            server: Server::new(state.clone(), rng.u64(1..), plan.bounds, counts),
            alive: true,
            down_until: 0,
            clock,
            replica: state,
            writes: VecDeque::new(),
            linked: false,
            link: 0,
            before: VecDeque::new(),
        }
    }

    fn deliver(&mut self, now: Instant) {
        while let Some((at, _)) = self.writes.front()
            && *at <= now
            && let Some((_, state)) = self.writes.pop_front()
        {
            self.replica = state;
        }
    }

    /// When the replica has all that was written; None if it won't.
    pub(super) fn copied(&self, now: Instant) -> Option<Instant> {
        self.linked.then(|| self.writes.back().map_or(now, |(at, _)| *at))
    }
}
