//! How much was found, for metrics.

/// Counts by rule, for one record or many.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    counts: Vec<u64>,
}

impl Tally {
    pub(crate) fn count(&mut self, rule: usize) {
        if self.counts.len() <= rule {
            self.counts.resize(rule + 1, 0);
        }
        self.counts[rule] += 1;
    }

    pub(crate) fn of(&self, rule: usize) -> u64 {
        self.counts.get(rule).copied().unwrap_or(0)
    }

    /// What all rules found.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Takes in what another has counted.
    pub fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }
}
