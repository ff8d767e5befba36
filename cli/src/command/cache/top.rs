//! `fetchr cache top`: what is asked for most often, or takes most memory.

use clap::ValueEnum;
use sidecar::show::Objects;

use super::{
    admin::Target,
    filter::Filter,
    ls::{Listing, rendered, table},
    merged::listing::{Lines, Order},
    place::Place,
};
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # the ten answers with the most hits
  $ fetchr cache top
  # the largest of a policy
  $ fetchr cache top --by bytes --policy shop/catalogue --limit 50
  # the most asked for in any pod of a workload
  $ fetchr cache top --workload deployment/web -n shop

Hits are counted from when an answer came, and go on when a newer one takes its place. Answers that have left are not counted.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// By what
    #[arg(long, env = "FETCHR_BY", value_enum, default_value = "hits", hide_possible_values = true, value_name = "hits|bytes")]
    by: By,
    #[command(flatten)]
    filter: Filter,
    /// Answers at most, up to 1000
    #[arg(long, env = "FETCHR_LIMIT", value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Hits,
    Bytes,
}

/// Asks for them.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { place, format, limit, .. } = args;
    let (asked_by, order) = match args.by {
        By::Hits => ("hits", Order::Hits),
        By::Bytes => ("bytes", Order::Bytes),
    };
    let target = args.filter.ask(Target::new("/cache/objects").with("order", Some(asked_by)).with("limit", Some(limit)));
    let wide = |wide| wide || matches!(args.by, By::Bytes);
    let Some(workload) = place.workload()? else {
        let top: Objects = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &top, |all| rendered(&table(&top.objects, wide(all)), false, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut lines = Lines::new(order, (*limit).into());
    let take = |pod, Objects { objects, .. }| lines.add(&pod, Listing { objects, more: false });
    let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
    let all = lines.done(&unanswered.failed);
    output::print(format.output, &all, |any| rendered(&all.table(wide(any)), false, color.stdout()))?;
    Ok(unanswered.tell())
}
