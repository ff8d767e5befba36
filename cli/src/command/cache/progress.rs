//! How far something is, on standard error, if somebody looks.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes, of how many if that is known.
pub(super) fn bytes(of: Option<u64>) -> ProgressBar {
    let template = if of.is_some() { "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}" } else { "{bytes} {bytes_per_sec}" };
    shown(of, template)
}

/// Things, of how many.
pub(super) fn count(of: u64) -> ProgressBar {
    shown(Some(of), "{bar:30} {pos}/{len} {per_sec} {msg}")
}

fn shown(of: Option<u64>, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = of.map_or_else(ProgressBar::no_length, ProgressBar::new);
    // A template that can't be read would be a mistake here; then there is the usual bar.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
