//! What is taken out of a disk that is let go of, or that is not open.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{files::Lock, *};
use crate::cache::{
    clock::Clock,
    purge::{Generation, Position},
    record,
    semantics::meta::Meta,
    store::{Object, Parts},
};

const LONG: Duration = Duration::from_secs(30);

fn start(dir: &Path, believed: bool) -> Arc<Disk> {
    let settings = Settings { dir: dir.to_owned(), size: 512 << 20 };
    Disk::start(settings, Metrics::default(), PodPurges::new("pod"), believed)
}

async fn opened(dir: &Path, believed: bool) -> Arc<Disk> {
    let disk = start(dir, believed);
    until("it is open", async || disk.stats().open).await;
    disk
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waited = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, waited).await.expect(what);
}

fn put(disk: &Disk, primary: &str, body: Vec<u8>) {
    let parts = Parts { primary: primary.as_bytes(), variant: b"", meta: b"notes", status: StatusCode::OK };
    let object = Object::head(parts, []).unwrap().with_body(&[Bytes::from(body)]);
    let meta = Meta { since: 0, lifetime: 600_000, ..record::tests::meta() };
    let position = Position { generation: Generation::from_bytes([7; 16]), at: 1 };
    disk.put(Answer { object, meta, position, tags: Vec::new() }, None, Clock::new().now());
}

async fn has(disk: &Disk, primary: &str) -> bool {
    disk.get(primary.as_bytes(), |_| None).await.is_some()
}

async fn end(disk: Arc<Disk>) {
    let ended = disk.ended();
    drop(disk);
    timeout(LONG, ended.cancelled()).await.expect("it lets the folder go");
}

/// A folder that holds an answer of the key `a`, and one of the key `b`.
async fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    let disk = opened(dir.path(), true).await;
    put(&disk, "a", b"a".to_vec());
    put(&disk, "b", b"b".to_vec());
    until("they are written", async || has(&disk, "a").await && has(&disk, "b").await).await;
    end(disk).await;
    dir
}

#[tokio::test]
async fn what_waits_to_be_taken_out_goes_before_the_folder_is_let_go_of() {
    let dir = written().await;
    let disk = opened(dir.path(), true).await;
    assert!(has(&disk, "a").await);
    // So much that the removal behind it has to wait.
    for number in 0..30 {
        let mut noise = vec![0; 1 << 20];
        fastrand::Rng::with_seed(number).fill(&mut noise);
        put(&disk, &format!("long{number}"), noise);
    }
    disk.remove(b"a");
    end(disk).await;
    let disk = opened(dir.path(), true).await;
    assert_eq!((has(&disk, "a").await, has(&disk, "b").await), (false, true));
    end(disk).await;
}

#[tokio::test]
async fn what_is_taken_out_before_the_folder_is_free_goes_also_if_it_is_never_used() {
    let dir = written().await;
    let lock = Lock::take(dir.path()).unwrap().unwrap();
    let disk = start(dir.path(), true);
    disk.remove(b"a");
    let ended = disk.ended();
    drop(disk);
    drop(lock);
    timeout(LONG, ended.cancelled()).await.unwrap();
    let disk = opened(dir.path(), true).await;
    assert_eq!((has(&disk, "a").await, has(&disk, "b").await), (false, true));
    end(disk).await;
}

#[tokio::test]
async fn what_cannot_be_taken_out_goes_with_all_else() {
    let dir = written().await;
    let in_the_way = dir.path().join("purges");
    std::fs::remove_file(&in_the_way).unwrap();
    std::fs::create_dir(&in_the_way).unwrap();
    let disk = start(dir.path(), true);
    disk.remove(b"a");
    end(disk).await;
    std::fs::remove_dir(&in_the_way).unwrap();
    let disk = opened(dir.path(), true).await;
    assert_eq!((has(&disk, "a").await, has(&disk, "b").await), (false, false));
    end(disk).await;
}

#[tokio::test]
async fn folder_that_was_not_told_of_all_changes_is_not_believed() {
    let dir = written().await;
    let disk = opened(dir.path(), false).await;
    assert_eq!((has(&disk, "a").await, has(&disk, "b").await), (false, false));
    put(&disk, "c", b"c".to_vec());
    until("it is written", async || has(&disk, "c").await).await;
    end(disk).await;
    let disk = opened(dir.path(), true).await;
    assert!(has(&disk, "c").await);
    end(disk).await;
    // Also if it was never open before it is let go of.
    end(start(dir.path(), false)).await;
    let disk = opened(dir.path(), true).await;
    assert!(!has(&disk, "c").await);
    end(disk).await;
}
