//! The same cases on each store: a folder, and a bucket of a real server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails has failed its test")]

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use archive::{Body, Condition, Key, Kind, Store, file::Folder};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// A body that comes in pieces of some length.
fn body(bytes: &[u8], piece: usize) -> Body {
    let pieces: Vec<io::Result<Bytes>> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

/// One that breaks off behind so many bytes.
fn broken(bytes: usize) -> Body {
    let piece = Ok(Bytes::from(vec![b'x'; bytes]));
    stream::iter([piece, Err(io::Error::other("it fell over"))]).boxed()
}

async fn got(store: &dyn Store, name: &str, range: Option<std::ops::Range<u64>>) -> Vec<u8> {
    let got = store.get(&key(name), range).await.unwrap();
    got.content.try_collect::<Vec<_>>().await.unwrap().concat()
}

async fn listed(store: &dyn Store, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = store.list(prefix).map_ok(|entry| entry.key).try_collect().await.unwrap();
    // Not every store keeps the order of bytes.
    names.sort_unstable();
    names
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(3).fill(&mut bytes);
    bytes
}

/// What every store does.
async fn keeps_objects(store: &dyn Store) {
    let (short, long) = (b"hello".to_vec(), noise(20 << 20));
    assert_eq!(store.put(&key("a/short"), body(&short, 2), Condition::Always).await.unwrap(), 5);
    assert_eq!(store.put(&key("a/empty"), body(b"", 1), Condition::Always).await.unwrap(), 0);
    assert_eq!(store.put(&key("a/long"), body(&long, 100_000), Condition::Always).await.unwrap(), 20 << 20);
    assert_eq!(got(store, "a/short", None).await, short);
    assert_eq!(got(store, "a/empty", None).await, b"");
    assert!(got(store, "a/long", None).await == long, "as it was put");
    for (range, expected) in [(1..3, &b"el"[..]), (3..100, b"lo"), (5..6, b""), (100..200, b""), (2..2, b"")] {
        assert_eq!(got(store, "a/short", Some(range.clone())).await, expected, "{range:?}");
    }
    let part = store.get(&key("a/long"), Some(7..9)).await.unwrap();
    assert_eq!((part.entry.bytes, part.entry.key.as_str()), (20 << 20, "a/long"), "what is known is of the whole");
    let entry = store.head(&key("a/short")).await.unwrap().unwrap();
    let age = SystemTime::now().duration_since(entry.modified).unwrap_or_default();
    assert!(entry.bytes == 5 && age < Duration::from_secs(60), "{entry:?}");
    // What was there is replaced whole.
    store.put(&key("a/long"), body(b"new", 9), Condition::Always).await.unwrap();
    assert_eq!(got(store, "a/long", None).await, b"new");
}

async fn has_conditions(store: &dyn Store) {
    let name = key("c/once");
    store.put(&name, body(b"first", 9), Condition::IfAbsent).await.unwrap();
    let second = store.put(&name, body(b"second", 9), Condition::IfAbsent).await.unwrap_err();
    assert_eq!(second.kind(), Kind::Exists, "{second}");
    assert!(second.to_string().contains(&store.place("c/once")), "{second}");
    let long = store.put(&name, body(&noise(9 << 20), 1 << 20), Condition::IfAbsent).await.unwrap_err();
    assert_eq!(long.kind(), Kind::Exists, "in parts: {long}");
    assert_eq!(got(store, "c/once", None).await, b"first");
    store.put(&name, body(b"third", 9), Condition::Always).await.unwrap();
    assert_eq!(got(store, "c/once", None).await, b"third");
}

async fn what_breaks_off_is_not_there(store: &dyn Store) {
    for (name, bytes) in [("b/short", 5), ("b/long", 17 << 20)] {
        let error = store.put(&key(name), broken(bytes), Condition::Always).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Source, "{error}");
        assert!(error.chain().ends_with("it fell over"), "{}", error.chain());
        assert_eq!(store.head(&key(name)).await.unwrap(), None);
    }
    store.put(&key("b/kept"), body(b"kept", 9), Condition::Always).await.unwrap();
    store.put(&key("b/kept"), broken(3), Condition::Always).await.unwrap_err();
    assert_eq!(got(store, "b/kept", None).await, b"kept", "what was there stays");
    assert_eq!(listed(store, "b/").await, ["b/kept"]);
}

async fn lists_and_deletes(store: &dyn Store) {
    for name in ["d/a", "d/b/c", "d/b/d", "d/bb", "e"] {
        store.put(&key(name), body(name.as_bytes(), 9), Condition::Always).await.unwrap();
    }
    for (prefix, expected) in [
        ("d/", &["d/a", "d/b/c", "d/b/d", "d/bb"][..]),
        ("d/b", &["d/b/c", "d/b/d", "d/bb"]),
        ("d/b/", &["d/b/c", "d/b/d"]),
        ("d/b/c", &["d/b/c"]),
        ("none", &[]),
    ] {
        assert_eq!(listed(store, prefix).await, expected, "{prefix}");
    }
    for _ in 0..2 {
        store.delete(&key("d/b/c")).await.unwrap();
    }
    assert_eq!(listed(store, "d/b/").await, ["d/b/d"]);
    assert_eq!(store.head(&key("d/b/c")).await.unwrap(), None);
    let missing = store.get(&key("d/b/c"), None).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(missing.to_string().starts_with(&store.place("d/b/c")), "{missing}");
    assert_eq!(store.get(&key("d/b/c"), Some(0..0)).await.unwrap_err().kind(), Kind::NotFound);
}

async fn lists_many_by_pages(store: &dyn Store) {
    let put = async |number: usize| store.put(&key(&format!("m/{number:04}")), body(b"x", 1), Condition::Always).await.unwrap();
    stream::iter(0..1100).map(put).buffer_unordered(8).collect::<Vec<_>>().await;
    assert_eq!(listed(store, "m/").await.len(), 1100);
    let first: Vec<_> = store.list("m/").take(3).try_collect().await.unwrap();
    assert_eq!(first.len(), 3);
}

fn folder() -> (tempfile::TempDir, Folder) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::new(temporary.path().join("archive"));
    (temporary, folder)
}

fn left_over(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("archive/.parts")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn folder_does_what_every_store_does() {
    let (temporary, folder) = folder();
    assert_eq!(listed(&folder, "").await, [""; 0], "a folder that is missing is empty");
    keeps_objects(&folder).await;
    has_conditions(&folder).await;
    what_breaks_off_is_not_there(&folder).await;
    lists_and_deletes(&folder).await;
    lists_many_by_pages(&folder).await;
    assert_eq!(left_over(temporary.path()), 0);
    let names: Vec<String> = folder.list("").map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert!(names.is_sorted(), "{names:?}");
}

#[tokio::test]
async fn names_cannot_leave_the_folder() {
    let (temporary, folder) = folder();
    let outside = temporary.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    folder.put(&key("a"), body(b"a", 1), Condition::Always).await.unwrap();
    let inside = temporary.path().join("archive");
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), inside.join("file")).unwrap();
    for name in ["link/secret", "link/new", "link/deep/new", "file"] {
        let name = key(name);
        for error in [
            folder.get(&name, None).await.map(drop).unwrap_err(),
            folder.put(&name, body(b"b", 1), Condition::Always).await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(error.kind(), Kind::Denied | Kind::NotFound), "{error}");
            assert!(error.kind() == Kind::NotFound || error.chain().contains("leads out"), "{}", error.chain());
        }
        assert_ne!(folder.delete(&name).await.map_err(|error| error.kind()), Err(Kind::Unavailable));
    }
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "nothing was put outside");
    assert_eq!(listed(&folder, "").await, ["a"], "links are not listed");
    let own = folder.put(&key(".parts/a"), body(b"", 1), Condition::Always).await.unwrap_err();
    assert_eq!(own.kind(), Kind::Wrong);
}

#[tokio::test]
async fn folder_that_cannot_be_written_says_what_to_do() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("file"), "").unwrap();
    let folder = Folder::new(temporary.path().join("file"));
    let error = folder.put(&key("a"), body(b"a", 1), Condition::Always).await.unwrap_err();
    assert_eq!(error.to_string(), format!("file://{}/file/a: it can't be put", temporary.path().display()));
    assert!(matches!(error.kind(), Kind::Wrong | Kind::Exists), "{:?}: {}", error.kind(), error.chain());
}

/// A pipe, which hangs whoever opens it until somebody opens its other end.
fn pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn folder_that_hangs_holds_up_nobody_else() {
    const PATIENCE: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(30);
    let (temporary, folder) = folder();
    let folder = folder.patient_for(PATIENCE);
    // As many as a sidecar has.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build().unwrap();
    runtime.block_on(async {
        folder.put(&key("a"), body(b"a", 1), Condition::Always).await.unwrap();
        let path = temporary.path().join("archive/pipe");
        pipe(&path);
        let hanging = key("pipe");
        // More than there are threads, and than may wait.
        let all = futures::future::join_all((0..40).map(|_| folder.get(&hanging, None)));
        let (began, others) = (std::time::Instant::now(), async {
            // They have been asked for by then.
            tokio::time::sleep(PATIENCE / 5).await;
            for number in 0..8 {
                let other = tokio::task::spawn_blocking(move || number);
                assert_eq!(tokio::time::timeout(PATIENCE / 2, other).await.expect("nobody else waits").unwrap(), number);
            }
        });
        let (all, ()) = tokio::join!(tokio::time::timeout(LONG, all), others);
        for error in all.expect("each has its time").into_iter().map(|got| got.map(drop).unwrap_err()) {
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(error.to_string().ends_with("archive/pipe: it can't be read (the disk does not answer)"), "{error}");
        }
        let late = folder.put(&key("b"), body(b"b", 1), Condition::Always).await.unwrap_err();
        assert!(late.kind() == Kind::Unavailable && began.elapsed() < LONG, "{late}");
        // Its server is back.
        let other_end = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        tokio::time::timeout(LONG, folder.settled()).await.unwrap();
        assert_eq!(got(&folder, "a", None).await, b"a");
        folder.put(&key("c"), body(b"c", 1), Condition::Always).await.unwrap();
        assert_eq!(folder.head(&key("b")).await.unwrap(), None, "what nobody waits for is not done later");
        drop(other_end);
        assert_eq!(left_over(temporary.path()), 0);
    });
}

#[tokio::test]
async fn what_is_given_up_leaves_no_file() {
    let (temporary, folder) = folder();
    let name = key("a");
    let endless = || stream::iter([Ok(Bytes::from_static(b"a"))]).chain(stream::pending()).boxed();
    for micros in 0..50 {
        let put = folder.put(&name, endless(), Condition::Always);
        tokio::time::timeout(Duration::from_micros(micros * 20), put).await.unwrap_err();
    }
    folder.settled().await;
    assert_eq!((left_over(temporary.path()), folder.head(&name).await.unwrap()), (0, None));
}

#[cfg(feature = "s3")]
mod s3 {
    use std::time::Instant;

    use archive::s3::{Bucket, Credentials, Settings};
    use e2e::{
        s3::{ACCESS_KEY, READER, SECRET_KEY, Server},
        testkit::relay::{Faults, Lane, Relay},
    };
    use tokio::time::timeout;

    use super::*;

    struct Access {
        folder: tempfile::TempDir,
        endpoint: String,
        _server: Arc<Server>,
    }

    impl Access {
        fn of((id, secret): (&str, &str)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("id"), format!("{id}\n")).unwrap();
            std::fs::write(folder.path().join("secret"), secret).unwrap();
            let server = Server::shared().unwrap();
            Self { folder, endpoint: server.endpoint(), _server: server }
        }

        async fn bucket(&self, name: &str) -> Bucket {
            let (access_key_id, secret_access_key) = (self.folder.path().join("id"), self.folder.path().join("secret"));
            let credentials = Credentials::Files { access_key_id, secret_access_key };
            let (bucket, endpoint) = (name.to_owned(), Some(self.endpoint.clone()));
            Bucket::open(&Settings { bucket, endpoint, credentials, ..Settings::default() }).await
        }
    }

    #[tokio::test]
    async fn bucket_does_what_every_store_does() {
        let access = Access::of((ACCESS_KEY, SECRET_KEY));
        let bucket = access.bucket("every").await;
        bucket.create().await.unwrap();
        keeps_objects(&bucket).await;
        has_conditions(&bucket).await;
        what_breaks_off_is_not_there(&bucket).await;
        lists_and_deletes(&bucket).await;
        lists_many_by_pages(&bucket).await;
        assert_eq!(bucket.open_uploads().await.unwrap(), 0, "what broke off is given up");
    }

    #[tokio::test]
    async fn upload_that_is_dropped_half_way_is_given_up() {
        let access = Access::of((ACCESS_KEY, SECRET_KEY));
        let bucket = access.bucket("dropped").await;
        bucket.create().await.unwrap();
        let endless = stream::iter([Ok(Bytes::from(noise(9 << 20)))]).chain(stream::pending()).boxed();
        let name = key("a");
        let put = bucket.put(&name, endless, Condition::Always);
        let mut put = Box::pin(put);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let begun = tokio::select! {
                ended = &mut put => panic!("{ended:?}"),
                uploads = bucket.open_uploads() => uploads.unwrap(),
            };
            if begun == 1 {
                break;
            }
            assert!(Instant::now() < deadline);
        }
        drop(put);
        while bucket.open_uploads().await.unwrap() > 0 {
            assert!(Instant::now() < deadline, "it is not given up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bucket.head(&name).await.unwrap(), None);
    }

    /// A body of more than a part, which goes on for ever or breaks off.
    fn long_body(piece: &Bytes, breaks_off: bool) -> Body {
        let piece = stream::iter([Ok(piece.clone())]);
        match breaks_off {
            true => piece.chain(stream::iter([Err(io::Error::other("it fell over"))])).boxed(),
            false => piece.chain(stream::pending()).boxed(),
        }
    }

    /// How many uploads are open once a bucket has given up what was begun.
    async fn left_open(bucket: &Bucket) -> usize {
        timeout(Duration::from_secs(120), bucket.settled()).await.expect("all are given up");
        bucket.open_uploads().await.unwrap()
    }

    #[tokio::test]
    async fn upload_that_is_dropped_before_its_id_is_known_is_given_up() {
        let mut access = Access::of((ACCESS_KEY, SECRET_KEY));
        let direct = access.bucket("unknown").await;
        direct.create().await.unwrap();
        let relay = Relay::start(access.endpoint.trim_start_matches("http://").parse().unwrap()).await.unwrap();
        access.endpoint = format!("http://{}", relay.address());
        let slow = access.bucket("unknown").await;
        slow.head(&key("a")).await.unwrap();
        // Answers take a second, and requests no time.
        relay.set(Faults { down: Lane { delay: Duration::from_secs(1), ..Lane::default() }, ..Faults::default() });
        let (name, piece) = (key("a"), Bytes::from(noise(9 << 20)));
        let mut put = slow.put(&name, long_body(&piece, false), Condition::Always);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let begun = tokio::select! {
                ended = &mut put => panic!("{ended:?}"),
                uploads = direct.open_uploads() => uploads.unwrap(),
            };
            if begun == 1 {
                break;
            }
            assert!(Instant::now() < deadline);
        }
        drop(put);
        assert_eq!(left_open(&slow).await, 0);
    }

    #[tokio::test]
    async fn upload_that_is_dropped_at_any_moment_is_given_up() {
        let access = Access::of((ACCESS_KEY, SECRET_KEY));
        let bucket = access.bucket("anytime").await;
        bucket.create().await.unwrap();
        let (name, piece) = (key("a"), Bytes::from(noise(9 << 20)));
        let (mut dropped, mut failed) = (0, 0);
        for moment in 0..50 {
            // With a body that breaks off, also while it is being given up.
            for breaks_off in [false, true] {
                let put = bucket.put(&name, long_body(&piece, breaks_off), Condition::Always);
                match timeout(Duration::from_millis(2 * moment), put).await {
                    Err(_) => dropped += 1,
                    Ok(ended) => {
                        assert_eq!(ended.unwrap_err().kind(), Kind::Source);
                        failed += 1;
                    }
                }
            }
            // Not all at once: the bucket shares this machine.
            if moment % 5 == 4 {
                assert_eq!(left_open(&bucket).await, 0, "after {moment}");
            }
        }
        println!("{dropped} dropped, {failed} have failed");
        assert_eq!(left_open(&bucket).await, 0);
        assert_eq!(bucket.head(&name).await.unwrap(), None);
    }

    #[test]
    fn upload_that_is_dropped_by_who_has_no_runtime_is_given_up_before_that_ends() {
        let access = Access::of((ACCESS_KEY, SECRET_KEY));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bucket = runtime.block_on(access.bucket("ended"));
        runtime.block_on(bucket.create()).unwrap();
        let (name, piece) = (key("a"), Bytes::from(noise(9 << 20)));
        let mut put = bucket.put(&name, long_body(&piece, false), Condition::Always);
        let deadline = Instant::now() + Duration::from_secs(30);
        while runtime.block_on(async {
            tokio::select! {
                ended = &mut put => panic!("{ended:?}"),
                uploads = bucket.open_uploads() => uploads.unwrap(),
            }
        }) == 0
        {
            assert!(Instant::now() < deadline);
        }
        drop(put);
        assert_eq!(runtime.block_on(left_open(&bucket)), 0);
    }

    #[tokio::test]
    async fn who_may_not_is_told_what_is_needed() {
        let (all, wrong, reader) = (Access::of((ACCESS_KEY, SECRET_KEY)), Access::of((ACCESS_KEY, "wrong")), Access::of(READER));
        all.bucket("denied").await.create().await.unwrap();
        let error = wrong.bucket("denied").await.put(&key("a"), body(b"a", 1), Condition::Always).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{}", error.chain());
        assert!(error.to_string().starts_with("s3://denied/a: it can't be put: it was answered with 403"), "{error}");
        let reader = reader.bucket("denied").await;
        let error = reader.put(&key("a"), body(b"a", 1), Condition::Always).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{}", error.chain());
        assert!(error.to_string().contains("PutObject"), "{error}");
        assert_eq!(reader.head(&key("a")).await.unwrap(), None);
        let none = Access::of((ACCESS_KEY, SECRET_KEY));
        std::fs::remove_file(none.folder.path().join("id")).unwrap();
        let error = none.bucket("denied").await.head(&key("a")).await.unwrap_err();
        assert!(error.kind() == Kind::Denied && error.chain().contains("id can't be read"), "{}", error.chain());
    }

    #[tokio::test]
    async fn server_that_is_not_there_is_said_so() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut access = Access::of((ACCESS_KEY, SECRET_KEY));
        access.endpoint = format!("http://{closed}");
        let error = access.bucket("b").await.head(&key("a")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
        assert!(error.to_string().contains("does the endpoint answer?"), "{error}");
    }
}
