//! The requests of a simulation: a steady load, or those of a log.

use std::{
    fs::File,
    io::{BufRead, BufReader, Lines},
    net::Ipv4Addr,
    path::PathBuf,
    time::Duration,
};

use crds::policy::Direction;
use sidecar::{
    ask::ExplainRequest,
    limit::simulate::{LogLine, now},
};

use crate::{args::duration, failure::Failure, request::field};

/// Requests at most: some minutes' work.
const MOST: u64 = 100_000_000;

/// Which requests.
#[derive(clap::Args)]
pub(super) struct LoadArgs {
    /// How many requests in how much time, such as 1000/s or 30/1m
    #[arg(long, env = "FETCHR_RATE", value_name = "NUMBER/TIME", default_value = "100/s", value_parser = rate, conflicts_with = "log")]
    rate: Rate,
    /// Clients that send them in turn, each with an address of its own
    #[arg(long, env = "FETCHR_CLIENTS", value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "log")]
    clients: u32,
    /// For how long
    #[arg(long = "for", env = "FETCHR_FOR", value_name = "DURATION", default_value = "60s", value_parser = duration, conflicts_with = "log")]
    length: Duration,
    /// What they ask for; {client} stands for the number of the client
    #[arg(long, env = "FETCHR_URL", value_name = "URL", default_value = "http://localhost/", conflicts_with = "log")]
    url: String,
    /// Their method
    #[arg(long, env = "FETCHR_METHOD", value_name = "METHOD", default_value = "GET", conflicts_with = "log")]
    method: String,
    /// A header field as `name: value`, likewise; may be repeated
    #[arg(short = 'H', long = "header", env = "FETCHR_HEADER", value_delimiter = '\n', value_name = "NAME: VALUE", value_parser = field, conflicts_with = "log")]
    headers: Vec<(String, String)>,
    /// A log of requests instead, JSON line by line
    #[arg(long, env = "FETCHR_LOG", value_name = "FILE")]
    log: Option<PathBuf>,
}

/// Requests in a time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    requests: u32,
    per: Duration,
}

/// Requests, with the time of each since the epoch of Unix.
pub(super) enum Load {
    Steady(Steady),
    Log(Log),
}

/// A steady load.
pub(super) struct Steady {
    request: ExplainRequest,
    start: Duration,
    rate: Rate,
    clients: u32,
    next: u64,
    end: u64,
}

/// The lines of a log.
pub(super) struct Log {
    lines: Lines<BufReader<File>>,
    file: PathBuf,
    number: u64,
    direction: Direction,
}

impl LoadArgs {
    /// Makes ready what is asked for.
    pub(super) fn load(&self, direction: Direction) -> Result<Load, Failure> {
        let Self { rate, clients, length, url, method, headers, log } = self;
        if let Some(file) = log {
            let opened = File::open(file).map_err(|e| Failure::new(e.to_string()).at(file.display()))?;
            return Ok(Load::Log(Log { lines: BufReader::new(opened).lines(), file: file.clone(), number: 0, direction }));
        }
        let requests = length.as_nanos() * u128::from(rate.requests) / rate.per.as_nanos().max(1);
        let end = u64::try_from(requests).ok().filter(|end| *end <= MOST);
        let end = end.ok_or_else(|| Failure::usage(format!("{requests} requests are more than {MOST}")))?;
        let headers = headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let (url, method) = (url.clone(), method.to_ascii_uppercase());
        let request = ExplainRequest { direction, method, url, headers, client: Ipv4Addr::LOCALHOST.into() };
        // From a full minute on, so that windows of the calendar lie where one expects them.
        let start = Duration::from_secs(now().as_secs() / 60 * 60);
        Ok(Load::Steady(Steady { request, start, rate: *rate, clients: *clients, next: 0, end }))
    }
}

impl Iterator for Load {
    type Item = Result<(Duration, ExplainRequest), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Steady(steady) => steady.next().map(Ok),
            Self::Log(log) => log.next(),
        }
    }
}

impl Iterator for Steady {
    type Item = (Duration, ExplainRequest);

    fn next(&mut self) -> Option<Self::Item> {
        let number = self.next;
        if number >= self.end {
            return None;
        }
        self.next += 1;
        let client = u32::try_from(number % u64::from(self.clients)).unwrap_or_default();
        let since = u128::from(number) * self.rate.per.as_nanos() / u128::from(self.rate.requests);
        let since = Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX));
        let numbered = |text: &str| text.replace("{client}", &client.to_string());
        let mut request = self.request.clone();
        request.url = numbered(&request.url);
        request.headers.values_mut().for_each(|value| *value = numbered(value));
        request.client = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)).saturating_add(client)).into();
        Some((self.start.saturating_add(since), request))
    }
}

impl Iterator for Log {
    type Item = Result<(Duration, ExplainRequest), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.lines.next()?;
            self.number += 1;
            if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
                continue;
            }
            let read = line.map_err(|e| e.to_string()).and_then(|line| LogLine::parse(&line));
            let read = read.and_then(|line| Ok((line.time().ok_or("time: it is out of bounds")?, line.request(self.direction))));
            return Some(read.map_err(|why| Failure::new(why).at(format!("{}:{}", self.file.display(), self.number))));
        }
    }
}

/// Reads `1000/s` or `30/1m`.
fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("{text:?} is not like 1000/s or 30/1m");
    let (requests, per) = text.split_once('/').ok_or_else(wrong)?;
    let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
    let rate = Rate { requests: requests.parse().map_err(|_| wrong())?, per: duration(&per).map_err(|_| wrong())? };
    if rate.requests == 0 || rate.per.is_zero() { Err(wrong()) } else { Ok(rate) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let seconds = Duration::from_secs;
        assert_eq!(rate("1000/s"), Ok(Rate { requests: 1000, per: seconds(1) }));
        assert_eq!(rate("30/1m"), Ok(Rate { requests: 30, per: seconds(60) }));
        for wrong in ["1000", "0/s", "a/s", "1/", "1/0s", "-1/s", "1/fortnight"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn clients_send_in_turn_at_even_times() {
        let request = ExplainRequest {
            headers: [("x-user".to_owned(), "u{client}".to_owned())].into(),
            ..ExplainRequest::to("http://a/{client}")
        };
        let rate = Rate { requests: 4, per: Duration::from_secs(1) };
        let all: Vec<_> = Steady { request, start: Duration::ZERO, rate, clients: 3, next: 0, end: 4 }.collect();
        let times: Vec<_> = all.iter().map(|(time, _)| time.as_millis()).collect();
        assert_eq!(times, [0, 250, 500, 750]);
        let urls: Vec<_> = all.iter().map(|(_, request)| request.url.as_str()).collect();
        assert_eq!(urls, ["http://a/0", "http://a/1", "http://a/2", "http://a/0"]);
        assert_eq!((all[2].1.client.to_string(), all[2].1.headers["x-user"].as_str()), ("10.0.0.3".to_owned(), "u2"));
    }
}
