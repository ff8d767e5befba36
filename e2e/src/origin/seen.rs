//! Which request numbers have arrived, and how often twice.

use std::collections::BTreeSet;

use serde_json::{Value, json};

#[derive(Debug, Default)]
pub(super) struct Seen {
    numbers: BTreeSet<u64>,
    repeated: u64,
}

impl Seen {
    pub(super) fn add(&mut self, number: u64) {
        if !self.numbers.insert(number) {
            self.repeated += 1;
        }
    }

    /// Counts, and the numbers as ranges with both ends in them.
    pub(super) fn report(&self) -> Value {
        let mut ranges: Vec<[u64; 2]> = Vec::new();
        for &number in &self.numbers {
            match ranges.last_mut() {
                Some([_, last]) if *last + 1 == number => *last = number,
                _ => ranges.push([number, number]),
            }
        }
        json!({"count": self.numbers.len(), "repeated": self.repeated, "ranges": ranges})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gap_splits_a_range_and_a_repeat_is_counted() {
        let mut seen = Seen::default();
        for number in [3, 1, 2, 5, 2] {
            seen.add(number);
        }
        assert_eq!(seen.report(), json!({"count": 4, "repeated": 1, "ranges": [[1, 3], [5, 5]]}));
    }
}
