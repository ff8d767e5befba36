//! Tables in Markdown, and their place in a document.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// A Markdown table from rows of equal length, the first of which is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let Some((head, body)) = rows.split_first() else { return String::new() };
    let mut text = line(head);
    text.push_str(&line(&vec!["---".to_owned(); head.len()]));
    body.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// The middle value; NaN if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Replaces what stands between the marks of `name` in `file`.
pub(crate) fn replace(file: &Path, name: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
    let (start, end) = (format!("<!-- bench:{name} -->\n"), format!("<!-- end:{name} -->"));
    let missing = || format!("{} lacks the marks {} and {end}", file.display(), start.trim());
    let (before, rest) = text.split_once(&start).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    fs::write(file, format!("{before}{start}{table}{end}{after}"))?;
    Ok(())
}
