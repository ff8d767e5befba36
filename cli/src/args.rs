//! The command line: its grammar, shared groups of flags, and its second face as a kubectl plugin.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Command as Clap, CommandFactory, FromArgMatches, Parser, Subcommand, builder::FalseyValueParser};

use crate::{
    command::{cache, check, completion, explain, inject, limits, man, run, status, throttle, upgrade, validate, version},
    failure::Failure,
    output::{Color, Format},
};

/// Proxies beside pods: run one on this machine, check what policies say, look after an installation.
#[derive(Parser)]
#[command(
    name = "fetchr",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "\
Exit codes:
  0  done, and the answer is good
  1  done, and the answer is bad; or it failed
  2  wrong usage
  4  the cluster or the proxy can't be reached

Every flag can be set by the environment: --output by FETCHR_OUTPUT, and so on."
)]
pub(crate) struct Cli {
    /// When to use colour
    #[arg(
        long,
        global = true,
        env = "FETCHR_COLOR",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never",
        display_order = 1000
    )]
    pub(crate) color: Color,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One variant for each command; what it does is in the module of its name.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a proxy on this machine from documents, and reload them on change
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
    /// Let the program on disk take over from a proxy that runs on this machine, without losing a request
    #[command(after_help = upgrade::EXAMPLES)]
    Upgrade(upgrade::Args),
    /// Check documents without a cluster: every problem with file, line and field
    #[command(after_help = validate::EXAMPLES)]
    Validate(validate::Args),
    /// Tell which sections apply to a request, and why the others do not
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::Args),
    /// Work on the cache of a proxy on this machine, of a pod or of a workload
    #[command(after_help = cache::EXAMPLES)]
    Cache(cache::Args),
    /// Show who waits for upstreams, at a proxy on this machine, a pod or a workload
    #[command(after_help = throttle::EXAMPLES)]
    Throttle(throttle::Args),
    /// Work on what the limits of a proxy on this machine, of a pod or of a workload count
    #[command(after_help = limits::EXAMPLES)]
    Limits(limits::Args),
    /// Print workloads with the sidecar injected
    #[command(after_help = inject::EXAMPLES)]
    Inject(inject::Args),
    /// Find out what is wrong with a cluster or an installation, and what to do
    #[command(after_help = check::EXAMPLES)]
    Check(check::Args),
    /// Show proxies and the pods they have
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Show the versions of this program, the operator and the sidecars
    #[command(after_help = version::EXAMPLES)]
    Version(version::Args),
    /// Print a script that completes commands and flags in a shell
    #[command(after_help = completion::EXAMPLES)]
    Completion(completion::Args),
    /// Print the manual page, or write all of them to a folder
    #[command(after_help = man::EXAMPLES)]
    Man(man::Args),
}

/// Documents to read.
#[derive(Args, Clone, Debug)]
pub(crate) struct FileArgs {
    /// A file, a folder (its .yaml, .yml and .json files, sub-folders too), or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", env = "FETCHR_FILE", value_delimiter = ',', value_name = "FILE|DIR")]
    pub(crate) files: Vec<PathBuf>,
}

/// Which proxy of this machine.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Port of the admin interface, on loopback
    #[arg(long, env = "FETCHR_ADMIN_PORT", value_name = "PORT", default_value_t = 4620)]
    pub(crate) admin_port: u16,
    /// Folder for the admin token and the process id; without it a folder of the user's, one for each admin port
    #[arg(long, env = "FETCHR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// Where the proxy keeps its files.
    pub(crate) fn dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.state_dir {
            return Ok(dir.clone());
        }
        let base = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let base = base.or_else(|| env::home_dir().map(|home| home.join(".local/state")));
        base.map(|base| base.join(format!("fetchr/{}", self.admin_port)))
            .ok_or_else(|| Failure::new("there is no home folder to keep the admin token in").hint("give --state-dir DIR"))
    }
}

/// The shape of the answer.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FormatArgs {
    /// The shape of the answer; without it a table or sentences
    #[arg(short = 'o', long, env = "FETCHR_OUTPUT", value_enum, hide_possible_values = true, value_name = "json|yaml|wide")]
    pub(crate) output: Option<Format>,
}

/// Which cluster, as whom: kubectl's flags.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// The kubeconfig file; without it $KUBECONFIG, then ~/.kube/config, then the pod's service account
    #[arg(long, env = "FETCHR_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, env = "FETCHR_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The cluster of the kubeconfig
    #[arg(long, env = "FETCHR_CLUSTER", value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// The user of the kubeconfig
    #[arg(long, env = "FETCHR_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The user to act as
    #[arg(long = "as", env = "FETCHR_AS", value_name = "USER")]
    pub(crate) impersonate: Option<String>,
    /// A group to act as; may be repeated
    #[arg(long = "as-group", env = "FETCHR_AS_GROUP", value_delimiter = ',', value_name = "GROUP", requires = "impersonate")]
    pub(crate) impersonate_groups: Vec<String>,
    /// How long one call to the cluster may take, such as 10s
    #[arg(long, env = "FETCHR_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) request_timeout: Duration,
    /// The namespace; without it that of the context
    #[arg(short, long, env = "FETCHR_NAMESPACE", value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// The namespace of the operator; without it the one that the webhook points to, or else fetchr-system
    #[arg(long, env = "FETCHR_OPERATOR_NAMESPACE", value_name = "NAME")]
    pub(crate) operator_namespace: Option<String>,
}

/// Reads the switch of a flag: `FETCHR_STRICT=0` and `=false` mean no.
pub(crate) fn switch() -> FalseyValueParser {
    FalseyValueParser::new()
}

/// Reads a duration as documents spell it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<crds::scalar::Duration>().map(|duration| duration.0)
}

/// Reads a workload such as `Deployment/web`.
pub(crate) fn workload(text: &str) -> Result<(String, String), String> {
    let (kind, name) = text.split_once('/').ok_or("a workload is written as KIND/NAME, such as Deployment/web")?;
    Ok((kind.to_owned(), name.to_owned()))
}

/// The name that the program was started by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ProgramName {
    /// `fetchr`
    Fetchr,
    /// `kubectl-fetchr`, typed as `kubectl fetchr`
    KubectlPlugin,
}

impl ProgramName {
    /// By the first word of the process's command line.
    pub(crate) fn of_process() -> Self {
        let word = env::args_os().next().map(PathBuf::from);
        match word.as_ref().and_then(|path| path.file_stem()).and_then(|stem| stem.to_str()) {
            Some("kubectl-fetchr" | "kubectl_fetchr") => Self::KubectlPlugin,
            _ => Self::Fetchr,
        }
    }

    /// What a user types.
    pub(crate) fn typed(self) -> &'static str {
        match self {
            Self::Fetchr => "fetchr",
            Self::KubectlPlugin => "kubectl fetchr",
        }
    }
}

/// The grammar, with help that says what the user typed.
pub(crate) fn grammar(name: ProgramName) -> Clap {
    let mut grammar = adapt(Cli::command().bin_name(name.typed()), name);
    grammar.build();
    grammar
}

/// Reads a command line; on help and on a mistake it prints and ends the process, as clap does.
pub(crate) fn parse(name: ProgramName, words: impl IntoIterator<Item = OsString>) -> Cli {
    let mut grammar = adapt(Cli::command().bin_name(name.typed()), name);
    let matches = grammar.try_get_matches_from_mut(words).unwrap_or_else(|error| error.exit());
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut grammar).exit())
}

fn adapt(command: Clap, name: ProgramName) -> Clap {
    let examples = command.get_after_help().map(|text| text.to_string().replace("$ fetchr", &format!("$ {}", name.typed())));
    let command = match examples {
        Some(examples) => command.after_help(examples),
        None => command,
    };
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(|sub| adapt(sub, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_command(grammar: &Clap) -> Vec<&Clap> {
        let mut all = vec![grammar];
        all.extend(grammar.get_subcommands().flat_map(every_command));
        all
    }

    #[test]
    fn grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_can_be_set_by_the_environment() {
        for command in every_command(&Cli::command()) {
            for arg in
                command.get_arguments().filter(|arg| !arg.is_positional() && arg.get_id() != "version" && arg.get_id() != "help")
            {
                let env = arg.get_env().and_then(|env| env.to_str()).unwrap_or_default();
                assert!(env.starts_with("FETCHR_"), "{} --{} has no FETCHR_ variable", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("$ fetchr "), "{} has no example", command.get_name());
        }
    }

    #[test]
    fn plugin_help_says_what_the_user_typed() {
        let mut grammar = grammar(ProgramName::KubectlPlugin);
        let help = grammar.find_subcommand_mut("status").expect("status is a command").render_help().to_string();
        assert!(help.contains("Usage: kubectl fetchr status"), "{help}");
        assert!(help.contains("$ kubectl fetchr status"), "{help}");
    }
}
