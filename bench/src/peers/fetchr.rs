//! fetchr with policies.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{ORIGIN, Plan, Ports, certificate, local, words};

pub(crate) const PORTS: Ports = Ports(18010);
/// Where the measured fetchr serves its health.
pub(crate) const METRICS: SocketAddr = local(18021);
pub(crate) const ADMIN: u16 = 18020;

/// Rules of one policy, at most.
const RULES: usize = 64;

pub(super) fn command(plan: &Plan<'_>, ports: Ports) -> Result<Option<Vec<String>>> {
    let documents = documents(plan.folder, ports, plan.workers, "127.0.0.1", &rules(plan.rules))?;
    let mut command = run(plan.binaries, &documents);
    command.extend(words(&["--admin-port", &ADMIN.to_string(), "--metrics-port", &METRICS.port().to_string()]));
    Ok(Some(command))
}

/// The command line of `fetchr run` with documents, without its own ports.
pub(crate) fn run(binaries: &Path, documents: &Path) -> Vec<String> {
    words(&[&binaries.join("fetchr").display().to_string(), "run", "-f", &documents.display().to_string()])
}

/// So many rules, as YAML. The last one matches everything and sets a header, the others wait for paths that nobody asks for.
pub(crate) fn rules(count: usize) -> Vec<String> {
    let waiting = (1..count).map(|rule| {
        format!(
            "  - name: path-{rule}\n    matches: [{{path: {{type: Prefix, value: /path/{rule}}}}}]\n    timeouts: {{request: {}s}}\n",
            rule % 60 + 1
        )
    });
    waiting.chain([rule("headers: {response: {set: [{name: x-bench, value: fetchr}]}}")]).collect()
}

/// A rule that matches everything, with these fields.
pub(crate) fn rule(fields: &str) -> String {
    format!("  - name: all\n    {fields}\n")
}

/// Writes a proxy with a listener for each way to speak, and rules in as many policies as they need. `host` is the origin's.
pub(crate) fn documents(folder: &Path, ports: Ports, workers: usize, host: &str, rules: &[String]) -> Result<PathBuf> {
    documents_with(folder, ports, &format!("  workers: {workers}\n"), host, rules)
}

/// The same with these lines in the specification of the proxy.
pub(crate) fn documents_with(folder: &Path, ports: Ports, spec: &str, host: &str, rules: &[String]) -> Result<PathBuf> {
    let documents = folder.join(format!("documents-{}", ports.0));
    fs::create_dir_all(&documents)?;
    let pem = certificate(folder)?;
    let listener = |name: &str, port: u16, more: &str| {
        format!("    - {{name: {name}, port: {port}, upstream: \"http://{host}:{ORIGIN}\"{more}}}\n")
    };
    let tls = format!(", tls: {{certificates: [{{certificateFile: {pem}, keyFile: {pem}}}]}}");
    let mut text = format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: bench}}\nspec:\n{spec}  drain: {{delay: 0s}}\n  \
         interception:\n    mode: Explicit\n    listeners:\n{}{}{}",
        listener("web", ports.0, ""),
        listener("http2", ports.http2(), ""),
        listener("tls", ports.tls(), &tls)
    );
    for (number, rules) in rules.chunks(RULES).enumerate() {
        write!(
            text,
            "---\napiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: bench-{number}}}\n\
             spec:\n  targetRefs: [{{kind: FetchrProxy, name: bench}}]\n  rules:\n{}",
            rules.concat()
        )?;
    }
    fs::write(documents.join("bench.yaml"), text)?;
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousand_rules_need_sixteen_policies() {
        let folder = tempfile::tempdir().unwrap();
        let documents = documents(folder.path(), PORTS, 1, "127.0.0.1", &rules(1000)).unwrap();
        let text = fs::read_to_string(documents.join("bench.yaml")).unwrap();
        assert_eq!((text.matches("kind: FetchrPolicy\n").count(), text.matches("- name: ").count()), (16, 1000));
        assert!(text.ends_with(&rule("headers: {response: {set: [{name: x-bench, value: fetchr}]}}")));
    }
}
