//! Reads files of answers piece by piece, wherever they come from.

use std::io::Read;

use sidecar::file::{Counts, LONGEST, Piece, Reader};

use crate::failure::Failure;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// What has come of a file.
pub(super) enum Came<'a> {
    /// Bytes, as they stand in it.
    Bytes(&'a [u8]),
    /// What they have made whole.
    Piece(Piece),
}

/// Reads a file to its end; its bytes come before what they make whole. How many answers and bytes it has. `broken` says that it isn't
/// whole, or can't be read, for this reason.
pub(super) fn read(
    mut from: impl Read,
    broken: impl Fn(String) -> Failure,
    mut take: impl FnMut(Came<'_>) -> Result<(), Failure>,
) -> Result<(Counts, u64), Failure> {
    let (mut reader, mut piece, mut bytes) = (Reader::new(LONGEST), vec![0; PIECE], 0);
    loop {
        let read = from.read(&mut piece).map_err(|e| broken(format!("it can't be read: {e}")))?;
        if read == 0 {
            break;
        }
        take(Came::Bytes(&piece[..read]))?;
        bytes += read as u64;
        reader.push(&piece[..read]);
        while let Some(whole) = reader.read().map_err(|e| broken(e.to_string()))? {
            take(Came::Piece(whole))?;
        }
    }
    reader.finish().map(|counts| (counts, bytes)).map_err(|e| broken(e.to_string()))
}
