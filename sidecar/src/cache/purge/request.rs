//! What is asked of a purge, and what it is answered.

use std::borrow::Cow;

use http::Uri;
use serde::{Deserialize, Serialize};

use super::{
    Report,
    log::{Malformed, MemberId, Strength, What},
    redis::LogError,
};

/// Forms of a URL that are purged one by one. Where there are more, all that begins with its path is.
const MOST_FORMS: usize = 8;

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
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeAnswer {
    /// Whether it is a purge of all pods of the workload; else of this one.
    pub shared: bool,
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
#[derive(Clone, Debug, Deserialize, Serialize)]
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
    /// It is known in this process alone, and another one serves the same: it is about to end, or this one has only begun.
    #[error("nothing was purged: another worker of this proxy serves, or did so until now. Ask again in a moment")]
    Elsewhere,
    /// Others wait for theirs.
    #[error("as many purges as can be are waited for: ask again later")]
    Busy,
}

impl PurgeRequest {
    pub(super) fn strength(&self) -> Strength {
        if self.soft { Strength::Soft } else { Strength::Hard }
    }

    /// What the log is told: of a URL, all the `forms` that keys have of it.
    pub(super) fn what(&self, forms: impl FnOnce(&str) -> Vec<String>) -> Result<Vec<What>, PurgeError> {
        let Self { url, prefix, tag, policy, all, soft: _ } = self;
        let given = [url.is_some(), prefix.is_some(), tag.is_some(), policy.is_some(), *all];
        let wrong = |why: String| Err(PurgeError::Wrong(why));
        if given.into_iter().filter(|given| *given).count() != 1 {
            return wrong("exactly one of url, prefix, tag, policy and all is needed".to_owned());
        }
        let said = |field: &'static str| move |why: Malformed| PurgeError::Wrong(format!("{field}: {why}"));
        if let Some(url) = url {
            let url = located("url", url)?;
            let forms = forms(&url);
            if forms.len() > MOST_FORMS {
                let path = url.split('?').next().unwrap_or_default();
                return What::prefix(path).map(|what| vec![what]).map_err(said("url"));
            }
            return forms.iter().map(|form| What::url(form).map_err(said("url"))).collect();
        }
        let one = |what| Ok(vec![what]);
        if let Some(prefix) = prefix {
            return What::prefix(&located("prefix", prefix)?).map_err(said("prefix")).and_then(one);
        }
        if let Some(tag) = tag {
            return What::tag(tag).map_err(said("tag")).and_then(one);
        }
        if let Some(policy) = policy {
            return What::policy(named(policy)?).map_err(said("policy")).and_then(one);
        }
        one(What::Everything)
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
            shared: true,
            complete: report.complete,
            acknowledged: acknowledged.collect(),
            lease_ran_out: pods(&report.ran_out),
            pending: pods(&report.pending),
            replicas: report.replicas,
            took_micros: micros(report.took),
        })
    }
}

impl PurgeAnswer {
    /// Of two purges that were asked for as one: who lacks one of them lacks it.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.complete &= other.complete;
        for (these, those) in [(&mut self.lease_ran_out, other.lease_ran_out), (&mut self.pending, other.pending)] {
            let new: Vec<String> = those.into_iter().filter(|pod| !these.contains(pod)).collect();
            these.extend(new);
        }
        self.lease_ran_out.retain(|pod| !self.pending.contains(pod));
        let lacks = |pod: &String| self.lease_ran_out.contains(pod) || self.pending.contains(pod);
        for other in other.acknowledged {
            match self.acknowledged.iter_mut().find(|one| one.member == other.member) {
                Some(one) => one.lag_micros = one.lag_micros.max(other.lag_micros),
                None => self.acknowledged.push(other),
            }
        }
        self.acknowledged.retain(|one| !lacks(&one.member));
        self.replicas = self.replicas.min(other.replicas);
        self.took_micros = self.took_micros.max(other.took_micros);
        self
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

/// The name of a policy with its namespace.
pub(crate) fn named(policy: &str) -> Result<&str, PurgeError> {
    let parts = policy.split('/').filter(|part| !part.is_empty()).count();
    if parts == 2 { Ok(policy) } else { Err(PurgeError::Wrong(format!("policy: {policy:?} is not like shop/catalogue"))) }
}

/// A URL as stored answers have it: with the host, without the scheme.
pub(crate) fn located(field: &str, url: &str) -> Result<String, PurgeError> {
    let parsed: Uri = url.parse().map_err(|error| PurgeError::Wrong(format!("{field}: {url:?}: {error}")))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(PurgeError::Wrong(format!("{field}: {url:?} is not like http://shop.example/products")));
    };
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    Ok(format!("{}{path}", host(scheme, authority.as_str())))
}

/// An authority without the port that its scheme has anyway (RFC 9110, section 4.2.3).
pub(crate) fn host<'a>(scheme: &str, authority: &'a str) -> Cow<'a, str> {
    let usual = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let host = authority.strip_suffix(usual).unwrap_or(authority);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
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
            let error = request.what(|url| vec![url.to_owned()]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn url_with_many_forms_goes_with_all_that_begins_with_its_path() {
        let request = PurgeRequest { url: Some("http://a/b?c".to_owned()), ..PurgeRequest::default() };
        let forms = |count: usize| move |url: &str| (0..count).map(|number| format!("{url}{number}")).collect();
        let all = request.what(forms(MOST_FORMS)).unwrap();
        assert_eq!((all.len(), &all[7]), (8, &What::url("a/b?c7").unwrap()));
        assert_eq!(request.what(forms(MOST_FORMS + 1)).unwrap(), [What::prefix("a/b").unwrap()]);
    }

    #[test]
    fn who_lacks_one_of_two_purges_has_not_acknowledged() {
        let acknowledged = |pods: &[(&str, u64)]| {
            pods.iter().map(|(pod, lag)| Acknowledged { member: (*pod).to_owned(), lag_micros: *lag }).collect()
        };
        let strings = |pods: &[&str]| pods.iter().map(|pod| (*pod).to_owned()).collect();
        let one = PurgeAnswer {
            shared: true,
            complete: true,
            acknowledged: acknowledged(&[("a", 1), ("b", 2)]),
            lease_ran_out: strings(&["c"]),
            pending: Vec::new(),
            replicas: 2,
            took_micros: 5,
        };
        let other = PurgeAnswer {
            shared: true,
            complete: false,
            acknowledged: acknowledged(&[("a", 3), ("d", 1)]),
            lease_ran_out: strings(&["b"]),
            pending: strings(&["c"]),
            replicas: 1,
            took_micros: 4,
        };
        let both = one.and(other);
        let who: Vec<_> = both.acknowledged.iter().map(|one| (one.member.as_str(), one.lag_micros)).collect();
        assert_eq!(who, [("a", 3), ("d", 1)]);
        assert_eq!((both.complete, both.lease_ran_out, both.pending), (false, strings(&["b"]), strings(&["c"])));
        assert_eq!((both.replicas, both.took_micros), (1, 5));
    }
}
