//! `fetchr validate`: every problem of documents, in the words of the API server and the webhook, without either.

use crds::document::{DocumentError, Documents};
use serde::Serialize;

use crate::{
    args::{FileArgs, FormatArgs, switch},
    documents::{self, Warning, count},
    failure::{Exit, Failure},
    output::{self, Color, Paint},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # a folder
  $ fetchr validate -f examples/local/
  # what helm would install
  $ helm template my-chart | fetchr validate -f -
  # in CI: targets that are not there and proxies for the same pods are errors, too
  $ fetchr validate --strict -o json -f deploy/

A line is FILE:LINE:COLUMN: FIELD: MESSAGE. The exit code is 1 if there is an error.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
    /// Take warnings for errors
    #[arg(long, env = "FETCHR_STRICT", value_parser = switch())]
    strict: bool,
    /// The operator's namespace; policies in it are the platform's
    #[arg(long, env = "FETCHR_OPERATOR_NAMESPACE", value_name = "NAME", default_value = "fetchr-system")]
    operator_namespace: String,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Valid documents of ours.
    documents: usize,
    /// Documents of other kinds.
    skipped: usize,
    errors: Vec<DocumentError>,
    warnings: Vec<Warning>,
}

/// Reads, compares, prints.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    if args.files.files.is_empty() {
        return Err(documents::none_given());
    }
    let report = match documents::read(&args.files) {
        Ok(documents) if documents.proxies.is_empty() && documents.policies.is_empty() => {
            return Err(documents::none_found(&args.files));
        }
        Ok(documents) => Report::of_valid(&documents, &args.operator_namespace),
        Err(errors) => Report { documents: 0, skipped: 0, errors, warnings: Vec::new() },
    };
    output::print(args.format.output, &report, |_| report.render(args.strict, color.stdout()))?;
    let failed = !report.errors.is_empty() || args.strict && !report.warnings.is_empty();
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

impl Report {
    fn of_valid(documents: &Documents, operator_namespace: &str) -> Self {
        Self {
            documents: documents.proxies.len() + documents.policies.len(),
            skipped: documents.skipped.len(),
            errors: Vec::new(),
            warnings: documents::compare(documents, operator_namespace),
        }
    }

    fn render(&self, strict: bool, paint: Paint) -> String {
        let severity = if strict { "" } else { "warning" };
        let mut text = String::new();
        text.extend(self.errors.iter().map(|error| documents::render(error, "", paint)));
        text.extend(self.warnings.iter().map(|warning| documents::render(&warning.at, severity, paint)));
        let errors = self.errors.len() + if strict { self.warnings.len() } else { 0 };
        let warnings = if strict { 0 } else { self.warnings.len() };
        let summary = match (errors, warnings) {
            (0, 0) => paint.good(format!("{} valid", count(self.documents, "document"))),
            (0, warnings) => {
                paint.doubtful(format!("{} valid, {}", count(self.documents, "document"), count(warnings, "warning")))
            }
            (errors, _) => paint.bad(count(errors, "error")),
        };
        text.push_str(&summary);
        if self.skipped > 0 {
            text.push_str(&format!(" ({} of other kinds skipped)", self.skipped));
        }
        text.push('\n');
        text
    }
}
