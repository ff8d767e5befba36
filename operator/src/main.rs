//! `fetchr-operator`: arguments and the runtime, nothing else.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kube::{Client, Config};
use operator::{
    cleanup,
    run::Operator,
    settings::{LogFormat, LogSettings, Settings},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Gives memory back after a burst of streams; glibc's allocator would keep it in its arenas.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The operator of fetchr.
#[derive(Debug, Parser)]
#[command(name = "fetchr-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogSettings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves until SIGTERM.
    Run(Box<Settings>),
    /// Removes what the operator made at run time: the chart's pre-delete hook.
    Cleanup(cleanup::Settings),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = log_to_stderr(&arguments.log) {
        eprintln!("error: {error:#}");
        return ExitCode::from(2);
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        unreachable!("nobody else installs a provider before main");
    }
    match execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "The operator ends.");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(settings: &LogSettings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log_level)
        .with_context(|| format!("--log-level {} is neither a level nor filter directives", settings.log_level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text => lines.init(),
    }
    Ok(())
}

#[tokio::main]
async fn execute(command: Command) -> anyhow::Result<()> {
    let config = Config::infer().await.context("no way to the API server: neither a service account nor a kubeconfig")?;
    match command {
        Command::Run(settings) => {
            let operator = Operator::bind(config, *settings)?;
            let stop = CancellationToken::new();
            tokio::spawn(cancel_on_signal(stop.clone()));
            Ok(operator.run(stop).await?)
        }
        Command::Cleanup(settings) => Ok(cleanup::run(Client::try_from(config)?, &settings).await?),
    }
}

/// Cancels on SIGTERM and on Ctrl-C.
async fn cancel_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        error!("Could not listen for signals; SIGKILL is the only way to end this process.");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}
