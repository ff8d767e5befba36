//! Variants (RFC 9111 section 4.1): which fields of a request select a response, and their values in a form that is the same for
//! requests that match.

use http::{HeaderMap, HeaderName, header};
use smallvec::SmallVec;

use super::{
    directives::lines,
    list::{members, trim},
};

/// A response may be selected by this many fields.
pub(crate) const MOST_FIELDS: usize = 16;

/// The values of all of them may have this many bytes.
pub(crate) const MOST_BYTES: usize = 8 * 1024;

/// Above this many members a list is taken as it is.
const MOST_MEMBERS: usize = 24;

/// Fields that select a response: in lower case, sorted, each once.
pub(crate) type Selecting = SmallVec<[HeaderName; 2]>;

/// Why a response can't be selected by fields of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unselectable {
    /// `*`: it never matches.
    Star,
    /// Something that is no name of a field.
    Malformed,
    /// More than [`MOST_FIELDS`].
    TooMany,
}

/// The values in question have more than [`MOST_BYTES`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooLong;

/// The fields that `Vary` names.
pub(crate) fn selecting(headers: &HeaderMap) -> Result<Selecting, Unselectable> {
    let mut names = Selecting::new();
    for member in lines(headers, &header::VARY).flat_map(members) {
        if member == b"*" {
            return Err(Unselectable::Star);
        }
        names.push(HeaderName::from_bytes(member).map_err(|_| Unselectable::Malformed)?);
        if names.len() > 4 * MOST_FIELDS {
            return Err(Unselectable::TooMany);
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    if names.len() > MOST_FIELDS { Err(Unselectable::TooMany) } else { Ok(names) }
}

/// Writes which variant a request asks for, behind what is in `out` already. Two requests match if and only if the same bytes come
/// out; they are to be compared, not only a hash of them.
///
/// Allocates nothing if there is room in `out` and no list in it has more than 128 bytes.
pub(crate) fn variant(
    selecting: impl IntoIterator<Item = impl AsRef<str>>,
    request: &HeaderMap,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let start = out.len();
    for name in selecting {
        let mut all = request.get_all(name.as_ref()).into_iter().map(|value| trim(value.as_bytes())).peekable();
        // A field that is absent matches only where it is absent, so an empty one is something else.
        out.push(u8::from(all.peek().is_some()));
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        for (index, line) in all.enumerate() {
            if out.len() + line.len() - start > MOST_BYTES {
                out.truncate(start);
                return Err(TooLong);
            }
            // Lines of a field are the same as one with commas.
            out.extend_from_slice(if index == 0 { b"" } else { b", " });
            out.extend_from_slice(line);
        }
        normalise(name.as_ref(), out, at + 4);
        let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// What [`variant`] wrote, as text for people: each field with its value in the form in which it is compared, None where it is absent.
pub(crate) fn shown<'a>(selecting: impl IntoIterator<Item = &'a str>, mut variant: &[u8]) -> Vec<(&'a str, Option<String>)> {
    let next = |name: &'a str| {
        let (&present, behind) = variant.split_first()?;
        let (length, behind) = behind.split_first_chunk()?;
        let (value, rest) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        variant = rest;
        Some((name, (present != 0).then(|| legible(value))))
    };
    selecting.into_iter().map_while(next).collect()
}

/// Brings the value that starts at `at` into the form that all values of the same meaning have, for fields of which we know it.
fn normalise(name: &str, out: &mut Vec<u8>, at: usize) {
    match name {
        "accept-encoding" | "accept-charset" => weighted(out, at, Order::Free),
        "accept-language" => weighted(out, at, Order::Kept),
        _ => {}
    }
}

/// Whether the order of members of the same weight says nothing.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Order {
    Free,
    /// Some servers take it for a preference (RFC 9110 section 12.5.4), and a reader wouldn't like the other language.
    Kept,
}

/// A list of names with weights: in lower case, without white space, without the weight 1, sorted. What is no such list stays as it is.
fn weighted(out: &mut Vec<u8>, at: usize, order: Order) {
    let mut text = SmallVec::<[u8; 128]>::from_slice(&out[at..]);
    text.make_ascii_lowercase();
    let mut list = SmallVec::<[(&[u8], u16); MOST_MEMBERS]>::new();
    for member in members(&text) {
        match name_and_weight(member) {
            Some(member) if list.len() < MOST_MEMBERS => list.push(member),
            _ => return,
        }
    }
    match order {
        Order::Free => list.sort_unstable(),
        Order::Kept => list.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight)),
    }
    list.dedup();
    out.truncate(at);
    for (name, weight) in list {
        // Each name has a comma behind it, and a weight its two bytes, the first of which no name begins with: so no two lists look
        // alike, and none looks like one that stayed as it was.
        out.extend_from_slice(name);
        out.push(b',');
        if weight != 1000 {
            out.extend_from_slice(&weight.to_be_bytes());
            out.push(b';');
        }
    }
}

/// A value with the weights that [`weighted`] wrote in it as they came: `gzip,br;q=0.5`.
fn legible(value: &[u8]) -> String {
    let (mut text, mut rest) = (Vec::with_capacity(value.len() + 8), value);
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if let (b',', [high @ 0..=3, low, b';', behind @ ..]) = (byte, rest) {
            let weight = u16::from_be_bytes([*high, *low]);
            text.extend_from_slice(format!(";q={}", f64::from(weight) / 1000.0).as_bytes());
            rest = behind;
        }
        if byte != b',' || !rest.is_empty() {
            text.push(byte);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// `gzip;q=0.5` as a name and thousandths; None if it has something else than a weight, or one that is none.
fn name_and_weight(member: &[u8]) -> Option<(&[u8], u16)> {
    let (name, weight) = match member.iter().position(|&byte| byte == b';') {
        None => (member, 1000),
        Some(at) => (trim(&member[..at]), weight(trim(&member[at + 1..]))?),
    };
    let name = match name {
        // The same codings under older names (RFC 9110 section 8.4.1).
        b"x-gzip" | b"x-compress" => &name[2..],
        _ => name,
    };
    (!name.is_empty() && !name.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'"' | b'='))).then_some((name, weight))
}

/// `q=0.5` in thousandths (RFC 9110 section 12.4.2).
fn weight(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"q=")?;
    let (whole, fraction) = match digits {
        [whole] => (*whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        _ => return None,
    };
    let mut sum = u16::from(whole.checked_sub(b'0').filter(|digit| *digit <= 1)?);
    for place in 0..3 {
        let digit = fraction.get(place).map_or(Some(0), |digit| digit.checked_sub(b'0').filter(|digit| *digit <= 9))?;
        sum = sum * 10 + u16::from(digit);
    }
    (sum <= 1000).then_some(sum)
}
