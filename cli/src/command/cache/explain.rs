//! `fetchr cache explain`: what the cache would do with a request, and why; by the code that decides it in the proxy.

use sidecar::show::{CacheExplanation, Freshness, Outcome, Purged, Value};

use super::{
    admin::Target,
    ls::{left, variant},
    merged::explain::Explained,
    place::Place,
};
use crate::{
    args::FormatArgs,
    failure::{Exit, Failure},
    output::{self, Color, Paint, age, size},
    request::RequestArgs,
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # is it a hit, and if not, why?
  $ fetchr cache explain http://localhost:8080/products/42?page=1
  # for a client that wants German, and nothing older than a minute
  $ fetchr cache explain /products -H 'accept-language: de' -H 'cache-control: max-age=60'
  # what does a POST do?
  $ fetchr cache explain /cart --method POST -o json
  # in which pods of a workload is it a hit?
  $ fetchr cache explain http://web.shop/products/42 --workload deployment/web -n shop

Nothing is asked of the origin, and nothing counts as a use of what is stored.
The exit code is 0 whatever the cache would do.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// The method
    #[arg(short = 'X', long, env = "FETCHR_METHOD", value_name = "METHOD", default_value = "GET")]
    method: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Asks for the explanation.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let target = Target::new("/cache/explain").about(&args.request.with(&args.method));
    let Args { place, format, .. } = args;
    let Some(workload) = place.workload()? else {
        let explanation: CacheExplanation = place.one(async |asked| asked.look_up(&target).await)?;
        output::print(format.output, &explanation, |_| render(&explanation, color.stdout()))?;
        return Ok(Exit::Ok);
    };
    let mut pods = Vec::new();
    let take = |pod, explanation| pods.push((pod, explanation));
    let unanswered = place.each(&workload, &async |asked| asked.look_up(&target).await, take, color)?;
    let explained = Explained::of(pods, &unanswered.failed);
    output::print(format.output, &explained, |wide| explained.render(wide, color.stdout()))?;
    Ok(unanswered.tell())
}

/// A line for each thing that is known.
fn render(explanation: &CacheExplanation, paint: Paint) -> String {
    let CacheExplanation { method, url, outcome, why, rule, key, stored, freshness, purged, .. } = explanation;
    let mut lines = vec![("outcome", format!("{}: {why}", self::outcome(*outcome, paint)))];
    let mut line = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    line("tells", explanation.cache_status.clone());
    line("rule", rule.as_ref().map(|rule| format!("{} ({:?})", rule.name, rule.mode)));
    line("key", (!key.is_empty()).then(|| parts(key)));
    line("variant", (!explanation.variant.is_empty()).then(|| variant(&explanation.variant)));
    line(
        "stored",
        stored.as_ref().map(|stored| {
            format!(
                "status {}, body of {}, {} in all, {} hits",
                stored.status,
                size(stored.body_bytes),
                size(stored.bytes),
                stored.hits
            )
        }),
    );
    line("fresh", freshness.as_ref().map(sum));
    line("stale", freshness.as_ref().map(stale));
    line("purged", purged.map(|purged| self::purged(purged).to_owned()));
    let lines = lines.iter().map(|(name, value)| format!("{name:<10}{value}\n"));
    format!("{}\n\n{}", paint.strong(format!("{method} {url}")), lines.collect::<String>())
}

/// What becomes of a request, in its colour.
pub(super) fn outcome(outcome: Outcome, paint: Paint) -> String {
    match outcome {
        Outcome::Hit | Outcome::Stale => paint.good(format!("{outcome:?}")),
        Outcome::Revalidate | Outcome::Miss => paint.doubtful(format!("{outcome:?}")),
        Outcome::None | Outcome::Bypass | Outcome::GatewayTimeout => paint.strong(format!("{outcome:?}")),
    }
}

/// What purges say, in words.
pub(super) fn purged(purged: Purged) -> &'static str {
    match purged {
        Purged::No => "no, not since its fetch began",
        Purged::Soft => "softly: it is stale",
        Purged::Unknown => "nobody knows: the origin is asked first",
        Purged::Hard => "yes",
    }
}

fn parts(key: &[Value]) -> String {
    let shown = key.iter().map(|part| match &part.value {
        Some(value) => format!("{}={value}", part.name),
        None => format!("no {}", part.name),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// `600s by MaxAge - 0s old when it came - 12s here = 588s left`.
fn sum(freshness: &Freshness) -> String {
    let Freshness { lifetime, from, initial_age, resident, marks, .. } = freshness;
    let old = initial_age.saturating_add(*resident);
    let rest = i64::try_from(i128::from(*lifetime).saturating_sub(i128::from(old)).div_euclid(1000)).unwrap_or(i64::MAX);
    let marks = if marks.is_empty() { String::new() } else { format!("; the origin said {}", marks.join(", ")) };
    let (lifetime, initial, resident) = (seconds(*lifetime), seconds(*initial_age), seconds(*resident));
    format!("{lifetime} by {from} - {initial} old when it came - {resident} here = {} left{marks}", left(rest))
}

fn stale(freshness: &Freshness) -> String {
    let Freshness { while_revalidate, if_error, keep, .. } = freshness;
    let (meanwhile, failed, keep) = (seconds(*while_revalidate), seconds(*if_error), seconds(*keep));
    format!("{meanwhile} while a newer one is fetched, {failed} if the origin fails, then {keep} to be validated")
}

fn seconds(millis: u64) -> String {
    age(millis / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_is_a_line_for_each_thing() {
        let explanation: CacheExplanation = serde_json::from_value(serde_json::json!({
            "direction": "Inbound", "method": "GET", "url": "http://a/b", "outcome": "Stale", "why": "StaleWhileRevalidate",
            "cacheStatus": "fetchr; hit; ttl=-3; detail=StaleWhileRevalidate",
            "rule": {"name": "shop/web/all", "mode": "Enforce"},
            "key": [{"name": "path", "value": "/b"}, {"name": "header x-a"}],
            "variant": [{"name": "accept-language", "value": "de"}],
            "stored": {
                "url": "http://a/b", "rule": "shop/web/all", "status": 200, "state": "Stale", "ageSeconds": 63, "freshSeconds": -3,
                "bodyBytes": 2048, "bytes": 2400, "hits": 7
            },
            "freshness": {
                "lifetime": 60_000, "from": "MaxAge", "initialAge": 1500, "resident": 61_500, "whileRevalidate": 30_000, "ifError": 0,
                "keep": 600_000, "marks": ["immutable"]
            },
            "purged": "No"
        }))
        .unwrap();
        insta::assert_snapshot!(render(&explanation, Paint::off()), @r"
        GET http://a/b

        outcome   Stale: StaleWhileRevalidate
        tells     fetchr; hit; ttl=-3; detail=StaleWhileRevalidate
        rule      shop/web/all (Enforce)
        key       path=/b no header x-a
        variant   accept-language=de
        stored    status 200, body of 2.0Ki, 2.3Ki in all, 7 hits
        fresh     60s by MaxAge - 1s old when it came - 61s here = -3s left; the origin said immutable
        stale     30s while a newer one is fetched, 0s if the origin fails, then 10m to be validated
        purged    no, not since its fetch began
        ");
    }
}
