//! `fetchr upgrade`: the program on disk takes over from a proxy that runs here. The proxy's supervisor does it; here it is asked to.

use std::{
    thread,
    time::{Duration, Instant},
};

use sidecar::{
    source::state::StateDir,
    supervisor::{Status, start_time},
};

use crate::{
    args::StateArgs,
    failure::{Exit, Failure},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # after the file of the program was replaced
  $ fetchr upgrade
  # one of several that run side by side
  $ fetchr upgrade --admin-port 4720
  # the same by hand
  $ kill -USR2 PID

A worker is started from the file on disk with the arguments of before and takes over the open ports; connections of the old worker may end
within drain.delay and drain.timeout. If the new worker does not serve, the old one goes on, and this command fails.";

/// The supervisor gives a new worker 10 s.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    state: StateArgs,
}

/// Asks for the upgrade, and waits until the new worker serves.
pub(crate) fn execute(args: &Args) -> Result<Exit, Failure> {
    let dir = args.state.dir()?;
    let nobody = || Failure::unreachable("no proxy runs here that could be upgraded").at(dir.display());
    let hint = "it is found by its --admin-port or its --state-dir";
    if !dir.is_dir() {
        return Err(nobody().hint(hint));
    }
    let state = StateDir::open(&dir).map_err(|e| nobody().hint(e.to_string()))?;
    let status = || state.supervisor().filter(|status| start_time(status.pid) == Some(status.started));
    let before = status().ok_or_else(|| nobody().hint(hint))?;
    signal(&before)?;
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        thread::sleep(PAUSE);
        let now = status().ok_or_else(|| Failure::new("the proxy has ended meanwhile"))?;
        if now.refused > before.refused {
            return Err(Failure::new("there was no upgrade, and the worker of before goes on").at(now.refusal));
        }
        if now.upgrades > before.upgrades {
            let Status { pid, version, .. } = now;
            println!("fetchr {version} serves (process {pid}, before: fetchr {})", before.version);
            return Ok(Exit::Ok);
        }
    }
    Err(Failure::new(format!("the supervisor (process {}) did not answer within {} s", before.pid, LIMIT.as_secs())))
}

fn signal(status: &Status) -> Result<(), Failure> {
    // Its start time has just told that the id is the supervisor's.
    sidecar::supervisor::ask_to_upgrade(status.pid)
        .map_err(|e| Failure::new(format!("the supervisor (process {}) can't be told: {e}", status.pid)))
}
