//! Cookies (RFC 6265): their values, not their attributes.

use std::borrow::Cow;

use crate::{replace::replace, text::Scan};

/// Attributes of `Set-Cookie`, which stay.
const ATTRIBUTES: [&[u8]; 9] =
    [b"expires", b"max-age", b"domain", b"path", b"secure", b"httponly", b"samesite", b"partitioned", b"priority"];

/// What is left of `Cookie`.
pub(crate) fn request<'i>(field: &'i [u8], scan: &mut Scan<'_>) -> Cow<'i, [u8]> {
    parts(field, scan, |_, _| false)
}

/// What is left of `Set-Cookie`.
pub(crate) fn response<'i>(field: &'i [u8], scan: &mut Scan<'_>) -> Cow<'i, [u8]> {
    parts(field, scan, is_attribute)
}

/// An attribute, and not also a further cookie that somebody joined by a comma.
fn is_attribute(at: usize, part: &[u8]) -> bool {
    let name = part.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
    let known = ATTRIBUTES.iter().any(|attribute| attribute.eq_ignore_ascii_case(name));
    let expires = name.eq_ignore_ascii_case(b"expires") && part.iter().filter(|&&byte| byte == b',').count() == 1;
    at > 0 && known && (expires && part.iter().filter(|&&byte| byte == b'=').count() == 1 || !part.contains(&b','))
}

fn parts<'i>(field: &'i [u8], scan: &mut Scan<'_>, stays: fn(usize, &[u8]) -> bool) -> Cow<'i, [u8]> {
    let mut out = Vec::with_capacity(field.len());
    let mut changed = false;
    for (at, part) in field.split(|&byte| byte == b';').enumerate() {
        if at > 0 {
            out.push(b';');
        }
        if stays(at, part) {
            out.extend_from_slice(part);
        } else {
            changed |= pair(part, scan, &mut out);
        }
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(field) }
}

/// Writes what is left of a cookie. True if that is not all.
fn pair(part: &[u8], scan: &mut Scan<'_>, out: &mut Vec<u8>) -> bool {
    let equals = part.iter().position(|&byte| byte == b'=').map_or(0, |at| at + 1);
    let (name, value) = part.split_at(equals);
    out.extend_from_slice(name);
    if !value.trim_ascii().is_empty()
        && let Some(rule) = scan.rules.cookies.find_encoded(name.strip_suffix(b"=").unwrap_or_default())
    {
        scan.tally.count(rule);
        replace(scan.rules.action(rule), scan.key, value.trim_ascii(), out);
        return true;
    }
    let left = scan.text(value);
    out.extend_from_slice(&left);
    matches!(left, Cow::Owned(_))
}
