//! `fetchr man`: manual pages from the grammar.

use std::{fs, io, path::PathBuf};

use clap_mangen::Man;

use crate::{
    args::{ProgramName, grammar},
    failure::{Exit, Failure},
    output,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # the page of fetchr itself
  $ fetchr man | man -l -
  # every page
  $ fetchr man --dir /usr/local/share/man/man1";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write a page for every command to this folder, and make it if it is not there
    #[arg(long, env = "FETCHR_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints one page or writes all.
pub(crate) fn execute(args: &Args, name: ProgramName) -> Result<Exit, Failure> {
    let main = grammar(name);
    let Some(dir) = &args.dir else {
        output::write(&String::from_utf8_lossy(&page(main, "fetchr")?))?;
        return Ok(Exit::Ok);
    };
    let failed = |e: io::Error| Failure::new(format!("the pages can't be written: {e}")).at(dir.display());
    fs::create_dir_all(dir).map_err(failed)?;
    for command in main.get_subcommands() {
        let title = format!("fetchr-{}", command.get_name());
        fs::write(dir.join(format!("{title}.1")), page(command.clone(), &title)?).map_err(failed)?;
    }
    fs::write(dir.join("fetchr.1"), page(main, "fetchr")?).map_err(failed)?;
    Ok(Exit::Ok)
}

fn page(command: clap::Command, title: &str) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let man = Man::new(command).title(title.to_uppercase()).section("1").manual("fetchr");
    man.render(&mut page).map_err(|e| Failure::new(format!("the page {title} can't be made: {e}")))?;
    Ok(page)
}
