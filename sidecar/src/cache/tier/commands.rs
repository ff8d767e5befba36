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

/// Bytes of what stands in the place of a holder of a lease, and more than any.
const LONGEST_HOLDER: isize = 64;

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
        self.get_record(&mut pipe, key);
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
        get_holder(&mut pipe, &key.fill);
        self.get_record(&mut pipe, key);
        let Some(answered) = self.ask(&key.record, &pipe).await else { return Found::Failed };
        if let Some(record) = self.record(key, of, answered.get(1)) {
            return Found::Record(record);
        }
        match answered.first() {
            Some(Value::BulkString(holder)) if *holder == lease.token().as_bytes() => Found::Ours(lease),
            Some(value @ Value::BulkString(holder)) if !is_empty(value) => {
                lease.not_taken();
                if holder == UNCACHEABLE.as_bytes() { Found::Nothing } else { Found::Taken }
            }
            _ => Found::Nothing,
        }
    }

    /// Asks for a record, or for as much of one that is too long as shows that it is: whoever can write there may write half a gigabyte.
    fn get_record(&self, pipe: &mut Pipeline, key: &Key) {
        pipe.getrange(&key.record, 0, isize::try_from(self.longest_record()).unwrap_or(isize::MAX));
    }

    /// Bytes of the longest answer, with its head.
    fn longest_answer(&self) -> usize {
        usize::try_from(self.settings.max_object.saturating_add(OVERHEAD)).unwrap_or(usize::MAX)
    }

    /// Bytes of the longest record.
    fn longest_record(&self) -> usize {
        self.longest_answer().saturating_add(record::PREFIX)
    }

    /// Sends commands on a key and its lease. None if they are not answered in time, or by an error.
    async fn ask(&self, key: &str, pipe: &Pipeline) -> Option<Vec<Value>> {
        let failed = match self.pool.ask(key, pipe, self.settings.patience).await {
            Ok(values) => return Some(values),
            Err(Failed::Away | Failed::Barred | Failed::Untrusted) => "away",
            Err(Failed::Late) => "late",
            Err(Failed::Error) => "error",
        };
        self.tally.request(failed);
        None
    }

    /// The record in what was answered, if it is one of this key. One that is damaged, or longer than any that pods write, is taken out.
    fn record(&self, key: &Key, (primary, values): (&[u8], &[u8]), answered: Option<&Value>) -> Option<Record> {
        // What is not there is empty.
        let Some(Value::BulkString(bytes)) = answered.filter(|value| !is_empty(value)) else { return None };
        let read = if bytes.len() > self.longest_record() {
            Err(Unreadable::TooLong)
        } else {
            record::read(bytes, self.longest_answer())
        };
        let why = match read {
            Ok(Record::Answer(answer)) if !answer.object.is_for(primary, values) => return None,
            Ok(record) => return Some(record),
            Err(Unreadable::TooLong) => "too_long",
            Err(Unreadable::Corrupt) => "corrupt",
        };
        self.tally.request(why);
        self.write(Write::Remove(key.clone()));
        None
    }
}

/// Asks who has a lease.
pub(super) fn get_holder(pipe: &mut Pipeline, fill: &str) {
    pipe.getrange(fill, 0, LONGEST_HOLDER);
}

/// Whether nothing is there.
fn is_empty(value: &Value) -> bool {
    matches!(value, Value::BulkString(bytes) if bytes.is_empty())
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
