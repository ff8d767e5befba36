//! The control group that bounds this process's memory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::Usage;

/// More than any machine has: how version 1 writes "no limit".
const NO_LIMIT: u64 = 1 << 60;

/// Bytes of a file, at most.
const MAX_FILE: usize = 64 << 10;

/// A control group, by its folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    V1,
    V2,
}

impl Group {
    /// The group that this process is in, or one around it, whichever has the lowest limit. None if there is no limit.
    pub fn own() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let bounded =
            around(&groups, &mounts).into_iter().filter_map(|group| Some((group.open().ok()?.usage().ok()?.limit, group)));
        bounded.filter(|(limit, _)| *limit < NO_LIMIT).min_by_key(|(limit, _)| *limit).map(|(_, group)| group)
    }

    /// One of version 2 with its files in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), version: Version::V2 }
    }

    /// Opens its files.
    fn open(&self) -> io::Result<Files> {
        let (usage, limits, droppable): (_, &[&str], _) = match self.version {
            Version::V1 => ("memory.usage_in_bytes", &["memory.limit_in_bytes"], "total_inactive_file "),
            // Above `memory.high` the kernel slows the process down, which is no better than the limit itself.
            Version::V2 => ("memory.current", &["memory.max", "memory.high"], "inactive_file "),
        };
        let open = |name: &str| File::open(self.folder.join(name));
        let limits = limits.iter().map(|name| open(name)).filter(|file| {
            // Not every group has each of them.
            !matches!(file, Err(error) if error.kind() == io::ErrorKind::NotFound)
        });
        Ok(Files { usage: open(usage)?, stat: open("memory.stat")?, limits: limits.collect::<io::Result<_>>()?, droppable })
    }
}

/// A group that is looked at again and again. Its files stay open, for descriptors may be short just when memory is.
#[derive(Debug)]
pub(super) struct Watched {
    group: Group,
    files: Option<Files>,
}

impl Watched {
    pub(super) fn new(group: Group) -> Self {
        Self { group, files: None }
    }

    /// What its processes use, without files that the kernel can drop at once.
    pub(super) fn usage(&mut self) -> io::Result<Usage> {
        if let Some(usage) = self.files.as_ref().and_then(|files| files.usage().ok()) {
            return Ok(usage);
        }
        self.files.insert(self.group.open()?).usage()
    }
}

/// The files of a group.
#[derive(Debug)]
struct Files {
    usage: File,
    stat: File,
    limits: Vec<File>,
    /// What a line of `stat` about files that can be dropped begins with.
    droppable: &'static str,
}

impl Files {
    fn usage(&self) -> io::Result<Usage> {
        let used = number(&self.usage)?.unwrap_or_default();
        let stat = text(&self.stat)?;
        let files = stat.lines().find_map(|line| line.strip_prefix(self.droppable)?.parse().ok()).unwrap_or(0);
        let mut limit = NO_LIMIT;
        for file in &self.limits {
            limit = limit.min(number(file)?.unwrap_or(NO_LIMIT));
        }
        Ok(Usage { used: used.saturating_sub(files), limit })
    }
}

/// The number in a file; none if it says that there is none.
fn number(file: &File) -> io::Result<Option<u64>> {
    match text(file)?.trim() {
        "max" => Ok(None),
        number => number.parse().map(Some).map_err(io::Error::other),
    }
}

/// What a file says now.
fn text(file: &File) -> io::Result<String> {
    let (mut bytes, mut read) = (vec![0; 4 << 10], 0);
    loop {
        match file.read_at(&mut bytes[read..], read as u64)? {
            0 => break,
            more => read += more,
        }
        if read == bytes.len() {
            if read >= MAX_FILE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            bytes.resize(2 * read, 0);
        }
    }
    bytes.truncate(read);
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// The groups that a process with such lines in `/proc/self/cgroup` is in, the innermost first.
fn around(groups: &str, mounts: &str) -> Vec<Group> {
    let path =
        |of: fn(&str) -> bool| groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).find(|(c, _)| of(c));
    let is_memory = |controllers: &str| controllers.split(',').any(|controller| controller == "memory");
    if let Some((_, path)) = path(is_memory)
        && let Some((root, mount)) = mounts.lines().find_map(|line| mounted(line, "cgroup", Some("memory")))
    {
        return up_from(mount, root, path, Version::V1);
    }
    let unified = path(str::is_empty).zip(mounts.lines().find_map(|line| mounted(line, "cgroup2", None)));
    unified.map_or_else(Vec::new, |((_, path), (root, mount))| up_from(mount, root, path, Version::V2))
}

/// What is mounted, and where, if a line of `mountinfo` is about such a file system.
fn mounted<'a>(line: &'a str, kind: &str, option: Option<&str>) -> Option<(&'a str, &'a str)> {
    let (left, right) = line.split_once(" - ")?;
    let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
    let (root, mount) = (left.next()?, left.next()?);
    let matches = right.next()? == kind
        && option.is_none_or(|option| right.next_back().is_some_and(|all| all.split(',').any(|one| one == option)));
    matches.then_some((root, mount))
}

/// The folder of `path` under a mount that shows `root`, and those around it.
fn up_from(mount: &str, root: &str, path: &str, version: Version) -> Vec<Group> {
    // In a container without a namespace of its own for groups the path is that of the machine, and the mount shows the container's.
    let inner = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    inner.ancestors().map(|inner| Group { folder: Path::new(mount).join(inner), version }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(groups: &str, mounts: &str) -> Vec<String> {
        around(groups, mounts).into_iter().map(|group| format!("{:?} {}", group.version, group.folder.display())).collect()
    }

    #[test]
    fn group_is_found_in_either_version_and_in_containers() {
        let unified = "30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let legacy = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(folders("0::/", unified), ["V2 /sys/fs/cgroup/"]);
        assert_eq!(folders("0::/a/b", unified), ["V2 /sys/fs/cgroup/a/b", "V2 /sys/fs/cgroup/a", "V2 /sys/fs/cgroup/"]);
        assert_eq!(folders("9:name=systemd:/\n4:memory:/docker/1\n", legacy), ["V1 /sys/fs/cgroup/memory/"]);
        let both = format!("{legacy}{unified}");
        assert_eq!(
            folders("5:cpu,memory:/docker/1/in\n0::/\n", &both),
            ["V1 /sys/fs/cgroup/memory/in", "V1 /sys/fs/cgroup/memory/"]
        );
        assert_eq!(folders("", &both), [""; 0]);
    }

    #[test]
    fn usage_leaves_out_what_the_kernel_can_drop() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group::at(folder.path());
        assert!(group.open().is_err());
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.stat", "anon 500\ninactive_file 300\nactive_file 100\n");
        write("memory.max", "2000\n");
        let usage = || group.open().unwrap().usage().unwrap();
        assert_eq!(usage(), Usage { used: 700, limit: 2000 });
        write("memory.high", "1500\n");
        assert_eq!(usage().limit, 1500);
        write("memory.max", "max\n");
        write("memory.high", "max\n");
        assert_eq!(usage().limit, NO_LIMIT);
    }

    #[test]
    fn group_is_read_on_without_a_free_descriptor_and_opened_anew_when_that_fails() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.stat", &format!("{}inactive_file 300\n", "anon 500\n".repeat(1000)));
        write("memory.max", "2000\n");
        let mut watched = Watched::new(Group::at(folder.path()));
        assert_eq!(watched.usage().unwrap(), Usage { used: 700, limit: 2000 });
        write("memory.current", "1100\n");
        fs::rename(folder.path().join("memory.current"), folder.path().join("moved")).unwrap();
        assert_eq!(watched.usage().unwrap().used, 800, "nothing was opened for it");
        write("moved", "none");
        assert!(watched.usage().is_err());
        write("memory.current", "900\n");
        assert_eq!(watched.usage().unwrap().used, 600);
    }
}
