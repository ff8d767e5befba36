use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use proptest::prelude::*;

use super::*;
use crate::{Body, Condition, Entry, Error as StoreError, Got, Key, Kind, Store, file::Folder, segment::Segment};

const LONG: Duration = Duration::from_secs(30);

fn settings(folder: &Path) -> Settings {
    let hour = Duration::from_secs(3600);
    Settings { max_delay: hour, frame_delay: hour, ..Settings::new(folder) }
}

fn push(pusher: &Pusher, numbers: std::ops::Range<u64>) {
    for number in numbers {
        pusher.try_push(record(number), &Facts { time: 1, status: 200, terms: &[number] }).unwrap();
    }
}

fn record(number: u64) -> Bytes {
    Bytes::from(format!("{{\"number\":{number}}}"))
}

/// The numbers of the records in a file.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    let segment = Segment::open(bytes, None).unwrap();
    let frames: Vec<_> = segment.frames().map(|frame| frame.unwrap().unwrap()).collect();
    let number = |record: &[u8]| std::str::from_utf8(record).unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    frames.iter().flat_map(|frame| frame.records().map(number).collect::<Vec<u64>>()).collect()
}

fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == kind));
    files.sort();
    files
}

fn bytes_of(folder: &Path) -> u64 {
    // A file may go while it is looked at.
    fs::read_dir(folder).unwrap().filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn names() -> Names {
    Names::new("logs/", "pod").unwrap()
}

#[test]
fn records_are_in_closed_segments_after_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(folder.path())).unwrap();
    let pusher = spool.pusher();
    push(&pusher, 0..100);
    assert!(spool.closed().is_empty() && spool.snapshot().is_balanced());
    assert!(spool.rotate(LONG));
    let [closed] = spool.closed().try_into().unwrap();
    assert_eq!((closed.records, closed.id), (100, SegmentId { incarnation: 1, sequence: 1 }));
    assert_eq!(numbers(&fs::read(&closed.path).unwrap()), (0..100).collect::<Vec<_>>());
    assert_eq!(closed.bytes, fs::metadata(&closed.path).unwrap().len());
    assert!(spool.rotate(LONG) && spool.closed().len() == 1, "no segment is made of nothing");
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.produced, snapshot.spooled, snapshot.in_memory), (100, 100, 0));
    assert_eq!(snapshot.bytes, bytes_of(folder.path()));
    assert!(spool.stored(closed.id).unwrap() && !spool.stored(closed.id).unwrap());
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.spooled, snapshot.bytes), (100, 0, bytes_of(folder.path())));
    assert!(snapshot.is_balanced() && !closed.path.exists());
}

#[test]
fn segments_are_closed_by_size_and_by_age() {
    let folder = tempfile::tempdir().unwrap();
    let frames = segment::Settings { frame_records: 10, ..segment::Settings::default() };
    let spool = Spool::open(Settings { segment_bytes: 1, frames, queue_bytes: 1 << 20, ..settings(folder.path()) }).unwrap();
    push(&spool.pusher(), 0..100);
    assert!(spool.rotate(LONG));
    assert_eq!(spool.closed().iter().map(|closed| closed.records).collect::<Vec<_>>(), [10; 10]);
    drop(spool);
    let other = tempfile::tempdir().unwrap();
    let soon = Duration::from_millis(20);
    let spool = Spool::open(Settings { max_delay: soon, frame_delay: soon, ..settings(other.path()) }).unwrap();
    push(&spool.pusher(), 0..1);
    until("it is closed by its age", || spool.closed().len() == 1);
}

#[test]
fn what_is_refused_and_what_comes_too_late_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(folder.path())).unwrap();
    let pusher = spool.pusher();
    for wrong in [Bytes::new(), Bytes::from_static(b"a\nb"), Bytes::from(vec![b'a'; segment::MAX_RECORD + 1])] {
        assert_eq!(pusher.try_push(wrong, &Facts::default()), Err(Dropped(Reason::Refused)));
    }
    push(&pusher, 0..5);
    let left = spool.close(LONG);
    assert_eq!(left, Left { records: 5, bytes: spool.closed()[0].bytes });
    let late = pusher.try_push(record(6), &Facts::default()).unwrap_err();
    assert_eq!(late.to_string(), "the record was dropped: closed");
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.dropped(Reason::Refused), snapshot.dropped(Reason::Closed), snapshot.produced), (3, 1, 9));
    assert!(snapshot.is_balanced());
    drop(spool);
    let again = Spool::open(settings(folder.path())).unwrap();
    pusher.try_push(record(7), &Facts::default()).unwrap_err();
    let after = again.snapshot();
    assert_eq!(after, Snapshot { incarnation: 2, ..snapshot }, "and of a spool that is gone nothing is counted for the next");
}

#[test]
fn second_process_is_told_that_the_folder_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = Spool::open(settings(folder.path())).unwrap();
    let error = Spool::open(settings(folder.path())).unwrap_err();
    let expected = "another process spools into this folder; each needs one of its own";
    assert_eq!(error.to_string(), format!("{}: {expected}", folder.path().display()));
    drop(first);
    assert_eq!(Spool::open(settings(folder.path())).unwrap().snapshot().incarnation, 2);
}

/// Small segments of random text, one for each rotation.
fn fill(spool: &Spool, from: u64) {
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(20_000).collect();
    let record = Bytes::from(format!("{{\"number\":{from},\"noise\":\"{noise}\"}}"));
    let _ = spool.pusher().try_push(record, &Facts::default());
}

#[test]
fn folder_never_has_more_than_its_bytes_and_the_newest_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { max_bytes: 200_000, queue_bytes: 100_000, ..settings(folder.path()) };
    let spool = Spool::open(settings).unwrap();
    for number in 0..100 {
        fill(&spool, number);
        spool.rotate(Duration::from_millis(if number < 12 { 1000 } else { 1 }));
        let snapshot = spool.snapshot();
        assert!(bytes_of(folder.path()) <= 200_000 && snapshot.bytes <= 200_000 && snapshot.is_balanced(), "{snapshot:?}");
    }
    let snapshot = spool.snapshot();
    assert_eq!(snapshot.blocked, Some(Reason::SpoolFull));
    assert_eq!(snapshot.dropped(Reason::SpoolFull), 100 - snapshot.spooled - snapshot.in_memory);
    assert!(snapshot.dropped(Reason::SpoolFull) > 50 && snapshot.spooled > 5, "{snapshot:?}");
    // There is room again, and what was in memory is not lost.
    for closed in spool.closed() {
        spool.stored(closed.id).unwrap();
    }
    assert!(spool.rotate(LONG));
    let after = spool.snapshot();
    assert!(after.blocked.is_none() && after.in_memory == 0 && after.is_balanced());
    assert_eq!(after.dropped(Reason::SpoolFull), snapshot.dropped(Reason::SpoolFull));
}

#[test]
fn oldest_segments_give_way_where_that_is_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { max_bytes: 200_000, overflow: Overflow::DropOldest, ..settings(folder.path()) };
    let spool = Spool::open(settings).unwrap();
    for number in 0..100 {
        fill(&spool, number);
        assert!(spool.rotate(LONG));
        assert!(bytes_of(folder.path()) <= 200_000 && spool.snapshot().is_balanced());
    }
    let (snapshot, closed) = (spool.snapshot(), spool.closed());
    assert_eq!(snapshot.dropped(Reason::SpoolFull), 100 - snapshot.spooled);
    assert!(snapshot.spooled > 5, "{snapshot:?}");
    let newest: Vec<u64> = (101 - closed.len() as u64..=100).collect();
    assert_eq!(closed.iter().map(|closed| closed.id.sequence).collect::<Vec<_>>(), newest);
    drop(spool);
    let again = Spool::open(Settings::new(folder.path())).unwrap();
    let after = again.snapshot();
    assert_eq!((after.dropped, after.spooled, after.lost_in_crash), (snapshot.dropped, snapshot.spooled, 0));
}

#[test]
fn queue_that_is_full_drops_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(Settings { queue_bytes: 1000, ..settings(folder.path()) }).unwrap();
    // The thread can't take anything while this has the lock that it writes under.
    let dropped = {
        let pusher = spool.pusher();
        let large = Bytes::from(vec![b'a'; 2000]);
        pusher.try_push(large, &Facts::default()).unwrap_err()
    };
    assert_eq!(dropped, Dropped(Reason::QueueFull));
    assert!(spool.snapshot().is_balanced());
}

static NOW: AtomicI64 = AtomicI64::new(0);

#[test]
fn names_are_unique_whatever_the_clock_does() {
    const HOUR: i64 = 3_600_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let mut seen = std::collections::HashSet::new();
    for times in [[1000 * HOUR, 1001 * HOUR, 999 * HOUR], [1000 * HOUR, 88_600 * HOUR, -5 * HOUR], [i64::MAX, i64::MIN, 1000 * HOUR]] {
        let spool = Spool::open(Settings { clock: || NOW.load(Ordering::SeqCst), ..settings(folder.path()) }).unwrap();
        for time in times {
            NOW.store(time, Ordering::SeqCst);
            push(&spool.pusher(), 0..1);
            assert!(spool.rotate(LONG));
        }
        for closed in spool.closed() {
            seen.insert(names().key(closed.id, closed.created).unwrap().to_string());
        }
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert!(seen.contains("logs/1970/02/11/16/pod-1-1.fxs"), "{seen:?}");
}

#[test]
fn incarnations_are_counted_and_one_whose_ledger_is_gone_takes_no_name_twice() {
    let folder = tempfile::tempdir().unwrap();
    for incarnation in 1..4 {
        let spool = Spool::open(settings(folder.path())).unwrap();
        assert_eq!(spool.snapshot().incarnation, incarnation);
        push(&spool.pusher(), 0..3);
    }
    fs::write(folder.path().join("ledger"), "").unwrap();
    let spool = Spool::open(settings(folder.path())).unwrap();
    let snapshot = spool.snapshot();
    assert!(snapshot.incarnation > 1_000_000_000);
    assert_eq!((snapshot.spooled, snapshot.corrected, snapshot.produced), (9, 9, 9));
    assert!(snapshot.is_balanced());
}

/// What a killed process leaves: a copy of its folder while it runs, which is what the kernel would keep of it.
fn killed(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn what_was_in_memory_of_a_killed_process_is_counted_as_lost() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = Spool::open(settings(folder.path())).unwrap();
    push(&spool.pusher(), 0..10);
    assert!(spool.rotate(LONG));
    push(&spool.pusher(), 10..17);
    killed(folder.path(), copy.path());
    let after = Spool::open(settings(copy.path())).unwrap().snapshot();
    assert_eq!((after.produced, after.spooled, after.lost_in_crash, after.corrected), (17, 10, 7, 0));
    assert!(after.is_balanced());
}

#[test]
fn open_segment_of_a_killed_process_is_read_up_to_its_torn_end() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let frames = segment::Settings { frame_records: 5, ..segment::Settings::default() };
    let settings = |folder: &Path| Settings { frames, frame_delay: Duration::from_millis(20), ..settings(folder) };
    let spool = Spool::open(settings(folder.path())).unwrap();
    push(&spool.pusher(), 0..10);
    until("both frames are written", || spool.snapshot().spooled == 10);
    killed(folder.path(), copy.path());
    let [open] = files(copy.path(), "open").try_into().unwrap();
    let whole = fs::read(&open).unwrap();
    let before: Vec<Vec<u8>> = ["ledger", "counters"].iter().map(|name| fs::read(copy.path().join(name)).unwrap()).collect();
    for cut in 0..=whole.len() {
        for file in files(copy.path(), "fxs") {
            fs::remove_file(file).unwrap();
        }
        fs::write(&open, &whole[..cut]).unwrap();
        fs::write(copy.path().join("ledger"), &before[0]).unwrap();
        fs::write(copy.path().join("counters"), &before[1]).unwrap();
        let spool = Spool::open(settings(copy.path())).unwrap();
        let (snapshot, closed) = (spool.snapshot(), spool.closed());
        assert!(snapshot.is_balanced() && snapshot.produced == 10 && snapshot.spooled + snapshot.lost_in_crash == 10);
        let found: Vec<u64> = closed.iter().flat_map(|closed| numbers(&fs::read(&closed.path).unwrap())).collect();
        assert_eq!(found, (0..snapshot.spooled).collect::<Vec<_>>());
        assert_eq!(snapshot.spooled, if cut == whole.len() { 10 } else { found.len() as u64 });
        assert_eq!(snapshot.bytes, bytes_of(copy.path()));
        assert!(files(copy.path(), "open").is_empty());
        assert!(closed.iter().all(|closed| Segment::open(&fs::read(&closed.path).unwrap()[..], None).unwrap().footer().is_some()));
    }
}

#[test]
fn segment_that_is_counted_and_not_deleted_is_not_counted_again() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = Spool::open(settings(folder.path())).unwrap();
    push(&spool.pusher(), 0..10);
    assert!(spool.rotate(LONG));
    let [closed] = spool.closed().try_into().unwrap();
    let bytes = fs::read(&closed.path).unwrap();
    spool.stored(closed.id).unwrap();
    killed(folder.path(), copy.path());
    // Killed after it was written down and before the file was deleted.
    fs::write(copy.path().join(closed.path.file_name().unwrap()), bytes).unwrap();
    let spool = Spool::open(settings(copy.path())).unwrap();
    let snapshot = spool.snapshot();
    assert_eq!((snapshot.stored, snapshot.spooled, snapshot.corrected), (10, 0, 0));
    assert!(files(copy.path(), "fxs").is_empty() && snapshot.is_balanced());
}

#[test]
fn flipped_bit_on_the_disk_is_found_and_its_frame_counted_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let frames = segment::Settings { frame_records: 5, ..segment::Settings::default() };
    let spool = Spool::open(Settings { frames, ..settings(folder.path()) }).unwrap();
    push(&spool.pusher(), 0..10);
    spool.close(LONG);
    let [closed] = spool.closed().try_into().unwrap();
    drop(spool);
    let mut bytes = fs::read(&closed.path).unwrap();
    let entry = Segment::open(&bytes[..], None).unwrap().entries()[0].clone();
    bytes[usize::try_from(entry.data().end - 1).unwrap()] ^= 4;
    fs::write(&closed.path, bytes).unwrap();
    let snapshot = Spool::open(settings(folder.path())).unwrap().snapshot();
    assert_eq!((snapshot.spooled, snapshot.lost_in_crash, snapshot.damaged_bytes), (5, 5, entry.length));
}

#[test]
fn page_that_is_older_than_the_files_is_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(folder.path())).unwrap();
    let old = fs::read(folder.path().join("counters")).unwrap();
    push(&spool.pusher(), 0..10);
    spool.close(LONG);
    drop(spool);
    // After a power cut.
    fs::write(folder.path().join("counters"), old).unwrap();
    let snapshot = Spool::open(settings(folder.path())).unwrap().snapshot();
    assert_eq!((snapshot.produced, snapshot.spooled, snapshot.corrected, snapshot.lost_in_crash), (10, 10, 10, 0));
}

#[test]
fn page_of_counters_may_lie_in_another_folder() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = || Settings { counters: Some(other.path().to_owned()), ..settings(folder.path()) };
    let spool = Spool::open(settings()).unwrap();
    push(&spool.pusher(), 0..10);
    let copy = tempfile::tempdir().unwrap();
    killed(folder.path(), copy.path());
    drop(spool);
    assert!(!folder.path().join("counters").exists());
    // Another spool's page says nothing about this one.
    let foreign = Spool::open(Settings { counters: Some(other.path().to_owned()), ..self::settings(tempfile::tempdir().unwrap().path()) });
    assert_eq!(foreign.unwrap().snapshot().produced, 0);
}

/// A store whose answers are written down beforehand; what it stores lies in a folder.
#[derive(Debug)]
struct Scripted {
    folder: Folder,
    answers: Mutex<Vec<Answer>>,
    asked: Mutex<Vec<tokio::time::Instant>>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Fails(Kind),
    /// It is stored, and the answer is lost.
    Lost,
    /// It says yes and stores nothing.
    Lies,
    Hangs,
}

impl Scripted {
    fn new(folder: &Path, answers: &[Answer]) -> Arc<Self> {
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
async fn in_store(store: &dyn Store) -> Vec<u64> {
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

fn retry() -> Retry {
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
    let store = Scripted::new(there.path(), &[Answer::Fails(Kind::Unavailable); 10]);
    let uploader = Uploader::new(spool.clone(), store.clone(), names(), Retry::default());
    assert_eq!(uploader.drain(Duration::from_secs(3600)).await, Left::default());
    let asked = store.asked.lock().unwrap().clone();
    let pauses: Vec<f64> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
    for (pause, most) in pauses.iter().zip([1., 2., 4., 8., 16., 32., 60., 60., 60., 60.]) {
        assert!((most / 2.0 - 0.01..=most + 0.01).contains(pause), "{pauses:?}");
    }
    let (folder, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = spool_of(folder.path(), 1);
    let store = Scripted::new(there.path(), &[Answer::Fails(Kind::Denied); 3]);
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
    let error = uploader.upload_oldest().await.unwrap_err();
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

/// What may happen to a spool.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push(u8),
    PushWrong,
    Rotate,
    Store,
    GiveUp,
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_u8).prop_map(Step::Push),
        1 => Just(Step::PushWrong),
        3 => Just(Step::Rotate),
        2 => Just(Step::Store),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_vanishes_whatever_happens(steps in prop::collection::vec(step(), 1..30), oldest: bool) {
        let mut folder = tempfile::tempdir().unwrap();
        let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
        let settings = |folder: &Path| Settings { overflow, queue_bytes: 4000, sync: Sync::Never, ..settings(folder) };
        let mut spool = Spool::open(settings(folder.path())).unwrap();
        let (mut pushed, mut stored, mut given_up) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Push(count) => {
                    for _ in 0..count {
                        pushed += 1;
                        let _ = spool.pusher().try_push(record(pushed), &Facts::default());
                    }
                }
                Step::PushWrong => {
                    pushed += 1;
                    prop_assert_eq!(spool.pusher().try_push(Bytes::new(), &Facts::default()), Err(Dropped(Reason::Refused)));
                }
                Step::Rotate => prop_assert!(spool.rotate(LONG)),
                Step::Store => {
                    if let Some(closed) = spool.closed().first() {
                        prop_assert!(spool.stored(closed.id).unwrap());
                        stored += closed.records;
                    }
                }
                Step::GiveUp => {
                    if let Some(closed) = spool.closed().last() {
                        prop_assert!(spool.give_up(closed.id, Reason::Missing).unwrap());
                        given_up += closed.records;
                    }
                }
                Step::Reopen => {
                    drop(spool);
                    spool = Spool::open(settings(folder.path())).unwrap();
                }
                Step::Kill => {
                    let copy = tempfile::tempdir().unwrap();
                    killed(folder.path(), copy.path());
                    drop(spool);
                    folder = copy;
                    spool = Spool::open(settings(folder.path())).unwrap();
                    prop_assert_eq!(spool.snapshot().in_memory, 0);
                }
            }
            let snapshot = spool.snapshot();
            prop_assert!(snapshot.is_balanced(), "{:?} after {:?}", snapshot, step);
            prop_assert_eq!((snapshot.produced, snapshot.stored, snapshot.dropped(Reason::Missing)), (pushed, stored, given_up));
            prop_assert_eq!(snapshot.corrected, 0);
        }
        spool.close(LONG);
        let in_files: u64 = spool.closed().iter().map(|closed| numbers(&fs::read(&closed.path).unwrap()).len() as u64).sum();
        prop_assert_eq!(in_files, spool.snapshot().spooled);
    }
}
