//! Runs the program as a user would, in an environment without settings of whoever runs the tests.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The program under test.
pub(crate) const FETCHR: &str = env!("CARGO_BIN_EXE_fetchr");

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("the output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("the errors are UTF-8"),
        }
    }

    /// The output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The top folder of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// A command of the program, run from the top folder of the repository.
pub(crate) fn command(args: &[&str]) -> Command {
    program(&PathBuf::from(FETCHR), args)
}

/// The same by another path.
pub(crate) fn program(path: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(args).current_dir(repository()).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("FETCHR_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NO_COLOR").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

/// Runs it to its end.
pub(crate) fn fetchr(args: &[&str]) -> Said {
    run(&mut command(args))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Said {
    Said::of(command.output().expect("the program can be started"))
}

/// Runs a command with a text on its standard input.
pub(crate) fn run_with(command: &mut Command, stdin: &str) -> Said {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be started");
    let mut pipe = child.stdin.take().expect("standard input is a pipe");
    pipe.write_all(stdin.as_bytes()).expect("the program reads its standard input");
    drop(pipe);
    Said::of(child.wait_with_output().expect("the program ends"))
}
