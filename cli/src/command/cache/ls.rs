//! `fetchr cache ls`: what is stored.

use serde::Serialize;
use sidecar::show::{Objects, Stored, Value};

use super::{
    admin::Target,
    filter::Filter,
    merged::listing::{Lines, Order},
    place::{Asked, Place},
};
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, age, size},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # a hundred of what is stored, in no order
  $ fetchr cache ls
  # below a path, with what each takes in all
  $ fetchr cache ls --prefix http://localhost/products/ --limit 1000 -o wide
  # what a purge of a tag would take
  $ fetchr cache ls --tag news -o json
  # in all pods of a workload, sorted by URL
  $ fetchr cache ls --workload deployment/web -n shop --prefix http://web.shop/products/

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
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// What is printed as JSON.
#[derive(Debug, Default, Serialize)]
pub(super) struct Listing {
    pub(super) objects: Vec<Stored>,
    /// Whether there may be others.
    pub(super) more: bool,
}

/// Lists them, page by page.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { place, format, .. } = args;
    let Some(workload) = place.workload()? else {
        let listing = place.one(async |asked| list(asked, args).await)?;
        output::print(format.output, &listing, |wide| {
            let Listing { objects, more } = &listing;
            rendered(&table(objects, wide), *more, color.stdout())
        })?;
        return Ok(Exit::Ok);
    };
    let mut lines = Lines::new(Order::Url, args.limit.into());
    let unanswered = place.each(&workload, &async |asked| list(asked, args).await, |pod, page| lines.add(&pod, page), color)?;
    let all = lines.done(&unanswered.failed);
    output::print(format.output, &all, |wide| rendered(&all.table(wide), all.more, color.stdout()))?;
    Ok(unanswered.tell())
}

/// A table of what is stored.
pub(super) fn rendered(table: &Table, more: bool, paint: Paint) -> String {
    if table.is_empty() {
        return "Nothing is stored that is like this.\n".to_owned();
    }
    let rest = if more { paint.faint("There may be more: --limit shows up to 10000.") + "\n" } else { String::new() };
    format!("{table}{rest}")
}

async fn list(asked: &Asked<'_>, args: &Args) -> Result<Listing, Failure> {
    let limit = usize::from(args.limit);
    let (mut listing, mut after) = (Listing::default(), None);
    loop {
        let page = PAGE.min(limit - listing.objects.len());
        let target = args.filter.ask(Target::new("/cache/objects")).with("limit", Some(page)).with("after", after);
        let Objects { objects, next } = asked.look_up(&target).await?;
        listing.objects.extend(objects);
        (listing.more, after) = (next.is_some(), next);
        if next.is_none() || listing.objects.len() >= limit {
            return Ok(listing);
        }
    }
}

/// One line for each.
pub(super) fn table(objects: &[Stored], wide: bool) -> Table {
    let mut table = Table::new(&header(wide));
    objects.iter().for_each(|object| table.row(cells(object, wide)));
    table
}

/// The columns of such a table.
pub(super) fn header(wide: bool) -> Vec<&'static str> {
    let mut header = vec!["URL", "VARIANT", "RULE", "STATUS", "STATE", "AGE", "FRESH", "BODY", "HITS"];
    header.extend(wide.then_some("BYTES"));
    header
}

/// And a line.
pub(super) fn cells(object: &Stored, wide: bool) -> Vec<String> {
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
    row.extend(wide.then(|| object.bytes.to_string()));
    row
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
