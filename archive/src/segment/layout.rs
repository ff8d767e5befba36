//! The bytes of everything in a segment that is not records. All numbers are little-endian.

use bytes::{Buf, BufMut};
use twox_hash::XxHash3_64;

use super::MAX_FRAME;

mod head;
mod header;
mod index;

pub(super) use self::head::FrameFacts;
pub use self::{
    head::Head,
    header::{Header, Lock},
    index::{Footer, Index},
};

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
