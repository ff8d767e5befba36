//! The images of this workspace, made of the programs beside the one that runs: debug builds for tests, release builds for the
//! demonstration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::image::Image;
use crate::process::output;
use crate::s3;
use crate::tools::{repository, sibling};

/// Image of the operator.
pub const OPERATOR: &str = "localhost/fetchr-operator:dev";
/// Image of the sidecar and of `fetchr-init`.
pub const SIDECAR: &str = "localhost/fetchr-sidecar:dev";
/// Image of the application of the tests; its program is `fetchr-origin`.
pub const ORIGIN: &str = "localhost/fetchr-origin:dev";

/// Image of Redis, made of the `redis-server` of this machine.
pub const REDIS: &str = "localhost/redis:dev";
/// Image of SeaweedFS, which speaks S3.
pub const S3: &str = "localhost/seaweedfs:dev";

const OPERATOR_USER: u32 = 65532;
const SIDECAR_USER: u32 = 2733;
const ORIGIN_USER: u32 = 1000;

/// All images that a cluster needs for fetchr and its tests.
///
/// # Errors
/// A program was not built, or a package of `e2e/tools/install` is missing.
pub fn all() -> anyhow::Result<[Image; 4]> {
    Ok([operator()?, sidecar()?, origin()?, redis()?])
}

/// The operator, made as `Dockerfile.operator` makes it.
///
/// # Errors
/// As [`all`].
pub fn operator() -> anyhow::Result<Image> {
    let root = root("operator", &["fetchr-operator"])?;
    Ok(Image::new(OPERATOR).root(&root)?.run("fetchr-operator", &["run"]).user(OPERATOR_USER))
}

/// The sidecar, made as `Dockerfile.sidecar` makes it.
///
/// # Errors
/// As [`all`].
pub fn sidecar() -> anyhow::Result<Image> {
    let root = root("sidecar", &["fetchr-proxy", "fetchr-init"])?;
    Ok(Image::new(SIDECAR).root(&root)?.run("fetchr-proxy", &["run"]).user(SIDECAR_USER))
}

/// The application of the tests.
///
/// # Errors
/// As [`all`].
pub fn origin() -> anyhow::Result<Image> {
    let program = sibling("fetchr-origin")?;
    Ok(Image::new(ORIGIN).program(&program, "/usr/local/bin/fetchr-origin")?.run("fetchr-origin", &[]).user(ORIGIN_USER))
}

/// Redis, with its command line and a shell.
///
/// # Errors
/// As [`all`].
pub fn redis() -> anyhow::Result<Image> {
    let mut image = with_shell(REDIS)?;
    for program in ["redis-server", "redis-cli"] {
        image = image.program(&Path::new("/usr/bin").join(program), &format!("/usr/local/bin/{program}"))?;
    }
    Ok(image.run("redis-server", &[]).user(ORIGIN_USER))
}

/// A server of S3. It is large, so it is not among [`all`].
///
/// # Errors
/// It can't be installed.
pub fn s3() -> anyhow::Result<Image> {
    let program = fs::canonicalize(s3::install()?)?;
    Ok(with_shell(S3)?.program(&program, "/usr/local/bin/weed")?.run("weed", &[]).user(ORIGIN_USER))
}

fn with_shell(name: &str) -> anyhow::Result<Image> {
    Image::new(name).program(&fs::canonicalize("/bin/sh")?, "/usr/local/bin/sh")
}

/// The folder that `scripts/image-root` fills, once for each build of the programs.
fn root(kind: &str, programs: &[&str]) -> anyhow::Result<PathBuf> {
    let script = repository().join("scripts/image-root");
    let programs: Vec<PathBuf> = programs.iter().map(|program| sibling(program)).collect::<anyhow::Result<_>>()?;
    let binaries = programs[0].parent().context("a program lies in a folder")?;
    let images = binaries.join("images");
    let root = images.join(format!("{kind}-{}", key(&script, &programs)?));
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&images)?;
    remove_older(&images, kind)?;
    // Another process may do the same: each fills a folder of its own, and the first to finish wins.
    let part = tempfile::Builder::new().prefix("part-").tempdir_in(&images)?;
    output(Command::new(&script).arg(kind).arg(binaries).arg(part.path()))?;
    match fs::rename(part.path(), &root) {
        Err(error) if !root.is_dir() => Err(error).with_context(|| format!("could not make {}", root.display())),
        _ => Ok(root),
    }
}

fn key(script: &Path, programs: &[PathBuf]) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    hash.update(fs::read(script).with_context(|| format!("could not read {}", script.display()))?);
    for program in programs {
        let meta = fs::metadata(program)?;
        hash.update(format!("{} {:?}\n", meta.len(), meta.modified()?));
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

fn remove_older(images: &Path, kind: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{kind}-")) {
            // Another process may have done it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
