//! What fuzzing runs: any bytes in every place that is redacted. It panics where something does not hold.

use std::borrow::Cow;

use crate::{Action, Body, Key, Redacted, Redactor, Rules, Tally};

/// What is kept of JSON is JSON, what is unchanged is counted as such, and nothing panics.
pub fn redact(input: &[u8]) {
    let Ok(redactor) = Redactor::new(&Rules::standard().with_detectors(Action::Mask), &Key::new(&[7; 32])) else { return };
    let mut tally = Tally::default();
    redactor.url(input, &mut tally);
    for name in ["cookie", "set-cookie", "referer", ":path"] {
        redactor.header(name.as_bytes(), input, &mut tally);
    }
    for media_type in
        ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain", ""]
    {
        for cut in [false, true] {
            let mut tally = Tally::default();
            let body = Body { bytes: input, media_type: Some(media_type.as_bytes()), coding: None, cut };
            let kept = redactor.body(&body, &mut tally);
            if let Redacted::Kept(Cow::Borrowed(kept)) = &kept {
                assert!(input.starts_with(kept) && (cut || kept.len() == input.len()));
            }
            if media_type == "application/json"
                && let (Redacted::Kept(kept), false) = (&kept, cut)
            {
                let again = redactor.body(&Body { bytes: kept, ..body }, &mut tally);
                assert!(matches!(again, Redacted::Kept(_)), "what is left of JSON is none");
            }
        }
    }
    for coding in ["gzip", "deflate", "br", "zstd"] {
        redactor.body(&Body { bytes: input, coding: Some(coding.as_bytes()), ..Body::default() }, &mut tally);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// What fuzzing has found, and what it starts from.
    #[test]
    fn the_corpus_passes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/redact");
        let inputs: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!inputs.is_empty());
        inputs.iter().for_each(|input| super::redact(input));
    }

    proptest! {
        #[test]
        fn any_bytes_pass(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::redact(&input);
        }

        #[test]
        fn any_bytes_of_syntax_pass(input in "[\\[\\]{}\":,\\\\u0-9a?&=%;@./ \\r\\n-]{0,120}") {
            super::redact(input.as_bytes());
        }
    }
}
