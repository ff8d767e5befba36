//! A folder of files.
//!
//! What is put is written to a file in the folder `.parts`, forced to the disk, and renamed. So it is there whole or not at all, whatever
//! ends this process. Keys can't lead out of the folder, also not by a link in it.
//!
//! A folder may be a share, and hang. So a thread of its own waits for it, one operation after the other, and each has a time limit: what
//! hangs costs a thread, and nobody else waits.

mod waiter;

use std::{
    fs, io,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::time::timeout;

use self::waiter::{Kept, Waiter};
use crate::{Body, Condition, Content, Entry, Error, Got, Key, Kind, Store};

/// Where what is being put lies. No key begins so.
const PARTS: &str = ".parts";
/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;
/// After which what is being put is taken for something that was given up.
const GIVEN_UP: Duration = Duration::from_secs(24 * 3600);
/// How long one operation may take, such as writing a piece, or forcing all of them to the disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is waited for that what was given up is gone, before it is said why.
const CLEANING: Duration = Duration::from_secs(1);

/// A folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    patience: Duration,
    /// Once anything was asked. Clones share it.
    waiter: Arc<Mutex<Option<Waiter>>>,
}

impl Folder {
    /// A folder, which is made when something is put and it is missing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), patience: PATIENCE, waiter: Arc::default() }
    }

    /// With another time limit on each operation than a minute.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where a key is. An error if it can't be in the folder.
    fn path(&self, key: &Key) -> Result<PathBuf, Error> {
        if key.as_str().split('/').next() == Some(PARTS) {
            return Err(Error::new(Kind::Wrong, self.place(key.as_str()), "keys in .parts are the store's own"));
        }
        Ok(self.path.join(key.as_str()))
    }

    fn failed(&self, key: &str, what: &str, error: io::Error) -> Error {
        use io::ErrorKind as Why;
        let (kind, hint) = match error.kind() {
            Why::NotFound => (Kind::NotFound, None),
            Why::AlreadyExists => (Kind::Exists, None),
            Why::PermissionDenied => (Kind::Denied, Some("the folder has to belong to the user that runs this")),
            Why::ReadOnlyFilesystem => (Kind::Denied, Some("mount a volume there that can be written")),
            Why::StorageFull | Why::QuotaExceeded => (Kind::Unavailable, Some("make room on that disk")),
            Why::TimedOut => (Kind::Unavailable, Some("the disk does not answer")),
            Why::IsADirectory | Why::NotADirectory | Why::InvalidFilename => (Kind::Wrong, None),
            _ => (Kind::Unavailable, None),
        };
        let failed = Error::new(kind, self.place(key), what).because(error);
        match hint {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }

    /// Runs something that waits for the disk.
    async fn run<T: Send + 'static>(
        &self,
        key: &Key,
        what: &'static str,
        work: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (folder, path) = (self.path.clone(), self.path(key)?);
        self.wait(move || work(&folder, &path)).await.map_err(|error| self.failed(key.as_str(), what, error))
    }

    /// The same with what may be touched by the thread alone.
    async fn open<T: Send + 'static>(
        &self,
        key: &Key,
        what: &'static str,
        work: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<Kept<T>, Error> {
        let waiter = self.waiter().map_err(|error| self.failed(key.as_str(), what, error))?;
        self.run(key, what, move |folder, path| work(folder, path).map(|opened| waiter.keep(opened))).await
    }

    async fn wait<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        self.waiter()?.run(self.patience, work).await
    }

    fn waiter(&self) -> io::Result<Waiter> {
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        match &*waiter {
            Some(waiter) => Ok(waiter.clone()),
            None => Ok(waiter.insert(Waiter::start()?).clone()),
        }
    }

    async fn put_part(&self, key: &Key, mut body: Body, condition: Condition) -> Result<u64, Error> {
        let what = "it can't be put";
        let mut part = self.open(key, what, Part::new).await?;
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                Error::new(Kind::Source, self.place(key.as_str()), "nothing was put: what was to be put broke off").because(error)
            })?;
            bytes += piece.len() as u64;
            let written = move |_: &Path, _: &Path| part.with(|part| part.file.write_all(&piece)).map(|()| part);
            part = self.run(key, what, written).await?;
        }
        self.run(key, what, move |_, path| part.take()?.finish(path, condition)).await?;
        Ok(bytes)
    }
}

#[async_trait]
impl Store for Folder {
    async fn put(&self, key: &Key, body: Body, condition: Condition) -> Result<u64, Error> {
        let put = self.put_part(key, body, condition).await;
        if put.is_err() {
            // Whoever is told may end at once.
            let _ = timeout(CLEANING, self.settled()).await;
        }
        put
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Got, Error> {
        let range = range.unwrap_or(0..u64::MAX);
        let (from, length) = (range.start, range.end.saturating_sub(range.start));
        let what = "it can't be read";
        let open = |folder: &Path, path: &Path| fs::File::open(inside(folder, path)?);
        let mut file = self.open(key, what, open).await?;
        let name = key.as_str().to_owned();
        let known = move |_: &Path, _: &Path| {
            let entry = file.with(|file| {
                let known = file.metadata()?;
                if known.is_dir() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                file.seek(SeekFrom::Start(from))?;
                Ok(entry(name, &known))
            })?;
            Ok((file, entry))
        };
        let (file, entry) = self.run(key, what, known).await?;
        Ok(Got { entry, content: self.content(key.clone(), file, length) })
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let name = key.as_str().to_owned();
        let known = self.run(key, "it can't be looked at", |folder, path| fs::metadata(inside(folder, path)?)).await;
        match known {
            Ok(known) if known.is_file() => Ok(Some(entry(name, &known))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, Error>> {
        let (this, prefix) = (self.clone(), prefix.to_owned());
        // The folders to look into, the next one last.
        let start = (this, prefix, vec![String::new()]);
        stream::unfold(start, |(this, prefix, mut left)| async move {
            let next = left.pop()?;
            if !next.is_empty() && !next.ends_with('/') {
                return Some((this.listed(next).await, (this, prefix, left)));
            }
            match this.children(&next, &prefix).await {
                Ok(children) => left.extend(children.into_iter().rev()),
                Err(error) => return Some((vec![Err(error)], (this, prefix, Vec::new()))),
            }
            Some((Vec::new(), (this, prefix, left)))
        })
        .map(stream::iter)
        .flatten()
        .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        match self.run(key, "it can't be deleted", |folder, path| fs::remove_file(inside(folder, path)?)).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            done => done,
        }
    }

    async fn settled(&self) {
        if self.waiter.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return; // nothing was ever asked
        }
        // Behind what is being done now, and then behind what that has left.
        for _ in 0..2 {
            let _ = self.wait(|| Ok(())).await;
        }
    }

    fn place(&self, key: &str) -> String {
        format!("file://{}", self.path.join(key).display())
    }
}

impl Folder {
    fn content(&self, key: Key, file: Kept<fs::File>, length: u64) -> Content {
        let this = self.clone();
        stream::unfold(Some((this, key, file, length)), |state| async {
            let (this, key, mut file, left) = state?;
            let read = this.run(&key, "it can't be read", move |_, _| {
                let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
                let read = file.with(|file| file.read(&mut piece))?;
                piece.truncate(read);
                Ok((piece, file))
            });
            match read.await {
                Ok((piece, _)) if piece.is_empty() => None,
                Ok((piece, file)) => {
                    let left = left.saturating_sub(piece.len() as u64);
                    Some((Ok(Bytes::from(piece)), Some((this, key, file, left))))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// What stands in a folder, as keys in their order; folders end in a slash.
    async fn children(&self, folder: &str, prefix: &str) -> Result<Vec<String>, Error> {
        let (path, within, wanted) = (self.path.join(folder), folder.to_owned(), prefix.to_owned());
        let read = self.wait(move || {
            let mut names = Vec::new();
            for child in fs::read_dir(path)? {
                let child = child?;
                let Ok(name) = child.file_name().into_string() else { continue };
                let kind = child.file_type()?;
                let slash = if kind.is_dir() { "/" } else { "" };
                let name = format!("{within}{name}{slash}");
                let begins = name.starts_with(&wanted) || kind.is_dir() && wanted.starts_with(&name);
                if begins && !kind.is_symlink() && !name.starts_with(&format!("{PARTS}/")) {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        });
        match read.await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|error| self.failed(folder, "it can't be listed", error)),
        }
    }

    /// A file of a listing, if it is still there.
    async fn listed(&self, name: String) -> Vec<Result<Entry, Error>> {
        match Key::new(name) {
            Ok(key) => self.head(&key).await.transpose().into_iter().collect(),
            // Somebody else put it there.
            Err(_) => Vec::new(),
        }
    }
}

/// A file that is being put. It is gone when this is dropped before it is finished.
struct Part {
    file: fs::File,
    path: Option<PathBuf>,
}

impl Part {
    fn new(folder: &Path, path: &Path) -> io::Result<Self> {
        let parts = folder.join(PARTS);
        fs::create_dir_all(&parts)?;
        if !parts.symlink_metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "its folder .parts is a link"));
        }
        sweep(&parts);
        if let Some(parent) = path.parent() {
            within(folder, parent)?;
            fs::create_dir_all(parent)?;
        }
        inside(folder, path)?;
        let part = parts.join(format!("{:x}-{:016x}", std::process::id(), fastrand::u64(..)));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        Ok(Self { file, path: Some(part) })
    }

    fn finish(mut self, to: &Path, condition: Condition) -> io::Result<()> {
        self.file.sync_all()?;
        let Some(part) = &self.path else { return Ok(()) };
        match condition {
            Condition::Always => {
                fs::rename(part, to)?;
                self.path = None;
            }
            // Unlike a rename this fails if there is one.
            Condition::IfAbsent => fs::hard_link(part, to)?,
        }
        // The new name has to outlive a crash, too.
        to.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Else it is swept later.
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes away what processes that have ended were putting.
fn sweep(parts: &Path) {
    let Ok(all) = fs::read_dir(parts) else { return };
    for part in all.flatten().filter(|part| is_part(&part.file_name().to_string_lossy())) {
        let age = part.metadata().and_then(|known| known.modified()).ok().and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > GIVEN_UP) {
            let _ = fs::remove_file(part.path());
        }
    }
}

/// Whether a name is one that [`Part::new`] gives: other files are not ours.
fn is_part(name: &str) -> bool {
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split_once('-').is_some_and(|(process, random)| is_hex(process) && is_hex(random) && random.len() == 16)
}

/// The path, if no link on its way leads out of the folder.
fn inside<'a>(folder: &Path, path: &'a Path) -> io::Result<&'a Path> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|known| known.is_symlink());
    within(folder, if is_link { path } else { path.parent().unwrap_or(path) })?;
    Ok(path)
}

/// As far as it is there.
fn within(folder: &Path, path: &Path) -> io::Result<()> {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(path);
    if !there.starts_with(folder) || there.canonicalize()?.starts_with(folder.canonicalize()?) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "a link leads out of the folder"))
}

fn entry(key: String, known: &fs::Metadata) -> Entry {
    Entry { key, bytes: known.len(), modified: known.modified().unwrap_or(SystemTime::UNIX_EPOCH) }
}
