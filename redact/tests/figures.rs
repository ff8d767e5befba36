//! What redaction costs.

use std::{fmt::Write, time::Instant};

use redact::{Action, Body, Key, Redacted, Redactor, Rules, Tally};

/// 4 KiB of JSON as a shop answers it, with a password and, if detectors are to find something, an address.
fn document() -> String {
    let mut out = String::from("{\"password\":\"x\",\"items\":[");
    for at in 0.. {
        let _ = write!(
            out,
            "{{\"id\":{at},\"name\":\"Chair number {at}\",\"price\":1{at}.90,\"inStock\":true,\"sku\":\"A-{at:06}\",\"tags\":[\"oak\",\"new\"]}},"
        );
        if out.len() > 4000 {
            break;
        }
    }
    out + "{\"mail\":\"ann@shop.example\"}]}"
}

#[test]
#[ignore = "prints figures"]
fn json_of_4_kib() {
    let document = document();
    let body = Body { bytes: document.as_bytes(), media_type: Some(b"application/json"), coding: None, cut: false };
    for (name, rules) in
        [("default", Rules::standard()), ("with all detectors", Rules::standard().with_detectors(Action::Pseudonym))]
    {
        let redactor = Redactor::new(&rules, &Key::new(&[1; 32])).unwrap();
        let mut best = f64::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            for _ in 0..200 {
                assert!(matches!(redactor.body(&body, &mut Tally::default()), Redacted::Kept(_)));
            }
            best = best.min(start.elapsed().as_secs_f64() / 200.0);
        }
        println!("{name}: {:.1} us for {} bytes, {:.0} MB/s", best * 1e6, document.len(), document.len() as f64 / best / 1e6);
    }
}

#[test]
#[ignore = "prints figures"]
fn work_grows_with_the_length_only() {
    let redactor = Redactor::new(&Rules::standard().with_detectors(Action::Mask), &Key::new(&[1; 32])).unwrap();
    for pattern in [
        "eyJ",
        "eyJhbGci.",
        "=",
        "a=",
        "%41",
        "%2541",
        "4111 ",
        "41111111111111",
        "://",
        "://a@",
        "@",
        "a@b.cd ",
        "A",
        "QUFB/",
        "{\"a\":",
        "[",
        "\"\\\\",
        "AKIA",
        "ghp_a",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
    ] {
        let time = |length: usize| {
            let text = pattern.repeat(length / pattern.len());
            let body = Body { bytes: text.as_bytes(), media_type: Some(b"text/plain"), coding: None, cut: false };
            let start = Instant::now();
            redactor.body(&body, &mut Tally::default());
            start.elapsed().as_secs_f64()
        };
        time(1 << 10);
        let (short, long) = (time(64 << 10), time(512 << 10));
        println!("{pattern}: 64 KiB {:.2} ms, 512 KiB {:.2} ms, {:.1} times", short * 1e3, long * 1e3, long / short);
    }
}
