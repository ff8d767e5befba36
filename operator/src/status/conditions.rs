//! One condition.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition is to say.
pub(super) struct Says {
    pub(super) kind: &'static str,
    pub(super) ok: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Longest message that the API server takes, in bytes.
const MESSAGE: usize = 32_768;

impl Says {
    /// The condition, with the time of its last transition kept if it says the same as before.
    pub(super) fn condition(self, generation: Option<i64>, before: &[Condition], now: &Time) -> Condition {
        let status = if self.ok { "True" } else { "False" };
        let same = before.iter().find(|condition| condition.type_ == self.kind && condition.status == status);
        let mut message = self.message;
        message.truncate(message.floor_char_boundary(MESSAGE));
        Condition {
            type_: self.kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: same.map_or_else(|| now.clone(), |condition| condition.last_transition_time.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn time(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn says(ok: bool) -> Says {
        Says { kind: "Ready", ok, reason: "Because", message: String::new() }
    }

    #[test]
    fn time_of_transition_stays_while_the_status_does() {
        let first = says(true).condition(Some(1), &[], &time(1));
        let second = says(true).condition(Some(2), std::slice::from_ref(&first), &time(2));
        assert_eq!((second.last_transition_time, second.observed_generation), (time(1), Some(2)));
        let third = says(false).condition(Some(2), &[first], &time(3));
        assert_eq!(third.last_transition_time, time(3));
    }
}
