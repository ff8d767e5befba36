//! `fetchr cache ls`: what is stored.

use serde::Serialize;
use sidecar::show::{Objects, Stored, Value};

use super::{
    admin::{Target, look_up},
    filter::Filter,
};
use crate::{
    args::{FormatArgs, StateArgs},
    failure::{Exit, Failure},
    output::{self, Color, Table, age, size},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # a hundred of what is stored, in no order
  $ fetchr cache ls
  # below a path, with what each takes in all
  $ fetchr cache ls --prefix http://localhost/products/ --limit 1000 -o wide
  # what a purge of a tag would take
  $ fetchr cache ls --tag news -o json

STATE is what a request would get: Fresh and Stale answers, a Revalidate one once the origin has said that it is right still;
Purged and Dead ones wait for their memory to be needed.";

/// Objects of one question to the proxy.
const PAGE: usize = 1000;

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Answers at most, up to 10000
    #[arg(long, env = "FETCHR_LIMIT", value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// What is printed as JSON.
#[derive(Debug, Default, Serialize)]
struct Listing {
    objects: Vec<Stored>,
    /// Whether there may be others.
    more: bool,
}

/// Lists them, page by page.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let listing = list(args)?;
    output::print(args.format.output, &listing, |wide| {
        let Listing { objects, more } = &listing;
        if objects.is_empty() {
            return "Nothing is stored that is like this.\n".to_owned();
        }
        let rest =
            if *more { color.stdout().faint("There may be more: --limit shows up to 10000.") + "\n" } else { String::new() };
        format!("{}{rest}", table(objects, wide))
    })?;
    Ok(Exit::Ok)
}

fn list(args: &Args) -> Result<Listing, Failure> {
    let limit = usize::from(args.limit);
    let (mut listing, mut after) = (Listing::default(), None);
    loop {
        let page = PAGE.min(limit - listing.objects.len());
        let target = args.filter.ask(Target::new("/cache/objects")).with("limit", Some(page)).with("after", after);
        let Objects { objects, next } = look_up(&args.state, &target)?;
        listing.objects.extend(objects);
        (listing.more, after) = (next.is_some(), next);
        if next.is_none() || listing.objects.len() >= limit {
            return Ok(listing);
        }
    }
}

/// One line for each.
pub(super) fn table(objects: &[Stored], wide: bool) -> Table {
    let mut header = vec!["URL", "VARIANT", "RULE", "STATUS", "STATE", "AGE", "FRESH", "BODY", "HITS"];
    if wide {
        header.push("BYTES");
    }
    let mut table = Table::new(&header);
    for object in objects {
        let state = format!("{:?}{}", object.state, if object.shadow { " (Shadow)" } else { "" });
        let mut row = vec![
            object.url.clone(),
            variant(&object.variant),
            object.rule.clone(),
            object.status.to_string(),
            state,
            age(object.age_seconds.into()),
            left(object.fresh_seconds),
            size(object.body_bytes),
            object.hits.to_string(),
        ];
        if wide {
            row.push(object.bytes.to_string());
        }
        table.row(row);
    }
    table
}

/// `accept-language=de`; a field that is absent has no value.
pub(super) fn variant(values: &[Value]) -> String {
    let shown = values.iter().map(|field| match &field.value {
        Some(value) => format!("{}={value}", field.name),
        None => format!("no {}", field.name),
    });
    output::or_dash(shown.collect::<Vec<_>>().join(" "))
}

/// How long it is fresh, or has been stale.
pub(super) fn left(seconds: i64) -> String {
    let length = age(seconds.unsigned_abs());
    if seconds < 0 { format!("-{length}") } else { length }
}
