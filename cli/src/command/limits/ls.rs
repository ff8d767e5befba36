//! `fetchr limits ls`: which limits are in force, and what they have decided.

use crds::policy::rate_limits::{Algorithm, Key, Limit};
use sidecar::limit::show::{Decided, LimitFigures, LimitList};

use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, or_dash},
    reach::{admin::Target, place::Place},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # which limits are in force, and whom do they deny?
  $ fetchr limits ls
  # who has decided: the pod, Redis, what was taken of it ahead, or what holds while it fails
  $ fetchr limits ls -o wide
  # of all pods of a workload together
  $ fetchr limits ls --workload deployment/web -n shop

Counted since the proxy began. A limit in mode Shadow says what it would have done.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Asks for them.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { place, format } = args;
    let target = Target::new("/limits");
    let Some(workload) = place.workload()? else {
        let list: LimitList = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &list, |wide| rendered(&list, wide, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut all = LimitList::default();
    let take = |_, list: LimitList| add(&mut all, list);
    let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
    output::print(format.output, &all, |wide| rendered(&all, wide, color.stdout()))?;
    Ok(unanswered.tell())
}

/// Adds what another pod says.
fn add(all: &mut LimitList, list: LimitList) {
    all.counts += list.counts;
    all.capacity += list.capacity;
    for figures in list.limits {
        match all.limits.iter_mut().find(|known| known.name == figures.name) {
            Some(known) => figures.decisions.into_iter().for_each(|decided| add_decided(&mut known.decisions, decided)),
            None => all.limits.push(figures),
        }
    }
}

fn add_decided(all: &mut Vec<Decided>, decided: Decided) {
    match all.iter_mut().find(|known| known.source == decided.source) {
        Some(known) => {
            known.allowed += decided.allowed;
            known.denied += decided.denied;
        }
        None => all.push(decided),
    }
}

fn rendered(list: &LimitList, wide: bool, paint: Paint) -> String {
    if list.limits.is_empty() {
        return "No limit is in force.\n".to_owned();
    }
    let mut header = vec!["LIMIT", "MODE", "ALGORITHM", "NUMBERS", "KEY", "SCOPE", "ALLOWED", "DENIED"];
    header.extend(if wide { &["DIRECTION", "OVERRIDES", "DECIDED BY"][..] } else { &[] });
    let mut table = Table::new(&header);
    list.limits.iter().for_each(|figures| table.row(cells(figures, wide, paint)));
    let held = paint.faint(format!("Pods hold {} counts, of {} that they have room for.", list.counts, list.capacity));
    format!("{table}{held}\n")
}

fn cells(figures: &LimitFigures, wide: bool, paint: Paint) -> Vec<String> {
    let LimitFigures { name, direction, mode, limit, key, overrides, scope, accuracy, decisions } = figures;
    let is_leased = *accuracy == crds::policy::rate_limits::Accuracy::Leased;
    let denied = figures.denied();
    let mut row = vec![
        name.clone(),
        format!("{mode:?}"),
        format!("{:?}", limit.algorithm),
        numbers(limit),
        or_dash(key.iter().map(part).collect::<Vec<_>>().join(", ")),
        if is_leased { format!("{scope:?} (Leased)") } else { format!("{scope:?}") },
        figures.allowed().to_string(),
        if denied > 0 { paint.doubtful(denied) } else { denied.to_string() },
    ];
    if wide {
        let by = decisions.iter().map(|one| format!("{:?} {}/{}", one.source, one.allowed, one.denied));
        row.extend([format!("{direction:?}"), overrides.to_string(), or_dash(by.collect::<Vec<_>>().join(", "))]);
    }
    row
}

/// `10 per 1s, burst 20`.
fn numbers(limit: &Limit) -> String {
    let Limit { algorithm, requests, per, burst, window, time_zone } = limit;
    let per = per.map(|per| format!(" per {per}")).unwrap_or_default();
    let burst = burst.map(|burst| format!(", burst {burst}")).unwrap_or_default();
    match algorithm {
        Algorithm::TokenBucket | Algorithm::SlidingWindow => format!("{requests}{per}{burst}"),
        Algorithm::FixedWindow => {
            let window = window.map(|window| format!(" per {window:?}")).unwrap_or_default();
            let zone = time_zone.as_ref().map(|zone| format!(" ({zone})")).unwrap_or_default();
            format!("{requests}{window}{zone}")
        }
        Algorithm::Concurrency => format!("{requests} at once"),
    }
}

/// `Header x-user`.
fn part(key: &Key) -> String {
    match &key.name {
        Some(name) => format!("{:?} {name}", key.source),
        None => format!("{:?}", key.source),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(allowed: u64, source: &str) -> LimitList {
        let limit = |name: &str, fields: serde_json::Value, denied: u64| {
            let mut limit = json!({"name": format!("shop/api/all/{name}"), "direction": "Inbound", "mode": "Enforce", "overrides": 1,
                "scope": "Pod", "accuracy": "Exact", "decisions": [{"source": source, "allowed": allowed, "denied": denied}]});
            fields.as_object().unwrap().iter().for_each(|(name, value)| limit[name] = value.clone());
            limit
        };
        let limits = [
            limit(
                "rate",
                json!({"limit": {"requests": 10, "per": "1s", "burst": 20}, "key": [{"source": "ClientIP"}, {"source": "Header", "name": "x-user"}]}),
                2,
            ),
            limit(
                "quota",
                json!({"limit": {"algorithm": "FixedWindow", "requests": 1000, "window": "Day", "timeZone": "Europe/Berlin"}, "mode": "Shadow"}),
                0,
            ),
            limit("slots", json!({"limit": {"algorithm": "Concurrency", "requests": 5}, "scope": "Shared"}), 0),
            limit("leased", json!({"limit": {"requests": 5, "per": "1m"}, "scope": "Shared", "accuracy": "Leased"}), 0),
        ];
        serde_json::from_value(json!({"counts": 3, "capacity": 100, "limits": limits})).unwrap()
    }

    #[test]
    fn table_tells_numbers_and_decisions() {
        insta::assert_snapshot!(rendered(&list(7, "Pod"), false, Paint::off()), @r"
        LIMIT                 MODE      ALGORITHM     NUMBERS                        KEY                       SCOPE             ALLOWED   DENIED
        shop/api/all/rate     Enforce   TokenBucket   10 per 1s, burst 20            ClientIP, Header x-user   Pod               7         2
        shop/api/all/quota    Shadow    FixedWindow   1000 per Day (Europe/Berlin)   -                         Pod               7         0
        shop/api/all/slots    Enforce   Concurrency   5 at once                      -                         Shared            7         0
        shop/api/all/leased   Enforce   TokenBucket   5 per 1m                       -                         Shared (Leased)   7         0
        Pods hold 3 counts, of 100 that they have room for.
        ");
        assert_eq!(rendered(&LimitList::default(), false, Paint::off()), "No limit is in force.\n");
    }

    #[test]
    fn decisions_of_pods_are_added_by_who_decided() {
        let mut all = LimitList::default();
        [list(7, "Pod"), list(1, "Pod"), list(2, "Store")].into_iter().for_each(|list| add(&mut all, list));
        assert_eq!((all.limits.len(), all.counts, all.capacity), (4, 9, 300));
        assert_eq!((all.limits[0].allowed(), all.limits[0].denied()), (10, 6));
        assert!(rendered(&all, true, Paint::off()).contains("Pod 8/4, Store 2/2"), "{}", rendered(&all, true, Paint::off()));
    }
}
