//! Names of header fields that were read before: peers send the same few again and again, in the same spelling.

use std::cell::RefCell;

use http::HeaderName;

/// Names that are remembered, at most: one in each place.
const PLACES: usize = 128;

/// The longest spelling that is remembered.
const LONGEST: usize = 31;

/// A spelling, and the name that it stands for.
struct Known {
    len: u8,
    text: [u8; LONGEST],
    name: HeaderName,
}

thread_local! {
    static KNOWN: RefCell<[Option<Known>; PLACES]> = const { RefCell::new([const { None }; PLACES]) };
}

/// Reads the name of a field; none if it is not one (RFC 9110, section 5.1).
pub(super) fn read(text: &[u8]) -> Option<HeaderName> {
    if text.len() > LONGEST {
        return HeaderName::from_bytes(text).ok();
    }
    let place = place(text);
    KNOWN.with_borrow_mut(|known| {
        let slot = &mut known[place];
        if let Some(known) = slot
            && known.text[..usize::from(known.len)] == *text
        {
            return Some(known.name.clone());
        }
        let name = HeaderName::from_bytes(text).ok()?;
        let mut known = Known { len: u8::try_from(text.len()).ok()?, text: [0; LONGEST], name: name.clone() };
        known.text[..text.len()].copy_from_slice(text);
        *slot = Some(known);
        Some(name)
    })
}

/// Where a spelling is remembered. Names that are often seen together rarely share a place; if they do, both are read anew each time.
fn place(text: &[u8]) -> usize {
    let (first, last) = match (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => text.iter().fold((0, 0), |(word, _), byte| (word << 8 | u64::from(*byte), 0)),
    };
    let mixed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ last.wrapping_mul(0xc2b2_ae3d_27d4_eb4f) ^ text.len() as u64;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_library_each_time() {
        let texts = ["Host", "host", "HOST", "X-A", "X-B", "X-C", "a", "", "b d", "x\u{fc}", "Content-Length", &"x".repeat(80)];
        for text in texts.iter().chain(&texts).chain(texts.iter().rev()) {
            assert_eq!(read(text.as_bytes()), HeaderName::from_bytes(text.as_bytes()).ok(), "{text}");
        }
    }
}
