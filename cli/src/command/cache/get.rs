//! `fetchr cache get`: a stored answer, head and body.

use std::io::{self, ErrorKind};

use sidecar::show::{StoredHead, Value};

use super::{
    admin::{Answer, CONNECTING, Target},
    ls::table,
    merged::stored::Found,
    place::Place,
    pods::Workload,
};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    failure::{Exit, Failure},
    output::{self, Color, Paint},
    request::RequestArgs,
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # is there one, and which fields has it?
  $ fetchr cache get http://localhost:8080/products/42
  # the German variant
  $ fetchr cache get /products/42 -H 'accept-language: de' -o json
  # its body in a file; its head goes to standard error
  $ fetchr cache get /products/42 --body > products.json
  # which pods of a workload have it?
  $ fetchr cache get http://web.shop/products/42 --workload deployment/web -n shop

It ends with 1 if nothing is stored for the request, in no pod. To look counts as no use of it.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// Write its body to standard output, as it was stored; of a proxy on this machine only
    #[arg(long, env = "FETCHR_BODY", value_parser = switch(), conflicts_with = "output")]
    body: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Asks for it.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let url = args.request.url();
    let hinted = |failure: Failure| match failure.exit() {
        Exit::Failed => {
            let place = args.place.typed();
            failure.at(url).hint(format!("what the cache would do: fetchr cache explain {url}{place}"))
        }
        _ => failure,
    };
    let shown = match (args.place.workload()?, args.place.here(), args.body) {
        (_, Some(here), true) => with_body(args, here),
        (_, None, true) => Err(Failure::usage("--body is of a proxy on this machine: bodies do not travel through the operator")
            .hint("without --body its fields are shown")),
        (Some(workload), ..) => of_pods(args, &workload, color),
        (None, ..) => head(args, color),
    };
    shown.map_err(hinted)
}

fn asked_for(args: &Args) -> Target {
    Target::new("/cache/object").about(&args.request.with("GET"))
}

fn head(args: &Args, color: Color) -> Result<Exit, Failure> {
    let target = asked_for(args);
    let answer: StoredHead = args.place.one(async |asked| asked.look_up(&target).await)?;
    output::print(args.format.output, &answer, |wide| {
        let StoredHead { stored, headers } = &answer;
        format!("{}\n{}", table(std::slice::from_ref(stored), wide), fields(headers, color.stdout()))
    })?;
    Ok(Exit::Ok)
}

/// A line for each field.
pub(super) fn fields(headers: &[Value], paint: Paint) -> String {
    let field = |Value { name, value }: &Value| format!("{}: {}\n", paint.strong(name), value.as_deref().unwrap_or_default());
    headers.iter().map(field).collect()
}

fn of_pods(args: &Args, workload: &Workload<'_>, color: Color) -> Result<Exit, Failure> {
    let target = asked_for(args);
    let mut answers = Vec::new();
    let take = |pod, answer| answers.push((pod, answer));
    let unanswered = args.place.each(workload, &async |asked| asked.find(&target).await, take, color)?;
    let found = Found::of(answers, &unanswered.failed);
    output::print(args.format.output, &found, |wide| found.render(wide, color.stdout()))?;
    Ok(match unanswered.tell() {
        Exit::Ok if !found.is_somewhere() => Exit::Failed,
        exit => exit,
    })
}

fn with_body(args: &Args, here: &StateArgs) -> Result<Exit, Failure> {
    let target = asked_for(args).with("body", Some(true));
    let mut answer = Answer::to(here, "GET", &target, "", CONNECTING)?;
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
