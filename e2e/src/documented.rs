//! The table of `docs/metrics.md`, held against what is shown and against what the code registers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, ensure};

/// The page with the table.
const PAGE: &str = include_str!("../../docs/metrics.md");

/// Whose metrics they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `fetchr-proxy` and `fetchr run`.
    Sidecar,
    /// `fetchr-operator`.
    Operator,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Operator => "operator",
        })
    }
}

/// What the table says of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    /// Names of its labels.
    pub labels: BTreeSet<String>,
}

/// The metrics of a program by their names without `_total` and `_info`, as they are registered.
///
/// # Errors
/// The table has a row that can't be read, or one twice.
pub fn metrics(program: Program) -> anyhow::Result<BTreeMap<String, Metric>> {
    table(PAGE, program)
}

/// Says what of a page of metrics the table does not say, or says otherwise.
///
/// # Errors
/// There is something: which metric is said.
pub fn check(page: &str, program: Program) -> anyhow::Result<()> {
    against(page, &metrics(program)?)
}

fn table(page: &str, program: Program) -> anyhow::Result<BTreeMap<String, Metric>> {
    let mut found = BTreeMap::new();
    let mut here = false;
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("| **") {
            here = head.starts_with(&program.to_string());
        }
        if !here || !line.starts_with("| `") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _] = cells[..] else { anyhow::bail!("not four cells: {line}") };
        let name = registered(name.trim_matches('`'), kind).with_context(|| format!("no name of a {kind}: {line}"))?;
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned()).filter(|label| !label.is_empty());
        let metric = Metric { kind: kind.to_owned(), labels: labels.collect() };
        ensure!(found.insert(name.clone(), metric).is_none(), "{name} of the {program} stands there twice");
    }
    Ok(found)
}

/// The name without what its type adds to it; none if the type's ending is not there.
fn registered(shown: &str, kind: &str) -> Option<String> {
    let name = match kind {
        "counter" => shown.strip_suffix("_total")?,
        "info" => shown.strip_suffix("_info")?,
        "gauge" | "histogram" => shown,
        _ => return None,
    };
    Some(name.to_owned())
}

fn against(page: &str, documented: &BTreeMap<String, Metric>) -> anyhow::Result<()> {
    let mut current = None;
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let metric = documented.get(name).with_context(|| format!("{name} is shown and not documented"))?;
            ensure!(metric.kind == kind, "{name} is a {kind}, and documented as a {}", metric.kind);
            current = Some((name, metric));
        } else if let (Some((name, metric)), Some((_, rest))) = (current, line.split_once('{'))
            && !line.starts_with('#')
        {
            let unknown = labels(rest).find(|label| *label != "le" && !metric.labels.contains(*label));
            ensure!(unknown.is_none(), "{name} has the label {}, which is not documented", unknown.unwrap_or_default());
        }
    }
    Ok(())
}

/// The names of labels in `a="x",b="y"} 1`. Values of our labels hold neither `=` before a quote nor braces.
fn labels(text: &str) -> impl Iterator<Item = &str> {
    let names = text.split("=\"").map(|piece| piece.rsplit([',', '{']).next().unwrap_or(piece));
    // What follows the last value is none.
    let count = text.matches("=\"").count();
    names.take(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
| metric | type | labels | what |
|---|---|---|---|
| **sidecar: some** | | | |
| `fetchr_eggs_total` | counter | `size`, `colour` | eggs |
| `fetchr_build_info` | info | `version` | the build |
| **operator: some** | | | |
| `fetchr_hens` | gauge | | hens |
";

    fn sidecar() -> BTreeMap<String, Metric> {
        table(TABLE, Program::Sidecar).unwrap()
    }

    #[test]
    fn rows_belong_to_the_program_above_them() {
        assert_eq!(sidecar().keys().collect::<Vec<_>>(), ["fetchr_build", "fetchr_eggs"]);
        assert_eq!(table(TABLE, Program::Operator).unwrap().keys().collect::<Vec<_>>(), ["fetchr_hens"]);
        assert_eq!(sidecar()["fetchr_eggs"].labels, ["colour", "size"].map(str::to_owned).into());
    }

    #[test]
    fn row_that_is_wrong_by_itself_is_refused() {
        for (row, why) in [
            ("| `fetchr_eggs` | counter | | eggs |", "no name of a counter"),
            ("| `fetchr_eggs` | number | | eggs |", "no name of a number"),
            ("| `fetchr_eggs` | gauge | eggs |", "not four cells"),
            ("| `fetchr_eggs` | gauge | | eggs |\n| `fetchr_eggs` | gauge | | eggs |", "stands there twice"),
        ] {
            let error = table(&format!("| **sidecar: a** | | | |\n{row}\n"), Program::Sidecar).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn page_is_held_against_names_types_and_labels() {
        let good = "# HELP fetchr_eggs Eggs.\n# TYPE fetchr_eggs counter\nfetchr_eggs_total{size=\"l, or {so}\",colour=\"a\"} 2\n# EOF\n";
        against(good, &sidecar()).unwrap();
        for (page, why) in [
            ("# TYPE fetchr_hens gauge\nfetchr_hens 1\n", "fetchr_hens is shown and not documented"),
            ("# TYPE fetchr_eggs gauge\nfetchr_eggs 1\n", "fetchr_eggs is a gauge, and documented as a counter"),
            (
                "# TYPE fetchr_eggs counter\nfetchr_eggs_total{size=\"l\",weight=\"9\"} 1\n",
                "fetchr_eggs has the label weight, which is not documented",
            ),
        ] {
            assert_eq!(against(page, &sidecar()).unwrap_err().to_string(), why);
        }
    }
}
