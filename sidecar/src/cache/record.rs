//! An answer outside of this process: what stands in Redis under a key, and in a file of answers.
//!
//! ```text
//! offset  bytes
//!      0  4  "FXS" and the version of the format, 2
//!      4  1  what follows the checksum: 0 the names of `Vary`, 1 an answer, 2 a packed answer
//!      5  8  XXH3-64 of all behind it, little endian
//!     13     8 era and names, or an answer
//!
//! an answer: 16 generation and 8 place of the purges that were known when its fetch began, 68 what its age is judged by,
//!            4 length of its tags, the tags, the object as `store::codec` writes it
//! a packed answer: 4 length of an answer, that answer as one frame of zstd
//! ```
//!
//! Numbers are little endian. Whoever can write to Redis, or to a file, can write what it likes: what is read is checked like bytes from a
//! stranger.

use twox_hash::XxHash3_64;

use super::{
    notes,
    purge::{Generation, Position},
    semantics::meta::Meta,
    store::{Object, Vary},
};

const MAGIC: [u8; 4] = *b"FXS\x02";
const VARY: u8 = 0;
const ANSWER: u8 = 1;
const PACKED: u8 = 2;
/// Before the names or the answer.
pub(crate) const PREFIX: usize = 13;
/// Before the tags of an answer.
const FIXED: usize = 16 + 8 + notes::META + 4;
/// Shorter answers are not packed.
const WORTH_PACKING: usize = 512;

/// What a key leads to.
#[derive(Debug)]
pub(crate) enum Record {
    /// There are variants: look again with the values of these fields.
    Vary {
        vary: Vary,
        /// Another one each time that the variants were taken out, where nothing else tells those from before.
        era: u64,
    },
    Answer(Box<Answer>),
}

/// An answer that another process may have stored.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// With the notes of whoever stored it, which mean nothing here.
    pub(crate) object: Object,
    pub(crate) meta: Meta,
    /// The purges that were known when its fetch began.
    pub(crate) position: Position,
    /// Its tags, separated as they came.
    pub(crate) tags: Vec<u8>,
}

/// Why bytes are no record that can be taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// They were damaged, or are of another version.
    #[error("not a record of this version, or damaged")]
    Corrupt,
    /// Its answer is longer than can be taken.
    #[error("longer than can be taken")]
    TooLong,
}

use Unreadable::Corrupt;

/// The names of a `Vary`.
pub(crate) fn of_vary(vary: &Vary, era: u64) -> Vec<u8> {
    let names: Vec<&str> = vary.names().collect();
    sealed(VARY, &[&era.to_le_bytes(), names.join(",").as_bytes()].concat())
}

/// An answer, packed if that makes it shorter.
pub(crate) fn of_answer(answer: &Answer) -> Vec<u8> {
    let Answer { object, meta, position, tags } = answer;
    let object = object.encode();
    let mut plain = Vec::with_capacity(FIXED + tags.len() + object.len());
    plain.extend_from_slice(&position.generation.bytes());
    plain.extend_from_slice(&position.at.to_le_bytes());
    plain.extend_from_slice(&notes::of_meta(meta));
    plain.extend_from_slice(&(tags.len() as u32).to_le_bytes());
    plain.extend_from_slice(tags);
    plain.extend_from_slice(&object);
    match packed(&plain) {
        Some(packed) => sealed(PACKED, &packed),
        None => sealed(ANSWER, &plain),
    }
}

/// Whether these are the bytes of a record as they were written.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    content(bytes).is_ok()
}

/// Reads a record whose answer has at most so many bytes.
pub(crate) fn read(bytes: &[u8], most: usize) -> Result<Record, Unreadable> {
    let (kind, rest) = content(bytes)?;
    match kind {
        VARY => {
            let (era, names) = rest.split_first_chunk().ok_or(Corrupt)?;
            let names = str::from_utf8(names).map_err(|_| Corrupt)?;
            Ok(Record::Vary { vary: Vary::new(names.split(',')).ok_or(Corrupt)?, era: u64::from_le_bytes(*era) })
        }
        ANSWER if rest.len() > most => Err(Unreadable::TooLong),
        ANSWER => answer(rest),
        PACKED => answer(&unpacked(rest, most)?),
        _ => Err(Corrupt),
    }
}

/// The kind of a record, and what its checksum is of.
fn content(bytes: &[u8]) -> Result<(u8, &[u8]), Unreadable> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>().ok_or(Corrupt)?;
    let [magic @ .., _, _, _, _, _, _, _, _, _] = prefix;
    let sum: [u8; 8] = prefix[5..].try_into().map_err(|_| Corrupt)?;
    if *magic != MAGIC || XxHash3_64::oneshot(rest) != u64::from_le_bytes(sum) {
        return Err(Corrupt);
    }
    Ok((prefix[4], rest))
}

fn answer(bytes: &[u8]) -> Result<Record, Unreadable> {
    let (generation, rest) = bytes.split_first_chunk().ok_or(Corrupt)?;
    let (at, rest) = rest.split_first_chunk().ok_or(Corrupt)?;
    let (meta, rest) = rest.split_first_chunk().ok_or(Corrupt)?;
    let (length, rest) = rest.split_first_chunk().ok_or(Corrupt)?;
    let (tags, object) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(Corrupt)?;
    Ok(Record::Answer(Box::new(Answer {
        object: Object::decode(object).map_err(|_| Corrupt)?,
        meta: notes::to_meta(meta),
        position: Position { generation: Generation::from_bytes(*generation), at: u64::from_le_bytes(*at) },
        tags: tags.to_vec(),
    })))
}

pub(crate) fn sealed(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + content.len());
    out.extend_from_slice(&MAGIC);
    out.push(kind);
    out.extend_from_slice(&XxHash3_64::oneshot(content).to_le_bytes());
    out.extend_from_slice(content);
    out
}

fn packed(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < WORTH_PACKING {
        return None;
    }
    let mut out = u32::try_from(plain.len()).ok()?.to_le_bytes().to_vec();
    out.extend_from_slice(&zstd::bulk::compress(plain, 1).ok()?);
    (out.len() < plain.len()).then_some(out)
}

fn unpacked(bytes: &[u8], most: usize) -> Result<Vec<u8>, Unreadable> {
    let (length, frame) = bytes.split_first_chunk().ok_or(Corrupt)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > most {
        return Err(Unreadable::TooLong);
    }
    let plain = zstd::bulk::decompress(frame, length).map_err(|_| Corrupt)?;
    if plain.len() == length { Ok(plain) } else { Err(Corrupt) }
}

#[cfg(test)]
pub(super) mod tests;
