//! The application of the demonstration and the tests, and its client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use e2e::origin::load::Exchange;
use e2e::origin::{self, load};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "A small HTTP application that echoes, streams, dawdles and fails as its URL says")]
struct Arguments {
    /// Where to listen
    #[arg(long, env = "ORIGIN_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Told in answers
    #[arg(long, env = "ORIGIN_NAME", default_value = "origin")]
    name: String,
    /// Seconds that requests under way may take after the signal to end
    #[arg(long, env = "ORIGIN_GRACE", default_value_t = origin::GRACE.as_secs())]
    grace: u64,
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Greet each client before it has spoken, on the port of --listen
    Greet,
    /// Connect, say nothing, and print what the other side says and after how many milliseconds, as JSON
    Hear {
        /// `host:port`
        address: String,
    },
    /// Ask once and print status, fields and body as JSON
    Get {
        url: Uri,
        /// `name: value`, once for each
        #[arg(long = "header")]
        headers: Vec<String>,
    },
    /// Send numbered requests at a fixed rate and print what became of them as JSON
    Load {
        #[arg(long)]
        url: Uri,
        /// Requests a second
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Seconds
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        /// Seconds that one request may take
        #[arg(long, default_value_t = 10.0)]
        deadline: f64,
        /// `name: value`, once for each
        #[arg(long = "header")]
        headers: Vec<String>,
        /// HTTP/2 with prior knowledge
        #[arg(long)]
        http2: bool,
        /// POST bodies that take so many seconds, instead of GET
        #[arg(long)]
        upload: Option<f64>,
        /// Upgrade, and exchange messages for so many seconds, instead of GET
        #[arg(long, conflicts_with_all = ["upload", "http2"])]
        tunnel: Option<f64>,
        /// Number of the first request
        #[arg(long, default_value_t = 1)]
        first: u64,
    },
}

#[tokio::main(flavor = "current_thread")] // as the load needs it
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        None => serve(arguments.listen, &arguments.name, Duration::from_secs(arguments.grace)).await,
        Some(Action::Greet) => Ok(origin::greet::serve(arguments.listen).await?),
        Some(Action::Hear { address }) => {
            println!("{}", serde_json::to_string(&origin::greet::hear(&address).await?)?);
            Ok(())
        }
        Some(Action::Get { url, headers }) => {
            println!("{}", serde_json::to_string(&origin::get::get(&url, &parse_headers(&headers)?).await?)?);
            Ok(())
        }
        Some(Action::Load { url, rate, duration, deadline, headers, http2, upload, tunnel, first }) => {
            let (duration, deadline) = (Duration::try_from_secs_f64(duration)?, Duration::try_from_secs_f64(deadline)?);
            let headers = parse_headers(&headers)?;
            let exchange = match (upload, tunnel) {
                (Some(seconds), _) => Exchange::Upload(Duration::try_from_secs_f64(seconds)?),
                (_, Some(seconds)) => Exchange::Tunnel(Duration::try_from_secs_f64(seconds)?),
                (None, None) => Exchange::Get,
            };
            let report = load::run(load::Load { url, rate, duration, exchange, headers, deadline, http2, first }).await?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
    }
}

async fn serve(address: SocketAddr, name: &str, grace: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("could not listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let end = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(origin::serve_with(listener, name, grace, end).await?)
}

fn parse_headers(texts: &[String]) -> anyhow::Result<HeaderMap> {
    texts.iter().map(|text| parse_header(text)).collect()
}

fn parse_header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').with_context(|| format!("{text}: expected name: value"))?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}
