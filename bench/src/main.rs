//! `fetchr-bench`: figures of the proxy, measured beside its peers in one run.
//!
//! Machines are shared, so what counts are ratios within a run: CPU time per request of each proxy's own processes, with the
//! proxies pinned to one core and the load and the origin to another.

mod cache;
mod cluster;
mod endpoints;
mod findings;
mod idle;
mod limits;
mod load;
mod peers;
mod process;
mod rate;
mod rules;
mod scenarios;
mod sections;
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
    /// Folder for all figures as NAME.json, and for plots as NAME.svg.
    #[arg(long)]
    figures: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// CPU per request, latency and memory under load, beside the other proxies.
    Pass(traffic::Options),
    /// CPU per request of one kind after the other, beside the other proxies.
    Scenarios(scenarios::Options),
    /// The same over 1, 2, 4 and 64 connections to proxies of two workers.
    Workers(scenarios::Options),
    /// Latency at a constant rate, half of what nginx can do, beside the other proxies.
    Rate(rate::Options),
    /// Memory of idle connections, beside the other proxies.
    Idle(idle::Options),
    /// A thousand rules beside ten.
    Rules(rules::Options),
    /// What each section of a policy costs, in instructions.
    Sections(sections::Options),
    /// What rate limits cost, how exact they are over ten proxies, and what clients see while Redis is gone.
    Limits(limits::Options),
    /// Time from start to ready, and memory when idle.
    Start(start::Options),
    /// Hits beside the caches of the other proxies, misses, memory, pauses, hit ratios and purges.
    Cache(cache::Options),
    /// From a changed EndpointSlice in a large cluster to the streams of an operator, and its memory.
    Endpoints(endpoints::Options),
    /// From a changed policy to a thousand streams of one operator, and its memory.
    Streams(streams::Options),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let binaries =
        args.binaries.canonicalize().with_context(|| format!("no folder {}; run `make build` first", args.binaries.display()))?;
    // The proxies inherit it.
    process::descriptors();
    let (name, findings) = match &args.command {
        Command::Cache(options) => ("cache", cache::run(&binaries, options)?),
        Command::Endpoints(options) => ("endpoints", endpoints::run(&binaries, options)?),
        Command::Limits(options) => ("limits", limits::run(&binaries, options)?),
        Command::Pass(options) => ("pass", traffic::run(&binaries, options)?),
        Command::Scenarios(options) => ("scenarios", scenarios::run(&binaries, options)?),
        Command::Workers(options) => ("workers", scenarios::workers(&binaries, options)?),
        Command::Rate(options) => ("rate", rate::run(&binaries, options)?),
        Command::Idle(options) => ("idle", idle::run(&binaries, options)?),
        Command::Rules(options) => ("rules", rules::run(&binaries, options)?),
        Command::Sections(options) => ("sections", sections::run(&binaries, options)?),
        Command::Start(options) => ("start", start::run(&binaries, options)?),
        Command::Streams(options) => ("streams", streams::run(&binaries, options)?),
    };
    println!("{}", findings.table);
    if let Some(file) = &args.report {
        report::replace(file, name, &findings.table)?;
    }
    if let Some(folder) = &args.figures {
        findings.write(folder, name)?;
    }
    Ok(())
}
