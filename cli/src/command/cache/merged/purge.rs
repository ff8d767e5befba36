//! A purge of all pods of a workload: whom to ask, and what became of it in each.
//!
//! Where pods share their purges (`shared`), one answer tells of all pods that have a part in it, and these need not be asked. Where they
//! do not, or in the midst of a rollout some do not, each is asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sidecar::PurgeAnswer;

use super::Names;
use crate::{
    command::cache::pods::{Failed, Of, PodName},
    output::{Paint, Table, or_dash},
};

/// Pods that are asked one after another until one has answered; if none has, there is more wrong than one pod.
const TRIED: usize = 3;

/// What was asked so far.
#[derive(Debug, Default)]
pub(in crate::command::cache) struct Purges {
    pub(in crate::command::cache) answers: Vec<Of<PurgeAnswer>>,
    pub(in crate::command::cache) failed: Vec<Failed>,
}

/// What became of a purge in a pod.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
enum Outcome {
    /// It answers from nothing that went.
    Purged,
    /// It has not read it, and has no lease any more: it is complete without it.
    CutOff,
    /// It may still answer from what went.
    Pending,
    /// It could not be asked.
    Failed,
}

/// A pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub(in crate::command::cache) struct Purged<'a> {
    /// Whether no pod answers from what went.
    pub(in crate::command::cache) complete: bool,
    pods: Vec<Of<Line>>,
    /// What those have answered that were asked.
    answers: &'a [Of<PurgeAnswer>],
}

/// Who a shared answer tells of.
fn told<'a>(of: &'a Of<PurgeAnswer>) -> impl Iterator<Item = (PodName, Line)> + use<'a> {
    let PurgeAnswer { acknowledged, lease_ran_out, pending, .. } = &of.what;
    let line = |pod: &str, outcome, lag_micros| {
        (PodName { namespace: of.pod.namespace.clone(), pod: pod.to_owned() }, Line { outcome, lag_micros, error: None })
    };
    let purged = acknowledged.iter().map(move |one| line(&one.member, Outcome::Purged, Some(one.lag_micros)));
    let cut_off = lease_ran_out.iter().map(move |pod| line(pod, Outcome::CutOff, None));
    purged.chain(cut_off).chain(pending.iter().map(move |pod| line(pod, Outcome::Pending, None)))
}

impl Purges {
    /// Whom to ask next, side by side; nobody once all are told of.
    pub(in crate::command::cache) fn next(&self, pods: &[PodName]) -> Vec<PodName> {
        // Who is cut off from the others may serve still, and is asked itself.
        let told = self.answers.iter().flat_map(told).filter(|(_, line)| line.outcome != Outcome::CutOff);
        let told_of: BTreeSet<PodName> = told.map(|(pod, _)| pod).collect();
        let asked: BTreeSet<&PodName> =
            self.answers.iter().map(|of| &of.pod).chain(self.failed.iter().map(|failed| &failed.pod)).collect();
        let mut left: BTreeMap<&str, Vec<PodName>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !asked.contains(pod) && !told_of.contains(pod)) {
            left.entry(&pod.namespace).or_default().push(pod.clone());
        }
        let all = left.into_iter().flat_map(|(namespace, mut left)| {
            let has_answer = self.answers.iter().any(|of| of.pod.namespace == namespace);
            let failed = self.failed.iter().filter(|failed| failed.pod.namespace == namespace).count();
            if !has_answer && failed < TRIED {
                left.truncate(1);
            }
            left
        });
        all.collect()
    }

    /// What became of it. A pod that could not be asked may have heard of it from another one.
    pub(in crate::command::cache) fn done(&self) -> Purged<'_> {
        let mut lines: BTreeMap<PodName, Line> = BTreeMap::new();
        let failed = self.failed.iter().map(|failed| {
            let line = Line { outcome: Outcome::Failed, lag_micros: None, error: Some(failed.error.clone()) };
            (failed.pod.clone(), line)
        });
        for (pod, line) in self.answers.iter().flat_map(told).chain(failed) {
            match lines.get(&pod) {
                Some(known) if known.outcome <= line.outcome => {}
                _ => drop(lines.insert(pod, line)),
            }
        }
        let complete = self.answers.iter().all(|of| of.what.complete);
        let complete = complete && lines.values().all(|line| line.outcome < Outcome::Pending);
        Purged { complete, pods: lines.into_iter().map(|(pod, what)| Of { pod, what }).collect(), answers: &self.answers }
    }
}

impl Purged<'_> {
    /// A line for each pod.
    pub(in crate::command::cache) fn render(&self, paint: Paint) -> String {
        let names = Names::of(self.pods.iter().map(|of| &of.pod));
        let mut table = Table::new(&["POD", "OUTCOME", "LAG"]);
        for Of { pod, what: Line { outcome, lag_micros, .. } } in &self.pods {
            let outcome = match outcome {
                Outcome::Purged => paint.good("purged"),
                Outcome::CutOff => paint.doubtful("cut off"),
                Outcome::Pending => paint.bad("pending"),
                Outcome::Failed => paint.bad("failed"),
            };
            table.row(vec![names.name(pod), outcome, or_dash(lag_micros.map(|lag| format!("{lag} us")).unwrap_or_default())]);
        }
        let state = if self.complete { paint.good("purged") } else { paint.bad("not complete") };
        let done = self.pods.iter().filter(|of| of.what.outcome < Outcome::Pending).count();
        format!("{state}: {done} of {} pods\n\n{table}", self.pods.len())
    }

    /// The pods that may still answer from what went, each with why.
    pub(in crate::command::cache) fn lacking(&self) -> Vec<String> {
        let lacking = self.pods.iter().filter(|of| of.what.outcome >= Outcome::Pending);
        lacking.map(|of| of.what.error.clone().unwrap_or_else(|| format!("{} has not read it", of.pod))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::Failure;

    fn pods(names: &[&str]) -> Vec<PodName> {
        names.iter().map(|name| PodName { namespace: "shop".to_owned(), pod: (*name).to_owned() }).collect()
    }

    fn answer(pod: &str, shared: bool, purged: &[&str], cut_off: &[&str], pending: &[&str]) -> Of<PurgeAnswer> {
        let acknowledged: Vec<_> = purged.iter().map(|pod| json!({"member": pod, "lagMicros": 7})).collect();
        let what = json!({"shared": shared, "complete": pending.is_empty(), "acknowledged": acknowledged, "leaseRanOut": cut_off,
            "pending": pending, "replicas": u8::from(shared), "tookMicros": 9});
        Of { pod: pods(&[pod]).remove(0), what: serde_json::from_value(what).unwrap() }
    }

    fn failed(pod: &str) -> Failed {
        Failed::new(pods(&[pod]).remove(0), Failure::new(format!("sidecar of shop/{pod}: gone")))
    }

    fn named(pods: &[PodName]) -> Vec<&str> {
        pods.iter().map(|pod| pod.pod.as_str()).collect()
    }

    #[test]
    fn one_is_asked_where_pods_share_their_purges_and_each_where_they_do_not() {
        let all = pods(&["a", "b", "c"]);
        for (answers, failures, next) in [
            (vec![], vec![], vec!["a"]),
            (vec![answer("a", true, &["a", "b"], &[], &["c"])], vec![], vec![]),
            (vec![answer("a", true, &["a", "b"], &[], &[])], vec![], vec!["c"]),
            (vec![answer("a", false, &["a"], &[], &[])], vec![], vec!["b", "c"]),
            (vec![], vec!["a"], vec!["b"]),
            (vec![answer("b", true, &["a", "b", "c"], &[], &[])], vec!["a"], vec![]),
            (vec![answer("b", false, &["b"], &[], &[])], vec!["a"], vec!["c"]),
        ] {
            let said = format!("{answers:?} {failures:?}");
            let purges = Purges { answers, failed: failures.into_iter().map(failed).collect() };
            assert_eq!(named(&purges.next(&all)), next, "{said}");
        }
        let many = pods(&["a", "b", "c", "d", "e"]);
        let purges = Purges { failed: ["a", "b", "c"].map(failed).into(), ..Purges::default() };
        assert_eq!(named(&purges.next(&many)), ["d", "e"], "after three that failed all are asked");
    }

    #[test]
    fn each_namespace_has_purges_of_its_own() {
        let mut all = pods(&["a", "b"]);
        all.extend(["a", "b"].map(|pod| PodName { namespace: "bank".to_owned(), pod: pod.to_owned() }));
        assert_eq!(named(&Purges::default().next(&all)), ["a", "a"]);
        let purges = Purges { answers: vec![answer("a", true, &["a", "b"], &[], &[])], ..Purges::default() };
        let next = purges.next(&all);
        assert_eq!((next.len(), next[0].to_string()), (1, "bank/a".to_owned()));
    }

    #[test]
    fn purge_is_complete_if_it_is_in_each_pod() {
        let shared = || answer("a", true, &["a", "b"], &["c"], &[]);
        for (answers, failures, complete, lacking) in [
            (vec![shared()], vec![], true, vec![]),
            (vec![shared()], vec!["b"], true, vec![]),
            (vec![shared()], vec!["d"], false, vec!["sidecar of shop/d: gone"]),
            (vec![answer("a", true, &["a"], &[], &["b"])], vec![], false, vec!["shop/b has not read it"]),
            (vec![answer("a", false, &["a"], &[], &[]), answer("b", false, &["b"], &[], &[])], vec![], true, vec![]),
            (vec![answer("a", false, &["a"], &[], &[])], vec!["b"], false, vec!["sidecar of shop/b: gone"]),
        ] {
            let purges = Purges { answers, failed: failures.into_iter().map(failed).collect() };
            let purged = purges.done();
            assert_eq!(
                (purged.complete, purged.lacking()),
                (complete, lacking.into_iter().map(str::to_owned).collect()),
                "{purges:?}"
            );
        }
    }

    #[test]
    fn each_pod_has_a_line() {
        let purges = Purges { answers: vec![answer("a", true, &["b", "a"], &["c"], &["d"])], failed: vec![failed("e")] };
        insta::assert_snapshot!(purges.done().render(Paint::off()), @r"
        not complete: 3 of 5 pods

        POD   OUTCOME   LAG
        a     purged    7 us
        b     purged    7 us
        c     cut off   -
        d     pending   -
        e     failed    -
        ");
        let json = json!(purges.done());
        assert_eq!(json["pods"][0], json!({"namespace": "shop", "pod": "a", "outcome": "Purged", "lagMicros": 7}));
        assert_eq!((&json["complete"], &json["answers"][0]["shared"]), (&json!(false), &json!(true)));
    }
}
