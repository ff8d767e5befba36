//! Documents are read only if they have changed, and not while somebody writes them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crds::document;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{FileError, Files, load};
use crate::config::Config;

/// Nobody has written to a file for so long: what was written is whole.
const SETTLED: Duration = Duration::from_millis(100);
/// By then a file is read although somebody goes on writing.
const LONGEST: Duration = Duration::from_secs(1);

/// What was read last.
#[derive(Default)]
pub(super) struct Seen(Option<Stamps>);

/// What came of a look.
#[expect(clippy::large_enum_variant, reason = "it lives for a moment, and there is one at a time")]
enum Look {
    /// The files are those of before.
    Same,
    /// Somebody is writing.
    Unsettled,
    /// They were read, as they were at that time.
    Read(Option<Stamps>, Result<Config, FileError>),
}

impl Seen {
    /// Reads and compiles the documents; None if they are those that were read last, or can't be read now.
    pub(super) async fn look(&mut self, files: &Files) -> Option<Result<Config, FileError>> {
        let latest = Instant::now() + LONGEST;
        loop {
            let (files, before, hurry) = (files.clone(), self.0.clone(), Instant::now() >= latest);
            // Reading and compiling take milliseconds; other tasks of the runtime need not wait for them.
            match spawn_blocking(move || look(&files, before.as_ref(), SystemTime::now(), hurry)).await {
                Ok(Look::Same) => return None,
                Ok(Look::Unsettled) => sleep(SETTLED).await,
                Ok(Look::Read(stamps, loaded)) => {
                    self.0 = stamps;
                    return Some(loaded);
                }
                Err(error) => {
                    tracing::error!(%error, "The files could not be read.");
                    return None;
                }
            }
        }
    }
}

/// Reads the documents, as they are now; in a `hurry` also while they are written.
fn look(files: &Files, before: Option<&Stamps>, now: SystemTime, hurry: bool) -> Look {
    let stamps = Stamps::of(&files.paths);
    if stamps.is_some() && stamps.as_ref() == before {
        return Look::Same;
    }
    if !hurry && stamps.as_ref().is_some_and(|stamps| !stamps.are_settled(now)) {
        return Look::Unsettled;
    }
    let loaded = load(files, &|name| std::env::var(name).ok());
    if !hurry && Stamps::of(&files.paths) != stamps {
        return Look::Unsettled;
    }
    // What is read while it is written has to be read again.
    Look::Read(stamps.filter(|_| !hurry), loaded)
}

/// What tells whether files have changed, without reading them.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Stamps(Vec<(PathBuf, Stamp)>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    /// Device and number of the file, which a replaced one has not.
    file: (u64, u64),
    size: u64,
    /// When it was last written to, or anything else of it changed; seconds and nanoseconds since the epoch. Nobody can set it.
    changed: (i64, i64),
}

impl Stamps {
    /// None if a path can't be read: which one, and why, only reading tells.
    fn of(paths: &[PathBuf]) -> Option<Self> {
        let files = document::files(paths).ok()?.into_iter();
        files.map(|file| Stamp::of(&file).map(|stamp| (file, stamp))).collect::<Option<_>>().map(Self)
    }

    /// Whether nobody has written for a while. A time in the future is another machine's, and says nothing.
    fn are_settled(&self, now: SystemTime) -> bool {
        self.0.iter().all(|(_, stamp)| now.duration_since(stamp.changed()).map_or(true, |ago| ago >= SETTLED))
    }
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let file = fs::metadata(file).ok()?;
        Some(Self { file: (file.dev(), file.ino()), size: file.size(), changed: (file.ctime(), file.ctime_nsec()) })
    }

    fn changed(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        SystemTime::UNIX_EPOCH + since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec:\n  interception:\n    mode: Explicit\n    \
                         listeners: [{name: web, port: 8080, upstream: \"http://127.0.0.1:9000\"}]\n";

    /// A folder with one document, and when that was written.
    fn folder(text: &str) -> (tempfile::TempDir, Files, SystemTime) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("proxy.yaml"), text).unwrap();
        let files = Files { paths: vec![folder.path().to_owned()], ..Files::default() };
        let written = Stamp::of(&folder.path().join("proxy.yaml")).unwrap().changed();
        (folder, files, written)
    }

    #[test]
    fn file_that_was_written_just_now_is_left_alone_for_a_moment() {
        // Half of a file may be a whole document: here the policies are missing.
        let (_folder, files, written) = folder(PROXY);
        let at = |ago: Duration, hurry| look(&files, None, written + ago, hurry);
        assert!(matches!(at(Duration::ZERO, false), Look::Unsettled));
        assert!(matches!(at(SETTLED - Duration::from_nanos(1), false), Look::Unsettled));
        assert!(matches!(at(SETTLED, false), Look::Read(Some(_), Ok(_))));
        // Somebody who writes all the time is not waited for, and what is read then is read again.
        assert!(matches!(at(Duration::ZERO, true), Look::Read(None, Ok(_))));
    }

    #[test]
    fn clock_of_another_machine_is_no_reason_to_wait() {
        let (_folder, files, written) = folder(PROXY);
        assert!(matches!(look(&files, None, written - Duration::from_secs(1), false), Look::Read(Some(_), Ok(_))));
    }

    #[test]
    fn files_that_have_not_changed_are_not_read_again_also_when_they_are_wrong() {
        for text in [PROXY, "kind: ["] {
            let (folder, files, written) = folder(text);
            let now = written + SETTLED;
            let Look::Read(Some(stamps), _) = look(&files, None, now, false) else { panic!("it is read: {text}") };
            assert!(matches!(look(&files, Some(&stamps), now, false), Look::Same));
            let other = folder.path().join("other.yaml");
            fs::write(&other, "").unwrap();
            let later = Stamp::of(&other).unwrap().changed() + SETTLED;
            assert!(matches!(look(&files, Some(&stamps), later, false), Look::Read(Some(_), _)), "another one is there");
            fs::rename(&other, folder.path().join("proxy.yaml")).unwrap();
            let later = Stamp::of(&folder.path().join("proxy.yaml")).unwrap().changed() + SETTLED;
            assert!(matches!(look(&files, Some(&stamps), later, false), Look::Read(Some(_), Err(_))), "it is another one");
        }
    }

    #[test]
    fn what_cannot_be_read_is_looked_at_each_time() {
        let files = Files { paths: vec!["/nonexistent".into()], ..Files::default() };
        assert!(matches!(look(&files, None, SystemTime::now(), false), Look::Read(None, Err(_))));
    }
}
