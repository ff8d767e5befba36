//! The pool of one worker, and the caps that hold over all workers of the pod.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, Sleep, sleep_until, timeout_at},
};

use super::{
    Key, Limits, Protocol,
    connect::Connector,
    h1::{H1, Watcher},
    h2::{Group, H2, Reserved},
};
use crate::{error::ForwardError, metrics::Raised, pressure::Pressure, tls::Origination};

/// Requests that wait for a connection to one host, over all workers.
const MAX_WAITING: usize = 1024;

/// How often idle connections are looked through for old ones.
const SWEEP: Duration = Duration::from_secs(2);

/// The right to one connection to a host; the connection counts as open while this lives.
pub(crate) struct Permit {
    // Dropped first: the count of open connections is lowered before another worker can take the place.
    _open: Raised,
    /// None for a connection beyond the cap.
    _place: Option<OwnedSemaphorePermit>,
}

/// The caps of all hosts; shared by the workers.
#[derive(Debug, Default)]
pub(crate) struct Caps {
    hosts: Mutex<HashMap<Key, Weak<Cap>>>,
    pools: Mutex<Vec<Arc<Watch>>>,
}

#[derive(Debug)]
struct Cap {
    places: Arc<Semaphore>,
    size: Mutex<usize>,
    waiting: AtomicUsize,
}

impl Caps {
    fn cap(&self, key: &Key) -> Arc<Cap> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cap) = hosts.get(key).and_then(Weak::upgrade) {
            return cap;
        }
        hosts.retain(|_, cap| cap.strong_count() > 0);
        let cap = Arc::new(Cap { places: Arc::new(Semaphore::new(0)), size: Mutex::new(0), waiting: AtomicUsize::new(0) });
        hosts.insert(key.clone(), Arc::downgrade(&cap));
        cap
    }

    /// Asks the other workers to let go of a connection that is idle there.
    fn press(&self, key: &Key) {
        self.tell_all(|| Event::Pressed(key.clone()));
    }

    /// Asks all workers to let go of all connections that are idle.
    pub(crate) fn give_back(&self) {
        self.tell_all(|| Event::GiveBack);
    }

    fn tell_all(&self, event: impl Fn() -> Event) {
        for pool in self.pools.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pool.tell(event());
        }
    }
}

impl Cap {
    /// Follows a change of the configured size. Places in use are taken away when they come back.
    fn resize(&self, wanted: usize) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted > *size {
            self.places.add_permits(wanted - *size);
            *size = wanted;
        } else if wanted < *size {
            *size -= self.places.forget_permits(*size - wanted);
        }
    }
}

/// A request that waits for a place.
struct Waiting<'a>(&'a Cap);

impl<'a> Waiting<'a> {
    fn begin(cap: &'a Cap) -> Option<Self> {
        let waiting = Self(cap);
        (cap.waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one worker.
pub(crate) struct Pool {
    hosts: RefCell<HashMap<Key, Rc<Host>>>,
    /// The host that was asked for last: mostly there is only one.
    last: RefCell<std::rc::Weak<Host>>,
    caps: Arc<Caps>,
    connector: Arc<Connector>,
    watch: Arc<Watch>,
    open: Gauge,
    pressure: Arc<Pressure>,
}

/// One upstream, as a worker sees it.
pub(crate) struct Host {
    key: Key,
    cap: Arc<Cap>,
    idle: RefCell<Vec<Idle>>,
    /// The cap as this worker last set it.
    size: Cell<usize>,
    idle_limit: Cell<Duration>,
    /// Requests of this worker that take a connection as soon as one is idle.
    waiting: RefCell<VecDeque<oneshot::Sender<Box<H1>>>>,
    h2: Group,
    watch: Arc<Watch>,
    pressure: Arc<Pressure>,
}

struct Idle {
    conn: Box<H1>,
    id: u64,
    since: Instant,
}

impl Idle {
    /// Whether its origin is about to close it, by its own word.
    fn is_due(&self, now: impl FnOnce() -> Instant) -> bool {
        self.conn.keep.is_some_and(|keep| now().duration_since(self.since) >= keep)
    }
}

/// A connection for a request, and whether it has carried one before.
pub(crate) struct Taken<C> {
    pub(crate) conn: C,
    pub(crate) reused: bool,
}

enum Place {
    Free(Permit),
    Idle(Box<H1>),
}

impl Pool {
    /// An empty pool. Its worker must run [`Pool::keep`].
    pub(crate) fn new(caps: Arc<Caps>, connector: Arc<Connector>, open: Gauge, pressure: Arc<Pressure>) -> Rc<Self> {
        let watch = Arc::new(Watch::default());
        caps.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watch));
        Rc::new(Self { hosts: RefCell::default(), last: RefCell::default(), caps, connector, watch, open, pressure })
    }

    /// What an upstream under TLS chooses to speak.
    pub(crate) async fn protocol(&self, key: &Key, tls: &Origination, limit: Duration) -> Result<Protocol, ForwardError> {
        self.connector.protocol(key, tls, limit).await
    }

    /// The host of a key.
    pub(crate) fn host(&self, key: &Key, limits: &Limits) -> Rc<Host> {
        let last = self.last.borrow().upgrade().filter(|host| host.key == *key);
        let host = last.unwrap_or_else(|| self.look_up(key));
        if host.size.replace(limits.connections) != limits.connections {
            host.cap.resize(limits.connections);
        }
        host.idle_limit.set(limits.idle);
        host
    }

    fn look_up(&self, key: &Key) -> Rc<Host> {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.entry(key.clone()).or_insert_with(|| {
            self.watch.task.wake(); // there is something to sweep from now on
            Rc::new(Host {
                key: key.clone(),
                cap: self.caps.cap(key),
                idle: RefCell::default(),
                size: Cell::new(0),
                idle_limit: Cell::default(),
                waiting: RefCell::default(),
                h2: Group::default(),
                watch: Arc::clone(&self.watch),
                pressure: Arc::clone(&self.pressure),
            })
        });
        *self.last.borrow_mut() = Rc::downgrade(host);
        Rc::clone(host)
    }

    /// An idle HTTP/1 connection, if there is one.
    pub(crate) async fn pooled(&self, host: &Host) -> Option<Taken<Box<H1>>> {
        poll_fn(|cx| Poll::Ready(host.pop(cx))).await.map(|conn| Taken { conn, reused: true })
    }

    /// A new HTTP/1 connection within the cap of the host, or one that has become idle meanwhile.
    pub(crate) async fn open(&self, host: &Rc<Host>, limits: &Limits) -> Result<Taken<Box<H1>>, ForwardError> {
        let deadline = Instant::now() + limits.connect;
        match self.place(host, limits, deadline).await? {
            Place::Idle(conn) => Ok(Taken { conn, reused: true }),
            Place::Free(permit) => {
                let stream = self.connector.open(&host.key, deadline.saturating_duration_since(Instant::now())).await?;
                Ok(Taken { conn: H1::new(stream, permit), reused: false })
            }
        }
    }

    /// A stream on an HTTP/2 connection of this worker. If none is left, another connection is opened, within the cap of the host.
    pub(crate) async fn take_h2(&self, host: &Rc<Host>, limits: &Limits) -> Result<Taken<Reserved>, ForwardError> {
        let deadline = Instant::now() + limits.connect;
        let too_late = || ForwardError::ConnectTimeout { upstream: host.key.endpoint.to_string(), limit: limits.connect };
        loop {
            if let Some(conn) = host.h2.reserve() {
                return Ok(Taken { conn, reused: true });
            }
            let place = async {
                let opening = host.h2.opening.lock().await;
                if let Some(conn) = host.h2.reserve() {
                    return Ok(Err(conn)); // of a connection that was opened in the meantime
                }
                if host.h2.is_learning() {
                    std::future::pending::<()>().await; // `freed` ends this
                }
                let place = match self.only(host) {
                    Some(permit) => Place::Free(permit),
                    None => self.place(host, limits, deadline).await?,
                };
                Ok(Ok((opening, place)))
            };
            let place = tokio::select! {
                biased;
                () = host.h2.freed.notified() => continue,
                place = timeout_at(deadline, place) => place.map_err(|_| too_late())??,
            };
            let (_opening, permit) = match place {
                Ok((opening, Place::Free(permit))) => (opening, permit),
                Ok((_, Place::Idle(_))) => continue, // a connection of HTTP/1, which a host of HTTP/2 has none of
                Err(conn) => return Ok(Taken { conn, reused: true }),
            };
            let stream = self.connector.open(&host.key, deadline.saturating_duration_since(Instant::now())).await?;
            let opened = H2::open(stream, permit, Rc::clone(&host.h2.freed));
            let opened = timeout_at(deadline, opened)
                .await
                .map_err(|_| too_late())?
                .map_err(|error| ForwardError::Broken(error.into()))?;
            if let Some(conn) = host.h2.add(opened) {
                return Ok(Taken { conn, reused: false });
            }
        }
    }

    /// A place for the only HTTP/2 connection of this worker, beyond the cap if it must be: streams of other workers may last for ever,
    /// and connections can't be shared with them. So there are as many as the cap or the workers allow, whichever is more.
    fn only(&self, host: &Host) -> Option<Permit> {
        // It is tried, not looked whether there is one: another worker may take the last one in between.
        let place = || Arc::clone(&host.cap.places).try_acquire_owned().ok();
        host.h2.is_empty().then(|| self.permit(place()))
    }

    /// A place under the cap: at once, or from a bounded queue.
    async fn place(&self, host: &Host, limits: &Limits, deadline: Instant) -> Result<Place, ForwardError> {
        if let Ok(permit) = Arc::clone(&host.cap.places).try_acquire_owned() {
            return Ok(Place::Free(self.permit(permit)));
        }
        let full = || ForwardError::ConnectionLimit { upstream: host.key.endpoint.to_string(), max: limits.connections };
        let _waiting = Waiting::begin(&host.cap).ok_or_else(full)?;
        let (give, given) = oneshot::channel();
        host.waiting.borrow_mut().push_back(give);
        self.caps.press(&host.key);
        let either = async {
            tokio::select! {
                biased;
                Ok(conn) = given => Some(Place::Idle(conn)),
                permit = Arc::clone(&host.cap.places).acquire_owned() => permit.ok().map(|permit| Place::Free(self.permit(permit))),
            }
        };
        timeout_at(deadline, either).await.ok().flatten().ok_or_else(full)
    }

    fn permit(&self, place: impl Into<Option<OwnedSemaphorePermit>>) -> Permit {
        Permit { _place: place.into(), _open: Raised::new(self.open.clone()) }
    }

    /// Watches idle connections for ever: rule (d).
    pub(crate) async fn keep(self: Rc<Self>) {
        let mut sweep: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            self.watch.task.register(cx.waker());
            for event in self.watch.events() {
                self.handle(event);
            }
            loop {
                let hosts = self.hosts.borrow().len();
                if hosts == 0 {
                    sweep = None;
                    return Poll::Pending;
                }
                let timer = sweep.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + SWEEP)));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.sweep(Instant::now());
                timer.as_mut().reset(Instant::now() + SWEEP);
            }
        })
        .await
    }

    fn handle(&self, event: Event) {
        let hosts = self.hosts.borrow();
        match event {
            Event::Woken(key, id) => {
                if let Some(host) = hosts.get(&key) {
                    host.check(id);
                }
            }
            Event::Pressed(key) => {
                if let Some(host) = hosts.get(&key)
                    && host.waiting.borrow().is_empty()
                {
                    host.idle.borrow_mut().pop();
                    host.h2.yield_place();
                }
            }
            Event::GiveBack => {
                let given = hosts.values().map(|host| std::mem::take(&mut *host.idle.borrow_mut()).len() + host.h2.give_back());
                self.pressure.reclaimed("upstream_connections", given.sum());
            }
        }
    }

    fn sweep(&self, now: Instant) {
        self.hosts.borrow_mut().retain(|_, host| {
            let limit = host.idle_limit.get();
            host.idle.borrow_mut().retain(|idle| now.duration_since(idle.since) < limit && !idle.is_due(|| now));
            host.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
            let unused = host.h2.sweep(now, limit) && host.idle.borrow().is_empty();
            !unused || Rc::strong_count(host) > 1
        });
    }
}

impl Host {
    /// Bytes that a body may be read ahead by.
    pub(super) fn room(&self) -> usize {
        self.pressure.room()
    }

    /// The connection that was idle for the shortest time and still stands.
    fn pop(&self, cx: &mut Context<'_>) -> Option<Box<H1>> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if !idle.is_due(Instant::now) && idle.conn.poll_idle(cx).is_pending() {
                return Some(idle.conn);
            }
        }
    }

    /// Takes a connection back, if it is ready for a next request; else it is closed.
    pub(super) fn put(&self, mut conn: Box<H1>) {
        let watcher = conn.watcher.take().unwrap_or_else(|| self.watcher());
        if conn.poll_idle(&mut Context::from_waker(&watcher.waker)).is_ready() {
            return;
        }
        let id = watcher.id;
        conn.watcher = Some(watcher);
        while let Some(waiting) = self.waiting.borrow_mut().pop_front() {
            match waiting.send(conn) {
                Ok(()) => return,
                Err(back) => conn = back,
            }
        }
        if self.cap.waiting.load(Ordering::Relaxed) > 0 {
            return; // its place is for a worker that has none
        }
        self.idle.borrow_mut().push(Idle { conn, id, since: Instant::now() });
    }

    fn watcher(&self) -> Watcher {
        let id = self.watch.next.fetch_add(1, Ordering::Relaxed) as u64;
        let signal = Signal { key: self.key.clone(), id, watch: Arc::clone(&self.watch) };
        Watcher { id, waker: Waker::from(Arc::new(signal)) }
    }

    /// An idle connection has woken: it is readable or closed, unless the wake-up was an old one.
    fn check(&self, id: u64) {
        let mut idle = self.idle.borrow_mut();
        let Some(at) = idle.iter().position(|idle| idle.id == id) else { return };
        let conn = &mut idle[at].conn;
        let Some(waker) = conn.watcher.as_ref().map(|watcher| watcher.waker.clone()) else { return };
        if conn.poll_idle(&mut Context::from_waker(&waker)).is_ready() {
            idle.remove(at);
        }
    }
}

/// What wakes the keeper of a pool.
#[derive(Debug, Default)]
struct Watch {
    events: Mutex<Vec<Event>>,
    task: AtomicWaker,
    next: AtomicUsize,
}

#[derive(Debug)]
enum Event {
    Woken(Key, u64),
    Pressed(Key),
    GiveBack,
}

impl Watch {
    fn tell(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.task.wake();
    }

    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells the keeper which connection woke.
struct Signal {
    key: Key,
    id: u64,
    watch: Arc<Watch>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.watch.tell(Event::Woken(self.key.clone(), self.id));
    }
}
