//! What a command prints: tables in kubectl's manner, JSON and YAML; colour only where it can be seen.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table as Grid, presets};
use serde::Serialize;

use crate::failure::Failure;

/// The shape of a command's answer; without one, a table or sentences for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
    /// The table with every column.
    Wide,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Colours for standard output.
    pub(crate) fn stdout(self) -> Paint {
        self.decide(io::stdout().is_terminal())
    }

    /// Colours for standard error.
    pub(crate) fn stderr(self) -> Paint {
        self.decide(io::stderr().is_terminal())
    }

    fn decide(self, terminal: bool) -> Paint {
        // https://no-color.org: any value but the empty one.
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint { on: self == Self::Always || self == Self::Auto && terminal && !refused }
    }
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self { on: false }
    }

    /// Whether colours are used.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    /// What is as it should be.
    pub(crate) fn good(self, text: impl fmt::Display) -> String {
        self.sgr("32", text)
    }

    /// What needs a look.
    pub(crate) fn doubtful(self, text: impl fmt::Display) -> String {
        self.sgr("33", text)
    }

    /// What is wrong.
    pub(crate) fn bad(self, text: impl fmt::Display) -> String {
        self.sgr("1;31", text)
    }

    /// What the eye should find.
    pub(crate) fn strong(self, text: impl fmt::Display) -> String {
        self.sgr("1", text)
    }

    /// What the eye may skip.
    pub(crate) fn faint(self, text: impl fmt::Display) -> String {
        self.sgr("2", text)
    }

    fn sgr(self, code: &str, text: impl fmt::Display) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// A table without borders, as kubectl prints it.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the table has columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut grid = Grid::new();
        // The text decides the width: a pipe and a terminal get the same lines.
        grid.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
        grid.set_header(&self.header).add_rows(&self.rows);
        for column in grid.column_iter_mut() {
            column.set_padding((0, 3));
        }
        for line in grid.trim_fmt().lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Text for a cell that has nothing to say.
pub(crate) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A length of time, in its largest unit.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in a unit in which they have one to four digits.
pub(crate) fn size(bytes: u64) -> String {
    let (mut whole, mut tenths, mut unit) = (bytes, 0, "");
    for larger in ["Ki", "Mi", "Gi", "Ti"] {
        if whole < 1024 {
            break;
        }
        (tenths, whole, unit) = (whole % 1024 * 10 / 1024, whole / 1024, larger);
    }
    if unit.is_empty() || whole >= 100 { format!("{whole}{unit}") } else { format!("{whole}.{tenths}{unit}") }
}

/// Prints `value` as JSON or YAML, or else what `text` makes of it; `text` is told whether every column is wanted.
pub(crate) fn print<T: Serialize>(format: Option<Format>, value: &T, text: impl FnOnce(bool) -> String) -> Result<(), Failure> {
    let rendered = match format {
        Some(Format::Json) => json(value)?,
        Some(Format::Yaml) => yaml(value)?,
        Some(Format::Wide) => text(true),
        None => text(false),
    };
    write(&rendered)
}

/// `value` as JSON with a line break at the end.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Failure::new(format!("the answer can't be written as JSON: {e}")))
}

/// `value` as YAML.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_yaml::to_string(value).map_err(|e| Failure::new(format!("the answer can't be written as YAML: {e}")))
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_aligned_and_has_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", "READY"]);
        table.row(vec!["web".into(), "True".into()]);
        table.row(vec!["catalogue".into(), "False".into()]);
        assert_eq!(table.to_string(), "NAME        READY\nweb         True\ncatalogue   False\n");
    }

    #[test]
    fn age_is_the_largest_unit() {
        assert_eq!([age(5), age(300), age(7200), age(200_000)], ["5s", "5m", "2h", "2d"]);
    }

    #[test]
    fn sizes_have_few_digits() {
        assert_eq!([size(0), size(1023), size(1536), size(1 << 20), size(204_800)], ["0", "1023", "1.5Ki", "1.0Mi", "200Ki"]);
        assert_eq!(size(u64::MAX), "16777215Ti");
    }

    #[test]
    fn colour_appears_only_where_it_is_wanted() {
        assert_eq!(Color::Never.decide(true).bad("x"), "x");
        assert_eq!(Color::Always.decide(false).bad("x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(Color::Auto.decide(false).bad("x"), "x");
    }
}
