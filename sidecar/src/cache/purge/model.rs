//! Histories by chance: pods, an origin with versions, and a Redis that fails over, restarts, loses writes and steps its
//! clock, in virtual time. In each, no answer may break what a completed purge promised. Every broken rule must show.

mod checker;
mod plan;
mod pod;
mod redis;
pub(super) mod store;
mod world;

use self::{checker::Checker, plan::Broken, world::World};

/// Runs so many histories. `FETCHR_HISTORIES` asks for more.
fn histories() -> u64 {
    std::env::var("FETCHR_HISTORIES").ok().and_then(|number| number.parse().ok()).unwrap_or(150)
}

#[test]
fn no_history_breaks_the_promise() {
    let mut all = Checker::default();
    for seed in 0..histories() {
        let one = World::new(seed, None).run();
        if let Some(violation) = one.violation {
            panic!("history {seed}: {violation}\n{:#?}", World::new(seed, None).plan);
        }
        all.add(&one);
    }
    println!("{all:?}");
    // What never happens proves nothing.
    for (what, count) in [
        ("served", all.served),
        ("joined", all.joined),
        ("shared", all.shared),
        ("cut off", all.cut_off),
        ("completed", all.completed),
        ("quick", all.quick),
        ("ran out", all.ran_out),
        ("abandoned", all.abandoned),
        ("folded", all.folded as usize),
        ("eras", all.eras as usize - 1),
    ] {
        assert!(count > 0, "nothing {what}");
    }
}

#[test]
fn every_broken_rule_shows() {
    for broken in [
        Broken::BareCounter,
        Broken::LeaseFromAnswer,
        Broken::SilentIgnored,
        Broken::StampAtEnd,
        Broken::TermIgnored,
        Broken::LossIgnored,
        Broken::ImpatientPurger,
        Broken::AnyFillJoined,
        Broken::TwoPrimaries,
    ] {
        let seen = (0..20_000).find(|seed| World::new(*seed, Some(broken)).run().violation.is_some());
        println!("{broken:?}: {seen:?}");
        assert!(seen.is_some(), "{broken:?} goes unseen");
    }
}
