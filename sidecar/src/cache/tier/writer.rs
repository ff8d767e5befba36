//! Writes to Redis, beside the requests, one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, Script, Value};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Tier,
    commands::{Key, get_holder},
    lease::{Lease, UNCACHEABLE},
};
use crate::{
    cache::{
        behind::Tally,
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
/// How long a removal is tried, as failovers take that long, and how long it waits between two times.
const REMOVAL: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);
/// For how long an answer is kept, at most, and the marker of its variants always.
const LONGEST: u64 = 7 * 24 * 3600 * 1000;
/// For how long nobody waits for a key whose answer was for one client alone.
const MARK: Duration = Duration::from_secs(120);
/// How often a variant is stored anew whose marker others have changed meanwhile.
const TRIES: u32 = 3;
/// Bytes of what is read of something that stands in a marker's place: more than any marker has. Of an answer that is enough to tell it from
/// others, for it begins with a checksum of all of it.
const LONGEST_MARKER: isize = 8 << 10;
/// What a small write counts for in the queue, in bytes.
const SMALL: u64 = 256;

/// Unless another pod has begun to fetch since. KEYS: record, lease. ARGV: record, milliseconds, token.
const PUT: &str = "local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[3] and holder ~= '-' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if holder == ARGV[3] then redis.call('DEL', KEYS[2]) end
return 1";
/// Unless something else stands there by now. KEYS: marker. ARGV: marker, milliseconds, what stood there and where that ends at most.
const MARKER: &str = "if redis.call('GETRANGE', KEYS[1], 0, ARGV[4]) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
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
    tally: Tally,
    put: Script,
    mark: Script,
    release: Script,
    replace: Script,
}

/// Writes for a tier what comes, until that is dropped.
pub(super) fn spawn(tier: &Tier, mut written: mpsc::Receiver<Write>) {
    let writer = Writer {
        prefix: tier.settings.prefix.clone(),
        pool: Arc::clone(&tier.pool),
        tally: tier.tally.clone(),
        put: Script::new(PUT),
        mark: Script::new(MARKER),
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
                    Ok(true) => "stored",
                    Ok(false) => "outrun",
                    Err(Failed::Away | Failed::Barred | Failed::Untrusted) => "dropped",
                    Err(Failed::Late | Failed::Error) => "failed",
                };
                return self.tally.written(result);
            }
            Write::Remove(key) => return self.remove(key).await,
            Write::Release { fill, token } => call(fill, |pipe, fill| {
                let mut call = self.release.prepare_invoke();
                call.key(fill).arg(token);
                pipe.load_script(&self.release).ignore().invoke_script(&call).ignore();
            }),
            Write::Mark { fill, token } => call(fill, |pipe, fill| {
                let mut call = self.replace.prepare_invoke();
                call.key(fill).arg(token).arg(UNCACHEABLE).arg(MARK.as_millis() as u64);
                pipe.load_script(&self.replace).ignore().invoke_script(&call).ignore();
            }),
        };
        // What fails here runs out by itself.
        let _ = self.pool.ask(&key, &pipe, PATIENCE).await;
    }

    /// Takes something out, also if Redis can't be asked for a while: what was changed would come back from there.
    async fn remove(&self, key: Key) {
        let (key, pipe) = call(key.record, |pipe, key| {
            pipe.cmd("UNLINK").arg(key).ignore();
        });
        let tried = async {
            while self.pool.ask(&key, &pipe, PATIENCE).await.is_err() {
                sleep(AGAIN).await;
            }
        };
        if timeout(REMOVAL, tried).await.is_err() {
            self.tally.written("left");
        }
    }

    /// Stores an answer; false if it was outrun. A lease that is left is released after all of it.
    async fn put(&self, answer: &Answer, vary: Option<&Vary>, left: u64, mut lease: Option<Lease>) -> Result<bool, Failed> {
        let (primary, variant) = (answer.object.primary(), answer.object.variant());
        let (at, record) = (Key::of(&self.prefix, primary), record::of_answer(answer));
        let Some(vary) = vary else { return self.set(&at, &record, left, lease).await };
        for _ in 0..TRIES {
            let (there, holder) = self.marker(&at).await?;
            let is_others = |lease: &Lease| {
                lease.is_on(&at) && holder.as_ref().is_some_and(|holder| holder != lease.token() && holder != UNCACHEABLE)
            };
            if lease.as_ref().is_some_and(is_others) {
                break;
            }
            let era = era_of(&there, vary).unwrap_or_else(|| fastrand::u64(..));
            let key = Key::of_variant(&self.prefix, primary, variant, era);
            let on_variant = lease.take_if(|lease| lease.is_on(&key));
            if !self.set(&key, &record, left, on_variant).await? {
                break;
            }
            // Behind what it leads to: who waits looks for that as soon as it is there. If the variants were taken out meanwhile, in another era.
            if self.mark(&at, &record::of_vary(vary, era), &there).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How what stands where the marker of variants has its place begins, empty if nothing does, and who fetches what its key leads to.
    async fn marker(&self, key: &Key) -> Result<(Vec<u8>, Option<String>), Failed> {
        let mut pipe = redis::pipe();
        pipe.getrange(&key.record, 0, LONGEST_MARKER);
        get_holder(&mut pipe, &key.fill);
        let mut answered = self.pool.ask(&key.record, &pipe, PATIENCE).await?.into_iter().map(|value| match value {
            Value::BulkString(bytes) => bytes,
            _ => Vec::new(),
        });
        let mut next = || answered.next().unwrap_or_default();
        let (there, holder) = (next(), String::from_utf8_lossy(&next()).into_owned());
        Ok((there, Some(holder).filter(|holder| !holder.is_empty())))
    }

    /// Stores a marker, unless what stands there is not what was read.
    async fn mark(&self, key: &Key, marker: &[u8], there: &[u8]) -> Result<bool, Failed> {
        let mut call = self.mark.prepare_invoke();
        call.key(&key.record).arg(marker).arg(LONGEST).arg(there).arg(LONGEST_MARKER);
        let mut pipe = redis::pipe();
        pipe.load_script(&self.mark).ignore().invoke_script(&call);
        self.pool.ask(&key.record, &pipe, PATIENCE).await.map(|done| !is_refused(&done))
    }

    /// Stores a record, with the lease on it unless another pod has that by now: then false.
    async fn set(&self, key: &Key, record: &[u8], left: u64, lease: Option<Lease>) -> Result<bool, Failed> {
        let mut pipe = redis::pipe();
        match lease.map(Lease::spend) {
            None => {
                pipe.cmd("SET").arg(&key.record).arg(record).arg("PX").arg(left);
            }
            Some((fill, token)) => {
                let mut call = self.put.prepare_invoke();
                call.key(&key.record).key(fill).arg(record).arg(left).arg(token);
                pipe.load_script(&self.put).ignore().invoke_script(&call);
            }
        }
        self.pool.ask(&key.record, &pipe, PATIENCE).await.map(|done| !is_refused(&done))
    }
}

fn call(key: String, command: impl FnOnce(&mut Pipeline, &str)) -> (String, Pipeline) {
    let mut pipe = redis::pipe();
    command(&mut pipe, &key);
    (key, pipe)
}

/// The era of a marker, if it is one of the same fields.
fn era_of(marker: &[u8], of: &Vary) -> Option<u64> {
    match record::read(marker, 0) {
        Ok(Record::Vary { vary, era }) if vary == *of => Some(era),
        _ => None,
    }
}

/// Whether a script has said that it did nothing.
fn is_refused(answered: &[Value]) -> bool {
    answered.contains(&Value::Int(0))
}
