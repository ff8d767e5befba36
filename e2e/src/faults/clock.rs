//! Operators whose clocks are wrong: only one of them writes at a time.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::time::sleep;

use super::{HEADER, RATE, Row, seconds};
use crate::apiserver::audit::Noted;
use crate::loopback::{Loopback, Operator, User};
use crate::origin::load;
use crate::wait::eventually;

/// A lease holds for 15 s; then another replica notices, and the first that ended starts again.
const NEXT_LEADER: Duration = Duration::from_secs(60);

/// One operator with the right time, one an hour ahead, one an hour behind, for so long; then the leader is killed.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn wrong(time: Duration) -> anyhow::Result<Row> {
    let loopback = Loopback::start().await?;
    let right = loopback.operator(0, User { name: "operator-right", clock: None }).await?;
    let ahead = loopback.operator(1, User { name: "operator-ahead", clock: Some("+1h") }).await?;
    let behind = loopback.operator(2, User { name: "operator-behind", clock: Some("-1h") }).await?;
    let operators = [right, ahead, behind];
    let sidecar = loopback.sidecar(3).await?;
    sidecar.until_ready().await?;
    let (load, after_kill) = load::during(loopback.load(RATE), watched(&loopback, &operators, time)).await?;
    let after_kill = after_kill?;
    load.check()?;
    let writers = writers(&loopback.server().requests()?);
    for (index, writer) in writers.iter().enumerate() {
        ensure!(!writers[..index].contains(writer), "{writer} wrote, then another, then it again: {writers:?}");
    }
    let seen = format!(
        "{} requests, 0 failed; never two leaders, writers one after the other: {}; after the leader was killed the next led in {}",
        load.sent,
        writers.join(", "),
        seconds(after_kill)
    );
    Ok(Row::new("operators with clocks at 0, +1 h and -1 h", seconds(time), seen))
}

/// Changes the policy again and again, and then kills the leader. Returns how long nobody led after that.
async fn watched(loopback: &Loopback, operators: &[Operator], time: Duration) -> anyhow::Result<Duration> {
    let (began, mut round) = (Instant::now(), 0);
    while began.elapsed() < time {
        round += 1;
        loopback.header(HEADER, &format!("round-{round}")).await?;
        loopback.until_sets(HEADER, &format!("round-{round}")).await?;
        leader(operators).await?;
        sleep(Duration::from_millis(500)).await;
    }
    let first = eventually("one leads", NEXT_LEADER, async || match leader(operators).await? {
        Some(leader) => Ok(leader),
        None => bail!("nobody leads"),
    })
    .await?;
    first.kill()?;
    let killed = Instant::now();
    eventually("another leads", NEXT_LEADER, async || match leader(operators).await? {
        Some(next) if next.name() != first.name() => Ok(()),
        _ => bail!("nobody leads"),
    })
    .await?;
    let after_kill = killed.elapsed();
    first.come_back().await?;
    // An operator that is an hour ahead takes tokens of an hour for expired, so its status says nothing of use; the others serve.
    loopback.header(HEADER, "last").await?;
    loopback.until_sets(HEADER, "last").await?;
    Ok(after_kill)
}

/// The one that leads, if one does; an error, if more than one do.
async fn leader(operators: &[Operator]) -> anyhow::Result<Option<&Operator>> {
    let mut leading = None;
    for operator in operators {
        if operator.leads().await
            && let Some(other) = leading.replace(operator)
        {
            // The first may have ended in the meantime.
            ensure!(!other.leads().await, "{} and {} lead at the same time", other.name(), operator.name());
        }
    }
    Ok(leading)
}

/// Who wrote status, plans and registrations, one after the other; the lease itself is what they compete for.
fn writers(noted: &[Noted]) -> Vec<String> {
    let written = |one: &&Noted| {
        one.is_write()
            && one.succeeded()
            && (one.object_ref.subresource == "status" || ["configmaps", "secrets"].contains(&one.object_ref.resource.as_str()))
    };
    let names = noted.iter().filter(written).map(|one| one.impersonated_user.username.clone());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("operator-")).collect();
    names.dedup();
    names
}
