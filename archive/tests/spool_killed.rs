//! A process that spools and uploads, killed at any moment, again and again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use archive::{
    Entry, Key, Store as _,
    file::Folder,
    segment::{self, Facts, Segment},
    spool::{Names, Retry, Settings, Snapshot, Spool, Uploader},
};
use bytes::Bytes;
use futures::TryStreamExt as _;

/// How often, unless `SPOOL_KILLS` says it.
const ROUNDS: usize = 40;
const PLACE: &str = "SPOOL_KILLED_PLACE";
const LONG: Duration = Duration::from_secs(30);

fn settings(place: &Path) -> Settings {
    let frames = segment::Settings { frame_records: 50, ..segment::Settings::default() };
    let (frame_delay, max_delay) = (Duration::from_millis(4), Duration::from_millis(15));
    Settings { frames, frame_delay, max_delay, ..Settings::new(place.join("spool")) }
}

fn uploader(place: &Path, spool: Arc<Spool>) -> Uploader {
    let names = Names::new("", "pod").unwrap();
    Uploader::new(spool, Arc::new(Folder::new(place.join("store"))), names, Retry::default())
}

/// Not a test: what is killed. Each record has the number of its push.
#[test]
#[ignore = "the other one runs it"]
fn child() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let place = Path::new(&place);
    let spool = Arc::new(Spool::open(settings(place)).unwrap());
    let (pusher, mut next) = (spool.pusher(), spool.snapshot().produced);
    thread::spawn(move || {
        loop {
            let record = format!("{{\"number\":{next}}}");
            let _ = pusher.try_push(Bytes::from(record), &Facts::default());
            next += 1;
            if next.is_multiple_of(20) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(uploader(place, spool).run(|_| ()));
}

fn start(place: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(["--ignored", "--exact", "child"]).env(PLACE, place).spawn().unwrap()
}

/// Once it has taken over the folder, it lives for a random time.
fn live_and_die(place: &Path, produced_before: u64) {
    let mut child = start(place);
    let deadline = Instant::now() + LONG;
    while produced(place) <= produced_before {
        assert!(Instant::now() < deadline, "it never began");
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_micros(fastrand::u64(0..80_000)));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a running process has counted, which is the second word of its page.
fn produced(place: &Path) -> u64 {
    let page = std::fs::read(place.join("spool/counters")).unwrap_or_default();
    page.get(8..16).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
}

async fn in_store(place: &Path) -> Vec<u64> {
    let store = Folder::new(place.join("store"));
    let entries: Vec<Entry> = store.list("").try_collect().await.unwrap();
    let mut all = Vec::new();
    for entry in entries {
        let got = store.get(&Key::new(entry.key).unwrap(), None).await.unwrap();
        let bytes: Vec<Bytes> = got.content.try_collect().await.unwrap();
        let bytes = bytes.concat();
        let segment = Segment::open(&bytes[..], None).unwrap();
        assert!(segment.damage().is_empty(), "{:?}", segment.damage());
        for frame in segment.frames() {
            let digits = |record: &[u8]| std::str::from_utf8(record).unwrap()[10..].trim_end_matches('}').parse::<u64>().unwrap();
            all.extend(frame.unwrap().unwrap().records().map(digits));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn process_that_is_killed_at_random_moments_loses_nothing_that_it_had_stored_and_counts_the_rest() {
    let place = tempfile::tempdir().unwrap();
    let rounds = std::env::var("SPOOL_KILLS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut last: Option<Snapshot> = None;
    for round in 0..rounds {
        live_and_die(place.path(), last.as_ref().map_or(0, |last| last.produced));
        let counted = produced(place.path());
        let spool = Spool::open(settings(place.path())).unwrap();
        let now = spool.snapshot();
        assert!(now.is_balanced(), "round {round}: {now:?}");
        assert_eq!((now.produced, now.corrected, now.in_memory), (counted, 0, 0), "round {round}");
        if let Some(last) = &last {
            assert!(now.stored >= last.stored && now.lost_in_crash >= last.lost_in_crash && now.produced > last.produced);
        }
        last = Some(now);
    }
    let spool = Arc::new(Spool::open(settings(place.path())).unwrap());
    let left = uploader(place.path(), spool.clone()).drain(LONG).await;
    assert_eq!(left.records, 0);
    let (end, found) = (spool.snapshot(), in_store(place.path()).await);
    let different: BTreeSet<u64> = found.iter().copied().collect();
    assert_eq!(different.len(), found.len(), "no record is stored twice");
    assert_eq!(found.len() as u64, end.stored, "what is counted as stored is there, and nothing else");
    assert!(different.last().is_some_and(|last| *last < end.produced));
    assert_eq!(end.produced, end.stored + end.lost_in_crash + end.dropped.iter().sum::<u64>());
    assert!(end.stored > 0 && end.lost_in_crash > 0, "{end:?}");
    println!("{rounds} kills: {end:?}");
}
