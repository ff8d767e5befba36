//! Explanations of several pods: those that agree are shown once.

use serde::Serialize;
use sidecar::show::{CacheExplanation, Outcome, RuleNamed};

use super::Names;
use crate::{
    command::cache::{
        explain::{outcome, purged},
        ls::{left, variant},
        pods::{Failed, Of, PodName},
    },
    output::{Paint, Table, age, or_dash},
};

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub(in crate::command::cache) struct Explained<'a> {
    pods: Vec<Of<CacheExplanation>>,
    failed: &'a [Failed],
}

/// What pods have to agree in.
type Verdict<'a> = (Outcome, &'a str, Option<&'a RuleNamed>);

fn verdict(explanation: &CacheExplanation) -> Verdict<'_> {
    (explanation.outcome, &explanation.why, explanation.rule.as_ref())
}

impl<'a> Explained<'a> {
    /// Of all that have answered.
    pub(in crate::command::cache) fn of(pods: Vec<(PodName, CacheExplanation)>, failed: &'a [Failed]) -> Self {
        let mut pods: Vec<_> = pods.into_iter().map(|(pod, what)| Of { pod, what }).collect();
        pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        Self { pods, failed }
    }

    /// A line for each verdict, with the pods whose it is; if `wide` for each pod, with what it has stored.
    pub(in crate::command::cache) fn render(&self, wide: bool, paint: Paint) -> String {
        let Some(Of { what: CacheExplanation { method, url, .. }, .. }) = self.pods.first() else { return String::new() };
        let table = if wide { self.each(paint) } else { self.agreeing(paint) };
        format!("{}\n\n{table}", paint.strong(format!("{method} {url}")))
    }

    fn agreeing(&self, paint: Paint) -> Table {
        let names = Names::of(self.pods.iter().map(|of| &of.pod));
        let mut verdicts: Vec<(Verdict<'_>, Vec<&PodName>)> = Vec::new();
        for Of { pod, what } in &self.pods {
            match verdicts.iter_mut().find(|(known, _)| *known == verdict(what)) {
                Some((_, pods)) => pods.push(pod),
                None => verdicts.push((verdict(what), vec![pod])),
            }
        }
        let mut table = Table::new(&["OUTCOME", "WHY", "RULE", "PODS"]);
        let all = verdicts.len() == 1 && self.pods.len() > 1 && self.failed.is_empty();
        for ((of, why, named), pods) in verdicts {
            let pods = if all { format!("all {}", pods.len()) } else { names.list(pods) };
            table.row(vec![outcome(of, paint), why.to_owned(), rule(named), pods]);
        }
        table
    }

    fn each(&self, paint: Paint) -> Table {
        let names = Names::of(self.pods.iter().map(|of| &of.pod));
        let mut table = Table::new(&["POD", "OUTCOME", "WHY", "RULE", "VARIANT", "AGE", "FRESH", "HITS", "PURGED"]);
        for Of { pod, what } in &self.pods {
            let stored = what.stored.as_ref();
            table.row(vec![
                names.name(pod),
                outcome(what.outcome, paint),
                what.why.clone(),
                rule(what.rule.as_ref()),
                variant(&what.variant),
                or_dash(stored.map(|stored| age(stored.age_seconds.into())).unwrap_or_default()),
                or_dash(stored.map(|stored| left(stored.fresh_seconds)).unwrap_or_default()),
                or_dash(stored.map(|stored| stored.hits.to_string()).unwrap_or_default()),
                or_dash(what.purged.map(purged).unwrap_or_default()),
            ]);
        }
        table
    }
}

fn rule(named: Option<&RuleNamed>) -> String {
    or_dash(named.map(|RuleNamed { name, mode }| format!("{name} ({mode:?})")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, outcome: &str, why: &str, hits: Option<u32>) -> (PodName, CacheExplanation) {
        let mut fields = json!({"direction": "Inbound", "method": "GET", "url": "http://a/b", "outcome": outcome, "why": why,
            "rule": {"name": "shop/web/all", "mode": "Enforce"}});
        if let Some(hits) = hits {
            fields["purged"] = json!("No");
            fields["stored"] = json!({"url": "http://a/b", "rule": "shop/web/all", "status": 200, "state": "Fresh", "ageSeconds": 5,
                "freshSeconds": 55, "bodyBytes": 5, "bytes": 100, "hits": hits});
        }
        (PodName { namespace: "shop".to_owned(), pod: name.to_owned() }, serde_json::from_value(fields).unwrap())
    }

    #[test]
    fn pods_that_agree_share_a_line() {
        let pods = vec![
            pod("web-2", "Hit", "Fresh", Some(1)),
            pod("web-1", "Miss", "nothing is stored", None),
            pod("web-0", "Hit", "Fresh", Some(7)),
        ];
        insta::assert_snapshot!(Explained::of(pods, &[]).render(false, Paint::off()), @r"
        GET http://a/b

        OUTCOME   WHY                 RULE                     PODS
        Hit       Fresh               shop/web/all (Enforce)   web-0, web-2
        Miss      nothing is stored   shop/web/all (Enforce)   web-1
        ");
    }

    #[test]
    fn one_line_is_enough_if_all_agree() {
        let pods = vec![pod("web-0", "Hit", "Fresh", Some(1)), pod("web-1", "Hit", "Fresh", Some(3))];
        insta::assert_snapshot!(Explained::of(pods, &[]).render(false, Paint::off()), @r"
        GET http://a/b

        OUTCOME   WHY     RULE                     PODS
        Hit       Fresh   shop/web/all (Enforce)   all 2
        ");
    }

    #[test]
    fn wide_table_has_a_line_for_each_pod() {
        let pods = vec![pod("web-0", "Hit", "Fresh", Some(1)), pod("web-1", "Miss", "nothing is stored", None)];
        insta::assert_snapshot!(Explained::of(pods, &[]).render(true, Paint::off()), @r"
        GET http://a/b

        POD     OUTCOME   WHY                 RULE                     VARIANT   AGE   FRESH   HITS   PURGED
        web-0   Hit       Fresh               shop/web/all (Enforce)   -         5s    55s     1      no, not since its fetch began
        web-1   Miss      nothing is stored   shop/web/all (Enforce)   -         -     -       -      -
        ");
    }
}
