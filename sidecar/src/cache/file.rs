//! A file of answers: what a cache exports, and what one that begins takes.
//!
//! ```text
//! offset  bytes
//!      0  4  "FXC" and the version of the format, 1
//!      4  8  when it was begun, in milliseconds since 1970
//!     12     records, in no order: 4 length, 1 or more, and a record as `record` writes it, with its own checksum
//!            the end: 4 zeros, 8 number of records, 8 bytes of all records, 8 XXH3-64 of all that stands before it
//! ```
//!
//! Numbers are little endian. A record has all that is known of an answer: its key with policy and rule, variant, fields and body; its age of
//! when it was written and that moment, what it is fresh and kept for; its tags; and which purges were known when its fetch began.
//!
//! Nothing here waits for bytes, or asks where they come from. A reader holds one record.

use std::hash::Hasher as _;

use bytes::{Buf as _, Bytes, BytesMut};
use twox_hash::xxhash3_64::Hasher;

use super::{
    key::Target,
    record::{self, Answer, Record},
};

/// "FXC", and behind it the version.
const MAGIC: [u8; 3] = *b"FXC";
const VERSION: u8 = 1;
const HEADER: usize = 12;
/// A length before each record; 0 stands before the end.
const LENGTH: usize = 4;
const END: usize = 24;
/// The longest record that is written, and the longest answer: what reads a file never holds more.
pub const LONGEST: usize = 64 << 20;

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// How many answers.
    pub answers: u64,
    /// Bytes of their records.
    pub bytes: u64,
}

/// Writes a file, piece by piece.
pub struct Writer {
    sum: Hasher,
    counts: Counts,
}

/// Why an answer is not written: it is longer than a reader takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooLong;

impl Writer {
    /// Begins at a moment, in milliseconds since 1970.
    pub fn begin(wall: i64, out: &mut Vec<u8>) -> Self {
        let mut file = Self { sum: Hasher::new(), counts: Counts::default() };
        file.put(&MAGIC, out);
        file.put(&[VERSION], out);
        file.put(&wall.to_le_bytes(), out);
        file
    }

    /// Writes an answer.
    pub(crate) fn add(&mut self, answer: &Answer, out: &mut Vec<u8>) -> Result<(), TooLong> {
        // Before it is packed, which takes long.
        if answer.object.body_len() > LONGEST as u64 {
            return Err(TooLong);
        }
        self.add_record(&record::of_answer(answer), out)
    }

    /// Writes a record, whatever it holds.
    pub(crate) fn add_record(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
        let length = u32::try_from(record.len()).ok().filter(|length| (1..=LONGEST).contains(&(*length as usize)));
        self.put(&length.ok_or(TooLong)?.to_le_bytes(), out);
        self.put(record, out);
        self.counts.answers += 1;
        self.counts.bytes += record.len() as u64;
        Ok(())
    }

    /// What was written up to now.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Writes the end.
    pub fn end(mut self, out: &mut Vec<u8>) {
        self.put(&[0; LENGTH], out);
        self.put(&self.counts.answers.to_le_bytes(), out);
        self.put(&self.counts.bytes.to_le_bytes(), out);
        out.extend_from_slice(&self.sum.finish().to_le_bytes());
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.sum.write(bytes);
        out.extend_from_slice(bytes);
    }
}

/// A part of a file that has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Its beginning, and when it was begun, in milliseconds since 1970.
    Begun(i64),
    /// A record, as it was written.
    Record(Bytes),
    /// A record was passed over, for it has so many bytes.
    TooLong(u64),
    /// It is whole.
    End(Counts),
}

/// What is wrong with a file, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Damaged {
    /// Bytes before what is wrong.
    pub at: u64,
    /// What it is.
    pub what: Damage,
}

/// What may be wrong with a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Damage {
    /// It begins with something else.
    #[error("this is no file of answers")]
    Foreign,
    /// It was written by another version.
    #[error("it has version {0} of the format, and this program reads version 1")]
    Version(u8),
    /// A length that no record has.
    #[error("no record is as long as it says here")]
    Length,
    /// The record that begins here is not as it was written.
    #[error("the checksum of the record that begins here is wrong")]
    Record,
    /// The end says other numbers.
    #[error("the records before its end are not as many, or not as long, as it says")]
    Counts,
    /// Something before it is not as it was written.
    #[error("the checksum of the whole is wrong")]
    Sum,
    /// It goes on.
    #[error("there is something behind its end")]
    Behind,
    /// It has no end.
    #[error("it is cut off: its end is missing")]
    CutOff,
}

/// Reads a file as its bytes come.
pub struct Reader {
    /// Bytes of the longest record that is given.
    most: usize,
    held: BytesMut,
    /// Bytes that were read.
    at: u64,
    sum: Hasher,
    next: Next,
    counts: Counts,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Header,
    Length,
    Record(usize),
    /// So much of a record that is passed over, of so many bytes.
    Passed(usize, u64),
    End,
    Nothing,
}

impl Reader {
    /// One that gives records of at most so many bytes, and passes over longer ones.
    pub fn new(most: usize) -> Self {
        let (held, counts) = (BytesMut::new(), Counts::default());
        Self { most: most.min(LONGEST), held, at: 0, sum: Hasher::new(), next: Next::Header, counts }
    }

    /// Takes bytes. They are to be read before more are taken.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next piece of what has come. None until more has.
    ///
    /// # Errors
    /// What is wrong, and where. Nothing can be read then.
    pub fn read(&mut self) -> Result<Option<Piece>, Damaged> {
        loop {
            let step = match self.next {
                Next::Header => self.header(),
                Next::Length => self.length(),
                Next::Record(length) => self.record(length),
                Next::Passed(left, length) => self.pass(left, length),
                Next::End => self.end(),
                Next::Nothing if self.held.is_empty() => return Ok(None),
                Next::Nothing => Err(self.damaged(Damage::Behind)),
            };
            match step? {
                Step::Piece(piece) => return Ok(Some(piece)),
                Step::More => return Ok(None),
                Step::On => {}
            }
        }
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// That it is not whole.
    pub fn finish(&self) -> Result<Counts, Damaged> {
        match self.next {
            Next::Nothing => Ok(self.counts),
            _ => Err(Damaged { at: self.at + self.held.len() as u64, what: Damage::CutOff }),
        }
    }

    fn header(&mut self) -> Result<Step, Damaged> {
        // A foreign file is known by its first bytes, however short it is.
        let begins = self.held.len().min(MAGIC.len());
        if self.held[..begins] != MAGIC[..begins] {
            return Err(self.damaged(Damage::Foreign));
        }
        match self.held.get(MAGIC.len()) {
            Some(&VERSION) | None => {}
            Some(other) => return Err(self.damaged(Damage::Version(*other))),
        }
        let Some(header) = self.take(HEADER) else { return Ok(Step::More) };
        self.next = Next::Length;
        Ok(Step::Piece(Piece::Begun(long(&header[4..]).cast_signed())))
    }

    fn length(&mut self) -> Result<Step, Damaged> {
        let at = self.at;
        let Some(length) = self.take(LENGTH) else { return Ok(Step::More) };
        self.next = match length[..].try_into().map(u32::from_le_bytes).unwrap_or_default() as usize {
            0 => Next::End,
            length if length > LONGEST => return Err(Damaged { at, what: Damage::Length }),
            length if length > self.most => Next::Passed(length, length as u64),
            length => Next::Record(length),
        };
        Ok(Step::On)
    }

    fn record(&mut self, length: usize) -> Result<Step, Damaged> {
        let at = self.at;
        let Some(record) = self.take(length) else { return Ok(Step::More) };
        if !record::is_whole(&record) {
            return Err(Damaged { at, what: Damage::Record });
        }
        self.counted(length as u64);
        Ok(Step::Piece(Piece::Record(record)))
    }

    fn pass(&mut self, left: usize, length: u64) -> Result<Step, Damaged> {
        let now = left.min(self.held.len());
        drop(self.take(now));
        if now < left {
            self.next = Next::Passed(left - now, length);
            return Ok(Step::More);
        }
        self.counted(length);
        Ok(Step::Piece(Piece::TooLong(length)))
    }

    fn end(&mut self) -> Result<Step, Damaged> {
        if self.held.len() < END {
            return Ok(Step::More);
        }
        let at = self.at;
        let counts = self.take(END - 8).unwrap_or_default();
        if (long(&counts), long(&counts[8..])) != (self.counts.answers, self.counts.bytes) {
            return Err(Damaged { at, what: Damage::Counts });
        }
        let (at, sum) = (self.at, self.sum.finish());
        if self.take(8).is_none_or(|read| long(&read) != sum) {
            return Err(Damaged { at, what: Damage::Sum });
        }
        self.next = Next::Nothing;
        Ok(Step::Piece(Piece::End(self.counts)))
    }

    fn counted(&mut self, bytes: u64) {
        self.counts.answers += 1;
        self.counts.bytes = self.counts.bytes.saturating_add(bytes);
        self.next = Next::Length;
    }

    /// So many bytes, if they have come.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.held.len() < length {
            return None;
        }
        let taken = self.held.split_to(length).freeze();
        self.sum.write(&taken);
        self.at += length as u64;
        Some(taken)
    }

    fn damaged(&self, what: Damage) -> Damaged {
        Damaged { at: self.at, what }
    }
}

/// What became of a step.
enum Step {
    Piece(Piece),
    /// There is another one at once.
    On,
    /// More has to come.
    More,
}

fn long(bytes: &[u8]) -> u64 {
    let mut bytes = bytes;
    bytes.try_get_u64_le().unwrap_or_default()
}

/// The URL that a record is the answer to, with its scheme; none if it can't be told, for the key leaves the host out, or the record can't
/// be read.
pub fn url_of(record: &[u8]) -> Option<String> {
    match record::read(record, LONGEST) {
        Ok(Record::Answer(answer)) => {
            Some(Target::of(answer.object.primary())).filter(|target| !target.scheme.is_empty()).map(|target| target.url())
        }
        Ok(Record::Vary { .. }) | Err(_) => None,
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("at", &self.at).field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
