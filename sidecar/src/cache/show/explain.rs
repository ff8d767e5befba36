//! What the cache would do with a request, and why; by the code that decides it, without a use of what is stored.

use std::{borrow::Cow, sync::Arc};

use crds::policy::{Direction, Mode};
use serde::{Deserialize, Serialize};

use super::{ShowError, Stored, Value, list};
use crate::{
    ask::ExplainRequest,
    cache::{
        Cache, Caching,
        answer::Plan,
        key,
        locate::{Located, locate},
        notes,
        purge::{self, host},
        semantics::{
            clock::{Millis, Now},
            meta::{Flags, Meta},
            request::{Asks, Control},
            serve::{Origin, Verdict, decide},
            status::{Forward, Forwarded, Handled, Status},
            vary,
        },
        standing::Standing,
        store::{Found, Object, Store},
    },
    config::Config,
    facts::Facts,
};

/// What the cache would do with a request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheExplanation {
    /// Which way the request goes.
    pub direction: Direction,
    /// Its method.
    pub method: String,
    /// Its URL, with the path as policies look at it.
    pub url: String,
    /// What would become of it.
    pub outcome: Outcome,
    /// Why, in a word of `Cache-Status` or of ours.
    pub why: String,
    /// What `Cache-Status` would say of it, up to what only the origin's answer tells; none if the cache has no say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_status: Option<String>,
    /// The rule whose section `cache` holds; none if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleNamed>,
    /// The parts of its key, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<Value>,
    /// The values of the request that select a variant; empty if nothing is stored, or without `Vary`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant: Vec<Value>,
    /// What is stored for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
    /// Until when that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Freshness>,
    /// What purges say of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purged: Option<Purged>,
}

/// A rule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleNamed {
    /// `namespace/policy/rule`.
    pub name: String,
    /// Mode of its section.
    pub mode: Mode,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// No rule with a cache holds for it: it goes to the origin.
    None,
    /// It passes the cache by.
    Bypass,
    /// It gets what is stored.
    Hit,
    /// It gets what is stored, stale as it is; with `StaleWhileRevalidate` the origin is asked for a newer one meanwhile.
    Stale,
    /// The origin is asked whether what is stored is right still.
    Revalidate,
    /// The origin is asked.
    Miss,
    /// It wants nothing but what is stored, and gets 504.
    GatewayTimeout,
}

/// What purges say of something stored.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Purged {
    /// None was about it since its fetch began.
    No,
    /// A soft one: it is stale.
    Soft,
    /// Nobody knows: the origin is asked first.
    Unknown,
    /// A hard one: it is gone.
    Hard,
}

/// The sum by which it is told whether a stored answer is fresh. Times in milliseconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// How long it is fresh from when it was made, after `ttl` of the section and jitter.
    pub lifetime: Millis,
    /// Who gave that: `SMaxage`, `MaxAge`, `Expires` of the origin; `Override`, `ByStatus`, `Negative` (by status, of an error), `Default`,
    /// `Heuristic` of the policy; `Nobody`.
    pub from: String,
    /// How old it was when it came: what `Age` said, and what its fetch took.
    pub initial_age: Millis,
    /// How long ago that was.
    pub resident: Millis,
    /// How long it may be served stale while a newer one is fetched.
    pub while_revalidate: Millis,
    /// How long it may be served stale if the origin fails.
    pub if_error: Millis,
    /// How long it is kept after all that, to be validated.
    pub keep: Millis,
    /// What else the origin said: `no-cache`, `must-revalidate`, `immutable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
}

/// A request that is looked at.
pub(super) struct Question<'a> {
    pub(super) cache: &'a Cache,
    pub(super) config: &'a Config,
    pub(super) request: &'a ExplainRequest,
}

/// What its rule makes of it.
pub(super) struct Keyed {
    pub(super) caching: Arc<Caching>,
    pub(super) key: Vec<u8>,
    pub(super) url: String,
    asks: Asks,
    bypass: Option<(Forward, &'static str)>,
    forced: bool,
}

impl Question<'_> {
    /// Explains it.
    pub(super) fn explain(&self) -> Result<CacheExplanation, ShowError> {
        let now = self.cache.now();
        self.keyed(|facts, url, keyed| match keyed {
            None => self.outcome(url.to_owned(), Outcome::None, "no rule with a section cache holds for it"),
            Some(keyed) => self.judge(keyed, facts, now),
        })
    }

    /// Looks for its rule, and has that write its key.
    pub(super) fn keyed<T>(&self, then: impl FnOnce(&Facts<'_>, &str, Option<Keyed>) -> T) -> Result<T, ShowError> {
        let direction = self.request.direction;
        let mut refused = None;
        let answer = self.request.with_facts(|facts, authority| {
            let authority = host(facts.scheme, authority);
            let path = match self.config.spelled(direction, facts.path) {
                Ok(path) => path,
                Err(why) => {
                    refused = Some(format!("url: the proxy refuses it: {why}"));
                    Cow::Borrowed(facts.path)
                }
            };
            let facts = Facts { path: &path, ..*facts };
            let query = facts.query.map_or_else(String::new, |query| format!("?{query}"));
            let url = format!("{}://{authority}{path}{query}", facts.scheme);
            let route = self.config.routes(direction).select(&facts);
            let keyed = route.cache().map(|caching| {
                let asks = Asks::of(facts.method, facts.headers, false);
                let mut key = Vec::new();
                caching.write_key(&facts, &authority, &mut key);
                Keyed {
                    caching: Arc::clone(caching),
                    key,
                    url: url.clone(),
                    bypass: caching.bypasses(&asks, &facts),
                    forced: caching.refreshes(&facts),
                    asks,
                }
            });
            then(&facts, &url, keyed)
        });
        match refused {
            Some(why) => Err(ShowError::Wrong(why)),
            None => answer.map_err(ShowError::Wrong),
        }
    }

    fn outcome(&self, url: String, outcome: Outcome, why: &str) -> CacheExplanation {
        CacheExplanation {
            direction: self.request.direction,
            method: self.request.method.clone(),
            url,
            outcome,
            why: why.to_owned(),
            cache_status: None,
            rule: None,
            key: Vec::new(),
            variant: Vec::new(),
            stored: None,
            freshness: None,
            purged: None,
        }
    }

    fn judge(&self, mut keyed: Keyed, facts: &Facts<'_>, now: Now) -> CacheExplanation {
        let caching = Arc::clone(&keyed.caching);
        let end = keyed.key.len();
        let mut said = self.outcome(keyed.url.clone(), Outcome::Miss, "");
        said.rule = Some(RuleNamed { name: caching.label.to_string(), mode: caching.mode });
        said.key = caching.key.parts(&keyed.key).into_iter().map(|(name, value)| Value { name, value }).collect();
        let located = locate(&self.cache.store(), Store::peek, &mut keyed.key, end, facts.headers);
        said.variant = self.variant(&keyed.key, end);
        let control = keyed.asks.heeded(&caching.settings);
        let kept = match &located {
            Located::Object(object, _) => self.tell_stored(object, now, &mut said).map(|meta| (object.clone(), meta)),
            Located::Nothing(_) | Located::Unselectable => None,
        };
        let (outcome, status) = match (keyed.bypass, located) {
            (Some((forward, reason)), _) => (Outcome::Bypass, Status { detail: Some(reason), ..Status::forwarded(forward) }),
            (None, Located::Unselectable) => (Outcome::Miss, Status::forwarded(Forward::VaryMiss)),
            (None, Located::Nothing(why) | Located::Object(_, why)) => {
                let usable = kept.as_ref().filter(|_| !keyed.forced);
                let enough = usable.is_none_or(|(object, meta)| Plan::of(object, meta, &keyed.asks, facts.headers).is_some());
                outcome(usable.map(|(_, meta)| *meta), kept.is_some(), enough, why, &control, now)
            }
        };
        said.outcome = outcome;
        said.why = why(&status, &said, keyed.asks.stores(facts.headers));
        if outcome == Outcome::Miss && kept.is_none() {
            let behind = &self.cache.behind;
            let looked = match (behind.disk().is_some(), behind.shared().is_some()) {
                (false, false) => "",
                (true, false) => "; the disk is looked at before the origin is asked",
                (false, true) => "; what pods share is looked at before the origin is asked",
                (true, true) => "; the disk and what pods share are looked at before the origin is asked",
            };
            said.why.push_str(looked);
        }
        if caching.mode == Mode::Shadow {
            said.why = format!("mode Shadow: the origin is asked, and {:?} is counted ({})", said.outcome, said.why);
            said.outcome = Outcome::Bypass;
        } else if caching.tells && outcome != Outcome::GatewayTimeout {
            said.cache_status = Some(status.to_string());
        }
        said
    }

    /// What the request says in the fields that select a variant.
    fn variant(&self, key: &[u8], end: usize) -> Vec<Value> {
        let store = self.cache.store();
        let Some(Found::Vary(vary)) = store.peek(&store.key(&key[..end])) else { return Vec::new() };
        let shown = vary::shown(vary.names(), &key[end..]);
        shown.into_iter().map(|(name, value)| Value { name: name.to_owned(), value }).collect()
    }

    /// Tells of what is stored. Its notes, if it is of any use.
    fn tell_stored(&self, object: &Object, now: Now, said: &mut CacheExplanation) -> Option<Meta> {
        said.stored = list::stored(self.cache, object, now);
        said.freshness = notes::read(object).map(|meta| Freshness::of(&meta, now));
        let of = || (key::url(object.primary()), notes::names(object).names);
        said.purged = Some(match self.cache.purges.verdict(notes::stamp(object), of) {
            purge::Verdict::Fresh => Purged::No,
            purge::Verdict::Soft => Purged::Soft,
            purge::Verdict::Unknown => Purged::Unknown,
            purge::Verdict::Hard => Purged::Hard,
        });
        match Standing::of(object, &self.cache.purges, now) {
            Standing::Kept(meta) => Some(meta),
            Standing::Purged | Standing::Dead => None,
        }
    }
}

/// What a request gets that doesn't pass by. `usable`: what is stored, unless the rule has the origin asked anew; `enough`: whether that has all
/// that is asked for.
fn outcome(usable: Option<Meta>, kept: bool, enough: bool, otherwise: Forward, control: &Control, now: Now) -> (Outcome, Status) {
    let Some(meta) = usable else {
        let forced = Status { detail: Some("Policy"), ..Status::forwarded(Forward::Request) };
        return match kept {
            true => (Outcome::Miss, forced),
            false if control.only_if_cached => (Outcome::GatewayTimeout, Status::forwarded(otherwise)),
            false => (Outcome::Miss, Status::forwarded(otherwise)),
        };
    };
    let decision = decide(&meta, control, now, Origin::Up);
    match decision.verdict {
        Verdict::GatewayTimeout => (Outcome::GatewayTimeout, Status::unusable(&decision)),
        _ if !enough && control.only_if_cached => (Outcome::GatewayTimeout, Status::forwarded(Forward::Partial)),
        _ if !enough => (Outcome::Miss, Status::forwarded(Forward::Partial)),
        Verdict::Fresh => (Outcome::Hit, Status::hit(&decision)),
        Verdict::Stale | Verdict::StaleWhileRevalidate => (Outcome::Stale, Status::hit(&decision)),
        Verdict::Revalidate { .. } if meta.flags.any(Flags::VALIDATOR) => (Outcome::Revalidate, Status::unusable(&decision)),
        Verdict::Revalidate { .. } => (Outcome::Miss, Status::unusable(&decision)),
    }
}

/// Why, in words where the status has none.
fn why(status: &Status, said: &CacheExplanation, stores: bool) -> String {
    let word = match (said.outcome, status.detail) {
        (Outcome::Hit, None) => "Fresh".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (_, None) => match (said.purged, &said.stored) {
            (Some(Purged::Hard), _) => "what was stored was purged".to_owned(),
            (_, Some(_)) if is_partial(status) => "parts are stored, and lack what is asked for".to_owned(),
            (_, Some(_)) => "what is stored is too old for any use".to_owned(),
            (_, None) if said.variant.is_empty() => "nothing is stored".to_owned(),
            (_, None) => "nothing is stored for this variant".to_owned(),
        },
    };
    match said.outcome {
        Outcome::Miss | Outcome::Revalidate if !stores => {
            word + ", and nothing will be, for it is HEAD, or has no-store, several ranges, or conditions beside one"
        }
        _ => word,
    }
}

fn is_partial(status: &Status) -> bool {
    matches!(status.handled, Handled::Forwarded(Forwarded { why: Forward::Partial, .. }))
}

impl Freshness {
    fn of(meta: &Meta, now: Now) -> Self {
        let marks = [
            (Flags::NO_CACHE, "no-cache"),
            (Flags::MUST_REVALIDATE, "must-revalidate"),
            (Flags::IMMUTABLE, "immutable"),
            (Flags::UNDATED, "undated"),
        ];
        Self {
            lifetime: meta.lifetime,
            from: meta.flags.source().as_str().to_owned(),
            initial_age: meta.initial_age,
            resident: now.mono.saturating_sub(meta.since),
            while_revalidate: meta.while_revalidate,
            if_error: meta.if_error,
            keep: if meta.flags.any(Flags::VALIDATOR) { meta.keep } else { 0 },
            marks: marks.into_iter().filter(|(mark, _)| meta.flags.any(*mark)).map(|(_, name)| name.to_owned()).collect(),
        }
    }
}
