//! What happens when something fails: each fault is brought about on purpose under load, checked against what is promised, and
//! measured. Tests run each one for a short time; `make faults` for a long one, and writes the table of `docs/reliability.md`.

pub mod api;
pub mod clock;
pub mod hostile;
pub mod killed;
pub mod partition;
pub mod reloads;
pub mod rolls;
pub mod skew;
pub mod upgrade;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::documented::{self, Program};
use crate::loopback::{Loopback, Operator, Sidecar, User};
use crate::namespace::Namespace;
use crate::{install, report, testbed};

/// How long streams, tunnels and uploads are while the application rolls.
const LONG_EXCHANGE: Duration = Duration::from_secs(30);
/// Requests a second while something fails.
const RATE: u32 = 100;
/// The header policy that is there from the start.
const HEADER: &str = "kept";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What failed.
    pub fault: String,
    /// For how long, or how often.
    pub extent: String,
    /// What was seen.
    pub seen: String,
}

impl Row {
    fn new(fault: &str, extent: String, seen: String) -> Self {
        Self { fault: fault.to_owned(), extent, seen }
    }

    /// Its cells.
    pub fn cells(self) -> Vec<String> {
        vec![self.fault, self.extent, self.seen]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}: {}", self.fault, self.extent, self.seen)
    }
}

/// How long, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Extent {
    /// Minutes without an API server
    #[arg(long, default_value_t = 10)]
    pub api_minutes: u64,
    /// Minutes that a sidecar is cut off
    #[arg(long, default_value_t = 10)]
    pub cut_minutes: u64,
    /// Changes of a policy under load
    #[arg(long, default_value_t = 1000)]
    pub changes: u32,
    /// How often the operator that leads is killed
    #[arg(long, default_value_t = 5)]
    pub operator_kills: u32,
    /// How often the worker of the sidecar is killed
    #[arg(long, default_value_t = 200)]
    pub sidecar_kills: u32,
    /// Random objects
    #[arg(long, default_value_t = 5000)]
    pub objects: u32,
    /// How often the application rolls
    #[arg(long, default_value_t = 10)]
    pub rolls: u32,
}

/// Where faults are brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// Operators and a sidecar as processes.
    Loopback,
    /// The cluster on this machine.
    Cluster,
}

/// Brings about the faults of one place, or of both, prints the tables and puts them into `document`, between their marks.
///
/// # Errors
/// A promise was broken: which one is said. Or the document lacks its marks.
pub async fn run(extent: &Extent, only: Option<Place>, document: Option<&Path>) -> anyhow::Result<()> {
    for (place, mark) in [(Place::Loopback, "faults"), (Place::Cluster, "faults-cluster")] {
        if only.is_some_and(|only| only != place) {
            continue;
        }
        let mut rows = vec![["fault", "for how long, how often", "seen"].map(str::to_owned).to_vec()];
        rows.extend(match place {
            Place::Loopback => on_loopback(extent).await?,
            Place::Cluster => on_cluster(extent).await?,
        });
        let table = report::table(&rows);
        println!("{table}");
        if let Some(file) = document {
            report::replace(file, mark, &table)?;
        }
    }
    Ok(())
}

/// Side by side, as far as most of it is waiting.
async fn on_loopback(extent: &Extent) -> anyhow::Result<Vec<Vec<String>>> {
    let minutes = |count| Duration::from_secs(60 * count);
    eprintln!("faults: on loopback; the longest takes {} min and some", extent.api_minutes.max(extent.cut_minutes));
    let waiting = [
        api::down(minutes(extent.api_minutes)).boxed_local(),
        api::slow(Duration::from_secs(5), minutes(2)).boxed_local(),
        clock::wrong(minutes(2)).boxed_local(),
        partition::cut(minutes(extent.cut_minutes)).boxed_local(),
        killed::operator(extent.operator_kills).boxed_local(),
    ];
    let started = Instant::now();
    let mut rows = futures::future::try_join_all(waiting.map(|scene| told(started, scene))).await?;
    // These are about speed and memory, so nothing runs beside them.
    for busy in
        [killed::sidecar(extent.sidecar_kills, killed::SERVES_AGAIN).boxed_local(), reloads::many(extent.changes).boxed_local()]
    {
        rows.push(told(started, busy).await?);
    }
    Ok(rows)
}

async fn on_cluster(extent: &Extent) -> anyhow::Result<Vec<Vec<String>>> {
    eprintln!("faults: on the cluster");
    let (cluster, started) = (testbed::fetchr().await?, Instant::now());
    let namespace = Namespace::create(&cluster, "faults", &[]).await?;
    let scenes = async {
        let rolls = rolls::application_rolls(&namespace, extent.rolls, 3, LONG_EXCHANGE).boxed_local();
        let objects = hostile::objects(&namespace, extent.objects, 1).boxed_local();
        anyhow::Ok(vec![told(started, rolls).await?, told(started, objects).await?])
    };
    let rows = scenes.await;
    namespace.remove().await?;
    let mut rows = rows?;
    rows.push(told(started, upgraded(&cluster).boxed_local()).await?);
    Ok(rows)
}

/// Says what was seen as soon as it was.
async fn told(started: Instant, scene: LocalBoxFuture<'_, anyhow::Result<Row>>) -> anyhow::Result<Vec<String>> {
    let row = scene.await?;
    eprintln!("{:6.0} s  {row}", started.elapsed().as_secs_f64());
    Ok(row.cells())
}

async fn upgraded(cluster: &crate::cluster::Cluster) -> anyhow::Result<Row> {
    let namespace = Namespace::create(cluster, "upgrade", &[]).await?;
    let row = upgrade::and_back(&namespace).await;
    namespace.remove().await?;
    // Whoever comes next finds fetchr as this build has it.
    install::chart(cluster, testbed::build(cluster).await?, &[]).await?;
    row
}

/// Two operators, of which the first leads, and a sidecar in front of an origin with one policy in force.
struct Stage {
    loopback: Loopback,
    operators: [Operator; 2],
    sidecar: Sidecar,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let loopback = Loopback::start().await?;
        let first = loopback.operator(0, User { name: "operator-a", clock: None }).await?;
        let second = loopback.operator(1, User { name: "operator-b", clock: None }).await?;
        let sidecar = loopback.sidecar(2).await?;
        sidecar.until_ready().await?;
        loopback.header(HEADER, "yes").await?;
        loopback.until_sets(HEADER, "yes").await?;
        loopback.until_programmed(HEADER, "Programmed").await?;
        Ok(Self { loopback, operators: [first, second], sidecar })
    }

    /// The metrics of all are those of `docs/metrics.md`.
    async fn shows_what_is_documented(&self) -> anyhow::Result<()> {
        documented::check(&self.sidecar.page().await?, Program::Sidecar)?;
        for operator in &self.operators {
            documented::check(&operator.ask("/metrics").await?.body, Program::Operator)?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        long @ 120.. => format!("{} min", long / 60),
        0 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
