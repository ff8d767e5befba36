//! What the cache does: hits beside the caches of peers, what a miss costs, memory, pauses, its choice of what to keep, and purges.

mod ask;
mod hits;
mod memory;
mod misses;
mod pauses;
mod peers;
mod unit;

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::findings::{self, Findings, Section};

/// How much, how long and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Requests whose instructions are counted.
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Answers of 100 bytes that are kept at a time.
    #[arg(long, default_value_t = 1_000_000)]
    objects: u32,
    /// Requests a second, each of which has its answer kept, where pauses are looked for.
    #[arg(long, default_value_t = 8000.0)]
    rate: f64,
    /// How the measurements inside of the library are compiled.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

/// What can be measured by itself, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU of answers that are kept, beside the caches of peers.
    Hits,
    /// Instructions of requests that miss.
    Misses,
    /// Bytes a kept answer, and the time of a purge among all of them.
    Memory,
    /// Latency while answers have to go.
    Pauses,
    /// Hit ratios, and purges over many pods: in the library, not over the wire.
    Unit,
}

/// Runs one part after the other.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let parts = Part::value_variants().iter().filter(|part| options.only.is_empty() || options.only.contains(part));
    findings::of_parts(parts, |part| part.run(binaries, options), "CPU microseconds a hit")
}

impl Part {
    fn run(self, binaries: &Path, options: &Options) -> Result<Section> {
        match self {
            Self::Hits => hits::run(binaries, options),
            Self::Misses => misses::run(binaries, options),
            Self::Memory => memory::run(binaries, options),
            Self::Pauses => pauses::run(binaries, options),
            Self::Unit => unit::run(options),
        }
    }
}
