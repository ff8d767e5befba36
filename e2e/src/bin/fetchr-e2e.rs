//! The cluster on this machine, the demonstration, the figures and the test kit, from the command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use e2e::cluster::{self, Cluster, Lifetime};
use e2e::testkit::relay::{self, Faults, Lane};

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
    /// The demonstration: a cluster, fetchr, an application, policies; the cluster stays up
    Demo(e2e::demo::Images),
    /// Measure fetchr on the cluster on this machine; takes some minutes
    Figures {
        /// Markdown file whose part between `<!-- bench:cluster -->` and `<!-- end:cluster -->` is replaced by the tables
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Bring about faults under load, check what is promised and measure; takes half an hour
    Faults {
        #[command(flatten)]
        extent: e2e::faults::Extent,
        /// Only those of one place
        #[arg(long)]
        only: Option<e2e::faults::Place>,
        /// Markdown file whose parts between `<!-- bench:faults -->` and `<!-- end:faults -->`, and the same of `faults-cluster`, are
        /// replaced by the tables
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Mixed load through the standalone proxy with a ledger of every exchange; needs root
    Soak {
        /// For how long
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// Markdown file whose part between `<!-- bench:soak -->` and `<!-- end:soak -->` is replaced by the tables
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Write the images as archives for `docker load`
    Images { folder: PathBuf },
    /// A TCP relay that breaks the network on request
    Relay(Relay),
    /// The node's first process; `cluster up` starts it
    #[command(hide = true)]
    Node { state: PathBuf, listener: i32 },
}

#[derive(Args)]
struct Relay {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where connections go
    #[arg(long)]
    to: SocketAddr,
    /// What is wrong on the way there, such as `delay=50ms,jitter=10ms`; also rate=, stall-after=, blackhole, rst-after=, fin-after=, flip=
    #[arg(long, default_value = "")]
    up: Lane,
    /// What is wrong on the way back
    #[arg(long, default_value = "")]
    down: Lane,
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

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetchr-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Action) -> anyhow::Result<()> {
    match command {
        Action::Node { state, listener } => cluster::node::run(&state, listener),
        command => tokio::runtime::Runtime::new()?.block_on(run(command)),
    }
}

async fn run(command: Action) -> anyhow::Result<()> {
    match command {
        Action::Cluster(action) => cluster(action).await,
        Action::Demo(images) => e2e::demo::run(images).await,
        Action::Figures { report } => e2e::figures::run(report.as_deref()).await,
        Action::Faults { extent, only, report } => e2e::faults::run(&extent, only, report.as_deref()).await,
        Action::Soak { minutes, report } => {
            e2e::soak::write(Duration::from_secs_f64((minutes * 60.0).max(1.0)), report.as_deref()).await
        }
        Action::Images { folder } => write_images(&folder),
        Action::Relay(relay) => relay.run().await,
        Action::Node { state, listener } => cluster::node::run(&state, listener),
    }
}

fn write_images(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    for image in e2e::images::all()? {
        let name = image.name().rsplit('/').next().unwrap_or_default().replace(':', "-");
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        println!("{}\t{} KiB\t{}", archive.display(), std::fs::metadata(&archive)?.len() / 1024, image.name());
    }
    Ok(())
}

impl Relay {
    async fn run(self) -> anyhow::Result<()> {
        let relay = relay::Relay::listen(self.listen, self.to).await?;
        relay.set(Faults { up: self.up, down: self.down, refuse: false });
        println!("listening on {}", relay.address());
        Ok(tokio::signal::ctrl_c().await?)
    }
}

async fn cluster(action: ClusterAction) -> anyhow::Result<()> {
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
