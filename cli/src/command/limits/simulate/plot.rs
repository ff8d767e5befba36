//! Plots of what was admitted and denied in each second.

use std::fmt::Write as _;

use super::Second;
use crate::output::Paint;

/// Columns and lines on a terminal.
const COLUMNS: usize = 60;
const LINES: u64 = 8;
/// Pixels of a picture, and around what it shows.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 48.0;
/// Columns of a picture.
const FINE: usize = 400;

/// Requests per second, from the mean of some seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Column {
    admitted: f64,
    denied: f64,
}

impl Column {
    fn all(self) -> f64 {
        self.admitted + self.denied
    }
}

/// At most so many columns, each of as many seconds as the others but the last.
fn columns(seconds: &[Second], most: usize) -> Vec<Column> {
    let each = seconds.len().div_ceil(most).max(1);
    let mean = |seconds: &[Second]| {
        let sum = |of: fn(&Second) -> u64| seconds.iter().map(of).sum::<u64>() as f64 / seconds.len() as f64;
        Column { admitted: sum(|second| second.admitted), denied: sum(|second| second.denied) }
    };
    seconds.chunks(each).map(mean).collect()
}

fn highest(columns: &[Column]) -> f64 {
    columns.iter().map(|column| column.all()).fold(1.0, f64::max)
}

/// For a terminal: columns of what was admitted below what was denied, told apart also without colour.
pub(super) fn text(seconds: &[Second], paint: Paint) -> String {
    let columns = columns(seconds, COLUMNS);
    let top = highest(&columns);
    let label =
        |line: u64| if line == LINES || line * 2 == LINES { rate(top * line as f64 / LINES as f64) } else { String::new() };
    let width = label(LINES).len().max(label(LINES / 2).len());
    let mut text = paint.strong("requests per second") + "\n";
    for line in (1..=LINES).rev() {
        // A line is full from its middle on.
        let least = (line as f64 - 0.5) / LINES as f64 * top;
        let cells: String = columns.iter().map(|column| cell(*column, least)).collect();
        let _ = writeln!(text, "{:>width$} \u{2502}{}", label(line), coloured(cells.trim_end(), paint));
    }
    let ruler = "\u{2500}".repeat(columns.len());
    let end = format!("{}s", seconds.len());
    let _ = writeln!(text, "{:>width$} \u{2514}{ruler}", 0);
    let _ = writeln!(text, "{:>width$}  0s{end:>rest$}", "", rest = columns.len().saturating_sub(2).max(end.len() + 1));
    let _ = writeln!(text, "{} admitted  {} denied", paint.good(ADMITTED), paint.bad(DENIED));
    text
}

const ADMITTED: char = '\u{2588}';
const DENIED: char = '\u{2591}';

fn cell(column: Column, least: f64) -> char {
    if column.admitted >= least {
        ADMITTED
    } else if column.all() >= least {
        DENIED
    } else {
        ' '
    }
}

/// Cells of one kind share a colour.
fn coloured(cells: &str, paint: Paint) -> String {
    let mut text = String::new();
    let mut rest = cells;
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|other| other != first).unwrap_or(rest.len());
        let (same, other) = rest.split_at(run);
        text += &match first {
            ADMITTED => paint.good(same),
            DENIED => paint.bad(same),
            _ => same.to_owned(),
        };
        rest = other;
    }
    text
}

fn rate(rate: f64) -> String {
    if rate < 10.0 && rate.fract() > 0.05 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// As a picture (SVG 1.1).
pub(super) fn svg(seconds: &[Second]) -> String {
    let columns = columns(seconds, FINE);
    let top = highest(&columns);
    let (inner, foot) = (WIDTH - 2.0 * MARGIN, HEIGHT - MARGIN);
    let step = inner / columns.len().max(1) as f64;
    let high = |rate: f64| rate / top * (HEIGHT - 2.0 * MARGIN);
    let mut bars = String::new();
    for (place, column) in columns.iter().enumerate() {
        let left = MARGIN + step * place as f64;
        for (fill, rate, below) in [("#2a9d4a", column.admitted, 0.0), ("#c8352b", column.denied, column.admitted)] {
            if rate > 0.0 {
                let (height, y) = (high(rate), foot - high(below + rate));
                // Writing to a string can't fail.
                let _ =
                    writeln!(bars, r#"<rect x="{left:.2}" y="{y:.2}" width="{step:.2}" height="{height:.2}" fill="{fill}"/>"#);
            }
        }
    }
    let label =
        |x: f64, y: f64, anchor: &str, text: &str| format!(r#"<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#);
    let right = WIDTH - MARGIN;
    let labels = [
        label(MARGIN, MARGIN / 2.0, "start", "requests per second: admitted (green), denied (red)"),
        label(MARGIN - 6.0, MARGIN + 4.0, "end", &rate(top)),
        label(MARGIN - 6.0, foot, "end", "0"),
        label(MARGIN, foot + 16.0, "middle", "0s"),
        label(right, foot + 16.0, "middle", &format!("{}s", seconds.len())),
    ];
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{bars}<path d=\"M{MARGIN} {MARGIN}V{foot}H{right}\" stroke=\"#444444\" \
         fill=\"none\"/>\n{}\n</svg>\n",
        labels.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: [Second; 3] =
        [Second { admitted: 80, denied: 0 }, Second { admitted: 40, denied: 40 }, Second { admitted: 10, denied: 30 }];

    #[test]
    fn plot_stacks_what_was_denied_on_what_was_admitted() {
        let text = text(&SECONDS, Paint::off());
        let rows: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(rows[0], "requests per second");
        assert_eq!(rows[1], "80 \u{2502}\u{2588}\u{2591}");
        assert_eq!(rows[5], "40 \u{2502}\u{2588}\u{2588}\u{2591}");
        assert_eq!(rows[8], "   \u{2502}\u{2588}\u{2588}\u{2588}");
        assert_eq!(rows[9], " 0 \u{2514}\u{2500}\u{2500}\u{2500}");
        assert!(rows[10].ends_with("3s"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn long_times_are_means_of_few_columns() {
        let seconds: Vec<Second> = (0..121).map(|second| Second { admitted: second, denied: 1 }).collect();
        let columns = columns(&seconds, 60);
        assert_eq!(columns.len(), 41);
        assert_eq!((columns[0], columns[40].denied), (Column { admitted: 1.0, denied: 1.0 }, 1.0));
        assert!(text(&[], Paint::off()).contains("admitted") && svg(&[]).ends_with("</svg>\n"));
    }

    #[test]
    fn picture_has_a_bar_for_each_part() {
        let svg = svg(&SECONDS);
        assert_eq!(svg.matches("fill=\"#2a9d4a\"").count(), 3);
        assert_eq!(svg.matches("fill=\"#c8352b\"").count(), 2);
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.contains(">80</text>"), "{svg}");
    }
}
