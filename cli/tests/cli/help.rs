//! Help, completion, manual pages, colours, usage errors.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::support::{FETCHR, command, fetchr, program, run};

const COMMANDS: [&str; 12] =
    ["run", "upgrade", "validate", "explain", "cache", "limits", "inject", "check", "status", "version", "completion", "man"];

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let said = fetchr(&["--help"]);
    assert_eq!(said.code, 0);
    for name in COMMANDS {
        assert!(said.stdout.contains(&format!("\n  {name} ")), "{name} is missing in {}", said.stdout);
    }
    assert!(said.stdout.contains("4  the cluster or the proxy can't be reached"), "{}", said.stdout);
}

#[test]
fn kubectl_plugin_says_what_the_user_typed() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-fetchr");
    symlink(FETCHR, &plugin).unwrap();
    let said = run(&mut program(&plugin, &["validate", "--help"]));
    assert!(said.stdout.contains("Usage: kubectl fetchr validate"), "{}", said.stdout);
    assert!(said.stdout.contains("$ kubectl fetchr validate -f examples/local/"), "{}", said.stdout);
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [&["frobnicate"] as &[&str], &["status", "--nope"], &[], &["validate"], &["version", "-o", "xml"]] {
        let said = fetchr(args);
        assert_eq!(said.code, 2, "{args:?}: {said:?}");
        assert!(!said.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn completion_is_a_script_that_the_shell_accepts() {
    for (shell, check) in [("bash", "bash"), ("zsh", ""), ("fish", ""), ("elvish", ""), ("powershell", "")] {
        let said = fetchr(&["completion", shell]);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.stdout.contains("validate"), "{shell} does not complete commands");
        if !check.is_empty() {
            let accepted = Command::new(check).args(["-n", "-c", &said.stdout]).status().unwrap();
            assert!(accepted.success(), "{shell} does not accept its script");
        }
    }
}

#[test]
fn manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man1");
    assert_eq!(fetchr(&["man", "--dir", dir.to_str().unwrap()]).code, 0);
    for name in COMMANDS {
        let page = fs::read_to_string(dir.join(format!("fetchr-{name}.1"))).unwrap();
        assert!(page.contains(&format!("fetchr {name}")) || page.contains(&format!("fetchr\\-{name}")), "{page}");
    }
    let main = fetchr(&["man"]).stdout;
    assert_eq!(main, fs::read_to_string(dir.join("fetchr.1")).unwrap());
    assert!(main.starts_with(".ie") || main.contains(".TH FETCHR 1"), "{main}");
}

#[test]
fn no_color_and_pipes_get_no_colours_and_always_means_always() {
    let colours = |mut command: Command| run(&mut command).stdout.contains('\x1b');
    let always = ["validate", "-f", "examples/local/", "--color", "always"];
    assert!(colours(command(&always)));
    assert!(!colours(command(&always[..3])), "a pipe is no terminal");
    let mut on_terminal = terminal("validate -f examples/local/");
    assert!(run(&mut on_terminal).stdout.contains('\x1b'), "a terminal shows colours");
    let mut refused = terminal("validate -f examples/local/");
    refused.env("NO_COLOR", "1");
    assert!(!run(&mut refused).stdout.contains('\x1b'), "NO_COLOR is respected");
}

/// Runs the program on a terminal of its own.
fn terminal(args: &str) -> Command {
    let mut script = program("script".as_ref(), &["--quiet", "--return", "--command"]);
    script.args([&format!("{FETCHR} {args}"), "/dev/null"]).env("TERM", "xterm");
    script
}

#[test]
fn flags_are_read_from_the_environment_and_the_command_line_wins() {
    let version = |args: &[&str]| run(command(args).env("FETCHR_CLIENT", "1").env("FETCHR_OUTPUT", "json"));
    assert_eq!(version(&["version"]).json()["client"], env!("CARGO_PKG_VERSION"));
    assert!(version(&["version", "-o", "yaml"]).stdout.starts_with("client: "));
    let off = run(command(&["version"]).env("FETCHR_CLIENT", "false"));
    assert_eq!(off.code, 4, "false means no, and there is no cluster: {off:?}");
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let mut shell = program("bash".as_ref(), &["-c", &format!("set -o pipefail; {FETCHR} man | true")]);
    assert_eq!(run(&mut shell).code, 0);
}

#[test]
fn cluster_that_is_not_there_ends_with_4_and_says_what_to_do() {
    let said = fetchr(&["status", "--kubeconfig", "/nonexistent/config"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.stderr.starts_with("error: no cluster to ask"), "{}", said.stderr);
    assert!(said.stderr.contains("\n  /nonexistent/config\n"), "{}", said.stderr);
    assert!(said.stderr.contains("--kubeconfig FILE"), "{}", said.stderr);
}
