//! Sets a pod's redirect rules before its containers start, and removes them.

use std::process::ExitCode;

use clap::Parser;
use sidecar::init::{self, Backend, Error, Rules, Settings};

/// Redirects a pod's traffic to its fetchr sidecar
///
/// Sets the rules in the network namespace that it runs in, replacing those of an earlier run, and checks what the kernel
/// then holds. Needs the capability NET_ADMIN, and NET_RAW where the kernel has no nftables.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// Who holds the rules
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Remove the rules instead
    #[arg(long)]
    cleanup: bool,
    /// Show the rules and set nothing
    #[arg(long, conflicts_with = "cleanup")]
    print: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(message) => {
            println!("{}", message.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fetchr-init: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<String, Error> {
    if cli.cleanup {
        init::cleanup().await?;
        return Ok("fetchr-init: no traffic is redirected any more".to_owned());
    }
    let rules = Rules::new(&cli.settings);
    if cli.print {
        return Ok(init::print(&rules, cli.backend));
    }
    let backend = init::set(&rules, cli.backend).await?;
    let count = rules.inbound.len() + rules.outbound.len();
    Ok(format!("fetchr-init: {} ({count} rules set and checked by {backend})", summary(&cli.settings)))
}

fn summary(settings: &Settings) -> String {
    let list = |ports: &mut dyn Iterator<Item = u16>| match ports.map(|port| port.to_string()).collect::<Vec<_>>() {
        ports if ports.is_empty() => "none".to_owned(),
        ports => ports.join(","),
    };
    let inbound = list(&mut settings.intercepted_inbound().into_iter());
    let outbound = list(&mut settings.outbound_ports.0.iter().copied());
    format!("inbound ports {inbound} go to {}, outbound ports {outbound} to {}", settings.inbound_port, settings.outbound_port)
}
