//! What is wrong with a segment, and where.

use std::{fmt, io};

use super::seal::KeyError;

/// Why a segment can't be read, or not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else, or nothing of it is left.
    #[error("this is no segment: it does not begin as one, and no frame of one is in it")]
    NotASegment,
    /// It needs a newer reader.
    #[error("the segment has version {version}, which takes a reader of version {compatible}; this one has {}", super::VERSION)]
    Newer {
        /// The version that it was written in.
        version: u16,
        /// The lowest version of a reader that may read it.
        compatible: u16,
    },
    /// Its data key can't be had.
    #[error("the segment's data key can't be had")]
    Key(#[from] KeyError),
    /// It can't be read from where it is.
    #[error("the segment can't be read")]
    Io(#[from] io::Error),
    /// Its data can't be compressed.
    #[error("the frame can't be compressed")]
    Compress(#[source] io::Error),
}

/// Why a record is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// It is too long.
    #[error("the record has {0} bytes; {max} are allowed", max = super::MAX_RECORD)]
    TooLarge(usize),
    /// It has more than a line, or none.
    #[error("a record is one line: it is not empty, and has no line feed")]
    NotALine,
}

/// Bytes that can't be read as what they were.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Damage {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
    /// Which frame it was, if that is known.
    pub frame: Option<u32>,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What is wrong with bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flaw {
    /// The file's header is not as it was written. No record is lost, but those that are encrypted can't be read.
    Header,
    /// No frame begins here, where one has to.
    Head,
    /// The data of a frame is not as it was written.
    Data,
    /// The data is as it was written, but not what its head says.
    Content,
    /// The file ends within a frame.
    Torn,
    /// The index or the footer is not as it was written. No record is lost.
    Index,
    /// It is encrypted, and there is no key.
    Locked,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, bytes, frame, flaw } = self;
        let what = match flaw {
            Flaw::Header => "the header is damaged",
            Flaw::Head => "no frame begins here",
            Flaw::Data => "the frame is damaged",
            Flaw::Content => "the frame is not what its head says",
            Flaw::Torn => "the file ends within a frame",
            Flaw::Index => "the index is damaged",
            Flaw::Locked => "the frame is encrypted, and there is no key",
        };
        write!(f, "{bytes} bytes at {offset}")?;
        frame.map_or(Ok(()), |frame| write!(f, ", frame {frame}"))?;
        write!(f, ": {what}")
    }
}

impl std::error::Error for Damage {}
