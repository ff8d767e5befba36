//! A disk that is really full. It takes root, as a disk of its own is mounted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use archive::{
    segment::Facts,
    spool::{Reason, Settings, Spool},
};
use bytes::Bytes;

const LONG: Duration = Duration::from_secs(30);

/// A tmpfs of 2 MiB, gone when this is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", path(folder.path())]);
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", path(self.0.path())]).status();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn settings(folder: &Path) -> Settings {
    let hour = Duration::from_secs(3600);
    Settings { max_delay: hour, frame_delay: hour, queue_bytes: 200_000, ..Settings::new(folder) }
}

fn push(spool: &Spool, count: usize) {
    for _ in 0..count {
        let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(20_000).collect();
        let _ = spool.pusher().try_push(Bytes::from(format!("{{\"noise\":\"{noise}\"}}")), &Facts::default());
        let snapshot = spool.snapshot();
        assert!(snapshot.is_balanced(), "{snapshot:?}");
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn full_disk_costs_what_finds_no_room_and_says_so_and_nothing_once_there_is_room() {
    let disk = Disk::new();
    let folder = disk.0.path().join("spool");
    let spool = Spool::open(settings(&folder)).unwrap();
    push(&spool, 5);
    assert!(spool.rotate(LONG));
    // Somebody else takes the rest.
    let other = disk.0.path().join("other");
    let mut size = 4 << 20;
    while size > 0 {
        let _ = fs::write(&other, vec![1; size]);
        if fs::metadata(&other).is_ok_and(|known| known.len() < size as u64) {
            break;
        }
        size /= 2;
    }
    push(&spool, 5);
    assert!(!spool.rotate(Duration::from_millis(100)), "there is no room");
    until("it says why", || spool.snapshot().blocked == Some(Reason::NoSpace));
    push(&spool, 50);
    let full = spool.snapshot();
    assert_eq!((full.produced, full.spooled), (60, 5));
    assert!(full.dropped(Reason::NoSpace) > 30 && full.in_memory >= 5 && full.is_balanced(), "{full:?}");
    let kept = full.in_memory;
    fs::remove_file(&other).unwrap();
    assert!(spool.rotate(LONG));
    let after = spool.snapshot();
    assert_eq!((after.spooled, after.in_memory, after.blocked), (5 + kept, 0, None));
    assert_eq!(after.dropped, full.dropped, "what was in memory is not lost");
    drop(spool);
    assert_eq!(Spool::open(settings(&folder)).unwrap().snapshot().spooled, 5 + kept);
}

#[test]
fn disk_that_becomes_read_only_stops_nobody_and_is_counted() {
    let disk = Disk::new();
    let folder = disk.0.path().join("spool");
    let spool = Spool::open(settings(&folder)).unwrap();
    push(&spool, 2);
    assert!(spool.rotate(LONG));
    drop(spool);
    run("mount", &["-o", "remount,ro", path(disk.0.path())]);
    let error = Spool::open(settings(&folder)).unwrap_err();
    assert!(error.to_string().contains("the spool can't be opened"), "{error}");
    run("mount", &["-o", "remount,rw", path(disk.0.path())]);
    assert_eq!(Spool::open(settings(&folder)).unwrap().snapshot().spooled, 2);
}
