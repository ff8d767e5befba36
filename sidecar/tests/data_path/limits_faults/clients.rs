//! Clients that ask all pods at an even rate, and what they saw.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits_shared::{BURST, Pods, RATE},
    support::LONG,
};

/// To each pod.
const CONNECTIONS: usize = 4;

/// Asks until it is ended.
pub(super) struct Load {
    stop: CancellationToken,
    clients: Vec<JoinHandle<Vec<Answer>>>,
}

/// When it came, how long it took, and with which status.
#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Instant,
    took: Duration,
    status: u16,
}

/// All answers.
#[derive(Debug)]
pub(super) struct Answers {
    all: Vec<Answer>,
    begun: Instant,
}

impl Load {
    /// So many requests a second to all pods together, for the path that is told for each.
    pub(super) async fn start(pods: &Pods, rate: usize, path: fn(usize) -> String) -> Self {
        let stop = CancellationToken::new();
        let count = CONNECTIONS * pods.proxies.len();
        let mut clients = Vec::new();
        for number in 0..count {
            let mut client = pods.proxies[number % pods.proxies.len()].client().await;
            let (stop, mut due) = (stop.clone(), interval(Duration::from_secs(1) * count as u32 / rate as u32));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            clients.push(tokio::spawn(async move {
                let mut answers = Vec::new();
                while !stop.is_cancelled() {
                    due.tick().await;
                    let begun = Instant::now();
                    let path = path(answers.len() * count + number);
                    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
                    let status = client.response_within(LONG).await.status;
                    answers.push(Answer { at: Instant::now(), took: begun.elapsed(), status });
                }
                answers
            }));
        }
        Self { stop, clients }
    }

    /// All that came. Whoever got none has failed the test.
    pub(super) async fn end(self) -> Answers {
        self.stop.cancel();
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.await.unwrap());
        }
        let begun = all.iter().map(|answer| answer.at - answer.took).min().unwrap();
        Answers { all, begun }
    }
}

impl Answers {
    /// How many of each status.
    pub(super) fn statuses(&self) -> BTreeMap<u16, usize> {
        self.all.iter().fold(BTreeMap::new(), |mut counts, answer| {
            *counts.entry(answer.status).or_default() += 1;
            counts
        })
    }

    /// Nobody saw anything but answers of the application and denials of the limit.
    pub(super) fn are_no_errors(&self) {
        let statuses = self.statuses();
        assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    }

    pub(super) fn longest(&self) -> Duration {
        self.all.iter().map(|answer| answer.took).max().unwrap_or_default()
    }

    /// How many were admitted, and how many the limit allows in that time.
    pub(super) fn admitted(&self) -> (f64, f64) {
        self.admitted_from(self.begun, BURST)
    }

    /// The same from then on, of a bucket that held so many.
    pub(super) fn admitted_from(&self, from: Instant, held: u32) -> (f64, f64) {
        let admitted = self.all.iter().filter(|answer| answer.at >= from && answer.status == 200).count();
        let last = self.all.iter().map(|answer| answer.at).max().unwrap_or(from);
        (admitted as f64, f64::from(held) + f64::from(RATE) * last.saturating_duration_since(from).as_secs_f64())
    }
}

/// Percent of one in the other.
pub(super) fn percent((part, whole): (f64, f64)) -> f64 {
    100.0 * part / whole
}
