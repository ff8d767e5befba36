//! Nothing vanishes: random steps, and the sum after each.

use proptest::prelude::*;

use super::*;
use crate::{
    segment::Facts,
    spool::{Dropped, Overflow, Reason, Spool, Sync},
};

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
