//! With what a frame begins.

use bytes::{Buf as _, BufMut as _};
use twox_hash::XxHash3_64;

use super::{COMPATIBLE, ENCRYPTED, HEAD, HEAD_MARK, Id, MAX_HEAD, MAX_STORED, VERSION, VOUCHED, frame, id, narrow, open, take};
use crate::segment::{MAX_FRAME, filter};

/// The beginning of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    /// The lowest version of a reader that may read it.
    pub(in crate::segment) compatible: u16,
    /// The segment that it is of.
    pub id: Id,
    /// Which frame of the segment it is. A number may be missing: what could not be written is not there.
    pub number: u32,
    /// How many records it has.
    pub records: u32,
    /// Their bytes, with the line feed after each.
    pub raw: u32,
    /// The bytes of the data that follows.
    pub stored: u32,
    /// The time of the earliest record.
    pub first: i64,
    /// The time of the latest record.
    pub last: i64,
    /// XXH3 of the data.
    pub(in crate::segment) checksum: u64,
    /// Whether the data and what it is found by are encrypted.
    pub encrypted: bool,
    /// What its records are found by, as it is written.
    pub(in crate::segment) sealed: Vec<u8>,
    /// The same, unless it is encrypted and nobody has decrypted it.
    pub(in crate::segment) facts: Option<FrameFacts>,
    /// What a newer version has added. It is kept, so that the head stays as long as it is.
    pub(in crate::segment) more: Vec<u8>,
}

/// What the records of a frame are found by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::segment) struct FrameFacts {
    /// The lowest and the highest.
    pub(in crate::segment) statuses: (u16, u16),
    pub(in crate::segment) filter: Vec<u8>,
}

impl FrameFacts {
    pub(in crate::segment) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.filter.len());
        out.put_u16_le(self.statuses.0);
        out.put_u16_le(self.statuses.1);
        out.put_slice(&self.filter);
        out
    }

    pub(in crate::segment) fn read(mut bytes: &[u8]) -> Option<Self> {
        let statuses = (bytes.try_get_u16_le().ok()?, bytes.try_get_u16_le().ok()?);
        let whole = bytes.len().is_multiple_of(filter::BLOCK);
        whole.then(|| Self { statuses, filter: bytes.to_vec() })
    }

    pub(in crate::segment) fn may_hold(&self, term: u64) -> bool {
        filter::may_hold(&self.filter, term)
    }
}

impl Head {
    /// What encryption vouches for, too.
    pub(in crate::segment) fn vouched(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(VOUCHED);
        out.put_slice(HEAD_MARK);
        out.put_u16_le(self.compatible);
        out.put_u16_le(if self.encrypted { ENCRYPTED } else { 0 });
        out.put_slice(&self.id.0);
        out.put_u32_le(self.number);
        out.put_u32_le(self.records);
        out.put_u32_le(self.raw);
        out.put_u32_le(self.stored);
        out.put_i64_le(self.first);
        out.put_i64_le(self.last);
        out
    }

    /// The lowest version of a reader that may read what this one writes.
    pub(in crate::segment) fn compatible() -> u16 {
        COMPATIBLE
    }

    pub(in crate::segment) fn write(&self, out: &mut Vec<u8>) {
        frame(out, HEAD, |out| {
            out.put_slice(&self.vouched());
            out.put_u64_le(self.checksum);
            out.put_u16_le(narrow(self.sealed.len()));
            out.put_u16_le(0);
            out.put_slice(&self.sealed);
            out.put_slice(&self.more);
        });
    }

    /// Reads the head with which a frame begins, and how long it is. None if there is none that is whole.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (mut rest, length) = open(bytes, HEAD, HEAD_MARK, MAX_HEAD)?;
        let (compatible, flags) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
        let id = id(&mut rest)?;
        let (number, records) = (rest.try_get_u32_le().ok()?, rest.try_get_u32_le().ok()?);
        let (raw, stored) = (rest.try_get_u32_le().ok()?, rest.try_get_u32_le().ok()?);
        let (first, last) = (rest.try_get_i64_le().ok()?, rest.try_get_i64_le().ok()?);
        let checksum = rest.try_get_u64_le().ok()?;
        let sealed = rest.try_get_u16_le().ok()?;
        rest.try_get_u16_le().ok()?;
        let sealed = take(&mut rest, sealed.into())?.to_vec();
        let encrypted = flags & ENCRYPTED != 0;
        // What a newer version has there is known to it alone.
        let facts = if encrypted || compatible > VERSION { None } else { Some(FrameFacts::read(&sealed)?) };
        let sane = raw as usize <= MAX_FRAME && stored as usize <= MAX_STORED && records <= raw / 2 && first <= last;
        let more = rest.to_vec();
        let head = Self { compatible, id, number, records, raw, stored, first, last, checksum, encrypted, sealed, facts, more };
        sane.then_some((head, length))
    }

    /// Whether data is that of the frame.
    pub(in crate::segment) fn is_of(&self, data: &[u8]) -> bool {
        data.len() == self.stored as usize && XxHash3_64::oneshot(data) == self.checksum
    }
}
