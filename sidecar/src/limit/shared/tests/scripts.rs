//! The scripts do what the models say, and the models what limits promise, whatever clients and clocks do.

use redis::{Cmd, Value, aio::MultiplexedConnection};

use super::{
    play::{Play, Weather},
    world::{Asked, Owned, Said},
};
use crate::{
    limit::shared::{
        rule::{Charge, Micros},
        script::{self, By, Scripts},
    },
    redis::server::Server,
};

/// Redis whose time is the test's, and where nothing expires.
struct Real {
    connection: MultiplexedConnection,
    scripts: Scripts,
}

impl Real {
    async fn new(server: &Server) -> Self {
        let edited = |code: &str| {
            let (timeless, lasting) = ("redis.call('LRANGE', 'now', 0, 1)", "local SLACK = 3600000");
            assert_eq!((code.matches("redis.call('TIME')").count(), code.matches("local SLACK = 1000").count()), (1, 1));
            code.replace("redis.call('TIME')", timeless).replace("local SLACK = 1000", lasting)
        };
        Self { connection: server.connect().await, scripts: Scripts::of(edited) }
    }

    async fn set_time(&mut self, now: Micros) {
        let mut pipe = redis::pipe();
        pipe.atomic().del("now").rpush("now", &[now / 1_000_000, now % 1_000_000][..]);
        pipe.exec_async(&mut self.connection).await.unwrap();
    }

    async fn ask(&mut self, asked: &Asked) -> Said {
        match asked {
            Asked::Pass { id, charges } => {
                let borrowed: Vec<Charge<'_>> = charges.iter().map(Owned::borrow).collect();
                let value = self.run(self.scripts.pass(By::Code, *id, &borrowed.iter().collect::<Vec<_>>())).await;
                Said::Pass(script::answer(&value, charges.len()).unwrap().0)
            }
            Asked::Refund { id, charged } => self.done(self.scripts.refund(By::Code, *id, charged)).await,
            Asked::Lease { key, rule, exchange } => {
                let value = self.run(self.scripts.lease(By::Code, key, rule, exchange)).await;
                Said::Leased(script::exchanged(&value).unwrap())
            }
            Asked::Renew { key, rule, ids } => self.done(self.scripts.renew(By::Code, key, rule, ids)).await,
            Asked::Release { key, id } => {
                let mut command = redis::cmd("ZREM");
                command.arg(format!("{key}:s")).arg(id.to_string());
                self.done(command).await
            }
        }
    }

    async fn done(&mut self, command: Cmd) -> Said {
        match self.run(command).await {
            Value::Int(number) => Said::Done(number.try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    async fn run(&mut self, command: Cmd) -> Value {
        command.query_async(&mut self.connection).await.unwrap()
    }
}

#[tokio::test]
async fn the_scripts_do_what_the_models_say() {
    let server = Server::start(&[]).await;
    let mut real = Real::new(&server).await;
    for seed in 0..30 {
        server.run(&["FLUSHALL"]).await;
        let weather = if seed % 3 == 0 { Weather::Calm } else { Weather::Steps };
        let mut play = Play::new(seed, weather);
        let mut world = play.world();
        for step in 0..200 {
            play.step();
            world.now = play.now;
            real.set_time(play.now).await;
            let (client, asked) = play.next();
            let (modelled, said) = (world.ask(&asked), real.ask(&asked).await);
            assert_eq!(said, modelled, "seed {seed}, step {step}: {asked:?}");
            play.hear(client, &asked, &said);
        }
        play.check();
    }
}

#[test]
fn never_more_than_burst_and_rate_whatever_the_clock_does() {
    for (seed, weather) in (0..400).zip([Weather::Calm, Weather::Steps].into_iter().cycle()) {
        run(seed, weather).check();
    }
}

#[test]
fn windows_and_quotas_are_kept() {
    for seed in 0..200 {
        let play = run(seed, Weather::Calm);
        assert!(play.most_in("{t}fixed", 0, 10_000_000) <= 6, "seed {seed}");
        assert!(play.most_in("{t}sliding", 0, 2_000_000) <= 5, "seed {seed}");
    }
}

/// By the models alone.
fn run(seed: u64, weather: Weather) -> Play {
    let mut play = Play::new(seed, weather);
    let mut world = play.world();
    for _ in 0..300 {
        play.step();
        world.now = play.now;
        let (client, asked) = play.next();
        let said = world.ask(&asked);
        play.hear(client, &asked, &said);
    }
    play
}
