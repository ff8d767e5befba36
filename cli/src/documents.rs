//! Documents named by `-f`: read, checked, and compared with each other.

use std::{
    env,
    path::{Path, PathBuf},
};

use crds::{
    document::{DocumentError, Documents, Origin, load},
    plan::{Compiled, Inputs, ObjectRef, compile},
};
use serde::Serialize;

use crate::{args::FileArgs, failure::Failure, output::Paint};

/// Reads the documents; variables come from the environment.
pub(crate) fn read(files: &FileArgs) -> Result<Documents, Vec<DocumentError>> {
    load(&paths(files), &|name| env::var(name).ok())
}

/// Reads the documents for a command that can't do anything with broken ones.
pub(crate) fn read_valid(files: &FileArgs, paint: Paint) -> Result<Documents, Failure> {
    if files.files.is_empty() {
        return Err(none_given());
    }
    let documents = read(files).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|error| render(error, "", paint)).collect();
        Failure::new(format!("{} in the documents", count(errors.len(), "problem")))
            .at(lines.concat().trim_end())
            .hint("nothing was done")
    })?;
    if documents.proxies.is_empty() && documents.policies.is_empty() {
        return Err(none_found(files));
    }
    Ok(documents)
}

/// No `-f` at all.
pub(crate) fn none_given() -> Failure {
    Failure::usage("no documents were given").hint("give a file or a folder with -f, such as -f examples/local/")
}

/// `-f` led to nothing of ours.
pub(crate) fn none_found(files: &FileArgs) -> Failure {
    let places: Vec<String> = files.files.iter().map(|path| path.display().to_string()).collect();
    Failure::new("no FetchrProxy and no FetchrPolicy was found").at(places.join(", ")).hint(format!(
        "a document begins with\n  apiVersion: {}/{}\n  kind: FetchrProxy\nand its file ends in .yaml, .yml or .json",
        crds::GROUP,
        crds::VERSION
    ))
}

/// The files that `-f` stands for.
pub(crate) fn files(files: &FileArgs) -> Result<Vec<PathBuf>, Failure> {
    crds::document::files(&paths(files)).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.file.display(), error.message)).collect();
        Failure::new("not every file can be read").at(lines.join("\n"))
    })
}

/// `-` is standard input.
pub(crate) fn paths(files: &FileArgs) -> Vec<PathBuf> {
    files.files.iter().map(|path| if path == Path::new("-") { PathBuf::from("/dev/stdin") } else { path.clone() }).collect()
}

/// What a cluster would report as a condition, of documents that are valid each by itself.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Warning {
    /// The reason that the condition would have.
    pub(crate) reason: &'static str,
    /// Where and what.
    #[serde(flatten)]
    pub(crate) at: DocumentError,
}

/// Compares documents with each other: targets that are not there, proxies for the same pods, sections that never win.
pub(crate) fn compare(documents: &Documents, operator_namespace: &str) -> Vec<Warning> {
    let inputs = Inputs { operator_namespace, ..Inputs::of_documents(&documents.proxies, &documents.policies) };
    let Compiled { policies, proxies, .. } = compile(&inputs);
    let mut warnings = Vec::new();
    for verdict in proxies.iter().filter(|verdict| !verdict.accepted.ok) {
        let at = place(documents, "FetchrProxy", &verdict.proxy, "spec.selector", &verdict.accepted.message);
        warnings.push(Warning { reason: verdict.accepted.reason, at });
    }
    for policy in &policies {
        let failed = [Some(&policy.accepted), policy.attached.as_ref()].into_iter().flatten().find(|verdict| !verdict.ok);
        if let Some(verdict) = failed {
            let message = format!("{:?} {}: {}", policy.target.kind, policy.target.name, verdict.message);
            let at = place(documents, "FetchrPolicy", &policy.policy, "spec.targetRefs", &message);
            warnings.push(Warning { reason: verdict.reason, at });
        }
    }
    warnings.sort_by(|a, b| (&a.at.file, a.at.line).cmp(&(&b.at.file, b.at.line)));
    warnings
}

fn place(documents: &Documents, kind: &str, object: &ObjectRef, field: &str, message: &str) -> DocumentError {
    let origin = documents.origins.get(&(kind.to_owned(), object.clone()));
    let unknown = Origin { file: PathBuf::new(), line: 0 };
    let Origin { file, line } = origin.unwrap_or(&unknown).clone();
    DocumentError { file, line, column: 1, field: field.to_owned(), message: message.to_owned() }
}

/// `file:line:column: field: message`, and on a terminal the line itself.
pub(crate) fn render(error: &DocumentError, severity: &str, paint: Paint) -> String {
    let place = format!("{}:{}:{}:", error.file.display(), error.line, error.column);
    let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
    let severity = match severity {
        "" => String::new(),
        other => format!("{} ", paint.doubtful(format!("{other}:"))),
    };
    let mut text = format!("{} {severity}{}{}\n", paint.strong(place), paint.bad(field), error.message);
    if paint.is_on() {
        text.push_str(&snippet(error, paint).unwrap_or_default());
    }
    text
}

/// The line that is wrong, with a mark below the column.
fn snippet(error: &DocumentError, paint: Paint) -> Option<String> {
    // Standard input can't be read again, and a device must not be.
    let is_file = error.file.metadata().ok()?.is_file();
    let text = is_file.then(|| std::fs::read_to_string(&error.file).ok())??;
    let line = text.lines().nth(usize::try_from(error.line).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(error.column).ok()?.checked_sub(1)?;
    let indent: String = line.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let number = error.line.to_string();
    let margin = " ".repeat(number.len());
    let bar = paint.faint('|');
    Some(format!("  {} {bar} {line}\n  {margin} {bar} {indent}{}\n", paint.faint(number), paint.bad('^')))
}

/// `1 problem`, `2 problems`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippet_marks_the_column() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "kind: FetchrProxy\nspec: {workers: lots}\n").expect("the file can be written");
        let error = DocumentError { file, line: 2, column: 17, field: "spec.workers".into(), message: "no".into() };
        let snippet = snippet(&error, Paint::off()).expect("the line is there");
        assert_eq!(snippet, "  2 | spec: {workers: lots}\n    |                 ^\n");
    }
}
