//! The bytes of everything in a segment that is not records. All numbers are little-endian.

use bytes::{Buf, BufMut};
use twox_hash::XxHash3_64;

use super::{MAX_FRAME, MAX_FRAMES, filter};

/// The version that is written.
pub const VERSION: u16 = 1;
/// The lowest version of a reader that may read what is written.
const COMPATIBLE: u16 = 1;
/// Bytes of a footer: reading so many from the end of a file is enough to find its index.
pub const FOOTER_LENGTH: usize = PREFIX + 80;

/// Magic number and length of a skippable frame (RFC 8878 section 3.1.2).
pub(super) const PREFIX: usize = 8;
/// The longest header with its prefix.
pub(super) const MAX_HEADER: usize = 8 << 10;
/// The longest head of a frame with its prefix.
pub(super) const MAX_HEAD: usize = 4 << 10;
/// The longest index with its prefix.
pub(super) const MAX_INDEX: usize = 16 << 20;
/// The longest data of a frame: zstd makes what it can't compress a little longer, encryption adds its prefix and tag.
pub(super) const MAX_STORED: usize = MAX_FRAME + (MAX_FRAME >> 8) + 1024;
/// The longest id of a key, and the longest wrapped key.
pub(super) const MAX_KEY_ID: usize = 1024;
pub(super) const MAX_WRAPPED: usize = 4096;

const HEADER: u32 = 0x184d_2a50;
pub(super) const HEAD: u32 = 0x184d_2a51;
const INDEX: u32 = 0x184d_2a52;
const FOOTER: u32 = 0x184d_2a53;
pub(super) const SEALED: u32 = 0x184d_2a54;

const HEADER_MARK: &[u8] = b"FXSH";
const HEAD_MARK: &[u8] = b"FXSF";
const INDEX_MARK: &[u8] = b"FXSI";
const FOOTER_MARK: &[u8] = b"FXSE";

/// The first bit of the flags: what follows is encrypted.
const ENCRYPTED: u16 = 1;
/// The bytes of a head that encryption vouches for: all before the checksum of the data.
const VOUCHED: usize = 56;

/// What makes a segment's frames its own: 16 random bytes. So no data of a record can pass for a frame.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Id(pub [u8; 16]);

/// The beginning of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The version that it was written in.
    pub version: u16,
    /// The lowest version of a reader that may read it.
    pub compatible: u16,
    /// Whose frames are in it.
    pub id: Id,
    /// When it was begun, in nanoseconds since 1970.
    pub created: i64,
    /// What its frames are encrypted with.
    pub lock: Option<Lock>,
}

/// The data key of a segment, wrapped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lock {
    /// Which key it is wrapped by.
    pub key_id: String,
    /// The data key.
    pub wrapped: Vec<u8>,
}

impl Header {
    pub(super) fn new(id: Id, created: i64, lock: Option<Lock>) -> Self {
        Self { version: VERSION, compatible: COMPATIBLE, id, created, lock }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        frame(out, HEADER, |out| {
            out.put_slice(HEADER_MARK);
            out.put_u16_le(self.version);
            out.put_u16_le(self.compatible);
            let (key_id, wrapped) = self.lock.as_ref().map_or((&[][..], &[][..]), |lock| (lock.key_id.as_bytes(), &lock.wrapped[..]));
            out.put_u16_le(if self.lock.is_some() { ENCRYPTED } else { 0 });
            out.put_u16_le(narrow(key_id.len()));
            out.put_u16_le(narrow(wrapped.len()));
            out.put_u16_le(0);
            out.put_slice(&self.id.0);
            out.put_i64_le(self.created);
            out.put_slice(key_id);
            out.put_slice(wrapped);
        });
    }

    /// Reads the header with which a file begins, and how long it is. None if there is none that is whole.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (mut rest, length) = open(bytes, HEADER, HEADER_MARK, MAX_HEADER)?;
        let (version, compatible) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
        let flags = rest.try_get_u16_le().ok()?;
        let (key_id, wrapped) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
        rest.try_get_u16_le().ok()?;
        let (id, created) = (id(&mut rest)?, rest.try_get_i64_le().ok()?);
        let key_id = take(&mut rest, key_id.into())?;
        let wrapped = take(&mut rest, wrapped.into())?.to_vec();
        let lock = match flags & ENCRYPTED {
            0 => None,
            _ => Some(Lock { key_id: String::from_utf8(key_id.to_vec()).ok()?, wrapped }),
        };
        Some((Self { version, compatible, id, created, lock }, length))
    }
}

/// The beginning of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    /// The lowest version of a reader that may read it.
    pub(super) compatible: u16,
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
    pub(super) checksum: u64,
    /// Whether the data and what it is found by are encrypted.
    pub encrypted: bool,
    /// What its records are found by, as it is written.
    pub(super) sealed: Vec<u8>,
    /// The same, unless it is encrypted and nobody has decrypted it.
    pub(super) facts: Option<FrameFacts>,
    /// What a newer version has added. It is kept, so that the head stays as long as it is.
    pub(super) more: Vec<u8>,
}

/// What the records of a frame are found by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FrameFacts {
    /// The lowest and the highest.
    pub(super) statuses: (u16, u16),
    pub(super) filter: Vec<u8>,
}

impl FrameFacts {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.filter.len());
        out.put_u16_le(self.statuses.0);
        out.put_u16_le(self.statuses.1);
        out.put_slice(&self.filter);
        out
    }

    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        let statuses = (bytes.try_get_u16_le().ok()?, bytes.try_get_u16_le().ok()?);
        let whole = bytes.len().is_multiple_of(filter::BLOCK);
        whole.then(|| Self { statuses, filter: bytes.to_vec() })
    }

    pub(super) fn may_hold(&self, term: u64) -> bool {
        filter::may_hold(&self.filter, term)
    }
}

impl Head {
    /// What encryption vouches for, too.
    pub(super) fn vouched(&self) -> Vec<u8> {
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
    pub(super) fn compatible() -> u16 {
        COMPATIBLE
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
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
    pub(super) fn is_of(&self, data: &[u8]) -> bool {
        data.len() == self.stored as usize && XxHash3_64::oneshot(data) == self.checksum
    }
}

/// All heads, and where they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Index {
    pub(super) id: Id,
    /// The offset of each head, the head, and its length.
    pub(super) entries: Vec<(u64, Head, usize)>,
}

impl Index {
    /// How long it gets by another head.
    pub(super) fn grows_by(head_length: usize) -> usize {
        8 + head_length
    }

    /// How long one without heads is.
    pub(super) const EMPTY: usize = PREFIX + 4 + 4 + 16 + 4 + 8;

    /// Writes one of the bytes of heads.
    pub(super) fn write<'a>(id: Id, heads: impl ExactSizeIterator<Item = (u64, &'a [u8])>, out: &mut Vec<u8>) {
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
        if compatible > VERSION || length != bytes.len() || id != footer.id || count > MAX_FRAMES || count != footer.frames as usize {
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
    pub(super) fn begins(bytes: &[u8]) -> bool {
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
    pub(super) fn new(id: Id) -> Self {
        let (version, compatible) = (VERSION, COMPATIBLE);
        Self { version, compatible, id, index_offset: 0, index_length: 0, frames: 0, records: 0, raw: 0, first: 0, last: 0 }
    }

    /// Takes a frame into its totals.
    pub(super) fn add(&mut self, head: &Head) {
        (self.first, self.last) = match self.frames {
            0 => (head.first, head.last),
            _ => (self.first.min(head.first), self.last.max(head.last)),
        };
        self.frames += 1;
        self.records += u64::from(head.records);
        self.raw += u64::from(head.raw);
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
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

/// A skippable frame: its prefix, what is written into it, and a checksum of that.
fn frame(out: &mut Vec<u8>, magic: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32_le(magic);
    out.put_u32_le(0);
    fill(out);
    let checksum = XxHash3_64::oneshot(&out[start + PREFIX..]);
    out.put_u64_le(checksum);
    let length = u32::try_from(out.len() - start - PREFIX).expect("it is bounded");
    out[start + 4..start + PREFIX].copy_from_slice(&length.to_le_bytes());
}

/// What is in a skippable frame behind its mark, and how long it is with its prefix. None if it is another one, damaged, or too long.
fn open<'a>(bytes: &'a [u8], magic: u32, mark: &[u8], longest: usize) -> Option<(&'a [u8], usize)> {
    let mut rest = bytes;
    if rest.try_get_u32_le().ok()? != magic {
        return None;
    }
    let length = rest.try_get_u32_le().ok()? as usize;
    if length > longest - PREFIX {
        return None;
    }
    let body = rest.get(..length)?;
    let (inner, mut checksum) = body.split_at(length.checked_sub(8)?);
    let whole = inner.starts_with(mark) && checksum.get_u64_le() == XxHash3_64::oneshot(inner);
    whole.then(|| (&inner[mark.len()..], PREFIX + length))
}

fn id(rest: &mut &[u8]) -> Option<Id> {
    let mut id = [0; 16];
    id.copy_from_slice(take(rest, 16)?);
    Some(Id(id))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn narrow(length: usize) -> u16 {
    u16::try_from(length).expect("it is bounded")
}
