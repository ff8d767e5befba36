//! A log of purges that one pod keeps in its memory, for itself: what there is without Redis.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::Uri;
use serde::{Deserialize, Serialize};

use super::{
    CutOff, Generation, Index, Position, Stamp, Verdict,
    index::{CAPACITY, Object},
    log::{Entry, PurgeId, Strength, What},
    name::{Name, Naming},
    redis::random,
};

/// The purges of a pod that shares its log with nobody. Clones are the same log.
#[derive(Clone)]
pub struct PodPurges(Arc<Inner>);

struct Inner {
    naming: Naming,
    /// Place of the newest purge. It is written after the index, so who reads it finds the purge there.
    last: AtomicU64,
    index: RwLock<Index>,
    /// Purges so far: hard, soft.
    counts: [AtomicU64; 2],
}

/// What is asked of `POST /cache/purge`: one of the five, and how.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PurgeRequest {
    /// One URL with all its variants, absolute. Its scheme doesn't count.
    pub url: Option<String>,
    /// The beginning of URLs, absolute. Its scheme doesn't count.
    pub prefix: Option<String>,
    /// Answers with this tag.
    pub tag: Option<String>,
    /// Answers that a policy has stored, as `namespace/name`.
    pub policy: Option<String>,
    /// All answers.
    pub all: bool,
    /// They are stale rather than gone.
    pub soft: bool,
}

/// What became of a purge.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeAnswer {
    /// Whether no member answers from what was purged any more.
    pub complete: bool,
    /// Who has applied it.
    pub acknowledged: Vec<Acknowledged>,
    /// Who hasn't, and has no lease any more.
    pub lease_ran_out: Vec<String>,
    /// Who hasn't, and may have one.
    pub pending: Vec<String>,
    /// Copies of the log that have it.
    pub replicas: u32,
    /// How long it took, in microseconds.
    pub took_micros: u64,
}

/// A member that has applied a purge.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledged {
    /// The pod.
    pub member: String,
    /// How long after the log had it, in microseconds.
    pub lag_micros: u64,
}

impl PodPurges {
    /// Nothing was purged yet.
    pub fn new() -> Self {
        let mut index = Index::new(CutOff::Serve, CAPACITY);
        index.begin(Generation(u128::from(random()) << 64 | u128::from(random())), true);
        let (naming, last, counts) = (index.naming(), AtomicU64::new(0), Default::default());
        Self(Arc::new(Inner { naming, last, index: RwLock::new(index), counts }))
    }

    /// What a fetch or fill that begins now carries.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::of_first(self.0.last.load(Ordering::Acquire))
    }

    /// Purges so far, by how: for metrics.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 2] {
        let [hard, soft] = &self.0.counts;
        [("hard", hard.load(Ordering::Relaxed)), ("soft", soft.load(Ordering::Relaxed))]
    }

    /// Makes the names that objects carry.
    pub(crate) fn naming(&self) -> Naming {
        self.0.naming
    }

    /// What may be done with an object. Its URL and names are asked for only if there was a purge since its fetch began.
    pub(crate) fn verdict(&self, stamp: Stamp, of: impl FnOnce() -> (String, Vec<Name>)) -> Verdict {
        if stamp >= self.stamp() {
            return Verdict::Fresh;
        }
        let (url, names) = of();
        let index = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
        index.verdict(&Object { stamp, url: &url, names: &names })
    }

    /// Purges, and says so when no request that comes later is answered from what went.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn purge(&self, request: &PurgeRequest, member: &str) -> Result<PurgeAnswer, String> {
        let begun = std::time::Instant::now();
        let strength = if request.soft { Strength::Soft } else { Strength::Hard };
        let what = request.what()?;
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        let Some(generation) = index.generation() else { return Err("the log has not begun".to_owned()) };
        let mut at = self.0.last.load(Ordering::Acquire);
        for what in what {
            at = at.saturating_add(1).max(wall_micros()).min(super::log::LAST_PLACE);
            let entry = Entry { id: PurgeId(u128::from(random())), what, strength };
            index.apply(Position { generation, at }, &entry);
            index.advance(at);
        }
        self.0.last.store(at, Ordering::Release);
        drop(index);
        self.0.counts[usize::from(request.soft)].fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let acknowledged = vec![Acknowledged { member: member.to_owned(), lag_micros: took }];
        let (lease_ran_out, pending) = (Vec::new(), Vec::new());
        Ok(PurgeAnswer { complete: true, acknowledged, lease_ran_out, pending, replicas: 0, took_micros: took })
    }
}

impl Default for PodPurges {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PodPurges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodPurges").finish_non_exhaustive()
    }
}

impl PurgeRequest {
    /// The entries of the log. Those of a URL are two: keys may leave the host out.
    fn what(&self) -> Result<Vec<What>, String> {
        let Self { url, prefix, tag, policy, all, soft: _ } = self;
        let given = [url.is_some(), prefix.is_some(), tag.is_some(), policy.is_some(), *all];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err("exactly one of url, prefix, tag, policy and all is needed".to_owned());
        }
        let said = |field: &'static str| move |why: super::log::Malformed| format!("{field}: {why}");
        if let Some(url) = url {
            let [whole, path] = named("url", url)?;
            return Ok(vec![What::url(&whole).map_err(said("url"))?, What::url(&path).map_err(said("url"))?]);
        }
        if let Some(prefix) = prefix {
            let [whole, path] = named("prefix", prefix)?;
            return Ok(vec![What::prefix(&whole).map_err(said("prefix"))?, What::prefix(&path).map_err(said("prefix"))?]);
        }
        if let Some(tag) = tag {
            return Ok(vec![What::tag(tag).map_err(said("tag"))?]);
        }
        if let Some(policy) = policy {
            if policy.split('/').filter(|part| !part.is_empty()).count() != 2 {
                return Err(format!("policy: {policy:?} is not like shop/catalogue"));
            }
            return Ok(vec![What::policy(policy).map_err(said("policy"))?]);
        }
        Ok(vec![What::Everything])
    }
}

/// A URL as stored answers have it, with the host and without.
fn named(field: &str, url: &str) -> Result<[String; 2], String> {
    let parsed: Uri = url.parse().map_err(|error| format!("{field}: {url:?}: {error}"))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(format!("{field}: {url:?} is not like http://shop.example/products"));
    };
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    Ok([format!("{}{path}", host(scheme, authority.as_str())), path.to_owned()])
}

/// An authority without the port that its scheme has anyway (RFC 9110, section 4.2.3).
pub(crate) fn host(scheme: &str, authority: &str) -> String {
    let usual = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    authority.strip_suffix(usual).unwrap_or(authority).to_ascii_lowercase()
}

fn wall_micros() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(log: &PodPurges, request: &str) -> Result<PurgeAnswer, String> {
        log.purge(&serde_json::from_str(request).unwrap(), "pod")
    }

    #[test]
    fn what_began_before_a_purge_is_gone_and_what_begins_after_stays() {
        let log = PodPurges::new();
        let before = log.stamp();
        let of = || ("shop.example/a?b".to_owned(), vec![log.naming().tag("news"), log.naming().policy("shop/web")]);
        assert_eq!(log.verdict(before, of), Verdict::Fresh);
        for (request, expected) in [
            (r#"{"tag": "olds"}"#, Verdict::Fresh),
            (r#"{"url": "http://other.example/a?b"}"#, Verdict::Fresh),
            (r#"{"url": "http://shop.example/a"}"#, Verdict::Fresh),
            (r#"{"url": "https://SHOP.example:443/a?b"}"#, Verdict::Hard),
            (r#"{"prefix": "http://shop.example:80/", "soft": true}"#, Verdict::Soft),
            (r#"{"tag": "news"}"#, Verdict::Hard),
            (r#"{"policy": "shop/web", "soft": true}"#, Verdict::Soft),
            (r#"{"all": true}"#, Verdict::Hard),
        ] {
            let before = log.stamp();
            assert!(purge(&log, request).unwrap().complete);
            assert_eq!(log.verdict(before, of), expected, "{request}");
            assert_eq!(log.verdict(log.stamp(), of), Verdict::Fresh, "{request}");
        }
    }

    #[test]
    fn answers_whose_key_has_no_host_go_with_any() {
        let log = PodPurges::new();
        let before = log.stamp();
        purge(&log, r#"{"prefix": "http://shop.example/a/"}"#).unwrap();
        assert_eq!(log.verdict(before, || ("/a/b".to_owned(), Vec::new())), Verdict::Hard);
        assert_eq!(log.verdict(before, || ("/b".to_owned(), Vec::new())), Verdict::Fresh);
    }

    #[test]
    fn what_makes_no_purge_is_said() {
        let log = PodPurges::new();
        for (request, expected) in [
            ("{}", "exactly one"),
            (r#"{"all": true, "tag": "a"}"#, "exactly one"),
            (r#"{"url": "/a"}"#, "url: \"/a\" is not like"),
            (r#"{"prefix": "shop.example"}"#, "prefix: \"shop.example\" is not like"),
            (r#"{"tag": "a b"}"#, "tag: contains a space"),
            (r#"{"tag": ""}"#, "tag: is empty"),
            (r#"{"policy": "web"}"#, "policy: \"web\" is not like"),
        ] {
            let error = purge(&log, request).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(log.stamp(), PodPurges::new().stamp(), "nothing was purged");
    }
}
