//! What the cache does with a request before its upstream is asked.

use std::{borrow::Cow, sync::Arc, time::Duration};

use crds::policy::Mode;
use http::{HeaderMap, HeaderValue, Response, header, request::Parts};
use tokio::time::Instant;

use super::{
    Cache, Caching, Fetch,
    answer::{self, Plan},
    changes::{Moment, Spot},
    fetch::Kept,
    fill::{Alone, Failure, Filler, Mark, NoHead, Reader, Since, Turn},
    locate::{Located, locate},
    metrics::Came,
    notes::{self, Names},
    purge::Stamp,
    purger,
    record::Answer as Shared,
    semantics::{
        clock::Now,
        meta::Flags,
        request::{Asks, Control, Kind},
        serve::{Decision, Origin, Verdict, decide},
        status::{Forward, Forwarded, Handled, Status},
        vary,
    },
    standing::Standing,
    store::{Gone, Object, Store, Vary},
    tier::{Got, Lease},
};
use crate::{exchange::Exchange, facts::Facts, flow::Flow, throttle::Deadline};

/// What the cache says of a request.
pub(crate) enum Looked {
    /// It is none of its business.
    Passes,
    /// This is the answer.
    Answered(Box<Response<Flow>>),
    /// This is the answer, and the origin is to be asked for a newer one.
    Stale(Box<Response<Flow>>, Box<Fetch>),
    /// The origin has to be asked.
    Goes(Box<Fetch>),
}

/// A request, and what its rule says.
struct Look<'a> {
    facts: Facts<'a>,
    parts: &'a Parts,
    cache: &'a Arc<Cache>,
    caching: &'a Arc<Caching>,
    /// When its client does not wait any longer.
    deadline: Option<Deadline>,
    asks: Asks,
    control: Control,
    /// Whether it is for one part, which may be stored as such.
    part: bool,
    /// Which purges were known when the request was looked at; none where nothing is stored.
    stamp: Stamp,
    /// Before which changes.
    began: Moment,
    /// The key of the rule, and behind it the values of the fields that select a variant, as far as these are known.
    key: Vec<u8>,
    /// Where the second begins.
    variant: usize,
    /// By which it is remembered that answers to this key are not stored, if that is so.
    marked: Option<Mark>,
    /// Its target among those that change, once that has mattered.
    spot: Option<Spot>,
}

/// What a key leads to.
enum Stored {
    Kept(Kept),
    /// Nothing, or not this variant.
    Nothing(Forward),
    /// The request can't be told from others by the fields that select a variant.
    Unselectable,
}

/// What may be done with what is stored.
enum Use {
    /// It answers.
    Answer(Plan, Decision),
    /// The origin has to be asked first whether it is right still.
    Validate(Status),
    /// It is in parts, and lacks what is asked for.
    Lacking(Status),
    /// There may be no answer but a stored one, and this may not be it.
    Never,
}

/// Looks for an answer. A request that misses what another one fetches already waits for that.
pub(crate) async fn look(ex: &Exchange, parts: &Parts, content: bool) -> Looked {
    let Some(caching) = ex.route.cache() else { return Looked::Passes };
    let cache = &ex.connection.worker.cache;
    if purger::is_asked(caching, parts) {
        return Looked::Answered(purger::purge(ex, cache, caching, parts).await);
    }
    let asks = Asks::of(&parts.method, &parts.headers, content);
    let control = asks.heeded(&caching.settings);
    let host = ex.host();
    let facts = ex.facts(parts, &host);
    let mut look = Look {
        facts,
        parts,
        cache,
        caching,
        deadline: ex.turn.as_ref().and_then(|turn| turn.deadline()),
        asks,
        control,
        part: asks.is_for_part(&parts.headers),
        stamp: Stamp::default(),
        began: cache.changes.now(),
        key: Vec::new(),
        variant: 0,
        marked: None,
        spot: None,
    };
    let elsewhere = || cache.purges.is_elsewhere().then_some((Forward::Bypass, "Handover"));
    if let Some((forward, reason)) = caching.bypasses(&look.asks, &facts).or_else(elsewhere) {
        cache.metrics.bypassed(reason);
        return look.goes(Status { detail: Some(reason), ..Status::forwarded(forward) }, None, None);
    }
    look.key.reserve(160);
    caching.write_key(&facts, &ex.authority, &mut look.key);
    look.variant = look.key.len();
    if caching.mode == Mode::Shadow { look.shadow() } else { look.answer().await }
}

impl Look<'_> {
    /// What is stored for the request.
    fn find(&mut self, now: Now) -> Stored {
        match locate(&self.cache.store(), Store::get, &mut self.key, self.variant, &self.parts.headers) {
            Located::Object(object, otherwise) => self.kept(object, now, otherwise),
            Located::Nothing(why) => Stored::Nothing(why),
            Located::Unselectable => Stored::Unselectable,
        }
    }

    /// What lies behind memory for the request. What is on disk and may not answer by itself gives way to what other pods have stored,
    /// if they share answers. With `waits`, of all pods one fetches, and this one waits for so long for what another one fetches; with a
    /// lease, it is the one.
    async fn find_behind(&self, waits: Option<Duration>) -> (Option<Kept>, Option<Lease>) {
        let (disk, shared) = (self.cache.behind.disk(), self.cache.behind.shared());
        if disk.is_none() && shared.is_none() || self.cache.changes.is_recent(self.spot(), std::time::Instant::now()) {
            return (None, None);
        }
        let on_disk = match disk {
            Some(disk) => disk.get(&self.key[..self.variant], |vary| self.values(vary)).await,
            None => None,
        };
        let on_disk = on_disk.and_then(|(answer, vary)| self.take_stored(*answer, vary.as_ref()));
        let Some(tier) = shared.filter(|_| !on_disk.as_ref().is_some_and(|kept| matches!(self.usable(kept), Use::Answer(..))))
        else {
            return (on_disk, None);
        };
        match tier.get(&self.key[..self.variant], |vary| self.values(vary), waits).await {
            Got::Answer(answer, vary) => (self.take_stored(*answer, vary.as_ref()).or(on_disk), None),
            Got::Nothing(lease) => (on_disk, lease),
        }
    }

    /// The values by which variants of the request are told apart; None if they can't be.
    fn values(&self, vary: &Vary) -> Option<Vec<u8>> {
        let mut values = Vec::new();
        vary::variant(vary.names(), &self.parts.headers, &mut values).ok().map(|()| values)
    }

    /// Takes what another process stored, as if this one had. Memory keeps it, too.
    fn take_stored(&self, Shared { object, meta, position, tags }: Shared, vary: Option<&Vary>) -> Option<Kept> {
        let now = self.cache.now();
        let purges = &self.cache.purges;
        let names = Names { names: self.caching.names(purges.naming(), &tags), tags };
        let notes = notes::write(&meta.revived(now), purges.stamp_at(position), &names);
        let object = object.with_notes(&notes).ok()?;
        let Stored::Kept(kept) = self.kept(object.clone(), now, Forward::Miss) else { return None };
        // Too little room is counted there.
        let insert = || self.cache.store().insert(object, vary);
        let _ = self.cache.changes.unless_changed(self.spot(), self.began, insert);
        Some(kept)
    }

    fn kept(&self, object: Object, now: Now, otherwise: Forward) -> Stored {
        match Standing::of(&object, &self.cache.purges, now) {
            Standing::Kept(meta) => Stored::Kept(Kept { object, meta }),
            Standing::Dead => Stored::Nothing(otherwise),
            Standing::Purged => {
                self.cache.store().discard(&object, Gone::Removed);
                Stored::Nothing(otherwise)
            }
        }
    }

    async fn answer(mut self) -> Looked {
        let forced = self.caching.refreshes(&self.facts);
        for waits in [true, false] {
            // Before anything is found: what is found then has outlived all purges up to here.
            self.stamp = self.cache.purges.stamp();
            self.began = self.cache.changes.now();
            let (mut found, mut status) = match self.find(self.cache.now()) {
                Stored::Unselectable => return self.goes(Status::forwarded(Forward::VaryMiss), None, None),
                Stored::Kept(_) if forced => (None, Status { detail: Some("Policy"), ..Status::forwarded(Forward::Request) }),
                Stored::Kept(kept) => (Some(kept), Status::forwarded(Forward::Miss)),
                Stored::Nothing(why) => (None, Status::forwarded(why)),
            };
            if found.is_none() && !forced && (!self.may_be_stored() || self.control.only_if_cached) {
                found = self.find_behind(None).await.0;
            }
            let stale = match found.map(|kept| (self.usable(&kept), kept)) {
                Some((Use::Answer(plan, decision), kept)) => return self.answered(kept, plan, &decision, None),
                Some((Use::Never, _)) => return self.none(),
                Some((Use::Validate(unusable), kept)) => {
                    status = unusable;
                    Some(kept)
                }
                Some((Use::Lacking(_), _)) | None if self.control.only_if_cached => return self.none(),
                Some((Use::Lacking(partial), _)) => {
                    status = partial;
                    None
                }
                None => None,
            };
            if !self.may_be_stored() {
                return self.goes(status, stale, None);
            }
            match self.turn(forced) {
                Turn::Lead(filler) if stale.is_none() && !forced => return self.lead(status, filler).await,
                Turn::Lead(filler) => return self.goes(status, stale, Some(filler)),
                Turn::Alone(_) => return self.goes(status, stale, None),
                Turn::Join(reader) => match self.join(reader, status).await {
                    Ok(response) => return Looked::Answered(response),
                    // It may be in the store by now, or another one has to fetch it.
                    Err(Some(NoHead::Failed(_))) if waits => {}
                    Err(_) => return self.goes(status, stale, None),
                },
            }
        }
        self.goes(Status::forwarded(Forward::Miss), None, None)
    }

    /// What may be done with what is stored.
    fn usable(&self, kept: &Kept) -> Use {
        let decision = decide(&kept.meta, &self.control, self.cache.now(), Origin::Up);
        let plan = Plan::of(&kept.object, &kept.meta, &self.asks, &self.parts.headers);
        match (decision.verdict, plan) {
            (Verdict::GatewayTimeout, _) => Use::Never,
            (_, None) => Use::Lacking(Status::forwarded(Forward::Partial)),
            (Verdict::Revalidate { .. }, Some(_)) => Use::Validate(Status::unusable(&decision)),
            (_, Some(plan)) => Use::Answer(plan, decision),
        }
    }

    /// Answers with what is stored. `filler` has those who wait for it.
    fn answered(self, kept: Kept, plan: Plan, decision: &Decision, filler: Option<Filler>) -> Looked {
        if decision.verdict == Verdict::StaleWhileRevalidate {
            return self.stale(kept, plan, decision, filler);
        }
        // They find it in the store.
        filler.into_iter().for_each(|filler| filler.fail(Failure::Abandoned));
        Looked::Answered(self.hit(plan, kept.meta.took, decision))
    }

    /// Fetches for all that miss the same, unless it lies behind memory.
    async fn lead(self, mut status: Status, filler: Filler) -> Looked {
        // Others wait for the whole of it alone.
        let waits = self.caching.collapse_pods.filter(|_| !self.part);
        let (found, lease) = self.find_behind(waits).await;
        let mut stale = None;
        if let Some(kept) = found {
            match self.usable(&kept) {
                Use::Answer(plan, decision) => return self.answered(kept, plan, &decision, Some(filler)),
                Use::Validate(unusable) => (status, stale) = (unusable, Some(kept)),
                Use::Never => return self.none(),
                Use::Lacking(partial) => status = partial,
            }
        }
        let mut fetch = self.fetch(status, stale, Some(filler));
        (fetch.lease, fetch.looked) = (lease, true);
        Looked::Goes(Box::new(fetch))
    }

    /// Whether what the request gets may be stored, as far as it depends on the request.
    fn may_be_stored(&self) -> bool {
        self.asks.stores(&self.parts.headers)
    }

    /// Whether the request fetches, for whom, or waits for another one that does. Who does not want another one's answer stands apart.
    fn turn(&mut self, forced: bool) -> Turn {
        if forced || self.caching.collapse.is_none() || self.control.no_cache || self.control.max_age == Some(0) {
            return self.cache.fills.apart(Instant::now());
        }
        self.turn_of_key()
    }

    fn turn_of_key(&mut self) -> Turn {
        let since = self.since();
        let key = self.key_of_turn();
        let turn = self.cache.fills.turn(&key, since, Instant::now());
        let marked = matches!(turn, Turn::Alone(Alone::HitForMiss)).then(|| self.cache.fills.mark_of(&key));
        self.marked = marked.or(self.marked);
        turn
    }

    /// Who asks for a part gets another answer than who asks for another one, or all.
    fn key_of_turn(&self) -> Cow<'_, [u8]> {
        if !self.part {
            return (&self.key).into();
        }
        let mut key = self.key.clone();
        for name in [header::RANGE, header::IF_RANGE] {
            let value = self.parts.headers.get(name).map(HeaderValue::as_bytes);
            key.extend_from_slice(value.unwrap_or_default());
            // Behind the value, so that no two lists of them give the same bytes.
            key.extend_from_slice(&value.map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
        }
        key.into()
    }

    /// What is being fetched since before it was purged, or the target was changed, is for nobody who comes after.
    fn since(&mut self) -> Since {
        let spot = self.spot();
        self.spot = Some(spot);
        Since { purges: self.stamp.order(), changes: self.cache.changes.newest(spot).order() }
    }

    fn spot(&self) -> Spot {
        self.spot.unwrap_or_else(|| self.cache.changes.spot(&self.key))
    }

    /// The answer that another request fetches. An error if it is none for this one.
    async fn join(&self, mut reader: Reader, status: Status) -> Result<Box<Response<Flow>>, Option<NoHead>> {
        let wait = self.caching.collapse.unwrap_or_default();
        let wait = self.deadline.map_or(wait, |deadline| wait.min(deadline.left()));
        let head = reader.head(wait).await.map_err(Some)?;
        let meta = notes::read(&head).ok_or(None)?;
        let decision = decide(&meta, &self.control, self.cache.now(), Origin::Up);
        if !decision.is_hit() || !self.is_selected(&head) {
            return Err(None);
        }
        let (response, wants_body) = answer::head_of(&head, &meta, &decision, &self.asks, &self.parts.headers);
        let body = if wants_body { Flow::joined(reader) } else { Flow::bytes("") };
        let mut response = Box::new(response.map(|()| body));
        if let Handled::Forwarded(forwarded) = status.handled {
            let handled = Handled::Forwarded(Forwarded { collapsed: Some(true), ..forwarded });
            self.tell(&Status { handled, ttl: Some(decision.ttl()), ..status }, response.headers_mut());
        }
        self.cache.metrics.request(self.caching, Came::Collapsed);
        Ok(response)
    }

    /// Whether the request selects this answer (RFC 9111, section 4.1).
    fn is_selected(&self, head: &Object) -> bool {
        let mut lines = HeaderMap::new();
        for (_, value) in head.fields().filter(|(name, _)| *name == header::VARY.as_str().as_bytes()) {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                lines.append(header::VARY, value);
            }
        }
        let Ok(names) = vary::selecting(&lines) else { return false };
        let mut values = Vec::new();
        let names = names.iter().map(http::HeaderName::as_str);
        vary::variant(names, &self.parts.headers, &mut values).is_ok() && values == head.variant()
    }

    fn hit(&self, plan: Plan, took: u32, decision: &Decision) -> Box<Response<Flow>> {
        let mut response = plan.response(decision, &self.asks);
        self.tell(&Status::hit(decision), response.headers_mut());
        let came = if decision.verdict == Verdict::Fresh { Came::Hit } else { Came::Stale };
        self.cache.metrics.request(self.caching, came);
        self.cache.metrics.served(self.caching, response.body().exact_length().unwrap_or(0), took);
        response
    }

    /// A stale answer, for which one request asks the origin anew.
    fn stale(mut self, kept: Kept, plan: Plan, decision: &Decision, filler: Option<Filler>) -> Looked {
        let response = self.hit(plan, kept.meta.took, decision);
        // What is stored whole is asked for as a whole, by whoever comes first.
        self.part &= kept.meta.flags.any(Flags::PARTIAL);
        let mut turn = || match self.turn_of_key() {
            Turn::Lead(filler) => Some(filler),
            Turn::Join(_) | Turn::Alone(_) => None,
        };
        match filler.or_else(&mut turn) {
            Some(filler) if self.asks.kind == Kind::Get => {
                Looked::Stale(response, Box::new(self.fetch(Status::unusable(decision), Some(kept), Some(filler))))
            }
            _ => Looked::Answered(response),
        }
    }

    fn none(&self) -> Looked {
        self.cache.metrics.request(self.caching, Came::Error);
        Looked::Answered(answer::none())
    }

    fn tell(&self, status: &Status, headers: &mut HeaderMap) {
        if self.caching.tells {
            status.append(headers);
        }
    }

    /// Counts what would have been a hit.
    fn shadow(mut self) -> Looked {
        self.stamp = self.cache.purges.stamp();
        let now = self.cache.now();
        let came = match self.find(now) {
            Stored::Kept(kept) if decide(&kept.meta, &self.control, now, Origin::Up).is_hit() => Came::ShadowHit,
            _ => Came::ShadowMiss,
        };
        self.cache.metrics.request(self.caching, came);
        self.goes(Status::forwarded(Forward::Bypass), None, None)
    }

    fn goes(self, status: Status, stale: Option<Kept>, filler: Option<Filler>) -> Looked {
        Looked::Goes(Box::new(self.fetch(status, stale, filler)))
    }

    fn fetch(self, status: Status, stale: Option<Kept>, filler: Option<Filler>) -> Fetch {
        let shadows = self.caching.mode == Mode::Shadow && self.variant > 0;
        // Only what may be stored is compared with what was asked.
        let request = if filler.is_some() || stale.is_some() || shadows { self.parts.headers.clone() } else { HeaderMap::new() };
        let spot = self.spot;
        let mut key = self.key;
        key.truncate(self.variant);
        Fetch {
            cache: Arc::clone(self.cache),
            caching: Arc::clone(self.caching),
            asks: self.asks,
            control: self.control,
            part: self.part,
            stamp: self.stamp,
            began: self.began,
            marked: self.marked,
            spot,
            key,
            status,
            stale,
            looked: false,
            filler,
            lease: None,
            request,
            sent: self.cache.now(),
        }
    }
}
