//! Figures of many measurements, tables of them in Markdown, and the tables' place in a document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A Markdown table from rows of equal length, the first of which is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let Some((head, body)) = rows.split_first() else { return String::new() };
    let mut text = line(head);
    text.push_str(&line(&vec!["---".to_owned(); head.len()]));
    body.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// The middle value, of two middle ones the greater; NaN if there is none.
pub fn median(values: &[f64]) -> f64 {
    sorted(values).get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest value that `percent` of all values do not exceed, by nearest rank; NaN if there is none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100);
    sorted(values).get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Replaces what stands between the marks `<!-- bench:NAME -->` and `<!-- end:NAME -->` in `file`.
///
/// # Errors
/// The file can't be read or written, or lacks a mark.
pub fn replace(file: &Path, name: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
    let text = replaced(&text, name, table).with_context(|| format!("could not change {}", file.display()))?;
    fs::write(file, text).with_context(|| format!("could not write {}", file.display()))
}

fn replaced(text: &str, name: &str, table: &str) -> Result<String> {
    let (start, end) = (format!("<!-- bench:{name} -->\n"), format!("<!-- end:{name} -->"));
    let missing = || format!("it lacks the marks {} and {end}", start.trim());
    let (before, rest) = text.split_once(&start).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{start}{table}{end}{after}"))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_value_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&hundred, percent)), [50.0, 99.0, 100.0]);
        assert_eq!([0, 50, 99].map(|percent| percentile(&[3.0, 1.0, 2.0], percent)), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn median_needs_no_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
    }

    #[test]
    fn figures_of_nothing_are_no_numbers() {
        assert!(median(&[]).is_nan() && percentile(&[], 99).is_nan());
    }

    #[test]
    fn head_of_a_table_is_underlined() {
        let rows = [["a", "b"], ["1", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = "a\n<!-- bench:x -->\nold\n<!-- end:x -->\nb <!-- end:y -->\n";
        assert_eq!(replaced(text, "x", "new\n").unwrap(), "a\n<!-- bench:x -->\nnew\n<!-- end:x -->\nb <!-- end:y -->\n");
    }

    #[test]
    fn missing_mark_is_named() {
        let error = replaced("<!-- bench:x -->\n", "x", "").unwrap_err();
        assert_eq!(error.to_string(), "it lacks the marks <!-- bench:x --> and <!-- end:x -->");
    }
}
