//! What the cache does with what comes of a request that it has let go.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use crds::policy::Mode;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use tokio::time::Instant;

use super::{
    Cache, Caching,
    answer::{self, Plan},
    changes::{Moment, Spot},
    fill::{Failure, Filler, Mark},
    metrics::Came,
    notes::{self, Names},
    part,
    purge::Stamp,
    record::Answer as Shared,
    semantics::{
        clock::Now,
        meta::{Flags, Meta},
        request::{Asks, Control, Has},
        serve::{self, Origin, decide},
        status::{Forwarded, Handled, Status},
        storable::{NotStored, Received, Storable, storable},
        uri::Target,
        validate::{self, Outcome},
        validators::Validators,
        vary,
    },
    store::{Gone, Object, Parts, Vary},
    tier::Lease,
};
use crate::{
    error::ForwardError,
    flow::{Flow, FlowError},
};

/// How long it is remembered that the answers to a key are not stored: its requests do not wait for each other.
const MARK: Duration = Duration::from_secs(120);

/// What is stored, and what the cache notes of it.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) object: Object,
    pub(super) meta: Meta,
}

/// A request that goes to the origin.
pub(crate) struct Fetch {
    pub(super) cache: Arc<Cache>,
    pub(super) caching: Arc<Caching>,
    pub(super) asks: Asks,
    pub(super) control: Control,
    /// Whether it is for one part: that is asked for as it is.
    pub(super) part: bool,
    /// Which purges were known before it was sent.
    pub(super) stamp: Stamp,
    /// Before which changes of its target.
    pub(super) began: Moment,
    /// By which it is remembered that answers to its key are not stored, if that is so.
    pub(super) marked: Option<Mark>,
    /// Its target among those that change, if that has mattered before.
    pub(super) spot: Option<Spot>,
    /// The key of the rule; empty if the request passes the cache by.
    pub(super) key: Vec<u8>,
    pub(super) status: Status,
    /// What is stored and may not answer by itself.
    pub(super) stale: Option<Kept>,
    /// Whether it is known what lies behind memory.
    pub(super) looked: bool,
    /// For whom it fetches too. None: for itself alone, and nothing is stored.
    pub(super) filler: Option<Filler>,
    /// For whom of other pods.
    pub(super) lease: Option<Lease>,
    /// The client's fields.
    pub(super) request: HeaderMap,
    /// When it was sent.
    pub(super) sent: Now,
}

type Answer = Result<Box<Response<Flow>>, ForwardError>;

impl Fetch {
    /// Makes the client's request one whose answer can be stored.
    pub(crate) fn prepare(&self, headers: &mut HeaderMap) {
        if self.filler.is_none() {
            return;
        }
        match &self.stale {
            Some(Kept { object, .. }) => {
                let stored = object.headers(0);
                let validators = Validators::of(&stored);
                if self.part {
                    validate::make_conditional_in_part(headers, &validators);
                } else {
                    validate::make_conditional(headers, &[validators]);
                }
            }
            // Of what is missing the client gets what the origin says, and asks for no more than it needs.
            None if self.part => {}
            None if self.asks.has.any(Has::IF_NONE_MATCH.and(Has::IF_MODIFIED_SINCE)) => validate::make_whole(headers),
            None => {}
        }
    }

    /// Takes what came, and says what the client gets.
    pub(crate) fn settle(mut self, target: Target<'_>, answered: Answer) -> Answer {
        let failed = match &answered {
            Ok(response) => validate::outcome(response.status()) == Outcome::Failed,
            Err(_) => true,
        };
        if failed && let Some(response) = self.instead(answered.as_ref().ok().map(|response| response.status().as_u16())) {
            return Ok(response);
        }
        let mut response = answered?;
        if self.key.is_empty() {
            self.tell(&mut response, None);
            self.count(Came::Bypass);
            return Ok(response);
        }
        let at = self.cache.now();
        let validated =
            self.filler.is_some() && self.stale.is_some() && validate::outcome(response.status()) == Outcome::NotModified;
        if validated && let Some(kept) = self.stale.take() {
            return Ok(self.validated(&kept, target, &response, at));
        }
        let judged = {
            let received = self.received(target, &response, at);
            let judged = storable(&received, &self.caching.settings, fastrand::u32(..));
            judged.and_then(|storable| if storable.part.is_none() || self.part { Ok(storable) } else { Err(NotStored::Partial) })
        };
        self.count(Came::Miss);
        match judged {
            Ok(storable) if self.filler.is_some() => Ok(self.store(&storable, response)),
            Ok(storable) => {
                if self.caching.mode == Mode::Shadow {
                    self.keep_head(&storable, &response);
                } else if let Some(mark) = self.marked {
                    self.cache.fills.unmark(mark);
                }
                self.tell(&mut response, None);
                Ok(response)
            }
            Err(reason) => {
                self.outdate(reason, response.status());
                self.refuse(reason);
                self.tell_refused(&mut response, reason);
                Ok(response)
            }
        }
    }

    /// Takes what came for no client.
    pub(crate) fn refreshed(mut self: Box<Self>, target: Target<'_>, answered: Answer) {
        // A failure leaves what is stored as it is.
        let failed = answered.as_ref().map_or(true, |response| validate::outcome(response.status()) == Outcome::Failed);
        if failed && let Some(filler) = self.filler.take() {
            return filler.fail(Failure::Upstream);
        }
        // Whoever waits for it, and the store, get the body.
        drop(self.settle(target, answered));
    }

    fn received<'a>(&'a self, target: Target<'a>, response: &'a Response<Flow>, at: Now) -> Received<'a> {
        let (status, headers) = (response.status(), response.headers());
        Received { asks: &self.asks, target, status, headers, sent: self.sent, at }
    }

    /// What is stored, in place of a failure of the origin, if it may be.
    fn instead(&self, status: Option<u16>) -> Option<Box<Response<Flow>>> {
        let kept = self.stale.as_ref()?;
        let now = self.cache.now();
        if !serve::may_answer_failure(&kept.meta, &self.control, now) {
            return None;
        }
        let decision = decide(&kept.meta, &self.control, now, Origin::Down);
        let mut response = Plan::of(&kept.object, &kept.meta, &self.asks, &self.request)?.response(&decision, &self.asks);
        let mut told = Status { detail: Some("StaleIfError"), ttl: Some(decision.ttl()), ..self.status };
        if let Handled::Forwarded(forwarded) = &mut told.handled {
            forwarded.status = status;
        }
        if self.caching.tells {
            told.append(response.headers_mut());
        }
        self.count(Came::Stale);
        Some(response)
    }

    /// The origin says that what is stored is right still.
    fn validated(mut self, kept: &Kept, target: Target<'_>, response: &Response<Flow>, at: Now) -> Box<Response<Flow>> {
        let stored = kept.object.headers(0);
        // One that is about something else changes nothing that is stored.
        let (object, meta) = if validate::confirms(response.headers(), at, &Validators::of(&stored), &kept.meta) {
            self.update(kept, &stored, target, response, at)
        } else {
            (kept.object.clone(), kept.meta)
        };
        // Who waits for it finds it in the store.
        if let Some(filler) = self.filler.take() {
            filler.fail(Failure::Abandoned);
        }
        let decision = decide(&meta, &Control::default(), at, Origin::Up);
        // Before, what is stored was enough: a head by which it is not is of no use here.
        let plan = Plan::of(&object, &meta, &self.asks, &self.request)
            .or_else(|| Plan::of(&kept.object, &kept.meta, &self.asks, &self.request));
        let mut answer = plan.map_or_else(answer::none, |plan| plan.response(&decision, &self.asks));
        self.tell(&mut answer, Some(304));
        self.count(Came::Revalidated);
        answer
    }

    /// Changes the head of what is stored as a 304 says.
    fn update(
        &mut self,
        kept: &Kept,
        stored: &HeaderMap,
        target: Target<'_>,
        response: &Response<Flow>,
        at: Now,
    ) -> (Object, Meta) {
        let mut updated = {
            let received = self.received(target, response, at);
            validate::updated(stored.iter(), &kept.meta, &received, &self.caching.settings, fastrand::u32(..))
        };
        let partial = kept.meta.flags.any(Flags::PARTIAL);
        let meta = updated.storable.as_ref().map_or(kept.meta, |storable| storable.meta);
        // A fetch of it would take as long as the first one has.
        let meta = Meta { flags: meta.flags.set(Flags::PARTIAL, partial), took: kept.meta.took, ..meta };
        // Which pieces there are is nothing that a newer head changes.
        for value in stored.get_all(header::CONTENT_RANGE).iter().filter(|_| partial) {
            updated.head.append(header::CONTENT_RANGE, value.clone());
        }
        let names = match self.caching.tags.as_ref().filter(|tags| response.headers().contains_key(*tags)) {
            Some(_) => self.names(response.headers()),
            None => notes::names(&kept.object),
        };
        if let Some(tags) = &self.caching.tags {
            updated.head.remove(tags);
        }
        let refreshed = kept.object.refreshed(&notes::write(&meta, self.stamp, &names), kept.object.status(), &updated.head);
        let object = refreshed.unwrap_or_else(|_| kept.object.clone());
        match updated.storable {
            Ok(_) => {
                let lease = self.lease.take();
                let replace = || {
                    let store = self.cache.store();
                    // What has come meanwhile is newer, here and elsewhere.
                    if store.replace(&kept.object, object.clone()) || !store.has_other(&object) {
                        share(&self.cache, &object, vary_of(&object), lease);
                    }
                };
                let _ = self.cache.changes.unless_changed(self.spot(), self.began, replace);
            }
            Err(reason) => {
                self.cache.metrics.not_stored(reason);
                if reason.is_of_response() {
                    self.discard(&kept.object);
                }
            }
        }
        (object, meta)
    }

    /// Begins to store an answer, for the client and for who waits for it.
    fn store(mut self, storable: &Storable, response: Box<Response<Flow>>) -> Box<Response<Flow>> {
        let Some(mut filler) = self.filler.take() else { return response };
        let mut length = response.body().exact_length();
        let Some((head, vary)) = self.head(storable, &response) else {
            self.not_for_others(filler);
            return self.untouched(response, NotStored::Vary);
        };
        if let Some(part) = storable.part {
            let told = length.replace(part.range.length());
            // Of a part to `If-Range` the head may be no more than what differs from that of the rest (RFC 9110, section 15.3.7).
            let alone = !self.asks.has.any(Has::IF_RANGE);
            if told.is_some_and(|told| Some(told) != length) || !(alone || part::would_join(&self.cache, &head, vary.as_ref())) {
                filler.fail(Failure::Abandoned);
                return self.untouched(response, NotStored::Partial);
            }
        }
        if !filler.begin(head.clone(), length, self.caching.settings.max_object) {
            self.not_for_others(filler);
            return self.untouched(response, NotStored::TooLarge);
        }
        let mut response = *response;
        self.tell_stored(&mut response);
        let (mut parts, body) = response.into_parts();
        let (cache, lease) = (Arc::clone(&self.cache), self.lease.take());
        let (most, alone) = (self.caching.settings.max_object, !self.asks.has.any(Has::IF_RANGE));
        let part = storable.part.map(|_| Part { most, alone, looked: self.looked });
        let mut keeper = Keeper { spot: self.spot(), cache, began: self.began, vary, lease, part };
        keeper.expects(length.unwrap_or_default());
        let body = keeper.take(Coming::of(body, length), filler);
        let mut wants_body = true;
        if self.asks.has.any(Has::IF_NONE_MATCH.and(Has::IF_MODIFIED_SINCE)) {
            let decision = decide(&storable.meta, &Control::default(), self.cache.now(), Origin::Up);
            let (of_head, wants) = answer::head_of(&head, &storable.meta, &decision, &self.asks, &self.request);
            let status = parts.headers.remove(super::semantics::status::CACHE_STATUS);
            (parts.status, parts.headers) = (of_head.status(), of_head.headers().clone());
            if let Some(status) = status {
                parts.headers.append(super::semantics::status::CACHE_STATUS, status);
            }
            wants_body = wants;
        }
        if let Some(tags) = &self.caching.tags {
            parts.headers.remove(tags);
        }
        parts.headers.remove(header::CONTENT_LENGTH);
        let body = if wants_body { body } else { Flow::bytes("") };
        Box::new(Response::from_parts(parts, body))
    }

    /// The head as it is stored, and the fields that select it.
    fn head(&self, storable: &Storable, response: &Response<Flow>) -> Option<(Object, Option<Vary>)> {
        let names = || storable.selecting.iter().map(http::HeaderName::as_str);
        let vary = Vary::new(names());
        let mut variant = Vec::new();
        if vary.is_some() {
            vary::variant(names(), &self.request, &mut variant).ok()?;
        }
        let meta = notes::write(&storable.meta, self.stamp, &self.names(response.headers()));
        let parts = Parts { primary: &self.key, variant: &variant, meta: &meta, status: response.status() };
        let kept = storable.cut.kept(response.headers()).map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        let fields = kept.filter(|(name, _)| self.caching.tags.as_ref().is_none_or(|tags| tags.as_str().as_bytes() != *name));
        // Of a part it says which one it is, and the length is that of the part alone.
        let range = storable.part.map(|part| part.range.content_range(part.complete));
        let fields = fields.filter(|(name, _)| range.is_none() || *name != header::CONTENT_LENGTH.as_str().as_bytes());
        let range = range.iter().map(|range| (header::CONTENT_RANGE.as_str().as_bytes(), range.as_bytes()));
        Some((Object::head(parts, fields.chain(range)).ok()?, vary))
    }

    /// By what an answer may be purged, besides its URL: its policy, and the tags that it lists.
    fn names(&self, headers: &HeaderMap) -> Names {
        let lines = self.caching.tags.iter().flat_map(|tags| headers.get_all(tags)).map(HeaderValue::as_bytes);
        let tags = lines.collect::<Vec<_>>().join(&b' ');
        let names = self.caching.names(self.cache.purges.naming(), &tags);
        Names { names, tags }
    }

    fn spot(&self) -> Spot {
        self.spot.unwrap_or_else(|| self.cache.changes.spot(&self.key))
    }

    /// In Shadow: keeps what a hit would be known by.
    fn keep_head(&self, storable: &Storable, response: &Response<Flow>) {
        if storable.part.is_none()
            && let Some((head, vary)) = self.head(storable, response)
        {
            // Too little room is no news.
            let _ = self.cache.store().insert(head, vary.as_ref());
        }
    }

    fn untouched(&self, mut response: Box<Response<Flow>>, reason: NotStored) -> Box<Response<Flow>> {
        self.outdate(reason, response.status());
        self.cache.metrics.not_stored(reason);
        self.tell_refused(&mut response, reason);
        response
    }

    /// Takes out what is stored if the origin has something else now that is not, so that no failure later brings it back.
    fn outdate(&self, reason: NotStored, status: StatusCode) {
        if let Some(kept) = &self.stale
            && reason.removes_stored(status)
        {
            self.discard(&kept.object);
        }
    }

    /// Takes out this very object, here and behind memory. What has come meanwhile stays.
    fn discard(&self, object: &Object) {
        let Cache { changes, behind, .. } = &*self.cache;
        // Of memory whatever has changed meanwhile: what took its place is another one.
        let discarded = self.cache.store().discard(object, Gone::Removed);
        changes.changed_unless_changed(self.spot(), self.began, || {
            let outdates = (discarded || !self.cache.store().has_other(object)) && behind.is_there();
            if outdates {
                behind.remove(object.primary());
            }
            outdates
        });
    }

    fn refuse(&mut self, reason: NotStored) {
        self.cache.metrics.not_stored(reason);
        let Some(filler) = self.filler.take() else { return };
        // The next one for this very range will be a part, too.
        if reason.is_of_response() || reason == NotStored::Partial && self.part {
            self.not_for_others(filler);
        } else {
            filler.fail(Failure::Abandoned);
        }
    }

    /// Has others ask by themselves, here and elsewhere, for a while.
    fn not_for_others(&mut self, filler: Filler) {
        filler.uncacheable(Instant::now() + MARK);
        if let Some(lease) = self.lease.take() {
            lease.uncacheable();
        }
    }

    fn count(&self, came: Came) {
        if self.caching.mode != Mode::Shadow {
            self.cache.metrics.request(&self.caching, came);
            if let (Came::Miss, Handled::Forwarded(Forwarded { why, .. })) = (came, self.status.handled) {
                self.cache.metrics.missed(why);
            }
        }
    }

    fn tell_stored(&self, response: &mut Response<Flow>) {
        if let Handled::Forwarded(forwarded) = self.status.handled {
            let handled = Handled::Forwarded(Forwarded { stored: true, ..forwarded });
            self.tell_as(&Status { handled, ..self.status }, response);
        }
    }

    fn tell(&self, response: &mut Response<Flow>, came: Option<u16>) {
        let mut status = self.status;
        if let Handled::Forwarded(forwarded) = &mut status.handled {
            forwarded.status = came;
        }
        self.tell_as(&status, response);
    }

    fn tell_refused(&self, response: &mut Response<Flow>, reason: NotStored) {
        if let Handled::Forwarded(forwarded) = self.status.handled
            && self.is_told()
        {
            forwarded.why.append_refusal(reason, response.headers_mut());
        }
    }

    fn tell_as(&self, status: &Status, response: &mut Response<Flow>) {
        if self.is_told() {
            status.append(response.headers_mut());
        }
    }

    fn is_told(&self) -> bool {
        self.caching.tells && self.caching.mode != Mode::Shadow
    }
}

/// A body, of which the first piece may be there.
struct Coming {
    body: Flow,
    first: Option<Piece>,
    /// Bytes of all of it, if that is known.
    length: Option<u64>,
}

/// What a body gives next; none is its end.
type Piece = Option<Result<Frame<Bytes>, FlowError>>;

impl Coming {
    fn of(mut body: Flow, length: Option<u64>) -> Self {
        let first = body.poll_unpaced(&mut Context::from_waker(Waker::noop()));
        Self { body, first: if let Poll::Ready(piece) = first { Some(piece) } else { None }, length }
    }

    /// The whole of it, if that is what the first piece is.
    fn whole(&self) -> Option<Bytes> {
        let Some(Some(Ok(frame))) = &self.first else { return None };
        let data = frame.data_ref().filter(|data| self.length == Some(data.len() as u64))?;
        self.body.is_end_stream().then(|| data.clone())
    }

    async fn next(&mut self) -> Piece {
        match self.first.take() {
            Some(piece) => piece,
            None => poll_fn(|cx| self.body.poll_unpaced(cx)).await,
        }
    }
}

/// Goes on as far as it comes at once, and then by itself.
fn start(drive: impl Future<Output = ()> + 'static) {
    let mut drive = Box::pin(drive);
    if drive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::task::spawn_local(drive);
    }
}

/// What becomes of an answer that has come whole.
struct Keeper {
    cache: Arc<Cache>,
    spot: Spot,
    /// When its fetch began, among the changes of its target.
    began: Moment,
    vary: Option<Vary>,
    lease: Option<Lease>,
    part: Option<Part>,
}

/// That it is a part.
struct Part {
    /// So many bytes of all parts of an answer may be stored.
    most: u64,
    /// Whether it may be stored although there is nothing to join it with.
    alone: bool,
    /// Whether what lies behind memory was looked at before it was fetched.
    looked: bool,
}

impl Keeper {
    /// Stores what comes, and hands it on: to who waits for it, and as the body that is given back.
    fn take(self, coming: Coming, mut filler: Filler) -> Flow {
        if let Some(body) = coming.whole() {
            filler = match filler.take_whole(&body) {
                Ok(done) => {
                    if let Some(object) = &done.object {
                        self.keep(object);
                    }
                    return Flow::bytes(body);
                }
                Err(filler) => filler,
            };
        }
        let reader = filler.reader();
        start(drive(coming, filler, self));
        Flow::joined(reader)
    }

    fn keep(self, object: &Object) {
        let Self { cache, spot, began, vary, lease, part } = self;
        let store = || {
            let Some(part) = part else {
                // Too little room is counted there.
                let _ = cache.store().insert(object.clone(), vary.as_ref());
                share(&cache, object, vary, lease);
                return false;
            };
            let part::Kept::Stored(place, whole) = part::keep(&cache, object.clone(), vary.as_ref(), part.most, part.alone)
            else {
                return false;
            };
            // Behind memory there are wholes alone, which the part does not take the place of. They are of the representation that memory
            // had, or of none that anybody knows.
            let is_older = place == part::Place::Older || place == part::Place::Nothing && !part.looked;
            let outdates = is_older && cache.behind.is_there();
            if outdates {
                cache.behind.remove(object.primary());
            }
            if let Some(whole) = whole {
                share(&cache, &whole, vary, lease);
            }
            outdates
        };
        cache.changes.changed_unless_changed(spot, began, store);
    }

    /// It has so many bytes, or more. If that is too long for other pods, none of them waits for what will never be there.
    fn expects(&mut self, bytes: u64) {
        if self.lease.is_some() && self.cache.behind.shared().is_some_and(|tier| tier.is_too_long(bytes)) {
            self.lease.take().into_iter().for_each(Lease::uncacheable);
        }
    }

    /// It is only passed on from now on. If it has grown longer than what is kept, so will the next one; else another pod may have room for it.
    fn passes_on(&mut self, filler: &Filler) {
        let lease = self.lease.take();
        if filler.is_too_long() {
            self.cache.metrics.not_stored(NotStored::TooLarge);
            filler.mark(Instant::now() + MARK);
            lease.into_iter().for_each(Lease::uncacheable);
        }
    }
}

/// The names of the fields that select it among variants.
fn vary_of(object: &Object) -> Option<Vary> {
    if object.variant().is_empty() {
        return None;
    }
    let names = vary::selecting(&object.headers(0)).ok()?;
    Vary::new(names.iter().map(http::HeaderName::as_str))
}

/// Has what is stored here found when memory has it no more: on disk, and by other pods. Parts aren't.
fn share(cache: &Cache, object: &Object, vary: Option<Vary>, lease: Option<Lease>) {
    if !cache.behind.is_there() {
        return;
    }
    let meta = notes::read(object).filter(|meta| !meta.flags.any(Flags::PARTIAL));
    let (Some(meta), Some(position)) = (meta, cache.purges.position(notes::stamp(object))) else { return };
    let now = cache.now();
    let answer = Shared { object: object.clone(), meta: meta.departing(now), position, tags: notes::names(object).tags };
    cache.behind.put(answer, vary, now, lease);
}

/// Reads an answer to its end, for all who wait for it, and stores it. It goes on without any of them.
async fn drive(mut coming: Coming, mut filler: Filler, mut keeper: Keeper) {
    let mut bytes = 0;
    loop {
        if filler.ready().await.is_err() {
            return;
        }
        let data: Bytes = match coming.next().await {
            None => break,
            Some(Err(_)) => return filler.fail(Failure::Upstream),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue, // a cache may leave trailers out (RFC 9111, section 3.1)
            },
        };
        let was_kept = filler.is_kept();
        if filler.push(&data).is_err() {
            return;
        }
        bytes += data.len() as u64;
        keeper.expects(bytes);
        if was_kept && !filler.is_kept() {
            keeper.passes_on(&filler);
        }
    }
    if let Ok(done) = filler.finish()
        && let Some(object) = &done.object
    {
        keeper.keep(object);
    }
}
