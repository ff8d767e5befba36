//! `fetchr limits get`: how a count stands.

use serde::Serialize;
use sidecar::limit::show::{By, LimitCount};

use super::{CountArgs, time};
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, or_dash},
    reach::{
        admin::Target,
        place::Place,
        pods::{Names, Of},
    },
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # what remains for a client, of a limit whose key is ClientIP
  $ fetchr limits get default/api/all/per-client 10.0.0.1
  # of a limit whose key is a header field and the method; and for requests without the field
  $ fetchr limits get default/api/all/per-user anna GET
  $ fetchr limits get default/api/all/per-user '' GET
  # of a limit that counts all requests together
  $ fetchr limits get default/api/all/total
  # in all pods of a workload
  $ fetchr limits get shop/api/all/per-client 10.0.0.1 --workload deployment/web -n shop

Values are spelled as in overrides.values of the policy; of an IPv6 address its /64 counts. To ask takes nothing.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    count: CountArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// What pods have answered.
#[derive(Serialize)]
struct Counts {
    pods: Vec<Of<LimitCount>>,
}

/// Asks how it stands.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { count, place, format } = args;
    let target = Target::new("/limits/count").with("limit", Some(&count.limit));
    let target = count.values.iter().fold(target, |target, value| target.with("value", Some(value)));
    let Some(workload) = place.workload()? else {
        let stands: LimitCount = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &stands, |_| rendered(&count.shown(), &stands, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut pods = Vec::new();
    let take = |pod, what| pods.push(Of { pod, what });
    let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
    pods.sort_by(|a: &Of<LimitCount>, b| a.pod.cmp(&b.pod));
    let counts = Counts { pods };
    output::print(format.output, &counts, |_| table(&counts.pods).to_string())?;
    Ok(unanswered.tell())
}

fn rendered(shown: &str, count: &LimitCount, paint: Paint) -> String {
    let LimitCount { counted, quota, remaining, next_seconds, full_seconds, paused_seconds, .. } = count;
    let left = format!("{remaining} of {quota}");
    let left = if *remaining == 0 { paint.bad(left) } else { paint.good(left) };
    let mut text = format!("{}\n\nremaining   {left}, counted by {}\n", paint.strong(shown), who(*counted));
    for (name, seconds) in [("next", next_seconds), ("full", full_seconds), ("paused", paused_seconds)] {
        if let Some(seconds) = seconds {
            let when = if *seconds > 0.0 { format!("in {}", time(*seconds)) } else { "now".to_owned() };
            let when = if name == "paused" { format!("by the upstream, ends {when}") } else { when };
            text += &format!("{name:<12}{when}\n");
        }
    }
    text
}

fn table(pods: &[Of<LimitCount>]) -> Table {
    let names = Names::of(pods.iter().map(|of| &of.pod));
    let mut table = Table::new(&["POD", "COUNTED BY", "REMAINING", "QUOTA", "NEXT", "FULL", "PAUSED"]);
    for Of { pod, what } in pods {
        let when = |seconds: Option<f64>| or_dash(seconds.map(time).unwrap_or_default());
        table.row(vec![
            names.name(pod),
            who(what.counted).to_owned(),
            what.remaining.to_string(),
            what.quota.to_string(),
            when(what.next_seconds),
            when(what.full_seconds),
            when(what.paused_seconds),
        ]);
    }
    table
}

fn who(by: By) -> &'static str {
    match by {
        By::Pod => "the pod",
        By::Store => "Redis",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::pods::PodName;

    fn count(remaining: u64, counted: By) -> LimitCount {
        let (next_seconds, full_seconds) = (Some(0.25), Some(1.75));
        LimitCount { name: "a/b/c/d".to_owned(), counted, quota: 20, remaining, next_seconds, full_seconds, paused_seconds: None }
    }

    #[test]
    fn count_is_told_in_lines() {
        let paused = LimitCount { paused_seconds: Some(5.0), ..count(0, By::Store) };
        insta::assert_snapshot!(rendered("a/b/c/d \"x\"", &paused, Paint::off()), @r#"
        a/b/c/d "x"

        remaining   0 of 20, counted by Redis
        next        in 250ms
        full        in 1.8s
        paused      by the upstream, ends in 5.0s
        "#);
    }

    #[test]
    fn pods_have_a_line_each() {
        let of = |pod: &str, what| Of { pod: PodName { namespace: "shop".to_owned(), pod: pod.to_owned() }, what };
        insta::assert_snapshot!(table(&[of("web-0", count(3, By::Pod)), of("web-1", count(20, By::Pod))]), @r"
        POD     COUNTED BY   REMAINING   QUOTA   NEXT    FULL   PAUSED
        web-0   the pod      3           20      250ms   1.8s   -
        web-1   the pod      20          20      250ms   1.8s   -
        ");
    }
}
