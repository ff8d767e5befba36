//! Secrets that are known by their shape. `docs/redaction.md` has the shapes.

mod card;
mod keys;

use std::collections::HashMap;

use self::keys::Keys;
use crate::{
    Detector,
    text::{By, Found},
};

/// The longest part of an address in front of `@`, and the longest behind it.
const LOCAL: usize = 64;
const DOMAIN: usize = 253;
/// What stands behind the last dot of names such as `icon@2x.png`.
const FILES: [&[u8]; 9] = [b"png", b"jpg", b"jpeg", b"gif", b"webp", b"svg", b"css", b"js", b"json"];

/// The detectors of a set of rules.
#[derive(Default)]
pub(crate) struct Finder {
    card: Option<usize>,
    email: Option<usize>,
    aws: Option<usize>,
    keys: Option<Keys>,
}

impl Finder {
    /// The first rule with a detector decides.
    pub(crate) fn new(detectors: &[(Detector, usize)]) -> Self {
        let mut rules: HashMap<Detector, usize> = HashMap::new();
        for (detector, rule) in detectors {
            rules.entry(*detector).or_insert(*rule);
        }
        let rule = |detector| rules.get(&detector).copied();
        Self {
            card: rule(Detector::PaymentCard),
            email: rule(Detector::Email),
            aws: rule(Detector::AwsKey),
            keys: Keys::new(&rules),
        }
    }

    /// Is there an access key id of AWS?
    pub(crate) fn has_aws_id(&self, text: &[u8]) -> bool {
        self.aws.is_some() && keys::has_aws_id(text)
    }

    /// Adds what they find.
    pub(crate) fn find(&self, text: &[u8], aws: bool, found: &mut Vec<Found>) {
        if let Some(rule) = self.card {
            card::find(text, |range| found.push(Found { range, by: By::Rule(rule) }));
        }
        if let Some(rule) = self.email {
            emails(text, rule, found);
        }
        if let Some(keys) = &self.keys {
            keys.find(text, |range, rule| found.push(Found { range, by: By::Rule(rule) }));
        }
        if let Some(rule) = self.aws.filter(|_| aws) {
            keys::aws_secrets(text, |range| found.push(Found { range, by: By::Rule(rule) }));
        }
    }
}

fn emails(text: &[u8], rule: usize, found: &mut Vec<Found>) {
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%*+^_~-".contains(&byte);
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || matches!(byte, b'-' | b'.');
    for at in memchr::memchr_iter(b'@', text) {
        let before = &text[at.saturating_sub(LOCAL)..at];
        let local = before.iter().rev().take_while(|byte| is_local(**byte)).count();
        let after = &text[at + 1..text.len().min(at + 1 + DOMAIN)];
        let run = after.iter().take_while(|byte| is_domain(**byte)).count();
        let domain = &after[..run];
        let domain = &domain[..domain.iter().rposition(|byte| !matches!(byte, b'.' | b'-')).map_or(0, |last| last + 1)];
        let Some(dot) = domain.iter().rposition(|&byte| byte == b'.') else { continue };
        let top = &domain[dot + 1..];
        let is_top = top.len() >= 2 && !top[0].is_ascii_digit() && !FILES.iter().any(|file| file.eq_ignore_ascii_case(top));
        if local > 0 && dot > 0 && is_top {
            found.push(Found { range: at - local..at + 1 + domain.len(), by: By::Rule(rule) });
        }
    }
}
