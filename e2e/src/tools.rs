//! The programs that tests run: Kubernetes, helm, etcd, containerd. `e2e/tools/install` brings them, once per version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, bail};

/// Where this crate's sources are.
pub const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// Path of a program that `e2e/tools/install` built, such as `kubectl`.
///
/// # Errors
/// The installation failed; it has said why on stderr.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(folder()?.join(name))
}

/// The program in `$HELM`, else the helm that `e2e/tools/install` built.
///
/// # Errors
/// The installation failed.
pub fn helm() -> anyhow::Result<PathBuf> {
    match std::env::var_os("HELM").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => program("helm"),
    }
}

/// The top folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(CRATE).parent().expect("the crate is a folder of the workspace")
}

/// Path of a program of this workspace, in the target folder that the running program comes from.
///
/// # Errors
/// It was not built.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("the running program has no path")?;
    // Tests lie one folder deeper, in `deps`.
    let candidates = this.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built; run: cargo build --workspace --bins"))
}

fn folder() -> anyhow::Result<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOLDER.get_or_init(|| install().map_err(|error| format!("{error:#}"))) {
        Ok(folder) => Ok(folder),
        Err(error) => bail!("{error}"),
    }
}

fn install() -> anyhow::Result<PathBuf> {
    let script = Path::new(CRATE).join("tools/install");
    let output =
        Command::new(&script).stderr(Stdio::inherit()).output().with_context(|| format!("could not run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed; its messages are above", script.display());
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Ok(folder)
}
