//! What stands in a scope's log, and what its scripts answer.
//!
//! An entry is a line of text, so that `redis-cli XRANGE` shows what happened:
//! `1 <id> hard tag <value>`, or `begin [<generation> <place>]` where a generation starts, with the last place before it.

use std::{fmt, str::FromStr, sync::Arc};

use crds::plan::{Identity, ObjectRef};

/// The last place of a generation; what follows must still be exact in the doubles of Lua.
pub(crate) const LAST_PLACE: u64 = (1 << 53) - 2;
/// Bytes of a URL or prefix.
const MAX_URL: usize = 8 * 1024;
/// Bytes of a tag or a policy's name.
const MAX_NAME: usize = 1024;
/// Bytes of a part of a scope, or of a pod's name.
const MAX_PART: usize = 253;

/// One life of a log: places are comparable within it only.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Generation(pub(super) u128);

/// A place in a log.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Position {
    pub generation: Generation,
    /// Microseconds of the server, or one more than the last.
    pub at: u64,
}

/// One life of a list of members, within which it has lost none.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Term(pub(super) u128);

/// Names one purge, however often it is appended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct PurgeId(pub(super) u128);

/// A process that holds objects: the pod, and which of its processes. A new process is a new member, so a late beat of
/// the one before can't be taken for its own.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct MemberId {
    pod: Arc<str>,
    incarnation: u64,
}

/// The pods that share a log.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Scope {
    namespace: Box<str>,
    workload: Box<str>,
}

/// A purge as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub id: PurgeId,
    pub what: What,
    pub strength: Strength,
}

/// What a purge does to the objects that it names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Strength {
    /// They are stale.
    Soft,
    /// They are gone.
    Hard,
}

/// Which objects a purge names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum What {
    Everything,
    /// All that a policy caused to be stored.
    Policy(Value),
    Tag(Value),
    /// URLs that begin with these bytes.
    Prefix(Value),
    Url(Value),
}

/// A word of bounded length, without space or control characters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Value(Arc<str>);

/// What one place of a log holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    pub position: Position,
    pub content: Content,
}

/// A log's content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// A generation starts here; with the place of the last record before it, unless the log was missing.
    Begin(Option<Position>),
    Purge(Entry),
    /// Written by a later version, or damaged. Who can't read a purge takes it for the widest.
    Unreadable,
}

/// What a beat is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Page {
    pub generation: Generation,
    /// None if the server doesn't say which run it is.
    pub term: Option<Term>,
    /// Place of the first record kept.
    pub tail: u64,
    /// Place of the last.
    pub last: u64,
    /// Records after the place of the beat if it is of this generation, else from the tail; as many as a page holds.
    pub records: Vec<Record>,
}

/// What an append, or a look at the members, is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Census {
    pub generation: Generation,
    /// None if the server doesn't say which run it is.
    pub term: Option<Term>,
    /// Place of the appended record, or of the last.
    pub at: u64,
    /// Microseconds of the server. To tell how long things took, never to decide.
    pub now: u64,
    /// Replicas that the server had.
    pub connected: u32,
    pub members: Vec<Present>,
}

/// A member as the list has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Present {
    pub id: MemberId,
    /// Up to where it has applied the log; None before it has read any.
    pub applied: Option<Position>,
    /// When it said so first, in microseconds of the server.
    pub since: u64,
    /// Its beats so far.
    pub beats: u64,
}

/// Why a text isn't what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("is empty")]
    Empty,
    #[error("is longer than {0} bytes")]
    Long(usize),
    #[error("contains a space or a control character")]
    Character,
    #[error("is not what fetchr writes")]
    Foreign,
}

impl What {
    /// All that the policy stored.
    pub(crate) fn policy(name: &str) -> Result<Self, Malformed> {
        Value::new(name, MAX_NAME).map(Self::Policy)
    }

    /// Objects with this tag.
    pub(crate) fn tag(tag: &str) -> Result<Self, Malformed> {
        Value::new(tag, MAX_NAME).map(Self::Tag)
    }

    /// URLs that begin so, in the form of the cache's keys.
    pub(crate) fn prefix(prefix: &str) -> Result<Self, Malformed> {
        Value::new(prefix, MAX_URL).map(Self::Prefix)
    }

    /// One URL, in the form of the cache's keys, with all its variants.
    pub(crate) fn url(url: &str) -> Result<Self, Malformed> {
        Value::new(url, MAX_URL).map(Self::Url)
    }
}

impl Value {
    fn new(text: &str, max: usize) -> Result<Self, Malformed> {
        checked(text, max, |c| !c.is_whitespace() && !c.is_control())?;
        Ok(Self(text.into()))
    }

    /// The word.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scope {
    /// The pods of a workload, such as `Deployment/web`.
    pub(crate) fn new(namespace: &str, workload: &str) -> Result<Self, Malformed> {
        // Neither braces nor colons: they would choose another slot of a cluster, or another tenant's keys.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '/' | '_');
        checked(namespace, MAX_PART, plain)?;
        checked(workload, MAX_PART, plain)?;
        Ok(Self { namespace: namespace.into(), workload: workload.into() })
    }

    /// The pods of a workload, or the proxy that stands alone. A proxy of the platform serves pods of many namespaces, which share nothing.
    pub(crate) fn of(proxy: &ObjectRef, pod: &Identity) -> Result<Self, String> {
        let workload = match pod.workload_name.is_empty() {
            false => format!("{}/{}", pod.workload_kind, pod.workload_name),
            true => format!("FetchrProxy/{}", proxy.name),
        };
        let namespace = if pod.namespace.is_empty() { &proxy.namespace } else { &pod.namespace };
        Self::new(namespace, &workload).map_err(|why| format!("{namespace}/{workload} {why}"))
    }

    /// The namespace, and `Kind/name` in it.
    pub(crate) fn parts(&self) -> (&str, &str) {
        (&self.namespace, &self.workload)
    }

    /// How names in Redis begin of things of a kind.
    pub(crate) fn prefix(&self, kind: &str) -> String {
        format!("fetchr:{}:{kind}:{}:", self.namespace, self.workload)
    }

    /// A name for Redis. Those of one scope share a slot of a cluster.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("fetchr:{}:{{purge:{}}}:{name}", self.namespace, self.workload)
    }
}

impl MemberId {
    /// A process of a pod. `incarnation` is random.
    pub(crate) fn new(pod: &str, incarnation: u64) -> Result<Self, Malformed> {
        checked(pod, MAX_PART, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))?;
        Ok(Self { pod: pod.into(), incarnation })
    }

    /// A process whose pod has no name that could be written.
    pub(crate) fn unnamed(incarnation: u64) -> Self {
        Self { pod: "unnamed".into(), incarnation }
    }

    /// Its pod.
    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }
}

impl Generation {
    /// As it stands beside what is stored outside of this process.
    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// From what [`Generation::bytes`] made.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// From what a script answered.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        hex(text).map(Self)
    }
}

impl Term {
    /// From what a script answered.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        hex(text).map(Self)
    }
}

impl Content {
    /// What a line of a log says.
    pub(crate) fn parse(line: &str) -> Self {
        if line == "begin" {
            return Self::Begin(None);
        }
        if let Some(before) = line.strip_prefix("begin ") {
            return before.parse().map_or(Self::Unreadable, |position| Self::Begin(Some(position)));
        }
        line.parse().map_or(Self::Unreadable, Self::Purge)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(None) => f.write_str("begin"),
            Self::Begin(Some(before)) => write!(f, "begin {before}"),
            Self::Purge(entry) => entry.fmt(f),
            Self::Unreadable => f.write_str("unreadable"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strength = match self.strength {
            Strength::Soft => "soft",
            Strength::Hard => "hard",
        };
        let (kind, value) = match &self.what {
            What::Everything => ("everything", ""),
            What::Policy(value) => ("policy ", value.as_str()),
            What::Tag(value) => ("tag ", value.as_str()),
            What::Prefix(value) => ("prefix ", value.as_str()),
            What::Url(value) => ("url ", value.as_str()),
        };
        write!(f, "1 {:032x} {strength} {kind}{value}", self.id.0)
    }
}

impl FromStr for Entry {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        let ["1", id, strength, rest @ ..] = words.as_slice() else { return Err(Malformed::Foreign) };
        let what = match rest {
            ["everything"] => What::Everything,
            ["policy", name] => What::policy(name)?,
            ["tag", tag] => What::tag(tag)?,
            ["prefix", prefix] => What::prefix(prefix)?,
            ["url", url] => What::url(url)?,
            _ => return Err(Malformed::Foreign),
        };
        let strength = match *strength {
            "soft" => Strength::Soft,
            "hard" => Strength::Hard,
            _ => return Err(Malformed::Foreign),
        };
        Ok(Self { id: PurgeId(hex(id)?), what, strength })
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for PurgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.generation, self.at)
    }
}

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (generation, at) = text.split_once(' ').ok_or(Malformed::Foreign)?;
        Ok(Self { generation: Generation::parse(generation)?, at: place(at)? })
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.pod, self.incarnation)
    }
}

impl FromStr for MemberId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (pod, incarnation) = text.split_once(':').ok_or(Malformed::Foreign)?;
        if incarnation.len() != 16 {
            return Err(Malformed::Foreign);
        }
        Self::new(pod, u64::from_str_radix(incarnation, 16).map_err(|_| Malformed::Foreign)?)
    }
}

/// A place as the scripts write it.
pub(super) fn place(text: &str) -> Result<u64, Malformed> {
    text.parse().ok().filter(|at| *at <= LAST_PLACE).ok_or(Malformed::Foreign)
}

fn hex(text: &str) -> Result<u128, Malformed> {
    if text.len() != 32 || text.starts_with('+') {
        return Err(Malformed::Foreign);
    }
    u128::from_str_radix(text, 16).map_err(|_| Malformed::Foreign)
}

fn checked(text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<(), Malformed> {
    if text.is_empty() {
        Err(Malformed::Empty)
    } else if text.len() > max {
        Err(Malformed::Long(max))
    } else if !text.chars().all(allowed) {
        Err(Malformed::Character)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
