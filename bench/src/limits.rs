//! Rate limits: what each costs a request, how exact they are over ten proxies, and what clients see while Redis is gone.

mod clients;
mod cost;
mod exact;
mod gone;
mod pods;
mod redis;

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::findings::{self, Findings, Section};

/// How much, how long and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of what a limit costs; in each, every policy has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 2)]
    turn: u32,
    /// Requests whose instructions are counted.
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Seconds of a load on ten proxies; and in which Redis is there, is gone, and is back.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

/// What can be measured by itself, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU and instructions of limits of each kind.
    Cost,
    /// What ten proxies admit of one limit.
    Exact,
    /// The same while Redis is killed, and when it is back.
    Gone,
}

/// Runs one part after the other.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let parts = Part::value_variants().iter().filter(|part| options.only.is_empty() || options.only.contains(part));
    findings::of_parts(parts, |part| part.run(binaries, options), "CPU microseconds a request")
}

impl Part {
    fn run(self, binaries: &Path, options: &Options) -> Result<Section> {
        match self {
            Self::Cost => cost::run(binaries, options),
            Self::Exact => exact::run(binaries, options),
            Self::Gone => gone::run(binaries, options),
        }
    }
}
