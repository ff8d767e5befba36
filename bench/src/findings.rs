//! What a measurement hands on: a table for people, figures for programs, and a plot where one helps.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

/// The outcome of one sub-command.
pub(crate) struct Findings {
    /// In Markdown.
    pub(crate) table: String,
    /// All figures.
    pub(crate) json: serde_json::Value,
    /// As SVG.
    pub(crate) plot: Option<String>,
}

impl Findings {
    pub(crate) fn new(table: String, figures: &impl Serialize) -> Result<Self> {
        Ok(Self { table, json: serde_json::to_value(figures)?, plot: None })
    }

    /// With bars, see [`bars`].
    pub(crate) fn with_bars(self, title: &str, groups: &[Group]) -> Self {
        Self { plot: Some(bars(title, groups)), ..self }
    }

    /// Writes the figures and the plot into a folder, under a name.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
        fs::write(folder.join(format!("{name}.json")), serde_json::to_string_pretty(&self.json)? + "\n")?;
        if let Some(plot) = &self.plot {
            fs::write(folder.join(format!("{name}.svg")), plot)?;
        }
        Ok(())
    }
}

/// Bars that are compared with each other.
pub(crate) struct Group {
    pub(crate) name: String,
    /// What each bar is of, and how long it is.
    pub(crate) bars: Vec<(&'static str, f64)>,
}

/// A part of a measurement that has several.
pub(crate) struct Section {
    /// A sentence over the table.
    pub(crate) title: &'static str,
    pub(crate) table: String,
    pub(crate) figures: serde_json::Value,
    pub(crate) bars: Vec<Group>,
}

/// Measures one part after the other, each by its name in the figures. `bars` is the title of the plot of all.
pub(crate) fn of_parts<P: std::fmt::Debug>(
    parts: impl Iterator<Item = P>,
    measure: impl Fn(&P) -> Result<Section>,
    bars: &str,
) -> Result<Findings> {
    let (mut table, mut figures, mut groups) = (String::new(), serde_json::Map::new(), Vec::new());
    for part in parts {
        let section = measure(&part).with_context(|| format!("{part:?}"))?;
        if !table.is_empty() {
            table.push('\n');
        }
        let _ = write!(table, "{}\n\n{}", section.title, section.table);
        figures.insert(format!("{part:?}").to_lowercase(), section.figures);
        groups.extend(section.bars);
    }
    let findings = Findings::new(table, &figures)?;
    Ok(if groups.is_empty() { findings } else { findings.with_bars(bars, &groups) })
}

const COLOURS: [&str; 5] = ["#d9480f", "#495057", "#868e96", "#adb5bd", "#ced4da"];
const BAR: usize = 14;
const GAP: usize = 12;
const LEFT: usize = 190;
const FULL: f64 = 420.0;

/// Bars of several groups, each to its own scale: a bar of full width is the greatest of its group.
fn bars(title: &str, groups: &[Group]) -> String {
    let height = groups.iter().map(|group| group.bars.len() * BAR + GAP).sum::<usize>() + GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>{title}</title>\n<rect width=\"720\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut y = GAP;
    for group in groups {
        let greatest = group.bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 8, y + BAR * 2 - 3, group.name);
        for ((name, value), colour) in group.bars.iter().zip(COLOURS.iter().cycle()) {
            let len = value / greatest * FULL;
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{len:.0}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{name} {value:.1}</text>",
                BAR - 2,
                LEFT as f64 + len + 5.0,
                y + BAR - 4,
            );
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

/// The median of some values, and in brackets the least and the most.
pub(crate) fn spread(values: &[f64]) -> String {
    let (least, most) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    format!("{:.1} ({least:.1} to {most:.1})", e2e::report::median(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_has_a_bar_for_each() {
        let group = |name: &str| Group { name: name.to_owned(), bars: vec![("fetchr", 11.0), ("nginx", 9.0)] };
        let svg = bars("CPU", &[group("GET"), group("POST")]);
        assert_eq!(svg.matches("<rect x=").count(), 4);
        assert!(svg.contains("nginx 9.0") && svg.contains("width=\"420\"") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn spread_has_the_median_the_least_and_the_most() {
        assert_eq!(spread(&[10.0, 12.0, 11.0]), "11.0 (10.0 to 12.0)");
    }
}
