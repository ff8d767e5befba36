//! What a client asks for, and what its origin is told by the request's own fields.

use std::time::Duration;

use http::Method;

/// One exchange as the client wants it.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// What tells it from all others.
    pub(super) id: u64,
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// Bytes of its body.
    pub(super) upload: usize,
    /// Whether that body has no length, over HTTP/1.
    pub(super) chunked: bool,
    /// Bytes of the answer.
    pub(super) answer: usize,
    pub(super) framing: Framing,
    pub(super) does: Does,
    /// The pause after each piece that the client writes.
    pub(super) write_pace: Duration,
    /// The pause after each piece that the client reads.
    pub(super) read_pace: Duration,
}

/// How an origin over HTTP/1 frames its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What an origin does with a request. What breaks it is done only the first time that the request is seen, so that a further try
/// can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Answer,
    /// Interim answers first.
    Hint,
    /// The answer comes piece by piece.
    Dawdle,
    /// Says 413 before it has read the body.
    Refuse,
    /// Ends the connection, or the stream, instead of an answer.
    Reset,
    /// Never answers.
    Stall,
    /// Half of the answer, and a reset.
    Half,
    /// Half of the answer, and the connection is closed.
    Part,
    /// A whole answer; then the connection ends without a word about it before.
    Leave,
}

impl Does {
    pub(super) const FAULTS: [Self; 6] = [Self::Refuse, Self::Reset, Self::Stall, Self::Half, Self::Part, Self::Leave];

    const ALL: [Self; 9] =
        [Self::Answer, Self::Hint, Self::Dawdle, Self::Refuse, Self::Reset, Self::Stall, Self::Half, Self::Part, Self::Leave];

    /// Whether less than the whole answer is sent.
    pub(super) fn cuts(self) -> bool {
        matches!(self, Self::Half | Self::Part)
    }
}

impl Ask {
    /// A GET without anything odd.
    pub(super) fn get(id: u64, path: &'static str, answer: usize) -> Self {
        Self {
            id,
            method: Method::GET,
            path,
            upload: 0,
            chunked: false,
            answer,
            framing: Framing::Length,
            does: Does::Answer,
            write_pace: Duration::ZERO,
            read_pace: Duration::ZERO,
        }
    }

    /// The fields that tell the origin what to do, and what it should have got.
    pub(super) fn fields(&self) -> [(&'static str, String); 5] {
        [
            ("x-id", self.id.to_string()),
            ("x-upload", self.upload.to_string()),
            ("x-answer", self.answer.to_string()),
            ("x-framing", format!("{:?}", self.framing)),
            ("x-does", format!("{:?}", self.does)),
        ]
    }
}

/// What an origin was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) id: u64,
    pub(super) upload: usize,
    pub(super) answer: usize,
    pub(super) framing: Framing,
    pub(super) does: Does,
}

impl Told {
    /// None if a field is missing or says something else than [`Ask::fields`].
    pub(super) fn of<'a>(field: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let framings = [Framing::Length, Framing::Chunked, Framing::Close];
        Some(Self {
            id: field("x-id")?.parse().ok()?,
            upload: field("x-upload")?.parse().ok()?,
            answer: field("x-answer")?.parse().ok()?,
            framing: named(&framings, field("x-framing")?)?,
            does: named(&Does::ALL, field("x-does")?)?,
        })
    }
}

fn named<T: Copy + std::fmt::Debug>(all: &[T], name: &str) -> Option<T> {
    all.iter().find(|one| format!("{one:?}") == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_told_what_was_asked() {
        let ask = Ask { does: Does::Half, framing: Framing::Chunked, upload: 3, ..Ask::get(9, "/", 100) };
        let fields = ask.fields();
        let told = Told::of(|name| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str()));
        let wanted = Told { id: 9, upload: 3, answer: 100, framing: Framing::Chunked, does: Does::Half };
        assert_eq!(told, Some(wanted));
        assert_eq!(Told::of(|_| None), None);
    }
}
