//! The sidecar. Its flags are also environment variables, for admission writes them into the pod.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use crds::{
    plan::ObjectRef,
    proxy::{LogFormat, LogLevel, OnNoConfig},
    scalar,
};
use sidecar::{
    DiskPlace, admin,
    run::{Configuration, Options, Pod, init_logging, run},
    server::Interception,
    supervisor::{Link, Role, Settings, supervise},
};
use wire::{env, speaker::Speakers};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The HTTP proxy beside a pod.
#[derive(Parser)]
#[command(name = "fetchr-proxy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the pod until a signal ends it.
    Run(Box<Run>),
    /// Drain inbound traffic of the sidecar that runs here, and return when that is over.
    Drain(Drain),
    /// Print the version.
    Version,
}

/// Where the sidecar keeps its files, and where it is asked.
#[derive(Args)]
struct Place {
    /// Folder that survives a restart of the container.
    #[arg(long, env = env::STATE_DIR, default_value = "/var/lib/fetchr")]
    state_dir: PathBuf,
    /// Port of the admin interface.
    #[arg(long, env = env::ADMIN_PORT, default_value_t = 4620)]
    admin_port: u16,
}

#[derive(Args)]
struct Drain {
    #[command(flatten)]
    place: Place,
    /// How long connections are still accepted.
    #[arg(long, env = env::DRAIN_DELAY, default_value = "5s")]
    drain_delay: scalar::Duration,
    /// How long requests under way may take after that.
    #[arg(long, env = env::DRAIN_TIMEOUT, default_value = "30s")]
    drain_timeout: scalar::Duration,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// Namespace of the pod.
    #[arg(long, env = env::POD_NAMESPACE)]
    pod_namespace: String,
    /// Name of the pod.
    #[arg(long, env = env::POD_NAME)]
    pod_name: String,
    /// UID of the pod.
    #[arg(long, env = env::POD_UID)]
    pod_uid: String,
    /// Addresses of the pod.
    #[arg(long, env = env::POD_IPS, value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// `namespace/name` of the FetchrProxy.
    #[arg(long, env = env::PROXY, value_parser = object)]
    proxy: ObjectRef,
    /// `Kind/name` of the pod's workload.
    #[arg(long, env = env::WORKLOAD, value_parser = pair)]
    workload: Option<(String, String)>,
    /// `host:port` of the operator's config streams.
    #[arg(long, env = env::OPERATOR)]
    operator: String,
    /// File of the projected service-account token.
    #[arg(long, env = env::TOKEN_FILE, default_value = "/var/run/secrets/fetchr.sh/token")]
    token_file: PathBuf,
    /// PEM bundle of the operator's CA.
    #[arg(long, env = env::CA_BUNDLE, default_value = "", hide_env_values = true)]
    ca_bundle: String,
    /// Ed25519 public keys that may sign cold-start plans, base64.
    #[arg(long, env = env::PLAN_KEYS, value_delimiter = ',')]
    plan_keys: Vec<String>,
    /// Folder where the ConfigMap `fetchr-plan` is mounted.
    #[arg(long, env = env::PLAN_DIR)]
    plan_dir: Option<PathBuf>,
    /// Folder where the Secrets that listeners name are mounted, one folder each.
    #[arg(long, env = env::SECRETS_DIR)]
    secrets_dir: Option<PathBuf>,
    /// Folder of the volume for answers that are kept on disk.
    #[arg(long, env = env::CACHE_DIR)]
    cache_dir: Option<PathBuf>,
    /// Bytes of answers for which that volume has room.
    #[arg(long, env = env::CACHE_LIMIT, default_value = "0")]
    cache_limit: scalar::Size,
    /// Who redirects traffic to the sidecar.
    #[arg(long, env = env::INTERCEPT, value_enum, default_value_t = Intercept::Init, ignore_case = true)]
    intercept: Intercept,
    /// How long to wait for the first configuration.
    #[arg(long, env = env::CONFIG_TIMEOUT, default_value = "10s")]
    config_timeout: scalar::Duration,
    /// What happens without one.
    #[arg(long, env = env::ON_NO_CONFIG, value_enum, default_value_t = NoConfig::PassThrough, ignore_case = true)]
    on_no_config: NoConfig,
    /// How long connections are still accepted after readiness is gone.
    #[arg(long, env = env::DRAIN_DELAY, default_value = "5s")]
    drain_delay: scalar::Duration,
    /// How long requests under way may take after that.
    #[arg(long, env = env::DRAIN_TIMEOUT, default_value = "30s")]
    drain_timeout: scalar::Duration,
    /// Threads that serve requests.
    #[arg(long, env = env::WORKERS)]
    workers: Option<usize>,
    /// Least severe level that is logged until the configuration says another.
    #[arg(long, env = env::LOG_LEVEL, value_enum, default_value_t = Level::Info, ignore_case = true)]
    log_level: Level,
    /// Shape of a log line.
    #[arg(long, env = env::LOG_FORMAT, value_enum, default_value_t = Format::Json, ignore_case = true)]
    log_format: Format,
    /// Port of metrics, health and rewritten probes.
    #[arg(long, env = env::METRICS_PORT, default_value_t = 4621)]
    metrics_port: u16,
    /// Port of intercepted inbound traffic.
    #[arg(long, env = env::INBOUND_PORT, default_value_t = 4610)]
    inbound_port: u16,
    /// Port of intercepted outbound traffic.
    #[arg(long, env = env::OUTBOUND_PORT, default_value_t = 4611)]
    outbound_port: u16,
    /// Who speaks first on ports of the application, by their names: 3306=server,8080=client.
    #[arg(long, env = env::PORT_SPEAKERS, default_value = "")]
    port_speakers: Speakers,
    /// JSON of the probes that were rewritten.
    #[arg(long, env = env::PROBES, default_value = "")]
    probes: String,
    /// Serve in this process, for debugging: when it ends, nothing starts it again.
    #[arg(long, env = env::NO_SUPERVISOR, value_parser = FalseyValueParser::new())]
    no_supervisor: bool,
}

/// Spells the values of an enum as the resources do.
macro_rules! spelled {
    ($name:ident -> $target:ident { $($value:ident),* }) => {
        #[derive(Clone, Copy, ValueEnum)]
        #[value(rename_all = "PascalCase")]
        enum $name { $($value),* }

        impl From<$name> for $target {
            fn from(value: $name) -> Self {
                match value { $($name::$value => Self::$value),* }
            }
        }
    };
}

spelled!(NoConfig -> OnNoConfig { PassThrough, Block });
spelled!(Level -> LogLevel { Error, Warn, Info, Debug, Trace });
spelled!(Format -> LogFormat { Json, Text });

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Intercept {
    Init,
    Explicit,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(flags) => serve(*flags),
        Command::Drain(flags) => drain(&flags).map(|()| ExitCode::SUCCESS),
        Command::Version => {
            println!("fetchr-proxy {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fetchr-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves, or keeps a process that does.
fn serve(flags: Run) -> anyhow::Result<ExitCode> {
    let mut link = Link::of_process()?;
    if link.is_none() && !flags.no_supervisor {
        let (log_level, log_format) = (flags.log_level.into(), flags.log_format.into());
        let settings = Settings { log_level, log_format, upgradable: false, state_dir: None };
        match supervise(settings).context("the supervisor could not go on")? {
            Role::Ended(code) => return Ok(code.into()),
            Role::Worker(worker) => link = Some(worker),
        }
    }
    run(options(flags), link).map(|()| ExitCode::SUCCESS)
}

fn options(flags: Run) -> Options {
    let set_level = init_logging(flags.log_level.into(), flags.log_format.into());
    let ports = Interception { inbound: flags.inbound_port, outbound: flags.outbound_port };
    let pod = Pod {
        namespace: flags.pod_namespace,
        name: flags.pod_name,
        uid: flags.pod_uid,
        ips: flags.pod_ips,
        proxy: flags.proxy,
        workload: flags.workload,
        operator: flags.operator,
        token_file: flags.token_file,
        ca_bundle: flags.ca_bundle,
        plan_keys: flags.plan_keys,
        plan_dir: flags.plan_dir,
        secrets_dir: flags.secrets_dir,
        disk: DiskPlace { dir: flags.cache_dir, most: Some(flags.cache_limit.0) },
        interception: (flags.intercept == Intercept::Init).then_some(ports),
        config_timeout: flags.config_timeout.0,
        on_no_config: flags.on_no_config.into(),
        drain_delay: flags.drain_delay.0,
        drain_timeout: flags.drain_timeout.0,
        speakers: flags.port_speakers,
        probes: flags.probes,
    };
    Options {
        configuration: Configuration::Pod(Box::new(pod)),
        workers: flags.workers,
        admin_port: flags.place.admin_port,
        metrics_port: Some(flags.metrics_port),
        state_dir: flags.place.state_dir,
        set_level,
    }
}

/// How much longer than the drain itself its answer may take.
const SLACK: Duration = Duration::from_secs(10);

/// How long to wait for a sidecar that is just starting again.
const AGAIN: Duration = Duration::from_millis(50);

/// Asks the sidecar that runs here to drain, and waits for its answer. One that dies meanwhile goes on with the drain when it is
/// back, so it is asked again.
fn drain(flags: &Drain) -> anyhow::Result<()> {
    let deadline = Instant::now() + flags.drain_delay.0 + flags.drain_timeout.0 + SLACK;
    let mut asked = false;
    loop {
        match ask_to_drain(flags, deadline, &mut asked) {
            Ok(answer) => {
                println!("{answer}");
                return Ok(());
            }
            Err(Failed::Lost(_)) if asked && Instant::now() + AGAIN < deadline => thread::sleep(AGAIN),
            Err(Failed::Lost(error) | Failed::Refused(error)) => return Err(error),
        }
    }
}

/// Why there is no answer.
enum Failed {
    /// Nobody answers, or not to the end.
    Lost(anyhow::Error),
    /// The answer is no, or will not come.
    Refused(anyhow::Error),
}

/// `asked` is set once a sidecar has been there.
fn ask_to_drain(flags: &Drain, deadline: Instant, asked: &mut bool) -> Result<String, Failed> {
    // Read again each time: a container that was started again has another.
    let token = read_token(&flags.place.state_dir).map_err(Failed::Refused)?;
    let address = admin::admin_address(flags.place.admin_port);
    let none = || format!("no sidecar answers on its admin port {address}");
    let mut stream = TcpStream::connect(address).with_context(none).map_err(Failed::Lost)?;
    *asked = true;
    let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN);
    let request = format!(
        "POST /drain HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    let mut exchange = || {
        stream.set_read_timeout(Some(left))?;
        stream.write_all(request.as_bytes())?;
        (&stream).take(64 << 10).read_to_string(&mut answer)
    };
    match exchange() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Failed::Refused(anyhow!("the sidecar did not answer in time")));
        }
        Err(error) => return Err(Failed::Lost(anyhow!(error).context("the sidecar did not answer to the end"))),
        Ok(_) => {}
    }
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(Failed::Lost(anyhow!("the sidecar did not answer to the end")));
    };
    let (status, body) = (head.split(' ').nth(1).unwrap_or_default(), body.trim());
    match status {
        "200" => Ok(body.to_owned()),
        _ => Err(Failed::Refused(anyhow!("the sidecar answered {status}: {body}"))),
    }
}

fn read_token(state_dir: &Path) -> anyhow::Result<String> {
    let file = state_dir.join("admin-token");
    fs::read_to_string(&file).with_context(|| format!("could not read the admin token {}", file.display()))
}

fn object(text: &str) -> Result<ObjectRef, String> {
    pair(text).map(|(namespace, name)| ObjectRef::new(namespace, name))
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((first, second)) if !first.is_empty() && !second.is_empty() => Ok((first.to_owned(), second.to_owned())),
        _ => Err(format!("{text:?} is not two names with a / between them")),
    }
}
