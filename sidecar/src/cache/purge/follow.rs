//! What runs: a pod that follows its scope's log, and a purge until it is complete.

use std::{
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use redis::aio::ConnectionLike;
use tokio::{sync::Notify, time};

use super::{
    Index, Member, Position, Purge, Report, Rules, Stamp, Uptime, Verdict,
    completion::Step,
    index::Object,
    log::{Entry, MemberId, PurgeId, Strength, What},
    member::Next,
    name::Name,
    redis::{Log, LogError, random},
};

/// Between two tries of a purge, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a purge is tried to be appended.
const APPENDING: Duration = Duration::from_secs(5);

/// What a pod knows of purges, for all its workers.
#[derive(Debug)]
pub(crate) struct Purges {
    rules: Rules,
    state: RwLock<State>,
    news: Notify,
}

/// Under one lock, so that nobody sees the lease without what it was given for.
#[derive(Debug)]
struct State {
    member: Member,
    index: Index,
}

impl Purges {
    /// Of a pod that has read nothing yet.
    pub(crate) fn new(rules: Rules, index: Index) -> Self {
        let state = State { member: Member::new(rules), index };
        Self { rules, state: RwLock::new(state), news: Notify::new() }
    }

    /// What a fetch or fill that begins now carries.
    pub(crate) fn stamp(&self) -> Stamp {
        self.read().index.stamp()
    }

    /// What a request may do with an object that it found just now. The object's URL and names are asked for only if there was a purge since its fetch began.
    pub(crate) fn verdict(&self, stamp: Stamp, of: impl FnOnce() -> (String, Vec<Name>)) -> Verdict {
        let now = uptime();
        let state = self.read();
        if state.index.is_newest(stamp) {
            return state.member.unless_cut_off(Verdict::Fresh, now);
        }
        let (url, names) = of();
        state.member.verdict(&state.index, &Object { stamp, url: &url, names: &names }, now)
    }

    /// Generations so far.
    pub(crate) fn eras(&self) -> u32 {
        self.read().index.eras()
    }

    /// For an object that is stored where other processes find it.
    pub(crate) fn position(&self, stamp: Stamp) -> Option<Position> {
        self.read().index.position(stamp)
    }

    /// For an object that another process stored. None where nobody can say what was purged since.
    pub(crate) fn known_at(&self, position: Position) -> Option<Stamp> {
        self.read().index.known_at(position)
    }

    /// Whether purges may have been completed that this pod doesn't know of.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.read().member.is_cut_off(uptime())
    }

    /// Something was appended, or may have been: beat at once. Without it a pod learns of it by its next beat.
    pub(crate) fn news(&self) {
        self.news.notify_one();
    }

    /// Follows the log, for ever.
    pub(crate) async fn follow<C: ConnectionLike>(&self, log: &mut Log<C>, id: &MemberId, mut failed: impl FnMut(&LogError)) {
        loop {
            match self.beat(log, id).await {
                Ok(Next::Now) => continue,
                Ok(Next::Rest | Next::Late) => {}
                Err(error) => failed(&error),
            }
            // Apart from others, who may all have been cut off at once.
            let _ = time::timeout(jittered(self.rules.interval()), self.news.notified()).await;
        }
    }

    async fn beat<C: ConnectionLike>(&self, log: &mut Log<C>, id: &MemberId) -> Result<Next, LogError> {
        let beat = self.write().member.beat(uptime());
        let (page, replicas) = log.beat(id, beat.applied, self.rules.replicas).await?;
        let mut state = self.write();
        let State { member, index } = &mut *state;
        Ok(member.answered(beat, &page, replicas, uptime(), index))
    }

    /// Answers nothing any more, and leaves the list of members.
    pub(crate) async fn leave<C: ConnectionLike>(&self, log: &mut Log<C>, id: &MemberId) -> Result<(), LogError> {
        self.write().member.leave();
        log.leave(id).await
    }

    /// Purges, and waits until that is complete or the time is over; 5 s if the log can't be asked. The error is why the log couldn't be asked, the last time.
    pub(crate) async fn purge<C: ConnectionLike>(
        &self,
        log: &mut Log<C>,
        what: What,
        strength: Strength,
        deadline: Duration,
    ) -> (Report, Option<LogError>) {
        let id = PurgeId(u128::from(random()) << 64 | u128::from(random()));
        let mut purge = Purge::new(self.rules, Entry { id, what, strength }, uptime());
        let mut failed = None;
        let _ = time::timeout(deadline, self.complete(log, &mut purge, &mut failed)).await;
        let report = purge.report(uptime());
        if purge.silent().next().is_some() {
            // Only to spare the next purge the wait.
            let _ = log.forget(purge.silent()).await;
        }
        (report, failed)
    }

    async fn complete<C: ConnectionLike>(&self, log: &mut Log<C>, purge: &mut Purge, failed: &mut Option<LogError>) {
        let mut retry = FIRST_RETRY;
        loop {
            let step = purge.step();
            if let Step::Look { at, .. } = step {
                time::sleep(at.saturating_sub(uptime())).await;
            }
            let sent = uptime();
            let asked = match step {
                Step::Append { again, copies } => log.append(purge.entry(), again, copies).await.map(|(census, replicas)| {
                    self.news();
                    purge.appended(&census, replicas, self.read().member.term(), uptime());
                }),
                Step::Look { copies, .. } => {
                    log.look(copies).await.map(|(census, replicas)| purge.looked(&census, replicas, sent, uptime()))
                }
                Step::Done => return,
            };
            match asked {
                Ok(()) => (*failed, retry) = (None, FIRST_RETRY),
                Err(error) => {
                    *failed = Some(error);
                    if !purge.is_appended() && purge.age(uptime()) >= APPENDING {
                        return;
                    }
                    time::sleep(jittered(retry)).await;
                    retry = (retry * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This process' own time. It must go on while the machine is suspended: a lease that slept would outlive the purger's
/// wait.
pub(crate) fn uptime() -> Uptime {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    // Goes on in sleep there.
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Between three quarters and the whole of it.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(1.0 - fastrand::f64() / 4.0)
}

#[cfg(test)]
mod tests;
