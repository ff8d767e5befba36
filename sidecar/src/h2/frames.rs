//! Frames of HTTP/2 as they pass by, in pieces of any size (RFC 9113, section 4.1). Payloads are skipped, save the start of some.

/// What a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Bytes of the head of a frame.
const HEAD: usize = 9;

/// Bytes of a payload that are kept, at most: enough for a code, and for the library's own words behind it.
const KEPT: usize = 40;

/// Types of frames (RFC 9113, section 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const GOAWAY: u8 = 7;
}

/// DATA and HEADERS: the last frame of its stream.
pub(crate) const END_STREAM: u8 = 1;

/// DATA: the payload begins with the length of its padding.
const PADDED: u8 = 8;

/// A frame that passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    length: usize,
    /// The start of the payload of RST_STREAM, GOAWAY, HEADERS and padded DATA; else nothing.
    pub(crate) start: &'a [u8],
}

impl Frame<'_> {
    /// Whether a DATA frame moves nothing and ends nothing.
    pub(crate) fn is_empty_data(&self) -> bool {
        let padding = if self.flags & PADDED == 0 { 0 } else { 1 + usize::from(self.start.first().copied().unwrap_or(0)) };
        self.kind == kind::DATA && self.flags & END_STREAM == 0 && self.length <= padding
    }

    /// Whether a header block that is neither padded nor has a priority holds one field, and that a status.
    pub(crate) fn is_lone_status(&self) -> bool {
        match *self.start {
            [_] => self.length == 1,
            // The name by its place in the static table, and the value as a string (RFC 7541, section 6.2).
            [0x08 | 0x18 | 0x48, value] => self.length == 2 + usize::from(value & 0x7f),
            _ => false,
        }
    }

    /// The error code at a place of the payload.
    pub(crate) fn code(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.start.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Finds the frames of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Bytes to pass over.
    skip: usize,
    head: [u8; HEAD + KEPT],
    filled: usize,
}

impl Scanner {
    /// For what a client says, which begins with the preface.
    pub(crate) fn of_client() -> Self {
        Self { skip: PREFACE, ..Self::of_server() }
    }

    /// For what a server says.
    pub(crate) fn of_server() -> Self {
        Self { skip: 0, head: [0; HEAD + KEPT], filled: 0 }
    }

    /// Whether the last frame has passed whole.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    /// Passes bytes on, and shows each frame once enough of it is there.
    pub(crate) fn pass(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame<'_>)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (self.wanted() - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled >= HEAD && self.filled == self.wanted() {
                found(self.frame());
                self.skip = self.length() - (self.filled - HEAD);
                self.filled = 0;
            }
        }
    }

    /// Bytes that are kept of the frame that begins.
    fn wanted(&self) -> usize {
        if self.filled < HEAD {
            return HEAD;
        }
        HEAD + match self.head[3] {
            kind::DATA if self.head[4] & PADDED != 0 => self.length().min(1),
            kind::HEADERS => self.length().min(2),
            kind::RST_STREAM | kind::GOAWAY => self.length().min(KEPT),
            _ => 0,
        }
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    fn frame(&self) -> Frame<'_> {
        let stream = u32::from_be_bytes([self.head[5] & 0x7f, self.head[6], self.head[7], self.head[8]]);
        Frame { kind: self.head[3], flags: self.head[4], stream, length: self.length(), start: &self.head[HEAD..self.filled] }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn data_that_moves_nothing_is_known() {
        for (flags, payload, empty) in [
            (0, &[][..], true),
            (END_STREAM, &[], false),
            (0, &[1], false),
            (PADDED, &[0], true),
            (PADDED, &[2, 0, 0], true),
            (PADDED, &[1, 0, 0], false),
            (PADDED | END_STREAM, &[0], false),
        ] {
            let mut found = None;
            Scanner::of_server().pass(&bytes(kind::DATA, flags, 1, payload), |frame| found = Some(frame.is_empty_data()));
            assert_eq!(found, Some(empty), "{flags} {payload:?}");
        }
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in proptest::collection::vec((0u8..12, any::<u8>(), 0u32..1 << 31, proptest::collection::vec(any::<u8>(), 0..60)), 0..8),
            piece in 1usize..80,
        ) {
            let text: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| bytes(*kind, *flags, *stream, payload)).collect();
            let mut scanner = Scanner::of_client();
            let mut found = Vec::new();
            for piece in [&[0; PREFACE], &text[..]].concat().chunks(piece) {
                scanner.pass(piece, |frame| found.push((frame.kind, frame.flags, frame.stream, frame.length, frame.code(0))));
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, stream, payload)| {
                let code = payload.get(..4).filter(|_| matches!(*kind, kind::RST_STREAM | kind::GOAWAY));
                (*kind, *flags, *stream, payload.len(), code.map(|code| u32::from_be_bytes(code.try_into().unwrap())))
            }).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(scanner.is_between_frames());
        }
    }
}
