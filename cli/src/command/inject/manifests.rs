//! Manifests of any kind, and the pod templates in them. A document without one is printed as it was written.

use std::{collections::BTreeSet, fs, io::Read, path::Path};

use serde_json::{Value, json};

use crate::{args::FileArgs, documents, failure::Failure, output};

/// A document of a file.
#[derive(Debug)]
pub(super) struct Manifest {
    /// The text as it was written.
    text: String,
    /// Its value, to be changed; Null if it has no pod template.
    value: Value,
    /// The file, for messages.
    file: String,
}

/// A pod template in a manifest.
#[derive(Debug)]
pub(super) struct Template<'a> {
    /// Kind of the workload.
    pub(super) kind: String,
    /// Name of the workload.
    pub(super) name: String,
    /// Namespace of the workload.
    pub(super) namespace: String,
    file: &'a str,
    value: &'a mut Value,
}

/// Reads the documents of all files.
pub(super) fn read(files: &FileArgs) -> Result<Vec<Manifest>, Failure> {
    let mut manifests = Vec::new();
    for path in documents::files(files)? {
        let name = path.display().to_string();
        let text = text_of(&path).map_err(|e| Failure::new(format!("can't be read: {e}")).at(&name))?;
        for document in split(&text) {
            manifests.push(Manifest::parse(document, &name)?);
        }
    }
    Ok(manifests)
}

fn text_of(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(crds::document::MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The documents of a YAML stream. A line that begins with `---` can only stand between them: text inside is indented.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {
                let rest = rest.trim();
                documents.push(if rest.is_empty() { String::new() } else { format!("{rest}\n") });
            }
            _ => {
                let document = documents.last_mut().expect("there is always one");
                document.push_str(line);
                document.push('\n');
            }
        }
    }
    documents.retain(|document| document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')));
    documents
}

/// All documents as one YAML stream.
pub(super) fn print(manifests: &[Manifest]) -> Result<String, Failure> {
    let texts: Vec<String> = manifests.iter().map(Manifest::print).collect::<Result<_, _>>()?;
    Ok(texts.join("---\n"))
}

impl Manifest {
    fn parse(text: String, file: &str) -> Result<Self, Failure> {
        let value: Value =
            serde_yaml::from_str(&text).map_err(|e| Failure::new(format!("not readable as YAML: {e}")).at(file))?;
        let value = if has_template(&value) { value } else { Value::Null };
        Ok(Self { text, value, file: file.to_owned() })
    }

    fn print(&self) -> Result<String, Failure> {
        if self.value.is_null() { Ok(self.text.clone()) } else { output::yaml(&self.value) }
    }

    /// Namespaces of the workloads in it.
    pub(super) fn namespaces(&self, default: &str) -> BTreeSet<String> {
        let workloads = workloads(&self.value);
        workloads.into_iter().map(|workload| namespace_of(workload, default)).collect()
    }

    /// The pod templates in it.
    pub(super) fn templates(&mut self, default_namespace: &str) -> Vec<Template<'_>> {
        let file = self.file.as_str();
        let workloads: Vec<&mut Value> = if is_list(&self.value) {
            self.value["items"].as_array_mut().into_iter().flatten().collect()
        } else {
            vec![&mut self.value]
        };
        workloads.into_iter().filter_map(|workload| Template::of(workload, file, default_namespace)).collect()
    }
}

fn has_template(value: &Value) -> bool {
    workloads(value).into_iter().any(|workload| template_path(workload).is_some())
}

/// The document itself, or the items of a List.
fn workloads(value: &Value) -> Vec<&Value> {
    if is_list(value) { value["items"].as_array().into_iter().flatten().collect() } else { vec![value] }
}

fn is_list(value: &Value) -> bool {
    text(value, "/kind").ends_with("List") && value["items"].is_array()
}

/// Where the pod template of a kind stands.
fn template_path(workload: &Value) -> Option<&'static str> {
    match (text(workload, "/apiVersion"), text(workload, "/kind")) {
        ("v1", "Pod") => Some(""),
        ("v1", "ReplicationController")
        | ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job") => Some("/spec/template"),
        ("batch/v1", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn namespace_of(workload: &Value, default: &str) -> String {
    match text(workload, "/metadata/namespace") {
        "" => default.to_owned(),
        namespace => namespace.to_owned(),
    }
}

impl<'a> Template<'a> {
    fn of(workload: &'a mut Value, file: &'a str, default_namespace: &str) -> Option<Self> {
        let path = template_path(workload)?;
        let kind = text(workload, "/kind").to_owned();
        let name = ["/metadata/name", "/metadata/generateName"].map(|at| text(workload, at)).concat();
        let namespace = namespace_of(workload, default_namespace);
        Some(Self { kind, name, namespace, file, value: workload.pointer_mut(path)? })
    }

    /// For messages.
    pub(super) fn place(&self) -> String {
        format!("{} {}/{} in {}", self.kind, self.namespace, self.name, self.file)
    }

    /// The pod that the template stands for.
    pub(super) fn pod(&self) -> Value {
        json!({"metadata": self.value["metadata"], "spec": self.value["spec"]})
    }

    /// Puts the metadata and spec of this pod into the template.
    pub(super) fn replace(&mut self, pod: &Value) {
        self.value["metadata"] = pod["metadata"].clone();
        self.value["spec"] = pod["spec"].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Manifest {
        Manifest::parse(text.to_owned(), "a.yaml").expect("the test writes YAML")
    }

    #[test]
    fn stream_is_split_between_its_documents_only() {
        let text = "# only a comment\n---\na: |\n  ---\n  b\n--- # next\nc: 1\n---\n";
        assert_eq!(split(text), ["a: |\n  ---\n  b\n", "# next\nc: 1\n"]);
    }

    #[test]
    fn every_kind_of_workload_has_its_template_found() {
        for (api, kind, template) in [
            ("apps/v1", "Deployment", "template: {spec: {}}"),
            ("batch/v1", "Job", "template: {spec: {}}"),
            ("batch/v1", "CronJob", "jobTemplate: {spec: {template: {spec: {}}}}"),
        ] {
            let mut manifest = parse(&format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{{template}}}\n"));
            assert_eq!(manifest.templates("shop").len(), 1, "{kind}");
        }
        let mut list = parse(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n}}\n- {kind: Service}\n",
        );
        let places: Vec<String> = list.templates("shop").iter().map(Template::place).collect();
        assert_eq!(places, ["Pod n/a in a.yaml"]);
    }

    #[test]
    fn document_without_a_template_is_printed_as_it_was_written() {
        let text = "kind: Service   # with a comment\nmetadata: {name: web}\n";
        assert_eq!(parse(text).print().expect("it can be printed"), text);
    }
}
