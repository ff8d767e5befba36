//! `fetchr check`: what is wrong with a cluster or an installation, and what to do. Facts are gathered first; judging them is pure.

mod facts;
mod judge;

use serde::Serialize;

use crate::{
    args::{ClusterArgs, FormatArgs, switch},
    cluster::Cluster,
    failure::{Exit, Failure},
    output::{self, Color, Paint},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # can fetchr be installed here, by me?
  $ fetchr check --pre
  # is the installation sound, and do pods of this namespace get their sidecars?
  $ fetchr check -n shop
  # for a script
  $ fetchr check -o json

The exit code is 1 if a line starts with \u{2717}, and 4 if the cluster gives no answer.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only look whether fetchr can be installed
    #[arg(long, env = "FETCHR_PRE", value_parser = switch())]
    pre: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) enum Outcome {
    /// As it should be.
    Ok,
    /// It works, but needs a look; or it could not be looked at.
    Warning,
    /// It does not work.
    Failed,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: &'static str,
    /// How it stands.
    pub(crate) outcome: Outcome,
    /// What was seen.
    pub(crate) message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, message: message.into(), hint: None }
    }

    fn warning(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warning, message: message.into(), hint: Some(hint.into()) }
    }

    fn failed(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Failed, message: message.into(), hint: Some(hint.into()) }
    }
}

/// Gathers, judges, prints.
pub(crate) async fn execute(args: Args, color: Color) -> Result<Exit, Failure> {
    let cluster = Cluster::new(&args.cluster).await?;
    let findings = if args.pre {
        judge::pre(&facts::before_install(&cluster).await?)
    } else {
        judge::installed(&Box::pin(facts::installed(&cluster)).await?)
    };
    output::print(args.format.output, &findings, |_| render(&findings, color.stdout()))?;
    let failed = findings.iter().any(|finding| finding.outcome == Outcome::Failed);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

fn render(findings: &[Finding], paint: Paint) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, outcome, message, hint } in findings {
        let sign = match outcome {
            Outcome::Ok => paint.good('\u{2713}'),
            Outcome::Warning => paint.doubtful('!'),
            Outcome::Failed => paint.bad('\u{2717}'),
        };
        text.push_str(&format!("{sign} {check:width$}  {message}\n"));
        for line in hint.iter().flat_map(|hint| hint.lines()) {
            text.push_str(&format!("  {:width$}  {}\n", "", paint.faint(format!("\u{2192} {line}"))));
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.outcome == wanted).count();
    text + &format!("\n{} good, {} to look at, {} wrong\n", count(Outcome::Ok), count(Outcome::Warning), count(Outcome::Failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_says_what_to_do() {
        let findings =
            [Finding::ok("API server", "Kubernetes 1.33"), Finding::failed("webhook", "no caBundle", "restart the operator")];
        assert_eq!(
            render(&findings, Paint::off()),
            "\u{2713} API server  Kubernetes 1.33\n\u{2717} webhook     no caBundle\n              \u{2192} restart the operator\n\n\
             1 good, 0 to look at, 1 wrong\n"
        );
    }
}
