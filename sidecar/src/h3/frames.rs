//! Frames of HTTP/3 as they pass, by their heads only. The library keeps a frame in memory until it is whole, whatever length it claims; only
//! DATA it hands on as it comes.

/// Types (RFC 9114, section 7.2, and section 6.2.1 for streams).
const DATA: u64 = 0;
const CONTROL: u64 = 0;

/// A frame is larger than any that we would read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a frame of HTTP/3 is too large")]
pub(super) struct TooLarge;

/// Watches one stream of a client.
#[derive(Debug)]
pub(super) struct Scanner {
    awaits: Awaits,
    /// The integer that is not whole yet.
    head: [u8; 8],
    read: usize,
    /// Bytes of a frame that is kept.
    largest: usize,
}

#[derive(Clone, Copy, Debug)]
enum Awaits {
    /// The type of a stream in one direction.
    StreamType,
    FrameType,
    /// Of a frame of that type.
    Length(u64),
    /// The rest of a frame.
    Payload(u64),
    /// There are no frames, or none that the library reads.
    Nothing,
}

impl Scanner {
    /// A stream with a request.
    pub(super) fn of_request(largest: usize) -> Self {
        Self { awaits: Awaits::FrameType, head: [0; 8], read: 0, largest }
    }

    /// A stream in one direction.
    pub(super) fn of_one_direction(largest: usize) -> Self {
        Self { awaits: Awaits::StreamType, head: [0; 8], read: 0, largest }
    }

    /// The peer has sent this.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), TooLarge> {
        while !bytes.is_empty() {
            self.awaits = match self.awaits {
                Awaits::Nothing => return Ok(()),
                Awaits::Payload(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(here).unwrap_or(bytes.len())..];
                    if left == here { Awaits::FrameType } else { Awaits::Payload(left - here) }
                }
                awaits => match self.integer(&mut bytes) {
                    None => return Ok(()),
                    Some(found) => awaits.then(found, self.largest)?,
                },
            };
        }
        Ok(())
    }

    /// Takes an integer (RFC 9000, section 16); none if it is not whole.
    fn integer(&mut self, bytes: &mut &[u8]) -> Option<u64> {
        while let Some((first, rest)) = bytes.split_first() {
            self.head[self.read] = *first;
            self.read += 1;
            *bytes = rest;
            let length = 1 << (self.head[0] >> 6);
            if self.read == length {
                self.read = 0;
                let value = self.head[..length].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
                return Some(value & (u64::MAX >> (66 - 8 * length)));
            }
        }
        None
    }
}

impl Awaits {
    fn then(self, found: u64, largest: usize) -> Result<Self, TooLarge> {
        Ok(match self {
            Self::StreamType if found == CONTROL => Self::FrameType,
            Self::FrameType => Self::Length(found),
            Self::Length(DATA) => Self::payload(found),
            Self::Length(_) if found > largest as u64 => return Err(TooLarge),
            Self::Length(_) => Self::payload(found),
            Self::StreamType | Self::Payload(_) | Self::Nothing => Self::Nothing,
        })
    }

    fn payload(length: u64) -> Self {
        if length == 0 { Self::FrameType } else { Self::Payload(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: u8 = 1;
    const LARGEST: usize = 4 << 10;

    /// An integer of eight bytes.
    fn long(value: u64) -> Vec<u8> {
        (value | 0b11 << 62).to_be_bytes().to_vec()
    }

    fn passes(mut scanner: Scanner, bytes: &[u8], step: usize) -> bool {
        bytes.chunks(step).all(|part| scanner.pass(part).is_ok())
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let small = [&[HEADERS, 3][..], b"abc", &[DATA as u8, 0], &[0x40, 0x21, 2], b"xx"].concat();
        let data = [&[DATA as u8][..], &long(1 << 40), &[b'd'; 100_000]].concat();
        let large = [&[HEADERS][..], &long(LARGEST as u64 + 1)].concat();
        for step in [1, 2, 7, usize::MAX] {
            assert!(passes(Scanner::of_request(LARGEST), &[&small[..], &small, &data].concat(), step));
            assert!(!passes(Scanner::of_request(LARGEST), &[&small[..], &large].concat(), step));
            assert!(
                !passes(Scanner::of_request(LARGEST), &[&[0x40, 0x21][..], &long(1 << 61)].concat(), step),
                "unknown types too"
            );
        }
    }

    #[test]
    fn only_control_streams_have_frames() {
        let large = [&[4][..], &long(1 << 30)].concat();
        assert!(!passes(Scanner::of_one_direction(LARGEST), &[&[0][..], &large].concat(), 1));
        assert!(
            passes(Scanner::of_one_direction(LARGEST), &[&[2][..], &large].concat(), 1),
            "QPACK, which the library leaves unread"
        );
    }
}
