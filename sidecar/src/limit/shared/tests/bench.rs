//! What a pass takes of the server, as it says itself: `cargo test --release -p fetchr-sidecar --lib limit::shared::tests::bench --
//! --ignored --nocapture`.

use std::time::Duration;

use redis::{Cmd, aio::MultiplexedConnection};

use super::play::bucket;
use crate::{
    limit::shared::{
        rule::{Charge, ChargeId, Fixed, Rule, Sliding, Slots, Treatment},
        script::{By, Scripts},
    },
    redis::server::Server,
};

const ROUNDS: usize = 20;
const CLIENTS: usize = 1000;

#[tokio::test]
#[ignore = "prints figures"]
async fn microseconds_of_a_pass() {
    let server = Server::start(&[]).await;
    let (mut connection, scripts) = (server.connect().await, Scripts::new());
    let minute = Duration::from_secs(60);
    let rules = [
        ("buckets", Rule::Bucket(bucket(1_000_000, 1, 1_000_000))),
        ("sliding windows", Rule::Sliding(Sliding::new(1_000_000, minute).unwrap())),
        ("windows of a calendar", Rule::Fixed(Fixed::new(1_000_000, 1, 1 << 52, 1 << 53).unwrap())),
        ("slots", Rule::Slots(Slots::new(1_000_000, minute).unwrap())),
        ("buckets that deny", Rule::Bucket(bucket(1, 86_400, 1))),
    ];
    for (name, rule) in rules {
        for limits in [1, 3, 10] {
            server.run(&["FLUSHALL"]).await;
            let command = |by, client| {
                let keys: Vec<String> = (0..limits).map(|limit| format!("fetchr:{{p}}:{limit}:{client}")).collect();
                let charge = |key| Charge { key, rule, treatment: Treatment::Enforce, cost: 1 };
                let charges: Vec<Charge<'_>> = keys.iter().map(|key| charge(key)).collect();
                scripts.pass(by, ChargeId::random(), &charges.iter().collect::<Vec<_>>())
            };
            run(&mut connection, &[command(By::Code, 0)]).await;
            server.run(&["CONFIG", "RESETSTAT"]).await;
            for _ in 0..ROUNDS {
                let commands: Vec<Cmd> = (0..CLIENTS).map(|client| command(By::Hash, client)).collect();
                run(&mut connection, &commands).await;
            }
            println!("{limits} {name}: {} us", of_a_call(&server.text(&["INFO", "commandstats"]).await));
        }
    }
}

pub(super) async fn run(connection: &mut MultiplexedConnection, commands: &[Cmd]) {
    let mut pipe = redis::pipe();
    commands.iter().for_each(|command| {
        pipe.add_command(command.clone()).ignore();
    });
    pipe.exec_async(connection).await.unwrap();
}

/// Of `cmdstat_evalsha:calls=...,usec=...,usec_per_call=...,...`.
pub(super) fn of_a_call(stats: &str) -> &str {
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    line.split(',').find_map(|field| field.strip_prefix("usec_per_call=")).unwrap()
}
