//! Writes to Redis, beside the requests, one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, Script};
use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::{
    Tier,
    commands::Key,
    lease::{Lease, UNCACHEABLE},
    metrics::Metrics,
};
use crate::{
    cache::{
        record::{self, Answer},
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
        let is_put = matches!(write, Write::Put { .. });
        let mut result = "stored";
        for (key, pipe) in self.commands(write) {
            match self.pool.ask(&key, &pipe, PATIENCE).await {
                Ok(_) => {}
                // A lease in it asks for its release, which comes here too.
                Err(Failed::Away) => result = "dropped",
                Err(Failed::Late | Failed::Error) => result = "failed",
            }
            if result != "stored" {
                break;
            }
        }
        if is_put {
            self.metrics.written(result);
        }
    }

    /// Commands by a key of theirs: the marker of variants has a slot of its own.
    fn commands(&self, write: Write) -> SmallVec<[(String, Pipeline); 2]> {
        let mut all = SmallVec::new();
        let mut pipe = redis::pipe();
        match write {
            Write::Put { answer, vary, left, lease } => {
                let primary = answer.object.primary();
                if let Some(vary) = &vary {
                    let marker = Key::of(&self.prefix, primary, &[]).record;
                    let mut set = redis::pipe();
                    set.cmd("SET").arg(&marker).arg(record::of_vary(vary)).arg("PX").arg(LONGEST).ignore();
                    all.push((marker, set));
                }
                let key = Key::of(&self.prefix, primary, answer.object.variant());
                let (record, left) = (record::of_answer(&answer), left.clamp(1, LONGEST));
                match lease.map(Lease::spend) {
                    None => drop(pipe.cmd("SET").arg(&key.record).arg(record).arg("PX").arg(left).ignore()),
                    Some((fill, token)) => {
                        let mut call = self.put.prepare_invoke();
                        call.key(&key.record).key(fill).arg(record).arg(left).arg(token);
                        pipe.load_script(&self.put).ignore().invoke_script(&call).ignore();
                    }
                }
                all.push((key.record, pipe));
            }
            Write::Remove(key) => {
                pipe.cmd("UNLINK").arg(&key.record).ignore();
                all.push((key.record, pipe));
            }
            Write::Release { fill, token } => {
                let mut call = self.release.prepare_invoke();
                call.key(&fill).arg(token);
                pipe.load_script(&self.release).ignore().invoke_script(&call).ignore();
                all.push((fill, pipe));
            }
            Write::Mark { fill, token } => {
                let mut call = self.replace.prepare_invoke();
                call.key(&fill).arg(token).arg(UNCACHEABLE).arg(MARK.as_millis() as u64);
                pipe.load_script(&self.replace).ignore().invoke_script(&call).ignore();
                all.push((fill, pipe));
            }
        }
        all
    }
}
