//! What stands in a segment, a file of the cache on disk.
//!
//! ```text
//! offset  bytes
//!      0  4  "FXD" and the version of the format, 1
//!      4     records, one behind the other
//!
//! a record:
//!      0 16  the name of its key
//!     16  4  length of its content; 0: what the key led to is gone
//!     20  8  XXH3-64 of the bytes before
//!     28     its content as `record` writes it, with a checksum of its own
//! ```
//!
//! Numbers are little endian. What is found is believed as far as the checksums reach: a power failure may leave anything.
//!
//! Behind a frame that is damaged nobody knows where the next one begins, and among what can't be read may be removals: what they took
//! out, in this segment and in those before it, would be found again. So all of that is given up. To look for the next frame that is valid
//! would not do: the damaged one may be a removal itself, and a body can hold what looks like a frame.

use std::io::{self, BufReader, Read, Seek};

use twox_hash::XxHash3_64;

/// Names a key: a hash that nobody can find a second key for.
pub(super) type Name = [u8; 16];

/// How a segment begins.
pub(super) const MAGIC: [u8; 4] = *b"FXD\x01";
/// Bytes before the content of a record.
pub(super) const FRAME: usize = 28;
/// The longest content.
pub(super) const LONGEST: u32 = 24 << 20;

/// What stands before the content of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Frame {
    pub(super) name: Name,
    /// Bytes of the content.
    pub(super) len: u32,
}

impl Frame {
    pub(super) fn bytes(self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[..16].copy_from_slice(&self.name);
        bytes[16..20].copy_from_slice(&self.len.to_le_bytes());
        let sum = XxHash3_64::oneshot(&bytes[..20]);
        bytes[20..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From what [`Frame::bytes`] made. None if it is damaged.
    fn read(bytes: &[u8; FRAME]) -> Option<Self> {
        let (front, sum) = bytes.split_last_chunk::<8>()?;
        let (name, len) = front.split_first_chunk()?;
        let frame = Self { name: *name, len: u32::from_le_bytes(*len.first_chunk()?) };
        (XxHash3_64::oneshot(front) == u64::from_le_bytes(*sum) && frame.len <= LONGEST).then_some(frame)
    }

    /// Bytes of the whole record.
    pub(super) fn whole(self) -> u64 {
        FRAME as u64 + u64::from(self.len)
    }
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// With a whole record, or none at all.
    Whole,
    /// With the beginning of a record, or of the segment: of the newest it was being written when its process ended.
    Torn,
    /// With something else, and nobody knows what was there.
    Damaged,
}

/// Finds the records of a segment of so many bytes. Returns where the last whole one ends, and how it goes on from there. Contents are not
/// looked at.
pub(super) fn scan(file: impl Read + Seek, bytes: u64, mut found: impl FnMut(u64, Frame)) -> io::Result<(u64, End)> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let mut magic = [0; MAGIC.len()];
    let mut at = MAGIC.len() as u64;
    if bytes < at {
        return Ok((0, End::Torn));
    }
    file.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Ok((0, End::Damaged));
    }
    while bytes - at >= FRAME as u64 {
        let mut frame = [0; FRAME];
        file.read_exact(&mut frame)?;
        let Some(frame) = Frame::read(&frame) else { return Ok((at, End::Damaged)) };
        if frame.whole() > bytes - at {
            break;
        }
        found(at, frame);
        file.seek_relative(i64::from(frame.len))?;
        at += frame.whole();
    }
    Ok((at, if at == bytes { End::Whole } else { End::Torn }))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn name(number: u8) -> Name {
        [number; 16]
    }

    fn segment(lens: &[u16]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (number, len) in lens.iter().enumerate() {
            let frame = Frame { name: name(number as u8), len: u32::from(*len) };
            bytes.extend_from_slice(&frame.bytes());
            bytes.resize(bytes.len() + usize::from(*len), 0xa5);
        }
        bytes
    }

    fn found(bytes: &[u8]) -> (u64, End, Vec<(u64, Frame)>) {
        let mut all = Vec::new();
        let (at, end) = scan(Cursor::new(bytes), bytes.len() as u64, |at, frame| all.push((at, frame))).unwrap();
        (at, end, all)
    }

    #[test]
    fn each_bit_of_what_is_no_content_tells_that_it_was_flipped() {
        let whole = segment(&[5, 0, 300, 0, 0, 7]);
        let frames = found(&whole).2;
        let is_content = |at: usize| {
            frames.iter().any(|(from, frame)| (*from as usize + FRAME..(*from + frame.whole()) as usize).contains(&at))
        };
        for at in (0..whole.len()).filter(|at| !is_content(*at)) {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let (_, end, all) = found(&bytes);
                assert_eq!(end, End::Damaged, "bit {bit} of byte {at}");
                assert_eq!(all[..], frames[..all.len()]);
            }
        }
    }

    #[test]
    fn segment_that_ends_within_a_record_is_torn_there() {
        let whole = segment(&[5, 0, 300]);
        let ends: Vec<usize> = found(&whole).2.iter().map(|(at, frame)| (at + frame.whole()) as usize).collect();
        for length in 0..=whole.len() {
            let (at, end, _) = found(&whole[..length]);
            let is_whole = length == MAGIC.len() || ends.contains(&length);
            assert_eq!(end, if is_whole { End::Whole } else { End::Torn }, "{length}");
            assert!(at <= length as u64);
        }
    }

    proptest! {
        #[test]
        fn records_are_found_where_they_were_written(lens in prop::collection::vec(0u16..2000, 0..40)) {
            let bytes = segment(&lens);
            let (at, end, all) = found(&bytes);
            prop_assert_eq!((at, end), (bytes.len() as u64, End::Whole));
            prop_assert_eq!(all.iter().map(|(_, frame)| frame.len as u16).collect::<Vec<_>>(), lens);
            for (number, (at, frame)) in all.iter().enumerate() {
                prop_assert_eq!(frame.name, name(number as u8));
                prop_assert_eq!(&bytes[*at as usize..][..FRAME], &frame.bytes());
            }
        }

        #[test]
        fn of_a_segment_that_was_cut_or_damaged_all_before_that_is_found(
            lens in prop::collection::vec(0u16..200, 1..20), at in any::<prop::sample::Index>(), cut in any::<bool>(),
        ) {
            let whole = segment(&lens);
            let mut bytes = whole.clone();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 0x10 }
            let (end, _, all) = found(&bytes);
            prop_assert!(end <= bytes.len() as u64);
            let expected = found(&whole).2;
            prop_assert_eq!(&all[..], &expected[..all.len()], "nothing that was not written");
            let before = expected.iter().filter(|(offset, frame)| at >= 4 && offset + frame.whole() <= at as u64).count();
            prop_assert!(all.len() >= before);
        }

        #[test]
        fn no_bytes_are_a_surprise(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(found(&bytes).0 <= bytes.len() as u64);
            let begun = [&MAGIC[..], &bytes].concat();
            prop_assert!(found(&begun).0 <= begun.len() as u64);
        }
    }
}
