//! `fetchr cache warm`: asks a proxy for URLs, so that it has their answers when others ask.

mod client;
mod outcome;
mod urls;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use futures::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Mutex,
    time::{Interval, MissedTickBehavior, interval},
};

use self::{
    client::Client,
    outcome::{Outcome, Tally},
};
use super::{
    admin::{Target, look_up},
    progress,
};
use crate::{
    args::{FormatArgs, StateArgs, duration},
    command::block_on,
    failure::{Exit, Failure},
    output::{self, Color, Table, size},
    request::field,
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # two pages
  $ fetchr cache warm http://localhost:8080/ http://localhost:8080/products
  # a list, one URL a line, at most 50 a second
  $ fetchr cache warm -f urls.txt --rate 50
  # what another proxy had, fetched anew
  $ fetchr cache warm -f answers.fxc --concurrency 16
  # one variant
  $ fetchr cache warm -f urls.txt -H 'accept-language: de'

The requests go to the proxy's own listener, with the host of the URL. It ends with 1 if any of them failed.";

/// Failures that are told one by one.
const TOLD: usize = 10;

/// The flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// URLs, as clients ask for them
    #[arg(required_unless_present = "file", value_name = "URL")]
    urls: Vec<String>,
    /// A file with one URL a line, or a file of answers (.fxc); - for standard input
    #[arg(short = 'f', long, env = "FETCHR_FILE", value_name = "FILE")]
    file: Option<PathBuf>,
    /// A header field as `name: value`; may be repeated
    #[arg(short = 'H', long = "header", env = "FETCHR_HEADER", value_delimiter = '\n', value_name = "NAME: VALUE", value_parser = field)]
    headers: Vec<(String, String)>,
    /// Requests at a time
    #[arg(
        long,
        env = "FETCHR_CONCURRENCY",
        value_name = "NUMBER",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    concurrency: u16,
    /// Requests a second, at most
    #[arg(long, env = "FETCHR_RATE", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// How long one answer may take, such as 10s
    #[arg(long, env = "FETCHR_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Name of the proxy's listener; without it, the first one in clear for requests to the application
    #[arg(long, env = "FETCHR_LISTENER", value_name = "NAME")]
    listener: Option<String>,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Asks for all of them.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let urls = urls::read(&args.urls, args.file.as_deref())?;
    let listener = listener(args)?;
    let tally = block_on(async { Ok(ask(args, &listener, urls).await) })?;
    output::print(args.format.output, &tally, |_| text(&tally, color))?;
    for failure in tally.failures.iter().take(TOLD) {
        eprintln!("{} {}: {}", color.stderr().bad("failed:"), failure.url, failure.why);
    }
    if tally.failures.len() > TOLD {
        eprintln!("and {} others", tally.failures.len() - TOLD);
    }
    Ok(if tally.failures.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Where the proxy listens.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    /// A forward proxy, which is asked for whole URLs.
    forward: bool,
}

/// What the proxy says of its listeners.
#[derive(Debug, Deserialize)]
struct Config {
    plan: Plan,
}

#[derive(Debug, Default, Deserialize)]
struct Plan {
    settings: crds::proxy::FetchrProxySpec,
}

fn listener(args: &Args) -> Result<Listener, Failure> {
    let config: Config = look_up(&args.state, &Target::new("/config"))?;
    let all = config.plan.settings.interception.listeners;
    let names = || all.iter().map(|listener| listener.name.as_str()).collect::<Vec<_>>().join(", ");
    let is_named = |listener: &&crds::proxy::Listener| match &args.listener {
        Some(name) => listener.name == *name,
        None => listener.tls.is_none() && listener.upstream.is_some(),
    };
    let found = all.iter().find(is_named).ok_or_else(|| match &args.listener {
        Some(name) => Failure::usage(format!("the proxy has no listener {name}")).hint(format!("it has {}", names())),
        None => Failure::new("the proxy has no listener in clear before an upstream").hint("name one with --listener"),
    })?;
    if found.tls.is_some() {
        return Err(Failure::usage(format!("listener {} speaks TLS, which this command doesn't", found.name)));
    }
    let wrong = || Failure::new(format!("listener {} has no address that can be asked", found.name));
    let ip: std::net::IpAddr = found.address.parse().map_err(|_| wrong())?;
    // Where it listens on all addresses, it does so on loopback.
    let ip = match ip {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let port = u16::try_from(found.port).ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    Ok(Listener { address: SocketAddr::new(ip, port), forward: found.upstream.is_none() })
}

async fn ask(args: &Args, listener: &Listener, urls: Vec<http::Uri>) -> Tally {
    let bar = progress::count(urls.len() as u64);
    let pace = args.rate.map(|rate| Mutex::new(paced(rate)));
    let urls = Mutex::new(urls.into_iter());
    let worker = async || {
        let (mut client, mut tally) = (Client::new(listener, &args.headers, args.timeout), Tally::default());
        loop {
            // Let go before anything is waited for.
            let next = urls.lock().await.next();
            let Some(url) = next else { return tally };
            if let Some(pace) = &pace {
                pace.lock().await.tick().await;
            }
            tally.add(&url, client.ask(&url).await);
            bar.inc(1);
        }
    };
    let workers = stream::iter(0..args.concurrency).map(|_| worker()).buffer_unordered(args.concurrency.into());
    let tally = workers.fold(Tally::default(), async |sum, tally| sum.and(tally)).await;
    bar.finish_and_clear();
    tally
}

fn paced(rate: u32) -> Interval {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

fn text(tally: &Tally, color: Color) -> String {
    if tally.results.is_empty() {
        return "There were no URLs.\n".to_owned();
    }
    let mut table = Table::new(&["RESULT", "REQUESTS", "BYTES"]);
    for (outcome, sum) in &tally.results {
        let name = outcome.to_string();
        let name = if *outcome == Outcome::Failed { color.stdout().bad(name) } else { name };
        table.row(vec![name, sum.requests.to_string(), size(sum.bytes)]);
    }
    table.to_string()
}

impl Serialize for Tally {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            result: String,
            #[serde(flatten)]
            sum: &'a outcome::Sum,
        }
        #[derive(Serialize)]
        struct Shown<'a> {
            results: Vec<Row<'a>>,
            failures: &'a [outcome::Failed],
        }
        let results = self.results.iter().map(|(outcome, sum)| Row { result: outcome.to_string(), sum }).collect();
        Shown { results, failures: &self.failures }.serialize(serializer)
    }
}
