//! `fetchr-bench`: figures of the proxy, measured beside its peers in one run.
//!
//! Machines are shared, so what counts are ratios within a run: CPU time per request of each proxy's own processes, with the
//! proxies pinned to one core and the load and the origin to another.

mod endpoints;
mod load;
mod peers;
mod process;
mod scenarios;
mod start;
mod streams;
mod traffic;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::report;

#[derive(Parser)]
#[command(about = "Measures fetchr beside its peers, in one run", version)]
struct Args {
    /// Folder of the release binaries.
    #[arg(long, env = "FETCHR_BENCH_BINARIES")]
    binaries: PathBuf,
    /// Markdown file whose part between `<!-- bench:NAME -->` and `<!-- end:NAME -->` is replaced by the new table.
    #[arg(long)]
    report: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// CPU per request, latency and memory under load, beside nginx and HAProxy.
    Pass(traffic::Options),
    /// CPU per request of one kind after the other, beside nginx and HAProxy.
    Scenarios(scenarios::Options),
    /// Time from start to ready, and memory when idle.
    Start(start::Options),
    /// From a changed EndpointSlice in a large cluster to the streams of an operator, and its memory.
    Endpoints(endpoints::Options),
    /// From a changed policy to a thousand streams of one operator, and its memory.
    Streams(streams::Options),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let binaries =
        args.binaries.canonicalize().with_context(|| format!("no folder {}; run `make build` first", args.binaries.display()))?;
    let (name, table) = match &args.command {
        Command::Endpoints(options) => ("endpoints", endpoints::run(&binaries, options)?),
        Command::Pass(options) => ("pass", traffic::run(&binaries, options)?),
        Command::Scenarios(options) => ("scenarios", scenarios::run(&binaries, options)?),
        Command::Start(options) => ("start", start::run(&binaries, options)?),
        Command::Streams(options) => ("streams", streams::run(&binaries, options)?),
    };
    println!("{table}");
    if let Some(file) = &args.report {
        report::replace(file, name, &table)?;
    }
    Ok(())
}
