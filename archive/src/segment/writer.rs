//! Makes the bytes of a segment. Where they go, and when, is somebody else's matter.

use std::{fmt, io};

use bytes::BufMut;
use twox_hash::XxHash3_64;
use zstd::{bulk::Compressor, zstd_safe::CParameter};

use super::{
    Error, Facts, MAX_FRAME, MAX_FRAMES, MAX_RECORD, Refused,
    filter::Terms,
    layout::{
        FOOTER_LENGTH, Footer, FrameFacts, Head, Header, Id, Index, Lock, MAX_INDEX, MAX_KEY_ID, MAX_WRAPPED, PREFIX, SEALED,
    },
    seal::{Cipher, DataKey, KeyError, Keys, Purpose, TAG},
};

/// How segments are written.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A frame of so many bytes of records is full. At most 4 MiB.
    pub frame_bytes: usize,
    /// A frame of so many records is full.
    pub frame_records: u32,
    /// The level of zstd, 1 to 22.
    pub level: i32,
}

impl Default for Settings {
    /// Frames of 1 MiB or 65,536 records, level 3.
    fn default() -> Self {
        Self { frame_bytes: 1 << 20, frame_records: 1 << 16, level: 3 }
    }
}

/// Writes a segment.
pub struct Writer {
    settings: Settings,
    compressor: Compressor<'static>,
    header: Header,
    cipher: Option<Cipher>,
    gathered: Gathered,
    next: u32,
    /// How long the file is.
    position: u64,
    /// The heads of the frames that were written, as bytes.
    heads: Vec<(u64, Vec<u8>)>,
    /// How long the index is.
    index: usize,
    footer: Footer,
}

/// The records of the frame that comes next.
#[derive(Debug, Default)]
struct Gathered {
    raw: Vec<u8>,
    records: u32,
    times: Option<(i64, i64)>,
    statuses: Option<(u16, u16)>,
    terms: Terms,
}

/// A frame whose bytes were made. They count once [`Writer::written`] is told that they are in the file, and else were never there.
#[must_use]
#[derive(Debug)]
pub struct Pending {
    head: Head,
    /// The head as bytes.
    bytes: Vec<u8>,
}

impl Pending {
    /// How many records it has.
    pub fn records(&self) -> u32 {
        self.head.records
    }

    /// How many bytes it has in the file.
    pub fn length(&self) -> u64 {
        self.bytes.len() as u64 + u64::from(self.head.stored)
    }

    /// How many bytes of records, with the line feed after each.
    pub fn raw(&self) -> u32 {
        self.head.raw
    }
}

impl Writer {
    /// Begins a segment: its header is put at the end of `out`. `created` are nanoseconds since 1970.
    ///
    /// # Errors
    /// No data key can be had, or the settings are not what zstd takes.
    pub fn new(settings: Settings, id: Id, created: i64, keys: Option<&dyn Keys>, out: &mut Vec<u8>) -> Result<Self, Error> {
        let (lock, cipher) = match keys {
            None => (None, None),
            Some(keys) => {
                let key = keys.data_key()?;
                (Some(lock(keys, &id, &key)?), Some(key.cipher()))
            }
        };
        let header = Header::new(id, created, lock);
        let start = out.len();
        header.write(out);
        let position = (out.len() - start) as u64;
        let settings = Settings { frame_bytes: settings.frame_bytes.clamp(1, MAX_FRAME / 2), ..settings };
        let gathered = Gathered::default();
        let compressor = compressor(settings.level).map_err(Error::Compress)?;
        let footer = Footer::new(id);
        Ok(Self {
            settings,
            compressor,
            header,
            cipher,
            gathered,
            next: 0,
            position,
            heads: Vec::new(),
            index: Index::EMPTY,
            footer,
        })
    }

    /// What the file begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes a record into the frame that comes next.
    ///
    /// # Errors
    /// Why it is not taken. All else stays as it was.
    pub fn push(&mut self, record: &[u8], facts: &Facts<'_>) -> Result<(), Refused> {
        check(record)?;
        let gathered = &mut self.gathered;
        gathered.raw.extend_from_slice(record);
        gathered.raw.push(b'\n');
        gathered.records += 1;
        let (first, last) = gathered.times.unwrap_or((facts.time, facts.time));
        gathered.times = Some((first.min(facts.time), last.max(facts.time)));
        let (lowest, highest) = gathered.statuses.unwrap_or((facts.status, facts.status));
        gathered.statuses = Some((lowest.min(facts.status), highest.max(facts.status)));
        gathered.terms.add(facts.terms);
        Ok(())
    }

    /// Whether the frame is full: it has to be made before the next record.
    pub fn is_full(&self) -> bool {
        self.gathered.raw.len() >= self.settings.frame_bytes || self.gathered.records >= self.settings.frame_records
    }

    /// Whether the segment takes no more frames.
    pub fn is_complete(&self) -> bool {
        self.next as usize >= MAX_FRAMES || self.index > MAX_INDEX - super::layout::MAX_HEAD
    }

    /// The records that were gathered and are in no frame, and their bytes.
    pub fn gathered(&self) -> (u32, usize) {
        (self.gathered.records, self.gathered.raw.len())
    }

    /// How long the file is with all that was written, without its end.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many records were written.
    pub fn records(&self) -> u64 {
        self.footer.records
    }

    /// How long the end of the file will be after another frame, at most.
    pub fn end_length(&self) -> u64 {
        (self.index + Index::grows_by(super::layout::MAX_HEAD) + FOOTER_LENGTH) as u64
    }

    /// Makes a frame of what was gathered, at the end of `out`. None if nothing was.
    ///
    /// # Errors
    /// It can't be compressed. What was gathered is gone.
    pub fn frame(&mut self, out: &mut Vec<u8>) -> Result<Option<Pending>, Error> {
        let gathered = &mut self.gathered;
        let (Some((first, last)), Some(statuses)) = (gathered.times.take(), gathered.statuses.take()) else { return Ok(None) };
        let data = self.compressor.compress(&gathered.raw);
        let facts = FrameFacts { statuses, filter: gathered.terms.take() };
        let raw = u32::try_from(gathered.raw.len()).expect("it is bounded");
        let records = std::mem::take(&mut gathered.records);
        gathered.raw.clear();
        let mut data = data.map_err(Error::Compress)?;
        let number = self.next;
        self.next += 1;
        let (id, encrypted, mut sealed) = (self.header.id, self.cipher.is_some(), facts.write());
        let stored = data.len() + if encrypted { PREFIX + TAG } else { 0 };
        let stored = u32::try_from(stored).expect("it is bounded");
        let (compatible, checksum, facts, more) = (Head::compatible(), 0, None, Vec::new());
        let unsealed = Vec::new();
        let mut head = Head {
            compatible,
            id,
            number,
            records,
            raw,
            stored,
            first,
            last,
            checksum,
            encrypted,
            sealed: unsealed,
            facts,
            more,
        };
        if let Some(cipher) = &self.cipher {
            let vouched = head.vouched();
            cipher.seal(number, Purpose::Facts, &vouched, &mut sealed);
            data = enclosed(cipher, number, &vouched, data);
        }
        head.checksum = XxHash3_64::oneshot(&data);
        head.sealed = sealed;
        let start = out.len();
        head.write(out);
        let bytes = out[start..].to_vec();
        out.extend_from_slice(&data);
        Ok(Some(Pending { head, bytes }))
    }

    /// The bytes of the frame are in the file, right after those before.
    pub fn written(&mut self, frame: Pending) {
        self.footer.add(&frame.head);
        self.index += Index::grows_by(frame.bytes.len());
        let length = frame.length();
        self.heads.push((self.position, frame.bytes));
        self.position += length;
    }

    /// Forgets what was gathered and is in no frame.
    pub fn forget(&mut self) {
        self.gathered = Gathered::default();
    }

    /// The end of the file, at the end of `out`. What was gathered and is in no frame is not in it.
    pub fn finish(&self, out: &mut Vec<u8>) {
        let heads = self.heads.iter().map(|(offset, head)| (*offset, &head[..]));
        finish(Footer { index_offset: self.position, ..self.footer.clone() }, heads, out);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("header", &self.header).field("position", &self.position).finish_non_exhaustive()
    }
}

/// Writes the index of some heads, and a footer with totals that are known.
pub(super) fn finish<'a>(mut footer: Footer, heads: impl ExactSizeIterator<Item = (u64, &'a [u8])>, out: &mut Vec<u8>) {
    let start = out.len();
    Index::write(footer.id, heads, out);
    footer.index_length = u32::try_from(out.len() - start).expect("it is bounded");
    footer.write(out);
}

/// Whether a record may be written.
///
/// # Errors
/// Why not.
pub(crate) fn check(record: &[u8]) -> Result<(), Refused> {
    if record.len() > MAX_RECORD {
        return Err(Refused::TooLarge(record.len()));
    }
    match record.is_empty() || memchr::memchr(b'\n', record).is_some() {
        true => Err(Refused::NotALine),
        false => Ok(()),
    }
}

fn lock(keys: &dyn Keys, id: &Id, key: &DataKey) -> Result<Lock, KeyError> {
    let wrapped = keys.wrap(id, key)?;
    let key_id = keys.id().to_owned();
    if key_id.len() > MAX_KEY_ID || wrapped.len() > MAX_WRAPPED {
        return Err(KeyError(format!("the id of a key has at most {MAX_KEY_ID} bytes, a wrapped key {MAX_WRAPPED}")));
    }
    Ok(Lock { key_id, wrapped })
}

fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    // For `zstd -d`, which knows nothing of ours.
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    Ok(compressor)
}

/// A skippable frame of encrypted data.
fn enclosed(cipher: &Cipher, number: u32, vouched: &[u8], mut data: Vec<u8>) -> Vec<u8> {
    cipher.seal(number, Purpose::Data, vouched, &mut data);
    let mut out = Vec::with_capacity(PREFIX + data.len());
    out.put_u32_le(SEALED);
    out.put_u32_le(u32::try_from(data.len()).expect("it is bounded"));
    out.put_slice(&data);
    out
}
