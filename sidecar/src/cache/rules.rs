//! The section `cache` of a rule, compiled.

use std::{sync::Arc, time::Duration};

use crds::policy::{
    Cache, Mode,
    cache::{CacheMethod, CollapseScope, Heuristic, SetCookie, StatusField},
};
use http::HeaderName;
use ipnet::IpNet;

use super::{
    key::KeyPlan,
    metrics::Counters,
    purge::{Name, Naming},
    semantics::{
        request::{Asks, Kind},
        settings::{self, Settings, StatusTtl},
        status::Forward,
    },
};
use crate::{
    facts::Facts,
    route::{Condition, Evaluated},
};

/// What a rule says of the cache.
#[derive(Debug)]
pub(crate) struct Caching {
    pub(crate) mode: Mode,
    /// `namespace/policy/rule`.
    pub(crate) label: Arc<str>,
    /// What holds of the rules of HTTP caching.
    pub(crate) settings: Settings,
    pub(crate) key: KeyPlan,
    /// Whether HEAD is answered, and GET.
    pub(crate) head: bool,
    pub(crate) get: bool,
    /// The field that lists an answer's tags.
    pub(crate) tags: Option<HeaderName>,
    /// Whose PURGE is heeded; none if it is the origin's.
    pub(crate) purgers: Option<Vec<IpNet>>,
    pub(crate) bypass: Option<Condition>,
    pub(crate) refresh: Option<Condition>,
    /// How long a request waits for another one's answer; none if it asks by itself.
    pub(crate) collapse: Option<Duration>,
    /// The same for those of other pods.
    pub(crate) collapse_pods: Option<Duration>,
    /// Whether clients are told what the cache did.
    pub(crate) tells: bool,
    /// What came of its requests.
    pub(super) counters: Counters,
}

impl Caching {
    /// `namespace/policy`.
    pub(crate) fn policy(&self) -> &str {
        self.label.rsplit_once('/').map_or(&self.label, |(policy, _)| policy)
    }

    /// By what an answer with these tags may be purged, besides its URL. They stand between spaces or commas.
    pub(super) fn names(&self, naming: Naming, tags: &[u8]) -> Vec<Name> {
        let tags = String::from_utf8_lossy(tags);
        let tags = tags.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|tag| !tag.is_empty());
        [naming.policy(self.policy())].into_iter().chain(tags.map(|tag| naming.tag(tag))).collect()
    }

    /// Why a request passes the cache by.
    pub(super) fn bypasses(&self, asks: &Asks, facts: &Facts<'_>) -> Option<(Forward, &'static str)> {
        if let Err(reason) = asks.lookup() {
            let forward = if reason.is_method() { Forward::Method } else { Forward::Bypass };
            return Some((forward, reason.as_str()));
        }
        let answered = if asks.kind == Kind::Head { self.head } else { self.get };
        if !answered {
            return Some((Forward::Method, "Method"));
        }
        meets(self.bypass.as_ref(), facts).then_some((Forward::Bypass, "Policy"))
    }

    /// Whether the origin is asked anew, whatever is stored.
    pub(super) fn refreshes(&self, facts: &Facts<'_>) -> bool {
        meets(self.refresh.as_ref(), facts)
    }

    /// Writes the key of a request, whose host has this form with its port.
    pub(super) fn write_key(&self, facts: &Facts<'_>, authority: &str, out: &mut Vec<u8>) {
        // What Shadow keeps has no body, and so must not be found in another mode.
        out.push(u8::from(self.mode == Mode::Shadow));
        self.key.write(facts, authority, out);
    }

    /// Compiles a section. The error says what is wrong.
    pub(crate) fn build(label: &Arc<str>, section: &Cache) -> Result<Self, String> {
        let condition = |source: &Option<String>| source.as_deref().map(Condition::compile).transpose();
        let field = |name: &str| HeaderName::try_from(name).map_err(|_| format!("{name:?} is not the name of a header field"));
        Ok(Self {
            mode: section.mode,
            label: Arc::clone(label),
            settings: compiled(section),
            key: KeyPlan::build(label, &section.key)?,
            head: section.methods.contains(&CacheMethod::Head),
            get: section.methods.contains(&CacheMethod::Get),
            tags: section.tags.as_ref().map(|tags| field(&tags.header)).transpose()?,
            purgers: section.purge_method.as_ref().map(|purge| networks(&purge.allowed_cidrs)).transpose()?,
            bypass: condition(&section.bypass)?,
            refresh: condition(&section.refresh)?,
            collapse: (section.collapse.scope != CollapseScope::Disabled).then_some(section.collapse.wait.0),
            collapse_pods: (section.collapse.scope == CollapseScope::Cluster).then_some(section.collapse.wait.0),
            tells: section.status_field == StatusField::Always,
            counters: Counters::default(),
        })
    }
}

fn networks(cidrs: &[String]) -> Result<Vec<IpNet>, String> {
    cidrs.iter().map(|cidr| cidr.parse().map_err(|_| format!("{cidr:?} is not a network"))).collect()
}

fn meets(condition: Option<&Condition>, facts: &Facts<'_>) -> bool {
    condition.is_some_and(|condition| condition.holds(&Evaluated::new(facts, facts.path)))
}

fn compiled(section: &Cache) -> Settings {
    let ttl = &section.ttl;
    let lifetimes = |of_errors: bool| {
        let rows = ttl.by_status.iter().filter_map(|row| Some((u16::try_from(row.status).ok()?, row.ttl.0)));
        rows.filter(|(status, _)| (*status >= 400) == of_errors)
            .map(|(status, ttl)| StatusTtl { from: status, to: status, ttl })
            .collect()
    };
    Settings {
        ttl: settings::Ttl {
            default: ttl.override_.or(ttl.default).map(|ttl| ttl.0),
            min: ttl.min.map_or(Duration::ZERO, |ttl| ttl.0),
            max: ttl.max.map(|ttl| ttl.0),
            by_status: lifetimes(false),
            override_origin: ttl.override_.is_some(),
        },
        negative: lifetimes(true),
        heuristic: ttl.heuristic == Heuristic::LastModified,
        stale: settings::Stale {
            while_revalidate: section.stale.while_revalidate.map(|limit| limit.0),
            if_error: section.stale.if_error.map(|limit| limit.0),
        },
        keep: section.keep.0,
        jitter: u8::try_from(ttl.jitter_percent).unwrap_or(0),
        set_cookie: match section.set_cookie {
            SetCookie::Bypass => settings::SetCookie::Refuse,
            SetCookie::Strip => settings::SetCookie::Strip,
        },
        max_object: section.max_object_size.0,
        ..Settings::default()
    }
}
