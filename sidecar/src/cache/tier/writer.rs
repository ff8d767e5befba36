//! Writes to Redis, beside the requests, one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, Script, Value};
use tokio::sync::mpsc;

use super::{
    Tier,
    commands::Key,
    lease::{Lease, UNCACHEABLE},
    metrics::Metrics,
};
use crate::{
    cache::{
        record::{self, Answer, Record},
        store::Vary,
    },
    redis::{Failed, Pool},
};

/// Writes that wait, at most.
const WAITING: usize = 256;
/// Bytes of answers that wait to be written, at most.
const WAITING_BYTES: u64 = 16 << 20;
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// For how long an answer is kept, at most, and the marker of its variants always.
const LONGEST: u64 = 7 * 24 * 3600 * 1000;
/// For how long nobody waits for a key whose answer was for one client alone.
const MARK: Duration = Duration::from_secs(120);
/// What a small write counts for in the queue, in bytes.
const SMALL: u64 = 256;

/// Unless another pod has begun to fetch since. KEYS: record, lease. ARGV: record, milliseconds, token.
const PUT: &str = "local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[3] and holder ~= '-' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if holder == ARGV[3] then redis.call('DEL', KEYS[2]) end
return 1";
/// KEYS: lease. ARGV: token.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 0";
/// KEYS: lease. ARGV: token, what stands in its place, milliseconds.
const REPLACE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end return 0";

/// Something to be written.
#[derive(Debug)]
pub(super) enum Write {
    /// An answer, with the names of its `Vary`, and how long it is of use, in milliseconds.
    Put { answer: Box<Answer>, vary: Option<Vary>, left: u64, lease: Option<Lease> },
    /// What a key leads to goes.
    Remove(Key),
    /// A lease is given back.
    Release { fill: String, token: String },
    /// Nobody needs to wait for this key.
    Mark { fill: String, token: String },
}

impl Write {
    /// What it counts for in the queue.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Put { answer, .. } => answer.object.encoded_len() + SMALL,
            _ => SMALL,
        }
    }
}

/// Where writes wait. Clones are one queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    writes: mpsc::Sender<Write>,
    bytes: Arc<AtomicU64>,
}

impl Queue {
    /// An empty one, and where it ends.
    pub(super) fn new() -> (Self, mpsc::Receiver<Write>) {
        let (writes, written) = mpsc::channel(WAITING);
        (Self { writes, bytes: Arc::default() }, written)
    }

    /// Adds a write. False if there is no room for it.
    pub(super) fn add(&self, write: Write) -> bool {
        let bytes = write.bytes();
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let added = before + bytes <= WAITING_BYTES && self.writes.try_send(write).is_ok();
        if !added {
            self.left(bytes);
        }
        added
    }

    fn left(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Who writes.
struct Writer {
    prefix: String,
    pool: Arc<Pool>,
    metrics: Metrics,
    put: Script,
    release: Script,
    replace: Script,
}

/// Writes for a tier what comes, until that is dropped.
pub(super) fn spawn(tier: &Tier, mut written: mpsc::Receiver<Write>) {
    let writer = Writer {
        prefix: tier.settings.prefix.clone(),
        pool: Arc::clone(&tier.pool),
        metrics: tier.metrics.clone(),
        put: Script::new(PUT),
        release: Script::new(RELEASE),
        replace: Script::new(REPLACE),
    };
    let (stop, queue) = (tier.stop.clone(), tier.queue.clone());
    tokio::spawn(async move {
        let write_all = async {
            while let Some(write) = written.recv().await {
                let bytes = write.bytes();
                writer.write(write).await;
                queue.left(bytes);
            }
        };
        stop.run_until_cancelled(write_all).await
    });
}

impl Writer {
    async fn write(&self, write: Write) {
        let (key, pipe) = match write {
            Write::Put { answer, vary, left, lease } => {
                let result = match self.put(&answer, vary.as_ref(), left.clamp(1, LONGEST), lease).await {
                    Ok(()) => "stored",
                    Err(Failed::Away) => "dropped",
                    Err(Failed::Late | Failed::Error) => "failed",
                };
                return self.metrics.written(result);
            }
            Write::Remove(key) => self.call(key.record, |pipe, key| drop(pipe.cmd("UNLINK").arg(key).ignore())),
            Write::Release { fill, token } => self.call(fill, |pipe, fill| {
                let mut call = self.release.prepare_invoke();
                call.key(fill).arg(token);
                pipe.load_script(&self.release).ignore().invoke_script(&call).ignore();
            }),
            Write::Mark { fill, token } => self.call(fill, |pipe, fill| {
                let mut call = self.replace.prepare_invoke();
                call.key(fill).arg(token).arg(UNCACHEABLE).arg(MARK.as_millis() as u64);
                pipe.load_script(&self.replace).ignore().invoke_script(&call).ignore();
            }),
        };
        // What fails here runs out by itself.
        let _ = self.pool.ask(&key, &pipe, PATIENCE).await;
    }

    fn call(&self, key: String, command: impl FnOnce(&mut Pipeline, &str)) -> (String, Pipeline) {
        let mut pipe = redis::pipe();
        command(&mut pipe, &key);
        (key, pipe)
    }

    /// Stores an answer. A lease that is left is released after all of it.
    async fn put(&self, answer: &Answer, vary: Option<&Vary>, left: u64, lease: Option<Lease>) -> Result<(), Failed> {
        let (primary, variant) = (answer.object.primary(), answer.object.variant());
        let (marker, record) = (Key::of(&self.prefix, primary), record::of_answer(answer));
        let Some(vary) = vary else { return self.set(&marker, &record, left, lease).await };
        let (found, holder) = self.marker(&marker).await?;
        let is_ours =
            |lease: &Lease| !lease.is_on(&marker) || holder.is_none_or(|holder| holder == lease.token() || holder == UNCACHEABLE);
        if !lease.as_ref().is_none_or(is_ours) {
            return Ok(()); // another pod has begun to fetch since
        }
        let era = found.filter(|(names, _)| names == vary).map_or_else(|| fastrand::u64(..), |(_, era)| era);
        let key = Key::of_variant(&self.prefix, primary, variant, era);
        let (on_variant, on_marker) =
            if lease.as_ref().is_some_and(|lease| lease.is_on(&key)) { (lease, None) } else { (None, lease) };
        self.set(&key, &record, left, on_variant).await?;
        // Behind what it leads to: who waits looks for that as soon as it is there.
        let done = self.set(&marker, &record::of_vary(vary, era), LONGEST, None).await;
        drop(on_marker);
        done
    }

    /// The marker of the variants that are there, and who fetches what its key leads to.
    async fn marker(&self, key: &Key) -> Result<(Option<(Vary, u64)>, Option<String>), Failed> {
        let mut pipe = redis::pipe();
        pipe.get(&key.record).get(&key.fill);
        let answered = self.pool.ask(&key.record, &pipe, PATIENCE).await?;
        let bytes = |at: usize| match answered.get(at) {
            Some(Value::BulkString(bytes)) => Some(bytes.as_slice()),
            _ => None,
        };
        let marker = match bytes(0).map(|bytes| record::read(bytes, 0)) {
            Some(Ok(Record::Vary { vary, era })) => Some((vary, era)),
            _ => None,
        };
        Ok((marker, bytes(1).map(|holder| String::from_utf8_lossy(holder).into_owned())))
    }

    /// Stores a record, with the lease on it unless another pod has that by now.
    async fn set(&self, key: &Key, record: &[u8], left: u64, lease: Option<Lease>) -> Result<(), Failed> {
        let mut pipe = redis::pipe();
        match lease.map(Lease::spend) {
            None => drop(pipe.cmd("SET").arg(&key.record).arg(record).arg("PX").arg(left).ignore()),
            Some((fill, token)) => {
                let mut call = self.put.prepare_invoke();
                call.key(&key.record).key(fill).arg(record).arg(left).arg(token);
                pipe.load_script(&self.put).ignore().invoke_script(&call).ignore();
            }
        }
        self.pool.ask(&key.record, &pipe, PATIENCE).await.map(drop)
    }
}
