//! Clients of ten proxies: requests are due by the clock, whether or not answers come.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::pods::COUNT;
use crate::idle::answer_len;

/// Requests in a second, over all proxies.
pub(super) const OFFERED: f64 = 1000.0;
/// Connections to each proxy.
const CONNECTIONS: usize = 4;
const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nHost: bench\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that has nothing to send waits until it looks again.
const PAUSE: f64 = 0.01;

/// How requests come to the proxies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    Even,
    /// Nine tenths to one of them.
    Uneven,
    /// To five for a third of the time, then to ten, then to the other five.
    Moving,
}

/// What one request got.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// When it was due, from the begin of the load.
    pub(super) due: Duration,
    /// From when it was due to its answer's end.
    pub(super) latency: Duration,
    pub(super) status: u16,
}

impl Load {
    /// Requests in a second to a proxy, after this part of the time.
    fn of(self, pod: usize, part: f64) -> f64 {
        let among = |first: usize, last: usize| if (first..last).contains(&pod) { OFFERED / (last - first) as f64 } else { 0.0 };
        match self {
            Self::Even => among(0, COUNT),
            Self::Uneven if pod == 0 => 0.9 * OFFERED,
            Self::Uneven => 0.1 * OFFERED / (COUNT - 1) as f64,
            Self::Moving if part < 1.0 / 3.0 => among(0, COUNT / 2),
            Self::Moving if part < 2.0 / 3.0 => among(0, COUNT),
            Self::Moving => among(COUNT / 2, COUNT),
        }
    }

    /// Sends it for so long. All answers, of no order.
    pub(super) fn send(self, addresses: &[SocketAddr], time: Duration) -> Result<Vec<Answer>> {
        let begun = Instant::now();
        thread::scope(|scope| {
            let of_pod = |(pod, address): (usize, &SocketAddr)| {
                let address = *address;
                (0..CONNECTIONS).map(move |client| (pod, address, client))
            };
            let clients = addresses.iter().enumerate().flat_map(of_pod);
            let sending: Vec<_> = clients
                .map(|(pod, address, client)| scope.spawn(move || self.client(address, pod, client, begun, time)))
                .collect();
            let mut answers = Vec::new();
            for client in sending {
                let Ok(of_client) = client.join() else { bail!("a client panicked") };
                answers.extend(of_client?);
            }
            Ok(answers)
        })
    }

    fn client(self, address: SocketAddr, pod: usize, client: usize, begun: Instant, time: Duration) -> Result<Vec<Answer>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // All clients out of step.
        let mut due = (client * COUNT + pod) as f64 / OFFERED / 4.0;
        let mut answers = Vec::new();
        while due < time.as_secs_f64() {
            let rate = self.of(pod, due / time.as_secs_f64()) / CONNECTIONS as f64;
            if rate == 0.0 {
                due += PAUSE;
                continue;
            }
            let at = Duration::from_secs_f64(due);
            thread::sleep(at.saturating_sub(begun.elapsed()));
            stream.write_all(REQUEST)?;
            let status = answer(&mut stream)?;
            answers.push(Answer { due: at, latency: begun.elapsed() - at, status });
            due += 1.0 / rate;
        }
        Ok(answers)
    }
}

/// Reads an answer; its status.
fn answer(stream: &mut TcpStream) -> Result<u16> {
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while answer_len(&answer).is_none_or(|len| answer.len() < len) {
        match stream.read(&mut piece)? {
            0 => bail!("a connection was closed"),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| anyhow::anyhow!("this is no answer: {:?}", String::from_utf8_lossy(&answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_loads_are_of_the_same_rate_at_any_time() {
        for load in [Load::Even, Load::Uneven, Load::Moving] {
            for part in [0.0, 0.2, 0.4, 0.6, 0.8, 0.99] {
                let all: f64 = (0..COUNT).map(|pod| load.of(pod, part)).sum();
                assert!((all - OFFERED).abs() < 1e-6, "{load:?} at {part}: {all}");
            }
        }
    }
}
