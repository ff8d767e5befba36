//! `fetchr limits reset`: forgets a count.

use sidecar::limit::show::Forgotten;

use super::CountArgs;
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint},
    reach::{admin::Target, place::Place},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # a client that is over its limit may begin anew
  $ fetchr limits reset default/api/all/per-client 10.0.0.1
  # a limit that counts all requests together
  $ fetchr limits reset default/api/all/total
  # in each pod of a workload; a count that pods share is one, and goes with the first
  $ fetchr limits reset shop/api/all/per-client 10.0.0.1 --workload deployment/web -n shop

It ends with 0 also if nothing was counted. Requests under way keep what they have of a limit on such.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    count: CountArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Gives the order.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { count, place, format } = args;
    let (target, body) = (Target::new("/limits/reset"), output::json(&count.named())?);
    let Some(workload) = place.workload()? else {
        let forgotten: Forgotten = place.one(async |asked| asked.order("reset", &target, &body).await)?;
        output::print(format.output, &forgotten, |_| rendered(&count.shown(), forgotten, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut forgotten = Forgotten { found: false };
    let take = |_, Forgotten { found }| forgotten.found |= found;
    let unanswered = place.each(&workload, &async |asked| asked.order("reset", &target, &body).await, take, color)?;
    output::print(format.output, &forgotten, |_| rendered(&count.shown(), forgotten, color.stdout()))?;
    Ok(unanswered.tell())
}

fn rendered(shown: &str, forgotten: Forgotten, paint: Paint) -> String {
    let state = if forgotten.found { paint.good("forgotten") } else { paint.faint("nothing was counted") };
    format!("{state}: {shown}\n")
}
