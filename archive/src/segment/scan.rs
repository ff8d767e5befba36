//! Finds the frames of a file from its front, for one whose end is missing or damaged.

use std::{io, ops::Range};

use super::{
    Damage, Flaw, Source,
    layout::{HEAD, Head, Id, Index, MAX_HEAD, VERSION},
    reader::Entry,
};

/// Bytes that are searched at a time.
const PIECE: usize = 64 << 10;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The frames whose data is whole.
    pub(super) entries: Vec<Entry>,
    /// What lies between them.
    pub(super) damage: Vec<Damage>,
    /// Where the last whole frame ends.
    pub(super) end: u64,
}

/// Finds the frames of a segment in a part of it. Without its id, that of the first frame is taken for it.
pub(super) fn scan(source: &impl Source, part: Range<u64>, mut id: Option<Id>) -> io::Result<Found> {
    let length = part.end;
    let mut found = Found { end: part.start, ..Found::default() };
    let (mut at, mut data) = (part.start, Vec::new());
    while at < length {
        let next = found.entries.last().map_or(0, |last| last.head.number + 1);
        let head = read_head(source, at, length)?.filter(|(head, _)| fits(head, id, next));
        let Some((head, head_length)) = head else {
            let (flaw, frame) = (not_a_head(source, at, length)?, None);
            let until = match flaw {
                Flaw::Index => length,
                _ => next_head(source, at + 1, length, id, next)?,
            };
            found.damage.push(Damage { offset: at, bytes: until - at, frame, flaw });
            at = until;
            continue;
        };
        id = Some(head.id);
        let entry = Entry { offset: at, length: head_length as u64 + u64::from(head.stored), head };
        if at + entry.length <= length {
            data.resize(entry.head.stored as usize, 0);
            source.read(at + head_length as u64, &mut data)?;
            if entry.head.is_of(&data) {
                at += entry.length;
                found.end = at;
                found.entries.push(entry);
                continue;
            }
        }
        // Its length is known, but what follows may have moved.
        let until = next_head(source, at + head_length as u64, length, id, entry.head.number + 1)?;
        let flaw = if at + entry.length > length && until == length { Flaw::Torn } else { Flaw::Data };
        found.damage.push(Damage { offset: at, bytes: until - at, frame: Some(entry.head.number), flaw });
        at = until;
    }
    Ok(found)
}

/// Whether a head may come next.
fn fits(head: &Head, id: Option<Id>, next: u32) -> bool {
    id.is_none_or(|id| id == head.id) && head.number >= next && head.number < u32::MAX && head.compatible <= VERSION
}

fn read_head(source: &impl Source, at: u64, length: u64) -> io::Result<Option<(Head, usize)>> {
    Ok(Head::read(&some(source, at, length, MAX_HEAD)?))
}

/// What stands where no head is.
fn not_a_head(source: &impl Source, at: u64, length: u64) -> io::Result<Flaw> {
    let bytes = some(source, at, length, 12)?;
    Ok(match Index::begins(&bytes) {
        true => Flaw::Index,
        // Less than the beginning of a head: nothing else can be said of it.
        false if HEAD.to_le_bytes().starts_with(&bytes[..bytes.len().min(4)]) && length - at <= MAX_HEAD as u64 => Flaw::Torn,
        false => Flaw::Head,
    })
}

/// Where the next head begins that fits. The end of the file if there is none.
fn next_head(source: &impl Source, from: u64, length: u64, id: Option<Id>, next: u32) -> io::Result<u64> {
    let magic = HEAD.to_le_bytes();
    let mut at = from;
    while at < length {
        let piece = some(source, at, length, PIECE)?;
        for place in memchr::memmem::find_iter(&piece, &magic) {
            let here = at + place as u64;
            if read_head(source, here, length)?.is_some_and(|(head, _)| fits(&head, id, next)) {
                return Ok(here);
            }
        }
        // One may begin at the end of this piece.
        let searched = piece.len() as u64;
        at += if at + searched >= length { searched } else { searched - 3 };
    }
    Ok(length)
}

/// The bytes from there on, at most so many.
pub(super) fn some(source: &impl Source, at: u64, length: u64, most: usize) -> io::Result<Vec<u8>> {
    let count = usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX).min(most);
    let mut bytes = vec![0; count];
    source.read(at, &mut bytes)?;
    Ok(bytes)
}
