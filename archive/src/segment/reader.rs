//! Reads segments.

use std::{io, ops::Range};

use zstd::{bulk::Decompressor, zstd_safe};

use super::{
    Damage, Error, Flaw, MAX_FRAME, Source,
    layout::{FOOTER_LENGTH, Footer, FrameFacts, Head, Header, Id, Index, MAX_HEADER, PREFIX, SEALED, VERSION},
    query::Query,
    scan::{Found, scan, some},
    seal::{Cipher, Keys, Purpose},
    writer,
};

/// A segment that is being read. Only heads are held in memory, and one frame at a time.
#[derive(Debug)]
pub struct Segment<S> {
    source: S,
    header: Option<Header>,
    id: Id,
    entries: Vec<Entry>,
    damage: Vec<Damage>,
    /// Where its last frame ends.
    end: u64,
    footer: Option<Footer>,
    cipher: Option<Cipher>,
}

/// A frame, and where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Where its head begins.
    pub offset: u64,
    /// The bytes of head and data.
    pub length: u64,
    /// What is known of it.
    pub head: Head,
}

impl Entry {
    /// The bytes of its data in the file.
    pub fn data(&self) -> Range<u64> {
        let end = self.offset + self.length;
        end - u64::from(self.head.stored)..end
    }
}

/// The records of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Which frame of the segment it is.
    pub number: u32,
    raw: Vec<u8>,
}

impl Frame {
    /// The records, each without its line feed.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.raw.split(|byte| *byte == b'\n').filter(|record| !record.is_empty())
    }

    /// All of them, with a line feed after each.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }
}

impl<S: Source> Segment<S> {
    /// Reads what is known of the frames: from the index, or if there is none that is whole, from the frames themselves.
    ///
    /// # Errors
    /// It is no segment, is too new, can't be read or not be decrypted. That parts of it are damaged is no error: see [`Self::damage`].
    pub fn open(source: S, keys: Option<&dyn Keys>) -> Result<Self, Error> {
        Self::find(source, keys, false)
    }

    /// Reads the frames themselves, and leaves those out that are damaged; the index is not believed. All of the file is read.
    ///
    /// # Errors
    /// Like [`Self::open`].
    pub fn scan(source: S, keys: Option<&dyn Keys>) -> Result<Self, Error> {
        Self::find(source, keys, true)
    }

    fn find(source: S, keys: Option<&dyn Keys>, frames: bool) -> Result<Self, Error> {
        let length = source.length()?;
        let start = some(&source, 0, length, MAX_HEADER)?;
        let (header, footer) = (Header::read(&start), read_footer(&source, length)?);
        known(header.as_ref().map(|(header, _)| (header.version, header.compatible)))?;
        known(footer.as_ref().map(|footer| (footer.version, footer.compatible)))?;
        // A footer of another file, glued to this one, is none.
        let footer = footer.filter(|footer| header.as_ref().is_none_or(|(header, _)| header.id == footer.id));
        let cipher = header.as_ref().map(|(header, _)| unlock(header, keys)).transpose()?.flatten();
        let index = footer.as_ref().map(|footer| read_index(&source, footer, length)).transpose()?.flatten();
        let id = header.as_ref().map(|(header, _)| header.id).or(footer.as_ref().map(|footer| footer.id));
        let from = header.as_ref().map_or(0, |(_, length)| *length as u64);
        let (found, footer) = match (index, footer) {
            (Some(_), Some(footer)) if frames => (scan(&source, from..footer.index_offset, id)?, Some(footer)),
            (Some(index), footer) => (from_index(index, from), footer),
            (None, _) => (scan(&source, from..length, id)?, None),
        };
        let id = id.or(found.entries.first().map(|entry| entry.head.id)).ok_or(Error::NotASegment)?;
        let header = header.map(|(header, _)| header);
        let mut segment =
            Self { source, header, id, entries: found.entries, damage: found.damage, end: found.end, footer, cipher };
        segment.note_header();
        segment.open_facts();
        Ok(segment)
    }

    /// What it begins with, unless that is damaged.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How it ends, if it was ended.
    pub fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }

    /// Its frames. Where it has a footer, their data has not been looked at yet.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What can't be read of it, as far as it has been looked at.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Where its last whole frame ends: what comes after it may be cut off.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The frames in which records of a query may be.
    pub fn select<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(|entry| query.may_match(&entry.head))
    }

    /// Reads the records of a frame.
    ///
    /// # Errors
    /// It can't be read ([`Ok(Err)`](Damage): it is damaged, go on with the next).
    pub fn read(&self, entry: &Entry) -> io::Result<Result<Frame, Damage>> {
        let data = entry.data();
        let mut bytes = vec![0; entry.head.stored as usize];
        match self.source.read(data.start, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(damage(entry, Flaw::Torn))),
            Err(error) => Err(error),
            Ok(()) => Ok(decode(&entry.head, bytes, self.cipher.as_ref()).map_err(|flaw| damage(entry, flaw))),
        }
    }

    /// All records that can be read, in their order; a damaged frame is told of in its place.
    pub fn frames(&self) -> impl Iterator<Item = io::Result<Result<Frame, Damage>>> {
        self.entries.iter().map(|entry| self.read(entry))
    }

    /// The end that it has not, for one that was not ended: index and footer, to be put at [`Self::end`].
    pub fn end_bytes(&self) -> Vec<u8> {
        let mut footer = Footer::new(self.id);
        footer.index_offset = self.end;
        let heads: Vec<_> = self.entries.iter().map(|entry| (entry.offset, head_bytes(&entry.head))).collect();
        self.entries.iter().for_each(|entry| footer.add(&entry.head));
        let mut out = Vec::new();
        writer::finish(footer, heads.iter().map(|(offset, head)| (*offset, &head[..])), &mut out);
        out
    }

    fn note_header(&mut self) {
        if self.header.is_none() {
            let bytes = self.entries.first().map_or(self.end, |entry| entry.offset);
            // A scan has told of the same bytes, as of no frame.
            self.damage.retain(|damage| damage.offset != 0);
            self.damage.insert(0, Damage { offset: 0, bytes, frame: None, flaw: Flaw::Header });
        }
    }

    /// Decrypts what frames are found by. What can't be says "may be" to all.
    fn open_facts(&mut self) {
        let Some(cipher) = &self.cipher else { return };
        for Entry { head, .. } in &mut self.entries {
            let opened = cipher.open(head.number, Purpose::Facts, &head.vouched(), head.sealed.clone());
            head.facts = opened.and_then(|facts| FrameFacts::read(&facts));
        }
    }
}

/// The records in the data of a frame, for who has read that by itself, such as by a range request.
pub(super) fn decode(head: &Head, data: Vec<u8>, cipher: Option<&Cipher>) -> Result<Frame, Flaw> {
    if !head.is_of(&data) {
        return Err(Flaw::Data);
    }
    let data = match head.encrypted {
        false => data,
        true => decrypt(head, &data, cipher)?,
    };
    let raw = decompress(head, &data).ok_or(Flaw::Content)?;
    let lines = memchr::memchr_iter(b'\n', &raw).count();
    let empty = raw.first() == Some(&b'\n') || memchr::memmem::find(&raw, b"\n\n").is_some();
    let whole = raw.last().is_none_or(|last| *last == b'\n') && lines == head.records as usize && !empty;
    if whole { Ok(Frame { number: head.number, raw }) } else { Err(Flaw::Content) }
}

fn decrypt(head: &Head, data: &[u8], cipher: Option<&Cipher>) -> Result<Vec<u8>, Flaw> {
    let cipher = cipher.ok_or(Flaw::Locked)?;
    let (prefix, sealed) = data.split_at_checked(PREFIX).ok_or(Flaw::Content)?;
    let length = u32::try_from(sealed.len()).map_err(|_| Flaw::Content)?;
    if prefix[..4] != SEALED.to_le_bytes() || prefix[4..] != length.to_le_bytes() {
        return Err(Flaw::Content);
    }
    cipher.open(head.number, Purpose::Data, &head.vouched(), sealed.to_vec()).ok_or(Flaw::Content)
}

/// One frame of zstd, as long as it is said to be, into as many bytes as it is said to hold.
fn decompress(head: &Head, data: &[u8]) -> Option<Vec<u8>> {
    let raw = head.raw as usize;
    if raw > MAX_FRAME || zstd_safe::find_frame_compressed_size(data) != Ok(data.len()) {
        return None;
    }
    let bytes = Decompressor::new().ok()?.decompress(data, raw).ok()?;
    (bytes.len() == raw).then_some(bytes)
}

fn damage(entry: &Entry, flaw: Flaw) -> Damage {
    Damage { offset: entry.offset, bytes: entry.length, frame: Some(entry.head.number), flaw }
}

fn head_bytes(head: &Head) -> Vec<u8> {
    let mut out = Vec::new();
    head.write(&mut out);
    out
}

fn known(versions: Option<(u16, u16)>) -> Result<(), Error> {
    match versions {
        Some((version, compatible)) if compatible > VERSION => Err(Error::Newer { version, compatible }),
        _ => Ok(()),
    }
}

fn unlock(header: &Header, keys: Option<&dyn Keys>) -> Result<Option<Cipher>, Error> {
    let (Some(lock), Some(keys)) = (&header.lock, keys) else { return Ok(None) };
    Ok(Some(keys.unwrap(&header.id, &lock.key_id, &lock.wrapped)?.cipher()))
}

fn read_footer(source: &impl Source, length: u64) -> io::Result<Option<Footer>> {
    let start = length.saturating_sub(FOOTER_LENGTH as u64);
    Ok(Footer::read(&some(source, start, length, FOOTER_LENGTH)?))
}

/// The index that a footer names, if it ends where the footer begins.
fn read_index(source: &impl Source, footer: &Footer, length: u64) -> io::Result<Option<Index>> {
    let end = footer.index_offset.checked_add(u64::from(footer.index_length));
    if end != length.checked_sub(FOOTER_LENGTH as u64) {
        return Ok(None);
    }
    let bytes = some(source, footer.index_offset, length, footer.index_length as usize)?;
    Ok(Index::read(&bytes, footer))
}

fn from_index(index: Index, from: u64) -> Found {
    let entry = |(offset, head, length): (u64, Head, usize)| {
        let length = length as u64 + u64::from(head.stored);
        Entry { offset, length, head }
    };
    let entries: Vec<Entry> = index.entries.into_iter().map(entry).collect();
    let end = entries.last().map_or(from, |last| last.offset + last.length);
    Found { entries, damage: Vec::new(), end }
}
