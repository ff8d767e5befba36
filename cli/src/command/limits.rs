//! `fetchr limits`: what the limits of a proxy on this machine count, or those of pods. One file for each subcommand.

mod get;
mod ls;
mod reset;
mod simulate;
mod top;

use clap::Subcommand;
use sidecar::limit::show::CountNamed;

use crate::{
    failure::{Exit, Failure},
    output::Color,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # which limits are in force, and whom do they deny?
  $ fetchr limits ls
  # what remains for a client?
  $ fetchr limits get default/api/all/per-client 10.0.0.1
  # let it begin anew
  $ fetchr limits reset default/api/all/per-client 10.0.0.1
  # who is denied most?
  $ fetchr limits top
  # what would they do to 1000 requests a second?
  $ fetchr limits simulate -f policy.yaml --rate 1000/s --clients 10
  # of a pod, and of all pods of a workload
  $ fetchr limits ls --pod web-6c9f-x2x1z -n shop
  $ fetchr limits top --workload deployment/web -n shop";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the limits in force, and what they have decided
    #[command(after_help = ls::EXAMPLES)]
    Ls(ls::Args),
    /// Show how a count stands
    #[command(after_help = get::EXAMPLES)]
    Get(get::Args),
    /// Forget a count, so that it begins anew
    #[command(after_help = reset::EXAMPLES)]
    Reset(reset::Args),
    /// List what was denied most, or has least left
    #[command(after_help = top::EXAMPLES)]
    Top(top::Args),
    /// Tell what the limits of documents would do to a load, or to the requests of a log
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::Args),
}

/// Does what the subcommand says.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    match &args.command {
        Command::Ls(args) => ls::execute(args, color),
        Command::Get(args) => get::execute(args, color),
        Command::Reset(args) => reset::execute(args, color),
        Command::Top(args) => top::execute(args, color),
        Command::Simulate(args) => simulate::execute(args, color),
    }
}

/// Which count.
#[derive(clap::Args)]
struct CountArgs {
    /// The limit, as NAMESPACE/POLICY/RULE/LIMIT
    #[arg(value_name = "POLICY/RULE/LIMIT")]
    limit: String,
    /// The value of each part of its key, in their order; an empty one stands for requests without it
    #[arg(value_name = "VALUE")]
    values: Vec<String>,
}

impl CountArgs {
    /// As the proxy is asked.
    fn named(&self) -> CountNamed {
        CountNamed { limit: self.limit.clone(), values: self.values.clone() }
    }

    /// As a person reads it.
    fn shown(&self) -> String {
        let values: String = self.values.iter().map(|value| format!(" {value:?}")).collect();
        format!("{}{values}", self.limit)
    }
}

/// A time in few digits.
fn time(seconds: f64) -> String {
    match seconds {
        ..=0.0 => "0s".to_owned(),
        ..0.9995 => format!("{:.0}ms", (seconds * 1000.0).max(1.0)),
        ..120.0 => format!("{seconds:.1}s"),
        // Never negative, and whole seconds are enough.
        _ => crate::output::age(seconds.ceil() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_have_few_digits() {
        let shown = [0.0, 0.0001, 0.25, 1.0, 59.96, 3600.0].map(time);
        assert_eq!(shown, ["0s", "1ms", "250ms", "1.0s", "60.0s", "60m"]);
    }
}
