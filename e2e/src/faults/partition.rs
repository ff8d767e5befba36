//! Sidecars that are cut off from their operators, and then find only one that is behind.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{HEADER, RATE, Row, Stage, seconds};
use crate::origin::load;
use crate::testkit::relay::{Faults, Lane};
use crate::wait::eventually;

/// After 60 s of nothing but older plans a sidecar believes that the cluster itself went back.
const STALE_FOR: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(60);

/// No bytes between sidecars and operators for so long; then a change arrives late; then only an operator answers that has not
/// seen the change.
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
    let lost = Faults { up: black_hole(), down: black_hole(), refuse: false };
    for operator in [fresh, stale] {
        operator.streams.set(lost);
    }
    // From now on this one knows of no change.
    stale.api.set(lost);
    stage.loopback.header(HEADER, "changed").await?;
    let ends = Instant::now() + time;
    while Instant::now() < ends {
        stage.loopback.sets(HEADER, "yes").await?;
        sleep(Duration::from_millis(500)).await;
    }
    fresh.streams.set(Faults::default());
    // Bytes that were lost are not sent again; the end of the connection is what both sides would see sooner or later.
    fresh.streams.cut();
    let healed = Instant::now();
    stage.loopback.until_sets(HEADER, "changed").await?;
    let arrived = healed.elapsed();

    let refuse = Faults { refuse: true, ..Faults::default() };
    fresh.streams.set(refuse);
    fresh.streams.cut();
    stale.streams.set(Faults::default());
    stale.streams.cut();
    eventually("the older plan is offered", SOON, async || {
        ensure!(stage.sidecar.metric("fetchr_config_behind").await? > 0.0, "not yet");
        Ok(())
    })
    .await?;
    let ends = Instant::now() + STALE_FOR;
    while Instant::now() < ends {
        stage.loopback.sets(HEADER, "changed").await?;
        sleep(Duration::from_millis(200)).await;
    }
    stale.api.set(Faults::default());
    stale.api.cut();
    fresh.streams.set(Faults::default());
    stage.loopback.header(HEADER, "last").await?;
    let healed = Instant::now();
    stage.loopback.until_sets(HEADER, "last").await?;
    Ok((arrived, healed.elapsed()))
}

fn black_hole() -> Lane {
    Lane { blackhole: true, ..Lane::default() }
}
