//! The log in Redis: scripts, and what they answer. Needs Redis 6.2.

use std::time::Duration;

use redis::{RedisError, RedisResult, Script, ServerErrorKind, Value, aio::ConnectionLike};
use tokio::time::timeout;

use super::{
    Rules,
    log::{Census, Content, Entry, Generation, Malformed, MemberId, Page, Position, Present, Record, Scope, Term, place},
};

const BOUNDS: Bounds = Bounds { page: 500, records: 10_000, kept: Duration::from_secs(7 * 24 * 3600), members: 10_000 };
/// How long replicas are waited for.
const COPYING: Duration = Duration::from_millis(100);

/// A scope's log. Commands go over one connection, and one that waits for replicas holds up those behind it: beats and
/// purges need connections of their own, apart from those of requests.
#[derive(Clone, Debug)]
pub(crate) struct Log<C> {
    connection: C,
    scripts: Scripts,
    log: String,
    list: String,
    news: String,
    bounds: Bounds,
    silence: Duration,
    waits: Waits,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
struct Waits {
    answer: Duration,
    /// And how long replicas are, besides.
    copies: Duration,
}

/// What a scope takes up in Redis.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Records that a beat is answered at once.
    page: usize,
    /// Records that are kept, and for how long. Who was away for longer can't say of its objects what was purged.
    records: usize,
    kept: Duration,
    members: usize,
}

#[derive(Clone, Debug)]
struct Scripts {
    beat: Script,
    append: Script,
    look: Script,
    forget: Script,
}

/// Why the log couldn't be asked. All but `Full` may pass by themselves; whether a purge was appended is then unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("Redis failed")]
    Redis(#[source] RedisError),
    #[error("Redis did not answer within {0:?}")]
    Late(Duration),
    #[error("the scope has as many members as it can")]
    Full,
    #[error("what the log holds {0}")]
    Malformed(#[source] Malformed),
}

impl<C: ConnectionLike> Log<C> {
    /// The log of a scope, asked over a connection. An answer takes at most `patience`, and with replicas to be waited
    /// for 100 ms more.
    pub(crate) fn new(connection: C, scope: &Scope, rules: &Rules, patience: Duration) -> Self {
        Self {
            connection,
            scripts: Scripts::new(),
            log: scope.key("log"),
            list: scope.key("members"),
            news: scope.key("news"),
            bounds: BOUNDS,
            silence: rules.outlived() * 6,
            waits: Waits { answer: patience, copies: COPYING },
        }
    }

    /// A member's beat, that has applied the log up to there. Returns what it reads, and how many replicas have the beat.
    pub(crate) async fn beat(
        &mut self,
        member: &MemberId,
        applied: Option<Position>,
        copies: u32,
    ) -> Result<(Page, u32), LogError> {
        let mut script = self.scripts.beat.prepare_invoke();
        script.key(&self.log).key(&self.list).arg(fresh()).arg(member.to_string());
        match applied {
            Some(applied) => script.arg(applied.generation.to_string()).arg(applied.at),
            None => script.arg("-").arg(0),
        };
        script.arg(self.bounds.page).arg(micros(self.silence)).arg(self.bounds.members).arg(self.bounds.kept.as_secs());
        let (answer, replicas) = ask(&mut self.connection, &self.scripts.beat, script, copies, self.waits).await?;
        Ok((page(&answer).map_err(LogError::Malformed)?, replicas))
    }

    /// Appends a purge; `again` if the log may have it already. Returns its place and the members, and how many replicas have it.
    pub(crate) async fn append(&mut self, entry: &Entry, again: bool, copies: u32) -> Result<(Census, u32), LogError> {
        let mut script = self.scripts.append.prepare_invoke();
        script.key(&self.log).key(&self.list).arg(fresh()).arg(entry.to_string());
        script.arg(u8::from(again)).arg(self.bounds.records).arg(micros(self.bounds.kept)).arg(&self.news);
        let (answer, replicas) = ask(&mut self.connection, &self.scripts.append, script, copies, self.waits).await?;
        Ok((census(&answer).map_err(LogError::Malformed)?, replicas))
    }

    /// The members, and how many replicas have all so far.
    pub(crate) async fn look(&mut self, copies: u32) -> Result<(Census, u32), LogError> {
        let mut script = self.scripts.look.prepare_invoke();
        script.key(&self.log).key(&self.list).arg(fresh());
        let (answer, replicas) = ask(&mut self.connection, &self.scripts.look, script, copies, self.waits).await?;
        Ok((census(&answer).map_err(LogError::Malformed)?, replicas))
    }

    /// Takes members off the list whose beats are still as many.
    pub(crate) async fn forget(&mut self, members: impl Iterator<Item = (&MemberId, u64)>) -> Result<(), LogError> {
        let mut script = self.scripts.forget.prepare_invoke();
        script.key(&self.list);
        for (member, beats) in members {
            script.arg(member.to_string()).arg(beats);
        }
        ask(&mut self.connection, &self.scripts.forget, script, 0, self.waits).await.map(drop)
    }

    /// Takes a member off the list that has given up its lease.
    pub(crate) async fn leave(&mut self, member: &MemberId) -> Result<(), LogError> {
        let command = redis::cmd("HDEL").arg(&self.list).arg(member.to_string()).to_owned();
        in_time(self.waits.answer, command.query_async::<()>(&mut self.connection)).await
    }

    /// The channel that says when something was appended.
    pub(crate) fn news(&self) -> &str {
        &self.news
    }
}

impl Scripts {
    fn new() -> Self {
        const PRELUDE: &str = include_str!("prelude.lua");
        const CENSUS: &str = include_str!("census.lua");
        let script = |parts: &[&str]| Script::new(&parts.concat());
        Self {
            beat: script(&[PRELUDE, include_str!("beat.lua")]),
            append: script(&[PRELUDE, CENSUS, include_str!("append.lua")]),
            look: script(&[PRELUDE, CENSUS, include_str!("look.lua")]),
            forget: script(&[include_str!("forget.lua")]),
        }
    }
}

/// Runs a script, and asks on the same connection how many replicas have what was written by then. A connection made
/// anew would say so of nothing.
async fn ask(
    connection: &mut impl ConnectionLike,
    script: &Script,
    call: redis::ScriptInvocation<'_>,
    copies: u32,
    waits: Waits,
) -> Result<(Value, u32), LogError> {
    let mut pipe = redis::pipe();
    pipe.invoke_script(&call).ignore_errors();
    if copies > 0 {
        pipe.cmd("WAIT").arg(copies).arg(waits.copies.as_millis() as u64);
    }
    let patience = waits.answer + if copies > 0 { waits.copies } else { Duration::ZERO };
    let mut answers: Vec<RedisResult<Value>> = in_time(patience, pipe.query_async(connection)).await?;
    if answers.first().is_some_and(is_unknown_script) {
        in_time(patience, script.load_async(connection)).await?;
        answers = in_time(patience, pipe.query_async(connection)).await?;
    }
    let mut answers = answers.into_iter();
    let answer = answers.next().unwrap_or(Ok(Value::Nil)).map_err(LogError::from)?;
    // Without an answer to WAIT, no replica is known to have it.
    let replicas = answers.next().and_then(Result::ok).and_then(|value| redis::from_redis_value(value).ok()).unwrap_or(0);
    Ok((answer, replicas))
}

async fn in_time<T>(patience: Duration, answer: impl Future<Output = RedisResult<T>>) -> Result<T, LogError> {
    timeout(patience, answer).await.map_err(|_| LogError::Late(patience))?.map_err(LogError::from)
}

fn is_unknown_script(answer: &RedisResult<Value>) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == ServerErrorKind::NoScript.into())
}

impl LogError {
    /// What happened, and why.
    pub(crate) fn chain(&self) -> String {
        let why = std::error::Error::source(self).map(|why| format!(": {why}"));
        format!("{self}{}", why.unwrap_or_default())
    }
}

impl From<RedisError> for LogError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("FULL") { Self::Full } else { Self::Redis(error) }
    }
}

/// What tells one beginning of a generation or term from another.
fn fresh() -> String {
    format!("{:016x}", random())
}

pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the operating system, and told apart by the time; processes that start alike must differ.
    RandomState::new().hash_one(std::time::Instant::now())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Of `beat.lua`.
fn page(answer: &Value) -> Result<Page, Malformed> {
    let [generation, term, tail, last, records @ ..] = list(answer)? else { return Err(Malformed::Foreign) };
    let (tail, last) = (place(text(tail)?)?, place(text(last)?)?);
    let records: Vec<Record> = records.iter().map(record).collect::<Result<_, _>>()?;
    let rising = records.is_sorted_by(|one, next| one.position.at < next.position.at);
    if !rising || records.last().is_some_and(|record| record.position.at > last) {
        return Err(Malformed::Foreign);
    }
    Ok(Page { generation: Generation::parse(text(generation)?)?, term: maybe_term(text(term)?)?, tail, last, records })
}

fn record(value: &Value) -> Result<Record, Malformed> {
    let [at, generation, Value::BulkString(content)] = list(value)? else { return Err(Malformed::Foreign) };
    let position = Position { generation: Generation::parse(text(generation)?)?, at: place(text(at)?)? };
    Ok(Record { position, content: Content::parse(&String::from_utf8_lossy(content)) })
}

/// Of `look.lua` and `append.lua`. One member that can't be read, and the whole is worth nothing: it may have a lease.
fn census(answer: &Value) -> Result<Census, Malformed> {
    let [generation, term, at, now, connected, members @ ..] = list(answer)? else { return Err(Malformed::Foreign) };
    let members = members.chunks_exact(2).map(|pair| present(text(&pair[0])?, text(&pair[1])?)).collect::<Result<_, _>>()?;
    Ok(Census {
        generation: Generation::parse(text(generation)?)?,
        term: maybe_term(text(term)?)?,
        at: place(text(at)?)?,
        now: place(text(now)?)?,
        connected: text(connected)?.parse().map_err(|_| Malformed::Foreign)?,
        members,
    })
}

fn present(id: &str, record: &str) -> Result<Present, Malformed> {
    let words: Vec<&str> = record.split(' ').collect();
    let [generation, at, since, _seen, beats] = words[..] else { return Err(Malformed::Foreign) };
    let applied = match generation {
        "-" => None,
        generation => Some(Position { generation: Generation::parse(generation)?, at: place(at)? }),
    };
    let beats = beats.parse().map_err(|_| Malformed::Foreign)?;
    Ok(Present { id: id.parse()?, applied, since: place(since)?, beats })
}

fn maybe_term(text: &str) -> Result<Option<Term>, Malformed> {
    if text.is_empty() { Ok(None) } else { Term::parse(text).map(Some) }
}

fn list(value: &Value) -> Result<&[Value], Malformed> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Malformed::Foreign),
    }
}

fn text(value: &Value) -> Result<&str, Malformed> {
    match value {
        Value::BulkString(bytes) => str::from_utf8(bytes).map_err(|_| Malformed::Foreign),
        _ => Err(Malformed::Foreign),
    }
}

#[cfg(test)]
mod tests;
