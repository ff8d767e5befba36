//! What of a body is kept for a further try.

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::pressure::{Pressure, Step};

/// What an upload has given away, to give it once more. It is a copy: a piece as it was read holds the whole buffer that it was read
/// into, which may be a thousand times as large.
#[derive(Default)]
pub(super) struct Kept {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// Bytes that the current try has had.
    given: usize,
    /// The current try has had all, the trailers too.
    ended: bool,
    max: usize,
    /// There was too much of it.
    lost: bool,
    /// The current try is the last one.
    last: bool,
}

/// Bytes of a kept body that are given at a time.
const GIVEN: usize = 64 << 10;

impl Kept {
    /// Keeps up to `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, ended: true, ..Self::default() }
    }

    /// Whether all that was taken is here.
    pub(super) fn is_whole(&self) -> bool {
        !self.lost
    }

    /// Whether the current try has had all of it.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether trailers are among what is left for the current try.
    pub(super) fn has_trailers(&self) -> bool {
        self.trailers.is_some() && !self.ended
    }

    /// The current try is the last one: it still gets what is here.
    pub(super) fn keep_no_more(&mut self) {
        self.last = true;
    }

    /// Keeps a frame that was taken for the first time.
    pub(super) fn add(&mut self, frame: &Frame<Bytes>, pressure: &Pressure) {
        if self.lost || self.last {
            return;
        }
        if let Some(data) = frame.data_ref() {
            let shed = pressure.is(Step::Shed);
            if shed || self.data.len() + data.len() > self.max {
                let given_up = shed && !self.data.is_empty();
                *self = Self { lost: true, ended: true, ..Self::default() };
                pressure.reclaimed("kept_bodies", usize::from(given_up));
                return;
            }
            self.data.extend_from_slice(data);
        }
        self.trailers = frame.trailers_ref().cloned();
        (self.given, self.ended) = (self.data.len(), true);
    }

    /// Begins anew, for a further try.
    pub(super) fn rewind(&mut self) {
        (self.given, self.ended) = (0, self.data.is_empty() && self.trailers.is_none());
    }

    /// The next piece for a further try.
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.ended {
            return None;
        }
        let rest = &self.data[self.given..];
        let piece = &rest[..rest.len().min(GIVEN)];
        self.given += piece.len();
        let all = self.given == self.data.len();
        if piece.is_empty() {
            self.ended = true;
            return self.trailers.clone().map(Frame::trailers);
        }
        let frame = Frame::data(Bytes::copy_from_slice(piece));
        self.ended = all && self.trailers.is_none();
        Some(frame)
    }

    /// Bytes that a further try has not had.
    pub(super) fn left(&self) -> u64 {
        (self.data.len() - self.given) as u64
    }
}
