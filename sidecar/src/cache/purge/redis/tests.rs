//! Against a real `redis-server`.

use std::{collections::HashMap, hash::Hash};

use fastrand::Rng;
use redis::aio::MultiplexedConnection;

use super::{
    super::{
        CutOff,
        log::{PurgeId, Strength, What},
        model::store,
    },
    *,
};
use crate::redis::server::Server;

const RULES: Rules = Rules { lag: Duration::from_secs(10), cut_off: CutOff::Revalidate, replicas: 0 };
const PATIENCE: Duration = Duration::from_secs(5);

async fn log(server: &Server) -> Log<MultiplexedConnection> {
    let scope = Scope::new("shop", "Deployment/web").unwrap();
    Log::new(server.connect().await, &scope, &RULES, PATIENCE)
}

fn id(number: u64) -> MemberId {
    MemberId::new("web", number).unwrap()
}

fn entry(number: u128) -> Entry {
    Entry { id: PurgeId(number), what: What::tag(&format!("t{number}")).unwrap(), strength: Strength::Hard }
}

async fn read_all(log: &mut Log<MultiplexedConnection>) -> Vec<Content> {
    let (page, _) = log.beat(&id(99), None, 0).await.unwrap();
    page.records.into_iter().map(|record| record.content).collect()
}

#[tokio::test]
async fn the_log_is_read_as_it_was_written() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    let (first, _) = log.beat(&id(1), None, 0).await.unwrap();
    assert!(matches!(first.records[..], [Record { content: Content::Begin(None), .. }]));
    assert_eq!((first.tail, first.last), (first.records[0].position.at, first.records[0].position.at));
    let (census, _) = log.append(&entry(1), false, 0).await.unwrap();
    assert_eq!((census.generation, census.term), (first.generation, first.term));
    assert!(census.at > first.last && census.now.abs_diff(census.at) < 1_000_000);
    assert_eq!((census.members.len(), census.members[0].applied, census.members[0].beats), (1, None, 1));
    let applied = first.records[0].position;
    let (next, _) = log.beat(&id(1), Some(applied), 0).await.unwrap();
    let position = Position { generation: first.generation, at: census.at };
    assert_eq!(next.records, [Record { position, content: Content::Purge(entry(1)) }]);
    log.beat(&id(1), Some(position), 0).await.unwrap();
    let (look, _) = log.look(0).await.unwrap();
    assert_eq!((look.members[0].applied, look.members[0].beats), (Some(position), 3));
    assert!(look.members[0].since >= census.now);
    log.leave(&id(1)).await.unwrap();
    assert!(log.look(0).await.unwrap().0.members.is_empty());
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    for _ in 0..2 {
        log.append(&entry(1), false, 0).await.unwrap();
        log.look(1).await.unwrap();
        server.run(&["SCRIPT", "FLUSH"]).await;
    }
}

#[tokio::test]
async fn another_append_of_the_same_purge_finds_it() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    let (first, _) = log.append(&entry(1), false, 0).await.unwrap();
    log.append(&entry(2), false, 0).await.unwrap();
    let (again, _) = log.append(&entry(1), true, 0).await.unwrap();
    assert_eq!(again.at, first.at);
    assert_eq!(read_all(&mut log).await.len(), 3);
}

#[tokio::test]
async fn restarts_and_flushes_begin_generations() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let before = log(&server).await.append(&entry(1), false, 0).await.unwrap().0;
    server.restart().await;
    let mut log = log(&server).await;
    let after = log.look(0).await.unwrap().0;
    assert_ne!((after.generation, after.term), (before.generation, before.term));
    let last = Position { generation: before.generation, at: before.at };
    assert_eq!(read_all(&mut log).await, [Content::Begin(None), Content::Purge(entry(1)), Content::Begin(Some(last))]);
    server.run(&["FLUSHALL"]).await;
    let flushed = log.look(0).await.unwrap().0;
    assert_ne!((flushed.generation, flushed.term), (after.generation, after.term));
    assert_eq!(read_all(&mut log).await, [Content::Begin(None)]);
}

#[tokio::test]
async fn a_replica_that_takes_over_begins_a_generation() {
    let primary = Server::start(&[]).await;
    let replica = primary.replica().await;
    let mut before = log(&primary).await;
    before.waits.copies = PATIENCE;
    before.beat(&id(1), None, 0).await.unwrap();
    let (appended, copies) = before.append(&entry(1), false, 1).await.unwrap();
    assert_eq!((copies, appended.connected), (1, 1));
    replica.run(&["REPLICAOF", "NO", "ONE"]).await;
    let mut after = log(&replica).await;
    let (look, _) = after.look(0).await.unwrap();
    assert_ne!((look.generation, look.term), (appended.generation, appended.term));
    assert_eq!(look.members.len(), 1, "the list is carried over");
    assert_eq!(read_all(&mut after).await.len(), 3);
    before.waits.copies = COPYING;
    assert_eq!(before.look(1).await.unwrap().1, 0, "nobody follows the one that was replaced");
}

#[tokio::test]
async fn a_replica_that_hangs_is_not_counted() {
    let primary = Server::start(&[]).await;
    let replica = primary.replica().await;
    let mut log = log(&primary).await;
    // Those that are there come as late as the machine lets them.
    log.waits.copies = PATIENCE;
    assert_eq!(log.look(1).await.unwrap().1, 1);
    replica.stop();
    log.waits.copies = COPYING;
    assert_eq!(log.look(1).await.unwrap().1, 0, "what it had before the look doesn't count");
    assert_eq!(log.beat(&id(1), None, 1).await.unwrap().1, 0);
    replica.go_on();
    log.waits.copies = PATIENCE;
    assert_eq!(log.append(&entry(1), false, 1).await.unwrap().1, 1);
}

#[tokio::test]
async fn writes_to_a_replica_are_errors() {
    let primary = Server::start(&[]).await;
    let replica = primary.replica().await;
    let error = log(&replica).await.look(0).await.unwrap_err();
    assert!(matches!(&error, LogError::Redis(error) if error.code() == Some("READONLY")), "{error:?}");
}

#[tokio::test]
async fn without_leave_to_ask_which_run_it_is_no_list_is_trusted() {
    let server = Server::start(&[]).await;
    let mut trusted = log(&server).await;
    assert!(trusted.look(0).await.unwrap().0.term.is_some());
    server.run(&["ACL", "SETUSER", "default", "-info"]).await;
    let (look, _) = trusted.look(0).await.unwrap();
    assert_eq!(look.term, None);
    assert_eq!(trusted.look(0).await.unwrap().0.generation, look.generation);
}

#[tokio::test]
async fn silent_members_are_dropped_and_the_term_is_over() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    log.silence = Duration::from_millis(20);
    log.beat(&id(1), None, 0).await.unwrap();
    let term = log.look(0).await.unwrap().0.term;
    tokio::time::sleep(Duration::from_millis(30)).await;
    // Each beat looks at one member, by chance.
    let mut looked = log.look(0).await.unwrap().0;
    for _ in 0..1000 {
        log.beat(&id(2), None, 0).await.unwrap();
        looked = log.look(0).await.unwrap().0;
        if looked.members.len() == 1 {
            break;
        }
    }
    assert_eq!(looked.members[0].id, id(2));
    assert_ne!(looked.term, term);
}

#[tokio::test]
async fn members_are_forgotten_only_if_they_are_still_silent() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    for number in [1, 2] {
        log.beat(&id(number), None, 0).await.unwrap();
    }
    log.beat(&id(2), None, 0).await.unwrap();
    let before = log.look(0).await.unwrap().0.term;
    log.forget([(&id(1), 1), (&id(2), 1)].into_iter()).await.unwrap();
    let (look, _) = log.look(0).await.unwrap();
    assert_eq!(look.members.iter().map(|member| &member.id).collect::<Vec<_>>(), [&id(2)]);
    assert_eq!(look.term, before);
}

#[tokio::test]
async fn a_full_list_says_so() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    log.bounds.members = 2;
    for number in [1, 2, 1] {
        log.beat(&id(number), None, 0).await.unwrap();
    }
    assert!(matches!(log.beat(&id(3), None, 0).await, Err(LogError::Full)));
}

#[tokio::test]
async fn foreign_records_are_unreadable_and_foreign_members_an_error() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    let (look, _) = log.look(0).await.unwrap();
    let generation = look.generation.to_string();
    let place = format!("{}-0", look.at + 1);
    server.run(&["XADD", &log.log, &place, "g", &generation, "e", "9 something else"]).await;
    assert_eq!(read_all(&mut log).await, [Content::Begin(None), Content::Unreadable]);
    server.run(&["HSET", &log.list, "who?", &format!("{generation} 1 1 1 1")]).await;
    assert!(matches!(log.look(0).await, Err(LogError::Malformed(_))));
}

#[tokio::test]
async fn a_redis_that_hangs_is_late() {
    let server = Server::start(&[]).await;
    let mut log = log(&server).await;
    log.waits.answer = Duration::from_millis(50);
    server.stop();
    assert!(matches!(log.look(0).await, Err(LogError::Late(_))));
    server.go_on();
}

/// Numbers things in the order in which they appear, so that two tellings of one story can be compared.
#[derive(Debug)]
struct Order<T>(HashMap<T, usize>);

impl<T: Eq + Hash> Order<T> {
    fn of(&mut self, thing: T) -> usize {
        let next = self.0.len();
        *self.0.entry(thing).or_insert(next)
    }
}

/// One telling: the scripts', or the model's.
struct Telling {
    generations: Order<Generation>,
    terms: Order<Option<Term>>,
    places: Order<(Generation, u64)>,
    since: Order<u64>,
    applied: HashMap<u64, Position>,
}

impl Telling {
    fn new() -> Self {
        let (generations, terms, places, since) =
            (Order(HashMap::new()), Order(HashMap::new()), Order(HashMap::new()), Order(HashMap::new()));
        Self { generations, terms, places, since, applied: HashMap::new() }
    }

    fn position(&mut self, position: Position) -> (usize, usize) {
        (self.generations.of(position.generation), self.places.of((position.generation, position.at)))
    }

    fn page(&mut self, member: u64, page: &Page) -> String {
        let records: Vec<String> = page.records.iter().map(|record| self.record(record)).collect();
        let ends = (self.generations.of(page.generation), self.terms.of(page.term));
        let before =
            self.applied.get(&member).filter(|before| before.generation == page.generation).map_or(0, |before| before.at);
        let at = page.records.last().map_or(before, |record| record.position.at);
        self.applied.insert(member, Position { generation: page.generation, at });
        format!("{ends:?} {} {records:?}", page.last == at)
    }

    fn record(&mut self, record: &Record) -> String {
        let position = self.position(record.position);
        match &record.content {
            Content::Begin(Some(before)) => format!("{position:?} begin {:?}", self.position(*before)),
            content => format!("{position:?} {content}"),
        }
    }

    fn census(&mut self, census: &Census) -> String {
        let mut members: Vec<&Present> = census.members.iter().collect();
        members.sort_by(|one, next| one.id.cmp(&next.id));
        let members: Vec<_> = members
            .into_iter()
            .map(|member| {
                (&member.id, member.applied.map(|applied| self.position(applied)), self.since.of(member.since), member.beats)
            })
            .collect();
        format!("{} {} {members:?}", self.generations.of(census.generation), self.terms.of(census.term))
    }
}

#[tokio::test]
async fn the_model_tells_what_the_scripts_do() {
    let server = Server::start(&["--enable-debug-command", "yes"]).await;
    for seed in 0..20 {
        server.run(&["FLUSHALL"]).await;
        compare(&server, &mut Rng::with_seed(seed)).await;
    }
}

/// Does the same by chance to Redis and to the model.
async fn compare(server: &Server, rng: &mut Rng) {
    let mut log = log(server).await;
    log.bounds = Bounds { page: 3, records: 5, ..log.bounds };
    let bounds = store::Bounds { page: 3, silence: u64::MAX, records: 5, kept: u64::MAX };
    let mut model = store::Server::new(store::State::default(), 1, bounds, false);
    let (mut real, mut told) = (Telling::new(), Telling::new());
    let mut now = 1_000_000;
    for step in 0..120_u64 {
        now += 1000;
        let (one, other) = match rng.u8(0..20) {
            0..9 => {
                let member = rng.u64(0..4);
                let ahead = u64::from(rng.u8(0..20) == 0) * 1_000_000_000;
                let claim = |telling: &Telling| {
                    telling.applied.get(&member).map(|applied| Position { at: applied.at + ahead, ..*applied })
                };
                let (page, _) = log.beat(&id(member), claim(&real), 0).await.unwrap();
                let modelled = model.beat(&id(member), claim(&told), step, now, usize::MAX);
                (real.page(member, &page), told.page(member, &modelled))
            }
            9..14 => {
                let (entry, again) = (entry(rng.u128(0..6)), rng.bool());
                let census = log.append(&entry, again, 0).await.unwrap().0;
                let modelled = model.append(&entry, again, step, now);
                (real.census(&census), told.census(&modelled))
            }
            14 | 15 => (real.census(&log.look(0).await.unwrap().0), told.census(&model.look(step, now))),
            16 => {
                let silent = [(id(rng.u64(0..4)), rng.u64(1..4))];
                log.forget(silent.iter().map(|(id, beats)| (id, *beats))).await.unwrap();
                model.forget(&silent);
                (String::new(), String::new())
            }
            17 => {
                let member = id(rng.u64(0..4));
                log.leave(&member).await.unwrap();
                model.leave(&member);
                (String::new(), String::new())
            }
            18 => {
                server.run(&["DEBUG", "CHANGE-REPL-ID"]).await;
                model.restart(step + 2);
                (String::new(), String::new())
            }
            _ => {
                let (key, lost) = if rng.bool() { (&log.log, true) } else { (&log.list, false) };
                server.run(&["DEL", key]).await;
                if lost {
                    model.state.log = None
                } else {
                    model.state.list = None
                }
                (String::new(), String::new())
            }
        };
        assert_eq!(one, other, "step {step}");
    }
}
