//! Snapshots: the answers that are asked for most often outlive the pods, in an archive.
//!
//! There is one snapshot for all pods of a workload. Each pod looks now and then how old it is, and writes another one if it is older than
//! the interval; so one pod does, mostly, and if two do, the later one stays, which is as good. A pod that begins reads it once, beside its
//! traffic, and takes what is right still. Whatever is wrong with snapshot or archive, it is counted, and the pod goes on without.

mod metrics;
mod settings;

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use archive::{Condition, Kind, Store};
use futures::StreamExt as _;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::metrics::{Came, Direction};
pub(crate) use self::{metrics::Metrics, settings::Settings};
use super::{
    Cache,
    transfer::{Export, Import, Imported, Spool, SpoolError, most_used},
};
use crate::{
    config::Shared,
    drain::{self, Phase},
    pressure::{Pressure, Step},
    tls::Secrets,
};

/// How long a snapshot may take to be written.
const WRITING: Duration = Duration::from_secs(300);
/// Until it is tried again when that failed, at most.
const AGAIN: Duration = Duration::from_secs(60);
/// A pod that ends writes if the snapshot is older than such a part of the interval.
const LAST: u32 = 10;
/// How long the purges of other pods are waited for before a snapshot is read: without them, all of it has to be validated.
const PURGES: Duration = Duration::from_secs(10);
/// What of the time for the last snapshot is kept for giving it up: one part of so many, and at least so long.
const GIVING_UP: u32 = 4;
const LEAST: Duration = Duration::from_secs(1);
/// Between two looks whether something has changed that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What keeps snapshots.
pub(crate) struct Keeper {
    pub(crate) config: Shared,
    pub(crate) cache: Arc<Cache>,
    pub(crate) secrets: Secrets,
    pub(crate) drain: drain::Handle,
    pub(crate) pressure: Weak<Pressure>,
    /// Where a snapshot lies until it is whole.
    pub(crate) spool: PathBuf,
}

/// What this pod knows of the snapshot that is there.
struct Known {
    since: Instant,
    /// Whether it has read it, or there was none; else it may hold more than this pod has.
    read: bool,
}

/// Where snapshots are.
struct Place {
    settings: Settings,
    store: Box<dyn Store>,
}

/// Snapshots that are kept, in a task.
pub(crate) struct Snapshots {
    /// There is no time left for what is being written.
    late: CancellationToken,
    /// Nothing is written any more, and nothing was left behind.
    ended: CancellationToken,
}

impl Snapshots {
    /// Waits until the last one is written, once the pod leaves; whether it is. If it takes too long it is given up in what is left of this
    /// time: a bucket keeps what was sent of it, and asks money for it.
    pub(crate) async fn finish(&self, at_most: Duration) -> bool {
        let giving_up = (at_most / GIVING_UP).max(LEAST).min(at_most);
        if timeout(at_most - giving_up, self.ended.cancelled()).await.is_ok() {
            return true;
        }
        self.late.cancel();
        let _ = timeout(giving_up, self.ended.cancelled()).await;
        false
    }
}

impl Keeper {
    /// Begins, in a task of this runtime that ends when the pod has left.
    pub(crate) fn start(self) -> Snapshots {
        let snapshots = Snapshots { late: CancellationToken::new(), ended: CancellationToken::new() };
        let (late, ended) = (snapshots.late.clone(), snapshots.ended.clone().drop_guard());
        tokio::spawn(async move {
            let _ended = ended;
            self.run(&late).await;
        });
        snapshots
    }

    async fn run(self, late: &CancellationToken) {
        let mut changes = self.config.subscribe();
        let mut known = None;
        let mut told = None;
        loop {
            let settings = self.settings(&mut told);
            let leaving = match settings {
                None => self.until_changed(&mut changes, |settings| settings.is_none(), late).await,
                Some(settings) => {
                    let place = Place { store: settings.open().await, settings };
                    if known.is_none() {
                        let read = self.read(&place, late).await;
                        known = Some(Known { since: Instant::now(), read });
                    }
                    let same = |settings: Option<&Settings>| settings == Some(&place.settings);
                    let leaving = tokio::select! {
                        leaving = self.until_changed(&mut changes, same, late) => leaving,
                        never = self.write_all(&place) => match never {},
                    };
                    if leaving
                        && !late.is_cancelled()
                        && let Some(known) = &known
                    {
                        tokio::select! {
                            () = self.write_last(&place, known) => {}
                            () = late.cancelled() => self.cache.metrics.snapshots.came(Direction::Written, Came::Late),
                        }
                    }
                    // Also of what was under way when that changed.
                    place.store.settled().await;
                    leaving
                }
            };
            if leaving {
                return;
            }
        }
    }

    /// What the configuration says. Tells what is wrong with it once.
    fn settings(&self, told: &mut Option<String>) -> Option<Settings> {
        match Settings::of(&self.config.load(), &self.secrets) {
            Ok(settings) => settings,
            Err(why) => {
                if told.as_ref() != Some(&why) {
                    tracing::error!(why, "There are no snapshots of the cache.");
                }
                *told = Some(why);
                None
            }
        }
    }

    /// Waits until other settings hold, or the pod leaves: true.
    async fn until_changed(
        &self,
        changes: &mut watch::Receiver<u64>,
        same: impl Fn(Option<&Settings>) -> bool,
        late: &CancellationToken,
    ) -> bool {
        loop {
            tokio::select! {
                () = self.leaves(late) => return true,
                changed = changes.changed() => match changed {
                    Err(_) => return true,
                    Ok(()) if same(self.settings(&mut None).as_ref()) => {}
                    Ok(()) => return false,
                },
            }
        }
    }

    /// Waits until the pod leaves, or has no time left.
    async fn leaves(&self, late: &CancellationToken) {
        tokio::select! {
            () = self.drain.reached(Phase::Announced) => {}
            () = late.cancelled() => {}
        }
    }

    /// Reads the snapshot. Whether that is known now which is there.
    async fn read(&self, place: &Place, late: &CancellationToken) -> bool {
        let deadline = Instant::now() + place.settings.load_timeout;
        let reading = async {
            self.purges_are_known(deadline).await;
            self.take(place, deadline).await
        };
        let came = tokio::select! {
            came = reading => came,
            // Blocking threads see it by themselves.
            () = sleep_until(deadline.into()) => Came::Late,
            () = self.leaves(late) => Came::Late,
        };
        self.cache.metrics.snapshots.came(Direction::Read, came);
        matches!(came, Came::Done | Came::None)
    }

    /// Waits for the log of purges that pods share, if they do.
    async fn purges_are_known(&self, deadline: Instant) {
        let until = deadline.min(Instant::now() + PURGES);
        while self.cache.purges.is_cut_off() == Some(true) && Instant::now() < until {
            sleep(LOOK).await;
        }
    }

    async fn take(&self, place: &Place, deadline: Instant) -> Came {
        let Settings { key, max_bytes, .. } = &place.settings;
        let got = match place.store.get(key, None).await {
            Ok(got) => got,
            Err(error) if error.kind() == Kind::NotFound => return Came::None,
            Err(error) => {
                tracing::warn!(why = error.chain(), "The snapshot of the cache can't be read.");
                return Came::Failed;
            }
        };
        let content = got.content.map(|piece| piece.map_err(|error| error.chain()));
        let spooled = async { Spool::new(&self.spool, *max_bytes, &self.cache).await?.take(&self.cache, content).await };
        let imported = match spooled.await {
            Ok(file) => {
                self.cache.metrics.snapshots.bytes(Direction::Read, got.entry.bytes);
                self.import(file, deadline).await
            }
            Err(error) => Err(error),
        };
        match imported {
            Ok(imported) => {
                self.cache.metrics.transfer.imported("snapshot", &imported);
                tracing::info!(
                    imported = imported.imported,
                    answers = imported.answers,
                    to_validate = imported.to_validate,
                    skipped = ?imported.skipped,
                    "A snapshot of the cache was read."
                );
                Came::Done
            }
            Err(error) => {
                tracing::warn!(%error, at = place.store.place(key.as_str()), "A snapshot of the cache is not used.");
                if matches!(error, SpoolError::Damaged(_)) { Came::Damaged } else { Came::Failed }
            }
        }
    }

    /// On a thread where nobody waits for it; slower while memory is short, and to no end if the time is over.
    async fn import(&self, file: std::fs::File, deadline: Instant) -> Result<Imported, SpoolError> {
        let (cache, config) = (Arc::clone(&self.cache), Arc::clone(&self.config.load()));
        let (pressure, stop) = (Weak::clone(&self.pressure), Arc::new(AtomicBool::new(false)));
        let _stops = Stops(Arc::clone(&stop));
        let import = spawn_blocking(move || {
            let short = || pressure.upgrade().is_some_and(|pressure| pressure.is(Step::Reclaim));
            let mut goes_on = || {
                while short() && !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                    thread::sleep(LOOK);
                }
                !stop.load(Ordering::Relaxed) && Instant::now() < deadline
            };
            Import::new(&cache, &config, false).file(file, &mut goes_on)
        });
        import.await.unwrap_or_else(|ended| Err(SpoolError::Io(std::io::Error::other(ended))))
    }

    /// Writes snapshots, for ever.
    async fn write_all(&self, place: &Place) -> std::convert::Infallible {
        let interval = place.settings.interval;
        loop {
            // Apart from other pods, or all would write at once.
            sleep(interval.mul_f64(1.0 + fastrand::f64() / 4.0)).await;
            while !self.write(place, interval).await {
                sleep(AGAIN.min(interval).mul_f64(1.0 + fastrand::f64())).await;
            }
        }
    }

    /// Writes the last one of this pod, if it is worth it: who has only begun would take the place of one that holds more.
    async fn write_last(&self, place: &Place, known: &Known) {
        if known.read || known.since.elapsed() >= place.settings.interval {
            self.write(place, place.settings.interval / LAST).await;
        }
    }

    /// Writes a snapshot if the one that is there is older. Whether there is one of at most this age now, or nothing to write.
    async fn write(&self, place: &Place, older: Duration) -> bool {
        let came = match timeout(WRITING, self.put(place, older)).await {
            Ok(Ok(came)) => came,
            Ok(Err(error)) => {
                tracing::warn!(why = error.chain(), "A snapshot of the cache could not be written.");
                Came::Failed
            }
            Err(_) => {
                tracing::warn!(
                    at = place.store.place(place.settings.key.as_str()),
                    "A snapshot of the cache took too long to write."
                );
                Came::Late
            }
        };
        self.cache.metrics.snapshots.came(Direction::Written, came);
        !matches!(came, Came::Failed | Came::Late)
    }

    async fn put(&self, place: &Place, older: Duration) -> Result<Came, archive::Error> {
        let Settings { key, max_bytes, .. } = &place.settings;
        if let Some(entry) = place.store.head(key).await?
            && SystemTime::now().duration_since(entry.modified).unwrap_or_default() < older
        {
            return Ok(Came::Recent);
        }
        let (cache, most) = (Arc::clone(&self.cache), *max_bytes);
        let objects = spawn_blocking(move || most_used(&cache, most)).await.unwrap_or_default();
        if objects.is_empty() {
            return Ok(Came::None);
        }
        let pieces = Export::of(Arc::clone(&self.cache), objects).pieces(());
        let bytes = place.store.put(key, pieces.boxed(), Condition::Always).await?;
        self.cache.metrics.snapshots.bytes(Direction::Written, bytes);
        Ok(Came::Done)
    }
}

/// Ends what runs on a thread of its own when this is dropped.
struct Stops(Arc<AtomicBool>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
