//! An explanation for people: what applies first, then every other rule with the reason.

use crds::policy::Mode;
use sidecar::route::{Explanation, RuleVerdict, SectionVerdict};

use crate::output::{Paint, Table};

/// The request, the sections that apply, and the rest.
pub(super) fn render(explanation: &Explanation, wide: bool, paint: Paint) -> String {
    let Explanation { direction, method, host, path, client, skipped, rules, .. } = explanation;
    let mut text = format!("{} ({direction:?}, client {client})\n\n", paint.strong(format!("{method} {host}{path}")));
    if *skipped {
        return text + "The host is one of the proxy's skipHosts: the request passes without policy.\n";
    }
    let applying = applying(rules, wide);
    text.push_str(&paint.good("Applies"));
    text.push_str(
        &applying.map_or_else(|| "\nNo section: the request passes as it is.\n".to_owned(), |table| format!("\n{table}")),
    );
    if let Some(table) = not_applying(rules) {
        text.push_str(&format!("\n{}\n{table}", paint.doubtful("Does not apply")));
    }
    text
}

fn applying(rules: &[RuleVerdict], wide: bool) -> Option<Table> {
    let mut header = vec!["SECTION", "POLICY", "RULE", "ATTACHED TO", "MODE"];
    if wide {
        header.push("MATCH");
    }
    let mut table = Table::new(&header);
    for rule in rules {
        for section in rule.sections.iter().filter(|section| section.applies) {
            for (name, mode) in acting(section) {
                let mut row = vec![name, rule.policy.clone(), name_of(rule), rule.attached_to.clone(), format!("{mode:?}")];
                if wide {
                    row.push(rule.matched.clone().unwrap_or_default());
                }
                table.row(row);
            }
        }
    }
    Some(table).filter(|table| !table.is_empty())
}

/// The section, or each of its limits.
fn acting(section: &SectionVerdict) -> Vec<(String, Mode)> {
    match section.mode {
        Some(mode) => vec![(section.section.clone(), mode)],
        None => section.limits.iter().map(|limit| (format!("{}: {}", section.section, limit.name), limit.mode)).collect(),
    }
}

fn not_applying(rules: &[RuleVerdict]) -> Option<Table> {
    let mut table = Table::new(&["POLICY", "RULE", "ATTACHED TO", "WHY NOT"]);
    for rule in rules {
        let lost = rule.sections.iter().filter_map(|section| Some((section, section.lost_to.as_ref()?)));
        let lost = lost.map(|(section, winner)| format!("{}: {winner} wins", section.section));
        for why in rule.why_not.iter().cloned().chain(lost) {
            table.row(vec![rule.policy.clone(), name_of(rule), rule.attached_to.clone(), why]);
        }
    }
    Some(table).filter(|table| !table.is_empty())
}

fn name_of(rule: &RuleVerdict) -> String {
    rule.rule.clone().unwrap_or_else(|| "(all)".to_owned())
}
