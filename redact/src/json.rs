//! JSON (RFC 8259), also many values one after another (NDJSON, RFC 7464). It is read once and not built up: what no rule finds keeps its
//! bytes, numbers and escapes too.

pub(crate) mod path;
mod string;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, ops::Range};

use self::path::{Active, Place};
use crate::{Action, Reason, name::first, replace::replace, text::Scan};

/// Redacts JSON. Of what is cut, all is kept but the value that is not whole.
pub(crate) fn redact<'i>(input: &'i [u8], cut: bool, scan: &mut Scan<'_>) -> Result<Cow<'i, [u8]>, Reason> {
    check_utf8(input, cut)?;
    let around = (scan.rules.paths.starts(), None);
    let reader = Reader { input, at: 0, cut, out: Vec::new(), copied: 0, stack: Vec::new(), here: around, hidden: None, scan };
    reader.run()
}

fn check_utf8(input: &[u8], cut: bool) -> Result<(), Reason> {
    match std::str::from_utf8(input) {
        Ok(_) => Ok(()),
        Err(error) if cut && error.error_len().is_none() => Ok(()),
        Err(_) => Err(Reason::NotJson),
    }
}

struct Reader<'i, 's, 'r> {
    input: &'i [u8],
    at: usize,
    cut: bool,
    out: Vec<u8>,
    /// What of the input is written, or left out.
    copied: usize,
    stack: Vec<Frame>,
    /// What the paths say of the value that comes next.
    here: (Active, Option<usize>),
    /// The value that is being read is one that a rule has found.
    hidden: Option<Hidden>,
    scan: &'s mut Scan<'r>,
}

struct Frame {
    object: bool,
    /// The steps of paths that may come next, within.
    within: Active,
    /// Elements of an array so far.
    elements: usize,
}

#[derive(Clone, Copy)]
struct Hidden {
    start: usize,
    depth: usize,
    rule: usize,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

/// Reading ends before all is read: at a place from which nothing is kept, or because this is no JSON.
enum Stop {
    Cut(usize),
    Wrong(Reason),
}

impl<'i> Reader<'i, '_, '_> {
    fn run(mut self) -> Result<Cow<'i, [u8]>, Reason> {
        if self.input.starts_with(b"\xEF\xBB\xBF") {
            self.at = 3;
        }
        let end = match self.document() {
            Ok(()) => self.input.len(),
            Err(Stop::Wrong(reason)) => return Err(reason),
            Err(Stop::Cut(_)) if !self.cut => return Err(Reason::NotJson),
            Err(Stop::Cut(end)) => match self.hidden {
                Some(hidden) => {
                    self.scan.tally.count(hidden.rule);
                    hidden.start
                }
                None => end,
            },
        };
        if self.copied == 0 {
            return Ok(Cow::Borrowed(&self.input[..end]));
        }
        self.out.extend_from_slice(&self.input[self.copied..end]);
        Ok(Cow::Owned(self.out))
    }

    fn document(&mut self) -> Result<(), Stop> {
        let mut expect = Expect::Value;
        loop {
            self.skip_blanks();
            let Some(&byte) = self.input.get(self.at) else {
                return if expect == Expect::Value && self.stack.is_empty() { Ok(()) } else { Err(Stop::Cut(self.at)) };
            };
            expect = match (expect, byte) {
                (Expect::Value | Expect::ValueOrEnd, b'{' | b'[') => self.open(byte == b'{')?,
                (Expect::Value | Expect::ValueOrEnd, b'"') => self.text()?,
                (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => self.literal()?,
                (Expect::ValueOrEnd | Expect::CommaOrEnd, b']') if !self.in_object() => self.close(),
                (Expect::KeyOrEnd | Expect::CommaOrEnd, b'}') if self.in_object() => self.close(),
                (Expect::Key | Expect::KeyOrEnd, b'"') => self.key()?,
                (Expect::Colon, b':') => self.step(Expect::Value),
                (Expect::CommaOrEnd, b',') if self.in_object() => self.step(Expect::Key),
                (Expect::CommaOrEnd, b',') => {
                    self.enter_element();
                    self.step(Expect::Value)
                }
                _ => return Err(Stop::Wrong(Reason::NotJson)),
            };
        }
    }

    fn skip_blanks(&mut self) {
        // Between values of a sequence stands a record separator (RFC 7464).
        let top = self.stack.is_empty();
        while let Some(&byte) = self.input.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                0x1E if top => self.at += 1,
                _ => break,
            }
        }
    }

    fn step(&mut self, expect: Expect) -> Expect {
        self.at += 1;
        expect
    }

    fn in_object(&self) -> bool {
        self.stack.last().is_some_and(|frame| frame.object)
    }

    fn open(&mut self, object: bool) -> Result<Expect, Stop> {
        self.begin();
        if self.stack.len() >= self.scan.rules.limits.depth {
            return Err(Stop::Wrong(Reason::TooDeep));
        }
        self.stack.push(Frame { object, within: self.here.0, elements: 0 });
        if !object {
            self.enter_element();
        }
        Ok(self.step(if object { Expect::KeyOrEnd } else { Expect::ValueOrEnd }))
    }

    fn close(&mut self) -> Expect {
        self.stack.pop();
        self.at += 1;
        self.end()
    }

    fn enter_element(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            self.here = self.scan.rules.paths.enter(frame.within, Place::Element(frame.elements));
            frame.elements += 1;
        }
    }

    fn key(&mut self) -> Result<Expect, Stop> {
        let (inner, escaped) = self.string()?;
        let key = self.plain(&inner, escaped)?;
        let within = self.stack.last().map_or(0, |frame| frame.within);
        let (active, rule) = self.scan.rules.paths.enter(within, Place::Member(&key));
        self.here = (active, first(rule, self.scan.rules.members.find(&key)));
        if self.hidden.is_none() {
            self.rewrite(inner, &key);
        }
        Ok(Expect::Colon)
    }

    fn text(&mut self) -> Result<Expect, Stop> {
        self.begin();
        let (inner, escaped) = self.string()?;
        match self.hidden {
            None => {
                let text = self.plain(&inner, escaped)?;
                self.rewrite(inner, &text);
            }
            Some(_) if escaped => drop(self.plain(&inner, true)?),
            Some(_) => {}
        }
        Ok(self.end())
    }

    fn literal(&mut self) -> Result<Expect, Stop> {
        self.begin();
        let start = self.at;
        let rest = &self.input[start..];
        let len = rest
            .iter()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'+' | b'-' | b'.' | b'E'))
            .unwrap_or(rest.len());
        self.at += len;
        if len == rest.len() && self.cut {
            return Err(Stop::Cut(start));
        }
        let literal = &rest[..len];
        if !matches!(literal, b"true" | b"false" | b"null") {
            if !is_number(literal) {
                return Err(Stop::Wrong(Reason::NotJson));
            }
            if self.hidden.is_none()
                && let Some(found) = self.scan.number(literal)
            {
                self.put(start..self.at, &found);
            }
        }
        Ok(self.end())
    }

    /// A value begins: perhaps one that a rule has found.
    fn begin(&mut self) {
        if let (Some(rule), None) = (self.here.1, self.hidden) {
            self.hidden = Some(Hidden { start: self.at, depth: self.stack.len(), rule });
        }
    }

    /// A value ends.
    fn end(&mut self) -> Expect {
        if let Some(hidden) = self.hidden.filter(|hidden| hidden.depth == self.stack.len()) {
            self.hidden = None;
            self.hide(hidden);
        }
        if self.stack.is_empty() {
            self.here = (self.scan.rules.paths.starts(), None);
            return Expect::Value;
        }
        Expect::CommaOrEnd
    }

    fn hide(&mut self, hidden: Hidden) {
        let value = &self.input[hidden.start..self.at];
        self.scan.tally.count(hidden.rule);
        let mut put = Vec::new();
        match self.scan.rules.action(hidden.rule) {
            Action::Drop => put.extend_from_slice(b"null"),
            action => {
                let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
                let plain = inner.and_then(string::unescape).unwrap_or(Cow::Borrowed(inner.unwrap_or(value)));
                put.push(b'"');
                replace(action, self.scan.key, &plain, &mut put);
                put.push(b'"');
            }
        }
        self.put(hidden.start..self.at, &put);
    }

    /// Reads a string: what lies between its quotes, and whether there are escapes in it.
    fn string(&mut self) -> Result<(Range<usize>, bool), Stop> {
        let quote = self.at;
        let mut at = quote + 1;
        let mut escaped = false;
        while let Some(found) = memchr::memchr2(b'"', b'\\', self.input.get(at..).unwrap_or_default()) {
            if self.input[at + found] == b'"' {
                self.at = at + found + 1;
                return Ok((quote + 1..at + found, escaped));
            }
            escaped = true;
            at += found + 2;
        }
        Err(Stop::Cut(quote))
    }

    fn plain(&self, inner: &Range<usize>, escaped: bool) -> Result<Cow<'i, [u8]>, Stop> {
        let input: &'i [u8] = self.input;
        let raw = &input[inner.clone()];
        if !escaped {
            return Ok(Cow::Borrowed(raw));
        }
        string::unescape(raw).ok_or(Stop::Wrong(Reason::NotJson))
    }

    /// Writes a string anew if there is something in it that rules find.
    fn rewrite(&mut self, inner: Range<usize>, text: &[u8]) {
        if let Cow::Owned(redacted) = self.scan.text(text) {
            let mut escaped = Vec::with_capacity(redacted.len());
            string::escape(&redacted, &mut escaped);
            self.put(inner, &escaped);
        }
    }

    fn put(&mut self, range: Range<usize>, bytes: &[u8]) {
        self.out.extend_from_slice(&self.input[self.copied..range.start]);
        self.out.extend_from_slice(bytes);
        self.copied = range.end;
    }
}

/// Is this a number, as RFC 8259, section 6 has it?
fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count, &text[count..])
    }
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let (count, mut rest) = digits(text);
    if count == 0 || (count > 1 && text[0] == b'0') {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (count, after) = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = after;
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let (count, after) = digits(exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent));
        return count > 0 && after.is_empty();
    }
    rest.is_empty()
}
