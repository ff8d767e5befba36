//! `fetchr cache import`: a file of answers, which a proxy takes if it is whole.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use sidecar::Imported;

use super::{
    admin::{Target, send},
    progress,
    remote::{Bucket, Remote},
    whole,
};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    failure::{Exit, Failure},
    output::{self, Color, size},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # what another proxy has exported
  $ fetchr cache import answers.fxc
  # what would become of it?
  $ fetchr cache import answers.fxc --dry-run
  # from a bucket; the credentials are those of the environment
  $ fetchr cache import --from s3://backups/web.fxc --s3-endpoint http://minio:9000

Nothing of a file that is damaged is taken. Of one that is whole, nothing that was purged, is too old, or whose rule is not in force; and
nothing that is stored leaves for it. Import files of your own alone: they answer for the origin.";

/// How long it may take after all was sent.
const PATIENCE: Duration = Duration::from_secs(600);

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file, such as answers.fxc
    #[arg(required_unless_present = "from")]
    path: Option<PathBuf>,
    /// An object instead: s3://bucket/key or file:///folder/name
    #[arg(long, env = "FETCHR_FROM", value_name = "URL", conflicts_with = "path")]
    from: Option<String>,
    /// Only tell what would become of it
    #[arg(long, env = "FETCHR_DRY_RUN", value_parser = switch())]
    dry_run: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    bucket: Bucket,
}

/// Checks the file, and sends it.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let (mut file, place) = open(args)?;
    let length = check(&mut file).map_err(|failure| failure.at(&place))?;
    let target = Target::new("/cache/import").with("dryRun", args.dry_run.then_some(true));
    let bar = progress::bytes(Some(length));
    let imported: Imported = send(&args.state, &target, &mut bar.wrap_read(file), length, PATIENCE)?;
    bar.finish_and_clear();
    output::print(args.format.output, &imported, |_| text(&imported, color))?;
    Ok(Exit::Ok)
}

fn open(args: &Args) -> Result<(File, String), Failure> {
    match (&args.from, &args.path) {
        (Some(from), _) => {
            let remote = Remote::parse(from, &args.bucket)?;
            Ok((remote.get()?, remote.to_string()))
        }
        (None, Some(path)) => {
            let place = path.display().to_string();
            Ok((File::open(path).map_err(|e| Failure::new(format!("it can't be read: {e}")).at(&place))?, place))
        }
        (None, None) => Err(Failure::usage("name a file, or an object with --from")),
    }
}

/// Reads a file to its end and back again. Its length if it is whole.
fn check(file: &mut File) -> Result<u64, Failure> {
    let (_, length) = whole::read(&mut *file, Failure::new, |_| Ok(()))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| Failure::new(format!("it can't be read: {e}")))?;
    Ok(length)
}

fn text(imported: &Imported, color: Color) -> String {
    let Imported { dry_run, answers, imported, to_validate, body_bytes, skipped } = imported;
    let done = if *dry_run { "would import" } else { "imported" };
    let mut text = format!("{done} {imported} of {answers} answers, {}\n", size(*body_bytes));
    if *to_validate > 0 {
        let why = "the origin is asked before they are used, for it can't be known whether they were purged";
        text.push_str(&format!("to validate   {to_validate}: {why}\n"));
    }
    if !skipped.is_empty() {
        let reasons: Vec<String> = skipped.iter().map(|(why, count)| format!("{why:?} {count}")).collect();
        text.push_str(&format!("skipped       {}\n", color.stdout().doubtful(reasons.join(", "))));
    }
    text
}
