//! What goes on while something fails, without a node: operators and a sidecar as processes, each fault with an API server of its
//! own. `make faults` does the same for longer, and measures.
#![allow(clippy::unwrap_used, reason = "a fault that can't be brought about has failed its test")]

use std::time::Duration;

use e2e::faults::{api, clock, killed, partition, reloads, skew};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test]
async fn api_server_that_goes_away_costs_no_request_and_its_return_brings_no_storm() {
    println!("{}", api::down(seconds(38)).await.unwrap());
}

/// Side by side, for most of it is waiting.
#[tokio::test]
async fn replicas_that_are_slow_killed_cut_off_or_wrong_about_the_time_cost_no_request_and_never_lead_together() {
    let all = tokio::try_join!(
        api::slow(seconds(5), seconds(25)),
        clock::wrong(seconds(10)),
        killed::operator(1),
        partition::cut(seconds(10)),
    );
    let (slow, clock, killed, cut) = all.unwrap();
    println!("{slow}\n{clock}\n{killed}\n{cut}");
}

#[tokio::test]
async fn change_after_change_costs_no_request_and_no_memory() {
    println!("{}", reloads::many(200).await.unwrap());
}

#[tokio::test]
async fn killed_worker_loses_only_what_was_under_way_and_refuses_no_connection() {
    // Other tests run beside this one; `make faults` is stricter.
    println!("{}", killed::sidecar(20, seconds(10)).await.unwrap());
}

#[tokio::test]
async fn sidecar_of_an_older_version_does_what_it_knows_beside_one_that_knows_all() {
    skew::old_beside_new().await.unwrap();
}
