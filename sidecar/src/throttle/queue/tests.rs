use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn queue(json: &str) -> Queue<&'static str> {
    Queue::new(Settings::of(&serde_json::from_str(json).unwrap()))
}

fn fair(length: usize) -> Queue<u64> {
    let json = format!(r#"{{"maxLength": {length}, "fairness": {{"key": [{{"source": "ClientIP"}}]}}}}"#);
    Queue::new(Settings::of(&serde_json::from_str(&json).unwrap()))
}

fn waits<T>(pushed: &Pushed<T>) -> Place {
    match pushed {
        Pushed::Waits(place) => *place,
        Pushed::InsteadOf(..) | Pushed::Full(_) => panic!("there is room"),
    }
}

/// Everything in the order in which it goes.
fn drained<T>(queue: &mut Queue<T>, now: Instant) -> Vec<T> {
    std::iter::from_fn(|| queue.pop(now)).collect()
}

#[test]
fn higher_priorities_go_first_and_within_one_the_oldest() {
    let (mut queue, now) = (queue("{}"), Instant::now());
    for (level, what) in [(2, "c1"), (0, "a1"), (1, "b1"), (0, "a2"), (2, "c2")] {
        waits(&queue.push(level, 0, now, now + SECOND, what));
    }
    assert_eq!(queue.lengths().collect::<Vec<_>>(), [2, 1, 2]);
    assert_eq!(drained(&mut queue, now), ["a1", "a2", "b1", "c1", "c2"]);
}

#[test]
fn full_queue_sheds_the_newest_of_the_lowest_priority_for_a_higher_one() {
    let (mut queue, now) = (queue(r#"{"maxLength": 3}"#), Instant::now());
    for (level, what) in [(1, "b1"), (2, "c1"), (2, "c2")] {
        waits(&queue.push(level, 0, now, now + SECOND, what));
    }
    assert!(matches!(queue.push(0, 0, now, now + SECOND, "a1"), Pushed::InsteadOf(_, "c2")));
    assert!(matches!(queue.push(1, 0, now, now + SECOND, "b2"), Pushed::InsteadOf(_, "c1")));
    assert!(matches!(queue.push(2, 0, now, now + SECOND, "c3"), Pushed::Full("c3")), "nothing is lower");
    assert!(matches!(queue.push(1, 0, now, now + SECOND, "b3"), Pushed::Full("b3")), "an equal keeps its place");
    assert_eq!(drained(&mut queue, now), ["a1", "b1", "b2"]);
}

#[test]
fn nothing_waits_where_there_is_no_queue() {
    let now = Instant::now();
    assert!(matches!(queue(r#"{"maxLength": 0}"#).push(0, 0, now, now + SECOND, "a"), Pushed::Full("a")));
}

#[test]
fn newest_go_first_once_requests_have_waited_for_half_of_the_longest_wait() {
    let (mut queue, now) = (queue(r#"{"maxWait": "1s", "order": "AdaptiveLIFO", "maxLength": 4}"#), Instant::now());
    for what in ["1", "2", "3", "4"] {
        waits(&queue.push(0, 0, now, now + SECOND, what));
    }
    assert_eq!(queue.pop(now), Some("1"), "not yet");
    let later = now + SECOND / 2;
    waits(&queue.push(0, 0, later, later + SECOND, "5"));
    assert!(matches!(queue.push(0, 0, later, later + SECOND, "6"), Pushed::InsteadOf(_, "2")), "the oldest makes room");
    assert_eq!(drained(&mut queue, later), ["6", "5", "4", "3"]);
    for what in ["7", "8"] {
        waits(&queue.push(0, 0, later, later + SECOND, what));
    }
    assert_eq!(queue.pop(later), Some("7"), "it was empty meanwhile");
}

#[test]
fn what_has_expired_or_left_is_not_given_a_turn() {
    let (mut queue, now) = (queue("{}"), Instant::now());
    waits(&queue.push(0, 0, now, now + SECOND, "expires"));
    let leaves = waits(&queue.push(0, 0, now, now + 5 * SECOND, "leaves"));
    waits(&queue.push(0, 0, now, now + 5 * SECOND, "stays"));
    assert!(queue.remove(leaves) && !queue.remove(leaves));
    assert_eq!(drained(&mut queue, now + SECOND), ["stays"]);
    assert_eq!(queue.len(), 0);
}

#[test]
fn client_that_sends_much_neither_fills_the_queue_nor_delays_others() {
    let (mut queue, now) = (fair(80), Instant::now());
    for _ in 0..80 {
        waits(&queue.push(0, 1, now, now + SECOND, 1));
    }
    assert!(matches!(queue.push(0, 1, now, now + SECOND, 1), Pushed::Full(1)), "all of its queues are as long");
    for other in 2..12 {
        assert!(matches!(queue.push(0, other, now, now + SECOND, other), Pushed::InsteadOf(_, 1)), "{other}");
    }
    let order = drained(&mut queue, now);
    let last = order.iter().rposition(|who| *who != 1).unwrap();
    assert!(last < 30, "each had its turn within two rounds: {order:?}");
}

#[test]
fn two_keys_rarely_share_all_of_a_hand() {
    let hands: Vec<_> = (0..500).map(|key| hand(key, 64, 8)).collect();
    for hand in &hands {
        let mut sorted = hand.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == 8 && sorted.iter().all(|queue| *queue < 64), "{hand:?}");
    }
    let covered = |one: &[u16], by: &[u16]| one.iter().all(|queue| by.contains(queue));
    assert!(hands[1..].iter().all(|one| !covered(one, &hands[0])));
    assert_eq!(hand(7, 3, 8).len(), 3, "no more than there are");
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, u64, u64),
    Pop,
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u8, 0..6u64, 0..20u64).prop_map(|(level, client, lives)| Step::Push(level, client, lives)),
        2 => Just(Step::Pop),
        1 => (0..64usize).prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever happens, nothing waits twice or is lost, the bound holds, and nothing lower goes before something higher.
    #[test]
    fn nothing_is_lost_or_doubled(steps in steps(), length in 1..12usize, queues in 1..8i32, lifo: bool) {
        let order = if lifo { "AdaptiveLIFO" } else { "FIFO" };
        let json = format!(r#"{{"maxLength": {length}, "maxWait": "5s", "order": "{order}",
            "fairness": {{"key": [{{"source": "ClientIP"}}], "queues": {queues}, "handSize": {}}}}}"#, queues.min(3));
        let mut queue = Queue::new(Settings::of(&serde_json::from_str(&json).unwrap()));
        let start = Instant::now();
        let (mut now, mut known) = (start, Vec::<(usize, u8, Instant, Place)>::new());
        for (at, step) in steps.into_iter().enumerate() {
            now += Duration::from_millis(300);
            match step {
                Step::Push(level, client, lives) => {
                    let expires = now + Duration::from_millis(500 * lives);
                    match queue.push(level, client, now, expires, at) {
                        Pushed::Waits(place) => known.push((at, level, expires, place)),
                        Pushed::InsteadOf(place, gone) => {
                            let was = known.iter().position(|(id, ..)| *id == gone).expect("it waited");
                            prop_assert!(known[was].1 >= level, "nothing higher makes room");
                            known.swap_remove(was);
                            known.push((at, level, expires, place));
                        }
                        Pushed::Full(_) => prop_assert!(known.len() >= length && known.iter().all(|(_, other, ..)| *other <= level)),
                    }
                }
                Step::Pop => {
                    let alive = known.iter().filter(|(_, _, expires, _)| *expires > now).map(|(_, level, ..)| *level).min();
                    let next = queue.pop(now);
                    let was = next.map(|next| known.iter().position(|(id, ..)| *id == next).expect("it waited"));
                    prop_assert_eq!(was.map(|was| known[was].1), alive);
                    was.map(|was| known.swap_remove(was));
                    // Those that have expired may be gone with it.
                    known.retain(|(_, _, expires, place)| *expires > now || queue.contains(*place));
                }
                Step::Remove(at) if !known.is_empty() => {
                    let (_, _, _, place) = known.swap_remove(at % known.len());
                    prop_assert!(queue.remove(place));
                }
                Step::Remove(_) => {}
            }
            prop_assert_eq!(queue.len(), known.len());
            prop_assert_eq!(queue.lengths().sum::<usize>(), known.len());
            prop_assert!(queue.len() <= length);
        }
    }
}

impl<T> Queue<T> {
    fn contains(&self, place: Place) -> bool {
        let level = &self.levels[usize::from(place.level)];
        level.queues[usize::from(place.queue)].iter().any(|waiting| waiting.number == place.number)
    }
}
