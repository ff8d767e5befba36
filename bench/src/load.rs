//! The load generators: wrk for HTTP/1, h2load for HTTP/2. Each is pinned to the core of the load.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::peers::LOAD_CORE;

/// What one run of a generator measured.
pub(crate) struct Load {
    /// Requests that were answered.
    pub(crate) requests: f64,
    /// Requests a second.
    pub(crate) rate: f64,
    /// Median latency in microseconds; NaN where the generator does not say.
    pub(crate) p50: f64,
    /// Latency that 99 of 100 requests do not exceed, likewise.
    pub(crate) p99: f64,
}

/// Runs wrk with one thread. All answers must be of class 2xx.
pub(crate) fn wrk(url: &str, connections: u32, seconds: u32, more: &[String]) -> Result<Load> {
    let (connections, seconds) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let text = output(
        Command::new("taskset")
            .args(["-c", &LOAD_CORE.to_string(), "wrk", "-t1", "--latency"])
            .args([connections, seconds])
            .args(more)
            .arg(url),
    )?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("not every request was answered with 2xx:\n{text}");
    }
    of_wrk(&text).with_context(|| format!("wrk said something unexpected:\n{text}"))
}

/// Runs h2load on one connection with so many streams.
pub(crate) fn h2load(url: &str, streams: u32, seconds: u32) -> Result<Load> {
    let (streams, seconds) = (format!("-m{streams}"), format!("-D{seconds}"));
    let text = output(
        Command::new("taskset").args(["-c", &LOAD_CORE.to_string(), "h2load", "-t1", "-c1"]).args([&streams, &seconds, url]),
    )?;
    of_h2load(&text)
        .with_context(|| format!("h2load said something unexpected, or not every request was answered with 2xx:\n{text}"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().context("could not run taskset")?;
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} failed (`apt-get install wrk nghttp2-client` brings the generators):\n{text}{error}");
    }
    Ok(text.into_owned())
}

fn of_wrk(text: &str) -> Option<Load> {
    let line = |has: &str| text.lines().find(|line| line.contains(has));
    Some(Load {
        requests: word(line("requests in")?, 0)?.parse().ok()?,
        rate: word(line("Requests/sec:")?, 1)?.parse().ok()?,
        p50: micros(word(line(" 50%")?, 1)?)?,
        p99: micros(word(line(" 99%")?, 1)?)?,
    })
}

/// `requests: 900 total, 1000 started, 900 done, 900 succeeded, 0 failed, 0 errored, 0 timeout`
fn of_h2load(text: &str) -> Option<Load> {
    let line = |starts: &str| text.lines().find(|line| line.starts_with(starts));
    let requests = line("requests: ")?;
    let number = |what: &str| -> Option<f64> {
        let part = requests.split([',', ':']).find(|part| part.trim().ends_with(what))?;
        word(part, 0)?.parse().ok()
    };
    let (done, succeeded) = (number("done")?, number("succeeded")?);
    let rate = line("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok()?;
    (done == succeeded && done > 0.0).then_some(Load { requests: done, rate, p50: f64::NAN, p99: f64::NAN })
}

fn word(line: &str, index: usize) -> Option<&str> {
    line.split_whitespace().nth(index)
}

/// `1.25ms` as microseconds.
fn micros(text: &str) -> Option<f64> {
    let (number, factor) =
        [("us", 1.0), ("ms", 1e3), ("s", 1e6)].into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_read() {
        let text = "  Latency Distribution\n     50%  640.00us\n     75%    0.9ms\n     99%    1.50ms\n  409600 requests in 4.00s, 1MB read\nRequests/sec: 102400.25\n";
        let load = of_wrk(text).expect("this is what wrk prints");
        assert_eq!((load.requests, load.rate, load.p50, load.p99), (409_600.0, 102_400.25, 640.0, 1500.0));
    }

    #[test]
    fn h2load_output_is_read_and_failures_are_none() {
        let text = |succeeded: u32| {
            format!(
                "finished in 2.00s, 5000.50 req/s, 1.2MB/s\nrequests: 10001 total, 10101 started, 10001 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout\n"
            )
        };
        let load = of_h2load(&text(10001)).expect("this is what h2load prints");
        assert_eq!((load.requests, load.rate), (10001.0, 5000.5));
        assert!(of_h2load(&text(10000)).is_none());
    }
}
