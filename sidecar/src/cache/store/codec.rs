//! Objects as bytes, for what leaves memory: Redis, disk, files of export.
//!
//! ```text
//! offset  bytes
//!      0  4  "FXO" and the version of the format, 1
//!      4  8  XXH3-64 of all that follows, little endian
//!     12  4  length of the flat part, little endian
//!     16     the flat part as in `object`, then the chunks of a long body
//! ```
//!
//! Any flipped bit and any missing or added byte is an error. It is a checksum against decay, no signature: who can write to
//! Redis can write what it likes, so a decoded object is checked like bytes from a stranger too.

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::object::{CHUNK, FIXED, INLINE, Object};

const MAGIC: [u8; 4] = *b"FXO\x01";
const PREFIX: usize = 16;

/// Why bytes are no object. What it came from is dropped, counted and fetched anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    /// It doesn't begin as an object of this version does.
    #[error("not an object of this version")]
    Version,
    /// It ends early, or the checksum differs.
    #[error("checksum or length is wrong")]
    Checksum,
    /// The checksum is right, but the parts don't fit together.
    #[error("the parts of the object contradict each other")]
    Layout,
}

impl Object {
    /// Length of [`Object::encode`]'s result in bytes.
    pub(crate) fn encoded_len(&self) -> u64 {
        let chunked = if self.is_chunked() { self.body_len() } else { 0 };
        (PREFIX + self.flat().len()) as u64 + chunked
    }

    /// The whole object as bytes, with version and checksum.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(usize::try_from(self.encoded_len()).unwrap_or(PREFIX));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&(self.flat().len() as u32).to_le_bytes());
        out.extend_from_slice(self.flat());
        if self.is_chunked() {
            self.body().for_each(|chunk| out.extend_from_slice(&chunk));
        }
        seal(&mut out);
        out
    }

    /// An object from what [`Object::encode`] wrote, copied into memory of just its size.
    ///
    /// # Errors
    /// When anything is not as it was written.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(Corrupt::Version)?;
        if *magic != MAGIC {
            return Err(Corrupt::Version);
        }
        let (sum, summed) = rest.split_first_chunk::<8>().ok_or(Corrupt::Checksum)?;
        if XxHash3_64::oneshot(summed) != u64::from_le_bytes(*sum) {
            return Err(Corrupt::Checksum);
        }
        let (len, rest) = summed.split_first_chunk::<4>().ok_or(Corrupt::Layout)?;
        let (flat, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(Corrupt::Layout)?;
        if flat.len() < FIXED || !body.is_empty() && body.len() <= INLINE {
            return Err(Corrupt::Layout);
        }
        let chunks = (!body.is_empty()).then(|| body.chunks(CHUNK).map(Bytes::copy_from_slice).collect());
        Self::from_flat(Bytes::copy_from_slice(flat), chunks).ok_or(Corrupt::Layout)
    }
}

/// Writes the checksum that what follows it has.
pub(crate) fn seal(bytes: &mut [u8]) {
    let Some((front, summed)) = bytes.split_at_mut_checked(12) else { return };
    front[4..].copy_from_slice(&XxHash3_64::oneshot(summed).to_le_bytes());
}
