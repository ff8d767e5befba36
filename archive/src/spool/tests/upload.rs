//! What comes into a store, whatever that answers.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};

use super::*;
use crate::{
    Body, Condition, Entry, Error as StoreError, Got, Key, Kind, Store,
    file::Folder,
    segment,
    spool::{Left, Reason, Retry, Spool, UploadError, Uploader},
};

/// A store whose answers are written down beforehand; what it stores lies in a folder.
#[derive(Debug)]
pub(super) struct Scripted {
    folder: Folder,
    answers: Mutex<Vec<Answer>>,
    asked: Mutex<Vec<tokio::time::Instant>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Fails(Kind),
    /// It is stored, and the answer is lost.
    Lost,
    /// It says yes and stores nothing.
    Lies,
    Hangs,
}

impl Scripted {
    pub(super) fn new(folder: &Path, answers: &[Answer]) -> Arc<Self> {
        let answers = Mutex::new(answers.iter().rev().copied().collect());
        Arc::new(Self { folder: Folder::new(folder), answers, asked: Mutex::default() })
    }
}

#[async_trait]
impl Store for Scripted {
    async fn put(&self, key: &Key, body: Body, condition: Condition) -> Result<u64, StoreError> {
        self.asked.lock().unwrap().push(tokio::time::Instant::now());
        let answer = self.answers.lock().unwrap().pop();
        match answer {
            None => self.folder.put(key, body, condition).await,
            Some(Answer::Fails(kind)) => Err(StoreError::new(kind, self.place(key.as_str()), "it can't be put")),
            Some(Answer::Lost) => {
                self.folder.put(key, body, condition).await?;
                Err(StoreError::new(Kind::Unavailable, self.place(key.as_str()), "it can't be put"))
            }
            Some(Answer::Lies) => {
                let pieces: Vec<Bytes> = body.try_collect().await.unwrap();
                Ok(pieces.concat().len() as u64)
            }
            Some(Answer::Hangs) => std::future::pending().await,
        }
    }

    async fn get(&self, key: &Key, range: Option<std::ops::Range<u64>>) -> Result<Got, StoreError> {
        self.folder.get(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.folder.head(key).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, StoreError>> {
        self.folder.list(prefix)
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.folder.delete(key).await
    }

    async fn settled(&self) {
        self.folder.settled().await;
    }

    fn place(&self, key: &str) -> String {
        self.folder.place(key)
    }
}

/// The numbers of all records in a store, in the order of the names.
pub(super) async fn in_store(store: &dyn Store) -> Vec<u64> {
    let entries: Vec<Entry> = store.list("").try_collect().await.unwrap();
    let mut all = Vec::new();
    for entry in entries {
        let got = store.get(&Key::new(entry.key).unwrap(), None).await.unwrap();
        let pieces: Vec<Bytes> = got.content.try_collect().await.unwrap();
        all.extend(numbers(&pieces.concat()));
    }
    all
}

fn spool_of(folder: &Path, segments: u64) -> Arc<Spool> {
    let spool = Spool::open(settings(folder)).unwrap();
    for segment in 0..segments {
        push(&spool.pusher(), segment * 10..segment * 10 + 10);
        assert!(spool.rotate(LONG));
    }
    Arc::new(spool)
}

pub(super) fn retry() -> Retry {
    Retry { patience: Duration::from_secs(300), first: Duration::from_millis(2), most: Duration::from_millis(20) }
}

#[tokio::test]
async fn segments_come_into_the_store_and_leave_the_folder() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, store) = (spool_of(folder.path(), 3), Arc::new(Folder::new(there.path())));
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), retry());
    assert_eq!(uploader.drain(LONG).await, Left::default());
    assert_eq!(in_store(&*store).await, (0..30).collect::<Vec<_>>());
    assert!(files(folder.path(), "fxs").is_empty());
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.bytes), (30, bytes_of(folder.path())));
    // And whatever is closed later.
    let (told, mut stored) = tokio::sync::mpsc::unbounded_channel();
    let running = tokio::spawn(async move {
        uploader.run(move |what| drop(told.send(what.map_err(ToString::to_string)))).await;
    });
    push(&spool.pusher(), 30..31);
    assert!(spool.rotate(LONG));
    let id = tokio::time::timeout(LONG, stored.recv()).await.unwrap().unwrap().unwrap();
    assert_eq!((id.sequence, spool.snapshot().stored), (4, 31));
    running.abort();
}

#[tokio::test]
async fn process_that_ends_stores_what_was_in_memory_and_says_what_is_left() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, store) = (spool_of(folder.path(), 1), Arc::new(Folder::new(there.path())));
    push(&spool.pusher(), 10..15);
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), retry());
    assert_eq!(uploader.finish(LONG).await, Left::default());
    assert_eq!(in_store(&*store).await, (0..15).collect::<Vec<_>>());
    let other = tempfile::tempdir().unwrap();
    let spool = spool_of(other.path(), 2);
    let uploader = Uploader::new(spool.clone(), Scripted::new(there.path(), &[Answer::Hangs; 9]), names(), retry());
    let left = uploader.finish(Duration::from_millis(200)).await;
    assert_eq!((left.records, left.bytes), (20, spool.closed().iter().map(|closed| closed.bytes).sum()));
}

#[tokio::test]
async fn whatever_a_store_answers_each_record_is_stored_once() {
    use Answer::{Fails, Lies, Lost};
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 4);
    let answers = [Fails(Kind::Unavailable), Lost, Lies, Fails(Kind::Denied), Lies, Lost, Lost, Fails(Kind::Source)];
    let store = Scripted::new(there.path(), &answers);
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), retry());
    assert_eq!(uploader.drain(LONG).await, Left::default());
    assert_eq!(in_store(&*store).await, (0..40).collect::<Vec<_>>());
    assert_eq!((spool.snapshot().stored, spool.snapshot().is_balanced()), (40, true));
}

#[tokio::test(start_paused = true)]
async fn store_that_fails_is_asked_less_and_less_often() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 1);
    let store = Scripted::new(there.path(), &[Answer::Fails(Kind::Unavailable); 200]);
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), Retry::default());
    assert_eq!(uploader.drain(Duration::from_secs(3600)).await.records, 10);
    let asked = store.asked.lock().unwrap().clone();
    let pauses: Vec<f64> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
    for (pause, most) in pauses.iter().zip([1., 2., 4., 8., 16., 32., 60., 60., 60., 60.]) {
        assert!((most / 2.0 - 0.01..=most + 0.01).contains(pause), "{pauses:?}");
    }
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 1);
    let store = Scripted::new(there.path(), &[Answer::Fails(Kind::Denied); 200]);
    let uploader = Uploader::new(spool, store.clone(), names(), Retry::default());
    uploader.drain(Duration::from_secs(3600)).await;
    let asked = store.asked.lock().unwrap().clone();
    assert!(asked.windows(2).all(|two| two[1] - two[0] >= Duration::from_secs(60)), "what isn't allowed is asked once a minute");
}

#[tokio::test(start_paused = true)]
async fn store_that_hangs_is_given_its_time_and_no_more() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 1);
    let store = Scripted::new(there.path(), &[Answer::Hangs, Answer::Hangs]);
    let uploader = Uploader::new(spool.clone(), store, names(), Retry::default());
    let error = uploader.upload_next().await.unwrap_err();
    assert!(matches!(error, UploadError::TooSlow(..)), "{error}");
    let left = uploader.drain(Duration::from_secs(10)).await;
    assert_eq!((left.records, spool.snapshot().stored), (10, 0), "what remains is said");
}

#[tokio::test]
async fn name_that_is_taken_by_something_else_is_not_counted_as_stored() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, store) = (spool_of(folder.path(), 1), Arc::new(Folder::new(there.path())));
    let closed = &spool.closed()[0];
    let other = fs::read(&closed.path).unwrap().iter().map(|byte| byte ^ 1).collect::<Vec<u8>>();
    let body = futures::stream::iter([Ok(Bytes::from(other))]).boxed();
    store.put(&names().key(closed.id, closed.created).unwrap(), body, Condition::Always).await.unwrap();
    let uploader = Uploader::new(spool.clone(), store, names(), retry());
    uploader.drain(LONG).await;
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.dropped(Reason::NameTaken)), (0, 10));
    assert!(snapshot.is_balanced());
}

#[tokio::test]
async fn file_that_somebody_took_away_is_counted_as_missing() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 2);
    fs::remove_file(&spool.closed()[0].path).unwrap();
    let uploader = Uploader::new(spool.clone(), Arc::new(Folder::new(there.path())), names(), retry());
    assert_eq!(uploader.drain(LONG).await.records, 0);
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.dropped(Reason::Missing), snapshot.is_balanced()), (10, 10, true));
}

#[tokio::test]
async fn store_of_a_folder_that_cannot_be_made_gets_it_all_once_it_can() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 3);
    // A file stands where the folder has to be.
    let path = there.path().join("store");
    fs::write(&path, "").unwrap();
    let store = Arc::new(Folder::new(&path));
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), retry());
    let left = uploader.drain(Duration::from_millis(200)).await;
    assert_eq!((left.records, spool.snapshot().stored, files(folder.path(), "fxs").len()), (30, 0, 3));
    fs::remove_file(&path).unwrap();
    assert_eq!(uploader.drain(LONG).await, Left::default());
    assert_eq!(in_store(&*store).await, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn frame_that_the_disk_damages_before_the_upload_is_counted_as_damaged_and_the_rest_as_stored() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let frames = segment::Settings { frame_records: 4, ..segment::Settings::default() };
    let spool = Arc::new(Spool::open(Settings { frames, ..settings(folder.path()) }).unwrap());
    push(&spool.pusher(), 0..10);
    assert!(spool.rotate(LONG));
    let path = spool.closed()[0].path.clone();
    let mut bytes = fs::read(&path).unwrap();
    let entry = Segment::open(&bytes[..], None).unwrap().entries()[1].clone();
    bytes[usize::try_from(entry.data().start + 9).unwrap()] ^= 1;
    fs::write(&path, bytes).unwrap();
    let uploader = Uploader::new(spool.clone(), Arc::new(Folder::new(there.path())), names(), retry());
    assert_eq!(uploader.drain(LONG).await, Left::default());
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.dropped(Reason::Damaged), snapshot.is_balanced()), (6, 4, true));
    drop((uploader, spool));
    let again = Spool::open(settings(folder.path())).unwrap().snapshot();
    assert_eq!((again.stored, again.dropped, again.lost_in_crash), (6, snapshot.dropped, 0), "and it stays so");
}

#[tokio::test]
async fn segment_that_cannot_be_read_lets_the_others_pass() {
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, store) = (spool_of(folder.path(), 3), Arc::new(Folder::new(there.path())));
    let first = &spool.closed()[0].path;
    fs::remove_file(first).unwrap();
    fs::create_dir(first).unwrap();
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), retry());
    let left = uploader.drain(Duration::from_millis(500)).await;
    assert_eq!((left.records, spool.snapshot().stored), (10, 20));
    assert_eq!(in_store(&*store).await, (10..30).collect::<Vec<_>>());
}
