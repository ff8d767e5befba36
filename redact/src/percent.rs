//! Percent-encoding (RFC 3986, section 2.1) and that of forms, which writes a blank as `+`.

use std::borrow::Cow;

/// How often a name may have been encoded.
const ROUNDS: usize = 4;

/// What is encoded once. What follows `%` and is no hexadecimal number stays.
pub(crate) fn decode(text: &[u8], plus: bool) -> Cow<'_, [u8]> {
    if !text.iter().any(|&byte| byte == b'%' || (plus && byte == b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' if plus => out.push(b' '),
            b'%' => match (after.first().and_then(hex), after.get(1).and_then(hex)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    rest = &after[2..];
                }
                _ => out.push(byte),
            },
            _ => out.push(byte),
        }
    }
    Cow::Owned(out)
}

/// What is encoded however often.
pub(crate) fn decode_all(text: &[u8]) -> Cow<'_, [u8]> {
    let mut decoded = decode(text, true);
    for _ in 1..ROUNDS {
        if !decoded.contains(&b'%') {
            break;
        }
        decoded = Cow::Owned(decode(&decoded, true).into_owned());
    }
    decoded
}

/// Encodes all but what RFC 3986 calls unreserved, and `*` and `@`, which mean nothing where this is used.
pub(crate) fn encode(text: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'*' | b'@') {
            out.push(byte);
        } else {
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

fn hex(digit: &u8) -> Option<u8> {
    char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_is_encoded() {
        for (encoded, plus, decoded) in [
            ("a%20b", false, "a b"),
            ("a+b", true, "a b"),
            ("a+b", false, "a+b"),
            ("%zz%4", true, "%zz%4"),
            ("%41%c3%BC", true, "Aü"),
        ] {
            assert_eq!(&*decode(encoded.as_bytes(), plus), decoded.as_bytes(), "{encoded}");
        }
        assert_eq!(&*decode_all(b"%252561"), b"a");
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let all: Vec<u8> = (0..=255).collect();
        let mut encoded = Vec::new();
        encode(&all, &mut encoded);
        assert_eq!(&*decode(&encoded, true), &all[..]);
    }
}
