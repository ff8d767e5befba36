//! Brings segments to a store.
//!
//! Each has a name that depends on nothing but itself and is put only if there is none of it, so one that is uploaded twice is stored once. It is
//! looked at afterwards: a store that says yes and has nothing is asked again.

use std::{fs, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Closed, Left, Reason, SegmentId, Spool, recover};
use crate::{Body, Condition, Key, Kind, Store, segment::FOOTER_LENGTH};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// How segments are named in a store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Names {
    /// What all begin with: nothing, or what ends in a slash.
    prefix: String,
    /// Whose they are.
    pod: String,
}

impl Names {
    /// `{prefix}{yyyy}/{mm}/{dd}/{hh}/{pod}-{incarnation}-{sequence}.fxs`, where `pod` is the uid of the pod.
    ///
    /// # Errors
    /// These are no names.
    pub fn new(prefix: impl Into<String>, pod: impl Into<String>) -> Result<Self, crate::Error> {
        let names = Self { prefix: prefix.into(), pod: pod.into() };
        names.key(SegmentId { incarnation: u64::MAX, sequence: u64::MAX }, 0)?;
        Ok(names)
    }

    /// The name of a segment that was begun then, in nanoseconds since 1970.
    ///
    /// # Errors
    /// It would be too long: it never is for one of a spool.
    pub fn key(&self, id: SegmentId, created: i64) -> Result<Key, crate::Error> {
        let hour = jiff::Timestamp::from_nanosecond(created.into()).unwrap_or_default().strftime("%Y/%m/%d/%H").to_string();
        Key::new(format!("{}{hour}/{}-{id}.fxs", self.prefix, self.pod))
    }
}

/// How long a store is given, and when it is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// How long one upload may take.
    pub patience: Duration,
    /// How long it is waited after the first failure; twice as long after each further one.
    pub first: Duration,
    /// How long at most; and at once after what doesn't pass by itself, such as a missing permission.
    pub most: Duration,
}

impl Default for Retry {
    /// Five minutes; a second to a minute.
    fn default() -> Self {
        Self { patience: Duration::from_secs(300), first: Duration::from_secs(1), most: Duration::from_secs(60) }
    }
}

/// Why a segment is not uploaded.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store says why.
    #[error("a segment can't be stored")]
    Store(#[from] crate::Error),
    /// It took too long.
    #[error("{0}: it was not stored in {1:?}")]
    TooSlow(String, Duration),
    /// The store said that it has it, and has not.
    #[error("{0}: the store acknowledged it, and does not have it")]
    NotThere(String),
    /// Its file can't be read, or what is damaged of it not be written down.
    #[error("a segment can't be read from the spool's folder")]
    Disk(#[source] io::Error),
    /// It is in the store, and that can't be written down.
    #[error("what is stored can't be written down in the spool's folder")]
    Ledger(#[source] io::Error),
}

impl UploadError {
    /// Whether the same may be tried again soon.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => error.kind().may_pass(),
            Self::TooSlow(..) | Self::NotThere(..) | Self::Disk(..) | Self::Ledger(..) => true,
        }
    }
}

/// Uploads the segments of a spool.
#[derive(Debug)]
pub struct Uploader {
    spool: Arc<Spool>,
    store: Arc<dyn Store>,
    names: Names,
    retry: Retry,
}

impl Uploader {
    /// One for a spool and a store.
    pub fn new(spool: Arc<Spool>, store: Arc<dyn Store>, names: Names, retry: Retry) -> Self {
        Self { spool, store, names, retry }
    }

    /// Uploads all that is closed, and whatever will be, until it is dropped. `told` hears of each attempt.
    pub async fn run(&self, mut told: impl FnMut(Result<SegmentId, &UploadError>)) {
        let mut failures = 0;
        loop {
            let closed = self.spool.shared.closed.notified();
            match self.upload_next().await {
                Ok(Some(id)) => {
                    failures = 0;
                    told(Ok(id));
                }
                Ok(None) => closed.await,
                Err(error) => {
                    told(Err(&error));
                    sleep(self.pause(&error, failures)).await;
                    failures += 1;
                }
            }
        }
    }

    /// The end of a process: closes the spool and uploads what it has, all of it within so long. What is left then waits for the next process.
    /// [`Self::run`] has to be dropped before.
    pub async fn finish(&self, patience: Duration) -> Left {
        let deadline = Instant::now() + patience;
        let spool = self.spool.clone();
        // A disk that hangs must not take all of the time.
        let _ = tokio::task::spawn_blocking(move || spool.close(patience / 2)).await;
        self.drain(deadline.saturating_duration_since(Instant::now())).await
    }

    /// Uploads what is closed, for at most so long; what is left then.
    pub async fn drain(&self, patience: Duration) -> Left {
        let deadline = Instant::now() + patience;
        let all = async {
            let mut failures = 0;
            loop {
                match self.upload_next().await {
                    Ok(Some(_)) => failures = 0,
                    Ok(None) => return,
                    Err(error) => {
                        sleep(self.pause(&error, failures)).await;
                        failures += 1;
                    }
                }
            }
        };
        let _ = timeout_at(deadline, all).await;
        self.spool.left()
    }

    /// Uploads the oldest segment that waits, of those that have failed least often. None if none waits.
    ///
    /// # Errors
    /// Why it still waits.
    pub async fn upload_next(&self) -> Result<Option<SegmentId>, UploadError> {
        let Some(segment) = self.spool.begin_upload() else { return Ok(None) };
        let mut uploading = Uploading { spool: &self.spool, id: segment.id, failed: true };
        self.check(&segment).await?;
        let key = self.names.key(segment.id, segment.created)?;
        let what = match timeout(self.retry.patience, self.upload(&segment, &key)).await {
            Ok(uploaded) => uploaded?,
            Err(_) => return Err(UploadError::TooSlow(self.store.place(key.as_str()), self.retry.patience)),
        };
        let (spool, id) = (self.spool.clone(), segment.id);
        let settled = tokio::task::spawn_blocking(move || match what {
            None => spool.stored(id),
            Some(reason) => spool.give_up(id, reason),
        });
        settled.await.map_err(|error| UploadError::Ledger(io::Error::other(error)))?.map_err(UploadError::Ledger)?;
        uploading.failed = false;
        Ok(Some(segment.id))
    }

    /// Reads a file before it is stored: what the disk has damaged since must not be counted as stored.
    async fn check(&self, segment: &Closed) -> Result<(), UploadError> {
        let (spool, id, path) = (self.spool.clone(), segment.id, segment.path.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let file = match fs::File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            match recover::readable(&file)? {
                Some(records) => spool.shared.shrink(id, records),
                None => Ok(()),
            }
        });
        checked.await.map_err(|error| UploadError::Ledger(io::Error::other(error)))?.map_err(UploadError::Disk)
    }

    /// Brings a segment into the store. Why it never can be there, if so.
    async fn upload(&self, segment: &Closed, key: &Key) -> Result<Option<Reason>, UploadError> {
        let file = match tokio::fs::File::open(&segment.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Reason::Missing)),
            Err(error) => {
                let place = segment.path.display().to_string();
                return Err(crate::Error::new(Kind::Source, place, "it can't be read").because(error).into());
            }
        };
        match self.store.put(key, body(file), Condition::IfAbsent).await {
            Ok(_) => self.look(segment, key).await.map(|()| None),
            Err(error) if error.kind() == Kind::Exists => self.compare(segment, key).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the store has what it acknowledged. One that does not let us look is believed.
    async fn look(&self, segment: &Closed, key: &Key) -> Result<(), UploadError> {
        match self.store.head(key).await {
            Ok(Some(entry)) if entry.bytes == segment.bytes => Ok(()),
            Ok(_) => Err(UploadError::NotThere(self.store.place(key.as_str()))),
            Err(error) if error.kind() == Kind::Denied => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether what is there under the name is this segment: it is as long and ends the same, with an id and checksums that no other has.
    async fn compare(&self, segment: &Closed, key: &Key) -> Result<Option<Reason>, UploadError> {
        let end = segment.bytes.saturating_sub(FOOTER_LENGTH as u64)..segment.bytes;
        let got = match self.store.get(key, Some(end.clone())).await {
            Ok(got) => got,
            Err(error) if error.kind() == Kind::Denied => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let length = got.entry.bytes;
        let there: Vec<Bytes> = got.content.try_collect().await?;
        let ours = read_end(segment, end.start).await.map_err(|error| {
            crate::Error::new(Kind::Source, segment.path.display().to_string(), "it can't be read").because(error)
        })?;
        let same = length == segment.bytes && there.concat() == ours;
        Ok(if same { None } else { Some(Reason::NameTaken) })
    }

    /// How long it is waited after a failure, with chance in it so that not all pods come at once.
    fn pause(&self, error: &UploadError, failures: u32) -> Duration {
        let Retry { first, most, .. } = self.retry;
        let pause = match error.may_pass() {
            true => first.saturating_mul(1 << failures.min(20)).min(most),
            // At most once in that time.
            false => return most.mul_f64(1.0 + fastrand::f64() / 2.0),
        };
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// A segment that is on its way. Whatever becomes of that, it isn't any more when this is dropped.
struct Uploading<'a> {
    spool: &'a Spool,
    id: SegmentId,
    failed: bool,
}

impl Drop for Uploading<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.spool.shared.state().closed.get_mut(&self.id) {
            waiting.uploading = false;
            waiting.failures += u32::from(self.failed);
        }
    }
}

impl Spool {
    /// The segment that is next, and is not on its way. It is now. One that can't be stored lets the others pass.
    fn begin_upload(&self) -> Option<Closed> {
        let mut state = self.shared.state();
        let waiting = state.closed.iter_mut().filter(|(_, waiting)| !waiting.uploading);
        let (id, waiting) = waiting.min_by_key(|(_, waiting)| waiting.failures)?;
        waiting.uploading = true;
        Some(waiting.describe(*id, &self.shared.settings.folder))
    }
}

fn body(file: tokio::fs::File) -> Body {
    stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), Some(file)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

async fn read_end(segment: &Closed, from: u64) -> io::Result<Vec<u8>> {
    use tokio::io::AsyncSeekExt as _;
    let mut file = tokio::fs::File::open(&segment.path).await?;
    file.seek(io::SeekFrom::Start(from)).await?;
    let mut end = Vec::new();
    file.take(FOOTER_LENGTH as u64).read_to_end(&mut end).await?;
    Ok(end)
}
