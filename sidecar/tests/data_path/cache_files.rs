//! Files of answers: what one proxy exports, itself or another one imports.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use crds::{
    proxy::{Eviction, FetchrProxySpec},
    scalar::Size,
};
use serde_json::Value;
use sidecar::{
    Imported, Skipped,
    file::{LONGEST, Piece, Reader, url_of},
};
use tokio::net::TcpStream;

use crate::{
    purge::Site,
    redis_server::Server,
    support::{Client, LONG, Response, ms, until},
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\netag: \"1\"\r\nxkey: news sport\r\n";
const NO_VALIDATOR: &str = "cache-control: max-age=600\r\nxkey: news\r\n";

async fn send(site: &Site, method: &str, target: &str, body: &[u8]) -> Response {
    let mut client = Client(TcpStream::connect(site.admin).await.unwrap());
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\ncontent-length: {length}\r\n\r\n"
    );
    client.send(head).await;
    client.send(body).await;
    client.response().await
}

async fn export(site: &Site, query: &str) -> Vec<u8> {
    let answer = send(site, "GET", &format!("/cache/export?{query}"), b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

async fn import(site: &Site, file: &[u8]) -> Imported {
    let answer = send(site, "POST", "/cache/import", file).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// The URLs in a file, which is whole.
fn urls(file: &[u8]) -> Vec<String> {
    let (mut reader, mut urls) = (Reader::new(LONGEST), Vec::new());
    reader.push(file);
    while let Some(piece) = reader.read().unwrap() {
        if let Piece::Record(record) = piece {
            urls.extend(url_of(&record));
        }
    }
    reader.finish().unwrap();
    urls.sort_unstable();
    urls
}

fn asked(site: &Site) -> usize {
    site.requests.load(Ordering::SeqCst)
}

fn skipped<const N: usize>(all: [(Skipped, u64); N]) -> BTreeMap<Skipped, u64> {
    all.into()
}

/// Everything leaves, and no purge has taken it.
async fn empty(site: &mut Site, rules: &str) {
    let memory = &mut site.proxy.settings.cache.memory;
    memory.eviction = if memory.eviction == Eviction::SIEVE { Eviction::S3FIFO } else { Eviction::SIEVE };
    site.proxy.apply(rules);
    until("it is empty", async || site.proxy.metric("fetchr_cache_objects") == 0.0).await;
}

/// A proxy that has answers to these paths.
async fn filled(fields: &'static str, paths: &[&str]) -> Site {
    let site = Site::start(ALL, fields, None).await;
    for path in paths {
        site.get(path).await;
    }
    site
}

#[tokio::test]
async fn what_was_exported_is_there_again_without_the_origin() {
    let mut site = filled(NO_VALIDATOR, &["/a", "/b?c", "/d"]).await;
    let file = export(&site, "").await;
    assert_eq!(urls(&file), ["http://a.example/a", "http://a.example/b?c", "http://a.example/d"]);
    empty(&mut site, ALL).await;
    let imported = import(&site, &file).await;
    let expected = Imported { answers: 3, imported: 3, body_bytes: 24, ..Imported::default() };
    assert_eq!(imported, expected);
    let answer = site.proxy.ask("GET /b?c HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert_eq!((answer.text(), asked(&site)), ("answer 2", 3));
    assert!(answer.field("cache-status").starts_with("fetchr; hit; ttl="), "{}", answer.head);
    assert_eq!(site.proxy.metric(r#"fetchr_cache_imported_answers_total{source="file",result="Imported"}"#), 3.0);
    assert_eq!(import(&site, &file).await.skipped, skipped([(Skipped::Newer, 3)]), "they are there already");
    site.purge(r#"{"tag": "news"}"#).await;
    assert_eq!(site.get("/a").await, "answer 4", "a purge by tag takes what was imported");
}

#[tokio::test]
async fn nothing_that_was_purged_comes_back_from_a_file() {
    for purge in [
        r#"{"tag": "sport"}"#,
        r#"{"url": "http://a.example/a"}"#,
        r#"{"prefix": "http://a.example/"}"#,
        r#"{"policy": "shop/test"}"#,
        r#"{"all": true}"#,
    ] {
        let mut site = filled(FIELDS, &["/a"]).await;
        let file = export(&site, "").await;
        site.purge(purge).await;
        empty(&mut site, ALL).await;
        let imported = import(&site, &file).await;
        assert_eq!((imported.imported, imported.skipped), (0, skipped([(Skipped::Purged, 1)])), "{purge}");
        assert_eq!(site.get("/a").await, "answer 2", "{purge}");
    }
    let mut site = filled(FIELDS, &["/a"]).await;
    site.purge(r#"{"all": true}"#).await;
    assert_eq!(site.get("/a").await, "answer 2");
    let file = export(&site, "").await;
    site.purge(r#"{"tag": "other"}"#).await;
    empty(&mut site, ALL).await;
    assert_eq!(import(&site, &file).await.imported, 1, "it was fetched after the one purge, and is not named by the other");
    assert_eq!(site.get("/a").await, "answer 2");
}

#[tokio::test]
async fn who_cannot_know_what_was_purged_asks_the_origin_first() {
    let site = filled(FIELDS, &["/a", "/b"]).await;
    let file = export(&site, "").await;
    let other = Site::start(ALL, FIELDS, None).await;
    let imported = import(&other, &file).await;
    assert_eq!((imported.imported, imported.to_validate), (2, 2));
    let answer = other.proxy.ask("GET /a HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert_eq!((answer.status, answer.text(), asked(&other)), (200, "answer 1", 1));
    assert!(answer.field("cache-status").contains("fwd-status=304"), "{}", answer.head);
    assert_eq!((other.get("/a").await.as_str(), asked(&other)), ("answer 1", 1), "it holds from then on");
    other.purge(r#"{"tag": "news"}"#).await;
    assert_eq!(
        import(&other, &file).await.skipped,
        skipped([(Skipped::Purged, 2)]),
        "what is purged here counts as purged later"
    );
    let without = filled(NO_VALIDATOR, &["/a"]).await;
    let other = Site::start(ALL, FIELDS, None).await;
    let imported = import(&other, &export(&without, "").await).await;
    assert_eq!((imported.imported, imported.skipped), (0, skipped([(Skipped::Unverifiable, 1)])));
}

#[tokio::test]
async fn log_of_purges_in_redis_says_what_holds_in_other_pods() {
    let server = Server::start(&[]).await;
    let redis: Value = serde_json::json!({"endpoints": [server.address()], "commandTimeout": "5s"});
    let pod = async || {
        let redis = redis.clone();
        let change = |spec: &mut FetchrProxySpec| {
            spec.redis = Some(serde_json::from_value(redis).unwrap());
            spec.cache.purge.max_lag = ms(1000);
        };
        let site = Site::with(ALL, NO_VALIDATOR, None, change).await;
        until("it has a lease", async || site.proxy.metric("fetchr_cache_cut_off ") == 0.0).await;
        site
    };
    let one = pod().await;
    one.order("secret", r#"{"tag": "before"}"#).await;
    for path in ["/a", "/b"] {
        one.get(path).await;
    }
    let file = export(&one, "").await;
    one.order("secret", r#"{"url": "http://a.example/b"}"#).await;
    let late = pod().await;
    let imported = import(&late, &file).await;
    assert_eq!((imported.imported, imported.to_validate, imported.skipped), (1, 0, skipped([(Skipped::Purged, 1)])));
    assert_eq!((late.get("/a").await.as_str(), asked(&late)), ("answer 1", 0));
    late.get("/b").await;
    assert_eq!(asked(&late), 1);
}

#[tokio::test]
async fn variants_come_back_apart() {
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\n";
    let mut site = Site::start(ALL, fields, None).await;
    let ask = async |site: &Site, value: &str| {
        site.proxy.ask(&format!("GET / HTTP/1.1\r\nhost: a.example\r\nx-a: {value}\r\n\r\n")).await.text().to_owned()
    };
    assert_eq!((ask(&site, "1").await, ask(&site, "2").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    let file = export(&site, "").await;
    empty(&mut site, ALL).await;
    assert_eq!(import(&site, &file).await.imported, 2);
    assert_eq!((ask(&site, "2").await, ask(&site, "1").await), ("answer 2".to_owned(), "answer 1".to_owned()));
    assert_eq!((ask(&site, "3").await, asked(&site)), ("answer 3".to_owned(), 3));
}

#[tokio::test]
async fn nothing_of_a_damaged_or_foreign_file_is_taken() {
    let mut site = filled(FIELDS, &["/a", "/b"]).await;
    let file = export(&site, "").await;
    empty(&mut site, ALL).await;
    let with = |at: usize, byte: u8| {
        let mut wrong = file.clone();
        wrong[at] ^= byte;
        wrong
    };
    for (wrong, words) in [
        (with(file.len() - 1, 1), "the checksum of the whole is wrong"),
        (with(60, 1), "byte 16: the checksum of the record that begins here is wrong"),
        (with(5, 1), "the checksum of the whole is wrong"),
        (file[..file.len() - 1].to_vec(), "it is cut off"),
        (file[..40].to_vec(), "byte 40: it is cut off"),
        ([&file[..], b"x"].concat(), "there is something behind its end"),
        (b"PK\x03\x04".to_vec(), "byte 0: this is no file of answers"),
        (Vec::new(), "byte 0: it is cut off"),
    ] {
        let answer = send(&site, "POST", "/cache/import", &wrong).await;
        assert_eq!(
            (answer.status, answer.text().starts_with("nothing of the file was taken: ")),
            (400, true),
            "{}",
            answer.text()
        );
        assert!(answer.text().contains(words), "{words}: {}", answer.text());
    }
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 0.0);
    assert_eq!(import(&site, &file).await.imported, 2, "the file itself is right");
}

#[tokio::test]
async fn client_that_leaves_half_way_has_imported_nothing() {
    let mut site = filled(FIELDS, &["/a", "/b"]).await;
    let file = export(&site, "").await;
    empty(&mut site, ALL).await;
    let mut client = Client(TcpStream::connect(site.admin).await.unwrap());
    let length = file.len();
    let head = format!(
        "POST /cache/import HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\ncontent-length: {length}\r\n\r\n"
    );
    client.send(head).await;
    client.send(&file[..length - 1]).await;
    until("it is under way", async || send(&site, "POST", "/cache/import?dryRun=true", &file).await.status == 503).await;
    drop(client);
    until("it is over", async || send(&site, "POST", "/cache/import?dryRun=true", &file).await.status == 200).await;
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 0.0);
}

#[tokio::test]
async fn dry_run_says_what_would_be_and_changes_nothing() {
    let mut site = filled(FIELDS, &["/a", "/b"]).await;
    let file = export(&site, "").await;
    site.purge(r#"{"url": "http://a.example/b"}"#).await;
    empty(&mut site, ALL).await;
    let answer = send(&site, "POST", "/cache/import?dryRun=true", &file).await;
    let said: Value = serde_json::from_slice(&answer.body).unwrap();
    let expected = serde_json::json!({
        "dryRun": true, "answers": 2, "imported": 1, "toValidate": 0, "bodyBytes": 8, "skipped": {"Purged": 1}
    });
    assert_eq!(said, expected);
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 0.0);
    let wrong = send(&site, "POST", "/cache/import?dry=1", &file).await;
    assert!(wrong.status == 400 && wrong.text().contains("unknown field"), "{}", wrong.text());
}

#[tokio::test]
async fn what_is_not_taken_is_counted_by_reason() {
    let long: &'static str = Box::leak(format!("{FIELDS}x-long: {}\r\n", "long".repeat(1000)).into_boxed_str());
    let mut site = filled(long, &["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h"]).await;
    let file = export(&site, "").await;
    let other = ALL.replace("all", "other");
    empty(&mut site, &other).await;
    assert_eq!(import(&site, &file).await.skipped, skipped([(Skipped::NoSuchRule, 8)]), "of another rule");
    for mode in ["Shadow", "Disabled"] {
        let rules = ALL.replace(r#""tags""#, &format!(r#""mode": "{mode}", "tags""#));
        site.proxy.apply(&rules);
        assert_eq!(import(&site, &file).await.skipped, skipped([(Skipped::NoSuchRule, 8)]), "{mode}");
    }
    site.proxy.apply(&ALL.replace(r#""tags""#, r#""maxObjectSize": "7", "tags""#));
    assert_eq!(import(&site, &file).await.skipped, skipped([(Skipped::TooLarge, 8)]));
    site.proxy.settings.cache.memory.size = Size(24_000);
    site.proxy.apply(ALL);
    until("it is small", async || site.proxy.metric("fetchr_cache_limit_bytes") == 24_000.0).await;
    let full = import(&site, &file).await;
    assert!((1..8).contains(&full.imported), "{full:?}");
    assert_eq!(full.skipped, skipped([(Skipped::NoRoom, 8 - full.imported)]), "nothing leaves for it");
    site.proxy.settings.cache.memory.size = Size(8_000);
    empty(&mut site, ALL).await;
    assert_eq!(import(&site, &file).await.skipped, skipped([(Skipped::TooLarge, 8)]), "for the whole cache");
    let line = r#"fetchr_cache_imported_answers_total{source="file",result="NoSuchRule"}"#;
    assert_eq!(site.proxy.metric(line), 24.0);
}

#[tokio::test]
async fn what_is_too_old_for_any_use_is_not_taken() {
    let fields = "cache-control: max-age=1\r\n";
    let mut site = Site::start(ALL, fields, None).await;
    site.get("/a").await;
    let file = export(&site, "").await;
    assert_eq!(urls(&file).len(), 1);
    empty(&mut site, ALL).await;
    until("it has expired", async || import(&site, &file).await.skipped == skipped([(Skipped::Expired, 1)])).await;
    assert_eq!(site.get("/a").await, "answer 2");
    // One with a validator is kept for so long to be validated, counted from when it was stored.
    let rules = ALL.replace(r#""tags""#, r#""keep": "1s", "tags""#);
    let mut site = Site::start(&rules, "cache-control: max-age=1\r\netag: \"1\"\r\n", None).await;
    site.get("/a").await;
    let file = export(&site, "").await;
    empty(&mut site, &rules).await;
    until("it is of no use", async || import(&site, &file).await.skipped == skipped([(Skipped::Expired, 1)])).await;
}

#[tokio::test]
async fn target_that_was_changed_since_is_asked_for_first() {
    let site = filled(FIELDS, &["/a"]).await;
    let file = export(&site, "").await;
    site.proxy.ask("POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    let imported = import(&site, &file).await;
    assert_eq!((imported.imported, imported.to_validate), (1, 1));
    let before = asked(&site);
    site.get("/a").await;
    assert_eq!(asked(&site), before + 1);
}

#[tokio::test]
async fn export_has_what_is_asked_for_alone() {
    let site = filled(FIELDS, &["/a/1", "/a/2", "/b"]).await;
    for (query, expected) in [
        ("prefix=http://a.example/a/", &["http://a.example/a/1", "http://a.example/a/2"][..]),
        ("tag=sport&prefix=http://a.example/b", &["http://a.example/b"]),
        ("policy=shop/other", &[]),
    ] {
        assert_eq!(urls(&export(&site, query).await), expected, "{query}");
    }
    for (query, words) in [("prefix=/a", "prefix: \"/a\" is not like http"), ("limit=1", "unknown field")] {
        let answer = send(&site, "GET", &format!("/cache/export?{query}"), b"").await;
        assert!(answer.status == 400 && answer.text().contains(words), "{query}: {}", answer.text());
    }
    site.purge(r#"{"url": "http://a.example/b"}"#).await;
    assert_eq!(urls(&export(&site, "").await).len(), 2, "what was purged does not leave");
}

#[tokio::test]
async fn export_goes_as_fast_as_it_is_read_and_ends_when_the_client_leaves() {
    let long: &'static str = Box::leak(format!("{FIELDS}x-long: {}\r\n", noise(20_000)).into_boxed_str());
    let site = Site::start(ALL, long, None).await;
    for number in 0..600 {
        site.get(&format!("/{number}")).await;
    }
    let mut slow = Client(TcpStream::connect(site.admin).await.unwrap());
    slow.send("GET /cache/export HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\r\n").await;
    assert!(!slow.bytes(1000).await.is_empty());
    let second = send(&site, "GET", "/cache/export", b"").await;
    assert_eq!(second.status, 503, "one at a time");
    assert_eq!(second.text(), "another export is under way: try again when it is over\n");
    drop(slow);
    until("it has ended", async || send(&site, "GET", "/cache/export?tag=none", b"").await.status == 200).await;
    let all = tokio::time::timeout(LONG, export(&site, "")).await.unwrap();
    assert_eq!(urls(&all).len(), 600);
}

/// Letters that can't be packed well.
fn noise(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    (0..length).map(|_| random.alphanumeric()).collect()
}

#[tokio::test]
async fn files_need_the_token() {
    let site = Arc::new(filled(FIELDS, &["/a"]).await);
    assert_eq!(site.order_at("/cache/export", "other").await.status, 401);
    let mut client = Client(TcpStream::connect(site.admin).await.unwrap());
    client.send("POST /cache/import HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 401);
}
