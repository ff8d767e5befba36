//! Keys and tokens that begin in a known way.

use std::{collections::HashMap, ops::Range};

use aho_corasick::{AhoCorasick, Input};
use base64::Engine;
use memchr::memmem;

use crate::{Detector, text::BASE64URL};

/// The longest header of a token that is read, and how many beginnings of one are tried in a row of its letters.
const HEADER: usize = 2048;
const TRIES: usize = 8;

/// How long something is that begins with what was found at the start of a text. None if it is something else.
type Length = fn(&[u8]) -> Option<usize>;

/// How each kind begins.
const KINDS: [(&str, Detector, Length); 41] = [
    ("AKIA", Detector::AwsKey, aws_id),
    ("ASIA", Detector::AwsKey, aws_id),
    ("ABIA", Detector::AwsKey, aws_id),
    ("ACCA", Detector::AwsKey, aws_id),
    ("AIza", Detector::GcpKey, |text| run(text, 4, is_url_word, 35, 35)),
    ("GOCSPX-", Detector::GcpKey, |text| run(text, 7, is_url_word, 28, 28)),
    ("ya29.", Detector::GcpKey, |text| run(text, 5, is_url_word, 20, 4096)),
    ("AccountKey=", Detector::AzureKey, |text| run(text, 11, is_base64, 86, 88)),
    ("sig=", Detector::AzureKey, |text| run(text, 4, |byte| is_base64(byte) || byte == b'%', 43, 128)),
    ("ghp_", Detector::GithubToken, github),
    ("gho_", Detector::GithubToken, github),
    ("ghu_", Detector::GithubToken, github),
    ("ghs_", Detector::GithubToken, github),
    ("ghr_", Detector::GithubToken, github),
    ("github_pat_", Detector::GithubToken, |text| run(text, 11, is_url_word, 22, 255)),
    ("xoxa-", Detector::SlackToken, slack),
    ("xoxb-", Detector::SlackToken, slack),
    ("xoxc-", Detector::SlackToken, slack),
    ("xoxd-", Detector::SlackToken, slack),
    ("xoxe-", Detector::SlackToken, slack),
    ("xoxe.", Detector::SlackToken, |text| run(text, 5, is_url_word, 10, 512)),
    ("xoxo-", Detector::SlackToken, slack),
    ("xoxp-", Detector::SlackToken, slack),
    ("xoxr-", Detector::SlackToken, slack),
    ("xoxs-", Detector::SlackToken, slack),
    ("xapp-", Detector::SlackToken, slack),
    ("hooks.slack.com/services/", Detector::SlackToken, |text| run(text, 25, |byte| is_url_word(byte) || byte == b'/', 20, 128)),
    ("sk_live_", Detector::StripeKey, stripe),
    ("sk_test_", Detector::StripeKey, stripe),
    ("rk_live_", Detector::StripeKey, stripe),
    ("rk_test_", Detector::StripeKey, stripe),
    ("whsec_", Detector::StripeKey, |text| run(text, 6, is_base64, 24, 128)),
    ("-----BEGIN ", Detector::PrivateKey, private_key),
    // `{` and a quote, a blank or the end of a line, in base64.
    ("eyJ", Detector::Jwt, jwt),
    ("eyA", Detector::Jwt, jwt),
    ("eyI", Detector::Jwt, jwt),
    ("ewo", Detector::Jwt, jwt),
    ("ew0", Detector::Jwt, jwt),
    ("ewk", Detector::Jwt, jwt),
    ("ewp", Detector::Jwt, jwt),
    ("ewl", Detector::Jwt, jwt),
];

/// The kinds that rules are for.
pub(crate) struct Keys {
    finder: AhoCorasick,
    kinds: Vec<(Length, Detector, usize)>,
}

impl Keys {
    pub(crate) fn new(rules: &HashMap<Detector, usize>) -> Option<Self> {
        let kinds =
            KINDS.iter().filter_map(|(prefix, detector, length)| Some((*prefix, (*length, *detector, *rules.get(detector)?))));
        let (prefixes, kinds): (Vec<&str>, Vec<_>) = kinds.unzip();
        let finder = AhoCorasick::new(&prefixes).ok().filter(|_| !prefixes.is_empty())?;
        Some(Self { finder, kinds })
    }

    pub(crate) fn find(&self, text: &[u8], mut found: impl FnMut(Range<usize>, usize)) {
        let (mut at, mut tried) = (0, 0);
        let mut tried_in = 0..0;
        while let Some(begins) = self.finder.find(Input::new(text).range(at..)) {
            let (length, detector, rule) = self.kinds[begins.pattern().as_usize()];
            let start = begins.start();
            let glued = start > 0 && text[start - 1].is_ascii_alphanumeric();
            at = start + 1;
            if detector == Detector::Jwt {
                // Each try reads to the end of the row, so a long row gets few of them.
                if !tried_in.contains(&start) {
                    let row = text[start..].iter().take_while(|byte| is_url_word(**byte)).count();
                    (tried_in, tried) = (start..start + row, 0);
                }
                tried += 1;
                if tried > TRIES {
                    continue;
                }
            } else if detector == Detector::AwsKey && glued {
                continue;
            }
            if let Some(length) = length(&text[start..]) {
                found(start..start + length, rule);
                at = start + length;
            }
        }
    }
}

pub(crate) fn has_aws_id(text: &[u8]) -> bool {
    ["AKIA", "ASIA", "ABIA", "ACCA"].iter().any(|prefix| memmem::find_iter(text, prefix).any(|at| aws_id(&text[at..]).is_some()))
}

/// Finds what a secret access key looks like: 40 characters of base64, of all kinds of letters.
pub(crate) fn aws_secrets(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while let Some(offset) = text[at..].iter().position(|byte| is_base64(*byte) && *byte != b'=') {
        let start = at + offset;
        let length = text[start..].iter().take_while(|byte| is_base64(**byte) && **byte != b'=').count();
        at = start + length;
        let run = &text[start..at];
        let has = |is: fn(&u8) -> bool| run.iter().any(is);
        if length == 40 && has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) {
            found(start..at);
        }
    }
}

/// `from` bytes, and then at least `least` of a kind, of which at most `most` are taken.
fn run(text: &[u8], from: usize, is: impl Fn(u8) -> bool, least: usize, most: usize) -> Option<usize> {
    let length = text.get(from..)?.iter().take(most).take_while(|byte| is(**byte)).count();
    (length >= least).then_some(from + length)
}

fn aws_id(text: &[u8]) -> Option<usize> {
    let length = run(text, 4, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit(), 16, 17)?;
    (length == 20 && !text.get(20).is_some_and(u8::is_ascii_lowercase)).then_some(length)
}

fn github(text: &[u8]) -> Option<usize> {
    run(text, 4, |byte| byte.is_ascii_alphanumeric(), 36, 255)
}

fn slack(text: &[u8]) -> Option<usize> {
    run(text, 5, |byte| is_url_word(byte) || byte == b'%', 10, 512)
}

fn stripe(text: &[u8]) -> Option<usize> {
    run(text, 8, |byte| byte.is_ascii_alphanumeric(), 10, 255)
}

/// To its end, or to that of the text.
fn private_key(text: &[u8]) -> Option<usize> {
    let label = &text[11..text.len().min(80)];
    let label = &label[..memmem::find(label, b"-----")?];
    memmem::find(label, b"PRIVATE KEY")?;
    let end = memmem::find(text, b"-----END ").and_then(|end| Some(end + 9 + memmem::find(&text[end + 9..], b"-----")? + 5));
    Some(end.unwrap_or(text.len()))
}

/// Three parts, or the five of an encrypted one, of which the first says an `alg`.
fn jwt(text: &[u8]) -> Option<usize> {
    let part = |from: usize| text[from..].iter().take_while(|byte| is_url_word(**byte)).count();
    let dot = |at: usize| text.get(at) == Some(&b'.');
    let header = text.iter().take(HEADER + 1).take_while(|byte| is_url_word(**byte)).count();
    if header > HEADER || !dot(header) {
        return None;
    }
    let payload_end = header + 1 + part(header + 1);
    if !dot(payload_end) {
        return None;
    }
    let decoded = BASE64URL.decode(&text[..header]).ok()?;
    let decoded = decoded.trim_ascii();
    if !decoded.ends_with(b"}") || memmem::find(decoded, b"\"alg\"").is_none() {
        return None;
    }
    let mut end = payload_end + 1 + part(payload_end + 1);
    if dot(end) {
        let fourth = end + 1 + part(end + 1);
        if dot(fourth) {
            end = fourth + 1 + part(fourth + 1);
        }
    }
    Some(end)
}

fn is_url_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}
