//! What a fill promises to its readers, under a paused clock, over threads, and against a model.

mod order;
mod speed;

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::StatusCode;
use proptest::prelude::*;
use tokio::time::{advance, timeout};

use super::*;
use crate::cache::store::{INLINE, Object, Parts};

const KEY: &[u8] = b"http://a/b";

fn limits() -> Limits {
    Limits {
        object: 100_000,
        window: 1000,
        patience: Duration::from_secs(2),
        readers: 50,
        fills: 20,
        marks: 64,
        ..Limits::default()
    }
}

fn fills(limits: Limits) -> Arc<Fills> {
    Fills::new(limits, Arc::new(Budget::new(1 << 20)))
}

fn lead(fills: &Arc<Fills>) -> Filler {
    match fills.turn(KEY, Since::default(), Instant::now()) {
        Turn::Lead(filler) => filler,
        Turn::Join(_) => panic!("joined"),
        Turn::Alone(why) => panic!("{why:?}"),
    }
}

fn join(fills: &Arc<Fills>) -> Reader {
    match fills.turn(KEY, Since::default(), Instant::now()) {
        Turn::Join(reader) => reader,
        Turn::Lead(_) => panic!("leads"),
        Turn::Alone(why) => panic!("{why:?}"),
    }
}

fn alone(fills: &Arc<Fills>, key: &[u8]) -> Option<Alone> {
    match fills.turn(key, Since::default(), Instant::now()) {
        Turn::Alone(why) => Some(why),
        Turn::Lead(_) | Turn::Join(_) => None,
    }
}

fn head() -> Object {
    let parts = Parts { primary: KEY, variant: &[], meta: &[], status: StatusCode::OK };
    Object::head(parts, [(&b"etag"[..], &b"\"1\""[..])]).expect("fits")
}

/// Bytes `from..from + len` of the one body of these tests.
fn body(from: u64, len: usize) -> Bytes {
    (from..).take(len).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

/// Reads to the end or to an error: the bytes, and how it ended.
async fn read(mut reader: Reader) -> (Vec<u8>, Result<(), Failure>) {
    let mut all = Vec::new();
    while let Some(chunk) = reader.chunk().await {
        match chunk {
            Ok(chunk) => all.extend_from_slice(&chunk),
            Err(failure) => return (all, Err(failure)),
        }
    }
    (all, Ok(()))
}

/// What is there to read now.
fn now(reader: &mut Reader) -> Poll<Option<Result<Bytes, Failure>>> {
    reader.poll_chunk(&mut Context::from_waker(Waker::noop()))
}

fn may_go(filler: &mut Filler) -> bool {
    filler.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
}

const WAIT: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn everyone_reads_the_one_body() {
    for len in [0, 5, INLINE + 1, 90_000] {
        let fills = fills(limits());
        let mut filler = lead(&fills);
        let (own, early) = (filler.reader(), join(&fills));
        let early = tokio::spawn(async move {
            let mut early = early;
            assert_eq!(early.head(WAIT).await.expect("head").status(), StatusCode::OK);
            read(early).await
        });
        let own = tokio::spawn(read(own));
        assert!(filler.begin(head(), Some(len as u64), u64::MAX));
        let mut sent = 0;
        while sent < len {
            filler.ready().await.expect("readers");
            let piece = 777.min(len - sent);
            filler.push(&body(sent as u64, piece)).expect("in length");
            sent += piece;
        }
        let late = join(&fills);
        let done = filler.finish().expect("whole");
        let later = join(&fills);
        let object = done.object.as_ref().expect("to be stored");
        assert_eq!(object.body().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>(), body(0, len));
        for (all, end) in [own.await.expect("no panic"), early.await.expect("no panic"), read(late).await, read(later).await] {
            assert!(all == body(0, len) && end.is_ok(), "{len}");
        }
        drop(done);
        assert_eq!((fills.open(), fills.shared.budget.used()), (0, 0));
        assert_eq!((fills.counts().led, fills.counts().joined), (1, 3));
        drop(lead(&fills));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_length_is_never_whole() {
    for (expected, pieces, failure) in [(10, &[4, 5][..], Failure::Short), (10, &[4, 7], Failure::Long), (0, &[1], Failure::Long)]
    {
        let fills = fills(limits());
        let mut filler = lead(&fills);
        let reader = join(&fills);
        assert!(filler.begin(head(), Some(expected), u64::MAX));
        let mut sent = 0;
        let mut result = Ok(());
        for piece in pieces {
            result = filler.push(&body(sent, *piece));
            sent += *piece as u64;
        }
        assert_eq!(result.is_err(), failure == Failure::Long);
        assert_eq!(filler.finish().err(), Some(failure));
        let (all, end) = read(reader).await;
        assert!(all.len() as u64 <= expected.min(sent));
        assert_eq!((end, fills.open(), fills.counts().failed), (Err(failure), 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_broken_fill_get_an_error_never_an_end() {
    for begun in [false, true] {
        for dropped in [false, true] {
            let fills = fills(limits());
            let mut filler = lead(&fills);
            let mut reader = join(&fills);
            if begun {
                assert!(filler.begin(head(), None, u64::MAX));
                filler.push(&body(0, 10)).expect("goes on");
                reader.head(WAIT).await.expect("head");
            }
            let reader = tokio::spawn(async move {
                if begun { read(reader).await } else { (Vec::new(), reader.head(WAIT).await.map(drop).map_err(failure_of)) }
            });
            tokio::task::yield_now().await;
            let failure = if dropped { Failure::DriverGone } else { Failure::Upstream };
            if dropped {
                drop(filler)
            } else {
                filler.fail(failure)
            }
            let (all, end) = reader.await.expect("no panic");
            assert_eq!((all.len(), end), (if begun { 10 } else { 0 }, Err(failure)));
            drop(lead(&fills));
        }
    }
}

fn failure_of(no_head: NoHead) -> Failure {
    match no_head {
        NoHead::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_uncacheable_answer_frees_all_at_once_and_is_remembered() {
    let fills = fills(limits());
    let filler = lead(&fills);
    let mut readers: Vec<Reader> = (0..20).map(|_| join(&fills)).collect();
    let waiting = tokio::spawn(async move {
        let start = Instant::now();
        for reader in &mut readers {
            assert_eq!(reader.head(WAIT).await.err(), Some(NoHead::Uncacheable));
        }
        start.elapsed()
    });
    tokio::task::yield_now().await;
    filler.uncacheable(Instant::now() + Duration::from_secs(120));
    assert_eq!(waiting.await.expect("no panic"), Duration::ZERO);
    assert_eq!(alone(&fills, KEY), Some(Alone::HitForMiss));
    advance(Duration::from_secs(119)).await;
    assert_eq!(alone(&fills, KEY), Some(Alone::HitForMiss));
    advance(Duration::from_secs(1)).await;
    lead(&fills).uncacheable(Instant::now() + Duration::from_secs(120));
    fills.unmark(fills.mark_of(KEY));
    drop(lead(&fills));
    assert_eq!(fills.counts().hit_for_miss, 2);
}

#[tokio::test(start_paused = true)]
async fn marks_are_bounded_the_oldest_go() {
    let fills = fills(limits());
    let until = Instant::now() + Duration::from_secs(120);
    for n in 0..1000u32 {
        fills.mark(fills.hash(&n.to_le_bytes()), until);
    }
    let left = (0..1000u32).filter(|n| alone(&fills, &n.to_le_bytes()) == Some(Alone::HitForMiss)).count();
    assert_eq!(left, 64);
    assert_eq!(fills.counts().marks_dropped, 1000 - 64);
    assert_eq!(alone(&fills, &999u32.to_le_bytes()), Some(Alone::HitForMiss));
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_head_delays_nobody_for_longer_than_the_wait() {
    let fills = fills(limits());
    let mut slow = lead(&fills);
    let mut reader = join(&fills);
    let start = Instant::now();
    assert_eq!(reader.head(WAIT).await.err(), Some(NoHead::TimedOut));
    assert_eq!(start.elapsed(), WAIT);
    drop(reader);
    // The next leads anew, and who follows joins that one.
    let mut second = lead(&fills);
    let mut follower = join(&fills);
    assert!(second.begin(head(), None, u64::MAX));
    follower.head(WAIT).await.expect("of the second");
    // The first goes on for those that stayed; its end takes nothing from the second.
    assert!(slow.begin(head(), None, u64::MAX));
    drop(slow.finish().expect("whole"));
    drop(join(&fills));
    assert_eq!((fills.open(), fills.counts().slow), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_a_purge_never_joins_an_earlier_fill() {
    let fills = fills(limits());
    let mut before = lead(&fills);
    assert!(before.begin(head(), None, u64::MAX));
    let Turn::Lead(after) = fills.turn(KEY, Since { purges: 1, changes: 0 }, Instant::now()) else { panic!("joined") };
    // Whoever read the position before the purge may have the newer answer.
    let mut reader = join(&fills);
    drop(before);
    drop(after);
    assert_eq!(reader.head(WAIT).await.err(), Some(NoHead::Failed(Failure::DriverGone)));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_too_large_is_nobodys_wait() {
    let fills = fills(limits());
    let mut filler = lead(&fills);
    let mut reader = join(&fills);
    assert!(!filler.begin(head(), Some(100_001), u64::MAX));
    assert!(!filler.begin(head(), Some(1001), 1000), "a policy may want less");
    filler.uncacheable(Instant::now() + Duration::from_secs(10));
    assert_eq!(reader.head(WAIT).await.err(), Some(NoHead::Uncacheable));
}

#[tokio::test(start_paused = true)]
async fn who_stands_apart_is_joined_by_nobody_and_leaves_no_mark() {
    let fills = fills(limits());
    let Turn::Lead(apart) = fills.apart(Instant::now()) else { panic!("there is room") };
    let other = lead(&fills);
    apart.uncacheable(Instant::now() + Duration::from_secs(10));
    drop(other);
    drop(lead(&fills));
    assert_eq!(fills.open(), 0);
}
