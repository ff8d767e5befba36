//! With what a file ends.

use bytes::{Buf as _, BufMut as _};

use super::{
    COMPATIBLE, FOOTER, FOOTER_LENGTH, FOOTER_MARK, Head, INDEX, INDEX_MARK, Id, MAX_INDEX, PREFIX, VERSION, frame, id, open,
};
use crate::segment::MAX_FRAMES;

/// All heads, and where they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Index {
    pub(in crate::segment) id: Id,
    /// The offset of each head, the head, and its length.
    pub(in crate::segment) entries: Vec<(u64, Head, usize)>,
}

impl Index {
    /// How long it gets by another head.
    pub(in crate::segment) fn grows_by(head_length: usize) -> usize {
        8 + head_length
    }

    /// How long one without heads is.
    pub(in crate::segment) const EMPTY: usize = PREFIX + 4 + 4 + 16 + 4 + 8;

    /// Writes one of the bytes of heads.
    pub(in crate::segment) fn write<'a>(id: Id, heads: impl ExactSizeIterator<Item = (u64, &'a [u8])>, out: &mut Vec<u8>) {
        frame(out, INDEX, |out| {
            out.put_slice(INDEX_MARK);
            out.put_u16_le(COMPATIBLE);
            out.put_u16_le(0);
            out.put_slice(&id.0);
            out.put_u32_le(u32::try_from(heads.len()).expect("there are few frames"));
            for (offset, head) in heads {
                out.put_u64_le(offset);
                out.put_slice(head);
            }
        });
    }

    /// Reads the index of a file from the bytes that its footer names. None if it is not whole.
    pub fn read(bytes: &[u8], footer: &Footer) -> Option<Self> {
        let (mut rest, length) = open(bytes, INDEX, INDEX_MARK, MAX_INDEX)?;
        let compatible = rest.try_get_u16_le().ok()?;
        rest.try_get_u16_le().ok()?;
        let id = id(&mut rest)?;
        let count = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
        if compatible > VERSION
            || length != bytes.len()
            || id != footer.id
            || count > MAX_FRAMES
            || count != footer.frames as usize
        {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        let mut end = 0;
        for _ in 0..count {
            let offset = rest.try_get_u64_le().ok()?;
            let (head, length) = Head::read(rest)?;
            rest = rest.get(length..)?;
            let ahead = entries.last().is_none_or(|(_, before, _): &(u64, Head, usize)| before.number < head.number);
            if offset < end || head.id != id || !ahead || head.compatible > VERSION {
                return None;
            }
            end = offset.checked_add((length as u64) + u64::from(head.stored))?;
            entries.push((offset, head, length));
        }
        (end <= footer.index_offset).then_some(Self { id, entries })
    }

    /// The heads and where they begin in the file.
    pub fn heads(&self) -> impl Iterator<Item = (u64, &Head)> {
        self.entries.iter().map(|(offset, head, _)| (*offset, head))
    }

    /// Whether bytes begin as an index does.
    pub(in crate::segment) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&INDEX.to_le_bytes()) && bytes.get(PREFIX..).is_some_and(|rest| rest.starts_with(INDEX_MARK))
    }
}

/// The end of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Footer {
    /// The version that it was written in.
    pub version: u16,
    /// The lowest version of a reader that may read it.
    pub compatible: u16,
    /// Whose end it is.
    pub id: Id,
    /// Where the index begins.
    pub index_offset: u64,
    /// How many bytes the index has.
    pub index_length: u32,
    /// How many frames there are.
    pub frames: u32,
    /// How many records.
    pub records: u64,
    /// Their bytes, with the line feed after each.
    pub raw: u64,
    /// The time of the earliest record. 0 without any.
    pub first: i64,
    /// The time of the latest record. 0 without any.
    pub last: i64,
}

impl Footer {
    /// One whose totals are nothing.
    pub(in crate::segment) fn new(id: Id) -> Self {
        let (version, compatible) = (VERSION, COMPATIBLE);
        Self { version, compatible, id, index_offset: 0, index_length: 0, frames: 0, records: 0, raw: 0, first: 0, last: 0 }
    }

    /// Takes a frame into its totals.
    pub(in crate::segment) fn add(&mut self, head: &Head) {
        (self.first, self.last) = match self.frames {
            0 => (head.first, head.last),
            _ => (self.first.min(head.first), self.last.max(head.last)),
        };
        self.frames += 1;
        self.records += u64::from(head.records);
        self.raw += u64::from(head.raw);
    }

    pub(in crate::segment) fn write(&self, out: &mut Vec<u8>) {
        frame(out, FOOTER, |out| {
            out.put_slice(FOOTER_MARK);
            out.put_u16_le(self.version);
            out.put_u16_le(self.compatible);
            out.put_slice(&self.id.0);
            out.put_u64_le(self.index_offset);
            out.put_u32_le(self.index_length);
            out.put_u32_le(self.frames);
            out.put_u64_le(self.records);
            out.put_u64_le(self.raw);
            out.put_i64_le(self.first);
            out.put_i64_le(self.last);
        });
    }

    /// Reads the footer from the last bytes of a file, as many as there are. None if there is none.
    pub fn read(tail: &[u8]) -> Option<Self> {
        let tail = tail.get(tail.len().checked_sub(FOOTER_LENGTH)?..)?;
        let (mut rest, length) = open(tail, FOOTER, FOOTER_MARK, FOOTER_LENGTH)?;
        let footer = Self {
            version: rest.try_get_u16_le().ok()?,
            compatible: rest.try_get_u16_le().ok()?,
            id: id(&mut rest)?,
            index_offset: rest.try_get_u64_le().ok()?,
            index_length: rest.try_get_u32_le().ok()?,
            frames: rest.try_get_u32_le().ok()?,
            records: rest.try_get_u64_le().ok()?,
            raw: rest.try_get_u64_le().ok()?,
            first: rest.try_get_i64_le().ok()?,
            last: rest.try_get_i64_le().ok()?,
        };
        let sane = footer.index_length as usize <= MAX_INDEX && footer.frames as usize <= MAX_FRAMES;
        (length == tail.len() && sane).then_some(footer)
    }
}
