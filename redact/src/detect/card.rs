//! Numbers of payment cards.

use std::ops::Range;

const SHORTEST: usize = 13;
const LONGEST: usize = 19;

/// Finds numbers that stand alone: neither part of a word nor of a longer number.
pub(crate) fn find(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while let Some(offset) = text[at..].iter().position(u8::is_ascii_digit) {
        let start = at + offset;
        let group = group(text, start);
        at = start + group;
        if (group != 4 && group < SHORTEST) || !is_free(text, start) {
            continue;
        }
        if let Some(end) = card(text, start) {
            found(start..end);
            at = end;
        }
    }
}

/// Where the longest number that begins here ends.
fn card(text: &[u8], start: usize) -> Option<usize> {
    let mut digits = Vec::with_capacity(LONGEST);
    let mut at = start;
    let mut best = None;
    loop {
        let length = group(text, at);
        if length == 0 || digits.len() + length > LONGEST {
            return best;
        }
        digits.extend(text[at..at + length].iter().map(|digit| digit - b'0'));
        at += length;
        let goes_on = match text.get(at) {
            Some(b'.') => text.get(at + 1).is_some_and(u8::is_ascii_digit),
            Some(byte) => byte.is_ascii_alphanumeric() || *byte == b'_',
            None => false,
        };
        if !goes_on && digits.len() >= SHORTEST && is_issued(&digits) && has_check_digit(&digits) {
            best = Some(at);
        }
        if !matches!(text.get(at), Some(b' ' | b'-')) {
            return best;
        }
        at += 1;
    }
}

fn group(text: &[u8], start: usize) -> usize {
    text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn is_free(text: &[u8], start: usize) -> bool {
    let before = |back: usize| start.checked_sub(back).map(|at| text[at]);
    match before(1) {
        Some(byte) if byte.is_ascii_alphanumeric() || byte == b'_' => false,
        Some(b'.' | b',') => !before(2).is_some_and(|byte| byte.is_ascii_digit()),
        _ => true,
    }
}

/// The formula of Luhn (ISO/IEC 7812-1, annex B).
fn has_check_digit(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, &digit)| {
            let digit = u32::from(digit) << (at % 2);
            if digit > 9 { digit - 9 } else { digit }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Do issuers give out numbers that begin so and are so long?
fn is_issued(digits: &[u8]) -> bool {
    let first: u32 = digits[..4].iter().fold(0, |number, &digit| number * 10 + u32::from(digit));
    match (first, digits.len()) {
        // Visa; Mastercard; American Express.
        (4000..=4999, 13 | 16 | 19) | (5100..=5599 | 2221..=2720, 16) | (3400..=3499 | 3700..=3799, 15) => true,
        // Diners Club; JCB.
        (3000..=3059 | 3095 | 3600..=3699 | 3800..=3999, 14..=19) | (3528..=3589, 16..=19) => true,
        // Discover, RuPay, UnionPay; Mir; Troy; Verve.
        (6000..=6099 | 6440..=6599 | 6200..=6299 | 8100..=8299 | 5080..=5089, 16..=19)
        | (2200..=2204, 16..=19)
        | (9792, 16)
        | (5060..=5079, 16..=19) => true,
        // Maestro.
        (5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        find(text.as_bytes(), |range| out.push(&text[range]));
        out
    }

    #[test]
    fn numbers_of_issuers_are_found() {
        // The numbers that issuers publish for tests.
        for number in [
            "4111111111111111",
            "5555555555554444",
            "378282246310005",
            "6011111111111117",
            "3530111333300000",
            "30569309025904",
            "4111 1111 1111 1111",
            "3782-822463-10005",
            "4222222222222",
            "2223003122003222",
        ] {
            assert_eq!(found(number), [number]);
            assert_eq!(found(&format!("card: {number}, thanks")), [number]);
            assert_eq!(found(&format!("{number} 123 12/29")), [number]);
        }
    }

    #[test]
    fn what_is_no_number_of_a_card_stays() {
        for text in [
            "4111111111111112",
            "1111111111111117",
            "x4111111111111111",
            "4111111111111111f",
            "0.4111111111111111",
            "41111111111111111111111111",
            "4111.1111.1111.1111",
            "1732950000000",
            "4111 1111",
            "",
        ] {
            assert!(found(text).is_empty(), "{text}");
        }
    }
}
