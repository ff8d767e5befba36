//! What a history is made of: how many pods, which faults, which rule is broken.

use std::time::Duration;

use fastrand::Rng;

use super::{
    super::{CutOff, Rules},
    store::Bounds,
};

/// Virtual time, in microseconds.
pub(super) type Instant = u64;

pub(super) const MILLI: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;
/// A lease; short, so that histories are.
pub(super) const LAG: u64 = 2 * SECOND;

/// A rule that is broken on purpose, to see that the checker sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Broken {
    /// Places are counted, without generations.
    BareCounter,
    /// A lease counts from the answer.
    LeaseFromAnswer,
    /// Who can't be reached isn't waited for.
    SilentIgnored,
    /// An object carries the place at the end of its fetch.
    StampAtEnd,
    /// The list of members is taken for complete, whatever its term.
    TermIgnored,
    /// A purge isn't looked for in another generation.
    LossIgnored,
    /// The purger waits for half a lease.
    ImpatientPurger,
    /// A fill is joined whenever it began.
    AnyFillJoined,
    /// Two primaries, and no replicas are asked for.
    TwoPrimaries,
}

/// A fault, and when it begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// Messages of a pod are lost.
    Partition { pod: usize, until: Instant },
    /// Messages of a pod take long, and then are lost.
    Stall { pod: usize, until: Instant },
    /// A pod dies and is replaced by another process.
    RestartPod { pod: usize },
    /// A pod leaves, and another comes.
    Leave { pod: usize },
    /// A pod's messages take that much longer.
    Slow { pod: usize, until: Instant },
    /// The replica stops hearing of writes.
    Unreplicated { until: Instant },
    /// The replica takes over; the primary is dead, or with `two` goes on for the pods of a mask.
    Failover { down: Instant, two: Option<(u8, Instant)> },
    /// Redis starts again with what it had so long ago, or nothing.
    Restart { back: Instant, down: Instant },
    /// FLUSHALL.
    Flush,
    /// The log alone is evicted.
    LoseLog,
    /// The list alone is evicted.
    LoseList,
    /// The server's clock steps.
    Step { by: i64 },
    /// What pods share of objects is as it was a while ago.
    OldObjects,
}

/// One history's setting.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub pods: usize,
    pub rules: Rules,
    pub broken: Option<Broken>,
    pub faults: Vec<(Instant, Fault)>,
    /// When faults are over.
    pub calm: Instant,
    pub end: Instant,
    pub bounds: Bounds,
    pub capacity: usize,
}

impl Plan {
    pub(super) fn random(rng: &mut Rng, broken: Option<Broken>) -> Self {
        let pods = rng.usize(2..=4);
        let replicas = if broken == Some(Broken::TwoPrimaries) { 0 } else { rng.u32(0..=1) };
        let cut_off = if rng.u8(0..4) == 0 { CutOff::Serve } else { CutOff::Revalidate };
        let rules = Rules { lag: Duration::from_micros(LAG), cut_off, replicas };
        let calm = rng.u64(8..20) * SECOND;
        let two = broken == Some(Broken::TwoPrimaries) || replicas > 0;
        let mut faults: Vec<_> = (0..rng.usize(0..12)).map(|_| (rng.u64(0..calm), fault(rng, pods, two))).collect();
        faults.sort_by_key(|(at, _)| *at);
        // Either so short that everything is trimmed, paged and folded, or as long as it takes for nothing to be.
        let small = rng.bool();
        let bounds = Bounds {
            page: if small { 2 } else { 100 },
            silence: if rng.bool() { LAG * 3 } else { LAG * 6 },
            records: if small { 4 } else { 1000 },
            kept: if small { 3 * SECOND } else { 3600 * SECOND },
        };
        Self { pods, rules, broken, faults, calm, end: calm + 4 * LAG, bounds, capacity: if rng.bool() { 3 } else { 1000 } }
    }
}

fn fault(rng: &mut Rng, pods: usize, two: bool) -> Fault {
    let pod = rng.usize(0..pods);
    // Shorter and longer than a lease.
    let mut span = || rng.u64(100 * MILLI..5 * SECOND);
    let (until, down) = (span(), span() / 4);
    match rng.u8(0..20) {
        0..4 => Fault::Partition { pod, until },
        4..6 => Fault::RestartPod { pod },
        6 => Fault::Leave { pod },
        7 => Fault::Slow { pod, until },
        8 => Fault::Stall { pod, until },
        9 => Fault::Unreplicated { until },
        10..13 => {
            let two = (two && rng.bool()).then(|| (rng.u8(..), rng.u64(100 * MILLI..6 * SECOND)));
            Fault::Failover { down: if two.is_some() { 0 } else { down }, two }
        }
        13 => Fault::Restart { back: if rng.bool() { rng.u64(0..SECOND) } else { u64::MAX }, down },
        14 => Fault::Flush,
        15 => Fault::LoseLog,
        16 => Fault::LoseList,
        17 | 18 => {
            let by = if rng.bool() { 3_600 * SECOND as i64 } else { rng.i64(0..20 * SECOND as i64) };
            Fault::Step { by: if rng.bool() { by } else { -by } }
        }
        _ => Fault::OldObjects,
    }
}
