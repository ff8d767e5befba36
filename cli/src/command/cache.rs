//! `fetchr cache`: the cache of a proxy on this machine. One file for each subcommand.

mod admin;
mod ls;
mod purge;
mod stats;

use clap::Subcommand;

use crate::{
    failure::{Exit, Failure},
    output::Color,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # how full is it, and which rules have hits?
  $ fetchr cache stats
  # what is stored below a path?
  $ fetchr cache ls --prefix http://localhost/products/
  # answers with a tag are gone when this ends
  $ fetchr cache purge --tag news
  # these are asked for anew, and may answer meanwhile where their policy permits it
  $ fetchr cache purge --prefix http://localhost/products/ --soft";

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
    /// Take answers out before their time
    #[command(after_help = purge::EXAMPLES)]
    Purge(purge::Args),
}

/// Does what the subcommand says.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    match &args.command {
        Command::Stats(args) => stats::execute(args, color),
        Command::Ls(args) => ls::execute(args, color),
        Command::Purge(args) => purge::execute(args, color),
    }
}
