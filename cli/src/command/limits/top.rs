//! `fetchr limits top`: what was denied most, or has least left.

use clap::ValueEnum;
use sidecar::limit::show::{DeniedOften, LimitTop, TopOrder};

use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Table, or_dash},
    reach::{admin::Target, place::Place},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # the ten keys that were denied most
  $ fetchr limits top
  # of one limit, those that have least left
  $ fetchr limits top --of default/api/all/per-client --by left --limit 50
  # in all pods of a workload together
  $ fetchr limits top --workload deployment/web -n shop

A pod follows 256 keys that limits in force have denied. One that comes when there is no room takes the place of the one that was denied least,
so DENIED may be too high by what is in brackets. Values whose name suggests a secret are shown as a digest. LEFT is known where the pod
has the count; of Redis, `fetchr limits get` tells it.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Keys of this limit alone
    #[arg(long, env = "FETCHR_OF", value_name = "POLICY/RULE/LIMIT")]
    of: Option<String>,
    /// By what
    #[arg(
        long,
        env = "FETCHR_BY",
        value_enum,
        default_value = "denied",
        hide_possible_values = true,
        value_name = "denied|left"
    )]
    by: By,
    /// Keys at most
    #[arg(long, env = "FETCHR_LIMIT", value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Denied,
    Left,
}

/// Asks for them.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { of, by, limit, place, format } = args;
    let (asked_by, order) = match by {
        By::Denied => ("denied", TopOrder::Denied),
        By::Left => ("left", TopOrder::Left),
    };
    let target = Target::new("/limits/top").with("limit", of.as_ref()).with("order", Some(asked_by));
    let Some(workload) = place.workload()? else {
        let target = target.with("most", Some(limit));
        let top: LimitTop = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &top, |_| rendered(&top))?;
        return Ok(Exit::Ok);
    };
    let mut keys = Vec::new();
    let take = |_, top: LimitTop| add(&mut keys, top);
    let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
    let top = LimitTop::of(keys, order, Some((*limit).into()));
    output::print(format.output, &top, |_| rendered(&top))?;
    Ok(unanswered.tell())
}

/// Adds what another pod says: denials are added, and the one with the least left counts.
fn add(all: &mut Vec<DeniedOften>, top: LimitTop) {
    for key in top.keys {
        match all.iter_mut().find(|known| (&known.name, &known.values) == (&key.name, &key.values)) {
            Some(known) => {
                known.denied += key.denied;
                known.uncertain += key.uncertain;
                known.remaining = known.remaining.into_iter().chain(key.remaining).min();
            }
            None => all.push(key),
        }
    }
}

fn rendered(top: &LimitTop) -> String {
    if top.keys.is_empty() {
        return "No limit has denied anything like this.\n".to_owned();
    }
    let mut table = Table::new(&["LIMIT", "VALUES", "DENIED", "LEFT"]);
    for DeniedOften { name, values, denied, uncertain, quota, remaining } in &top.keys {
        let values: Vec<_> = values.iter().map(|value| if value.is_empty() { "''" } else { value }).collect();
        table.row(vec![
            name.clone(),
            or_dash(values.join(", ")),
            if *uncertain > 0 { format!("{denied} (-{uncertain})") } else { denied.to_string() },
            or_dash(remaining.map(|remaining| format!("{remaining} of {quota}")).unwrap_or_default()),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str, denied: u64, remaining: Option<u64>) -> DeniedOften {
        let name = "shop/api/all/per-user".to_owned();
        DeniedOften { name, values: vec![value.to_owned()], denied, uncertain: denied / 10, quota: 5, remaining }
    }

    #[test]
    fn keys_of_pods_are_added_and_sorted() {
        let mut keys = Vec::new();
        add(&mut keys, LimitTop { keys: vec![key("anna", 5, Some(2)), key("", 3, None)] });
        add(&mut keys, LimitTop { keys: vec![key("bert", 20, Some(1)), key("anna", 6, Some(0))] });
        insta::assert_snapshot!(rendered(&LimitTop::of(keys.clone(), TopOrder::Denied, None)), @r"
        LIMIT                   VALUES   DENIED    LEFT
        shop/api/all/per-user   bert     20 (-2)   1 of 5
        shop/api/all/per-user   anna     11        0 of 5
        shop/api/all/per-user   ''       3         -
        ");
        let first = LimitTop::of(keys, TopOrder::Left, Some(1));
        assert_eq!(first.keys[0].values, ["anna"]);
        assert_eq!(rendered(&LimitTop::default()), "No limit has denied anything like this.\n");
    }
}
