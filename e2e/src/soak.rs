//! The soak: mixed load through the standalone proxy for long, with clients and origins that misbehave and policies that change. Every
//! exchange has an id, so that none is lost, doubled or mixed up unseen; and nothing may be left when the load has ended.

mod ask;
mod client1;
mod client2;
mod ledger;
mod load;
mod origin1;
mod origin2;
mod pattern;
mod proxy;
mod streams;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::documented::{self, Program};
use crate::report;
use crate::wait::eventually;
use ledger::{Kind, Ledger, Tally};
use load::Stage;
use proxy::{ADDRESSES, Origins, Proxy};

/// Between two changes of the policies.
const CHANGES: Duration = Duration::from_secs(2);
/// How long what the proxy holds for nobody may stay.
const SOON: Duration = Duration::from_secs(30);
/// Memory is compared with that after so long, or after half of a shorter soak.
const WARM: Duration = Duration::from_secs(120);
/// What memory may grow by from then on, in percent, if the soak is long enough to tell.
const GROWTH: u64 = 20;
/// The gauge of what the workers have under way for anybody.
const TASKS: &str = "fetchr_worker_tasks";
/// What may be left open besides: the log may be written, the metrics read.
const SPARE_DESCRIPTORS: usize = 2;

/// What a soak has seen.
#[derive(Debug)]
pub struct Report {
    tallies: BTreeMap<Kind, Tally>,
    changes: u64,
    /// Before, with warm pools, at the end.
    memory: [u64; 3],
    descriptors: [usize; 2],
    tasks: f64,
}

/// The proxy before the load.
struct Before {
    memory: u64,
    descriptors: usize,
    tasks: f64,
}

impl Before {
    async fn of(proxy: &Proxy) -> anyhow::Result<Self> {
        let tasks = proxy.figures().await?.sum(TASKS);
        Ok(Self { memory: proxy.memory()?, descriptors: proxy.descriptors()?, tasks })
    }
}

/// Runs a soak, prints its tables and puts them into `document` between the marks of `soak`.
///
/// # Errors
/// A promise was broken: which one is said. Or the document lacks its marks.
pub async fn write(duration: Duration, document: Option<&Path>) -> anyhow::Result<()> {
    eprintln!("soak: {} s of load", duration.as_secs());
    let tables = run(duration).await?.tables();
    println!("{tables}");
    match document {
        Some(file) => report::replace(file, "soak", &tables),
        None => Ok(()),
    }
}

/// Puts load on a proxy for so long, and looks at what is left.
///
/// # Errors
/// A promise was broken: which one is said.
pub async fn run(duration: Duration) -> anyhow::Result<Report> {
    let ledger = Arc::new(Ledger::default());
    let (origins, ports) = Served::start(&ledger).await?;
    let stage = Arc::new(Stage::new(Proxy::start(ports).await?, Arc::clone(&ledger))?);
    let before = Before::of(&stage.proxy).await?;
    let clients = stage.start();
    let _ends_with_this = stage.stop.clone().drop_guard();
    let clock = async {
        let warm = WARM.min(duration / 2);
        sleep(warm).await;
        let memory = stage.proxy.memory()?;
        sleep(duration.saturating_sub(warm)).await;
        stage.stop.cancel();
        anyhow::Ok(memory)
    };
    let (changes, warm) = tokio::try_join!(change(&stage), clock)?;
    tokio::time::timeout(3 * SOON, clients.wait()).await.context("a client did not end")?;
    let (broken, first) = ledger.breaches();
    if let Some(first) = first {
        bail!("{broken} promises were broken, the first: {first}\nthe proxy's log ends:\n{}", stage.proxy.log());
    }
    nothing_left(&stage.proxy).await?;
    origins.end();
    let descriptors = closed(&stage.proxy, &before).await?;
    let memory = [before.memory, warm, stage.proxy.memory()?];
    let long = duration > 2 * WARM;
    ensure!(!long || memory[2] * 100 <= warm * (100 + GROWTH), "memory grew from {warm} KiB to {} KiB", memory[2]);
    Ok(Report { tallies: ledger.tallies(), changes, memory, descriptors: [before.descriptors, descriptors], tasks: before.tasks })
}

/// Changes the policies again and again, each time in force before the next; how often.
async fn change(stage: &Stage) -> anyhow::Result<u64> {
    let mut round = 0;
    while stage.stop.run_until_cancelled(sleep(CHANGES)).await.is_some() {
        round += 1;
        stage.proxy.change(round)?;
        let force = eventually("a change is in force", SOON, async || {
            ensure!(stage.ledger.round() >= round || stage.stop.is_cancelled(), "answers show change {}", stage.ledger.round());
            Ok(())
        });
        force.await.with_context(|| format!("the proxy's log ends:\n{}", stage.proxy.log()))?;
    }
    Ok(round)
}

/// Waits until the proxy does nothing for anybody.
async fn nothing_left(proxy: &Proxy) -> anyhow::Result<()> {
    eventually("nothing is left of the load", SOON, async || {
        let figures = proxy.figures().await?;
        for gauge in ["http_server_active_requests", "fetchr_connections_open"] {
            ensure!(figures.sum(gauge) == 0.0, "{gauge} is {}", figures.sum(gauge));
        }
        Ok(())
    })
    .await?;
    let panics = proxy.figures().await?.sum("fetchr_panics_total");
    ensure!(panics == 0.0, "{panics} panics; the log ends:\n{}", proxy.log());
    documented::check(&proxy.figures().await?.0, Program::Sidecar)
}

/// Waits until the proxy has let go of the origins, which are gone; how many descriptors it has then.
async fn closed(proxy: &Proxy, before: &Before) -> anyhow::Result<usize> {
    eventually("no connection and no descriptor is left", SOON, async || {
        let open = proxy.figures().await?.sum("fetchr_upstream_connections_open");
        ensure!(open == 0.0, "{open} connections to origins are open");
        let tasks = proxy.figures().await?.sum(TASKS);
        ensure!(tasks == before.tasks, "{tasks} tasks are left, {} were before the load", before.tasks);
        let descriptors = proxy.descriptors()?;
        ensure!(
            descriptors <= before.descriptors + SPARE_DESCRIPTORS,
            "{descriptors} descriptors are open, {} were before",
            before.descriptors
        );
        Ok(descriptors)
    })
    .await
}

/// The origins, until they are told to end.
struct Served(CancellationToken);

impl Served {
    async fn start(ledger: &Arc<Ledger>) -> anyhow::Result<(Self, Origins)> {
        let served = Self(CancellationToken::new());
        let well = ADDRESSES;
        let alone = &ADDRESSES[..1];
        let origins = Origins {
            http1: served.on(&well, ledger, origin1::connection).await?,
            http2: served.on(&well, ledger, origin2::connection).await?,
            faulty1: served.on(alone, ledger, origin1::connection).await?,
            faulty2: served.on(alone, ledger, origin2::connection).await?,
        };
        Ok((served, origins))
    }

    /// Serves one port of several addresses.
    async fn on<F>(
        &self,
        addresses: &[[u8; 4]],
        ledger: &Arc<Ledger>,
        serve: fn(TcpStream, Arc<Ledger>) -> F,
    ) -> anyhow::Result<u16>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let port = crate::loopback::port::free()?;
        for address in addresses {
            let listener = TcpListener::bind(SocketAddr::from((*address, port))).await?;
            let (ledger, end) = (Arc::clone(ledger), self.0.clone());
            tokio::spawn(async move {
                let connections = TaskTracker::new();
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _ = stream.set_nodelay(true);
                        let (serving, end) = (serve(stream, Arc::clone(&ledger)), end.clone());
                        connections.spawn(async move { end.run_until_cancelled(serving).await });
                    }
                };
                end.run_until_cancelled(accept).await;
            });
        }
        Ok(port)
    }

    fn end(&self) {
        self.0.cancel();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

impl Report {
    /// Exchanges of every kind that a client saw the end of, or left.
    pub fn exchanges(&self) -> u64 {
        self.tallies.values().map(Tally::sum).sum()
    }

    /// What was asked and what came of it; then what was left.
    pub fn tables(&self) -> String {
        let head = ["load", "exchanges", "whole", "refused, by status", "cut off by the origin", "left by the client"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (kind, tally) in &self.tallies {
            let refused: Vec<String> = tally.refused.iter().map(|(status, count)| format!("{status}: {count}")).collect();
            let numbers = [tally.sum(), tally.whole].map(|number| number.to_string());
            let mut row = vec![kind.name().to_owned()];
            row.extend(numbers);
            row.push(refused.join(", "));
            row.extend([tally.cut, tally.left].map(|number| number.to_string()));
            rows.push(row);
        }
        let mib = self.memory.map(|kib| format!("{:.1} MiB", kib as f64 / 1024.0));
        let [before, after] = self.descriptors.map(|count| count.to_string());
        let left = vec![
            ["of the proxy", "before the load", "under load", "after it"].map(str::to_owned).to_vec(),
            vec!["RSS".to_owned(), mib[0].clone(), mib[1].clone(), mib[2].clone()],
            vec!["descriptors".to_owned(), before, String::new(), after],
            vec!["tasks of the workers".to_owned(), self.tasks.to_string(), String::new(), self.tasks.to_string()],
            ["requests under way, open connections, panics", "0", "", "0"].map(str::to_owned).to_vec(),
            vec!["changes of its policies".to_owned(), String::new(), self.changes.to_string(), String::new()],
        ];
        format!("{}\n{}", report::table(&rows), report::table(&left))
    }
}

impl Tally {
    fn sum(&self) -> u64 {
        self.whole + self.refused.values().sum::<u64>() + self.cut + self.left
    }
}
