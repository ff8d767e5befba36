//! `fetchr throttle`: the throttles of a proxy on this machine, or those of pods.

use std::{
    io::{self, IsTerminal as _},
    thread::sleep,
    time::Duration,
};

use clap::Subcommand;
use serde::Serialize;
use sidecar::throttle::ThrottleFigures;

use crate::{
    args::{FormatArgs, duration},
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, or_dash},
    reach::{
        admin::Target,
        place::Place,
        pods::{Failed, Names, Of, PodName},
    },
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # how many requests are under way, how many wait, and what was turned away?
  $ fetchr throttle status
  # the same again and again
  $ fetchr throttle watch
  # of all pods of a workload, with the reasons
  $ fetchr throttle status --workload deployment/web -n shop -o wide

LIMIT is what is let through at a time: of an adaptive limit, what it has found. WAITED and SHED are requests since the proxy began, of which
SHED were answered with 503 or 504, or left before their turn. In mode Shadow they are what would have been.";

/// Outcomes of requests that went at once, and after a wait.
const PASSED: [&str; 2] = ["admitted", "queued"];
/// And of those that did not, as columns.
const SHED: [(&str, &str); 6] = [
    ("QUEUE FULL", "queue_full"),
    ("MAX WAIT", "max_wait"),
    ("PREEMPTED", "preempted"),
    ("RATE", "rate"),
    ("DEADLINE", "deadline"),
    ("LEFT", "abandoned"),
];

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show how they stand
    #[command(after_help = EXAMPLES)]
    Status(StatusArgs),
    /// Show how they stand, again and again until it is interrupted
    #[command(after_help = EXAMPLES)]
    Watch(WatchArgs),
}

#[derive(clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct WatchArgs {
    /// How often
    #[arg(long, env = "FETCHR_EVERY", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    every: Duration,
    /// How many times; without it, until it is interrupted
    #[arg(long, env = "FETCHR_TIMES", value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    times: Option<u64>,
    #[command(flatten)]
    status: StatusArgs,
}

/// Does what the subcommand says.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    match &args.command {
        Command::Status(args) => args.show("", color),
        Command::Watch(args) => args.watch(color),
    }
}

impl WatchArgs {
    fn watch(&self, color: Color) -> Result<Exit, Failure> {
        // Only where somebody looks at it: what is piped stays.
        let before = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        for _ in 1..self.times.unwrap_or(u64::MAX) {
            self.status.show(before, color)?;
            sleep(self.every);
        }
        self.status.show(before, color)
    }
}

impl StatusArgs {
    fn show(&self, before: &str, color: Color) -> Result<Exit, Failure> {
        let (Self { format, place }, target) = (self, Target::new("/throttles"));
        let Some(workload) = place.workload()? else {
            let throttles: Vec<ThrottleFigures> = place.one(async |asked| asked.look_up(&target).await)?;
            let text = |wide| format!("{before}{}", render(&[(None, &throttles)], wide, color.stdout()));
            output::print(format.output, &throttles, text)?;
            return Ok(Exit::Ok);
        };
        let mut pods: Vec<Of<Throttles>> = Vec::new();
        let take = |pod, throttles| pods.push(Of { pod, what: Throttles { throttles } });
        let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
        pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        let all = All { pods, failed: &unanswered.failed };
        output::print(format.output, &all, |wide| format!("{before}{}", all.render(wide, color.stdout())))?;
        Ok(unanswered.tell())
    }
}

/// Those of several pods, as JSON.
#[derive(Serialize)]
struct All<'a> {
    pods: Vec<Of<Throttles>>,
    failed: &'a [Failed],
}

#[derive(Serialize)]
struct Throttles {
    throttles: Vec<ThrottleFigures>,
}

impl All<'_> {
    fn render(&self, wide: bool, paint: Paint) -> String {
        let pods: Vec<_> = self.pods.iter().map(|of| (Some(&of.pod), of.what.throttles.as_slice())).collect();
        render(&pods, wide, paint)
    }
}

/// A line for each throttle of each pod.
fn render(pods: &[(Option<&PodName>, impl AsRef<[ThrottleFigures]>)], wide: bool, paint: Paint) -> String {
    let named: Vec<&PodName> = pods.iter().filter_map(|(pod, _)| *pod).collect();
    let names = Names::of(named.iter().copied());
    let mut header = if named.is_empty() { Vec::new() } else { vec!["POD"] };
    header.extend(["RULE", "MODE", "LIMIT", "IN FLIGHT", "QUEUED", "ADMITTED", "WAITED", "SHED"]);
    if wide {
        header.extend(SHED.map(|(column, _)| column));
        header.extend(["DELAYED", "GRADIENT", "BASELINE", "WAITING BY PRIORITY"]);
    }
    let mut table = Table::new(&header);
    for (pod, throttles) in pods {
        for throttle in throttles.as_ref() {
            let mut row: Vec<String> = pod.map(|pod| names.name(pod)).into_iter().collect();
            row.extend(cells(throttle, wide));
            table.row(row);
        }
    }
    if table.is_empty() { format!("{}\n", paint.faint("No rule has a section throttle.")) } else { table.to_string() }
}

fn cells(throttle: &ThrottleFigures, wide: bool) -> Vec<String> {
    let count = |outcome: &str| throttle.requests.get(outcome).copied().unwrap_or_default();
    let [admitted, waited] = PASSED.map(count);
    let shed: u64 = SHED.iter().map(|(_, outcome)| count(outcome)).sum();
    let mut cells = vec![
        throttle.rule.clone(),
        format!("{:?}", throttle.mode),
        throttle.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
    ];
    cells.extend([throttle.in_flight, throttle.queued, admitted, waited, shed].map(|number| number.to_string()));
    if wide {
        cells.extend(SHED.map(|(_, outcome)| count(outcome).to_string()));
        cells.push(throttle.delayed.to_string());
        cells.push(or_dash(throttle.gradient.map(|gradient| format!("{gradient:.2}")).unwrap_or_default()));
        cells.push(or_dash(throttle.baseline_millis.map(|millis| format!("{millis:.1}ms")).unwrap_or_default()));
        let waiting = throttle.priorities.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}"));
        cells.push(or_dash(waiting.collect::<Vec<_>>().join(", ")));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttles() -> Vec<ThrottleFigures> {
        serde_json::from_value(serde_json::json!([
            {"rule": "shop/web/all", "mode": "Enforce", "inFlight": 97, "limit": 103, "gradient": 0.984, "baselineMillis": 100.25,
                "queued": 5, "delayed": 0, "priorities": {"high": 0, "default": 5},
                "requests": {"admitted": 900, "queued": 40, "queue_full": 3, "deadline": 2, "abandoned": 1}},
            {"rule": "shop/web/slow", "mode": "Shadow", "inFlight": 1, "queued": 0, "delayed": 2, "priorities": {}, "requests": {}}
        ]))
        .unwrap()
    }

    #[test]
    fn throttles_are_lines_of_a_table() {
        insta::assert_snapshot!(render(&[(None, throttles())], false, Paint::off()), @r"
        RULE            MODE      LIMIT   IN FLIGHT   QUEUED   ADMITTED   WAITED   SHED
        shop/web/all    Enforce   103     97          5        900        40       6
        shop/web/slow   Shadow    -       1           0        0          0        0
        ");
        insta::assert_snapshot!(render(&[(None, &throttles()[..1])], true, Paint::off()), @r"
        RULE           MODE      LIMIT   IN FLIGHT   QUEUED   ADMITTED   WAITED   SHED   QUEUE FULL   MAX WAIT   PREEMPTED   RATE   DEADLINE   LEFT   DELAYED   GRADIENT   BASELINE   WAITING BY PRIORITY
        shop/web/all   Enforce   103     97          5        900        40       6      3            0          0           0      2          1      0         0.98       100.2ms    default 5
        ");
        let pod = PodName { namespace: "shop".to_owned(), pod: "web-1".to_owned() };
        assert!(
            render(&[(Some(&pod), throttles())], false, Paint::off())
                .lines()
                .all(|line| line.starts_with("POD") || line.starts_with("web-1 "))
        );
        assert_eq!(render(&[(None, Vec::new())], false, Paint::off()), "No rule has a section throttle.\n");
    }
}
