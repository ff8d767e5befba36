//! `fetchr cache`: the cache of a proxy on this machine, or those of pods. One file for each subcommand.

mod explain;
mod export;
mod filter;
mod get;
mod import;
mod ls;
mod merged;
mod progress;
mod purge;
mod remote;
mod stats;
mod top;
mod warm;
mod whole;

use clap::Subcommand;

use crate::{
    failure::{Exit, Failure},
    output::Color,
    reach::{admin, place, pods},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # how full is it, and which rules have hits?
  $ fetchr cache stats
  # is this a hit, and if not, why?
  $ fetchr cache explain http://localhost/products/42
  # what is stored below a path?
  $ fetchr cache ls --prefix http://localhost/products/
  # answers with a tag are gone when this ends
  $ fetchr cache purge --tag news
  # these are asked for anew, and may answer meanwhile where their policy permits it
  $ fetchr cache purge --prefix http://localhost/products/ --soft
  # of a pod, and of all pods of a workload
  $ fetchr cache stats --pod web-6c9f-x2x1z -n shop
  $ fetchr cache purge --tag news --workload deployment/web -n shop
  # what one proxy has, for another one
  $ fetchr cache export answers.fxc
  # a new cache has answers before anybody asks
  $ fetchr cache warm -f urls.txt";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show how full it is, and what it has counted
    #[command(after_help = stats::EXAMPLES)]
    Stats(stats::Args),
    /// List what is stored
    #[command(after_help = ls::EXAMPLES)]
    Ls(ls::Args),
    /// List what is asked for most often, or takes most memory
    #[command(after_help = top::EXAMPLES)]
    Top(top::Args),
    /// Show a stored answer, head and body
    #[command(after_help = get::EXAMPLES)]
    Get(get::Args),
    /// Tell what the cache would do with a request, and why
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::Args),
    /// Take answers out before their time
    #[command(after_help = purge::EXAMPLES)]
    Purge(purge::Args),
    /// Write what is stored to a file
    #[command(after_help = export::EXAMPLES)]
    Export(export::Args),
    /// Store what another cache has written to a file
    #[command(after_help = import::EXAMPLES)]
    Import(import::Args),
    /// Ask for URLs, so that they are stored when others ask
    #[command(after_help = warm::EXAMPLES)]
    Warm(warm::Args),
}

/// Does what the subcommand says.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    match &args.command {
        Command::Top(args) => top::execute(args, color),
        Command::Get(args) => get::execute(args, color),
        Command::Explain(args) => explain::execute(args, color),
        Command::Stats(args) => stats::execute(args, color),
        Command::Ls(args) => ls::execute(args, color),
        Command::Purge(args) => purge::execute(args, color),
        Command::Export(args) => export::execute(args, color),
        Command::Import(args) => import::execute(args, color),
        Command::Warm(args) => warm::execute(args, color),
    }
}
