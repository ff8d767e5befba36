//! `fetchr limits simulate`: what the limits of documents would do to requests that nobody sends.

mod load;
mod plot;

use std::{fs, path::PathBuf, time::Duration};

use clap::ValueEnum;
use crds::{
    FetchrPolicy,
    plan::{AttachedPolicy, Attachment, ObjectRef},
    policy::Direction,
    target::TargetKind,
};
use serde::Serialize;
use sidecar::limit::simulate::{LimitTotal, Simulated, Simulation};

use self::load::{Load, LoadArgs};
use crate::{
    args::{FileArgs, FormatArgs, duration},
    documents,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # 1000 requests a second of 10 clients for a minute, in turn to three pods
  $ fetchr limits simulate -f policy.yaml --rate 1000/s --clients 10 --for 60s --pods 3
  # each client with a header field of its own
  $ fetchr limits simulate -f policy.yaml --url http://shop.example/api -H 'x-user: user-{client}'
  # requests that have come, at the times when they came
  $ fetchr limits simulate -f policy.yaml --log access.jsonl -o json
  # as a picture
  $ fetchr limits simulate -f policy.yaml --rate 50/s --svg limits.svg

All policies of the documents hold, whatever they are attached to, and time is imagined: nothing is sent. A line of a log is JSON, in the order of
time: {\"time\": \"2026-01-01T00:00:00Z\", \"method\": \"GET\", \"host\": \"shop\", \"path\": \"/a?b\", \"headers\": {}, \"client\": \"10.0.0.1\"}; `time` may be
in seconds since 1970. Costs that only answers tell count nothing, and a limit with accuracy Leased is exact.";

/// Seconds that are plotted at most: a week.
const LONGEST: u64 = 7 * 86_400;

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Whether requests come to the application or from it
    #[arg(
        long,
        env = "FETCHR_DIRECTION",
        value_enum,
        default_value = "inbound",
        hide_possible_values = true,
        value_name = "inbound|outbound"
    )]
    direction: Way,
    /// Pods that take requests in turn
    #[arg(long, env = "FETCHR_PODS", value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pods: u16,
    /// How long a request takes that is forwarded, for limits on requests under way
    #[arg(long, env = "FETCHR_TOOK", value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    took: Duration,
    /// Write a plot to this file
    #[arg(long, env = "FETCHR_SVG", value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Inbound,
    Outbound,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    requests: u64,
    admitted: u64,
    denied: u64,
    /// Requests that were admitted after a while, and the longest of these.
    delayed: u64,
    longest_delay_seconds: f64,
    limits: Vec<LimitTotal>,
    /// What became of the requests of each second, from the first one on.
    seconds: Vec<Second>,
}

/// Requests of a second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
struct Second {
    admitted: u64,
    denied: u64,
}

/// Plays it, and shows what came of it.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let direction = match args.direction {
        Way::Inbound => Direction::Inbound,
        Way::Outbound => Direction::Outbound,
    };
    let documents = documents::read_valid(&args.files, color.stderr())?;
    let policies: Vec<_> =
        documents.policies.iter().filter(|policy| policy.spec.direction == direction).flat_map(attached).collect();
    let simulation =
        Simulation::new(policies, direction, args.pods.into(), args.took).map_err(|e| Failure::new(e.to_string()))?;
    let outcome = play(simulation, args.load.load(direction)?)?;
    if let Some(file) = &args.svg {
        fs::write(file, plot::svg(&outcome.seconds)).map_err(|e| Failure::new(e.to_string()).at(file.display()))?;
    }
    output::print(args.format.output, &outcome, |_| rendered(&outcome, color.stdout()))?;
    Ok(Exit::Ok)
}

/// A policy as if it were attached to the pods; that of a host of others holds for it.
fn attached(policy: &FetchrPolicy) -> Vec<AttachedPolicy> {
    let metadata = &policy.metadata;
    let named = ObjectRef::new(metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_deref().unwrap_or_default());
    let hosts = policy.spec.target_refs.iter().filter(|target| target.kind == TargetKind::ExternalHost);
    let mut places: Vec<_> = hosts.map(|target| Attachment::ExternalHost { host: target.name.clone() }).collect();
    if places.is_empty() {
        places.push(Attachment::Proxy);
    }
    let (direction, rules) = (policy.spec.direction, policy.spec.rules.clone());
    let attach = |attachment| AttachedPolicy { policy: named.clone(), attachment, direction, rules: rules.clone().into() };
    places.into_iter().map(attach).collect()
}

fn play(mut simulation: Simulation, load: Load) -> Result<Outcome, Failure> {
    let (mut outcome, mut first, mut last) = (Outcome::default(), None, Duration::ZERO);
    for request in load {
        let (time, request) = request?;
        // Logs are written when requests end, so some lines are a little late.
        last = time.max(last);
        let second = (last - *first.get_or_insert(last)).as_secs();
        let place = usize::try_from(second).ok().filter(|_| second < LONGEST);
        let place = place.ok_or_else(|| Failure::usage("the requests take longer than a week"))?;
        if outcome.seconds.len() <= place {
            outcome.seconds.resize(place + 1, Second::default());
        }
        let second = &mut outcome.seconds[place];
        outcome.requests += 1;
        match simulation.ask(&request, last).map_err(Failure::usage)? {
            Simulated::Admitted { after } => {
                second.admitted += 1;
                outcome.admitted += 1;
                outcome.delayed += u64::from(!after.is_zero());
                outcome.longest_delay_seconds = outcome.longest_delay_seconds.max(after.as_secs_f64());
            }
            Simulated::Denied { .. } => {
                second.denied += 1;
                outcome.denied += 1;
            }
        }
    }
    outcome.limits = simulation.totals();
    Ok(outcome)
}

fn rendered(outcome: &Outcome, paint: Paint) -> String {
    let Outcome { requests, admitted, denied, delayed, longest_delay_seconds, limits, seconds } = outcome;
    let mut table = Table::new(&["LIMIT", "MODE", "ALLOWED", "DENIED"]);
    for LimitTotal { name, mode, allowed, denied } in limits {
        table.row(vec![name.clone(), format!("{mode:?}"), allowed.to_string(), denied.to_string()]);
    }
    let late = super::time(*longest_delay_seconds);
    let late = if *delayed > 0 { format!(", {delayed} of them delayed by up to {late}") } else { String::new() };
    let sum = format!("{requests} requests: {} admitted{late}, {} denied\n", paint.good(admitted), paint.bad(denied));
    let table = if table.is_empty() { "The documents have no limit for this direction.\n".to_owned() } else { table.to_string() };
    format!("{}\n{sum}\n{table}", plot::text(seconds, paint))
}
