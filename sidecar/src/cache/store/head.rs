//! The fields of a stored head, as flat bytes.
//!
//! One field is `id` (one byte, see [`names`](super::names); 0: the name follows as length and text), then the length of the
//! value and the value. Lengths are LEB128. A head with ten common fields takes two bytes a field beyond its values, where a
//! [`HeaderMap`] takes 1.4 KiB.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::names;

/// One field of a stored head: places within the bytes that were walked.
pub(super) struct Field {
    name: Name,
    value: Range<usize>,
}

enum Name {
    Known(&'static HeaderName),
    Text(Range<usize>),
}

/// Appends one field. `name` is in lower case. `Err` when HTTP doesn't allow such a name or value.
pub(super) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), ()> {
    if !value.iter().all(|&byte| is_value(byte)) {
        return Err(());
    }
    if let Some(id) = names::id_of(name) {
        out.push(id);
    } else {
        HeaderName::from_lowercase(name).map_err(drop)?;
        out.push(0);
        put_length(out, name.len());
        out.extend_from_slice(name);
    }
    put_length(out, value.len());
    out.extend_from_slice(value);
    Ok(())
}

/// Walks a head. An end before its time is an `Err`, after which nothing more comes.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Walks `bytes` from `at` to their end; the places that it gives count from the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn field(&mut self) -> Option<Field> {
        let id = *self.bytes.get(self.at)?;
        self.at += 1;
        let name = match id {
            0 => Name::Text(self.text()?),
            known => Name::Known(names::name_of(known)?),
        };
        Some(Field { name, value: self.text()? })
    }

    fn text(&mut self) -> Option<Range<usize>> {
        let len = self.length()?;
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }

    fn length(&mut self) -> Option<usize> {
        let mut value = 0usize;
        for shift in [0, 7, 14, 21, 28] {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Field, ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field().ok_or(());
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

impl Field {
    pub(super) fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match &self.name {
            Name::Known(name) => name.as_str().as_bytes(),
            Name::Text(range) => &bytes[range.clone()],
        }
    }

    pub(super) fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.value.clone()]
    }

    /// Whether HTTP allows name and value; what [`put`] wrote is.
    pub(super) fn is_valid(&self, bytes: &[u8]) -> bool {
        let name = match &self.name {
            Name::Known(_) => true,
            Name::Text(range) => HeaderName::from_lowercase(&bytes[range.clone()]).is_ok(),
        };
        name && self.value(bytes).iter().all(|&byte| is_value(byte))
    }

    /// Adds the field to `map`. The value shares the memory of `bytes`.
    pub(super) fn add_to(&self, map: &mut HeaderMap, bytes: &Bytes) {
        let name = match &self.name {
            Name::Known(name) => HeaderName::clone(name),
            Name::Text(range) => match HeaderName::from_lowercase(&bytes[range.clone()]) {
                Ok(name) => name,
                Err(_) => return,
            },
        };
        if let Ok(value) = HeaderValue::from_maybe_shared(bytes.slice(self.value.clone())) {
            map.append(name, value);
        }
    }
}

/// `field-vchar`, space and tab (RFC 9110 section 5.5), as [`HeaderValue`] has it.
fn is_value(byte: u8) -> bool {
    byte >= b' ' && byte != 127 || byte == b'\t'
}

fn put_length(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}
