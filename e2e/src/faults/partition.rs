//! Sidecars that are cut off from their operators, and then find only one that is behind.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{HEADER, RATE, Row, Stage, seconds};
use crate::loopback::Operator;
use crate::origin::load;
use crate::testkit::relay::{Faults, Lane};
use crate::wait::eventually;

/// After 60 s of nothing but older plans a sidecar believes that the cluster itself went back.
const STALE_FOR: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(60);
/// Counts the plans that were not taken.
const BEHIND: &str = "fetchr_config_behind";

/// No bytes between sidecars and operators for so long; a change of the meantime arrives late; then only an operator answers whose watches
/// have stalled before the next change.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn cut(time: Duration) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let (load, cut) = load::during(stage.loopback.load(RATE), partition(&stage, time)).await?;
    let (arrived, caught_up) = cut.with_context(|| stage.loopback.describe())?;
    load.check()?;
    let seen = format!(
        "{} requests, 0 failed; the last plan stayed; after the end a change of the meantime in force in {}; a replica that was \
         behind offered an older plan for {}: not taken; after that the next change in force in {}",
        load.sent,
        seconds(arrived),
        seconds(STALE_FOR),
        seconds(caught_up)
    );
    Ok(Row::new("sidecar cut off from all operators", seconds(time), seen))
}

async fn partition(stage: &Stage, time: Duration) -> anyhow::Result<(Duration, Duration)> {
    // A replica that listed later says so for kinds that did not change since, so it is the one that has to stay.
    let [stale, fresh] = &stage.operators;
    for operator in [fresh, stale] {
        operator.streams.set(Faults { up: black_hole(), down: black_hole(), refuse: false });
    }
    stage.loopback.header(HEADER, "changed").await?;
    stays(stage, "yes", time).await?;
    let healed = Instant::now();
    heal(fresh);
    stage.loopback.until_sets(HEADER, "changed").await?;
    let arrived = healed.elapsed();

    // From now on this one hears of no change, until it looks anew after 150 s. Its other requests are answered: it leads, and knows tokens.
    stale.api.forget();
    stage.loopback.header(HEADER, "newer").await?;
    stage.loopback.until_sets(HEADER, "newer").await?;
    let behind = stage.sidecar.metric(BEHIND).await?;
    fresh.streams.set(Faults { refuse: true, ..Faults::default() });
    fresh.streams.cut();
    heal(stale);
    eventually("the older plan is offered", SOON, async || {
        ensure!(stage.sidecar.metric(BEHIND).await? > behind, "not yet");
        Ok(())
    })
    .await?;
    stays(stage, "newer", STALE_FOR).await?;
    stale.api.cut();
    heal(fresh);
    stage.loopback.header(HEADER, "last").await?;
    let healed = Instant::now();
    stage.loopback.until_sets(HEADER, "last").await?;
    Ok((arrived, healed.elapsed()))
}

/// What is in force stays so for a time.
async fn stays(stage: &Stage, value: &str, time: Duration) -> anyhow::Result<()> {
    let ends = Instant::now() + time;
    while Instant::now() < ends {
        stage.loopback.sets(HEADER, value).await?;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Lets streams pass again. Bytes that were lost are not sent again; the end of the connection is what both sides would see sooner or later.
fn heal(operator: &Operator) {
    operator.streams.set(Faults::default());
    operator.streams.cut();
}

fn black_hole() -> Lane {
    Lane { blackhole: true, ..Lane::default() }
}
