//! One stored answer.
//!
//! An object is immutable. Key, the cache's own notes (`meta`), head and a body of at most [`INLINE`] bytes lie in one allocation
//! of just their size; a larger body is a list of chunks of at most [`CHUNK`] bytes. Nothing in it points into a read buffer.
//! A clone is two counters, so any number of answers can be under way from one object.
//!
//! ```text
//! offset  bytes
//!      0  4  length of the primary key      all numbers little endian
//!      4  4  length of the variant key
//!      8  4  length of the notes
//!     12  4  length of the head
//!     16  8  length of the body
//!     24  2  status
//!     26  2  number of fields
//!     28     primary key, variant key, notes, head, the body if it is short
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::head::{self, Walk};

/// Bodies up to this many bytes lie in the same allocation as the head.
pub(crate) const INLINE: usize = 8 * 1024;

/// The longest chunk of a body, in bytes. On loopback a segment of TCP carries 65,483: what is a little longer goes as two of them, the second
/// nearly empty, and a body of 1 MiB then takes 1.7 times the CPU.
pub(crate) const CHUNK: usize = 32 * 1024;

/// Pieces of at least this many bytes are kept as they are, shorter ones are joined.
const JOIN: usize = 16 * 1024;

/// The longest key, notes or head, in bytes.
const SECTION: usize = 1024 * 1024;

/// Bytes of the lengths before the first section.
pub(super) const FIXED: usize = 28;

/// An answer as it is stored. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Object {
    flat: Bytes,
    chunks: Option<Arc<Vec<Bytes>>>,
}

/// What an object holds beside fields and body.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// The key that the policy made of a request.
    pub primary: &'a [u8],
    /// The normalised values of the fields that `Vary` names; empty without `Vary`.
    pub variant: &'a [u8],
    /// What the cache itself wants to know of it (times, purge position, tags); the store doesn't look inside.
    pub meta: &'a [u8],
    /// The status of the answer.
    pub status: StatusCode,
}

/// Why something can't be an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// A key, the notes or the head are longer than 1 MiB, or there are more than 65,535 fields.
    #[error("key, notes or head are too long to store")]
    TooLong,
    /// A name or value that HTTP doesn't allow.
    #[error("a field that HTTP doesn't allow")]
    Field,
}

impl Object {
    /// An object without a body. Names of `fields` are in lower case.
    ///
    /// # Errors
    /// When a part is too long or a field isn't allowed.
    pub(crate) fn head<'a>(parts: Parts<'_>, fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Self, Unfit> {
        let mut head = Vec::with_capacity(1024);
        let mut count = 0usize;
        for (name, value) in fields {
            head::put(&mut head, name, value).map_err(|()| Unfit::Field)?;
            count += 1;
        }
        let Parts { primary, variant, meta, status } = parts;
        if [primary.len(), variant.len(), meta.len(), head.len()].iter().any(|&len| len > SECTION) {
            return Err(Unfit::TooLong);
        }
        let count = u16::try_from(count).map_err(|_| Unfit::TooLong)?;
        let mut flat = Vec::with_capacity(FIXED + meta.len() + primary.len() + variant.len() + head.len());
        for section in [primary, variant, meta, head.as_slice()] {
            flat.extend_from_slice(&(section.len() as u32).to_le_bytes());
        }
        flat.extend_from_slice(&0u64.to_le_bytes());
        flat.extend_from_slice(&status.as_u16().to_le_bytes());
        flat.extend_from_slice(&count.to_le_bytes());
        for section in [primary, variant, meta, head.as_slice()] {
            flat.extend_from_slice(section);
        }
        Ok(Self { flat: flat.into(), chunks: None })
    }

    /// As [`Object::head`], with the fields of a map.
    pub(crate) fn head_of_map(parts: Parts<'_>, fields: &HeaderMap) -> Result<Self, Unfit> {
        Self::head(parts, fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    /// The same key, notes and head with this body. Pieces from 16 KiB to 32 KiB are shared, so they must be no slices of
    /// larger buffers; the others are copied.
    pub(crate) fn with_body(&self, pieces: &[Bytes]) -> Self {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let head = &self.flat[..self.body_at()];
        let inline = len <= INLINE;
        let mut flat = Vec::with_capacity(head.len() + if inline { len } else { 0 });
        flat.extend_from_slice(head);
        flat[16..24].copy_from_slice(&(len as u64).to_le_bytes());
        if inline {
            pieces.iter().for_each(|piece| flat.extend_from_slice(piece));
        }
        Self { flat: flat.into(), chunks: (!inline).then(|| Arc::new(right_sized(pieces, len))) }
    }

    /// The same with other notes. A long body is shared.
    ///
    /// # Errors
    /// When they are too long.
    pub(crate) fn with_notes(&self, notes: &[u8]) -> Result<Self, Unfit> {
        if notes.len() > SECTION {
            return Err(Unfit::TooLong);
        }
        let (before, behind) = (&self.flat[..self.meta_at()], &self.flat[self.head_at()..]);
        let mut flat = [before, notes, behind].concat();
        flat[8..12].copy_from_slice(&(notes.len() as u32).to_le_bytes());
        Ok(Self { flat: flat.into(), chunks: self.chunks.clone() })
    }

    /// The same key and body under new notes, status and fields, as a 304 asks for (RFC 9111 section 4.3.4). A long body is shared.
    ///
    /// # Errors
    /// As [`Object::head`].
    pub(crate) fn refreshed(&self, meta: &[u8], status: StatusCode, fields: &HeaderMap) -> Result<Self, Unfit> {
        let parts = Parts { primary: self.primary(), variant: self.variant(), meta, status };
        let head = Self::head_of_map(parts, fields)?;
        let Some(chunks) = &self.chunks else { return Ok(head.with_body(&[self.flat.slice(self.body_at()..)])) };
        let mut flat = head.flat.to_vec();
        flat[16..24].copy_from_slice(&(self.body_len()).to_le_bytes());
        Ok(Self { flat: flat.into(), chunks: Some(Arc::clone(chunks)) })
    }

    /// An object of bytes laid out as above and its body, or `None` when they don't fit together.
    pub(super) fn from_flat(flat: Bytes, chunks: Option<Vec<Bytes>>) -> Option<Self> {
        if flat.len() < FIXED {
            return None;
        }
        let object = Self { flat, chunks: chunks.map(Arc::new) };
        let lengths: usize = [0, 4, 8, 12].iter().map(|&at| object.u32_at(at)).sum();
        let (body_at, body_len) = (FIXED + lengths, usize::try_from(object.body_len()).ok()?);
        let inline = object.flat.len().checked_sub(body_at)?;
        let chunked: usize = object.chunks.iter().flat_map(|chunks| chunks.iter()).map(Bytes::len).sum();
        let body_fits = if object.chunks.is_some() { inline == 0 && chunked == body_len } else { inline == body_len };
        let mut count = 0;
        for field in object.walk() {
            if !field.is_ok_and(|field| field.is_valid(object.head_bytes())) {
                return None;
            }
            count += 1;
        }
        let status = StatusCode::from_u16(object.u16_at(24)).is_ok();
        (body_fits && status && count == usize::from(object.u16_at(26))).then_some(object)
    }

    /// The bytes laid out as above, without chunks.
    pub(super) fn flat(&self) -> &Bytes {
        &self.flat
    }

    /// Whether the body lies beside the flat part.
    pub(super) fn is_chunked(&self) -> bool {
        self.chunks.is_some()
    }

    /// Places of the lengths and the end of the sections are checked when an object is made, so these can't be outside.
    fn u32_at(&self, at: usize) -> usize {
        u32::from_le_bytes([self.flat[at], self.flat[at + 1], self.flat[at + 2], self.flat[at + 3]]) as usize
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.flat[at], self.flat[at + 1]])
    }

    fn meta_at(&self) -> usize {
        FIXED + self.u32_at(0) + self.u32_at(4)
    }

    fn head_at(&self) -> usize {
        self.meta_at() + self.u32_at(8)
    }

    fn body_at(&self) -> usize {
        self.head_at() + self.u32_at(12)
    }

    fn head_bytes(&self) -> &[u8] {
        &self.flat[..self.body_at()]
    }

    fn walk(&self) -> Walk<'_> {
        Walk::new(self.head_bytes(), self.head_at())
    }

    /// The key that the policy made.
    pub(crate) fn primary(&self) -> &[u8] {
        &self.flat[FIXED..][..self.u32_at(0)]
    }

    /// The values of the fields that `Vary` names; empty without `Vary`.
    pub(crate) fn variant(&self) -> &[u8] {
        &self.flat[FIXED + self.u32_at(0)..self.meta_at()]
    }

    /// Whether it was stored under that key, byte for byte.
    pub(crate) fn is_for(&self, primary: &[u8], variant: &[u8]) -> bool {
        self.primary() == primary && self.variant() == variant
    }

    /// The notes of the cache.
    pub(crate) fn meta(&self) -> &[u8] {
        &self.flat[self.meta_at()..self.head_at()]
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.u16_at(24)).unwrap_or_default()
    }

    /// Names in lower case and values, in their order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let head = self.head_bytes();
        self.walk().flatten().map(move |field| (field.name(head), field.value(head)))
    }

    /// The fields as an answer needs them, with room for `more`. Values share the object's memory; nothing is parsed for names in the list.
    pub(crate) fn headers(&self, more: usize) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(usize::from(self.u16_at(26)) + more);
        self.walk().flatten().for_each(|field| field.add_to(&mut map, &self.flat));
        map
    }

    /// Length of the body in bytes.
    pub(crate) fn body_len(&self) -> u64 {
        u64::from_le_bytes(self.flat[16..24].try_into().unwrap_or_default())
    }

    /// The body in pieces of at most 32 KiB that share the object's memory.
    pub(crate) fn body(&self) -> impl Iterator<Item = Bytes> + use<> {
        self.part(0..self.body_len())
    }

    /// Bytes `range` of the body, counted from 0, in pieces; what lies behind the end isn't there.
    pub(crate) fn part(&self, range: Range<u64>) -> impl Iterator<Item = Bytes> + use<> {
        let object = self.clone();
        let mut at = 0u64;
        (0..).map_while(move |index| object.piece(index)).filter_map(move |piece| {
            let (from, to) = clipped(&range, at, piece.len());
            at += piece.len() as u64;
            (from < to).then(|| piece.slice(from..to))
        })
    }

    /// As [`Object::part`], for another object to keep: chunks are shared as wholes only, or a few bytes could hold a long one.
    pub(crate) fn owned(&self, range: Range<u64>) -> Vec<Bytes> {
        let is_chunk = |index: usize, piece: &Bytes| {
            self.chunks.as_ref().and_then(|chunks| chunks.get(index)).is_some_and(|chunk| chunk.len() == piece.len())
        };
        let mut at = 0u64;
        let piece = |index: usize| {
            let piece = self.piece(index)?;
            let (from, to) = clipped(&range, at, piece.len());
            at += piece.len() as u64;
            Some((index, piece.slice(from..to)))
        };
        let pieces = (0..).map_while(piece).filter(|(_, piece)| !piece.is_empty());
        pieces.map(|(index, piece)| if is_chunk(index, &piece) { piece } else { Bytes::copy_from_slice(&piece) }).collect()
    }

    /// Piece `index` of the body, `None` behind the last.
    pub(crate) fn piece(&self, index: usize) -> Option<Bytes> {
        match &self.chunks {
            Some(chunks) => chunks.get(index).cloned(),
            None => (index == 0 && self.flat.len() > self.body_at()).then(|| self.flat.slice(self.body_at()..)),
        }
    }

    /// What its memory takes as the allocator rounds it, without the place in the store: bytes.
    pub(super) fn size(&self) -> u64 {
        let chunks = self.chunks.as_deref().map_or(&[][..], Vec::as_slice);
        let lists = if chunks.is_empty() { 0 } else { rounded(size_of_val(chunks)) + 64 };
        let bodies: u64 = chunks.iter().map(|chunk| rounded(chunk.len()) + SHARED).sum();
        rounded(self.flat.len()) + SHARED + lists + bodies
    }

    /// Whether both are one and the same, not merely equal.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.flat.as_ptr(), other.flat.as_ptr())
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(self.primary());
        f.debug_struct("Object").field("key", &key).field("status", &self.status()).field("body", &self.body_len()).finish()
    }
}

/// Which bytes of a piece of this length, that begins at `at`, lie in a range: the second is never before the first.
fn clipped(range: &Range<u64>, at: u64, length: usize) -> (usize, usize) {
    let place = |end: u64| end.saturating_sub(at).min(length as u64) as usize;
    (place(range.start), place(range.end.max(range.start)))
}

/// The counter that `Bytes` allocates when it is first shared.
const SHARED: u64 = 32;

/// The size that jemalloc takes for `len` bytes: steps of 16 up to 128, then four steps to each doubling.
pub(super) fn rounded(len: usize) -> u64 {
    let step = if len <= 128 { 16 } else { (len - 1).next_power_of_two() as u64 / 8 };
    (len as u64).next_multiple_of(step)
}

/// Joins short pieces and splits long ones. Allocations are exactly as long as what they hold.
fn right_sized(pieces: &[Bytes], len: usize) -> Vec<Bytes> {
    let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK) + 1);
    let mut short: Vec<u8> = Vec::new();
    let mut left = len;
    for piece in pieces {
        if (JOIN..=CHUNK).contains(&piece.len()) {
            close(&mut short, &mut chunks);
            chunks.push(piece.clone());
            left -= piece.len();
            continue;
        }
        let mut rest = piece.as_ref();
        while !rest.is_empty() {
            if short.capacity() == 0 {
                short.reserve_exact(left.min(CHUNK));
            }
            let (now, later) = rest.split_at(rest.len().min(CHUNK - short.len()));
            short.extend_from_slice(now);
            left -= now.len();
            rest = later;
            if short.len() == CHUNK {
                close(&mut short, &mut chunks);
            }
        }
    }
    close(&mut short, &mut chunks);
    chunks.shrink_to_fit();
    chunks
}

fn close(short: &mut Vec<u8>, chunks: &mut Vec<Bytes>) {
    if !short.is_empty() {
        short.shrink_to_fit();
        chunks.push(std::mem::take(short).into());
    }
}
