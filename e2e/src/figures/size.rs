//! What fetchr takes: memory of its processes, sizes of its images.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::{mebibytes, row};
use crate::cluster::Cluster;
use crate::image::Image;
use crate::namespace::{Namespace, Pod, SIDECAR};
use crate::process::of_container;
use crate::report::percentile;
use crate::{images, install};

const OPERATOR_CONTAINER: &str = "operator";

/// Resident memory in bytes, of each pod.
pub(super) struct Memory {
    pub(super) idle: Vec<f64>,
    pub(super) changed: Vec<f64>,
    pub(super) operators: Vec<f64>,
}

/// Sizes of an image in bytes.
pub(super) struct ImageSize {
    pub(super) name: String,
    pub(super) unpacked: u64,
    pub(super) packed: u64,
}

impl Memory {
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let most = |name: &str, values: &[f64]| row([name, &mebibytes(percentile(values, 100))]);
        vec![
            row(["memory, the most of all pods", "RSS"]),
            most("sidecar, idle", &self.idle),
            most("sidecar, after the changes", &self.changed),
            most("operator, after the changes", &self.operators),
        ]
    }
}

/// Resident memory of the sidecars of these pods.
pub(super) async fn sidecars(pods: &[Pod]) -> anyhow::Result<Vec<f64>> {
    futures::future::try_join_all(pods.iter().map(|pod| resident(pod, SIDECAR))).await
}

/// Resident memory of the operator's pods.
pub(super) async fn operators(cluster: &Cluster) -> anyhow::Result<Vec<f64>> {
    let pods = Namespace::named(cluster, install::NAMESPACE).await?.pods(install::OPERATOR_LABELS).await?;
    ensure!(!pods.is_empty(), "no pod in {} has the label {}", install::NAMESPACE, install::OPERATOR_LABELS);
    futures::future::try_join_all(pods.iter().map(|pod| resident(pod, OPERATOR_CONTAINER))).await
}

/// Sizes of the images, made of the programs beside this one.
pub(super) async fn images() -> anyhow::Result<Vec<ImageSize>> {
    let sizes = || [images::sidecar()?, images::operator()?].iter().map(image_size).collect();
    tokio::task::spawn_blocking(sizes).await?
}

pub(super) fn image_rows(images: &[ImageSize]) -> Vec<Vec<String>> {
    let head = row(["image", "unpacked", "gzip"]);
    let sizes = |image: &ImageSize| row([&image.name, &mebibytes(image.unpacked as f64), &mebibytes(image.packed as f64)]);
    [head].into_iter().chain(images.iter().map(sizes)).collect()
}

fn image_size(image: &Image) -> anyhow::Result<ImageSize> {
    let archive = tempfile::Builder::new().suffix(".tar").tempfile()?;
    image.write(archive.path())?;
    // Only its length counts, which is small enough for memory.
    let mut gzip = Command::new("gzip");
    let packed = gzip.arg("--stdout").arg(archive.path()).stderr(Stdio::inherit()).output().context("could not run gzip")?;
    ensure!(packed.status.success(), "gzip failed ({})", packed.status);
    let name = image.name().rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
    let unpacked = fs::metadata(archive.path())?.len();
    Ok(ImageSize { name: name.to_owned(), unpacked, packed: packed.stdout.len() as u64 })
}

/// Of all its processes: pages that they share are counted for each.
async fn resident(pod: &Pod, container: &str) -> anyhow::Result<f64> {
    let id = pod.container_id(container).await?;
    let processes = tokio::task::spawn_blocking(move || of_container(&id)).await??;
    ensure!(!processes.is_empty(), "no process of {container} in {} is to be seen in /proc", pod.name());
    let resident = |id: &u32| resident_bytes(&fs::read_to_string(format!("/proc/{id}/status")).ok()?);
    let all: Option<f64> = processes.iter().map(resident).sum();
    all.with_context(|| format!("{container} in {} has no resident memory", pod.name()))
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_kibibytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    9216 kB\nThreads:\t1\n"), Some(9_437_184.0));
    }

    #[test]
    fn process_that_ended_has_no_resident_memory() {
        assert_eq!(resident_bytes("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
