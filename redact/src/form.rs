//! URLs and forms (`application/x-www-form-urlencoded`).

use std::borrow::Cow;

use crate::{percent, replace::replace, text::Scan};

/// What is left of a URL: its query and its fragment are read as pairs, the rest as text.
pub(crate) fn url<'i>(url: &'i [u8], scan: &mut Scan<'_>) -> Cow<'i, [u8]> {
    let begins_pairs = |byte: &u8| matches!(byte, b'?' | b'#');
    let mut end = url.iter().position(begins_pairs).unwrap_or(url.len());
    let head = scan.text(&url[..end]);
    let mut changed = matches!(head, Cow::Owned(_));
    let mut out = Vec::with_capacity(url.len());
    out.extend_from_slice(&head);
    while let Some((&mark, rest)) = url[end..].split_first() {
        let length = rest.iter().position(begins_pairs).unwrap_or(rest.len());
        let left = pairs(&rest[..length], false, false, scan);
        changed |= matches!(left, Cow::Owned(_));
        out.push(mark);
        out.extend_from_slice(&left);
        end += 1 + length;
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(url) }
}

/// What is left of pairs between `&`. Of what is cut, the last value goes.
pub(crate) fn pairs<'i>(text: &'i [u8], cut: bool, form: bool, scan: &mut Scan<'_>) -> Cow<'i, [u8]> {
    let mut out = Vec::with_capacity(text.len());
    let mut changed = cut;
    let mut pairs = text.split(|&byte| byte == b'&').enumerate().peekable();
    while let Some((at, pair)) = pairs.next() {
        if at > 0 {
            out.push(b'&');
        }
        if cut && pairs.peek().is_none() {
            break;
        }
        changed |= self::pair(pair, form, scan, &mut out);
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(text) }
}

/// Writes what is left of a pair. True if that is not all.
fn pair(pair: &[u8], form: bool, scan: &mut Scan<'_>, out: &mut Vec<u8>) -> bool {
    let names = if form { &scan.rules.form } else { &scan.rules.query };
    // Some read `;` as `&`, others as a part of the value: a rule that finds a name behind one takes all to the end of the pair.
    let mut start = 0;
    for part in pair.split(|&byte| byte == b';') {
        let equals = part.iter().position(|&byte| byte == b'=');
        if let Some(equals) = equals
            && let Some(rule) = names.find_encoded(&part[..equals])
        {
            let value = &pair[start + equals + 1..];
            scan.tally.count(rule);
            value_text(&pair[..start], scan, out);
            out.extend_from_slice(&pair[start..=start + equals]);
            replace(scan.rules.action(rule), scan.key, &percent::decode(value, true), out);
            return true;
        }
        start += part.len() + 1;
    }
    let equals = pair.iter().position(|&byte| byte == b'=').map_or(0, |at| at + 1);
    let name = value_text(&pair[..equals.saturating_sub(1)], scan, out);
    if equals > 0 {
        out.push(b'=');
    }
    name | value_text(&pair[equals..], scan, out)
}

/// Writes what is left of a name or value as text, in the same encoding. True if that is not all.
fn value_text(raw: &[u8], scan: &mut Scan<'_>, out: &mut Vec<u8>) -> bool {
    match scan.text(&percent::decode(raw, true)) {
        Cow::Owned(left) => {
            percent::encode(&left, out);
            true
        }
        Cow::Borrowed(_) => {
            out.extend_from_slice(raw);
            false
        }
    }
}
