//! Snapshots of the cache, which outlive a pod.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use crds::{proxy::FetchrProxySpec, scalar::Size};
use serde_json::{Value, json};
use sidecar::pressure::Group;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    purge::Site,
    redis_server::Server,
    support::{LONG, Origin, Proxy, ms, read_head, until},
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\netag: \"1\"\r\nxkey: news\r\n";

/// Where the snapshot is in a folder.
fn snapshot(folder: &TempDir) -> PathBuf {
    folder.path().join("shop/FetchrProxy/web/cache.fxc")
}

fn in_folder(folder: &TempDir) -> Value {
    json!({"backend": "File", "file": {"path": folder.path()}})
}

/// Puts snapshots in force, in one plan with the rules: without these, nothing of a snapshot would be taken.
fn persist(proxy: &mut Proxy, archive: Value, persistence: Value) {
    proxy.settings.archive = Some(serde_json::from_value(archive).unwrap());
    proxy.settings.cache.persistence = Some(serde_json::from_value(persistence).unwrap());
    proxy.apply(ALL);
}

async fn pod_with(folder: &TempDir, persistence: Value, change: impl FnOnce(&mut FetchrProxySpec)) -> Site {
    let mut site = Site::with(ALL, FIELDS, None, change).await;
    persist(&mut site.proxy, in_folder(folder), persistence);
    site
}

async fn pod(folder: &TempDir, redis: Option<&Server>) -> Site {
    let redis = redis.map(|redis| serde_json::from_value(json!({"endpoints": [redis.address()]})).unwrap());
    let change = |spec: &mut FetchrProxySpec| {
        spec.redis = redis;
        spec.cache.purge.max_lag = ms(1000);
    };
    pod_with(folder, json!({"interval": "1s"}), change).await
}

/// It leaves, and writes nothing any more.
async fn end(site: &Site) {
    site.proxy.drain.drain_inbound(Duration::ZERO, Duration::ZERO).await;
    assert!(site.proxy.server.finish(LONG).await, "it ends with the pod");
}

fn asked(site: &Site) -> usize {
    site.requests.load(Ordering::SeqCst)
}

fn count(proxy: &Proxy, operation: &str, result: &str) -> f64 {
    proxy.metric(&format!("fetchr_cache_snapshots_total{{operation=\"{operation}\",result=\"{result}\"}}"))
}

/// Waits until a snapshot is written that holds what the pod has now.
async fn written(site: &Site) {
    let before = count(&site.proxy, "write", "done");
    // One may have been under way.
    until("a snapshot is written", async || count(&site.proxy, "write", "done") >= before + 2.0).await;
}

async fn read(site: &Site, result: &str) {
    until("the snapshot is read", async || count(&site.proxy, "read", result) == 1.0).await;
}

fn loaded(site: &Site, result: &str) -> f64 {
    site.proxy.metric(&format!("fetchr_cache_imported_answers_total{{source=\"snapshot\",result=\"{result}\"}}"))
}

#[tokio::test]
async fn pod_that_begins_has_what_others_were_asked_for() {
    let (server, folder) = (Server::start(&[]).await, tempfile::tempdir().unwrap());
    let one = pod(&folder, Some(&server)).await;
    until("it has a lease", async || one.proxy.metric("fetchr_cache_cut_off ") == 0.0).await;
    one.order("secret", r#"{"tag": "other"}"#).await;
    for path in ["/a", "/b", "/c"] {
        one.get(path).await;
    }
    written(&one).await;
    assert!(snapshot(&folder).exists() && one.proxy.metric(r#"fetchr_cache_snapshot_bytes_total{operation="write"}"#) > 100.0);
    one.order("secret", r#"{"url": "http://a.example/c"}"#).await;
    let late = pod(&folder, Some(&server)).await;
    read(&late, "done").await;
    assert_eq!((loaded(&late, "Imported"), loaded(&late, "Purged")), (2.0, 1.0));
    assert_eq!((late.get("/a").await.as_str(), late.get("/b").await.as_str(), asked(&late)), ("answer 1", "answer 2", 0));
    assert_eq!((late.get("/c").await.as_str(), asked(&late)), ("answer 1", 1), "what was purged is gone");
}

#[tokio::test]
async fn pod_alone_asks_the_origin_whether_a_snapshot_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let one = pod(&folder, None).await;
    one.get("/a").await;
    written(&one).await;
    let late = pod(&folder, None).await;
    read(&late, "done").await;
    let answer = late.proxy.ask("GET /a HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(answer.text() == "answer 1" && answer.field("cache-status").contains("fwd-status=304"), "{}", answer.head);
    assert_eq!((late.get("/a").await.as_str(), asked(&late)), ("answer 1", 1), "once");
}

#[tokio::test]
async fn damaged_snapshot_is_counted_and_the_pod_serves() {
    for (damage, result) in
        [("cut", "damaged"), ("flip", "damaged"), ("foreign", "damaged"), ("long", "damaged"), ("none", "none")]
    {
        let folder = tempfile::tempdir().unwrap();
        let one = pod(&folder, None).await;
        one.get("/a").await;
        written(&one).await;
        end(&one).await;
        let (file, mut bytes) = (snapshot(&folder), fs::read(snapshot(&folder)).unwrap());
        match damage {
            "cut" => bytes.truncate(bytes.len() - 5),
            "flip" => bytes[40] ^= 1,
            "foreign" => bytes = b"{}".to_vec(),
            _ => {}
        }
        match damage {
            "none" => fs::remove_file(&file).unwrap(),
            // A file of nothing, longer than a snapshot may be.
            "long" => File::create(&file).unwrap().set_len(1 << 30).unwrap(),
            _ => fs::write(&file, bytes).unwrap(),
        }
        let late = pod(&folder, None).await;
        assert_eq!(late.get("/a").await, "answer 1", "{damage}");
        read(&late, result).await;
        assert_eq!((loaded(&late, "Imported"), asked(&late)), (0.0, 1), "{damage}");
    }
}

#[tokio::test]
async fn pod_that_ends_writes_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let one = pod_with(&folder, json!({"interval": "1h"}), |_| {}).await;
    read(&one, "none").await;
    one.get("/a").await;
    assert!(!snapshot(&folder).exists());
    end(&one).await;
    assert_eq!(count(&one.proxy, "write", "done"), 1.0);
    assert!(snapshot(&folder).exists());
}

#[tokio::test]
async fn snapshot_that_is_recent_or_better_than_nothing_stays() {
    let folder = tempfile::tempdir().unwrap();
    let one = pod(&folder, None).await;
    one.get("/a").await;
    written(&one).await;
    let before = fs::read(snapshot(&folder)).unwrap();
    let empty = pod_with(&folder, json!({"interval": "1s"}), |spec| spec.cache.memory.size = Size(0)).await;
    until("it had nothing to write, or no need", async || {
        count(&empty.proxy, "write", "none") + count(&empty.proxy, "write", "recent") >= 2.0
    })
    .await;
    assert_eq!(count(&empty.proxy, "write", "done"), 0.0);
    let now = fs::read(snapshot(&folder)).unwrap();
    assert_eq!(now.len(), before.len(), "it has the one answer still");
}

#[tokio::test]
async fn snapshot_waits_while_memory_is_short() {
    let folder = tempfile::tempdir().unwrap();
    let one = pod(&folder, None).await;
    one.get("/a").await;
    written(&one).await;
    let memory = tempfile::tempdir().unwrap();
    let used = |percent: u64| write_group(memory.path(), percent);
    used(90);
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let group = Some(Group::at(memory.path()));
    let mut late = Proxy::within(group, &format!("http://{}", origin.address), |_| {});
    until("memory is known to be short", async || late.metric("fetchr_memory_pressure_step ") == 1.0).await;
    persist(&mut late, in_folder(&folder), json!({"interval": "1h"}));
    until("it has come", async || late.metric(r#"fetchr_cache_snapshot_bytes_total{operation="read"}"#) > 0.0).await;
    for _ in 0..20 {
        late.ask("GET /b HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    }
    assert_eq!(count(&late, "read", "done"), 0.0, "one answer would have been taken long since");
    used(10);
    until("it goes on", async || count(&late, "read", "done") == 1.0).await;
}

/// Says how much of the memory is used, over what was there.
fn write_group(folder: &Path, percent: u64) {
    for (name, text) in [("memory.max", "1000".to_owned()), ("memory.stat", "inactive_file 0".to_owned())] {
        fs::write(folder.join(name), text + "\n").unwrap();
    }
    let file = File::options().write(true).create(true).truncate(false).open(folder.join("memory.current")).unwrap();
    file.write_all_at(format!("{:<4}\n", percent * 10).as_bytes(), 0).unwrap();
}

/// A store that does nothing right.
async fn toxic(how: &'static str) -> Origin {
    Origin::scripted(move |mut stream: TcpStream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = match how {
                "hangs" => std::future::pending().await,
                "resets" => return,
                "half" => {
                    "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\nFXC\x01"
                }
                "500" => "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
                _ => "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if how == "half" {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn store_that_does_nothing_right_harms_nobody() {
    let access = tempfile::tempdir().unwrap();
    fs::write(access.path().join("id"), "AKIA").unwrap();
    fs::write(access.path().join("secret"), "secret").unwrap();
    for (how, result) in [("500", "failed"), ("403", "failed"), ("hangs", "late"), ("resets", "failed"), ("half", "failed")] {
        let store = toxic(how).await;
        let credentials =
            json!({"accessKeyIDFile": access.path().join("id"), "secretAccessKeyFile": access.path().join("secret")});
        let s3 = json!({"bucket": "captures", "endpoint": format!("http://{}", store.address), "credentials": credentials});
        let load = if how == "hangs" { "1s" } else { "60s" };
        let mut site = Site::start(ALL, FIELDS, None).await;
        persist(&mut site.proxy, json!({"backend": "S3", "s3": s3}), json!({"interval": "1s", "loadTimeout": load}));
        assert_eq!((site.get("/a").await.as_str(), site.get("/a").await.as_str()), ("answer 1", "answer 1"), "{how}");
        let deadline = tokio::time::Instant::now() + 6 * LONG;
        while count(&site.proxy, "read", result) == 0.0 {
            assert!(tokio::time::Instant::now() < deadline, "{how}: {}", site.proxy.metrics.encode());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((site.get("/a").await.as_str(), asked(&site)), ("answer 1", 1), "{how}");
    }
}
