//! The commands, one module each.

pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod explain;
pub(crate) mod inject;
pub(crate) mod limits;
pub(crate) mod man;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod throttle;
pub(crate) mod upgrade;
pub(crate) mod validate;
pub(crate) mod version;

use std::future::Future;

use crate::{
    args::{Cli, Command, ProgramName},
    failure::{Exit, Failure},
};

/// Does what the command line says.
pub(crate) fn execute(cli: Cli, name: ProgramName) -> Result<Exit, Failure> {
    let color = cli.color;
    match cli.command {
        Command::Explain(args) => explain::execute(&args, color),
        Command::Inject(args) => inject::execute(&args, color),
        Command::Run(args) => run::execute(&args, color),
        Command::Upgrade(args) => upgrade::execute(&args),
        Command::Validate(args) => validate::execute(&args, color),
        Command::Check(args) => block_on(check::execute(args, color)),
        Command::Status(args) => block_on(status::execute(args, color)),
        Command::Version(args) => block_on(version::execute(args)),
        Command::Cache(args) => cache::execute(&args, color),
        Command::Throttle(args) => throttle::execute(&args, color),
        Command::Limits(args) => limits::execute(&args, color),
        Command::Completion(args) => completion::execute(&args, name),
        Command::Man(args) => man::execute(&args, name),
    }
}

/// Runs what talks to a cluster; one thread is plenty.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("no runtime could be started: {e}")))?
        .block_on(work)
}
