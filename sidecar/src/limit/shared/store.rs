//! Counts in Redis, asked over connections that all requests share, and nothing but limits.

mod admin;
mod failure;
mod ticket;

use std::{
    cmp::Ordering as Order,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::{Cmd, Value};
use smallvec::{SmallVec, smallvec};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, sleep},
};

pub(crate) use self::{
    failure::Failure,
    ticket::{Held, Ticket},
};
use super::{
    model::{Answer, Exchange, Told, Verdict},
    rule::{Bucket, Charge, ChargeId, Micros, Slots, Treatment},
    script::{self, By, Charged, Scripts},
};
use crate::redis::{Pool, Purpose, Redis, Slot};

/// Refunds and releases that are under way, at most. What is beyond is not given back: limits then deny a little more.
const BEHIND: usize = 1024;
/// How long one of them may take, how often it is tried, and how long it waits between two times.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;
const AGAIN: Duration = Duration::from_millis(250);

/// Counts in Redis. Clones are the same.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    pool: Arc<Pool>,
    clustered: bool,
    scripts: Scripts,
    /// How long a command may take that a request waits for.
    patience: Duration,
    /// How far the server's clock is ahead of ours, in microseconds, as of the last answer.
    ahead: AtomicI64,
    /// What nobody waits for runs there.
    runtime: Handle,
    behind: Arc<Semaphore>,
}

/// What came of a pass.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The first of the charges that denies. Then none is charged, or what was is on its way back.
    pub(crate) denied: Option<usize>,
    /// Of each charge, in their order.
    pub(crate) decisions: SmallVec<[Decision; 4]>,
    /// What was charged, and can be given back.
    pub(crate) ticket: Ticket,
}

/// What came of one charge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Decision {
    Told(Verdict),
    /// Nobody knows; it may have been charged, and counts as charged.
    Failed(Failure),
    /// It was not asked for: a count in another slot had denied.
    Skipped,
}

/// Tokens that were taken ahead. They may be spent until it ends.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Lease {
    id: ChargeId,
    /// How many.
    pub(crate) tokens: u64,
    /// After that they are gone, whether spent or not.
    pub(crate) ends: Instant,
}

/// What came of a lease that was asked for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Leased {
    /// None if the bucket had nothing.
    pub(crate) lease: Option<Lease>,
    /// What the bucket says to a request for one token more.
    pub(crate) verdict: Verdict,
}

/// Charges whose counts share a slot, by their places.
type Group = SmallVec<[usize; 4]>;

impl Store {
    /// Begins to connect, in tasks of this runtime. A command that a request waits for may take so long.
    pub(crate) fn start(redis: &Redis, patience: Duration) -> Self {
        Self(Arc::new(Inner {
            pool: redis.pool(Purpose::Limits),
            clustered: redis.is_cluster(),
            scripts: Scripts::new(),
            patience,
            ahead: AtomicI64::new(0),
            runtime: Handle::current(),
            behind: Arc::new(Semaphore::new(BEHIND)),
        }))
    }

    /// The server's time, as far as is known: what windows of a calendar are computed from.
    pub(crate) fn now(&self) -> Micros {
        ours().saturating_add_signed(self.0.ahead.load(Ordering::Relaxed))
    }

    /// Charges all counts, each of which stands there once, or none. Where they are in different slots of a cluster, the tightest belong first. It
    /// ends by then, whatever was answered until then.
    pub(crate) async fn pass(&self, charges: &[Charge<'_>], until: Instant) -> Pass {
        let id = ChargeId::random();
        let mut pass = Pass::of(id, charges.len(), Decision::Skipped);
        // Who asks may be gone before all groups are asked.
        let mut charged = Refunded { store: self, ticket: Ticket::new(id) };
        for group in self.groups(charges) {
            let of_group: SmallVec<[&Charge<'_>; 4]> = group.iter().map(|place| &charges[*place]).collect();
            match self.0.charge(id, &of_group, until).await {
                Ok((None, told)) => {
                    pass.tell(&group, &told);
                    charged.ticket.add(of_told(&of_group, &told));
                }
                Ok((Some(denied), told)) => {
                    pass.tell(&group, &told);
                    pass.denied = group.get(denied).copied();
                    pass.give_back(charges, &charged.ticket);
                    return pass; // and what earlier groups were charged goes back
                }
                Err(failure) => group.iter().for_each(|place| pass.decisions[*place] = Decision::Failed(failure)),
            }
        }
        pass.ticket = charged.ticket.take();
        pass
    }

    /// Gives back what a pass charged, some time soon.
    pub(crate) fn refund(&self, ticket: Ticket) {
        let (id, groups) = ticket.into_parts();
        for charged in groups {
            let store = Arc::clone(&self.0);
            self.behind(async move {
                let Some(first) = charged.first() else { return };
                store.insist(&first.name, |by| store.scripts.refund(by, id, &charged)).await;
            });
        }
    }

    /// A request has ended, and gives back its slot.
    pub(crate) fn release(&self, held: Held) {
        let store = Arc::clone(&self.0);
        self.behind(async move {
            let mut command = redis::cmd("ZREM");
            command.arg(&held.name).arg(held.id.to_string());
            store.insist(&held.name, |_| command.clone()).await;
        });
    }

    /// Requests that have slots of a count are still under way. Returns how many of them had been given up for lost; they have them again.
    ///
    /// # Errors
    /// Why that is not known. They are lost when their term is over.
    pub(crate) async fn renew(&self, key: &str, rule: &Slots, ids: &[ChargeId]) -> Result<u64, Failure> {
        let until = Instant::now() + PATIENCE;
        let value = self.0.run(key, PATIENCE, until, |by| self.0.scripts.renew(by, key, rule, ids)).await?;
        if let Value::Int(lost) = value { u64::try_from(lost).map_err(|_| Failure::Error) } else { Err(Failure::Error) }
    }

    /// Takes tokens of a bucket ahead, for a term, and ends the lease before, of which so many tokens are unused. There may be fewer than are wanted.
    ///
    /// # Errors
    /// Why that is not known. The lease before is over in any case, and whatever was taken lies idle for a term.
    pub(crate) async fn lease(
        &self,
        key: &str,
        rule: &Bucket,
        before: Option<(Lease, u64)>,
        wanted: u64,
        term: Duration,
    ) -> Result<Leased, Failure> {
        let (id, begun) = (ChargeId::random(), Instant::now());
        let end = before.map(|(lease, unused)| (lease.id, lease.tokens, unused));
        let exchange = Exchange { end, begin: (id, wanted), term: micros(term) };
        let until = begun + PATIENCE;
        let value = self.0.run(key, PATIENCE, until, |by| self.0.scripts.lease(by, key, rule, &exchange)).await?;
        let exchanged = script::exchanged(&value).map_err(|_| Failure::Error)?;
        // The server counts the term from later on.
        let lease = (exchanged.granted > 0).then(|| Lease { id, tokens: exchanged.granted, ends: begun + term });
        Ok(Leased { lease, verdict: exchanged.verdict })
    }

    /// What can be charged at once, in the order of the charges; last what denies nothing, so that it is rarely refunded.
    fn groups(&self, charges: &[Charge<'_>]) -> SmallVec<[Group; 2]> {
        if charges.is_empty() {
            return SmallVec::new();
        }
        if !self.0.clustered {
            return smallvec![(0..charges.len()).collect()];
        }
        let mut groups: SmallVec<[(Slot, Group); 2]> = SmallVec::new();
        for (place, charge) in charges.iter().enumerate() {
            let slot = Slot::of(charge.key);
            match groups.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, group)) => group.push(place),
                None => groups.push((slot, smallvec![place])),
            }
        }
        let denies = |group: &Group| group.iter().any(|place| charges[*place].treatment == Treatment::Enforce);
        groups.sort_by(|(_, one), (_, other)| match (denies(one), denies(other)) {
            (true, false) => Order::Less,
            (false, true) => Order::Greater,
            _ => Order::Equal,
        });
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// Runs it beside the requests, if there is room.
    fn behind(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(room) = Arc::clone(&self.0.behind).try_acquire_owned() {
            self.0.runtime.spawn(async move {
                work.await;
                drop(room);
            });
        }
    }
}

impl Inner {
    /// Charges counts of one slot: which of them denies, and what each says.
    async fn charge(
        &self,
        id: ChargeId,
        charges: &[&Charge<'_>],
        until: Instant,
    ) -> Result<(Option<usize>, SmallVec<[Told; 4]>), Failure> {
        let key = charges.first().map_or("", |first| first.key);
        let value = self.run(key, self.patience, until, |by| self.scripts.pass(by, id, charges)).await?;
        let (answer, now) = script::answer(&value, charges.len()).map_err(|_| Failure::Error)?;
        let ahead = i128::from(now) - i128::from(ours());
        self.ahead.store(i64::try_from(ahead).unwrap_or(0), Ordering::Relaxed);
        match answer {
            Answer::Decided { denied, told } => Ok((denied, told)),
            Answer::Foreign => Err(Failure::Window),
        }
    }

    /// Runs a script, by its code if the server does not know it by its hash.
    async fn run(&self, key: &str, patience: Duration, until: Instant, script: impl Fn(By) -> Cmd) -> Result<Value, Failure> {
        match self.ask(key, patience, until, script(By::Hash)).await {
            Err(Failure::Unknown) => self.ask(key, patience, until, script(By::Code)).await,
            answered => answered,
        }
    }

    async fn ask(&self, key: &str, patience: Duration, until: Instant, command: Cmd) -> Result<Value, Failure> {
        let left = patience.min(until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(Failure::Late);
        }
        let mut pipeline = redis::pipe();
        // An error that the server answers is no reason to break the connection.
        pipeline.add_command(command).ignore_errors();
        match self.pool.ask_within(key, &pipeline, left, patience).await?.into_iter().next() {
            Some(Value::ServerError(error)) => Err(Failure::of_code(error.code())),
            Some(value) => Ok(value),
            None => Err(Failure::Error),
        }
    }

    /// Runs a script that may be run more than once, a few times if it has to.
    async fn insist(&self, key: &str, script: impl Fn(By) -> Cmd) {
        for _ in 0..TRIES {
            if self.run(key, PATIENCE, Instant::now() + PATIENCE, &script).await.is_ok() {
                return;
            }
            sleep(AGAIN).await;
        }
    }
}

impl Pass {
    /// One of so many charges, none of which was decided.
    pub(crate) fn failed(charges: usize, failure: Failure) -> Self {
        Self::of(ChargeId::random(), charges, Decision::Failed(failure))
    }

    fn of(id: ChargeId, charges: usize, decision: Decision) -> Self {
        Self { denied: None, decisions: smallvec![decision; charges], ticket: Ticket::new(id) }
    }

    fn tell(&mut self, group: &[usize], told: &[Told]) {
        group.iter().zip(told).for_each(|(place, told)| self.decisions[*place] = Decision::Told(told.verdict));
    }

    /// What earlier groups were charged goes back, and they have it again.
    fn give_back(&mut self, charges: &[Charge<'_>], ticket: &Ticket) {
        for (charge, decision) in charges.iter().zip(&mut self.decisions) {
            if let Decision::Told(verdict) = decision
                && ticket.has(&charge.name())
            {
                verdict.remaining = verdict.remaining.saturating_add(charge.units());
            }
        }
    }
}

/// What is charged, and goes back unless it is taken out.
struct Refunded<'a> {
    store: &'a Store,
    ticket: Ticket,
}

impl Drop for Refunded<'_> {
    fn drop(&mut self) {
        self.store.refund(self.ticket.take());
    }
}

/// What was charged of a group that nothing denied.
fn of_told(charges: &[&Charge<'_>], told: &[Told]) -> Vec<Charged> {
    let charged = charges.iter().zip(told).filter(|(charge, told)| charge.is_charged(told.verdict.allowed));
    charged.map(|(charge, told)| Charged::new(charge, told.mark)).collect()
}

impl Lease {
    /// Which one it is.
    pub(in crate::limit) fn id(&self) -> ChargeId {
        self.id
    }
}

#[cfg(test)]
impl Lease {
    /// One that nobody gave.
    pub(in crate::limit) fn of(tokens: u64, ends: Instant) -> Self {
        Self { id: ChargeId::NONE, tokens, ends }
    }
}

#[cfg(test)]
impl Store {
    /// Whether it answers, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        self.0.pool.is_connected()
    }

    /// Whether nothing is under way that nobody waits for.
    pub(super) fn is_idle(&self) -> bool {
        self.0.behind.available_permits() == BEHIND
    }
}

fn ours() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
}

fn micros(time: Duration) -> Micros {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}
