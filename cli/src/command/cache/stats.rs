//! `fetchr cache stats`: what the cache holds, and what it has counted.

use std::collections::BTreeMap;

use sidecar::show::{DiskFigures, Figures};

use super::{admin::Target, merged::stats::Sum, place::Place};
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, age, or_dash, size},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # how full is it, and which rules have hits?
  $ fetchr cache stats
  # the hit ratio of each rule
  $ fetchr cache stats -o json | jq '.rules[] | {rule, hitRatio}'
  # of all pods of a workload, in all and each
  $ fetchr cache stats --workload deployment/web -n shop -o wide

Counted since the proxy began. RATIO is the part of the requests that spared the origin one (HIT, STALE, COLLAPSED), of all but those that
passed the cache by (BYPASS). SAVED is the time that the origin would have taken to the heads of what was SERVED (HIT, STALE).";

/// Results of requests, as columns.
const RESULTS: [(&str, &str); 7] = [
    ("HIT", "hit"),
    ("STALE", "stale"),
    ("REVALIDATED", "revalidated"),
    ("COLLAPSED", "collapsed"),
    ("MISS", "miss"),
    ("BYPASS", "bypass"),
    ("ERROR", "error"),
];
/// And those of mode Shadow.
const SHADOW: [(&str, &str); 2] = [("SHADOW HIT", "shadow_hit"), ("SHADOW MISS", "shadow_miss")];

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Asks for the figures.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let (Args { place, format }, target) = (args, Target::new("/cache/stats"));
    let Some(workload) = place.workload()? else {
        let figures: Figures = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &figures, |wide| render(&figures, wide, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut pods = Vec::new();
    let unanswered =
        place.each(&workload, &async |asked| asked.look_up(&target).await, |pod, figures| pods.push((pod, figures)), color)?;
    let sum = Sum::of(pods, &unanswered.failed);
    output::print(format.output, &sum, |wide| sum.render(wide, color.stdout()))?;
    Ok(unanswered.tell())
}

/// What it holds, then each rule, then the reasons.
pub(super) fn render(figures: &Figures, wide: bool, paint: Paint) -> String {
    let mut text = held(figures, paint);
    if !figures.rules.is_empty() {
        text.push_str(&format!("\n{}", rules(figures, wide)));
    }
    let counted = [
        ("MISSED", &figures.missed),
        ("PASSED BY", &figures.bypassed),
        ("NOT STORED", &figures.not_stored),
        ("PARTS", &figures.parts),
    ];
    for (header, counts) in counted {
        if let Some(table) = reasons(header, counts) {
            text.push_str(&format!("\n{table}"));
        }
    }
    text
}

fn held(figures: &Figures, paint: Paint) -> String {
    let Figures { objects, bytes, limit_bytes, fills, served_bytes, saved_millis, .. } = figures;
    let full = (u128::from(*bytes) * 100).checked_div(u128::from(*limit_bytes)).unwrap_or(100);
    let lines = [
        ("stored", format!("{objects} answers, {} of {} ({full}%)", size(*bytes), size(*limit_bytes))),
        ("on their way", format!("{} answers, {}", fills.open, size(fills.bytes))),
        ("served", format!("{}, for which origins would have taken {}", size(*served_bytes), time(*saved_millis))),
        ("left", counts(&figures.evictions)),
        ("refused", counts(&figures.refused)),
        ("purges", counts(&figures.purges)),
    ];
    let disk = figures.disk.map(|disk| format!("{:<14}{}\n", "on disk", on_disk(disk, paint))).unwrap_or_default();
    let cut_off = match figures.cut_off {
        Some(true) => format!("{}\n", paint.bad("It is cut off from the purges of other pods.")),
        Some(false) | None => String::new(),
    };
    lines.map(|(name, value)| format!("{name:<14}{value}\n")).concat() + &disk + &cut_off
}

fn on_disk(disk: DiskFigures, paint: Paint) -> String {
    let DiskFigures { open, records, bytes, limit_bytes, looks, hits } = disk;
    let full = (u128::from(bytes) * 100).checked_div(u128::from(limit_bytes)).unwrap_or(100);
    let closed = if open { String::new() } else { format!(" {}", paint.bad("It can't be used.")) };
    format!("{records} answers, {} of {} ({full}%), {hits} hits of {looks} looks{closed}", size(bytes), size(limit_bytes))
}

fn rules(figures: &Figures, wide: bool) -> Table {
    let shadow = wide || figures.rules.iter().any(|rule| SHADOW.iter().any(|(_, result)| rule.requests.contains_key(*result)));
    let results: Vec<_> = RESULTS.iter().chain(if shadow { &SHADOW[..] } else { &[] }).collect();
    let mut header = vec!["RULE", "REQUESTS", "RATIO", "SERVED", "SAVED"];
    header.extend(results.iter().map(|(column, _)| *column));
    let mut table = Table::new(&header);
    for rule in &figures.rules {
        let ratio = rule.hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1}%", ratio * 100.0));
        let mut row = vec![rule.rule.clone(), rule.total.to_string(), ratio, size(rule.served_bytes), time(rule.saved_millis)];
        row.extend(results.iter().map(|(_, result)| rule.requests.get(*result).copied().unwrap_or_default().to_string()));
        table.row(row);
    }
    table
}

fn reasons(header: &'static str, counts: &BTreeMap<String, u64>) -> Option<Table> {
    let mut table = Table::new(&[header, "COUNT"]);
    let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts.into_iter().for_each(|(reason, count)| table.row(vec![reason.clone(), count.to_string()]));
    Some(table).filter(|table| !table.is_empty())
}

/// `480ms`, then as in other columns.
fn time(millis: u64) -> String {
    if millis < 1000 { format!("{millis}ms") } else { age(millis / 1000) }
}

/// `space 12, replaced 3`: what is not 0.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let shown = counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}"));
    or_dash(shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_lines_and_tables() {
        let figures: Figures = serde_json::from_value(serde_json::json!({
            "objects": 3, "bytes": 3072, "limitBytes": 6144, "servedBytes": 10_000, "savedMillis": 185_000,
            "fills": {"open": 1, "bytes": 512, "led": 4, "joined": 0, "notStorable": 0, "crowded": 0, "failed": 0},
            "evictions": {"space": 2, "pressure": 0, "replaced": 1}, "refused": {"tooLarge": 0},
            "rules": [{"rule": "shop/web/all", "total": 9, "requests": {"hit": 6, "miss": 2, "bypass": 1}, "hitRatio": 0.75,
                "servedBytes": 10_000, "savedMillis": 480}],
            "missed": {"uri-miss": 2, "stale": 0}, "parts": {"first": 2},
            "bypassed": {"Method": 1}, "notStored": {"Private": 1, "NoStore": 2}, "purges": {"hard": 0}, "cutOff": true,
            "disk": {"open": true, "records": 7, "bytes": 4096, "limitBytes": 16384, "looks": 9, "hits": 5}
        }))
        .unwrap();
        insta::assert_snapshot!(render(&figures, false, Paint::off()), @r"
        stored        3 answers, 3.0Ki of 6.0Ki (50%)
        on their way  1 answers, 512
        served        9.7Ki, for which origins would have taken 3m
        left          replaced 1, space 2
        refused       -
        purges        -
        on disk       7 answers, 4.0Ki of 16.0Ki (25%), 5 hits of 9 looks
        It is cut off from the purges of other pods.

        RULE           REQUESTS   RATIO   SERVED   SAVED   HIT   STALE   REVALIDATED   COLLAPSED   MISS   BYPASS   ERROR
        shop/web/all   9          75.0%   9.7Ki    480ms   6     0       0             0           2      1        0

        MISSED     COUNT
        uri-miss   2

        PASSED BY   COUNT
        Method      1

        NOT STORED   COUNT
        NoStore      2
        Private      1

        PARTS   COUNT
        first   2
        ");
    }
}
