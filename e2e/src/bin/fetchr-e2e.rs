//! The cluster on this machine, from the command line.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, Subcommand};
use e2e::cluster::{self, Cluster, Lifetime};

#[derive(Parser)]
#[command(version, about = "A real Kubernetes on this machine, and a demonstration of fetchr on it")]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// The cluster: one node in namespaces of its own
    #[command(subcommand)]
    Cluster(ClusterAction),
    /// The node's first process; `cluster up` starts it
    #[command(hide = true)]
    Node { state: PathBuf, listener: i32 },
}

#[derive(Subcommand)]
enum ClusterAction {
    /// Start it, if it is not up
    Up,
    /// End it and remove its files
    Down,
    /// Say whether it is up, and where its files are
    Status,
    /// A shell that reaches pods and Services by address
    Shell,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Action::Node { state, listener } => cluster::node::run(&state, listener),
        Action::Cluster(action) => tokio::runtime::Runtime::new()?.block_on(run(action)),
    }
}

async fn run(action: ClusterAction) -> anyhow::Result<()> {
    match action {
        ClusterAction::Up => {
            let start = Instant::now();
            let progress = |step: &str| println!("{:6.1}s  {step}", start.elapsed().as_secs_f64());
            let cluster = Cluster::up(Lifetime::Kept, &progress).await?;
            println!("\nexport KUBECONFIG={}", cluster.kubeconfig().display());
        }
        ClusterAction::Down => println!("{}", if Cluster::down().await? { "cluster ended" } else { "no cluster was up" }),
        ClusterAction::Status => match Cluster::running()? {
            Some(cluster) => println!("up; export KUBECONFIG={}", cluster.kubeconfig().display()),
            None => println!("down"),
        },
        ClusterAction::Shell => cluster::shell()?,
    }
    Ok(())
}
