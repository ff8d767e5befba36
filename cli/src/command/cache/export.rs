//! `fetchr cache export`: what is stored, as a file.

use std::{
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sidecar::file::Counts;
use tempfile::NamedTempFile;

use super::{
    admin::{Answer, CONNECTING, Target},
    filter::Filter,
    progress,
    remote::{Bucket, Remote},
    whole::{self, Came},
};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    failure::{Exit, Failure},
    output::{self, Color, size},
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # all that is stored
  $ fetchr cache export answers.fxc
  # what a policy had stored below a path, in place of an older file
  $ fetchr cache export products.fxc --policy shop/catalogue --prefix http://localhost/products/ --force
  # into a bucket; the credentials are those of the environment
  $ fetchr cache export --to s3://backups/web.fxc --s3-endpoint http://minio:9000

What a purge took, and what is of no use any more, is left out. The file is there when it is whole. Whoever can read it sees what is
stored.";

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file, such as answers.fxc
    #[arg(required_unless_present = "to")]
    out: Option<PathBuf>,
    /// An object instead: s3://bucket/key or file:///folder/name
    #[arg(long, env = "FETCHR_TO", value_name = "URL", conflicts_with = "out")]
    to: Option<String>,
    /// Take the place of one that is there
    #[arg(long, env = "FETCHR_FORCE", value_parser = switch())]
    force: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    bucket: Bucket,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Exported {
    /// Where it is.
    place: String,
    answers: u64,
    /// Bytes of the file.
    bytes: u64,
}

/// Asks for it, and keeps it once it is whole.
pub(super) fn execute(args: &Args, _: Color) -> Result<Exit, Failure> {
    let remote = args.to.as_deref().map(|to| Remote::parse(to, &args.bucket)).transpose()?;
    let exported = match (&remote, &args.out) {
        (Some(remote), _) => {
            let mut file = NamedTempFile::new().map_err(|e| Failure::new(format!("there is no place for a file: {e}")))?;
            let (counts, bytes) = fetch(args, &mut file)?;
            file.as_file_mut().seek(SeekFrom::Start(0)).map_err(|e| Failure::new(e.to_string()))?;
            remote.put(file.into_file(), args.force)?;
            Exported { place: remote.to_string(), answers: counts.answers, bytes }
        }
        (None, Some(path)) => to_file(args, path)?,
        (None, None) => return Err(Failure::usage("name a file, or an object with --to")),
    };
    let Exported { place, answers, bytes } = &exported;
    output::print(args.format.output, &exported, |_| format!("{answers} answers, {} in {place}\n", size(*bytes)))?;
    Ok(Exit::Ok)
}

fn to_file(args: &Args, path: &Path) -> Result<Exported, Failure> {
    let taken = || Failure::new("it is there already").at(path.display()).hint("--force takes its place");
    if !args.force && path.exists() {
        return Err(taken());
    }
    let wrong = |e: std::io::Error| Failure::new(format!("it can't be written: {e}")).at(path.display());
    // In its folder, for it is renamed when it is whole.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::with_prefix_in(".fetchr-export-", folder).map_err(wrong)?;
    let (counts, bytes) = fetch(args, &mut file)?;
    file.as_file().sync_all().map_err(wrong)?;
    match args.force {
        true => file.persist(path).map_err(|e| wrong(e.error))?,
        false => file.persist_noclobber(path).map_err(|e| if path.exists() { taken() } else { wrong(e.error) })?,
    };
    Ok(Exported { place: path.display().to_string(), answers: counts.answers, bytes })
}

/// Writes what the proxy sends. An error if it isn't whole.
fn fetch(args: &Args, out: &mut impl Write) -> Result<(Counts, u64), Failure> {
    let answer = Answer::to(&args.state, "GET", &args.filter.ask(Target::new("/cache/export")), "", CONNECTING)?;
    let bar = progress::bytes(None);
    let unwritten = |e: std::io::Error| Failure::new(format!("it can't be written: {e}"));
    let broken = |why: String| Failure::unreachable("what the proxy sent is not whole").hint(why);
    let whole = whole::read(answer, broken, |came| {
        if let Came::Bytes(bytes) = came {
            out.write_all(bytes).map_err(unwritten)?;
            bar.inc(bytes.len() as u64);
        }
        Ok(())
    })?;
    out.flush().map_err(unwritten)?;
    bar.finish_and_clear();
    Ok(whole)
}
