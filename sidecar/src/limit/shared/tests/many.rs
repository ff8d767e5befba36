//! Many keys: `cargo test -p fetchr-sidecar --lib limit::shared::tests::many -- --ignored --nocapture` for a million.

use std::time::{Duration, Instant as Began};

use tokio::time::sleep;

use super::{
    bench::{of_a_call, run},
    play::bucket,
};
use crate::{
    limit::shared::{
        rule::{Charge, ChargeId, Rule, Treatment},
        script::{By, Scripts},
    },
    redis::server::Server,
};

/// Keys that are charged by one pipeline.
const BATCH: usize = 1000;

/// As a limit names them.
fn name(client: usize) -> String {
    format!("fetchr:shop:{{limit:shop/api:deployment/web}}:all/each:{client:032x}")
}

/// So many keys, each of which has nothing to say any more after so long.
async fn many(keys: usize, lasts: Duration) {
    let (server, scripts) = (Server::start(&[]).await, Scripts::new());
    let mut connection = server.connect().await;
    let rule = Rule::Bucket(bucket(1, lasts.as_secs(), 1));
    let charge = |by, client: usize| {
        let key = name(client);
        scripts.pass(by, ChargeId::random(), &[&Charge { key: &key, rule, treatment: Treatment::Enforce, cost: 1 }])
    };
    run(&mut connection, &[charge(By::Code, 0)]).await;
    let (before, mut times) = (number(&server, "memory", "used_memory:").await, Vec::new());
    for first in (0..keys).step_by(BATCH) {
        let commands: Vec<_> = (first..first + BATCH).map(|client| charge(By::Hash, client)).collect();
        server.run(&["CONFIG", "RESETSTAT"]).await;
        run(&mut connection, &commands).await;
        times.push(of_a_call(&server.text(&["INFO", "commandstats"]).await).parse::<f64>().unwrap());
    }
    let written = Began::now();
    let bytes = (number(&server, "memory", "used_memory:").await - before) / keys as f64;
    let keyspace = server.text(&["INFO", "keyspace"]).await;
    assert!(keyspace.contains(&format!("keys={keys},expires={keys},")), "each has a time to live: {keyspace}");
    let tenth = times.len() / 10;
    let (first, last) = (median(&mut times[..tenth.max(1)]), median(&mut times.clone()[times.len() - tenth.max(1)..]));
    // What a machine that others use too makes of some microseconds.
    assert!(last < 2.0 * first + 20.0, "a pass took {first} us, and then {last} us");
    assert!(bytes < 400.0, "{bytes} bytes a key");
    let deadline = Began::now() + 2 * lasts + Duration::from_secs(60);
    while !server.text(&["INFO", "keyspace"]).await.trim().eq("# Keyspace") {
        assert!(Began::now() < deadline, "all expire");
        sleep(Duration::from_millis(50)).await;
    }
    let gone = written.elapsed().as_secs_f64();
    println!(
        "{keys} keys: {bytes:.0} bytes each; a pass {first:.0} us, and {last:.0} us of the last tenth; gone after {gone:.0} s"
    );
}

/// Of a line of what the server says of itself.
async fn number(server: &Server, section: &str, field: &str) -> f64 {
    let info = server.text(&["INFO", section]).await;
    info.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().parse().unwrap()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[tokio::test]
async fn each_of_many_keys_expires_and_none_makes_others_slower() {
    many(10_000, Duration::from_secs(3)).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn a_million_keys() {
    many(1_000_000, Duration::from_secs(150)).await;
}
