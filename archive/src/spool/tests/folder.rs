//! What the folder holds, and what gives way when it is full.

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::{
    segment,
    spool::{Dropped, Left, Overflow, Reason, SegmentId, Snapshot, Spool},
};

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
fn record_that_never_fits_is_dropped_and_holds_up_nobody() {
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(Settings { max_bytes: 40_000, overflow, ..settings(folder.path()) }).unwrap();
        let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(100_000).collect();
        spool.pusher().try_push(Bytes::from(noise), &Facts::default()).unwrap();
        assert!(spool.rotate(LONG));
        push(&spool.pusher(), 0..3);
        assert!(spool.rotate(LONG));
        let snapshot = spool.snapshot();
        assert_eq!((snapshot.spooled, snapshot.dropped(Reason::SpoolFull), snapshot.is_balanced()), (3, 1, true));
    }
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
    for times in
        [[1000 * HOUR, 1001 * HOUR, 999 * HOUR], [1000 * HOUR, 88_600 * HOUR, -5 * HOUR], [i64::MAX, i64::MIN, 1000 * HOUR]]
    {
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
    let spool = Spool::open(Settings { clock: || 2_000_000_000_000_000_000, ..settings(folder.path()) }).unwrap();
    let snapshot = spool.snapshot();
    assert_eq!(snapshot.incarnation, 2_000_000_000, "seconds, far above any count");
    assert_eq!((snapshot.spooled, snapshot.corrected, snapshot.produced), (9, 9, 9));
    assert!(snapshot.is_balanced());
}
