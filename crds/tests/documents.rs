//! Files of documents: where each problem stands, variables, bounds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{fs, path::PathBuf};

use crds::document::{DocumentError, Documents, MAX_FILE, load};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn load(&self) -> Result<Documents, Vec<DocumentError>> {
        self.load_with(&[])
    }

    fn load_with(&self, env: &[(&str, &str)]) -> Result<Documents, Vec<DocumentError>> {
        load(&[self.0.path().to_owned()], &|name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn only_error(&self) -> DocumentError {
        let mut errors = self.load().expect_err("something is wrong");
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    }
}

fn proxy(spec: &str) -> String {
    format!("apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: web}}\nspec:\n{spec}\n")
}

#[test]
fn problem_is_told_with_file_line_and_column() {
    let folder = Folder::of(&[("a.yaml", &proxy("  workers: 1\n  logging:\n    level: Loud"))]);
    let error = folder.only_error();
    assert_eq!((error.line, error.column, error.field.as_str()), (7, 12, "spec.logging.level"));
    let text = error.to_string();
    assert!(text.contains("a.yaml:7:12: spec.logging.level: Unsupported value: \"Loud\""), "{text}");
}

#[test]
fn missing_field_is_told_where_its_object_stands() {
    let listener = "  interception:\n    mode: Explicit\n    listeners:\n    - port: 80\n      upstream: http://localhost";
    let error = Folder::of(&[("a.yaml", &proxy(listener))]).only_error();
    assert_eq!((error.line, error.field.as_str()), (8, "spec.interception.listeners[0].name"));
    assert_eq!(error.message, "Required value");
}

#[test]
fn unknown_field_is_told_with_what_was_meant() {
    let error = Folder::of(&[("a.yaml", &proxy("  upstreams: {}"))]).only_error();
    assert_eq!((error.line, error.column), (5, 3));
    assert_eq!(error.message, "unknown field \"spec.upstreams\"; did you mean \"upstream\"?");
}

#[test]
fn second_document_counts_its_lines_from_the_top_of_the_file() {
    let text = format!("{}---\n{}", proxy("  workers: 1"), proxy("  workers: 0").replace("web", "other"));
    let error = Folder::of(&[("a.yaml", &text)]).only_error();
    assert_eq!((error.line, error.column), (11, 12));
}

#[test]
fn all_problems_of_all_files_are_told() {
    let bad = proxy("  workers: 0\n  logging: {level: Loud}");
    let errors = Folder::of(&[("a.yaml", &bad), ("b.yml", &bad.replace("web", "b")), ("c.txt", "nothing")]).load().unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
}

#[test]
fn file_that_is_no_yaml_is_told_with_its_place() {
    let error = Folder::of(&[("a.yaml", "a: [1\nb: 2\n")]).only_error();
    assert!(error.line >= 1 && error.field.is_empty() && error.message.starts_with("not readable as YAML"), "{error}");
}

#[test]
fn variables_are_filled_in() {
    let spec = "  workers: ${WORKERS}\n  clientAddress: {trustedCIDRs: [\"${NET:-10.0.0.0/8}\", \"${V6}::/${LENGTH:-8}\"]}";
    let documents = Folder::of(&[("a.yaml", &proxy(spec))]).load_with(&[("WORKERS", "3"), ("V6", "fd00")]).unwrap();
    let spec = &documents.proxies[0].spec;
    assert_eq!(spec.workers, Some(3));
    assert_eq!(spec.client_address.trusted_cidrs, ["10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn missing_variable_is_named_with_its_place() {
    let folder = Folder::of(&[("a.yaml", &proxy("  workers: ${WORKERS}"))]);
    let error = folder.only_error();
    assert_eq!((error.line, error.column, error.field.as_str()), (5, 12, "spec.workers"));
    assert!(error.message.contains("the variable WORKERS is not set"), "{error}");
    assert!(folder.load_with(&[("WORKERS", "many")]).unwrap_err()[0].message.contains("must be of type integer"));
}

#[test]
fn two_dollar_signs_are_one() {
    let policy = "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {name: a}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  rules: \
                  [{name: a, headers: {request: {set: [{name: x-a, value: \"$${A} $1\"}]}}}]\n";
    let documents = Folder::of(&[("a.yaml", policy)]).load().unwrap();
    let headers = documents.policies[0].spec.rules[0].headers.as_ref().unwrap();
    assert_eq!(headers.request.as_ref().unwrap().set[0].value, "${A} $1");
}

#[test]
fn value_of_a_variable_cannot_change_the_structure() {
    let folder = Folder::of(&[("a.yaml", &proxy("  logging: {level: \"${LEVEL}\"}"))]);
    let errors = folder.load_with(&[("LEVEL", "Info}\n  workers: 64")]).unwrap_err();
    assert!(errors[0].message.starts_with("Unsupported value"), "{errors:?}");
}

#[test]
fn documents_of_other_kinds_are_skipped_and_told() {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n---\n{}", proxy("  workers: 1"));
    let documents = Folder::of(&[("a.yaml", &text)]).load().unwrap();
    assert_eq!(documents.proxies.len(), 1);
    assert_eq!((documents.skipped[0].kind.as_str(), documents.skipped[0].origin.line), ("v1 Service", 1));
}

#[test]
fn document_without_kind_is_refused() {
    for text in ["hello\n", "- a\n", "spec: {}\n"] {
        let error = Folder::of(&[("a.yaml", text)]).only_error();
        assert!(error.message.contains("apiVersion"), "{error}");
    }
}

#[test]
fn one_object_in_two_places_is_refused() {
    let error = Folder::of(&[("a.yaml", &proxy("  workers: 1")), ("b.yaml", &proxy("  workers: 2"))]).only_error();
    assert!(error.message.contains("FetchrProxy default/web stands in") && error.file.ends_with("b.yaml"), "{error}");
}

#[test]
fn field_that_is_written_twice_is_refused() {
    let error = Folder::of(&[("a.yaml", &proxy("  workers: 1\n  workers: 2"))]).only_error();
    assert_eq!(error.line, 6, "{error}");
}

#[test]
fn json_is_read_as_well() {
    let text =
        r#"{"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "web"}, "spec": {"workers": 0}}"#;
    let error = Folder::of(&[("a.json", text)]).only_error();
    assert_eq!((error.field.as_str(), error.line), ("spec.workers", 1));
}

#[test]
fn folder_that_does_not_exist_is_told() {
    let errors = load(&[PathBuf::from("/does/not/exist")], &|_| None).unwrap_err();
    assert!(errors[0].message.contains("can't be read"), "{errors:?}");
}

#[test]
fn large_file_is_refused_unread() {
    let error = Folder::of(&[("a.yaml", &"#".repeat(MAX_FILE as usize + 1))]).only_error();
    assert!(error.message.contains("are allowed"), "{error}");
}

#[test]
fn small_file_cannot_unfold_into_a_large_one() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, inner) in [('b', 'a'), ('c', 'b'), ('d', 'c'), ('e', 'd'), ('f', 'e'), ('g', 'f')] {
        bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{inner}"); 10].join(", ")));
    }
    let error = Folder::of(&[("a.yaml", &bomb)]).only_error();
    assert!(error.message.starts_with("not readable as YAML"), "{error}");
    let deep = format!("a: {}{}\n", "[".repeat(5000), "]".repeat(5000));
    assert!(Folder::of(&[("a.yaml", &deep)]).load().is_err());
}
