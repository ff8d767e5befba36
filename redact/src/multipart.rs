//! Forms in parts (`multipart/form-data`, RFC 7578).

use std::borrow::Cow;

use memchr::memmem;

use crate::{Reason, name::first, redactor::content, replace::replace, text::Scan};

/// The longest boundary, by RFC 2046.
const BOUNDARY: usize = 70;
/// Forms within forms.
const LEVELS: usize = 3;

/// What is left of a body in parts. Of what is cut, the last part's content goes.
pub(crate) fn redact<'i>(body: &'i [u8], boundary: &[u8], cut: bool, scan: &mut Scan<'_>) -> Result<Cow<'i, [u8]>, Reason> {
    if boundary.is_empty() || boundary.len() > BOUNDARY || scan.level >= LEVELS {
        return Err(Reason::Multipart);
    }
    scan.level += 1;
    let left = parts(body, boundary, cut, scan);
    scan.level -= 1;
    left.map(Cow::Owned)
}

fn parts(body: &[u8], boundary: &[u8], cut: bool, scan: &mut Scan<'_>) -> Result<Vec<u8>, Reason> {
    let line = [b"--", boundary].concat();
    let mut starts =
        memmem::find_iter(body, &line).filter(|&at| (at == 0 || body[at - 1] == b'\n') && ends_line(&body[at + line.len()..]));
    let mut out = Vec::with_capacity(body.len());
    // What stands before the first part and behind the last means nothing, and is left out.
    let mut start = starts.next();
    while let Some(at) = start {
        let after = at + line.len();
        if body[after..].starts_with(b"--") {
            out.extend_from_slice(&body[at..after + 2]);
            out.extend_from_slice(b"\r\n");
            return Ok(out);
        }
        start = starts.next();
        if start.is_none() && !cut {
            return Err(Reason::Multipart);
        }
        let part = &body[after..start.unwrap_or(body.len())];
        let Some(head) = head_length(part) else {
            return if start.is_none() { Ok(out) } else { Err(Reason::Multipart) };
        };
        out.extend_from_slice(&line);
        out.extend_from_slice(&scan.text(&part[..head]));
        if start.is_some() {
            let content = &part[head..];
            let content = content.strip_suffix(b"\n").unwrap_or(content);
            let content = content.strip_suffix(b"\r").unwrap_or(content);
            field(&part[..head], content, scan, &mut out);
            out.extend_from_slice(&part[head + content.len()..]);
        }
    }
    if cut { Ok(out) } else { Err(Reason::Multipart) }
}

/// Behind a boundary stand two dashes, or blanks and the end of the line; else it is content.
fn ends_line(rest: &[u8]) -> bool {
    let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
    rest.starts_with(b"--") || matches!(rest.get(blanks), None | Some(b'\n'))
}

/// The line's rest behind the boundary, header fields and the blank line.
fn head_length(part: &[u8]) -> Option<usize> {
    let crlf = memmem::find(part, b"\r\n\r\n").map(|at| at + 4);
    let lf = memmem::find(part, b"\n\n").map(|at| at + 2);
    first(crlf, lf)
}

fn field(head: &[u8], content: &[u8], scan: &mut Scan<'_>, out: &mut Vec<u8>) {
    // A line that begins with a blank goes on with the one before.
    let mut unfolded = head.to_vec();
    for at in 0..unfolded.len().saturating_sub(1) {
        if unfolded[at] == b'\n' && matches!(unfolded[at + 1], b' ' | b'\t') {
            unfolded[at] = b' ';
        }
    }
    let fields = |name: &'static [u8]| {
        unfolded.split(|&byte| byte == b'\n').filter_map(move |line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            line[..colon].trim_ascii().eq_ignore_ascii_case(name).then(|| line[colon + 1..].trim_ascii())
        })
    };
    let rule = fields(b"content-disposition")
        .flat_map(|value| [parameter(value, b"name"), parameter(value, b"name*")])
        .flatten()
        .filter_map(|name| scan.rules.form.find_encoded(name.rsplit(|&byte| byte == b'\'').next().unwrap_or_default()))
        .min();
    if let Some(rule) = rule {
        scan.tally.count(rule);
        return replace(scan.rules.action(rule), scan.key, content, out);
    }
    // Content that is encoded in itself is not looked into (RFC 7578 has none), and not kept.
    if fields(b"content-transfer-encoding")
        .any(|value| !["7bit", "8bit", "binary"].iter().any(|known| value.eq_ignore_ascii_case(known.as_bytes())))
    {
        return;
    }
    let media_type = fields(b"content-type").next().unwrap_or_default();
    if let Ok(left) = self::content(content, media_type, false, scan) {
        out.extend_from_slice(&left);
    }
}

/// A parameter of a field such as `Content-Type`, without quotes.
pub(crate) fn parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = value.split(|&byte| {
        let ends = byte == b';' && !quoted;
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = byte == b'\\' && quoted && !escaped;
        ends
    });
    parts.skip(1).find_map(|part| {
        let equals = part.iter().position(|&byte| byte == b'=')?;
        if !part[..equals].trim_ascii().eq_ignore_ascii_case(name) {
            return None;
        }
        let text = part[equals + 1..].trim_ascii();
        let text = text.strip_prefix(b"\"").unwrap_or(text);
        let text = text.strip_suffix(b"\"").unwrap_or(text);
        Some(text.iter().copied().filter(|byte| *byte != b'\\').collect())
    })
}
