//! `fetchr cache get`: a stored answer, head and body.

use std::io::{self, ErrorKind};

use sidecar::show::{StoredHead, Value};

use super::{
    admin::{Answer, CONNECTING, look_up},
    ls::table,
    question::Question,
};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    failure::{Exit, Failure},
    output::{self, Color},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # is there one, and which fields has it?
  $ fetchr cache get http://localhost:8080/products/42
  # the German variant
  $ fetchr cache get /products/42 -H 'accept-language: de' -o json
  # its body in a file; its head goes to standard error
  $ fetchr cache get /products/42 --body > products.json

It ends with 1 if nothing is stored for the request. To look counts as no use of it.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    question: Question,
    /// Write its body to standard output, as it was stored
    #[arg(long, env = "FETCHR_BODY", value_parser = switch(), conflicts_with = "output")]
    body: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Asks for it.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let url = args.question.url();
    let hinted = |failure: Failure| match failure.exit() {
        Exit::Failed => failure.at(url).hint(format!("what the cache would do: fetchr cache explain {url}")),
        _ => failure,
    };
    let shown = if args.body { with_body(args) } else { head(args, color) };
    shown.map_err(hinted)
}

fn head(args: &Args, color: Color) -> Result<Exit, Failure> {
    let answer: StoredHead = look_up(&args.state, &args.question.ask("/cache/object"))?;
    output::print(args.format.output, &answer, |wide| {
        let StoredHead { stored, headers } = &answer;
        let field = |Value { name, value }: &Value| {
            format!("{}: {}\n", color.stdout().strong(name), value.as_deref().unwrap_or_default())
        };
        let fields: String = headers.iter().map(field).collect();
        format!("{}\n{fields}", table(std::slice::from_ref(stored), wide))
    })?;
    Ok(Exit::Ok)
}

fn with_body(args: &Args) -> Result<Exit, Failure> {
    let target = args.question.ask("/cache/object").with("body", Some(true));
    let mut answer = Answer::to(&args.state, "GET", &target, "", CONNECTING)?;
    let (head, length) = answer.message()?;
    eprint!("{head}");
    match io::copy(&mut answer, &mut io::stdout().lock()) {
        Ok(copied) if copied == length => Ok(Exit::Ok),
        Ok(copied) => Err(Failure::unreachable(format!("the body broke off after {copied} of {length} bytes"))),
        // Who reads it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Ok),
        Err(error) => Err(Failure::unreachable(format!("the body broke off: {error}"))),
    }
}
