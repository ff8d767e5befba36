//! Figures of several pods, and their sum.

use serde::Serialize;
use sidecar::show::Figures;

use super::Names;
use crate::{
    command::cache::{
        pods::{Failed, Of, PodName},
        stats::render,
    },
    output::{Paint, Table, size},
};

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub(in crate::command::cache) struct Sum<'a> {
    total: Figures,
    pods: Vec<Of<Figures>>,
    failed: &'a [Failed],
}

impl<'a> Sum<'a> {
    /// Of all that have answered.
    pub(in crate::command::cache) fn of(pods: Vec<(PodName, Figures)>, failed: &'a [Failed]) -> Self {
        let mut total = Figures::default();
        pods.iter().for_each(|(_, figures)| total.add(figures));
        let mut pods: Vec<_> = pods.into_iter().map(|(pod, what)| Of { pod, what }).collect();
        pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        Self { total, pods, failed }
    }

    /// The sum as that of one, and if `wide` a line for each pod.
    pub(in crate::command::cache) fn render(&self, wide: bool, paint: Paint) -> String {
        let names = Names::of(self.pods.iter().map(|of| &of.pod));
        let cut_off = names.list(self.pods.iter().filter(|of| of.what.cut_off == Some(true)).map(|of| &of.pod));
        let mut text = format!("{:<14}{}", "pods", self.pods.len());
        if !cut_off.is_empty() {
            text.push_str(&format!("; {} {cut_off}", paint.bad("cut off from the purges of others:")));
        }
        // Who is cut off was said.
        let total = Figures { cut_off: None, ..self.total.clone() };
        let text = format!("{text}\n{}", render(&total, wide, paint));
        if wide { format!("{text}\n{}", self.table()) } else { text }
    }

    fn table(&self) -> Table {
        let names = Names::of(self.pods.iter().map(|of| &of.pod));
        let mut table = Table::new(&["POD", "ANSWERS", "BYTES", "LIMIT", "SERVED", "REQUESTS", "SPARED", "CUT OFF"]);
        for Of { pod, what: figures } in &self.pods {
            let count = |results: &[&str]| -> u64 {
                let rules = figures.rules.iter();
                rules.flat_map(|rule| results.iter().filter_map(|result| rule.requests.get(*result))).sum()
            };
            table.row(vec![
                names.name(pod),
                figures.objects.to_string(),
                size(figures.bytes),
                size(figures.limit_bytes),
                size(figures.served_bytes),
                figures.rules.iter().map(|rule| rule.total).sum::<u64>().to_string(),
                count(&["hit", "stale", "collapsed"]).to_string(),
                figures.cut_off.map_or("-", |cut_off| if cut_off { "yes" } else { "no" }).to_owned(),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, hits: u64, cut_off: bool) -> (PodName, Figures) {
        let figures = json!({
            "objects": 2, "bytes": 1024, "limitBytes": 4096, "servedBytes": 10,
            "fills": {"open": 0, "bytes": 0, "led": 1, "joined": 0, "notStorable": 0, "crowded": 0, "failed": 0},
            "evictions": {"space": 1}, "refused": {}, "bypassed": {}, "notStored": {"NoStore": 1}, "purges": {}, "cutOff": cut_off,
            "rules": [{"rule": "shop/web/all", "total": hits + 1, "requests": {"hit": hits, "miss": 1}, "hitRatio": 0.5}],
        });
        (PodName { namespace: "shop".to_owned(), pod: name.to_owned() }, serde_json::from_value(figures).unwrap())
    }

    #[test]
    fn figures_are_summed_up_and_each_pod_has_a_line() {
        let sum = Sum::of(vec![pod("web-1", 1, true), pod("web-0", 5, false)], &[]);
        insta::assert_snapshot!(sum.render(true, Paint::off()), @r"
        pods          2; cut off from the purges of others: web-1
        stored        4 answers, 2.0Ki of 8.0Ki (25%)
        on their way  0 answers, 0
        served        20, for which origins would have taken 0ms
        left          space 2
        refused       -
        purges        -

        RULE           REQUESTS   RATIO   SERVED   SAVED   HIT   STALE   REVALIDATED   COLLAPSED   MISS   BYPASS   ERROR   SHADOW HIT   SHADOW MISS
        shop/web/all   8          75.0%   0        0ms     6     0       0             0           2      0        0       0            0

        NOT STORED   COUNT
        NoStore      2

        POD     ANSWERS   BYTES   LIMIT   SERVED   REQUESTS   SPARED   CUT OFF
        web-0   2         1.0Ki   4.0Ki   10       6          5        no
        web-1   2         1.0Ki   4.0Ki   10       2          1        yes
        ");
    }

    #[test]
    fn json_has_the_total_the_pods_and_who_failed() {
        let sum = json!(Sum::of(vec![pod("web-0", 5, false)], &[]));
        assert_eq!((&sum["total"]["objects"], &sum["failed"]), (&json!(2), &json!([])));
        assert_eq!((&sum["pods"][0]["pod"], &sum["pods"][0]["objects"]), (&json!("web-0"), &json!(2)));
    }
}
