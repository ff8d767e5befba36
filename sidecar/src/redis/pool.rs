//! A connection to each primary, kept beside the requests: none of them waits for one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures::FutureExt;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value, aio::ConnectionLike};
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
/// Commands in a row that fail before nobody asks any more.
const FAILURES: u32 = 5;
/// Between two tries, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Between two lines of log that tell the same.
const TOLD: Duration = Duration::from_secs(60);
/// How often a command goes on to another node that has its slot.
const HOPS: usize = 2;

/// The connections to a Redis that requests use.
pub(crate) struct Pool {
    finder: Arc<Finder>,
    nodes: ArcSwap<Nodes>,
}

/// Why a command came to nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failed {
    /// There is no connection to who would have to be asked.
    Away,
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
    current: ArcSwapOption<Connection>,
    failures: AtomicU32,
    trouble: Notify,
    stop: CancellationToken,
}

impl Pool {
    /// Begins to connect, in tasks of this runtime that end when they are told to stop.
    pub(super) fn start(finder: &Arc<Finder>, stop: &CancellationToken) -> Arc<Self> {
        let pool = Arc::new(Self { finder: Arc::clone(finder), nodes: ArcSwap::default() });
        pool.follow(stop);
        let (following, stop) = (Arc::clone(&pool), stop.clone());
        tokio::spawn(async move {
            let mut known = following.finder.subscribe();
            let follow = async {
                // The sender lives as long as this.
                while known.wait_for(|known| known.map != following.nodes.load().map).await.is_ok() {
                    following.follow(&stop);
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
        let nodes = self.nodes.load_full();
        let Some(node) = nodes.map.index(Slot::of(key)).map(|index| Arc::clone(&nodes.nodes[index])) else {
            return Err(Failed::Away);
        };
        let mut route = Route { finder: &self.finder, nodes: &nodes, node, used: None };
        let answered: Result<RedisResult<Vec<Value>>, _> = timeout(patience, pipeline.query_async(&mut route)).await;
        let failed = match answered {
            Ok(Ok(values)) => {
                route.node.worked();
                return Ok(values);
            }
            Ok(Err(_)) => Failed::Error,
            Err(_) => Failed::Late,
        };
        let Some(used) = &route.used else { return Err(Failed::Away) };
        route.node.failed(used);
        Err(failed)
    }

    /// Keeps connections to the primaries that are known now, and to no others.
    fn follow(&self, stop: &CancellationToken) {
        let (before, map) = (self.nodes.load_full(), self.finder.map());
        let of = |address: &Address| match before.named(address) {
            Some(node) => Arc::clone(node),
            None => Node::keep(address.clone(), &self.finder, stop),
        };
        let nodes = map.primaries().iter().map(of).collect();
        for gone in before.nodes.iter().filter(|node| !map.primaries().contains(&node.address)) {
            gone.stop.cancel();
        }
        self.nodes.store(Arc::new(Nodes { map, nodes }));
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
    used: Option<Connection>,
}

impl Route<'_> {
    async fn send(&mut self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (mut asking, mut hops) = (false, 0);
        loop {
            self.used = self.node.get();
            let Some(connection) = &mut self.used else { return Err(failed(format!("no connection to {}", self.node.address))) };
            let answers = connection.many(pipeline, offset, count, asking).await;
            let meaning = meaning::of_many(&answers, &self.node.address);
            let next = match meaning {
                Meaning::Fine => return answers,
                Meaning::LookAgain => {
                    self.node.broke(connection);
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
        let (current, trouble, stop) = (ArcSwapOption::empty(), Notify::new(), stop.child_token());
        let node = Arc::new(Self { address, current, failures: AtomicU32::new(0), trouble, stop: stop.clone() });
        let (kept, finder) = (Arc::clone(&node), Arc::clone(finder));
        tokio::spawn(async move {
            stop.run_until_cancelled(kept.connect_for_ever(&finder)).await;
            kept.current.store(None);
        });
        node
    }

    fn get(&self) -> Option<Connection> {
        self.current.load().as_deref().cloned()
    }

    /// A command was answered.
    fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A command was not answered, or by an error.
    fn failed(&self, by: &Connection) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.broke(by);
        }
    }

    /// Nobody asks it any more until it has shown that it is of use. What another connection did before is no matter.
    fn broke(&self, by: &Connection) {
        if self.current.load().as_ref().is_some_and(|current| current.is(by)) {
            self.current.store(None);
            self.trouble.notify_one();
        }
    }

    async fn connect_for_ever(&self, finder: &Finder) {
        let (mut retry, mut told) = (FIRST_RETRY, None::<Instant>);
        loop {
            let why = match finder.settings().connect(&self.address, Instant::now() + CONNECTING).await {
                Ok(made) => {
                    self.failures.store(0, Ordering::Relaxed);
                    // That of the connection before.
                    let _ = self.trouble.notified().now_or_never();
                    self.current.store(Some(Arc::new(made.clone())));
                    let begun = Instant::now();
                    let why = self.watch(finder, made).await;
                    self.current.store(None);
                    if begun.elapsed() >= LAST_RETRY {
                        retry = FIRST_RETRY;
                    }
                    why
                }
                Err(why) => why.to_string(),
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
                () = self.trouble.notified() => return "too many commands in a row failed, or it is no primary any more".to_owned(),
                () = made.closed() => return "the connection was closed".to_owned(),
                () = sleep(BEAT) => {}
            }
            let until = Instant::now() + CONNECTING;
            if let Err(why) = finder.settings().sign_of_life(&self.address, &mut made, until).await {
                return why.to_string();
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
