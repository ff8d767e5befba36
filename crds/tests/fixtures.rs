//! The fixtures: each invalid one is refused at its field and in its words, each valid one is accepted. The end-to-end tests apply
//! the same files to an API server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use crds::document::{Documents, load};

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The text behind `# name: ` at the top of a fixture.
fn header(file: &Path, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().take_while(|line| line.starts_with('#')).find_map(|line| line.strip_prefix(&format!("# {name}: ")));
    line.unwrap_or_else(|| panic!("{}: no {name}", file.display())).to_owned()
}

#[test]
fn every_invalid_fixture_is_refused_at_its_field_in_its_words() {
    let files = fixtures("invalid");
    assert!(files.len() >= 45, "only {} fixtures", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let (field, message) = (header(file, "field"), header(file, "message"));
        let errors = load(std::slice::from_ref(file), &|_| None).err().unwrap_or_default();
        let told = errors.iter().any(|error| error.field == field && error.message.contains(&message));
        let elsewhere = errors.iter().any(|error| error.field != field);
        let placed = errors.iter().all(|error| error.line > 3 && error.column > 0);
        if !told || elsewhere || !placed {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            wrong.push(format!("{}\n  wanted {field}: {message}\n  got    {}", file.display(), errors.join("\n         ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_invalid_fixture_says_who_refuses_it() {
    let mut seen = [0; 3];
    for file in fixtures("invalid") {
        let by = header(&file, "refused-by");
        let index = ["schema", "cel", "webhook"].iter().position(|known| *known == by);
        seen[index.unwrap_or_else(|| panic!("{}: {by}", file.display()))] += 1;
    }
    assert!(seen.iter().all(|count| *count >= 10), "{seen:?}");
}

#[test]
fn every_valid_fixture_is_accepted() {
    let files = fixtures("valid");
    assert!(files.len() >= 8);
    let Documents { proxies, policies, skipped, origins } = load(&files, &|_| None).unwrap_or_else(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        panic!("{}", errors.join("\n"))
    });
    assert_eq!(proxies.len() + policies.len(), files.len());
    assert_eq!((origins.len(), skipped.len()), (files.len(), 0));
}
