//! Answers on disk, in builds with the feature `disk-cache`. Another start is another proxy on the same folder, before another origin.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use crds::{proxy::FetchrProxySpec, scalar::Size};
use serde_json::json;
use tempfile::TempDir;

use crate::{purge::Site, support::until};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}, "stale": {"whileRevalidate": "60s"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\nxkey: news\r\n";
const STORED: &str = r#"fetchr_cache_disk_writes_total{result="stored"}"#;

fn keeps(dir: &Path) -> impl FnOnce(&mut FetchrProxySpec) + use<> {
    let disk = json!({"size": "16Mi", "path": dir});
    move |spec| spec.cache.disk = Some(serde_json::from_value(disk).unwrap())
}

async fn with(dir: &Path, fields: &'static str, change: impl FnOnce(&mut FetchrProxySpec)) -> Site {
    let keeps = keeps(dir);
    let site = Site::with(ALL, fields, None, |spec| {
        keeps(spec);
        change(spec);
    })
    .await;
    is_open(&site).await;
    site
}

async fn start(dir: &Path) -> Site {
    with(dir, FIELDS, |_| {}).await
}

async fn is_open(site: &Site) {
    until("it is open", async || site.proxy.metric("fetchr_cache_disk_open ") == 1.0).await;
}

/// Lets the folder go once so many answers are written.
async fn end(mut site: Site, answers: f64) {
    stored(&site, answers).await;
    site.proxy.settings.cache.disk = None;
    site.proxy.apply(ALL);
    until("it is closed", async || site.proxy.metric("fetchr_cache_disk_limit_bytes ") == 0.0).await;
}

async fn stored(site: &Site, answers: f64) {
    until("it is written", async || site.proxy.metric(STORED) >= answers).await;
}

fn asked(site: &Site) -> usize {
    site.requests.load(Ordering::SeqCst)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).collect()
}

fn looks(site: &Site, result: &str) -> f64 {
    site.proxy.metric(&format!("fetchr_cache_disk_requests_total{{result=\"{result}\"}}"))
}

#[tokio::test]
async fn what_memory_has_no_room_for_is_found_on_disk() {
    let dir = TempDir::new().unwrap();
    let site = with(dir.path(), FIELDS, |spec| spec.cache.memory.size = Size::kib(64)).await;
    let all = async || {
        let mut answers = Vec::new();
        for number in 0..300 {
            answers.push(site.get(&format!("/{number}")).await);
        }
        answers
    };
    let first = all().await;
    stored(&site, 300.0).await;
    assert_eq!((all().await, asked(&site)), (first, 300));
    assert!(looks(&site, "hit") > 100.0 && looks(&site, "miss") == 300.0, "{}", site.proxy.metrics.encode());
    assert!(site.proxy.metric("fetchr_cache_disk_size_bytes ") > 10_000.0);
}

#[tokio::test]
async fn after_another_start_it_is_there_on_disk_for_all_kinds_of_requests() {
    let dir = TempDir::new().unwrap();
    let site = start(dir.path()).await;
    assert_eq!(site.get("/").await, "answer 1");
    end(site, 1.0).await;
    let ask = async |request: &str| {
        let site = start(dir.path()).await;
        let mut client = site.proxy.client().await;
        client.send(request).await;
        let answer = if request.starts_with("HEAD") { client.head_response().await } else { client.response().await };
        assert_eq!(asked(&site), 0, "{request}");
        end(site, 0.0).await;
        answer
    };
    let get = ask("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert_eq!((get.status, get.text()), (200, "answer 1"));
    assert!(get.field("cache-status").contains("hit") && !get.has("xkey"), "{}", get.head);
    let part = ask("GET / HTTP/1.1\r\nhost: a.example\r\nrange: bytes=0-5\r\n\r\n").await;
    assert_eq!((part.status, part.text()), (206, "answer"));
    let head = ask("HEAD / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert_eq!((head.status, head.field("content-length")), (200, "8"));
    let only = "GET / HTTP/1.1\r\nhost: a.example\r\ncache-control: only-if-cached\r\n\r\n";
    assert_eq!(ask(only).await.text(), "answer 1");
    assert_eq!(ask(&only.replace("GET /", "GET /b")).await.status, 504);
}

#[tokio::test]
async fn variants_are_told_apart_on_disk_and_go_together() {
    let dir = TempDir::new().unwrap();
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\n";
    let ask = async |site: &Site, value: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a.example\r\nx-a: {value}\r\n\r\n");
        site.proxy.ask(&request).await.text().to_owned()
    };
    let site = with(dir.path(), fields, |_| {}).await;
    assert_eq!((ask(&site, "1").await, ask(&site, "2").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    end(site, 2.0).await;
    let site = with(dir.path(), fields, |_| {}).await;
    assert_eq!((ask(&site, "2").await, ask(&site, "1").await), ("answer 2".to_owned(), "answer 1".to_owned()));
    assert_eq!((ask(&site, "3").await, asked(&site)), ("answer 1".to_owned(), 1));
    // Else the change would take it from among what waits.
    stored(&site, 1.0).await;
    site.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(ask(&site, "2").await, "answer 3");
    end(site, 2.0).await;
    let site = with(dir.path(), fields, |_| {}).await;
    assert_eq!((ask(&site, "2").await, asked(&site)), ("answer 3".to_owned(), 0));
    assert_eq!((ask(&site, "1").await, asked(&site)), ("answer 1".to_owned(), 1), "from before the change");
}

#[tokio::test]
async fn purges_hold_on_disk_before_and_after_another_start() {
    let all = [
        r#"{"tag": "news"}"#,
        r#"{"url": "http://a.example/"}"#,
        r#"{"prefix": "http://a.example/", "soft": true}"#,
        r#"{"policy": "shop/test"}"#,
        r#"{"all": true}"#,
    ];
    for request in all {
        let dir = TempDir::new().unwrap();
        let site = start(dir.path()).await;
        site.get("/").await;
        stored(&site, 1.0).await;
        site.purge(request).await;
        end(site, 1.0).await;
        let site = start(dir.path()).await;
        let expected = if request.contains("soft") { "StaleWhileRevalidate" } else { "fwd=uri-miss" };
        let answer = site.proxy.ask("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
        let status = answer.field("cache-status");
        assert!(status.contains(expected), "{request}: {status}");
        until("the origin is asked", async || asked(&site) == 1).await;
        end(site, 1.0).await;
        // What another process purges takes what this one stored.
        let site = start(dir.path()).await;
        site.purge(r#"{"tag": "news"}"#).await;
        assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 1), "{request}");
        assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 1), "{request}");
        end(site, 1.0).await;
        let site = start(dir.path()).await;
        assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 0), "what came after stays");
        end(site, 0.0).await;
    }
}

#[tokio::test]
async fn without_the_notes_of_purges_all_on_disk_is_validated_before_it_is_used() {
    let dir = TempDir::new().unwrap();
    let fields = "cache-control: max-age=600\r\netag: \"a\"\r\n";
    let site = with(dir.path(), fields, |_| {}).await;
    site.get("/").await;
    site.purge(r#"{"tag": "olds"}"#).await;
    end(site, 1.0).await;
    let path = dir.path().join("purges");
    let mut notes = fs::read(&path).unwrap();
    notes[30] ^= 1;
    fs::write(&path, notes).unwrap();
    for validated in [1, 0] {
        let site = with(dir.path(), fields, |_| {}).await;
        assert_eq!(site.get("/").await, "answer 1");
        assert_eq!(asked(&site), validated);
        end(site, validated as f64).await;
    }
}

#[tokio::test]
async fn request_that_changes_something_takes_it_from_the_disk() {
    let dir = TempDir::new().unwrap();
    let site = start(dir.path()).await;
    assert_eq!((site.get("/").await, site.get("/other").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    stored(&site, 2.0).await;
    site.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
    until("it is gone", async || site.proxy.metric("fetchr_cache_disk_records ") == 1.0).await;
    // Behind it, all that was to be taken out is.
    site.get("/last").await;
    end(site, 3.0).await;
    let site = start(dir.path()).await;
    assert_eq!((site.get("/other").await, asked(&site)), ("answer 2".to_owned(), 0));
    assert_eq!((site.get("/").await, asked(&site)), ("answer 1".to_owned(), 1));
    end(site, 1.0).await;
}

#[tokio::test]
async fn what_is_private_is_not_on_disk() {
    let dir = TempDir::new().unwrap();
    let site = with(dir.path(), "cache-control: private, max-age=600\r\n", |_| {}).await;
    site.get("/private").await;
    site.get("/").await;
    assert_eq!((looks(&site, "hit"), site.proxy.metric(STORED)), (0.0, 0.0));
    end(site, 0.0).await;
    assert!(segments(dir.path()).is_empty());
}

#[tokio::test]
async fn what_is_damaged_on_disk_is_fetched_anew() {
    for cut in [false, true] {
        let dir = TempDir::new().unwrap();
        let site = start(dir.path()).await;
        for number in 0..50 {
            site.get(&format!("/{number}")).await;
        }
        end(site, 50.0).await;
        let path = &segments(dir.path())[0];
        let mut bytes = fs::read(path).unwrap();
        if cut {
            bytes.truncate(bytes.len() / 2);
        } else {
            // In the contents of records, of which each is longer than that.
            (200..bytes.len()).step_by(200).for_each(|at| bytes[at] ^= 0x40);
        }
        fs::write(path, bytes).unwrap();
        let site = start(dir.path()).await;
        for number in 0..50 {
            let answer = site.get(&format!("/{number}")).await;
            let (old, new) = (format!("answer {}", number + 1), format!("answer {}", asked(&site)));
            assert!(answer == old || answer == new, "/{number}: {answer}");
        }
        let found = looks(&site, "hit") as usize;
        assert_eq!(found + asked(&site), 50);
        assert!(asked(&site) > 10, "{found} found");
        let damage = looks(&site, "corrupt") + site.proxy.metric(r#"fetchr_cache_disk_failures_total{reason="damaged"}"#);
        assert!(damage >= 1.0);
        let more = asked(&site) as f64;
        end(site, more).await;
        let site = start(dir.path()).await;
        for number in 0..50 {
            site.get(&format!("/{number}")).await;
        }
        assert_eq!(asked(&site), 0, "all is whole again");
        end(site, 0.0).await;
    }
}

#[tokio::test]
async fn without_the_folder_requests_go_on_and_it_is_used_when_it_can_be() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    fs::write(&path, "a file").unwrap();
    let site = Site::with(ALL, FIELDS, None, keeps(&path)).await;
    until("it is tried", async || site.proxy.metric(r#"fetchr_cache_disk_failures_total{reason="open"}"#) >= 1.0).await;
    assert_eq!((site.get("/").await, site.get("/").await, asked(&site)), ("answer 1".to_owned(), "answer 1".to_owned(), 1));
    assert!(looks(&site, "away") >= 1.0);
    fs::remove_file(&path).unwrap();
    is_open(&site).await;
    assert_eq!(site.get("/b").await, "answer 2");
    stored(&site, 1.0).await;
    // While it is gone, what was open is used; then another one is made.
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(site.get("/b").await, "answer 2");
    end(site, 1.0).await;
}

#[tokio::test]
async fn purges_before_the_folder_was_free_hold_for_what_is_there() {
    let dir = TempDir::new().unwrap();
    let one = start(dir.path()).await;
    assert_eq!((one.get("/a").await, one.get("/b").await), ("answer 1".to_owned(), "answer 2".to_owned()));
    stored(&one, 2.0).await;
    let other = Site::with(ALL, FIELDS, None, keeps(dir.path())).await;
    assert_eq!((other.get("/c").await, other.proxy.metric("fetchr_cache_disk_open ")), ("answer 1".to_owned(), 0.0));
    other.purge(r#"{"url": "http://a.example/a"}"#).await;
    end(one, 2.0).await;
    is_open(&other).await;
    assert_eq!((other.get("/b").await, asked(&other)), ("answer 2".to_owned(), 1));
    assert_eq!((other.get("/a").await, asked(&other)), ("answer 2".to_owned(), 2));
    assert_eq!((other.get("/c").await, asked(&other)), ("answer 1".to_owned(), 2), "what memory has is fresh still");
    end(other, 1.0).await;
}

/// Whether the disk is kept, by the configuration alone.
async fn switch(site: &mut Site, dir: Option<&Path>) {
    match dir {
        Some(dir) => {
            keeps(dir)(&mut site.proxy.settings);
            site.proxy.apply(ALL);
            is_open(site).await;
        }
        None => {
            site.proxy.settings.cache.disk = None;
            site.proxy.apply(ALL);
            until("it is off", async || site.proxy.metric("fetchr_cache_disk_limit_bytes ") == 0.0).await;
        }
    }
}

async fn change(site: &Site) {
    site.proxy.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n").await;
}

#[tokio::test]
async fn what_is_changed_while_the_disk_is_off_is_not_there_when_it_is_on_again() {
    for changes in [false, true] {
        let dir = TempDir::new().unwrap();
        let mut site = start(dir.path()).await;
        site.get("/").await;
        stored(&site, 1.0).await;
        switch(&mut site, None).await;
        if changes {
            change(&site).await;
        }
        switch(&mut site, Some(dir.path())).await;
        end(site, 1.0).await;
        let site = start(dir.path()).await;
        site.get("/").await;
        assert_eq!(asked(&site), usize::from(changes));
        end(site, 0.0).await;
    }
}

#[tokio::test]
async fn what_is_changed_before_the_disk_is_on_is_not_found_there() {
    for (changes, dirs) in [(false, false), (true, false), (true, true)] {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let site = start(dir.path()).await;
        site.get("/").await;
        end(site, 1.0).await;
        let mut site = Site::with(ALL, FIELDS, None, |_| {}).await;
        if dirs {
            switch(&mut site, Some(other.path())).await;
        }
        if changes {
            change(&site).await;
        }
        switch(&mut site, Some(dir.path())).await;
        until("it is looked through", async || segments(dir.path()).is_empty() == changes).await;
        end(site, 0.0).await;
        let site = start(dir.path()).await;
        site.get("/").await;
        assert_eq!(asked(&site), usize::from(changes), "{dirs}");
        end(site, 0.0).await;
    }
}
