//! `fetchr cache purge`: takes answers out before their time, and says who has done so.

use std::time::Duration;

use serde_json::{Value, json};

use super::admin::{Target, ask};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    failure::{Exit, Failure},
    output::{self, Color},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # one URL with all its variants
  $ fetchr cache purge --url http://localhost/products/42?page=1
  # answers that the origin gave a tag, as stale ones
  $ fetchr cache purge --tag news --soft
  # all that a policy had stored
  $ fetchr cache purge --policy shop/catalogue -o json

It ends with 0 when no later request gets what went, also not from a fetch that was under way.";

/// More than the longest lease that a purge waits for.
const PATIENCE: Duration = Duration::from_secs(3700);

/// The flags.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(super) struct Args {
    /// One URL with all its variants
    #[arg(long, env = "FETCHR_URL", value_name = "URL", group = "what")]
    url: Option<String>,
    /// All URLs that begin so
    #[arg(long, env = "FETCHR_PREFIX", value_name = "URL", group = "what")]
    prefix: Option<String>,
    /// Answers that the origin gave this tag
    #[arg(long, env = "FETCHR_TAG", value_name = "TAG", group = "what")]
    tag: Option<String>,
    /// Answers that this policy had stored
    #[arg(long, env = "FETCHR_POLICY", value_name = "NAMESPACE/NAME", group = "what")]
    policy: Option<String>,
    /// Everything
    #[arg(long, env = "FETCHR_ALL", value_parser = switch(), group = "what")]
    all: bool,
    /// They are stale instead of gone: the origin is asked whether they are right still
    #[arg(long, env = "FETCHR_SOFT", value_parser = switch())]
    soft: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Asks for the purge.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { url, prefix, tag, policy, all, soft, .. } = args;
    let request = json!({"url": url, "prefix": prefix, "tag": tag, "policy": policy, "all": all, "soft": soft});
    let answer = ask(&args.state, "POST", &Target::new("/cache/purge"), &request.to_string(), PATIENCE)?;
    let answer: Value = serde_json::from_str(&answer).map_err(|e| Failure::new(format!("the proxy's answer is none: {e}")))?;
    let complete = answer["complete"].as_bool() == Some(true);
    output::print(args.format.output, &answer, |_| {
        let paint = color.stdout();
        let names = |field: &str| answer[field].as_array().map(Vec::len).unwrap_or_default();
        let state = if complete { paint.good("purged") } else { paint.bad("not complete") };
        let took = answer["tookMicros"].as_u64().unwrap_or_default();
        let (acknowledged, cut_off, pending) = (names("acknowledged"), names("leaseRanOut"), names("pending"));
        format!("{state}: {acknowledged} acknowledged, {cut_off} cut off, {pending} pending, {took} us\n")
    })?;
    Ok(if complete { Exit::Ok } else { Exit::Failed })
}
