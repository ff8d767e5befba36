//! Looks for the primaries: one task for all who doubt.

use std::{collections::HashSet, future::pending, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use redis::RedisResult;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    connection::step,
    failed,
    find::Finder,
    jittered,
    map::{Map, Told, is_served},
    news,
    settings::{Address, Mode, Settings, User},
};

/// How long a server may take to connect and answer, and a look as a whole.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(6);
/// Between two looks, after one that found something, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Nodes of a cluster that one look asks, at most.
const NODES: usize = 16;

/// Looks where there is doubt, until it is told to stop. With a single server there is nothing to look for.
pub(super) fn spawn(finder: &Arc<Finder>, stop: &CancellationToken) {
    if matches!(finder.settings().mode, Mode::Single(_)) {
        return;
    }
    let (finder, stop) = (Arc::clone(finder), stop.clone());
    tokio::spawn(async move {
        let all = futures::future::join(look_for_ever(&finder), hear_of_switches(&finder));
        stop.run_until_cancelled(all).await
    });
}

async fn look_for_ever(finder: &Finder) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (began, before) = (Instant::now(), finder.map());
        finder.begin_look().await;
        // Who doubts what was found to be so again and again waits longer each time.
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let found = look(finder, Instant::now() + LOOK).await;
        let has_moved = found.as_ref().is_ok_and(|map| *map != *before);
        pause = if has_moved { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        finder.end_look(found);
        let _ = timeout(jittered(pause), finder.hurry.notified()).await;
    }
}

async fn look(finder: &Finder, until: Instant) -> Result<Map, String> {
    let before = finder.map();
    let found = match &finder.settings().mode {
        Mode::Single(address) => Ok(Map::one(address.clone())),
        Mode::Sentinel { sentinels, name, user } => {
            let last = before.primaries().first();
            by_sentinels(finder.settings(), sentinels, (name, user), last, until).await.map(Map::one)
        }
        Mode::Cluster { seeds } => by_nodes(finder.settings(), seeds, before.primaries(), until).await,
    };
    if let Ok(map) = &found
        && *map != *before
    {
        let primaries: Vec<String> = map.primaries().iter().map(ToString::to_string).collect();
        tracing::info!(primaries = primaries.join(" "), "The primaries of Redis were found, or changed.");
    }
    found
}

/// Until when one server is waited for, in a look that ends then.
fn patience(look: Instant) -> Instant {
    look.min(Instant::now() + PATIENCE)
}

/// The primary: the newest that sentinels tell, and that says itself that it is one. As soon as most of them have answered, for one that is gone
/// or cut off must not hold up the others. If none of them answers at all, the last one, if it still is one.
async fn by_sentinels(
    settings: &Settings,
    sentinels: &[Address],
    (name, user): (&str, &User),
    last: Option<&Address>,
    until: Instant,
) -> Result<Address, String> {
    let ask = async |sentinel| (sentinel, ask_sentinel(settings, sentinel, (name, user), patience(until)).await);
    let mut asked: FuturesUnordered<_> = sentinels.iter().map(ask).collect();
    let (mut answers, mut told, mut tried, mut why) = (0, Vec::new(), HashSet::new(), Vec::new());
    while let Some((sentinel, answer)) = asked.next().await {
        match answer {
            Ok(answer) => {
                answers += 1;
                told.push(answer);
            }
            Err(problem) => why.push(format!("sentinel {sentinel}: {problem}")),
        }
        if answers > sentinels.len() / 2 || asked.is_empty() {
            told.sort_by_key(|told: &Told| std::cmp::Reverse(told.epoch));
            for Told { primary, .. } in told.drain(..).filter(|told| tried.insert(told.primary.clone())) {
                match is_primary(settings, &primary, patience(until)).await {
                    Ok(()) => return Ok(primary),
                    Err(problem) => why.push(format!("primary {primary}: {problem}")),
                }
            }
        }
    }
    if let Some(last) = last.filter(|_| answers == 0) {
        match is_primary(settings, last, patience(until)).await {
            Ok(()) => return Ok(last.clone()),
            Err(problem) => why.push(format!("the last primary {last}: {problem}")),
        }
    }
    Err(format!("no primary of {name} was found: {}", why.join("; ")))
}

async fn ask_sentinel(settings: &Settings, sentinel: &Address, (name, user): (&str, &User), until: Instant) -> RedisResult<Told> {
    let mut connection = settings.connect_as(sentinel, user, until).await?;
    let question = redis::cmd("SENTINEL").arg("MASTER").arg(name).to_owned();
    let answer = step(until, format!("{sentinel} tells of no primary"), connection.one(&question, false)).await?;
    Told::of(&answer).map_err(|foreign| failed(foreign.to_string()))
}

async fn is_primary(settings: &Settings, address: &Address, until: Instant) -> RedisResult<()> {
    Ok(settings.connect(address, until).await.map(drop)?)
}

/// What the first node says that sees enough of its cluster to serve; else what any says.
async fn by_nodes(settings: &Settings, seeds: &[Address], known: &[Address], until: Instant) -> Result<Map, String> {
    let mut nodes: Vec<&Address> = known.iter().chain(seeds.iter().filter(|seed| !known.contains(seed))).collect();
    fastrand::shuffle(&mut nodes);
    let (mut other, mut why) = (None, Vec::new());
    for node in nodes.into_iter().take(NODES) {
        match ask_node(settings, node, patience(until)).await {
            Ok((true, map)) => return Ok(map),
            Ok((false, map)) => other = Some(map),
            Err(problem) => why.push(format!("{node}: {problem}")),
        }
    }
    other.ok_or_else(|| format!("no node of the cluster can be asked: {}", why.join("; ")))
}

/// What a node says of the slots, and whether it sees enough of its cluster to serve.
async fn ask_node(settings: &Settings, node: &Address, until: Instant) -> RedisResult<(bool, Map)> {
    let mut connection = settings.connect_as(node, &settings.user, until).await?;
    let mut ask = async |what: &str| {
        let question = redis::cmd("CLUSTER").arg(what).to_owned();
        step(until, format!("{node} tells nothing of its cluster"), connection.one(&question, false)).await
    };
    let (info, slots) = (ask("INFO").await?, ask("SLOTS").await?);
    let map = Map::of_slots(&slots, node).map_err(|foreign| failed(foreign.to_string()))?;
    Ok((is_served(&info), map))
}

/// Hears from a sentinel when there is another primary, so that nobody goes on with one that was replaced and still answers.
async fn hear_of_switches(finder: &Finder) {
    let Mode::Sentinel { sentinels, user, .. } = &finder.settings().mode else { return pending().await };
    let mut turn = fastrand::usize(..);
    loop {
        turn = turn.wrapping_add(1);
        let sentinel = &sentinels[turn % sentinels.len()];
        let until = Instant::now() + PATIENCE;
        if let Ok(mut subscription) = finder.settings().subscribe(sentinel, user, "+switch-master", until).await {
            // What happened before isn't told.
            finder.doubt_all();
            while news::next(&mut subscription, PATIENCE).await {
                finder.doubt_all();
            }
        }
        sleep(jittered(LONGEST_PAUSE)).await;
    }
}
