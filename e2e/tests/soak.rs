//! Mixed load with a ledger of every exchange, for a short time. `make soak` does the same for long.
#![allow(clippy::unwrap_used, reason = "a soak that can't be set up has failed its test")]

use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exchange_is_lost_doubled_or_mixed_up_and_nothing_is_left() {
    let report = e2e::soak::run(Duration::from_secs(20)).await.unwrap();
    println!("{}", report.tables());
    assert!(report.exchanges() > 500, "{} exchanges are no load", report.exchanges());
}
