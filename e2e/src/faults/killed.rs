//! Processes that end by SIGKILL under load.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::time::sleep;

use super::{HEADER, RATE, Row, Stage, seconds};
use crate::origin::load;
use crate::report::{median, percentile};
use crate::wait::eventually;

/// Promised: a lease holds for 15 s, and 5 s later at most another replica leads.
const NEXT_LEADER: Duration = Duration::from_secs(20);
/// Promised.
const SERVES_AGAIN: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_millis(300);

/// The operator that leads is killed so many times.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn operator(times: u32) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let kills = async {
        let mut gaps = Vec::new();
        for round in 1..=times {
            gaps.push(kill_leader(&stage, round).await?);
        }
        anyhow::Ok(gaps)
    };
    let (load, gaps) = load::during(stage.loopback.load(RATE), kills).await?;
    load.check()?;
    let seen = format!(
        "{} requests, 0 failed; a change made right after each kill in force at once; another replica led after {:.1} s, at most {:.1} s",
        load.sent,
        median(gaps.as_deref().unwrap_or_default()),
        percentile(gaps.as_deref().unwrap_or_default(), 100)
    );
    gaps?;
    Ok(Row::new("operator that leads killed (SIGKILL)", format!("{times} times"), seen))
}

/// Seconds without a leader.
async fn kill_leader(stage: &Stage, round: u32) -> anyhow::Result<f64> {
    let operators = &stage.operators;
    let leading = async || match (operators[0].leads().await, operators[1].leads().await) {
        (true, true) => bail!("both lead"),
        (false, false) => bail!("nobody leads"),
        (first, _) => Ok(usize::from(!first)),
    };
    let leader = eventually("one leads", NEXT_LEADER * 2, leading).await?;
    operators[leader].kill()?;
    let killed = Instant::now();
    stage.loopback.header(HEADER, &format!("round-{round}")).await?;
    stage.loopback.until_sets(HEADER, &format!("round-{round}")).await?;
    let other = &operators[1 - leader];
    eventually("the other replica leads", NEXT_LEADER * 2, async || other.leads().await.then_some(()).context("nobody leads"))
        .await?;
    let gap = killed.elapsed();
    ensure!(gap < NEXT_LEADER, "nobody led for {gap:?}");
    operators[leader].come_back().await?;
    Ok(gap.as_secs_f64())
}

/// The sidecar is killed so many times, and started again at once from its own folder, with no operator to ask.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn sidecar(times: u32) -> anyhow::Result<Row> {
    let Stage { loopback, operators, sidecar } = Stage::set().await?;
    // From its own folder, and not from these.
    drop(operators);
    let kills = async {
        let (mut sidecar, mut gaps) = (sidecar, Vec::new());
        for _ in 0..times {
            drop(sidecar);
            let killed = Instant::now();
            sidecar = loopback.sidecar(2).await?;
            loopback.until_sets(HEADER, "yes").await?;
            let gap = killed.elapsed();
            ensure!(gap < SERVES_AGAIN, "it served again only after {gap:?}");
            gaps.push(gap.as_secs_f64());
            sleep(BETWEEN).await;
        }
        drop(sidecar);
        anyhow::Ok(gaps)
    };
    let (load, gaps) = load::during(loopback.load(RATE), Box::pin(kills)).await?;
    let (gaps, lost) = (gaps?, load.sent - load.ok);
    // Those that came in a gap, those that were under way at its beginning, and those after the end of the last sidecar.
    let most = gaps.iter().sum::<f64>() * f64::from(RATE) + f64::from(times + 1) * 10.0;
    ensure!((lost as f64) < most, "{lost} requests were lost, in gaps of {:?}", gaps.iter().sum::<f64>());
    let seen = format!(
        "serves again with its policies after {} (median), {} (p99), {} (slowest); {:.1} of {RATE} requests a second lost a kill",
        seconds(Duration::from_secs_f64(median(&gaps))),
        seconds(Duration::from_secs_f64(percentile(&gaps, 99))),
        seconds(Duration::from_secs_f64(percentile(&gaps, 100))),
        lost as f64 / f64::from(times)
    );
    Ok(Row::new("sidecar killed (SIGKILL), started again at once, no operator", format!("{times} times"), seen))
}
