//! A connection to each primary, kept beside the requests: none of them waits for one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures::FutureExt;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, ServerError, Value, aio::ConnectionLike};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::Connection,
    failed,
    find::Finder,
    jittered,
    map::{Map, Slot},
    meaning::{self, Meaning},
    settings::Address,
};

/// How long a connection may take to be made, and a sign of life to come.
const CONNECTING: Duration = Duration::from_secs(2);
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// Commands in a row that fail before nobody asks any more; and of those that had all their time, and got no answer. The latter each cost a
/// request that time.
const FAILURES: u32 = 5;
const LATE: u32 = 3;
/// Between two tries, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// The same between two questions to one that answers too late.
const LAST_PROBE: Duration = Duration::from_secs(1);
/// How long a server is not asked for what it refuses to all: what makes it refuse takes a while to mend.
const REST: Duration = Duration::from_millis(500);
/// Between two lines of log that tell the same.
const TOLD: Duration = Duration::from_secs(60);
/// How often a command goes on to another node that has its slot.
const HOPS: usize = 2;

/// The connections to a Redis that requests use.
pub(crate) struct Pool {
    finder: Arc<Finder>,
    purpose: Purpose,
    nodes: ArcSwap<Nodes>,
    stop: CancellationToken,
}

/// What the connections of a pool are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Cache,
    /// Short commands that all write: what is refused to one is refused to all.
    Limits,
}

/// Why a command came to nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failed {
    /// There is no connection to who would have to be asked.
    Away,
    /// There is none, for it does not let us in: it knows no such user, or not with this password, or forbids all.
    Barred,
    /// There is none, for there is no TLS with it: it shows a certificate that is not accepted.
    Untrusted,
    /// No answer came in time.
    Late,
    /// It was answered by an error, or the connection broke.
    Error,
}

/// The primaries, in the order of the map.
#[derive(Default)]
struct Nodes {
    map: Arc<Map>,
    nodes: Vec<Arc<Node>>,
}

/// One of them, and the connection of now, if there is one that answers.
struct Node {
    address: Address,
    current: ArcSwapOption<Current>,
    /// Why there is none.
    absent: ArcSwap<Failed>,
    failures: AtomicU32,
    late: AtomicU32,
    /// Nanoseconds that the last of the late ones waited: who answers later than that is of no use.
    patience: AtomicU64,
    rest: ArcSwapOption<Rest>,
    /// It answers too late.
    suspected: Notify,
    /// The connection, or the server as a primary, is of no use.
    broken: Notify,
    stop: CancellationToken,
}

/// A connection that is in use.
struct Current {
    connection: Connection,
    /// It is in use no more: who waits for an answer waits no longer.
    over: CancellationToken,
    /// Whether that is because it answered too late.
    is_slow: AtomicBool,
}

/// What a server refuses, and until when it is taken to refuse it still.
struct Rest {
    error: ServerError,
    until: Instant,
}

impl Pool {
    /// Begins to connect, in tasks of this runtime that end when they are told to stop.
    pub(super) fn start(finder: &Arc<Finder>, purpose: Purpose, stop: &CancellationToken) -> Arc<Self> {
        let (finder, stop) = (Arc::clone(finder), stop.child_token());
        let pool = Arc::new(Self { finder, purpose, nodes: ArcSwap::default(), stop: stop.clone() });
        let mut known = pool.finder.subscribe();
        known.mark_unchanged();
        pool.follow();
        let followed = Arc::downgrade(&pool);
        tokio::spawn(async move {
            let follow = async {
                while known.changed().await.is_ok() {
                    let Some(pool) = followed.upgrade() else { return };
                    pool.follow();
                }
            };
            stop.run_until_cancelled(follow).await
        });
        pool
    }

    /// Whether all primaries answer, as far as is known.
    pub(crate) fn is_connected(&self) -> bool {
        let nodes = self.nodes.load();
        !nodes.nodes.is_empty() && nodes.nodes.iter().all(|node| node.current.load().is_some())
    }

    /// Sends commands on keys that share a slot with this one. They may take so long, also where another node has to be asked.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn ask(&self, key: &str, pipeline: &Pipeline, patience: Duration) -> Result<Vec<Value>, Failed> {
        self.ask_within(key, pipeline, patience, patience).await
    }

    /// The same for who has so long left of a patience that others have used: a node is to blame only if it had all of that.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn ask_within(
        &self,
        key: &str,
        pipeline: &Pipeline,
        left: Duration,
        patience: Duration,
    ) -> Result<Vec<Value>, Failed> {
        let nodes = self.nodes.load_full();
        let Some(node) = nodes.map.index(Slot::of(key)).map(|index| Arc::clone(&nodes.nodes[index])) else {
            return Err(Failed::Away);
        };
        if let Some(error) = node.refuses() {
            return Ok(vec![Value::ServerError(error)]);
        }
        let mut route = Route { finder: &self.finder, nodes: &nodes, node, used: None, sent: Instant::now() };
        let answered: Result<RedisResult<Vec<Value>>, _> = timeout(left, pipeline.query_async(&mut route)).await;
        let Some(used) = &route.used else { return Err(**route.node.absent.load()) };
        match answered {
            Ok(Ok(values)) => {
                route.node.worked();
                if self.purpose == Purpose::Limits {
                    route.node.rest(&values);
                }
                Ok(values)
            }
            Ok(Err(_)) if used.is_slow.load(Ordering::Relaxed) => Err(Failed::Late),
            Ok(Err(_)) => {
                route.node.failed(used);
                Err(Failed::Error)
            }
            Err(_) => {
                // A timer and the way there take a little of it.
                if route.sent.elapsed() >= patience - patience / 8 {
                    route.node.was_late(used, patience);
                }
                Err(Failed::Late)
            }
        }
    }

    /// Keeps connections to the primaries that are known now, and to no others.
    fn follow(&self) {
        let (before, map) = (self.nodes.load_full(), self.finder.map());
        if before.map == map {
            return;
        }
        let of = |address: &Address| match before.named(address) {
            Some(node) => Arc::clone(node),
            None => Node::keep(address.clone(), &self.finder, &self.stop),
        };
        let nodes = map.primaries().iter().map(of).collect();
        for gone in before.nodes.iter().filter(|node| !map.primaries().contains(&node.address)) {
            gone.stop.cancel();
        }
        self.nodes.store(Arc::new(Nodes { map, nodes }));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Nodes {
    fn named(&self, address: &Address) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.address == *address)
    }
}

/// The way of a pipeline, which may lead on to another node.
struct Route<'a> {
    finder: &'a Arc<Finder>,
    nodes: &'a Nodes,
    /// Who is asked now.
    node: Arc<Node>,
    /// By which connection. None: there is none.
    used: Option<Arc<Current>>,
    /// When it was.
    sent: Instant,
}

impl Route<'_> {
    async fn send(&mut self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (mut asking, mut hops) = (false, 0);
        loop {
            (self.used, self.sent) = (self.node.current.load_full(), Instant::now());
            let Some(used) = &self.used else { return Err(failed(format!("no connection to {}", self.node.address))) };
            let mut connection = used.connection.clone();
            let answers = tokio::select! {
                biased;
                answers = connection.many(pipeline, offset, count, asking) => answers,
                () = used.over.cancelled() => return Err(failed(format!("{} is asked no more", self.node.address))),
            };
            let meaning = meaning::of_many(&answers, &self.node.address);
            let next = match meaning {
                Meaning::Fine => return answers,
                Meaning::LookAgain => {
                    self.node.broke(used);
                    return answers;
                }
                Meaning::Doubt => {
                    self.finder.doubt(&self.node.address);
                    return answers;
                }
                Meaning::Moved(address) => {
                    self.finder.doubt(&self.node.address);
                    asking = false;
                    address
                }
                Meaning::Ask(address) => {
                    asking = true;
                    address
                }
            };
            self.node.worked();
            hops += 1;
            let Some(next) = self.nodes.named(&next).filter(|_| hops <= HOPS) else {
                self.used = None;
                return Err(failed(format!("no connection to {next}")));
            };
            self.node = Arc::clone(next);
        }
    }
}

impl ConnectionLike for Route<'_> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut pipeline = redis::pipe();
            pipeline.add_command(cmd.clone());
            self.send(&pipeline, 0, 1).await?.into_iter().next().unwrap_or_default().extract_error()
        })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.send(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

impl Node {
    /// Begins to connect, until it is told to stop.
    fn keep(address: Address, finder: &Arc<Finder>, stop: &CancellationToken) -> Arc<Self> {
        let stop = stop.child_token();
        let node = Arc::new(Self {
            address,
            current: ArcSwapOption::empty(),
            absent: ArcSwap::from_pointee(Failed::Away),
            failures: AtomicU32::new(0),
            late: AtomicU32::new(0),
            patience: AtomicU64::new(0),
            rest: ArcSwapOption::empty(),
            suspected: Notify::new(),
            broken: Notify::new(),
            stop: stop.clone(),
        });
        let (kept, finder) = (Arc::clone(&node), Arc::clone(finder));
        tokio::spawn(async move {
            stop.run_until_cancelled(kept.connect_for_ever(&finder)).await;
            kept.put_away();
        });
        node
    }

    /// Requests use it from now on.
    fn put(&self, connection: &Connection) {
        self.failures.store(0, Ordering::Relaxed);
        self.late.store(0, Ordering::Relaxed);
        self.absent.store(Arc::new(Failed::Away));
        let current = Current { connection: connection.clone(), over: CancellationToken::new(), is_slow: AtomicBool::new(false) };
        self.current.store(Some(Arc::new(current)));
    }

    /// Requests use none, and those that wait for an answer wait no longer.
    fn put_away(&self) {
        if let Some(current) = self.current.swap(None) {
            current.over.cancel();
        }
    }

    /// A command was answered.
    fn worked(&self) {
        for count in [&self.failures, &self.late] {
            if count.load(Ordering::Relaxed) > 0 {
                count.store(0, Ordering::Relaxed);
            }
        }
    }

    /// A command was answered by an error.
    fn failed(&self, by: &Arc<Current>) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.broke(by);
        }
    }

    /// A command had all its time, and was not answered.
    fn was_late(&self, by: &Arc<Current>, patience: Duration) {
        self.patience.store(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.late.fetch_add(1, Ordering::Relaxed) + 1 >= LATE {
            by.is_slow.store(true, Ordering::Relaxed);
            self.leave(by, &self.suspected);
        }
    }

    /// Nobody asks it any more until it has shown that it is of use.
    fn broke(&self, by: &Arc<Current>) {
        self.leave(by, &self.broken);
    }

    /// What another connection did before is no matter.
    fn leave(&self, by: &Arc<Current>, why: &Notify) {
        let left = self.current.compare_and_swap(by, None);
        if left.as_ref().is_some_and(|left| Arc::ptr_eq(left, by)) {
            by.over.cancel();
            why.notify_one();
        }
    }

    /// What it refuses to all, if it does, for a while: then it need not be asked.
    fn rest(&self, answers: &[Value]) {
        let error = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) if meaning::is_of_all(error.code()) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = error {
            self.rest.store(Some(Arc::new(Rest { error, until: Instant::now() + jittered(REST) })));
        }
    }

    fn refuses(&self) -> Option<ServerError> {
        let rest = self.rest.load();
        rest.as_ref().filter(|rest| Instant::now() < rest.until).map(|rest| rest.error.clone())
    }

    async fn connect_for_ever(&self, finder: &Finder) {
        let (mut retry, mut told) = (FIRST_RETRY, None::<Instant>);
        loop {
            let why = match finder.settings().connect(&self.address, Instant::now() + CONNECTING).await {
                Ok(made) => {
                    // Of the connection before.
                    let _ = (self.suspected.notified().now_or_never(), self.broken.notified().now_or_never());
                    self.put(&made);
                    let begun = Instant::now();
                    let why = self.watch(finder, made).await;
                    self.put_away();
                    if begun.elapsed() >= LAST_RETRY {
                        retry = FIRST_RETRY;
                    }
                    why
                }
                Err(unmade) => {
                    self.absent.store(Arc::new(unmade.failed));
                    unmade.to_string()
                }
            };
            finder.doubt(&self.address);
            if told.is_none_or(|told| told.elapsed() >= TOLD) {
                told = Some(Instant::now());
                tracing::warn!(
                    server = %self.address,
                    why,
                    "What is shared in Redis can't be reached. Requests go on without it, and it is tried again and again."
                );
            }
            sleep(jittered(retry)).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Returns why it is of no use any more.
    async fn watch(&self, finder: &Finder, mut made: Connection) -> String {
        loop {
            tokio::select! {
                () = self.broken.notified() => return "too many commands in a row failed, or it is no primary any more".to_owned(),
                () = made.closed() => return "the connection was closed".to_owned(),
                () = self.suspected.notified() => {
                    if let Err(why) = self.probe(finder, &mut made).await {
                        return why.to_string();
                    }
                    self.put(&made);
                    continue;
                }
                () = sleep(BEAT) => {}
            }
            let until = Instant::now() + CONNECTING;
            if let Err(why) = finder.settings().sign_of_life(&self.address, &mut made, until).await {
                return why.to_string();
            }
        }
    }

    /// Waits until one that was too late answers soon enough for a request. By the same connection, so that one that was held up for a moment is of
    /// use again at once.
    async fn probe(&self, finder: &Finder, made: &mut Connection) -> RedisResult<()> {
        finder.doubt(&self.address);
        let mut pause = FIRST_RETRY;
        loop {
            let begun = Instant::now();
            finder.settings().sign_of_life(&self.address, made, begun + CONNECTING).await?;
            if begun.elapsed() < Duration::from_nanos(self.patience.load(Ordering::Relaxed)) {
                return Ok(());
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LAST_PROBE);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
