//! Fills over threads, and in any order against a model.

use std::collections::HashMap;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn over_threads_all_read_all() {
    for (object, seed) in [(1 << 20, 1usize), (1 << 20, 2), (50_000, 3), (50_000, 4), (1 << 20, 5), (50_000, 6)] {
        let fills = fills(Limits { object, window: 10_000, patience: Duration::from_secs(60), ..limits() });
        let mut filler = lead(&fills);
        let readers: Vec<_> = (0..24usize)
            .map(|n| {
                let mut reader = if n == 0 { filler.reader() } else { join(&fills) };
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    reader.head(Duration::from_secs(30)).await.expect("head");
                    while let Some(chunk) = reader.chunk().await {
                        all.extend_from_slice(&chunk.expect("goes on"));
                        for _ in 0..(n * seed) % 5 {
                            tokio::task::yield_now().await;
                        }
                    }
                    all
                })
            })
            .collect();
        let driver = tokio::spawn(async move {
            assert!(filler.begin(head(), None, u64::MAX));
            let mut at = 0u64;
            while at < 200_000 {
                filler.ready().await.expect("readers");
                let len = 1 + (at as usize * seed + 977) % 3000;
                filler.push(&body(at, len)).expect("goes on");
                at += len as u64;
            }
            filler.finish().expect("whole");
            at
        });
        let sent = timeout(Duration::from_secs(60), driver).await.expect("no lost wake-up").expect("no panic");
        for reader in readers {
            let all = timeout(Duration::from_secs(60), reader).await.expect("no lost wake-up").expect("no panic");
            assert!(all == body(0, sent as usize), "{object} {seed}");
        }
        assert_eq!(fills.shared.budget.used(), 0);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Join,
    Push(u16),
    Take(u8),
    Leave(u8),
    Advance(u16),
    Ready,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Join),
        4 => (0u16..3000).prop_map(Op::Push),
        6 => any::<u8>().prop_map(Op::Take),
        1 => any::<u8>().prop_map(Op::Leave),
        1 => (0u16..1500).prop_map(Op::Advance),
        3 => Just(Op::Ready),
    ]
}

#[derive(Debug, Clone, Copy)]
enum End {
    Finish,
    Fail,
    Drop,
}

proptest! {
    /// Whatever the order: each reader sees a prefix of the body, and an end only of a body that came whole.
    #[test]
    fn readers_see_a_prefix_and_an_end_only_of_a_whole_body(
        ops in prop::collection::vec(op(), 0..120),
        end in prop_oneof![Just(End::Finish), Just(End::Fail), Just(End::Drop)],
        expected in prop::option::of(0u64..20_000),
        object in prop_oneof![Just(5_000u64), Just(1 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let fills = fills(Limits { object: object.max(expected.unwrap_or(0)), ..limits() });
            let mut filler = Some(lead(&fills));
            let mut readers: Vec<(Reader, u64)> = Vec::new();
            filler.as_mut().expect("leads").begin(head(), expected, u64::MAX);
            let (mut sent, mut broken) = (0u64, false);
            for op in ops {
                let filler = filler.as_mut().expect("leads");
                match op {
                    Op::Join => if let Turn::Join(reader) = fills.turn(KEY, Since::default(), Instant::now()) { readers.push((reader, 0)); },
                    Op::Push(len) => if !broken {
                        match filler.push(&body(sent, len.into())) {
                            Ok(()) => sent += u64::from(len),
                            Err(_) => broken = true,
                        }
                    },
                    Op::Take(which) => {
                        let count = readers.len().max(1);
                        if let Some((reader, at)) = readers.get_mut(usize::from(which) % count) {
                            match now(reader) {
                                Poll::Ready(Some(Ok(chunk))) => {
                                    assert_eq!(chunk, body(*at, chunk.len()));
                                    *at += chunk.len() as u64;
                                    assert!(*at <= sent);
                                }
                                Poll::Ready(None) => panic!("an end before the end"),
                                Poll::Ready(Some(Err(failure))) => assert!(broken || failure == Failure::TooSlow || failure == Failure::Abandoned),
                                Poll::Pending => assert_eq!(*at, sent, "nothing of what came is held back"),
                            }
                        }
                    }
                    Op::Leave(which) => if !readers.is_empty() {
                        let at = usize::from(which) % readers.len();
                        readers.swap_remove(at);
                    },
                    Op::Advance(by) => advance(Duration::from_millis(by.into())).await,
                    Op::Ready => if let Poll::Ready(Err(_)) = filler.poll_ready(&mut Context::from_waker(Waker::noop())) { broken = true; },
                }
            }
            let filler = filler.take().expect("leads");
            let done = match end {
                End::Finish => filler.finish().ok(),
                End::Fail => { filler.fail(Failure::Upstream); None }
                End::Drop => {
                    drop(filler);
                    None
                }
            };
            let whole = !broken && matches!(end, End::Finish) && expected.is_none_or(|expected| expected == sent);
            assert_eq!(done.is_some(), whole);
            if let Some(object) = done.as_ref().and_then(|done| done.object.as_ref()) {
                assert_eq!(object.body().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>(), body(0, sent as usize));
            }
            for (mut reader, mut at) in readers {
                loop {
                    match now(&mut reader) {
                        Poll::Ready(Some(Ok(chunk))) => {
                            assert_eq!(chunk, body(at, chunk.len()));
                            at += chunk.len() as u64;
                        }
                        Poll::Ready(None) => { assert!(whole && at == sent); break; }
                        Poll::Ready(Some(Err(failure))) => { assert!(!whole || failure == Failure::TooSlow); break; }
                        Poll::Pending => panic!("waits for a fill that is over"),
                    }
                }
            }
            drop(done);
            assert_eq!((fills.shared.budget.used(), fills.open()), (0, 0));
        });
    }
}

/// Many keys and threads: a key has one leader at a time, and all get its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stampede_is_one_fetch_a_key() {
    let fills = fills(Limits { readers: 1000, ..limits() });
    let gate = Arc::new(tokio::sync::Barrier::new(300));
    let tasks: Vec<_> = (0..300u32)
        .map(|n| {
            let (fills, gate) = (Arc::clone(&fills), Arc::clone(&gate));
            tokio::spawn(async move {
                gate.wait().await;
                let key = (n % 3).to_le_bytes();
                match fills.turn(&key, Since::default(), Instant::now()) {
                    Turn::Alone(why) => panic!("{why:?}"),
                    Turn::Join(mut reader) => {
                        reader.head(Duration::from_secs(30)).await.expect("head");
                        (n % 3, read(reader).await, None)
                    }
                    Turn::Lead(mut filler) => {
                        let own = filler.reader();
                        // Some wait for the head, the others come later: all must get the same.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        assert!(filler.begin(head(), Some(3000), u64::MAX));
                        for at in [0, 1000, 2000] {
                            filler.push(&body(at, 1000)).expect("goes on");
                        }
                        let done = filler.finish().expect("whole");
                        (n % 3, read(own).await, Some(done))
                    }
                }
            })
        })
        .collect();
    let mut leaders: HashMap<u32, Vec<Done>> = HashMap::new();
    for task in tasks {
        let (key, (all, end), done) = timeout(Duration::from_secs(60), task).await.expect("no lost wake-up").expect("no panic");
        assert!(all == body(0, 3000) && end.is_ok());
        leaders.entry(key).or_default().extend(done);
    }
    assert!(leaders.values().all(|leaders| leaders.len() == 1));
    assert_eq!((leaders.len(), fills.counts().led, fills.counts().joined), (3, 3, 297));
}
