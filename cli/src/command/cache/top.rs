//! `fetchr cache top`: what is asked for most often, or takes most memory.

use clap::ValueEnum;
use sidecar::show::Objects;

use super::{
    admin::{Target, look_up},
    filter::Filter,
    ls::table,
};
use crate::{
    args::{FormatArgs, StateArgs},
    failure::{Exit, Failure},
    output::{self, Color},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # the ten answers with the most hits
  $ fetchr cache top
  # the largest of a policy
  $ fetchr cache top --by bytes --policy shop/catalogue --limit 50

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
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Hits,
    Bytes,
}

/// Asks for them.
pub(super) fn execute(args: &Args, _: Color) -> Result<Exit, Failure> {
    let order = match args.by {
        By::Hits => "hits",
        By::Bytes => "bytes",
    };
    let target = Target::new("/cache/objects").with("order", Some(order)).with("limit", Some(args.limit));
    let target = args.filter.ask(target);
    let top: Objects = look_up(&args.state, &target)?;
    output::print(args.format.output, &top, |wide| match top.objects.as_slice() {
        [] => "Nothing is stored that is like this.\n".to_owned(),
        objects => table(objects, wide || matches!(args.by, By::Bytes)).to_string(),
    })?;
    Ok(Exit::Ok)
}
