//! What fuzzing runs. Each function takes any bytes and asserts what must hold for them; it panics where it does not.
//!
//! This is here with the feature `fuzzing`, for the targets in `fuzz/`, and in tests, which replay the corpora.

use std::collections::HashSet;

use twox_hash::XxHash3_64;

use crate::segment::{Error, Facts, Id, MAX_FRAME, Query, Segment, Settings, Writer};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by their names in `fuzz/`.
pub const TARGETS: [(&str, Target); 2] = [("segment_read", segment_read), ("segment_write", segment_write)];

/// Any bytes are read or refused; whatever is found lies in them, in its order, and is as bounded as it says. The end that is made for them is one.
pub fn segment_read(input: &[u8]) {
    read(input);
    read(&mended(input));
}

fn read(input: &[u8]) {
    let Ok(segment) = Segment::open(input, None) else { return };
    let mut end = 0;
    for entry in segment.entries() {
        assert!(entry.offset >= end && entry.offset + entry.length <= segment.end());
        end = entry.offset + entry.length;
        if let Ok(Ok(frame)) = segment.read(entry) {
            assert!(frame.as_bytes().len() == entry.head.raw as usize && frame.as_bytes().len() <= MAX_FRAME);
            assert_eq!(frame.records().count(), entry.head.records as usize);
        }
    }
    // From the front, no frame has another content than by the index.
    let scanned = Segment::scan(input, None).expect("it was opened");
    assert!(scanned.entries().iter().all(|entry| scanned.read(entry).is_ok()));
    let end = usize::try_from(scanned.end()).expect("it is in memory");
    if scanned.footer().is_none() && !scanned.entries().is_empty() {
        let ended = [&input[..end], &scanned.end_bytes()].concat();
        let again = Segment::open(&ended[..], None).expect("it has frames");
        assert!(again.footer().is_some());
        assert_eq!(again.entries(), scanned.entries());
    }
}

/// The same with right checksums: else hardly any change of an input would get beyond them.
fn mended(input: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (input.to_vec(), 0);
    while let Some(length) = mend(&mut bytes[at..]) {
        at += length;
    }
    bytes
}

/// Mends the part that begins here, and the data behind a head. How long both are.
fn mend(bytes: &mut [u8]) -> Option<usize> {
    let number = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (magic, length) = (number(bytes, 0)?, number(bytes, 4)? as usize + 8);
    if !(0x184d_2a50..=0x184d_2a53).contains(&magic) || !(44..=bytes.len()).contains(&length) {
        return None;
    }
    let mut end = length;
    match magic {
        0x184d_2a51 if length >= 84 => {
            let stored = number(bytes, 44)? as usize;
            if let Some(data) = bytes.get(length..).and_then(|rest| rest.get(..stored)) {
                let checksum = XxHash3_64::oneshot(data);
                bytes[64..72].copy_from_slice(&checksum.to_le_bytes());
                end += stored;
            }
        }
        // Its heads are as their frames have them, but for their checksums.
        0x184d_2a52 => {
            // Behind the prefix, the fixed fields and the first offset.
            let mut at = 44;
            while let Some(head) = bytes[..length - 8].get_mut(at..)
                && let Some(head_length) = mend_head(head)
            {
                at += head_length + 8;
            }
        }
        _ => {}
    }
    let checksum = XxHash3_64::oneshot(&bytes[8..length - 8]);
    bytes[length - 8..length].copy_from_slice(&checksum.to_le_bytes());
    Some(end)
}

fn mend_head(head: &mut [u8]) -> Option<usize> {
    let length = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?) as usize + 8;
    let inner = head.get(8..length.checked_sub(8)?)?;
    let checksum = XxHash3_64::oneshot(inner);
    head.get_mut(length - 8..length)?.copy_from_slice(&checksum.to_le_bytes());
    Some(length)
}

/// What is written is read, however it is split into frames; after a cut and a wrong bit, no record is read that was not written.
///
/// Of each piece of the input between line feeds, the first byte says whether a frame ends there. The first four bytes of all say where to cut
/// or to flip.
pub fn segment_write(input: &[u8]) {
    let Some((place, input)) = input.split_first_chunk::<4>() else { return };
    let pieces: Vec<&[u8]> = input.split(|byte| *byte == b'\n').filter(|piece| piece.len() > 1).collect();
    let bytes = write(&pieces);
    let all: Vec<&[u8]> = pieces.iter().map(|piece| &piece[1..]).collect();
    assert_eq!(records(&bytes).expect("it is a segment"), all);
    let place = u32::from_le_bytes(*place) as usize % (bytes.len() * 8);
    match records(&bytes[..place / 8]) {
        Ok(read) => assert!(all.starts_with(&read.iter().map(Vec::as_slice).collect::<Vec<_>>())),
        Err(error) => assert!(matches!(error, Error::NotASegment)),
    }
    let mut flipped = bytes;
    flipped[place / 8] ^= 1 << (place % 8);
    if let Ok(read) = records(&flipped) {
        let known: HashSet<&[u8]> = all.iter().copied().collect();
        assert!(read.iter().all(|record| known.contains(&record[..])));
    }
}

fn write(pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(Settings::default(), Id([5; 16]), 0, None, &mut out).expect("it needs no key");
    for (number, piece) in pieces.iter().enumerate() {
        let facts = Facts { time: i64::from(piece[0]), status: u16::from(piece[0]), terms: &[u64::from(piece[0])] };
        writer.push(&piece[1..], &facts).expect("it is a line");
        if piece[0].is_multiple_of(2) || number + 1 == pieces.len() {
            let frame = writer.frame(&mut out).expect("it can be compressed").expect("it has a record");
            writer.written(frame);
        }
    }
    writer.finish(&mut out);
    let segment = Segment::open(&out[..], None).expect("it is a segment");
    for piece in pieces {
        let query = Query {
            terms: vec![vec![u64::from(piece[0])]],
            time: Some(i64::from(piece[0])..=i64::from(piece[0])),
            ..Query::default()
        };
        assert!(segment.select(&query).next().is_some(), "what is there is found");
    }
    out
}

fn records(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let segment = Segment::open(bytes, None)?;
    let mut records = Vec::new();
    for frame in segment.frames() {
        if let Ok(frame) = frame? {
            records.extend(frame.records().map(<[u8]>::to_vec));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What fuzzing has found, and what it starts from.
    #[test]
    fn corpora_hold() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{}", folder.display());
            for file in files {
                target(&fs::read(&file).unwrap());
            }
        }
    }
}
