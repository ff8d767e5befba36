//! What is asked of a purge, and what it is answered.

use http::Uri;
use serde::{Deserialize, Serialize};

use super::{
    Report,
    log::{Malformed, MemberId, Strength, What},
    redis::LogError,
};

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

/// Why nothing was purged, as far as this pod knows.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// What is wrong with the request.
    #[error("{0}")]
    Wrong(String),
    /// The log that the pods share can't be asked.
    #[error("{0}; nobody knows whether it was purged, ask again")]
    Unreachable(String),
    /// Others wait for theirs.
    #[error("as many purges as can be are waited for: ask again later")]
    Busy,
}

impl PurgeRequest {
    pub(super) fn strength(&self) -> Strength {
        if self.soft { Strength::Soft } else { Strength::Hard }
    }

    /// What the log is told.
    pub(super) fn what(&self) -> Result<What, PurgeError> {
        let Self { url, prefix, tag, policy, all, soft: _ } = self;
        let given = [url.is_some(), prefix.is_some(), tag.is_some(), policy.is_some(), *all];
        let wrong = |why: String| Err(PurgeError::Wrong(why));
        if given.into_iter().filter(|given| *given).count() != 1 {
            return wrong("exactly one of url, prefix, tag, policy and all is needed".to_owned());
        }
        let said = |field: &'static str| move |why: Malformed| PurgeError::Wrong(format!("{field}: {why}"));
        if let Some(url) = url {
            return What::url(&located("url", url)?).map_err(said("url"));
        }
        if let Some(prefix) = prefix {
            return What::prefix(&located("prefix", prefix)?).map_err(said("prefix"));
        }
        if let Some(tag) = tag {
            return What::tag(tag).map_err(said("tag"));
        }
        if let Some(policy) = policy {
            if policy.split('/').filter(|part| !part.is_empty()).count() != 2 {
                return wrong(format!("policy: {policy:?} is not like shop/catalogue"));
            }
            return What::policy(policy).map_err(said("policy"));
        }
        Ok(What::Everything)
    }
}

impl PurgeAnswer {
    /// Of a purge through the log that pods share, or why nobody knows whether it was made.
    pub(super) fn of(report: &Report, failed: Option<&LogError>) -> Result<Self, PurgeError> {
        if report.position.is_none() {
            let why = failed.map_or_else(|| "the log did not answer in time".to_owned(), LogError::chain);
            return Err(PurgeError::Unreachable(why));
        }
        let pods = |members: &[MemberId]| members.iter().map(|member| member.pod().to_owned()).collect();
        let acknowledged = report.acknowledged.iter().map(|(member, lag)| Acknowledged::new(member.pod(), *lag));
        Ok(Self {
            complete: report.complete,
            acknowledged: acknowledged.collect(),
            lease_ran_out: pods(&report.ran_out),
            pending: pods(&report.pending),
            replicas: report.replicas,
            took_micros: micros(report.took),
        })
    }
}

impl Acknowledged {
    pub(super) fn new(pod: &str, lag: std::time::Duration) -> Self {
        Self { member: pod.to_owned(), lag_micros: micros(lag) }
    }
}

pub(super) fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A URL as stored answers have it: with the host, without the scheme.
fn located(field: &str, url: &str) -> Result<String, PurgeError> {
    let parsed: Uri = url.parse().map_err(|error| PurgeError::Wrong(format!("{field}: {url:?}: {error}")))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(PurgeError::Wrong(format!("{field}: {url:?} is not like http://shop.example/products")));
    };
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    Ok(format!("{}{path}", host(scheme, authority.as_str())))
}

/// An authority without the port that its scheme has anyway (RFC 9110, section 4.2.3).
pub(crate) fn host(scheme: &str, authority: &str) -> String {
    let usual = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    authority.strip_suffix(usual).unwrap_or(authority).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_purge_is_said() {
        for (request, expected) in [
            ("{}", "exactly one"),
            (r#"{"all": true, "tag": "a"}"#, "exactly one"),
            (r#"{"url": "/a"}"#, "url: \"/a\" is not like"),
            (r#"{"prefix": "shop.example"}"#, "prefix: \"shop.example\" is not like"),
            (r#"{"tag": "a b"}"#, "tag: contains a space"),
            (r#"{"tag": ""}"#, "tag: is empty"),
            (r#"{"policy": "web"}"#, "policy: \"web\" is not like"),
        ] {
            let request: PurgeRequest = serde_json::from_str(request).unwrap();
            let error = request.what().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
