//! `fetchr run`: the proxy on this machine. The data plane is the sidecar's; here are its flags, and what a person wants to know first.

mod banner;
mod ports;

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use clap::ValueEnum;
use crds::{
    FetchrProxy,
    document::Documents,
    plan::{Identity, ObjectRef},
    proxy::{InterceptionMode, LogFormat, LogLevel},
};
use sidecar::{
    run::{Configuration, Options, init_logging, run},
    source::file::Files,
    supervisor::{Link, Role, Settings, supervise},
};

use self::{banner::Banner, ports::Port};
use crate::{
    args::{FileArgs, StateArgs, switch, workload},
    documents,
    failure::{Exit, Failure},
    output::Color,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # 127.0.0.1:8080 -> 127.0.0.1:9000, with a header, a limit and a time limit
  $ fetchr run -f examples/local/
  # other ports, so that several run side by side
  $ PROXY_PORT=8081 fetchr run -f examples/local/ --admin-port 4720 --metrics-port 4721
  # as the pods of a workload would see it
  $ fetchr run -f deploy/ --proxy web --workload Deployment/web --service web

Files are read again when they change; a bad change is refused with file, line and field, and what was in force stays.
SIGTERM or Ctrl-C drains and ends, a second one ends at once. `fetchr upgrade` lets a newer program take over.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
    /// The FetchrProxy to run, as NAME or NAMESPACE/NAME, if the documents have several
    #[arg(long, env = "FETCHR_PROXY", value_name = "NAME")]
    proxy: Option<String>,
    /// The workload that the proxy stands for, such as Deployment/web: its policies hold
    #[arg(long, env = "FETCHR_WORKLOAD", value_name = "KIND/NAME", value_parser = workload)]
    workload: Option<(String, String)>,
    /// A Service that the proxy stands behind: its policies hold; may be repeated
    #[arg(long = "service", env = "FETCHR_SERVICE", value_delimiter = ',', value_name = "NAME")]
    services: Vec<String>,
    /// How many proxies share a Redis with these documents, this one too: each has so much of a limit while Redis is gone
    #[arg(long, env = "FETCHR_PROXIES", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    proxies: u32,
    #[command(flatten)]
    state: StateArgs,
    /// Port of /metrics, /livez and /readyz, instead of the FetchrProxy's telemetry.metricsPort
    #[arg(long, env = "FETCHR_METRICS_PORT", value_name = "PORT")]
    metrics_port: Option<u16>,
    /// Threads that serve requests, instead of the FetchrProxy's workers
    #[arg(long, env = "FETCHR_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// The least severe level that is logged until the FetchrProxy says another
    #[arg(
        long,
        env = "FETCHR_LOG_LEVEL",
        value_enum,
        ignore_case = true,
        default_value = "info",
        hide_possible_values = true,
        value_name = "error|warn|info|debug|trace"
    )]
    log_level: Level,
    /// The shape of log lines; without it text on a terminal, else JSON
    #[arg(
        long,
        env = "FETCHR_LOG_FORMAT",
        value_enum,
        ignore_case = true,
        hide_possible_values = true,
        value_name = "json|text"
    )]
    log_format: Option<Shape>,
    /// Serve in this process, for debugging: when it ends, nothing starts it again
    #[arg(long, env = "FETCHR_NO_SUPERVISOR", value_parser = switch())]
    no_supervisor: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Shape {
    Json,
    Text,
}

/// Reads, says what will listen where, and runs until a signal ends it.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let terminal = io::stderr().is_terminal();
    let shape = args.log_format.unwrap_or(if terminal { Shape::Text } else { Shape::Json });
    let mut link = Link::of_process().map_err(|e| Failure::new(e.to_string()))?;
    if link.is_none() && !args.no_supervisor {
        let (log_level, log_format) = (level(args.log_level), format(shape));
        let settings = Settings { log_level, log_format, upgradable: true, state_dir: Some(args.state.dir()?) };
        match supervise(settings).map_err(|e| Failure::new(format!("the supervisor could not go on: {e}")))? {
            Role::Ended(code) => return Ok(Exit::Code(code)),
            Role::Worker(worker) => link = Some(worker),
        }
    }
    serve(args, color, shape, terminal, link)
}

fn serve(args: &Args, color: Color, shape: Shape, terminal: bool, link: Option<Link>) -> Result<Exit, Failure> {
    if args.files.files.iter().any(|file| file == Path::new("-")) {
        return Err(
            Failure::usage("documents from standard input can't be read again when they change").hint("write them to a file")
        );
    }
    let documents = documents::read_valid(&args.files, color.stderr())?;
    let proxy = choose(&documents, args.proxy.as_deref())?;
    // A worker that is not the first finds the ports open, and whoever started it has seen the banner.
    let again = link.as_ref().is_some_and(Link::again);
    if !again {
        ports::check(&ports(args, proxy))?;
    }
    let set_level = init_logging(level(args.log_level), format(shape));
    if !again {
        let banner = Banner::new(&documents, proxy, &identity(args), args.state.admin_port, args.metrics_port);
        banner.show(terminal, color.stderr());
    }
    let options = Options {
        configuration: Configuration::Files(Files {
            paths: documents::paths(&args.files),
            proxy: Some(reference(proxy)),
            identity: identity(args),
        }),
        workers: args.workers.map(usize::from),
        admin_port: args.state.admin_port,
        metrics_port: args.metrics_port,
        state_dir: args.state.dir()?,
        set_level,
    };
    run(options, link).map_err(|e| Failure::new(format!("the proxy could not run: {e:#}")))?;
    Ok(Exit::Ok)
}

/// The proxy that was asked for, or the only one; it must listen by itself.
fn choose<'a>(documents: &'a Documents, wanted: Option<&str>) -> Result<&'a FetchrProxy, Failure> {
    let matches = |proxy: &FetchrProxy| {
        let reference = reference(proxy);
        wanted.is_none_or(|wanted| wanted == reference.name || wanted == reference.to_string())
    };
    let names =
        |proxies: &[&FetchrProxy]| proxies.iter().map(|proxy| reference(proxy).to_string()).collect::<Vec<_>>().join(", ");
    let found: Vec<&FetchrProxy> = documents.proxies.iter().filter(|proxy| matches(proxy)).collect();
    let proxy = match (&found[..], wanted) {
        ([only], _) => *only,
        ([], Some(wanted)) => {
            let all: Vec<_> = documents.proxies.iter().collect();
            return Err(Failure::new(format!("there is no FetchrProxy {wanted} in the documents"))
                .hint(format!("there is: {}", names(&all))));
        }
        ([], None) => {
            return Err(Failure::new("there are policies in the documents, and no FetchrProxy to run")
                .hint("add one with interception.mode Explicit; examples/local/fetchrproxy.yaml is one"));
        }
        (several, _) => {
            return Err(Failure::usage("the documents have several FetchrProxies")
                .at(names(several))
                .hint("choose one by --proxy"));
        }
    };
    if proxy.spec.interception.mode != InterceptionMode::Explicit {
        return Err(Failure::new(format!("FetchrProxy {} intercepts the traffic of a pod, and here is none", reference(proxy))).hint(
            "on this machine a proxy listens where it is told to:\n  interception:\n    mode: Explicit\n    listeners:\n    - {name: web, port: 8080, upstream: \"http://127.0.0.1:9000\"}",
        ));
    }
    Ok(proxy)
}

fn reference(proxy: &FetchrProxy) -> ObjectRef {
    let metadata = &proxy.metadata;
    ObjectRef::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn identity(args: &Args) -> Identity {
    let (workload_kind, workload_name) = args.workload.clone().unwrap_or_default();
    Identity { workload_kind, workload_name, services: args.services.clone(), live_pods: args.proxies, ..Identity::default() }
}

/// Every port that will be opened, and how each can be changed.
fn ports(args: &Args, proxy: &FetchrProxy) -> Vec<Port> {
    let metrics = args.metrics_port.or_else(|| u16::try_from(proxy.spec.telemetry.metrics_port).ok()).unwrap_or_default();
    let mut ports = vec![
        Port::new("127.0.0.1", args.state.admin_port, "the admin interface", "--admin-port or FETCHR_ADMIN_PORT"),
        Port::new("127.0.0.1", metrics, "metrics", "--metrics-port or FETCHR_METRICS_PORT"),
    ];
    ports.extend(proxy.spec.interception.listeners.iter().enumerate().map(|(index, listener)| {
        let port = u16::try_from(listener.port).unwrap_or_default();
        let field = format!("spec.interception.listeners[{index}].port of the FetchrProxy");
        Port::new(&listener.address, port, format!("listener {}", listener.name), field)
    }));
    ports
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::Error => LogLevel::Error,
        Level::Warn => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}

fn format(shape: Shape) -> LogFormat {
    match shape {
        Shape::Json => LogFormat::Json,
        Shape::Text => LogFormat::Text,
    }
}
