use super::{
    super::{
        CutOff, Generation,
        log::{Strength, What},
    },
    *,
};

const RULES: Rules = Rules { lag: Duration::from_secs(10), cut_off: CutOff::Revalidate, replicas: 0 };

fn ms(millis: u64) -> Uptime {
    Duration::from_millis(millis)
}

fn id(pod: &str) -> MemberId {
    MemberId::new(pod, 1).unwrap()
}

/// A member that has applied the log up to there.
fn member(pod: &str, generation: u128, at: u64) -> Present {
    let applied = Some(Position { generation: Generation(generation), at });
    Present { id: id(pod), applied, since: 1_000_000 + at, beats: 3 }
}

fn census(generation: u128, at: u64, members: Vec<Present>) -> Census {
    Census { generation: Generation(generation), term: Some(Term(7)), at, now: 1_000_000, connected: 0, members }
}

/// A purge at place 100 of generation 1, since one second, of a purger that has known the term for so long.
fn purge(rules: Rules, known: Option<Duration>, members: Vec<Present>) -> Purge {
    let entry = Entry { id: PurgeId(1), what: What::Everything, strength: Strength::Hard };
    let mut purge = Purge::new(rules, entry, ms(99_900));
    assert_eq!(purge.step(), Step::Append { again: false, copies: rules.replicas });
    let term = known.map(|known| (Term(7), ms(100_000) - known));
    purge.appended(&census(1, 100, members), rules.replicas, term, ms(100_000));
    purge
}

fn is_done(purge: &mut Purge) -> bool {
    purge.step() == Step::Done
}

#[test]
fn it_is_complete_when_all_have_acknowledged() {
    let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90), member("b", 1, 90)]);
    purge.looked(&census(1, 100, vec![member("a", 1, 100), member("b", 1, 99)]), 0, ms(100_010), ms(100_011));
    assert!(!is_done(&mut purge));
    let report = purge.report(ms(100_012));
    assert_eq!((report.acknowledged.len(), report.pending), (1, vec![id("b")]));
    purge.looked(&census(1, 105, vec![member("a", 1, 100), member("b", 1, 105)]), 0, ms(100_020), ms(100_021));
    assert!(is_done(&mut purge));
    let report = purge.report(ms(100_022));
    assert!(report.complete && report.pending.is_empty() && report.ran_out.is_empty());
    assert_eq!(report.slowest(), Some(&(id("b"), Duration::from_micros(105))));
    assert_eq!((report.settles_in, report.took), (Duration::ZERO, ms(122)));
}

#[test]
fn without_an_answer_it_takes_until_no_lease_is_left() {
    let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90), member("b", 1, 90)]);
    let silent = census(1, 100, vec![member("a", 1, 100), member("b", 1, 90)]);
    let settled = ms(100_000) + RULES.outlived();
    assert!(settled > ms(110_000));
    // Asked before, answered after: the log may have been lost in between.
    purge.looked(&silent, 0, settled - ms(1), settled + ms(50));
    assert!(!is_done(&mut purge));
    assert_eq!(purge.silent().count(), 0);
    purge.looked(&silent, 0, settled, settled + ms(1));
    assert!(is_done(&mut purge));
    assert_eq!(purge.report(settled).ran_out, [id("b")]);
    assert_eq!(purge.silent().collect::<Vec<_>>(), [(&id("b"), 3)]);
}

#[test]
fn a_list_known_for_less_than_a_lease_is_not_trusted() {
    let outlived = RULES.outlived();
    for (known, trusted) in [(None, outlived), (Some(ms(4000)), outlived - ms(4000)), (Some(outlived), Duration::ZERO)] {
        let mut purge = purge(RULES, known, vec![member("a", 1, 90)]);
        let all = census(1, 100, vec![member("a", 1, 100)]);
        if !trusted.is_zero() {
            purge.looked(&all, 0, ms(100_000) + trusted - ms(1), ms(200_000));
            assert!(!is_done(&mut purge), "{known:?}");
        }
        purge.looked(&all, 0, ms(100_000) + trusted, ms(200_000));
        assert!(is_done(&mut purge), "{known:?}");
    }
}

#[test]
fn a_list_of_another_term_is_not_trusted() {
    let entry = Entry { id: PurgeId(1), what: What::Everything, strength: Strength::Hard };
    let mut purge = Purge::new(RULES, entry, ms(0));
    purge.appended(&census(1, 100, vec![]), 0, Some((Term(6), ms(0))), ms(100_000));
    purge.looked(&census(1, 100, vec![]), 0, ms(100_010), ms(100_011));
    assert!(!is_done(&mut purge));
}

#[test]
fn who_left_is_not_waited_for_but_who_was_dropped_is() {
    for (term, done) in [(Some(Term(7)), true), (Some(Term(8)), false), (None, false)] {
        let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90), member("b", 1, 90)]);
        let without = Census { term, ..census(1, 100, vec![member("a", 1, 100)]) };
        purge.looked(&without, 0, ms(100_010), ms(100_011));
        assert_eq!(is_done(&mut purge), done, "{term:?}");
    }
}

#[test]
fn a_log_that_lost_it_gets_it_again_and_all_waiting_begins_anew() {
    for (generation, last) in [(2, 200), (1, 99)] {
        let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90)]);
        purge.looked(&census(generation, last, vec![member("a", generation, last)]), 0, ms(100_010), ms(100_011));
        assert_eq!(purge.step(), Step::Append { again: true, copies: 0 });
        purge.appended(&census(2, 300, vec![member("a", 2, 250)]), 0, Some((Term(6), ms(0))), ms(105_000));
        purge.looked(&census(2, 300, vec![member("a", 2, 300)]), 0, ms(111_000), ms(111_001));
        assert!(!is_done(&mut purge), "the new list is not known for long enough");
        purge.looked(&census(2, 300, vec![member("a", 2, 300)]), 0, ms(105_000) + RULES.outlived(), ms(120_000));
        assert!(is_done(&mut purge));
    }
}

#[test]
fn an_acknowledgement_of_another_generation_is_none() {
    let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90)]);
    purge.looked(&census(1, 100, vec![member("a", 2, 500)]), 0, ms(100_010), ms(100_011));
    assert!(!is_done(&mut purge));
}

#[test]
fn too_few_replicas_complete_nothing() {
    let rules = Rules { replicas: 2, ..RULES };
    let mut purge = purge(rules, Some(ms(60_000)), vec![member("a", 1, 100)]);
    let all = census(1, 100, vec![member("a", 1, 100)]);
    purge.looked(&all, 1, ms(100_010), ms(100_011));
    assert!(!is_done(&mut purge), "one follows now, whoever did when it was appended");
    assert!(matches!(purge.step(), Step::Look { copies: 2, .. }));
    purge.looked(&all, 2, ms(100_020), ms(100_021));
    assert!(is_done(&mut purge));
    assert_eq!(purge.report(ms(100_022)).replicas, 2);
}

#[test]
fn all_replicas_are_asked_for_once() {
    let entry = Entry { id: PurgeId(1), what: What::Everything, strength: Strength::Hard };
    let mut purge = Purge::new(RULES, entry, ms(0));
    let connected = Census { connected: 3, ..census(1, 100, vec![member("a", 1, 90)]) };
    purge.appended(&connected, 0, None, ms(0));
    assert!(matches!(purge.step(), Step::Look { copies: 3, .. }));
    purge.looked(&connected, 2, ms(10), ms(110));
    assert!(matches!(purge.step(), Step::Look { copies: 0, .. }));
    let report = purge.report(ms(120));
    assert_eq!((report.replicas, report.connected), (2, 3));
}

#[test]
fn lags_survive_a_clock_that_steps() {
    let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90), member("b", 1, 90)]);
    let back = Present { since: 5, ..member("a", 1, 100) };
    let forward = Present { since: u64::MAX, ..member("b", 1, 100) };
    purge.looked(&census(1, 100, vec![back, forward]), 0, ms(100_010), ms(100_011));
    let lags: Vec<_> = purge.report(ms(100_012)).acknowledged.into_iter().map(|(_, lag)| lag).collect();
    assert_eq!(lags, [Duration::ZERO, ms(111)]);
}

#[test]
fn looks_come_ever_slower_but_in_time() {
    let mut purge = purge(RULES, Some(ms(60_000)), vec![member("a", 1, 90)]);
    let (silent, settled) = (census(1, 100, vec![member("a", 1, 90)]), ms(100_000) + RULES.outlived());
    let mut looks = 0;
    loop {
        match purge.step() {
            Step::Look { at, .. } => {
                looks += 1;
                assert!(at <= settled, "{at:?}");
                purge.looked(&silent, 0, at, at);
            }
            step => {
                assert_eq!(step, Step::Done);
                break;
            }
        }
    }
    assert!((90..120).contains(&looks), "{looks}");
}

#[test]
fn an_unanswered_append_is_sent_again_as_one_that_may_be_there() {
    let entry = Entry { id: PurgeId(1), what: What::Everything, strength: Strength::Hard };
    let mut purge = Purge::new(RULES, entry, ms(0));
    assert_eq!(purge.step(), Step::Append { again: false, copies: 0 });
    assert_eq!(purge.step(), Step::Append { again: true, copies: 0 });
    let report = purge.report(ms(500));
    assert_eq!((report.position, report.complete, report.settles_in), (None, false, RULES.outlived()));
}
