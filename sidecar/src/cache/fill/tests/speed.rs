//! How fast a fill goes, and for whom.

use super::*;

#[tokio::test(start_paused = true)]
async fn it_runs_at_the_fastest_while_it_is_kept() {
    let fills = fills(limits());
    let mut filler = lead(&fills);
    let (mut fast, mut slow) = (filler.reader(), join(&fills));
    assert!(filler.begin(head(), None, u64::MAX));
    for round in 0..50u64 {
        assert!(may_go(&mut filler));
        filler.push(&body(round * 1000, 1000)).expect("goes on");
        assert!(!may_go(&mut filler), "a window ahead of the fastest");
        assert!(now(&mut fast).is_ready());
    }
    assert!(now(&mut slow).is_ready() && now(&mut slow).is_ready());
    // Without readers it goes on to be stored.
    filler.push(&body(50_000, 2000)).expect("goes on");
    assert!(!may_go(&mut filler));
    drop((fast, slow));
    assert!(may_go(&mut filler));
    assert!(filler.finish().expect("whole").object.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_grows_too_large_is_passed_on_within_the_window() {
    let limits = limits();
    let fills = fills(limits);
    let mut filler = lead(&fills);
    let (mut one, mut two) = (filler.reader(), join(&fills));
    assert!(filler.begin(head(), None, u64::MAX));
    for at in 0..100u64 {
        filler.push(&body(at * 1000, 1000)).expect("goes on");
        assert!(now(&mut one).is_ready() && now(&mut two).is_ready());
    }
    assert_eq!(fills.shared.budget.used(), 100_000);
    for at in 100..200u64 {
        assert!(may_go(&mut filler));
        filler.push(&body(at * 1000, 1000)).expect("goes on");
        let Poll::Ready(Some(Ok(chunk))) = now(&mut one) else { panic!("nothing for one") };
        assert_eq!(chunk, body(at * 1000, 1000));
        assert!(!may_go(&mut filler), "the other hasn't read it");
        assert!(fills.shared.budget.used() <= limits.window);
        let Poll::Ready(Some(Ok(chunk))) = now(&mut two) else { panic!("nothing for two") };
        assert_eq!(chunk, body(at * 1000, 1000));
    }
    assert_eq!((fills.open(), fills.counts().passed_on), (0, 1));
    assert!(matches!(fills.turn(KEY, Since::default(), Instant::now()), Turn::Lead(_)), "nobody joins it");
    let done = filler.finish().expect("all came");
    assert!(done.object.is_none(), "not to be stored");
    assert!(matches!((now(&mut one), now(&mut two)), (Poll::Ready(None), Poll::Ready(None))));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_and_nobody_stores_is_given_up() {
    let fills = fills(limits());
    let mut filler = lead(&fills);
    let reader = filler.reader();
    assert!(filler.begin(head(), None, u64::MAX));
    filler.push(&body(0, 100_001)).expect("goes on");
    let blocked = tokio::spawn(async move { filler.ready().await });
    tokio::task::yield_now().await;
    drop(reader);
    assert_eq!(blocked.await.expect("no panic"), Err(Failure::Abandoned));
    assert_eq!(fills.shared.budget.used(), 0);
}

/// Two readers of a body that is too large: one takes `first` bytes a second, the other reads at once. Seconds until the other has all.
async fn race(first: u64) -> (u64, Result<(), Failure>, Counts) {
    let fills = fills(Limits { object: 1000, window: 2000, ..limits() });
    let mut filler = lead(&fills);
    let (mut slow, fast) = (filler.reader(), join(&fills));
    assert!(filler.begin(head(), None, u64::MAX));
    let start = Instant::now();
    let driver = tokio::spawn(async move {
        for at in 0..100u64 {
            filler.ready().await.expect("readers");
            filler.push(&body(at * 100, 100)).expect("goes on");
        }
        filler.finish().map(drop)
    });
    let slow = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100_000 / first)).await;
            match slow.chunk().await {
                Some(Ok(chunk)) => assert_eq!(chunk.len(), 100),
                Some(Err(failure)) => return Err(failure),
                None => return Ok(()),
            }
        }
    });
    let (all, end) = read(fast).await;
    assert!(all == body(0, 10_000) && end.is_ok());
    let took = start.elapsed().as_secs();
    driver.await.expect("no panic").expect("whole");
    (took, slow.await.expect("no panic"), fills.counts())
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_up_others_for_its_patience_and_no_longer() {
    let (took, slow, counts) = race(10).await;
    assert_eq!((took, slow, counts.cut), (2, Err(Failure::TooSlow), 1), "one that stands");
    let (took, slow, counts) = race(500).await;
    assert_eq!((took, slow, counts.cut), (2, Err(Failure::TooSlow), 1), "one that trickles");
    let (took, slow, counts) = race(5000).await;
    assert_eq!((took, slow, counts.cut), (1, Ok(()), 0), "one that is a little slower");
}

#[tokio::test(start_paused = true)]
async fn one_alone_may_be_as_slow_as_it_likes() {
    let fills = fills(Limits { object: 1000, ..limits() });
    let mut filler = lead(&fills);
    let mut reader = filler.reader();
    assert!(filler.begin(head(), None, u64::MAX));
    let driver = tokio::spawn(async move {
        for at in 0..10u64 {
            filler.ready().await.expect("a reader");
            filler.push(&body(at * 1000, 1000)).expect("goes on");
        }
        filler.finish().map(drop)
    });
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(reader.chunk().await.expect("more").is_ok());
    }
    assert!(reader.chunk().await.is_none());
    driver.await.expect("no panic").expect("whole");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_budget_misses_go_alone_and_bodies_are_passed_on() {
    let budget = Arc::new(Budget::new(5000));
    let fills = Fills::new(limits(), Arc::clone(&budget));
    let mut filler = lead(&fills);
    let mut reader = join(&fills);
    assert!(filler.begin(head(), None, u64::MAX));
    filler.push(&body(0, 5000)).expect("goes on");
    assert_eq!(alone(&fills, b"other"), Some(Alone::Budget));
    assert!(matches!(fills.turn(KEY, Since::default(), Instant::now()), Turn::Join(_)), "joining takes no memory");
    assert!(now(&mut reader).is_ready());
    filler.push(&body(5000, 10)).expect("goes on");
    assert_eq!((fills.counts().over_budget, fills.counts().passed_on, budget.used()), (1, 1, 10));
    budget.set_limit(10);
    assert!(!may_go(&mut filler), "chunk by chunk while memory is short");
    assert!(now(&mut reader).is_ready());
    assert!(may_go(&mut filler));
    drop((filler, reader));
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn readers_and_fills_are_bounded() {
    let fills = fills(Limits { readers: 2, fills: 2, ..limits() });
    let _leader = lead(&fills);
    let (one, two) = (join(&fills), join(&fills));
    assert_eq!(alone(&fills, KEY), Some(Alone::Crowded));
    drop(one);
    let three = join(&fills);
    let Turn::Lead(other) = fills.turn(b"other", Since::default(), Instant::now()) else { panic!("no lead") };
    assert_eq!(alone(&fills, b"third"), Some(Alone::Crowded));
    drop(other);
    assert_eq!(alone(&fills, b"third"), None);
    drop((two, three));
    assert_eq!(fills.counts().crowded, 2);
}

#[tokio::test(start_paused = true)]
async fn the_driver_learns_that_a_second_joined_or_the_first_left() {
    let fills = fills(limits());
    let mut filler = lead(&fills);
    let first = filler.reader();
    let mut until = async |readers: usize| {
        let seen = poll_fn_readers(&mut filler, readers);
        timeout(Duration::from_secs(1), seen).await.expect("woken");
    };
    let (watch, act) = tokio::join!(until(2), async {
        tokio::task::yield_now().await;
        join(&fills)
    });
    let ((), ()) = (watch, drop(act));
    until(1).await;
    tokio::join!(until(0), async {
        tokio::task::yield_now().await;
        drop(first);
    });
}

async fn poll_fn_readers(filler: &mut Filler, readers: usize) {
    std::future::poll_fn(|cx| if filler.readers(cx) == readers { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Leader and client in one task, as an exchange is while it is alone: it must not wake itself without end.
#[tokio::test(start_paused = true)]
async fn driver_and_reader_in_one_task_rest() {
    let fills = fills(Limits { object: 10, ..limits() });
    let mut filler = lead(&fills);
    let (mut own, _stands) = (filler.reader(), join(&fills));
    assert!(filler.begin(head(), None, u64::MAX));
    filler.push(&body(0, 5000)).expect("goes on");
    assert!(now(&mut own).is_ready());
    let mut polls = 0;
    let both = std::future::poll_fn(|cx| {
        polls += 1;
        let _ = filler.poll_ready(cx);
        own.poll_chunk(cx)
    });
    assert!(timeout(Duration::from_secs(1), both).await.is_err());
    assert!(polls < 10, "{polls}");
}
