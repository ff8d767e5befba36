//! The folder of the cluster on this machine, and what is remembered in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::wait::eventually;

/// Paths of the cluster's files: `$FETCHR_CLUSTER_DIR`, else `$XDG_STATE_HOME/fetchr/cluster`, else the same under `~/.local/state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    root: PathBuf,
}

/// The running node: the process that holds its namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeProcess {
    pid: i32,
    /// Clock ticks from boot to the process's start: tells it from a later process with the same id.
    started: u64,
}

impl State {
    /// Finds the folder, which may not exist yet.
    ///
    /// # Errors
    /// There is no home folder, or the folder is in a place that the node hides.
    pub fn of_this_machine() -> anyhow::Result<Self> {
        let named = std::env::var_os("FETCHR_CLUSTER_DIR").map(PathBuf::from);
        let state = || std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let root = named.or_else(|| state().or_else(home).map(|base| base.join("fetchr/cluster")));
        Self::at(&root.context("neither FETCHR_CLUSTER_DIR nor XDG_STATE_HOME nor HOME is set")?)
    }

    /// The folder at `root`.
    ///
    /// # Errors
    /// It is relative, or in a place that the node hides from its programs.
    pub fn at(root: &Path) -> anyhow::Result<Self> {
        if !root.is_absolute() || ["/run", "/var/lib", "/var/log"].iter().any(|hidden| root.starts_with(hidden)) {
            bail!(
                "{} can't hold the cluster: set FETCHR_CLUSTER_DIR to an absolute path outside of /run and /var",
                root.display()
            );
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The kubeconfig with all rights, for use from this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The folder of the logs, a file for each program.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of the program `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(super) fn dial_socket(&self) -> PathBuf {
        self.root.join("dial.sock")
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    pub(super) fn pause_archive(&self) -> PathBuf {
        self.root.join("pause.tar")
    }

    pub(super) fn tool_caches(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The control group of the pods, under each hierarchy's root.
    pub(super) fn cgroup(&self) -> String {
        let id: String =
            Sha256::digest(self.root.as_os_str().as_encoded_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("/fetchr-{id}")
    }

    /// # Errors
    /// The folder's file system can't hold the layers of containers.
    pub(super) fn check_file_system(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.root).with_context(|| format!("could not create {}", self.root.display()))?;
        let path = std::ffi::CString::new(self.root.as_os_str().as_encoded_bytes())?;
        // SAFETY: the path ends with a zero byte, and the kernel fills the all-zero statistics, which live through the call.
        let (result, kind) = unsafe {
            let mut statistics: libc::statfs = std::mem::zeroed();
            (libc::statfs(path.as_ptr(), &raw mut statistics), statistics.f_type)
        };
        if result == 0 && kind == libc::OVERLAYFS_SUPER_MAGIC {
            bail!(
                "{} is on an overlay file system, as in a container, where no further layers can be made; \
                 set FETCHR_CLUSTER_DIR to a folder on a disk or a volume",
                self.root.display()
            );
        }
        Ok(())
    }

    /// Only one process starts, stops or changes the cluster at a time.
    pub(super) fn lock(&self, progress: &dyn Fn(&str)) -> anyhow::Result<File> {
        let file = self.beside("lock")?;
        if file.try_lock().is_err() {
            progress("waiting for another process that starts or stops the cluster");
            file.lock()?;
        }
        Ok(file)
    }

    /// Only one process installs or removes fetchr at a time.
    ///
    /// # Errors
    /// The lock file can't be opened.
    pub fn install_lock(&self) -> anyhow::Result<File> {
        let file = self.beside("install")?;
        file.lock()?;
        Ok(file)
    }

    /// Holding this keeps a cluster up that is up only while it is used.
    ///
    /// # Errors
    /// The lock file can't be opened.
    pub fn use_lock(&self) -> anyhow::Result<File> {
        let file = self.beside("users")?;
        file.lock_shared()?;
        Ok(file)
    }

    /// Whether somebody holds [`State::use_lock`].
    pub(super) fn is_used(&self) -> anyhow::Result<bool> {
        Ok(self.beside("users")?.try_lock().is_err())
    }

    pub(super) fn keep(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.root.join("keep"), "")?)
    }

    pub(super) fn is_kept(&self) -> bool {
        self.root.join("keep").exists()
    }

    pub(super) fn remember(&self, pid: u32) -> anyhow::Result<()> {
        let pid = i32::try_from(pid)?;
        let started = start_time(pid).context("the node ended at once")?;
        Ok(fs::write(self.root.join("node.json"), serde_json::to_vec(&NodeProcess { pid, started })?)?)
    }

    /// The node, if it runs.
    ///
    /// # Errors
    /// The record of it can't be read.
    pub fn node(&self) -> anyhow::Result<Option<NodeProcess>> {
        let path = self.root.join("node.json");
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        let node: NodeProcess = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        Ok((start_time(node.pid) == Some(node.started)).then_some(node))
    }

    pub(super) fn image_on_node(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.image_record(name)).ok()
    }

    pub(super) fn set_image_on_node(&self, name: &str, fingerprint: &str) -> anyhow::Result<()> {
        fs::create_dir_all(self.root.join("images"))?;
        Ok(fs::write(self.image_record(name), fingerprint)?)
    }

    /// Removes the files and control groups of a cluster that is not up. Its last processes may be about to end.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        eventually("the cluster's files can be removed", Duration::from_secs(15), async || {
            self.remove_cgroups()?;
            match fs::remove_dir_all(&self.root) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("could not remove {}", self.root.display()))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    fn remove_cgroups(&self) -> anyhow::Result<()> {
        for hierarchy in cgroup_hierarchies()? {
            let group = hierarchy.join(self.cgroup().trim_start_matches('/'));
            if group.exists() {
                remove_cgroup(&group)?;
            }
        }
        Ok(())
    }

    fn image_record(&self, name: &str) -> PathBuf {
        self.root.join("images").join(name.replace(['/', ':'], "_"))
    }

    /// A file beside the folder, so that it outlives it.
    fn beside(&self, what: &str) -> anyhow::Result<File> {
        let path = PathBuf::from(format!("{}.{what}", self.root.display()));
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).with_context(|| format!("could not create {}", parent.display()))?;
        File::create(&path).with_context(|| format!("could not open {}", path.display()))
    }
}

impl NodeProcess {
    /// Process id on this machine.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Process id, on this machine, of the node's first process inside the namespaces.
    ///
    /// # Errors
    /// The node has just ended.
    pub fn inner_pid(&self) -> anyhow::Result<i32> {
        let pid = self.pid;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("the node has ended")?;
        children.split_whitespace().next().context("the node has ended")?.parse().context("/proc is damaged")
    }

    pub(super) fn kill(&self) -> anyhow::Result<()> {
        // SAFETY: kill(2) takes no pointers; the start time has just proved that the id is the node's.
        match unsafe { libc::kill(self.inner_pid()?, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("could not end the node"),
        }
    }
}

/// Folders of the control-group hierarchies: one for each controller in version 1, one in all in version 2.
pub(super) fn cgroup_hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("could not read /proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let groups = fields.filter(|fields| matches!(fields[..], [_, _, "cgroup" | "cgroup2", ..]));
    Ok(groups.map(|fields| PathBuf::from(fields[1])).collect())
}

/// Control groups are removed from the innermost out, by rmdir alone: their files belong to the kernel.
fn remove_cgroup(group: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("could not remove {}", group.display()))
}

/// Clock ticks from boot to the start of a process that has not ended.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may hold spaces and ends with the last parenthesis; the start is field 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_an_ended_process_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(folder.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        state.remember(child.id()).unwrap();
        assert!(state.node().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(state.node().unwrap().is_none());
    }

    #[test]
    fn record_of_a_reused_process_id_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(folder.path()).unwrap();
        let record = NodeProcess { pid: i32::try_from(std::process::id()).unwrap(), started: 1 };
        fs::write(folder.path().join("node.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(state.node().unwrap().is_none());
    }

    #[test]
    fn folder_that_the_node_would_hide_is_refused() {
        let error = State::at(Path::new("/var/lib/fetchr")).unwrap_err().to_string();
        assert!(error.contains("FETCHR_CLUSTER_DIR"), "{error}");
    }
}
