//! Rules, compiled, and what they are applied to.

use std::{borrow::Cow, fmt, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};

use crate::{
    Action, Detector, Key, Limits, Rules, Tally, What, cookie, decode, detect::Finder, form, json, json::path::Paths, multipart,
    name::Names, replace::replace, text::Scan,
};

/// Rules of one redactor.
const RULES: usize = 256;
/// Regular expressions of one redactor, the bytes of one, and of its compiled form.
const REGEXES: usize = 32;
const PATTERN: usize = 1024;
const COMPILED: usize = 1 << 20;

/// Applies rules. A clone shares them.
#[derive(Clone)]
pub struct Redactor {
    compiled: Arc<Compiled>,
    key: Key,
}

/// What the rules came to.
#[derive(Default)]
pub(crate) struct Compiled {
    rules: Vec<(String, Action)>,
    pub(crate) limits: Limits,
    pub(crate) headers: Names,
    pub(crate) cookies: Names,
    /// Of queries, of forms, of JSON at any depth.
    pub(crate) query: Names,
    pub(crate) form: Names,
    pub(crate) members: Names,
    pub(crate) paths: Paths,
    pub(crate) regexes: Vec<(Regex, usize)>,
    pub(crate) userinfo: Option<usize>,
    pub(crate) detectors: Finder,
    json: bool,
}

impl Compiled {
    pub(crate) fn action(&self, rule: usize) -> Action {
        self.rules[rule].1
    }
}

/// Rules that can't be applied.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum RulesError {
    /// More than 256 rules, or more than 32 regular expressions.
    #[error("there are too many rules: at most 256, of them 32 with a regex")]
    TooMany,
    /// A name that is empty or too long.
    #[error("rule {rule}: a name has 1 to 64 bytes besides - and _")]
    Name {
        /// The rule's name.
        rule: String,
    },
    /// A path that is none of ours.
    #[error("rule {rule}: this is no path: {why}")]
    Path {
        /// The rule's name.
        rule: String,
        /// What would be right.
        why: &'static str,
    },
    /// A regular expression that is wrong, too long, or matches nothing at all.
    #[error("rule {rule}: this is no regex of at most 1024 bytes that compiles to at most 1 MiB and never matches an empty text")]
    Regex {
        /// The rule's name.
        rule: String,
    },
}

/// Why a body is not stored.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// It says that it is JSON, and is not.
    NotJson,
    /// JSON that is nested too deep.
    TooDeep,
    /// A content coding that is not known, or too many of them.
    Coding,
    /// Its content coding can't be taken off.
    Undecodable,
    /// Decoded, it has more bytes than the limits allow.
    TooLarge,
    /// Parts of a form that can't be told apart.
    Multipart,
    /// A character set that is not a superset of ASCII.
    Charset,
    /// Something was found in a body that is no text.
    Binary,
}

impl Reason {
    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::TooDeep => "too_deep",
            Self::Coding => "coding",
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too_large",
            Self::Multipart => "multipart",
            Self::Charset => "charset",
            Self::Binary => "binary",
        }
    }
}

/// A body that is to be redacted.
#[derive(Clone, Copy, Default)]
pub struct Body<'a> {
    /// Its bytes, as they were sent.
    pub bytes: &'a [u8],
    /// Its `Content-Type`.
    pub media_type: Option<&'a [u8]>,
    /// Its `Content-Encoding`; several fields joined by commas.
    pub coding: Option<&'a [u8]>,
    /// Only its beginning is there.
    pub cut: bool,
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("len", &self.bytes.len()).field("cut", &self.cut).finish_non_exhaustive()
    }
}

/// What is left of a body.
#[derive(Clone, Eq, PartialEq)]
pub enum Redacted<'a> {
    /// This may be stored. Its content coding is taken off.
    Kept(Cow<'a, [u8]>),
    /// Nothing of it may be stored.
    Dropped(Reason),
}

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(bytes) => write!(f, "Kept({} bytes)", bytes.len()),
            Self::Dropped(reason) => write!(f, "Dropped({reason:?})"),
        }
    }
}

impl Redactor {
    /// Compiles rules. The key makes pseudonyms.
    ///
    /// # Errors
    /// Which rule can't be applied, and what would be right.
    pub fn new(rules: &Rules, key: &Key) -> Result<Self, RulesError> {
        if rules.rules.len() > RULES {
            return Err(RulesError::TooMany);
        }
        let mut compiled = Compiled { limits: rules.limits, ..Compiled::default() };
        let mut detectors: Vec<(Detector, usize)> = Vec::new();
        for (at, rule) in rules.rules.iter().enumerate() {
            compiled.rules.push((rule.name.clone(), rule.action));
            let named = match &rule.what {
                What::Header(name) => compiled.headers.insert(name, at),
                What::Cookie(name) => compiled.cookies.insert(name, at),
                What::Query(name) => compiled.query.insert(name, at),
                What::Form(name) => compiled.form.insert(name, at),
                What::Field(name) => {
                    compiled.json = true;
                    compiled.query.insert(name, at) && compiled.form.insert(name, at) && compiled.members.insert(name, at)
                }
                What::Json(path) => {
                    compiled.json = true;
                    compiled.paths.insert(path, at).map_err(|why| RulesError::Path { rule: rule.name.clone(), why })?;
                    true
                }
                What::Regex(pattern) => {
                    let regex = regex(pattern).ok_or_else(|| RulesError::Regex { rule: rule.name.clone() })?;
                    compiled.regexes.push((regex, at));
                    true
                }
                What::Userinfo => {
                    compiled.userinfo.get_or_insert(at);
                    true
                }
                What::Detector(detector) => {
                    detectors.push((*detector, at));
                    true
                }
            };
            if !named {
                return Err(RulesError::Name { rule: rule.name.clone() });
            }
        }
        if compiled.regexes.len() > REGEXES {
            return Err(RulesError::TooMany);
        }
        compiled.detectors = Finder::new(&detectors);
        Ok(Self { compiled: Arc::new(compiled), key: key.clone() })
    }

    /// The same rules with another key, for another capture.
    #[must_use]
    pub fn with_key(&self, key: &Key) -> Self {
        Self { compiled: Arc::clone(&self.compiled), key: key.clone() }
    }

    /// Counts by the names of rules, without those that found nothing; rules of one name together.
    pub fn counts<'s>(&'s self, tally: &Tally) -> Vec<(&'s str, u64)> {
        let mut counts: Vec<(&str, u64)> = Vec::new();
        for (at, (name, _)) in self.compiled.rules.iter().enumerate() {
            match (tally.of(at), counts.iter_mut().find(|(known, _)| known == name)) {
                (0, _) => {}
                (count, Some(known)) => known.1 += count,
                (count, None) => counts.push((name, count)),
            }
        }
        counts
    }

    /// What is left of a URL or a request's target.
    pub fn url<'a>(&self, url: &'a [u8], tally: &mut Tally) -> Cow<'a, [u8]> {
        form::url(url, &mut self.scan(url, tally))
    }

    /// What is left of the value of a header or trailer field. None if the field is dropped.
    pub fn header<'a>(&self, name: &[u8], value: &'a [u8], tally: &mut Tally) -> Option<Cow<'a, [u8]>> {
        let mut scan = self.scan(value, tally);
        if let Some(rule) = self.compiled.headers.find(name) {
            scan.tally.count(rule);
            let action = self.compiled.action(rule);
            let mut out = Vec::new();
            replace(action, &self.key, value, &mut out);
            return (action != Action::Drop).then_some(Cow::Owned(out));
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        Some(match () {
            () if is("cookie") => cookie::request(value, &mut scan),
            () if is("set-cookie") => cookie::response(value, &mut scan),
            () if is(":path") => form::url(value, &mut scan),
            () => scan.text(value),
        })
    }

    /// What is left of a body.
    pub fn body<'a>(&self, body: &Body<'a>, tally: &mut Tally) -> Redacted<'a> {
        let decoded = match decode::decode(body.bytes, body.coding.unwrap_or_default(), body.cut, &self.compiled.limits) {
            Ok(decoded) => decoded,
            Err(reason) => return Redacted::Dropped(reason),
        };
        let mut scan = self.scan(&decoded, tally);
        let media_type = body.media_type.unwrap_or_default();
        let kept = match decoded {
            Cow::Borrowed(bytes) => content(bytes, media_type, body.cut, &mut scan),
            Cow::Owned(bytes) => content(&bytes, media_type, body.cut, &mut scan).map(|kept| Cow::Owned(kept.into_owned())),
        };
        kept.map_or_else(Redacted::Dropped, Redacted::Kept)
    }

    fn scan<'r>(&'r self, all: &[u8], tally: &'r mut Tally) -> Scan<'r> {
        Scan { rules: &self.compiled, key: &self.key, tally, aws: self.compiled.detectors.has_aws_id(all), level: 0 }
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("rules", &self.compiled.rules.len()).finish_non_exhaustive()
    }
}

fn regex(pattern: &str) -> Option<Regex> {
    if pattern.len() > PATTERN {
        return None;
    }
    let regex = RegexBuilder::new(pattern).size_limit(COMPILED).dfa_size_limit(COMPILED).build().ok()?;
    (!regex.is_match(b"")).then_some(regex)
}

/// What is left of content without a coding.
pub(crate) fn content<'i>(bytes: &'i [u8], media_type: &[u8], cut: bool, scan: &mut Scan<'_>) -> Result<Cow<'i, [u8]>, Reason> {
    let lower = media_type.to_ascii_lowercase();
    let kind = lower.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if let Some(charset) = multipart::parameter(media_type, b"charset")
        && !["utf-8", "utf8", "us-ascii", "ascii", "iso-8859-", "windows-125"]
            .iter()
            .any(|known| charset.to_ascii_lowercase().starts_with(known.as_bytes()))
    {
        return Err(Reason::Charset);
    }
    if kind.starts_with(b"multipart/") {
        let boundary = multipart::parameter(media_type, b"boundary").ok_or(Reason::Multipart)?;
        return multipart::redact(bytes, &boundary, cut, scan);
    }
    if kind == b"application/x-www-form-urlencoded" {
        return Ok(form::pairs(bytes, cut, true, scan));
    }
    if kind.ends_with(b"json") || kind.ends_with(b"jsonl") || kind.ends_with(b"json-seq") || looks_like_json(bytes) {
        // Without a rule for JSON, shapes can be found in what is none, too; what was counted is then found again.
        let before = scan.tally.clone();
        match json::redact(bytes, cut, scan) {
            Err(_) if !scan.rules.json => *scan.tally = before,
            left => return left,
        }
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(_) => !bytes.contains(&0),
        Err(error) => cut && error.error_len().is_none() || kind.starts_with(b"text/"),
    };
    if text {
        return Ok(scan.whole_text(bytes, cut));
    }
    match scan.text(bytes) {
        Cow::Borrowed(_) => Ok(Cow::Borrowed(bytes)),
        Cow::Owned(_) => Err(Reason::Binary),
    }
}

/// Does it begin with an object that has a member?
fn looks_like_json(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""))
}
