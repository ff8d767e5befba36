//! Figures of fetchr on the cluster on this machine: how soon pods are ready, how soon policies are in force, and what it all
//! takes in memory and images.

mod changes;
mod readiness;
mod size;

use std::{path::Path, time::Duration};

use anyhow::anyhow;

use crate::cluster::Cluster;
use crate::namespace::Namespace;
use crate::{report, testbed};
use changes::Changes;
use readiness::Readiness;
use size::{ImageSize, Memory};

const MARK: &str = "cluster";
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// All that was measured.
struct Figures {
    readiness: Readiness,
    changes: Changes,
    memory: Memory,
    images: Vec<ImageSize>,
}

/// Measures, prints the tables and puts them into `report`, between its marks. fetchr is installed where it is not; the
/// namespace of the measurements is removed however they end.
///
/// # Errors
/// A step failed; the message says what the cluster says about it. Or the report lacks its marks.
pub async fn run(report: Option<&Path>) -> anyhow::Result<()> {
    let cluster = testbed::fetchr().await?;
    let namespace = Namespace::create(&cluster, "figures", &[]).await?;
    let figures = tokio::select! {
        figures = measure(&cluster, &namespace) => figures,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    let removed = namespace.remove().await;
    let text = figures?.markdown();
    removed?;
    println!("{text}");
    report.map_or(Ok(()), |file| report::replace(file, MARK, &text))
}

async fn measure(cluster: &Cluster, namespace: &Namespace) -> anyhow::Result<Figures> {
    eprintln!("figures: sizes of the images");
    let images = size::images().await?;
    let readiness = readiness::measure(namespace).await?;
    let pods = changes::pods(namespace).await?;
    // A sidecar lets go of what only its start needed after 5 s.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = size::sidecars(&pods).await?;
    let changes = changes::measure(namespace, &pods).await?;
    let memory = Memory { idle, changed: size::sidecars(&pods).await?, operators: size::operators(cluster).await? };
    Ok(Figures { readiness, changes, memory, images })
}

impl Figures {
    fn markdown(&self) -> String {
        [self.readiness.rows(), self.changes.rows(), self.memory.rows(), size::image_rows(&self.images)]
            .map(|rows| report::table(&rows))
            .join("\n")
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / MEBIBYTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_figure_has_its_table() {
        let figures = Figures {
            readiness: Readiness { fetchr: vec![2.0, 3.0, 2.5], idle: vec![1.75, 2.75, 2.5] },
            changes: Changes { pods: 3, seconds: vec![0.031, 0.040, 0.120] },
            memory: Memory { idle: vec![9e6, 8e6], changed: vec![1e7], operators: vec![3e7] },
            images: vec![ImageSize { name: "sidecar".to_owned(), unpacked: 20_971_520, packed: 9_437_184 }],
        };
        let expected = "\
| creation of a pod to Ready, 3 pairs | median | slowest |
| --- | --- | --- |
| with fetchr's sidecar | 2.50 s | 3.00 s |
| with containers that do nothing | 2.50 s | 2.75 s |
| later with fetchr, pair by pair | 0.25 s | 0.25 s |

| policy applied to in force in 3 pods, 3 changes | time |
| --- | --- |
| median | 40 ms |
| p99 | 120 ms |
| slowest | 120 ms |

| memory, the most of all pods | RSS |
| --- | --- |
| sidecar, idle | 8.6 MiB |
| sidecar, after the changes | 9.5 MiB |
| operator, after the changes | 28.6 MiB |

| image | unpacked | gzip |
| --- | --- | --- |
| sidecar | 20.0 MiB | 9.0 MiB |
";
        assert_eq!(figures.markdown(), expected);
    }
}
