//! Files of documents, as a laptop has them: YAML or JSON, with variables of the environment, checked whole.

mod source;
mod substitute;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{FetchrPolicy, FetchrProxy, GROUP, plan::ObjectRef, problems::FieldPath, validate::validate_value};
use source::{Place, SourceDocument, parse};

/// Most bytes of one file.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Most files of one folder.
const MAX_FILES: usize = 1024;
/// How deep folders may be nested.
const MAX_FOLDER_DEPTH: usize = 8;
/// Namespace of documents that name none, as for kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// What files hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    /// Proxies, in the order of the files.
    pub proxies: Vec<FetchrProxy>,
    /// Policies, in the order of the files.
    pub policies: Vec<FetchrPolicy>,
    /// Documents of other kinds, which are nothing to us.
    pub skipped: Vec<Skipped>,
    /// Where each document begins, by kind and reference.
    pub origins: BTreeMap<(String, ObjectRef), Origin>,
}

/// A place in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

/// A document that isn't ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Skipped {
    /// Where it begins.
    pub origin: Origin,
    /// Its `apiVersion` and `kind`.
    pub kind: String,
}

/// Something wrong in a file.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub struct DocumentError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 if the file can't be read at all.
    pub line: u64,
    /// The column, from 1; 0 if the file can't be read at all.
    pub column: u64,
    /// The field, such as `spec.rules[0].name`; empty if the file is no YAML.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, field, message } = self;
        write!(f, "{}:{line}:{column}: ", file.display())?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        f.write_str(message)
    }
}

impl std::error::Error for DocumentError {}

/// Reads files, and the `.yaml`, `.yml` and `.json` files of folders and their sub-folders, into valid documents. In texts, `${NAME}` is a variable
/// that has to be there, `${NAME:-default}` one that may be missing or empty, and `$$` a dollar sign.
///
/// All that is wrong in any of them is returned.
pub fn load(paths: &[PathBuf], env: &dyn Fn(&str) -> Option<String>) -> Result<Documents, Vec<DocumentError>> {
    let mut loading = Loading { env, documents: Documents::default(), errors: Vec::new() };
    for file in files_of(paths, &mut loading.errors) {
        loading.file(&file);
    }
    if loading.errors.is_empty() { Ok(loading.documents) } else { Err(loading.errors) }
}

/// The files that [`load`] reads, or each path that can't be read.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<DocumentError>> {
    let mut errors = Vec::new();
    let files = files_of(paths, &mut errors);
    if errors.is_empty() { Ok(files) } else { Err(errors) }
}

/// The files that `paths` stand for, in order; each once.
fn files_of(paths: &[PathBuf], errors: &mut Vec<DocumentError>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        match list(path) {
            Ok(found) if found.len() > MAX_FILES => {
                errors.push(unreadable(path, format!("the folder has more than {MAX_FILES} files")));
            }
            Ok(found) => files.extend(found),
            Err(error) => errors.push(unreadable(path, format!("can't be read: {error}"))),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    files
}

fn list(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    list_folder(path, MAX_FOLDER_DEPTH, &mut files)?;
    files.sort();
    Ok(files)
}

/// Stops when there are too many files; a link to a folder above ends at the depth.
fn list_folder(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // A ConfigMap that is mounted as a folder holds links to files, and hidden folders besides.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let kind = fs::metadata(&path)?;
        if kind.is_file() && matches!(ending, "yaml" | "yml" | "json") {
            files.push(path);
        } else if kind.is_dir() && depth > 0 {
            list_folder(&path, depth - 1, files)?;
        }
        if files.len() > MAX_FILES {
            break;
        }
    }
    Ok(())
}

fn unreadable(file: &Path, message: String) -> DocumentError {
    DocumentError { file: file.to_owned(), line: 0, column: 0, field: String::new(), message }
}

struct Loading<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    documents: Documents,
    errors: Vec<DocumentError>,
}

impl Loading<'_> {
    fn file(&mut self, file: &Path) {
        let text = match read(file) {
            Ok(text) => text,
            Err(message) => return self.errors.push(unreadable(file, message)),
        };
        match parse(&text) {
            Ok(documents) => documents.iter().for_each(|document| self.document(file, document)),
            Err((place, message)) => self.error(file, place, String::new(), message),
        }
    }

    fn document(&mut self, file: &Path, document: &SourceDocument) {
        let origin = Origin { file: file.to_owned(), line: document.place(&FieldPath::default()).line };
        let (group, kind) = document.group_and_kind();
        for field in ["apiVersion", "kind"] {
            if document.text_of(field).is_empty() {
                let message = "Required value: a document says its apiVersion and kind".to_owned();
                let at = FieldPath::root(field);
                return self.error(file, document.place(&at), field.to_owned(), message);
            }
        }
        if group != GROUP {
            let kind = format!("{} {kind}", document.text_of("apiVersion"));
            return self.documents.skipped.push(Skipped { origin, kind: kind.trim().to_owned() });
        }
        let (mut value, problems) = document.substituted(self.env);
        let problems = if problems.is_empty() { validate_value(&value) } else { problems };
        if !problems.is_empty() {
            for problem in problems {
                self.error(file, document.place(&problem.field), problem.field.to_string(), problem.message);
            }
            return;
        }
        let namespace = &mut value["metadata"]["namespace"];
        if namespace.is_null() {
            *namespace = DEFAULT_NAMESPACE.into();
        }
        self.typed(kind, value, origin);
    }

    fn typed(&mut self, kind: &str, value: Value, origin: Origin) {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let reference = ObjectRef::new(text("namespace"), text("name"));
        let key = (kind.to_owned(), reference);
        if let Some(other) = self.documents.origins.get(&key) {
            let message = format!("{kind} {} stands in {}:{} already", key.1, other.file.display(), other.line);
            let place = Place { line: origin.line, column: 1 };
            return self.error(&origin.file, place, "metadata.name".to_owned(), message);
        }
        let read = match kind {
            "FetchrProxy" => serde_json::from_value(value).map(|proxy| self.documents.proxies.push(proxy)),
            _ => serde_json::from_value(value).map(|policy| self.documents.policies.push(policy)),
        };
        match read {
            Ok(()) => drop(self.documents.origins.insert(key, origin)),
            Err(error) => self.error(&origin.file, Place { line: origin.line, column: 1 }, String::new(), error.to_string()),
        }
    }

    fn error(&mut self, file: &Path, place: Place, field: String, message: String) {
        let Place { line, column } = place;
        self.errors.push(DocumentError { file: file.to_owned(), line, column, field, message });
    }
}

fn read(file: &Path) -> Result<String, String> {
    let metadata = fs::metadata(file).map_err(|error| format!("can't be read: {error}"))?;
    if metadata.len() > MAX_FILE {
        return Err(format!("the file has {} bytes, {MAX_FILE} are allowed", metadata.len()));
    }
    fs::read_to_string(file).map_err(|error| format!("can't be read: {error}"))
}
