use std::time::Duration;

use super::{
    super::{
        Generation, Stamp,
        log::{Entry, PurgeId, Strength, What},
    },
    *,
};

const LAG: Duration = Duration::from_secs(10);

fn at(generation: u128, at: u64) -> Position {
    Position { generation: Generation(generation), at }
}

fn ms(millis: u64) -> Uptime {
    Duration::from_millis(millis)
}

/// A purge of everything.
fn record(position: Position) -> Record {
    let entry = Entry { id: PurgeId(1), what: What::Everything, strength: Strength::Hard };
    Record { position, content: Content::Purge(entry) }
}

fn begin(position: Position, before: Option<Position>) -> Record {
    Record { position, content: Content::Begin(before) }
}

fn page(generation: u128, tail: u64, last: u64, records: Vec<Record>) -> Page {
    Page { generation: Generation(generation), term: Some(Term(7)), tail, last, records }
}

struct Pod {
    member: Member,
    index: Index,
}

impl Pod {
    fn new(cut_off: CutOff, replicas: u32) -> Self {
        let rules = Rules { lag: LAG, cut_off, replicas };
        Self { member: Member::new(rules), index: Index::new(cut_off, 100) }
    }

    /// One that has read generation 1 up to place 10, by a beat sent at one second.
    fn reading() -> Self {
        let mut pod = Self::new(CutOff::Revalidate, 0);
        assert_eq!(pod.beat(ms(1000), &page(1, 10, 10, vec![begin(at(1, 10), None)])), Next::Now);
        pod
    }

    /// A beat that is answered 200 ms after it was sent.
    fn beat(&mut self, sent: Uptime, page: &Page) -> Next {
        let beat = self.member.beat(sent);
        self.member.answered(beat, page, 0, sent + ms(200), &mut self.index)
    }

    fn verdict(&self, stamp: Stamp, now: Uptime) -> Verdict {
        self.member.verdict(&self.index, &Object { stamp, url: "x", names: &[] }, now)
    }
}

#[test]
fn a_lease_counts_from_the_sending_of_the_beat() {
    let pod = Pod::reading();
    assert_eq!(pod.member.lease(), Some(ms(11_000)));
    assert!(!pod.member.is_cut_off(ms(10_999)));
    assert!(pod.member.is_cut_off(ms(11_000)));
}

#[test]
fn what_is_read_is_acknowledged_at_once_and_then_there_is_rest() {
    let mut pod = Pod::reading();
    assert_eq!(pod.member.beat(ms(1100)).applied, Some(at(1, 10)));
    assert_eq!(pod.beat(ms(1200), &page(1, 10, 10, vec![])), Next::Rest);
    assert_eq!(pod.beat(ms(1300), &page(1, 10, 12, vec![record(at(1, 12))])), Next::Now);
    assert_eq!(pod.beat(ms(1400), &page(1, 10, 12, vec![])), Next::Rest);
}

#[test]
fn a_lease_comes_with_the_last_page_only() {
    let mut pod = Pod::reading();
    assert_eq!(pod.beat(ms(5000), &page(1, 10, 13, vec![record(at(1, 12))])), Next::Now);
    assert_eq!(pod.member.lease(), Some(ms(11_000)));
    pod.beat(ms(5300), &page(1, 10, 13, vec![record(at(1, 13))]));
    assert_eq!(pod.member.lease(), Some(ms(15_300)));
}

#[test]
fn an_answer_that_says_there_is_more_and_gives_nothing_is_no_lease_and_no_hurry() {
    let mut pod = Pod::reading();
    assert_eq!(pod.beat(ms(5000), &page(1, 10, 13, vec![])), Next::Rest);
    assert_eq!(pod.member.lease(), Some(ms(11_000)));
}

#[test]
fn a_beat_on_too_few_replicas_is_no_lease() {
    let mut pod = Pod::new(CutOff::Revalidate, 1);
    let first = page(1, 10, 10, vec![begin(at(1, 10), None)]);
    pod.beat(ms(0), &first);
    assert_eq!(pod.member.lease(), None);
    let beat = pod.member.beat(ms(500));
    pod.member.answered(beat, &page(1, 10, 10, vec![]), 1, ms(600), &mut pod.index);
    assert_eq!(pod.member.lease(), Some(ms(10_500)));
}

#[test]
fn late_answers_count_for_nothing() {
    let mut pod = Pod::reading();
    let given_up = pod.member.beat(ms(3000));
    let next = pod.member.beat(ms(4000));
    let late = page(2, 5, 5, vec![begin(at(2, 5), None)]);
    assert_eq!(pod.member.answered(given_up, &late, 0, ms(4100), &mut pod.index), Next::Late);
    assert_eq!(pod.member.generation(), Some(Generation(1)));
    assert_eq!(pod.member.answered(next, &page(1, 10, 10, vec![]), 0, ms(4200), &mut pod.index), Next::Rest);
    assert_eq!(pod.member.answered(next, &late, 0, ms(4300), &mut pod.index), Next::Late, "nor twice");
}

#[test]
fn cut_off_a_pod_serves_or_revalidates() {
    for (cut_off, expected) in [(CutOff::Serve, Verdict::Fresh), (CutOff::Revalidate, Verdict::Unknown)] {
        let mut pod = Pod::new(cut_off, 0);
        assert_eq!(pod.verdict(pod.index.stamp(), ms(0)), expected, "before its first beat");
        pod.beat(ms(1000), &page(1, 10, 10, vec![begin(at(1, 10), None)]));
        let stamp = pod.index.stamp();
        assert_eq!(pod.verdict(stamp, ms(10_999)), Verdict::Fresh);
        assert_eq!(pod.verdict(stamp, ms(11_000)), expected);
    }
}

#[test]
fn what_was_fetched_before_the_first_beat_is_unknown_after_it() {
    let mut pod = Pod::new(CutOff::Revalidate, 0);
    let stamp = pod.index.stamp();
    pod.beat(ms(1000), &page(1, 10, 10, vec![begin(at(1, 10), None)]));
    assert_eq!(pod.verdict(stamp, ms(1300)), Verdict::Unknown);
    assert_eq!(pod.verdict(pod.index.stamp(), ms(1300)), Verdict::Fresh);
}

#[test]
fn a_pod_that_left_is_never_given_a_lease_again() {
    let mut pod = Pod::reading();
    pod.member.leave();
    pod.beat(ms(2000), &page(1, 10, 10, vec![]));
    assert!(pod.member.is_cut_off(ms(2300)));
}

#[test]
fn what_was_trimmed_before_it_was_read_is_unknown() {
    let mut pod = Pod::reading();
    let stamp = pod.index.stamp();
    let after = record(at(1, 40));
    pod.beat(ms(2000), &page(1, 30, 40, vec![begin(at(1, 30), None), after]));
    assert_eq!(pod.index.verdict(&Object { stamp, url: "x", names: &[] }), Verdict::Hard);
    assert_eq!(pod.index.stamp_at(at(1, 29)).max(stamp), pod.index.stamp_at(at(1, 29)));
    let mut pod = Pod::reading();
    let stamp = pod.index.stamp();
    pod.beat(ms(2000), &page(1, 30, 30, vec![begin(at(1, 30), None)]));
    assert_eq!(pod.verdict(stamp, ms(2300)), Verdict::Unknown);
    assert_eq!(pod.verdict(pod.index.stamp_at(at(1, 30)), ms(2300)), Verdict::Fresh);
}

/// What a pod that had read place 10 of generation 1 thinks of its objects when it finds generation 2.
#[test]
fn another_generation_is_a_loss_unless_nothing_can_be_missing() {
    let new = |before| begin(at(2, 20), before);
    let cases: [(&str, u64, Vec<Record>, Verdict); 9] = [
        ("the log was lost, the lease is good", 10_000, vec![new(None)], Verdict::Fresh),
        ("the log was lost, and the lease before", 10_800, vec![new(None)], Verdict::Unknown),
        ("all is there", 2000, vec![begin(at(1, 3), None), new(Some(at(1, 10)))], Verdict::Fresh),
        ("trimmed up to what was read", 2000, vec![new(Some(at(1, 10)))], Verdict::Fresh),
        ("trimmed, with what wasn't", 2000, vec![new(Some(at(1, 11)))], Verdict::Unknown),
        ("trimmed, with a generation between", 2000, vec![new(Some(at(3, 5)))], Verdict::Unknown),
        ("trimmed within what was read", 2000, vec![begin(at(1, 10), None), new(Some(at(1, 10)))], Verdict::Fresh),
        ("with an earlier purge, which was read", 2000, vec![record(at(1, 9)), new(Some(at(1, 9)))], Verdict::Fresh),
        ("with a purge that wasn't", 2000, vec![begin(at(1, 3), None), record(at(1, 15)), new(Some(at(1, 15)))], Verdict::Hard),
    ];
    for (what, sent, records, expected) in cases {
        let mut pod = Pod::reading();
        let stamp = pod.index.stamp();
        pod.beat(ms(sent), &page(2, records[0].position.at, 20, records.clone()));
        assert_eq!(pod.verdict(stamp, ms(sent + 300)), expected, "{what}");
        assert_eq!(pod.verdict(pod.index.stamp(), ms(sent + 300)), Verdict::Fresh, "{what}: from now on");
        assert_eq!(pod.member.lease(), Some(ms(sent) + LAG), "{what}");
    }
}

#[test]
fn a_generation_whose_start_is_gone_is_unknown_up_to_the_tail() {
    let mut pod = Pod::reading();
    pod.beat(ms(2000), &page(2, 50, 60, vec![begin_free(50), record(at(2, 60))]));
    assert_eq!(pod.verdict(pod.index.stamp_at(at(2, 60)), ms(2300)), Verdict::Fresh);
    let mut pod = Pod::reading();
    let tag = Record { position: at(2, 50), content: Content::Purge(soft_tag()) };
    pod.beat(ms(2000), &page(2, 50, 50, vec![tag]));
    assert_eq!(pod.verdict(pod.index.stamp_at(at(2, 49)), ms(2300)), Verdict::Unknown);
    assert_eq!(pod.verdict(pod.index.stamp_at(at(2, 50)), ms(2300)), Verdict::Fresh);
}

fn begin_free(place: u64) -> Record {
    Record { position: at(2, place), content: Content::Purge(soft_tag()) }
}

fn soft_tag() -> Entry {
    Entry { id: PurgeId(2), what: What::tag("t").unwrap(), strength: Strength::Soft }
}

#[test]
fn an_unreadable_record_purges_everything() {
    let mut pod = Pod::reading();
    let stamp = pod.index.stamp();
    pod.beat(ms(2000), &page(1, 10, 11, vec![Record { position: at(1, 11), content: Content::Unreadable }]));
    assert_eq!(pod.verdict(stamp, ms(2300)), Verdict::Hard);
}

#[test]
fn a_term_is_known_from_the_first_answer_that_names_it() {
    let mut pod = Pod::reading();
    pod.beat(ms(2000), &page(1, 10, 10, vec![]));
    assert_eq!(pod.member.term(), Some((Term(7), ms(1200))));
    pod.beat(ms(3000), &Page { term: Some(Term(8)), ..page(1, 10, 10, vec![]) });
    assert_eq!(pod.member.term(), Some((Term(8), ms(3200))));
    pod.beat(ms(4000), &Page { term: None, ..page(1, 10, 10, vec![]) });
    assert_eq!(pod.member.term(), None);
}
