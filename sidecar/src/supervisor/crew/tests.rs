use super::*;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn serving(now: Instant) -> Crew {
    let mut crew = Crew::default();
    assert!(matches!(crew.start(now)[..], [Action::Start { number: 1, from_disk: false, .. }]));
    assert_eq!(crew.ready(1, "1".into(), now), [Action::Tell(1, Order::Lead { drain: None })]);
    crew
}

fn upgraded(now: Instant) -> Crew {
    let mut crew = serving(now);
    assert!(matches!(crew.upgrade(now)[..], [Action::Start { number: 2, from_disk: true, .. }]));
    assert_eq!(crew.ready(2, "2".into(), now), [Action::Tell(1, Order::Retire), Action::Adopt(2)]);
    crew
}

fn leads(number: u64) -> [Action; 1] {
    [Action::Tell(number, Order::Lead { drain: None })]
}

#[test]
fn first_worker_that_never_served_ends_the_proxy_with_its_code() {
    let now = Instant::now();
    let mut crew = Crew::default();
    crew.start(now);
    assert_eq!(crew.ended(1, &How::Code(3), now), [Action::Exit(3)]);
}

#[test]
fn worker_that_served_is_started_again_and_told_how_often() {
    let now = Instant::now();
    let mut crew = serving(now);
    let [Action::Start { number: 2, from_disk: false, welcome }] = &crew.ended(1, &How::Signal(9), now + ms(200))[..] else {
        panic!("it is started again at once")
    };
    assert!(welcome.again && welcome.restarts == 1, "{welcome:?}");
    // This one dies at once, by a mistake that was made meanwhile.
    assert_eq!(crew.ended(2, &How::Code(1), now + ms(210)), []);
    assert_eq!(crew.deadline(), Some(now + ms(310)));
    assert_eq!(crew.tick(now + ms(309)), []);
    assert!(matches!(crew.tick(now + ms(310))[..], [Action::Start { number: 3, .. }]));
}

#[test]
fn worker_that_does_not_come_to_serve_is_killed() {
    let now = Instant::now();
    let mut crew = Crew::default();
    crew.start(now);
    assert_eq!(crew.tick(now + START_LIMIT), [Action::Kill(1)]);
    assert_eq!(crew.tick(now + START_LIMIT), [], "once");
}

#[test]
fn order_to_end_is_handed_on_and_the_code_is_the_workers() {
    let now = Instant::now();
    let mut crew = serving(now);
    assert_eq!(crew.end(true, now), [Action::Tell(1, Order::End { interrupted: true })]);
    assert_eq!(crew.ended(1, &How::Code(4), now), [Action::Exit(4)]);
}

#[test]
fn second_signal_ends_at_once_even_a_worker_that_hangs() {
    let now = Instant::now();
    let mut crew = serving(now);
    crew.end(false, now);
    assert_eq!(crew.end(false, now), [Action::Tell(1, Order::Now)]);
    assert_eq!(crew.tick(now + AT_ONCE), [Action::Kill(1)]);
    assert_eq!(crew.ended(1, &How::Signal(9), now + AT_ONCE), [Action::Exit(137)]);
}

#[test]
fn signal_while_no_worker_runs_ends_with_success() {
    let now = Instant::now();
    let mut crew = serving(now);
    crew.ended(1, &How::Code(1), now);
    assert_eq!(crew.end(false, now), [Action::Exit(0)]);
    assert_eq!(crew.deadline(), None, "nothing is started again");
}

#[test]
fn upgrade_hands_over_and_the_old_worker_has_its_time() {
    let now = Instant::now();
    let mut crew = upgraded(now);
    assert_eq!(crew.leaving(1, ms(35_000), now), leads(2));
    assert_eq!(crew.leaving(1, ms(35_000), now), []);
    assert_eq!(crew.deadline(), Some(now + ms(35_000) + SLACK));
    assert_eq!(crew.tick(now + ms(35_000)), []);
    assert_eq!(crew.ended(1, &How::Code(0), now + ms(35_000)), []);
    let tally = crew.tally();
    assert_eq!((tally.upgrades, tally.restarts, tally.main, tally.version.as_str()), (1, 0, Some(2), "2"));
    // What is started again is the new one.
    assert!(matches!(crew.ended(2, &How::Signal(6), now + ms(40_000))[..], [Action::Start { number: 3, from_disk: false, .. }]));
}

#[test]
fn old_worker_that_does_not_end_in_time_is_killed() {
    let now = Instant::now();
    let mut crew = upgraded(now);
    crew.leaving(1, ms(1000), now);
    assert_eq!(crew.tick(now + ms(1000) + SLACK), [Action::Kill(1)]);
}

#[test]
fn new_worker_leads_when_the_old_one_has_said_that_it_retires_or_has_ended() {
    let now = Instant::now();
    let mut crew = upgraded(now);
    assert_eq!(crew.ended(1, &How::Signal(9), now), leads(2));
    crew.upgrade(now);
    assert_eq!(crew.ready(3, "3".into(), now), [Action::Tell(2, Order::Retire), Action::Adopt(3)]);
    // The new one dies before the old one has said anything, and so does not know what was purged there.
    let [Action::Start { number: 4, welcome, .. }] = &crew.ended(3, &How::Signal(9), now + ms(200))[..] else {
        panic!("it is started again")
    };
    assert_eq!(welcome.beside, Some(true));
    assert_eq!(crew.ready(4, "3".into(), now), []);
    assert_eq!(crew.leaving(2, ms(1000), now), leads(4));
    let [Action::Start { welcome, .. }] = &crew.ended(4, &How::Signal(9), now + ms(500))[..] else {
        panic!("it is started again")
    };
    assert_eq!(welcome.beside, Some(false), "the old one drains, and answers nothing from its cache");
}

#[test]
fn upgrade_that_fails_leaves_the_old_worker() {
    let now = Instant::now();
    let mut crew = serving(now);
    crew.upgrade(now);
    assert_eq!(crew.ended(2, &How::Code(1), now), [Action::CloseSocketsOf(2)]);
    assert_eq!(crew.tally().refusal, "the new worker ended before it served (exit code 1)");
    crew.upgrade(now);
    assert_eq!(crew.tick(now + UPGRADE_LIMIT), [Action::Kill(3), Action::CloseSocketsOf(3)]);
    assert_eq!(crew.ended(3, &How::Signal(9), now), []);
    assert_eq!((crew.tally().refused, crew.tally().main), (2, Some(1)));
}

#[test]
fn upgrade_helps_where_the_old_program_cannot_start() {
    let now = Instant::now();
    let mut crew = serving(now);
    assert_eq!(crew.ended(1, &How::Signal(11), now), []);
    assert!(matches!(crew.upgrade(now)[..], [Action::Start { number: 2, from_disk: true, .. }]));
    assert!(matches!(crew.tick(now + ms(100))[..], [Action::Start { number: 3, from_disk: false, .. }]));
    let taken_over = [Action::Kill(3), Action::Adopt(2), Action::Tell(2, Order::Lead { drain: None })];
    assert_eq!(crew.ready(2, "2".into(), now), taken_over);
    assert_eq!(crew.ended(3, &How::Signal(9), now), []);
    assert_eq!(crew.deadline(), None);
}

#[test]
fn one_upgrade_at_a_time_and_none_at_the_end() {
    let now = Instant::now();
    let mut crew = serving(now);
    crew.upgrade(now);
    assert_eq!(crew.upgrade(now), []);
    assert_eq!(crew.tally().refused, 0, "the first one is under way, and answers both");
    assert_eq!(crew.end(false, now), [Action::Kill(2), Action::Tell(1, Order::End { interrupted: false })]);
    assert_eq!(crew.upgrade(now), []);
    assert_eq!(crew.tally().refused, 1);
}

#[test]
fn two_upgrades_that_are_asked_for_at_once_are_one_that_succeeds() {
    let now = Instant::now();
    let mut crew = serving(now);
    assert_eq!(crew.upgrade(now).len(), 1);
    assert_eq!(crew.upgrade(now), []);
    assert_eq!(crew.ready(2, "2".into(), now).len(), 2);
    assert_eq!((crew.tally().upgrades, crew.tally().refused), (1, 0));
}

#[test]
fn end_waits_for_the_worker_that_retires() {
    let now = Instant::now();
    let mut crew = upgraded(now);
    assert_eq!(crew.end(false, now), [Action::Tell(2, Order::End { interrupted: false })]);
    assert_eq!(crew.ended(2, &How::Code(0), now), []);
    assert_eq!(crew.ended(1, &How::Code(0), now), [Action::Exit(0)]);
}

#[test]
fn drain_that_begins_while_the_worker_of_an_upgrade_starts_is_told_with_the_lead() {
    let now = Instant::now();
    let mut crew = serving(now);
    let [Action::Start { number: 2, welcome, .. }] = &crew.upgrade(now)[..] else { panic!("it is started") };
    assert_eq!(welcome.drain, None);
    crew.drains(1, Phase::Announced, now + ms(1000));
    crew.drains(1, Phase::Closing, now + ms(2000));
    let drain = Some(Draining { phase: Phase::Closing, age: ms(2000) });
    assert_eq!(crew.ready(2, "2".into(), now + ms(2500)), [Action::Tell(1, Order::Retire), Action::Adopt(2)]);
    assert_eq!(crew.leaving(1, ms(1000), now + ms(3000)), [Action::Tell(2, Order::Lead { drain })]);
    // It goes on from there, and who comes after it, too.
    crew.drains(2, Phase::Drained, now + ms(4000));
    let [Action::Start { welcome, .. }] = &crew.ended(2, &How::Signal(9), now + ms(5000))[..] else {
        panic!("it is started again")
    };
    assert_eq!(welcome.drain, Some(Draining { phase: Phase::Drained, age: ms(4000) }));
}

#[test]
fn next_worker_goes_on_with_the_drain_of_the_last() {
    let now = Instant::now();
    let mut crew = serving(now);
    crew.drains(1, Phase::Announced, now + ms(1000));
    crew.drains(1, Phase::Closing, now + ms(2000));
    let [Action::Start { welcome, .. }] = &crew.ended(1, &How::Signal(9), now + ms(3000))[..] else {
        panic!("it is started again")
    };
    assert_eq!(welcome.drain, Some(Draining { phase: Phase::Closing, age: ms(2000) }));
}
