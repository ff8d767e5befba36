//! Container images without a base image and without an engine: a program, the libraries that it needs, nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::process::output;

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    user: String,
    /// Path in the image, without the leading slash, to the file on this machine.
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Image {
    /// An empty image. `name` holds the tag, `localhost/fetchr-origin:dev`.
    pub fn new(name: &str) -> Self {
        let (entrypoint, command, user) = (Vec::new(), Vec::new(), "0:0".to_owned());
        Self { name: name.to_owned(), entrypoint, command, user, files: BTreeMap::new() }
    }

    /// The name with the tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same image by another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The program that a container runs, and the arguments that it gets unless the container has some.
    #[must_use]
    pub fn run(mut self, program: &str, arguments: &[&str]) -> Self {
        self.entrypoint = vec![program.to_owned()];
        self.command = arguments.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The user and group id that a container runs as by default.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = format!("{id}:{id}");
        self
    }

    /// Adds everything in a folder, which stands for the image's root.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn root(mut self, folder: &Path) -> anyhow::Result<Self> {
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).with_context(|| format!("could not read {}", next.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    self.files.insert(path.strip_prefix(folder)?.to_owned(), path);
                }
            }
        }
        Ok(self)
    }

    /// Adds a file under the path `inside`.
    #[must_use]
    pub fn file(mut self, source: &Path, inside: &str) -> Self {
        self.files.insert(relative(inside), source.to_owned());
        self
    }

    /// Adds a program under the path `inside`, with the libraries that it is linked with.
    ///
    /// # Errors
    /// The program is missing, or a library of it is.
    pub fn program(mut self, source: &Path, inside: &str) -> anyhow::Result<Self> {
        for library in libraries(source)? {
            self.files.insert(relative(&library), PathBuf::from(library));
        }
        Ok(self.file(source, inside))
    }

    /// Changes when the image's content may have changed: made of the names, sizes and times of its files.
    ///
    /// # Errors
    /// A file is missing.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}", (&self.name, &self.entrypoint, &self.command, &self.user)));
        for (inside, source) in &self.files {
            let meta = fs::metadata(source).with_context(|| format!("could not read {}", source.display()))?;
            hash.update(format!("{inside:?} {} {:?}\n", meta.len(), meta.modified()?));
        }
        Ok(hex(&hash.finalize()))
    }

    /// Writes the image as an archive in the format of `docker save`. Programs are stripped of their symbols.
    ///
    /// # Errors
    /// A file can't be read, or the archive can't be written.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let diff = hex(&Sha256::digest(&layer));
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "User": self.user,
                "Env": ["PATH=/usr/local/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
        }))?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{diff}.tar");
        let manifest = serde_json::to_vec(&json!([{"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}]))?;

        let part = archive.with_extension("part");
        let file = File::create(&part).with_context(|| format!("could not create {}", part.display()))?;
        let mut tar = tar::Builder::new(file);
        append(&mut tar, Path::new(&layer_name), &layer, 0o644)?;
        append(&mut tar, Path::new(&config_name), &config, 0o644)?;
        append(&mut tar, Path::new("manifest.json"), &manifest, 0o644)?;
        tar.into_inner()?.sync_data()?;
        fs::rename(&part, archive).with_context(|| format!("could not write {}", archive.display()))
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for folder in ["etc", "run", "tmp", "var"] {
            directory(&mut tar, Path::new(folder), if folder == "tmp" { 0o1777 } else { 0o755 })?;
        }
        for folder in self.folders() {
            directory(&mut tar, folder, 0o755)?;
        }
        for (inside, source) in &self.files {
            let mode = fs::metadata(source)?.permissions().mode() & 0o777;
            let content = stripped(source)?;
            append(&mut tar, inside, &content, mode)?;
        }
        Ok(tar.into_inner()?)
    }

    fn folders(&self) -> std::collections::BTreeSet<&Path> {
        let parents = self.files.keys().flat_map(|file| file.ancestors().skip(1));
        parents.filter(|folder| !folder.as_os_str().is_empty()).collect()
    }
}

fn directory<W: Write>(tar: &mut tar::Builder<W>, path: &Path, mode: u32) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    header.set_mtime(0);
    Ok(tar.append_data(&mut header, path, std::io::empty())?)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content).with_context(|| format!("could not add {} to the image", path.display()))
}

fn stripped(source: &Path) -> anyhow::Result<Vec<u8>> {
    let content = fs::read(source).with_context(|| format!("could not read {}", source.display()))?;
    if !content.starts_with(b"\x7fELF") {
        return Ok(content);
    }
    let copy = tempfile::NamedTempFile::new()?;
    output(Command::new("strip").arg("-o").arg(copy.path()).arg(source))?;
    Ok(fs::read(copy.path())?)
}

/// Paths of the shared libraries of a program, as the dynamic linker finds them on this machine.
fn libraries(program: &Path) -> anyhow::Result<Vec<String>> {
    if !program.exists() {
        bail!("{} is missing; build the programs first: cargo build --workspace --bins", program.display());
    }
    let listed = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("could not run ldd")?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned() + &String::from_utf8_lossy(&listed.stderr);
    if !listed.status.success() {
        // A static program has none.
        return if text.contains("not a dynamic executable") {
            Ok(Vec::new())
        } else {
            bail!("ldd {}: {text}", program.display())
        };
    }
    parse_ldd(&text).with_context(|| format!("ldd {}", program.display()))
}

fn parse_ldd(text: &str) -> anyhow::Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("=> not found") {
            bail!("a library is missing: {}", line.trim());
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(path.to_owned());
        }
    }
    Ok(libraries)
}

fn relative(path: &str) -> PathBuf {
    PathBuf::from(path.trim_start_matches('/'))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;

    use super::*;

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        tar.entries().unwrap().map(read).collect()
    }

    #[test]
    fn archive_holds_the_program_with_its_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("image.tar");
        let image = Image::new("localhost/shell:dev").program(Path::new("/bin/sh"), "/usr/local/bin/shell").unwrap();
        image.run("shell", &[]).write(&archive).unwrap();

        let outer = entries(&fs::read(&archive).unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&outer["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "localhost/shell:dev");
        let config: serde_json::Value = serde_json::from_slice(&outer[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let layer = &outer[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        let files: BTreeSet<String> = entries(layer).into_keys().collect();
        assert!(files.contains("usr/local/bin/shell") && files.iter().any(|file| file.contains("libc.so")), "{files:?}");
    }

    #[test]
    fn libraries_are_read_from_the_linkers_list() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x1)\n\t/lib64/ld.so.2 (0x2)\n";
        assert_eq!(parse_ldd(text).unwrap(), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
    }

    #[test]
    fn missing_library_is_an_error() {
        let error = parse_ldd("\tlibnft.so.1 => not found\n").unwrap_err().to_string();
        assert_eq!(error, "a library is missing: libnft.so.1 => not found");
    }
}
