//! `fetchr completion`: scripts for shells.

use clap_complete::{Shell, generate};

use crate::{
    args::{ProgramName, grammar},
    failure::{Exit, Failure},
    output,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # bash, for this session
  $ fetchr completion bash > /tmp/fetchr.bash && source /tmp/fetchr.bash
  # fish, for good
  $ fetchr completion fish > ~/.config/fish/completions/fetchr.fish";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub(crate) fn execute(args: &Args, name: ProgramName) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    // Shells complete by the program's name; kubectl has a hook of its own for plugins, which calls by that name, too.
    generate(args.shell, &mut grammar(ProgramName::Fetchr), program(name), &mut script);
    output::write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

fn program(name: ProgramName) -> &'static str {
    match name {
        ProgramName::Fetchr => "fetchr",
        ProgramName::KubectlPlugin => "kubectl-fetchr",
    }
}
