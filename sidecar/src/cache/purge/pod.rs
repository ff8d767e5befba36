//! The purges that a pod knows of: of its own alone, or of all pods that share a log in Redis.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::try_join_all;

use super::{
    CutOff, Generation, Index, Position, Stamp, Verdict,
    alone::Alone,
    index::CAPACITY,
    journal::Journal,
    log::{Strength, What},
    name::{Name, Naming},
    request::{PurgeAnswer, PurgeError, PurgeRequest},
    shared::{Log, Shared},
};

/// The purges of a pod. Clones are the same.
#[derive(Clone)]
pub struct PodPurges(Arc<Inner>);

struct Inner {
    /// The pod's name.
    member: Box<str>,
    naming: Naming,
    kept: ArcSwap<Kept>,
    /// Whether another process serves the same, as in an upgrade.
    beside: AtomicBool,
    /// Held while another log is taken.
    taking: Mutex<()>,
    /// Purges so far: hard, soft.
    counts: [AtomicU64; 2],
}

/// What is stored on disk is judged by these purges.
pub(crate) struct Judged(Arc<Kept>);

/// Where purges are kept.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, behind a pointer")]
enum Kept {
    Alone(Alone),
    Shared(Shared),
}

impl PodPurges {
    /// Of a pod of this name. Nothing was purged yet, and the log is its own.
    pub fn new(member: &str) -> Self {
        let index = Index::new(CutOff::Serve, CAPACITY);
        let naming = index.naming();
        let kept = ArcSwap::from_pointee(Kept::Alone(Alone::new(index)));
        let (member, beside, taking) = (member.into(), AtomicBool::new(false), Mutex::new(()));
        Self(Arc::new(Inner { member, naming, kept, beside, taking, counts: Default::default() }))
    }

    /// Another process serves the same, until this one [begins](Self::begin).
    pub(crate) fn wait(&self) {
        self.0.beside.store(true, Ordering::Release);
    }

    /// No other process answers from a cache of its own.
    pub(crate) fn begin(&self) {
        self.0.beside.store(false, Ordering::Release);
    }

    /// Another process begins when it hears that this was called.
    pub(crate) fn retire(&self) {
        self.0.beside.store(true, Ordering::Release);
    }

    /// Whether purges may be made in another process that this one does not hear of: as long as that may be, nothing is stored, no answer
    /// is a stored one, and no purge is made here.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.0.beside.load(Ordering::Acquire) && matches!(&**self.0.kept.load(), Kept::Alone(_))
    }

    /// Takes the log that the configuration names, if it is another one: that of all pods, or none, for this pod alone. What was
    /// fetched before is then of unknown standing. Runs on in tasks of this runtime.
    pub(crate) fn follow(&self, log: Option<Log>) {
        let _taking = self.0.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.0.kept.load_full();
        let (eras, same) = match (&*before, &log) {
            (Kept::Alone(alone), log) => (alone.eras(), log.is_none()),
            (Kept::Shared(shared), log) => (shared.eras(), log.as_ref() == Some(shared.log())),
        };
        if same {
            return;
        }
        let cut_off = log.as_ref().map_or(CutOff::Serve, |log| log.rules.cut_off);
        let index = Index::after(cut_off, CAPACITY, self.0.naming, eras);
        let next = match log {
            None => Kept::Alone(Alone::new(index)),
            Some(log) => Kept::Shared(Shared::start(log, &self.0.member, index)),
        };
        self.0.kept.store(Arc::new(next));
        if let Kept::Shared(shared) = &*before {
            tokio::spawn(shared.leave());
        }
    }

    /// Has what is stored in a folder judged by all purges, also those of processes before: by the log that is shared, else by a journal
    /// in the folder. Waits for the disk. Until [`PodPurges::is_judged`] says no.
    ///
    /// # Errors
    /// Why there can't be a journal.
    pub(crate) fn judge(&self, dir: &Path) -> io::Result<Judged> {
        let kept = self.0.kept.load_full();
        match &*kept {
            Kept::Alone(alone) => alone.resume(dir)?,
            // It lacks what is purged from now on.
            Kept::Shared(_) => Journal::remove(dir)?,
        }
        Ok(Judged(kept))
    }

    /// Whether it still is as it was.
    pub(crate) fn is_judged(&self, Judged(kept): &Judged) -> bool {
        Arc::ptr_eq(kept, &self.0.kept.load()) && !matches!(&**kept, Kept::Alone(alone) if alone.noted().is_none())
    }

    /// Leaves the list of members: the pod answers nothing any more, and no purge has to wait for it.
    pub(crate) async fn leave(&self) {
        let kept = self.0.kept.load_full();
        if let Kept::Shared(shared) = &*kept {
            shared.leave().await;
        }
    }

    /// What a fetch or fill that begins now carries.
    pub(crate) fn stamp(&self) -> Stamp {
        match &**self.0.kept.load() {
            Kept::Alone(alone) => alone.stamp(),
            Kept::Shared(shared) => shared.purges.stamp(),
        }
    }

    /// For an object that is stored where other processes find it. None if they could not tell what was purged.
    pub(crate) fn position(&self, stamp: Stamp) -> Option<Position> {
        match &**self.0.kept.load() {
            Kept::Alone(alone) => alone.position(stamp).filter(|position| alone.noted() == Some(position.generation)),
            Kept::Shared(shared) => shared.purges.position(stamp),
        }
    }

    /// For an object that goes into a file: a pod alone can tell later, too, what it has purged since. Of what nobody can place, a place that
    /// never was.
    pub(crate) fn place(&self, stamp: Stamp) -> Position {
        let position = match &**self.0.kept.load() {
            Kept::Alone(alone) => alone.position(stamp),
            Kept::Shared(shared) => shared.purges.position(stamp),
        };
        position.unwrap_or(Position { generation: Generation(0), at: 0 })
    }

    /// For an object that another process stored.
    pub(crate) fn stamp_at(&self, position: Position) -> Stamp {
        self.known_at(position).unwrap_or_default()
    }

    /// The same, also for what this process wrote to a file. None if it can't be known what was purged since its fetch began.
    pub(crate) fn known_at(&self, position: Position) -> Option<Stamp> {
        match &**self.0.kept.load() {
            Kept::Alone(alone) => alone.known_at(position),
            Kept::Shared(shared) => shared.purges.known_at(position),
        }
    }

    /// Purges that were asked for here, by how: for metrics.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 2] {
        let [hard, soft] = &self.0.counts;
        [("hard", hard.load(Ordering::Relaxed)), ("soft", soft.load(Ordering::Relaxed))]
    }

    /// Whether purges may be complete that this pod does not know of; None without a log that is shared.
    pub(crate) fn is_cut_off(&self) -> Option<bool> {
        match &**self.0.kept.load() {
            Kept::Alone(_) => None,
            Kept::Shared(shared) => Some(shared.purges.is_cut_off()),
        }
    }

    /// How often the log could not be asked since it is shared.
    pub(crate) fn failures(&self) -> u64 {
        match &**self.0.kept.load() {
            Kept::Alone(_) => 0,
            Kept::Shared(shared) => shared.failures(),
        }
    }

    /// Makes the names that objects carry.
    pub(crate) fn naming(&self) -> Naming {
        self.0.naming
    }

    /// What may be done with an object. Its URL and names are asked for only if there was a purge since its fetch began.
    pub(crate) fn verdict(&self, stamp: Stamp, of: impl FnOnce() -> (String, Vec<Name>)) -> Verdict {
        match &**self.0.kept.load() {
            Kept::Alone(alone) => alone.verdict(stamp, of),
            Kept::Shared(shared) => shared.purges.verdict(stamp, of),
        }
    }

    /// Purges, and returns when no request that comes later is answered from what went, when no more can be waited for, or after so long at
    /// most.
    ///
    /// # Errors
    /// What is wrong with the request, or why the log could not be asked.
    pub async fn purge(&self, request: &PurgeRequest, at_most: Duration) -> Result<PurgeAnswer, PurgeError> {
        self.purge_forms(request, |url| vec![url.to_owned()], at_most).await
    }

    /// As [`PodPurges::purge`], of a URL in all its forms.
    pub(crate) async fn purge_forms(
        &self,
        request: &PurgeRequest,
        forms: impl FnOnce(&str) -> Vec<String>,
        at_most: Duration,
    ) -> Result<PurgeAnswer, PurgeError> {
        self.take(request.what(forms)?, request.strength(), at_most).await
    }

    /// Purges a URL in the form in which stored answers have it.
    pub(crate) async fn purge_url(&self, url: &str, soft: bool) -> Result<PurgeAnswer, PurgeError> {
        let what = What::url(url).map_err(|why| PurgeError::Wrong(format!("the URL {why}")))?;
        self.take(vec![what], if soft { Strength::Soft } else { Strength::Hard }, Duration::MAX).await
    }

    async fn take(&self, all: Vec<What>, strength: Strength, at_most: Duration) -> Result<PurgeAnswer, PurgeError> {
        if self.is_elsewhere() {
            return Err(PurgeError::Elsewhere);
        }
        let kept = self.0.kept.load_full();
        let each = all.into_iter().map(async |what| match &*kept {
            Kept::Alone(alone) => Ok(alone.purge(what, strength, &self.0.member).await),
            Kept::Shared(shared) => shared.purge(what, strength, at_most).await,
        });
        let answers = try_join_all(each).await?;
        let answer = answers.into_iter().reduce(PurgeAnswer::and).unwrap_or_default();
        self.0.counts[usize::from(strength == Strength::Soft)].fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }
}

impl fmt::Debug for PodPurges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodPurges").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn purge(log: &PodPurges, request: &str) -> Result<PurgeAnswer, PurgeError> {
        log.purge(&serde_json::from_str(request).unwrap(), Duration::MAX).await
    }

    #[tokio::test]
    async fn what_began_before_a_purge_is_gone_and_what_begins_after_stays() {
        let log = PodPurges::new("pod");
        let before = log.stamp();
        let of = || ("shop.example/a?b".to_owned(), vec![log.naming().tag("news"), log.naming().policy("shop/web")]);
        assert_eq!(log.verdict(before, of), Verdict::Fresh);
        for (request, expected) in [
            (r#"{"tag": "olds"}"#, Verdict::Fresh),
            (r#"{"url": "http://other.example/a?b"}"#, Verdict::Fresh),
            (r#"{"url": "http://shop.example/a"}"#, Verdict::Fresh),
            (r#"{"url": "https://SHOP.example:443/a?b"}"#, Verdict::Hard),
            (r#"{"prefix": "http://shop.example:80/", "soft": true}"#, Verdict::Soft),
            (r#"{"tag": "news"}"#, Verdict::Hard),
            (r#"{"policy": "shop/web", "soft": true}"#, Verdict::Soft),
            (r#"{"all": true}"#, Verdict::Hard),
        ] {
            let before = log.stamp();
            assert!(purge(&log, request).await.unwrap().complete);
            assert_eq!(log.verdict(before, of), expected, "{request}");
            assert_eq!(log.verdict(log.stamp(), of), Verdict::Fresh, "{request}");
        }
    }

    #[tokio::test]
    async fn answers_whose_key_has_no_host_go_with_any() {
        let log = PodPurges::new("pod");
        for (request, url, expected) in [
            (r#"{"prefix": "http://shop.example/a/"}"#, "/a/b", Verdict::Hard),
            (r#"{"prefix": "http://shop.example/a/"}"#, "/b", Verdict::Fresh),
            (r#"{"prefix": "http://shop.example"}"#, "/b", Verdict::Hard),
            (r#"{"url": "http://shop.example/a/b?c"}"#, "/a/b?c", Verdict::Hard),
            (r#"{"url": "http://shop.example/a/b?c"}"#, "/a/b", Verdict::Fresh),
        ] {
            let before = log.stamp();
            purge(&log, request).await.unwrap();
            assert_eq!(log.verdict(before, || (url.to_owned(), Vec::new())), expected, "{request}: {url}");
        }
    }

    #[tokio::test]
    async fn nothing_is_purged_where_another_process_would_not_know() {
        let log = PodPurges::new("pod");
        type Change = fn(&PodPurges);
        let changes: [(Change, bool); 3] = [(PodPurges::wait, true), (PodPurges::begin, false), (PodPurges::retire, true)];
        for (change, elsewhere) in changes {
            let before = log.stamp();
            change(&log);
            let purged = purge(&log, r#"{"all": true}"#).await;
            assert_eq!((log.is_elsewhere(), matches!(purged, Err(PurgeError::Elsewhere))), (elsewhere, elsewhere));
            assert_eq!(log.stamp() == before, elsewhere);
        }
    }

    #[tokio::test]
    async fn what_was_wrong_purges_nothing() {
        let log = PodPurges::new("pod");
        let before = log.stamp();
        assert!(matches!(purge(&log, "{}").await, Err(PurgeError::Wrong(_))));
        assert_eq!((log.stamp(), log.counts()), (before, [("hard", 0), ("soft", 0)]));
    }
}
