//! `fetchr`: run, validate, explain, inject, check, status. Started as `kubectl-fetchr` it is kubectl's plugin.

mod args;
mod cluster;
mod command;
mod documents;
mod failure;
mod output;
mod reach;
mod request;
mod sidecars;

use std::{env, io::Write, process::ExitCode};

use crate::args::ProgramName;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let name = ProgramName::of_process();
    let cli = args::parse(name, env::args_os());
    let color = cli.color;
    match command::execute(cli, name) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Nothing is left to do if standard error is gone as well.
            let _ = std::io::stderr().write_all(failure.render(color.stderr()).as_bytes());
            failure.exit().into()
        }
    }
}
