//! Segments: files of records in frames that are read one by one.
//!
//! A record is one JSON object in one line. Records are gathered into frames, each compressed by itself, so a reader takes one out of the
//! middle of a file, or out of a bucket by a range request. Each frame begins with a [head](Head): how many records, of which time, with
//! which checksum, and a small filter of what is in it, so that a query leaves frames out unread. At the end stand all heads once more, as
//! an index, and a footer. A file without them, since who wrote it was killed, is read from its front up to its last whole frame.
//!
//! All that is not records is a skippable frame of zstd: `zstd -d < segment.fxs` prints the records, unless they are encrypted.
//! `docs/segment-format.md` has the bytes.

mod error;
mod filter;
mod layout;
mod query;
mod reader;
mod scan;
mod seal;
mod source;
mod writer;

#[cfg(test)]
mod tests;

pub use self::{
    error::{Damage, Error, Flaw, Refused},
    filter::term,
    layout::{FOOTER_LENGTH, Footer, Head, Header, Id, Index, Lock, VERSION},
    query::Query,
    reader::{Entry, Frame, Segment},
    seal::{DataKey, KeyError, Keys, LocalKey},
    source::Source,
    writer::{Pending, Settings, Writer},
};

pub(crate) use self::{seal::random_id, writer::check};

/// The most bytes of records that a frame holds. A reader gives no frame more memory, whatever it says.
pub const MAX_FRAME: usize = 8 << 20;
/// The largest record, in bytes. A larger one is refused by the writer.
pub const MAX_RECORD: usize = 4 << 20;
/// The most frames of a segment.
pub const MAX_FRAMES: usize = 4096;
/// The most terms that a record may have. What is above is left out of the filter of its frame, which then says "may be" to all.
pub const MAX_TERMS: usize = 256;

/// What a record is found by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Facts<'a> {
    /// When it was, in nanoseconds since 1970.
    pub time: i64,
    /// The status of the answer. 0 for a record without one.
    pub status: u16,
    /// What it is found by: see [`term`].
    pub terms: &'a [u64],
}
