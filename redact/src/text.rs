//! What rules find within a text: also in what is written there in percent-encoding, in base64 or as JSON.

use std::{borrow::Cow, ops::Range};

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::{Key, Tally, json, percent, redactor::Compiled, replace::replace};

/// Encodings within each other that are taken off.
const LEVELS: usize = 4;
/// The shortest base64 that is looked into.
const SHORTEST: usize = 16;
/// The longest name in front of `=`, and the longest user name and password of a URL.
const NAME: usize = 256;
const USERINFO: usize = 2048;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
/// Base64 of URLs, with or without padding.
pub(crate) const BASE64URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Redaction of one record's part under way.
pub(crate) struct Scan<'r> {
    pub(crate) rules: &'r Compiled,
    pub(crate) key: &'r Key,
    pub(crate) tally: &'r mut Tally,
    /// There is an access key id of AWS somewhere, so what looks like a secret key of it is one.
    pub(crate) aws: bool,
    pub(crate) level: usize,
}

/// Something that was found, and what does it: a rule, or what an encoded part becomes.
pub(crate) struct Found {
    pub(crate) range: Range<usize>,
    pub(crate) by: By,
}

pub(crate) enum By {
    Rule(usize),
    Within(Vec<u8>),
}

impl Scan<'_> {
    /// What is left of a text. It is borrowed if nothing was found.
    pub(crate) fn text<'i>(&mut self, text: &'i [u8]) -> Cow<'i, [u8]> {
        if self.level >= LEVELS || text.is_empty() {
            return Cow::Borrowed(text);
        }
        if matches!(text.trim_ascii_start().first(), Some(b'{' | b'['))
            && let Some(redacted) = self.nested_json(text)
        {
            return redacted;
        }
        let mut found = Vec::new();
        self.names(text, &mut found);
        self.userinfo(text, &mut found);
        for (regex, rule) in &self.rules.regexes {
            found.extend(regex.captures_iter(text).filter_map(|captures| {
                let range = captures.get(1).or(captures.get(0))?.range();
                (!range.is_empty()).then_some(Found { range, by: By::Rule(*rule) })
            }));
        }
        self.rules.detectors.find(text, self.aws, &mut found);
        self.encoded(text, &mut found);
        self.write(text, found)
    }

    /// The same for a number of JSON: then it becomes a string, or null.
    pub(crate) fn number(&mut self, number: &[u8]) -> Option<Vec<u8>> {
        if number.len() < 12 && self.rules.regexes.is_empty() {
            return None;
        }
        match self.text(number) {
            Cow::Borrowed(_) => None,
            Cow::Owned(left) if left.is_empty() => Some(b"null".to_vec()),
            Cow::Owned(left) => Some([b"\"", &left[..], b"\""].concat()),
        }
    }

    /// The same for a text that may be cut: what may be the beginning of something is left out.
    pub(crate) fn whole_text<'i>(&mut self, text: &'i [u8], cut: bool) -> Cow<'i, [u8]> {
        if !cut {
            return self.text(text);
        }
        let end = text.iter().rposition(|byte| byte.is_ascii_whitespace()).map_or(0, |at| at + 1);
        let part_of_number = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b' ' | b'-');
        let end = text[..end].iter().rposition(|byte| !part_of_number(byte)).map_or(0, |at| at + 1);
        self.text(&text[..end])
    }

    fn nested_json<'i>(&mut self, text: &'i [u8]) -> Option<Cow<'i, [u8]>> {
        // What is found in something that turns out to be no JSON is found and counted again as text.
        let before = self.tally.clone();
        self.level += 1;
        let redacted = json::redact(text, false, self);
        self.level -= 1;
        redacted.inspect_err(|_| *self.tally = before).ok()
    }

    /// Values behind names: `?name=value&`, `name=value`.
    fn names(&self, text: &[u8], found: &mut Vec<Found>) {
        if self.rules.query.is_empty() {
            return;
        }
        let mut from = 0;
        for equals in memchr::memchr_iter(b'=', text) {
            if equals < from {
                continue;
            }
            let window = &text[equals.saturating_sub(NAME)..equals];
            let start = window.iter().rposition(|byte| !is_name(*byte)).map_or(0, |at| at + 1);
            let Some(rule) = self.rules.query.find_encoded(&window[start..]) else { continue };
            let value = &text[equals + 1..];
            let end = value.iter().position(|&byte| ends_value(byte)).unwrap_or(value.len());
            if end > 0 {
                from = equals + 1 + end;
                found.push(Found { range: equals + 1..from, by: By::Rule(rule) });
            }
        }
    }

    /// `scheme://user:password@host`.
    fn userinfo(&self, text: &[u8], found: &mut Vec<Found>) {
        let Some(rule) = self.rules.userinfo else { return };
        for at in memchr::memmem::find_iter(text, "://") {
            let start = at + 3;
            let rest = &text[start..text.len().min(start + USERINFO)];
            let end = rest.iter().position(|&byte| matches!(byte, b'/' | b'?' | b'#') || ends_value(byte)).unwrap_or(rest.len());
            if let Some(length) = rest[..end].iter().rposition(|&byte| byte == b'@').filter(|length| *length > 0) {
                found.push(Found { range: start..start + length, by: By::Rule(rule) });
            }
        }
    }

    /// Parts that are written in percent-encoding or base64.
    fn encoded(&mut self, text: &[u8], found: &mut Vec<Found>) {
        if memchr::memchr(b'%', text).is_some() {
            for range in runs(text, is_encoded) {
                self.percent(text, range, found);
            }
        }
        if text.len() >= SHORTEST {
            for range in runs(text, is_base64) {
                self.base64(text, range, found);
            }
        }
    }

    fn percent(&mut self, text: &[u8], range: Range<usize>, found: &mut Vec<Found>) {
        let Cow::Owned(plain) = percent::decode(&text[range.clone()], true) else { return };
        if let Some(redacted) = self.within(&plain) {
            let mut encoded = Vec::new();
            percent::encode(&redacted, &mut encoded);
            found.push(Found { range, by: By::Within(encoded) });
        }
    }

    fn base64(&mut self, text: &[u8], range: Range<usize>, found: &mut Vec<Found>) {
        let run = &text[range.clone()];
        if run.len() < SHORTEST {
            return;
        }
        if let Some((engine, plain)) = from_base64(run) {
            if let Some(redacted) = self.within(&plain) {
                let padding = text[range.end..].iter().take_while(|&&byte| byte == b'=').count();
                let by = By::Within(engine.encode(redacted).into_bytes());
                found.push(Found { range: range.start..range.end + padding, by });
            }
        } else if run.contains(&b'/') {
            // Slashes may as well be those of a path.
            for part in runs(run, |byte| byte != b'/') {
                self.base64(text, range.start + part.start..range.start + part.end, found);
            }
        }
    }

    fn within(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        self.level += 1;
        let aws = self.aws;
        self.aws |= self.rules.detectors.has_aws_id(plain);
        let redacted = self.text(plain);
        self.aws = aws;
        self.level -= 1;
        match redacted {
            Cow::Owned(redacted) => Some(redacted),
            Cow::Borrowed(_) => None,
        }
    }

    /// Writes a text with what was found replaced. Where two overlap, both go as one, by the rule that stands first.
    fn write<'i>(&mut self, text: &'i [u8], mut found: Vec<Found>) -> Cow<'i, [u8]> {
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        found.sort_by_key(|found| (found.range.start, found.range.end));
        let mut joined: Vec<Found> = Vec::new();
        for next in found {
            match joined.last_mut().filter(|last| last.range.end > next.range.start) {
                Some(last) => last.join(&next),
                None => joined.push(next),
            }
        }
        let mut out = Vec::with_capacity(text.len());
        let mut copied = 0;
        for Found { range, by } in joined {
            out.extend_from_slice(&text[copied..range.start]);
            copied = range.end;
            match by {
                By::Within(bytes) => out.extend(bytes),
                By::Rule(rule) => {
                    self.tally.count(rule);
                    replace(self.rules.action(rule), self.key, &text[range], &mut out);
                }
            }
        }
        out.extend_from_slice(&text[copied..]);
        Cow::Owned(out)
    }
}

impl Found {
    fn join(&mut self, other: &Self) {
        self.range.end = self.range.end.max(other.range.end);
        let by = match (&self.by, &other.by) {
            (By::Rule(a), By::Rule(b)) => *a.min(b),
            (By::Rule(rule), _) | (_, By::Rule(rule)) => *rule,
            // Both are encodings of the same part: what the inner one leaves can't be put into the outer one, so nothing is left.
            _ => {
                self.by = By::Within(crate::MASK.as_bytes().to_vec());
                return;
            }
        };
        self.by = By::Rule(by);
    }
}

/// What base64 says, if that is text, and its alphabet.
fn from_base64(run: &[u8]) -> Option<(GeneralPurpose, Vec<u8>)> {
    let engine = if run.iter().any(|byte| matches!(byte, b'-' | b'_')) { BASE64URL } else { BASE64 };
    let is_text = |plain: &[u8]| plain.iter().all(|&byte| byte >= 0x20 || matches!(byte, b'\t' | b'\r' | b'\n'));
    // Most of what looks like base64 is none, which its beginning tells.
    let beginning = engine.decode(&run[..8]).ok()?;
    if !is_text(&beginning) || beginning.iter().all(|byte| *byte >= 0x80) {
        return None;
    }
    // A last single character stands for nothing.
    let run = if run.len() % 4 == 1 { &run[..run.len() - 1] } else { run };
    let plain = engine.decode(run).ok()?;
    (is_text(&plain) && std::str::from_utf8(&plain).is_ok()).then_some((engine, plain))
}

/// The longest parts of a text of which each byte is of a kind.
fn runs(text: &[u8], is: impl Fn(u8) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].iter().position(|&byte| is(byte))?;
        at = start + text[start..].iter().position(|&byte| !is(byte)).unwrap_or(text.len() - start);
        Some(start..at)
    })
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'%' | b'[' | b']' | b'+')
}

fn ends_value(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'&' | b'#' | b'"' | b'\'' | b'<' | b'>' | b'`' | b'\\')
}

fn is_encoded(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'%' | b'_' | b'-' | b'.' | b'~' | b'+' | b'*' | b'!' | b'(' | b')' | b'@' | b'$')
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}
