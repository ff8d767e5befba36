//! Configurations that follow each other under load.

use anyhow::ensure;

use super::{HEADER, RATE, Row, Stage};
use crate::origin::load;

/// What memory may grow by in all, for a test: an allocator takes more than it needs, in steps.
const ROOM: f64 = 4.0 * 1024.0 * 1024.0;
const KIBIBYTE: f64 = 1024.0;

/// So many changes of a policy, one after the other, each in force before the next.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn many(count: u32) -> anyhow::Result<Row> {
    let stage = Stage::set().await?;
    let changes = async {
        let mut memory = Vec::new();
        for round in 1..=count {
            let value = format!("round-{round}");
            stage.loopback.header(HEADER, &value).await?;
            stage.loopback.until_sets(HEADER, &value).await?;
            memory.push((f64::from(round), stage.sidecar.memory()? as f64));
        }
        anyhow::Ok(memory)
    };
    let (load, memory) = load::during(stage.loopback.load(RATE), changes).await?;
    load.check()?;
    stage.shows_what_is_documented().await?;
    // The first ones fill pools and caches.
    let memory = memory?.split_off(count as usize / 4);
    let growth = slope(&memory);
    let changes = memory.len() as f64;
    ensure!(growth * changes < ROOM, "memory grew by {:.1} KiB with each of {changes} changes", growth / KIBIBYTE);
    let reached = memory.last().map_or(0.0, |last| last.1) / KIBIBYTE / KIBIBYTE;
    let seen = format!(
        "{} requests, 0 failed; RSS of the sidecar {:+.2} KiB a change, {reached:.1} MiB at the end",
        load.sent,
        growth / KIBIBYTE
    );
    Ok(Row::new("policies change under load", format!("{count} changes"), seen))
}

/// Of the straight line that is nearest to all points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    over / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slope_is_that_of_the_line_through_the_points() {
        let points: Vec<_> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        assert!((slope(&points) - 3.0).abs() < 1e-9);
    }
}
