//! Nothing vanishes: random steps, and the sum after each.

use std::{collections::HashSet, sync::Arc};

use proptest::prelude::*;

use super::{
    upload::{Answer, Scripted, in_store, retry},
    *,
};
use crate::{
    Kind,
    file::Folder,
    spool::{Dropped, Overflow, Reason, Spool, Sync, Uploader},
};

/// What may happen to a spool.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push(u8),
    PushWrong,
    Rotate,
    Store,
    GiveUp,
    /// All that waits is brought to a store, which answers so first.
    Upload(Answer),
    /// A bit of a waiting file is flipped.
    Damage(u16),
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
        2 => answer().prop_map(Step::Upload),
        1 => any::<u16>().prop_map(Step::Damage),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    use Answer::{Fails, Lies, Lost};
    prop_oneof![Just(Fails(Kind::Unavailable)), Just(Fails(Kind::Denied)), Just(Lost), Just(Lies)]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn upload(spool: &Arc<Spool>, there: &Path, answer: Answer) {
    let store = Scripted::new(there, &[answer]);
    let uploader = Uploader::new(spool.clone(), store, names(), retry());
    runtime().block_on(uploader.drain(Duration::from_millis(100)));
}

/// Whether there was a file to damage.
fn damage(spool: &Spool, place: u16) -> bool {
    let Some(closed) = spool.closed().pop() else { return false };
    let mut bytes = fs::read(&closed.path).unwrap();
    let place = usize::from(place) % (bytes.len() * 8);
    bytes[place / 8] ^= 1 << (place % 8);
    fs::write(&closed.path, bytes).unwrap();
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_vanishes_whatever_happens(steps in prop::collection::vec(step(), 1..30), oldest: bool) {
        let mut folder = tempfile::tempdir().unwrap();
        let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
        let settings = |folder: &Path| Settings { overflow, queue_bytes: 4000, sync: Sync::Never, ..settings(folder) };
        let mut spool = Arc::new(Spool::open(settings(folder.path())).unwrap());
        let there = tempfile::tempdir().unwrap();
        let mut damaged = false;
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
                Step::Upload(answer) => {
                    let before = spool.snapshot().stored;
                    upload(&spool, there.path(), answer);
                    stored += spool.snapshot().stored - before;
                }
                Step::Damage(place) => damaged |= damage(&spool, place),
                Step::Reopen => {
                    drop(spool);
                    spool = Arc::new(Spool::open(settings(folder.path())).unwrap());
                }
                Step::Kill => {
                    let copy = tempfile::tempdir().unwrap();
                    killed(folder.path(), copy.path());
                    drop(spool);
                    folder = copy;
                    spool = Arc::new(Spool::open(settings(folder.path())).unwrap());
                    prop_assert_eq!(spool.snapshot().in_memory, 0);
                }
            }
            let snapshot = spool.snapshot();
            prop_assert!(snapshot.is_balanced(), "{:?} after {:?}", snapshot, step);
            prop_assert_eq!((snapshot.produced, snapshot.stored, snapshot.dropped(Reason::Missing)), (pushed, stored, given_up));
            prop_assert_eq!(snapshot.corrected, 0);
        }
        spool.close(LONG);
        if !damaged {
            let in_files: u64 = spool.closed().iter().map(|closed| numbers(&fs::read(&closed.path).unwrap()).len() as u64).sum();
            prop_assert_eq!(in_files, spool.snapshot().spooled);
        }
        // Whatever happened to files and store, no number is there twice.
        let stored = runtime().block_on(in_store(&Folder::new(there.path())));
        prop_assert_eq!(stored.iter().collect::<HashSet<_>>().len(), stored.len());
    }
}
