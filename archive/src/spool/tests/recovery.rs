//! What the next process finds.

use super::*;
use crate::{segment, spool::Spool};

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
        assert!(
            closed.iter().all(|closed| Segment::open(&fs::read(&closed.path).unwrap()[..], None).unwrap().footer().is_some())
        );
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
    let foreign =
        Spool::open(Settings { counters: Some(other.path().to_owned()), ..self::settings(tempfile::tempdir().unwrap().path()) });
    assert_eq!(foreign.unwrap().snapshot().produced, 0);
}

#[test]
fn file_that_cannot_be_read_stops_no_spool() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(folder.path())).unwrap();
    push(&spool.pusher(), 0..10);
    assert!(spool.rotate(LONG));
    push(&spool.pusher(), 10..13);
    spool.close(LONG);
    let path = spool.closed()[0].path.clone();
    drop(spool);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let snapshot = Spool::open(settings(folder.path())).unwrap().snapshot();
    assert_eq!((snapshot.spooled, snapshot.lost_in_crash, snapshot.is_balanced()), (3, 10, true));
    assert!(snapshot.damaged_bytes > 0);
}
