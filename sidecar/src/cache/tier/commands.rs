//! What Redis is asked.

use std::{fmt::Write as _, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use redis::{Pipeline, Value};

use super::{
    Tier,
    lease::{Lease, UNCACHEABLE},
    writer::Write,
};
use crate::{
    cache::record::{self, Record, Unreadable},
    redis::Failed,
};

/// What an answer takes beside its body, at most.
const OVERHEAD: u64 = 4 << 20;

/// The names in Redis of what a key of the cache leads to. Different keys share a name by no chance that matters, and what is found is compared with the key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    /// Of the record.
    pub(super) record: String,
    /// Of the lease on fetching it.
    pub(super) fill: String,
}

/// What a look at a key finds.
pub(super) enum Found {
    Record(Record),
    /// Nothing, and it is this pod's turn to fetch it.
    Ours(Lease),
    /// Nothing, but another pod fetches it.
    Taken,
    Nothing,
    /// Nobody knows.
    Failed,
}

/// What stands for a primary key and the values of the fields that select a variant.
pub(in crate::cache) fn digest(primary: &[u8], values: &[u8]) -> [u8; 16] {
    let mut hash = Context::new(&SHA256);
    hash.update(&(primary.len() as u64).to_le_bytes());
    hash.update(primary);
    hash.update(values);
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finish().as_ref()[..16]);
    digest
}

impl Key {
    /// Of a primary key: an answer, or the marker of its variants.
    pub(super) fn of(prefix: &str, primary: &[u8]) -> Self {
        Self::named(prefix, digest(primary, &[]))
    }

    /// Of a primary key and the values of the fields that select a variant, in the era of their marker.
    pub(super) fn of_variant(prefix: &str, primary: &[u8], values: &[u8], era: u64) -> Self {
        Self::named(prefix, digest(primary, &[values, &era.to_le_bytes()].concat()))
    }

    fn named(prefix: &str, name: [u8; 16]) -> Self {
        let mut record = String::with_capacity(prefix.len() + 34);
        record.push_str(prefix);
        // In braces: a record and its lease share a slot of a cluster.
        record.push('{');
        name.iter().for_each(|byte| write!(record, "{byte:02x}").unwrap_or_default());
        record.push('}');
        Self { fill: format!("{record}:fill"), record }
    }
}

impl Tier {
    /// Looks for a record. If there is none, with `waits`, takes the lease on fetching it for so long.
    pub(super) async fn look(&self, key: &Key, primary: &[u8], values: &[u8], waits: Option<Duration>) -> Found {
        let mut pipe = redis::pipe();
        pipe.get(&key.record);
        let Some(answered) = self.ask(&key.record, &pipe).await else { return Found::Failed };
        match (self.record(key, (primary, values), answered.first()), waits) {
            (Some(record), _) => Found::Record(record),
            (None, None) => Found::Nothing,
            (None, Some(term)) => self.take(key, (primary, values), term).await,
        }
    }

    /// Takes the lease, and looks again: another pod may have stored the answer and given the lease back since.
    async fn take(&self, key: &Key, of: (&[u8], &[u8]), term: Duration) -> Found {
        // Even if no answer comes it may be taken, and so has to be released.
        let lease = Lease::new(key, self.queue.clone());
        let millis = u64::try_from(term.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(&key.fill).arg(lease.token()).arg("NX").arg("PX").arg(millis).ignore();
        pipe.get(&key.fill).get(&key.record);
        let Some(answered) = self.ask(&key.record, &pipe).await else { return Found::Failed };
        if let Some(record) = self.record(key, of, answered.get(1)) {
            return Found::Record(record);
        }
        match answered.first() {
            Some(Value::BulkString(holder)) if *holder == lease.token().as_bytes() => Found::Ours(lease),
            Some(Value::BulkString(holder)) => {
                lease.not_taken();
                if holder == UNCACHEABLE.as_bytes() { Found::Nothing } else { Found::Taken }
            }
            _ => Found::Nothing,
        }
    }

    /// Sends commands on a key and its lease. None if they are not answered in time, or by an error.
    async fn ask(&self, key: &str, pipe: &Pipeline) -> Option<Vec<Value>> {
        let failed = match self.pool.ask(key, pipe, self.settings.patience).await {
            Ok(values) => return Some(values),
            Err(Failed::Away) => "away",
            Err(Failed::Late) => "late",
            Err(Failed::Error) => "error",
        };
        self.tally.request(failed);
        None
    }

    /// The record in what was answered, if it is one of this key. One that is damaged is taken out.
    fn record(&self, key: &Key, (primary, values): (&[u8], &[u8]), answered: Option<&Value>) -> Option<Record> {
        let Some(Value::BulkString(bytes)) = answered else { return None };
        let most = usize::try_from(self.settings.max_object.saturating_add(OVERHEAD)).unwrap_or(usize::MAX);
        match record::read(bytes, most) {
            Ok(Record::Answer(answer)) if !answer.object.is_for(primary, values) => None,
            Ok(record) => Some(record),
            // Other pods may have room for it.
            Err(Unreadable::TooLong) => None,
            Err(Unreadable::Corrupt) => {
                self.tally.request("corrupt");
                self.write(Write::Remove(key.clone()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_also_where_they_begin_alike() {
        let key = |primary: &[u8], values: &[u8], era| Key::of_variant("p:", primary, values, era);
        assert_eq!(key(b"a", b"b", 1), key(b"a", b"b", 1));
        for (one, other) in [
            (key(b"a", b"b", 1), key(b"ab", b"", 1)),
            (key(b"", b"a", 1), key(b"a", b"", 1)),
            (key(b"a", b"", 1), key(b"b", b"", 1)),
            (key(b"a", b"b", 1), key(b"a", b"b", 2)),
            (key(b"a", b"", 0), Key::of("p:", b"a")),
        ] {
            assert_ne!(one, other);
        }
        let Key { record, fill } = Key::of("p:", b"a");
        assert!(record.starts_with("p:{") && record.len() == 36 && fill == format!("{record}:fill"), "{record} {fill}");
    }
}
