//! `fetchr cache export`, `import` and `warm` with proxies that run, and what is left of a cache when its proxy was killed.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use e2e::{
    process::Process,
    s3,
    testkit::relay::{Faults, Lane, Relay},
};

use crate::{
    run::{DEADLINE, Proxy, document, get, policy, terminate},
    supervised::{kill, worker},
    support::{FETCHR, Said, command, run},
};

pub(crate) const CACHING: &str = "cache: {ttl: {default: 60s}, maxObjectSize: 64Ki}";
const DRAIN: &str = "{delay: 0s, timeout: 10s}";

/// An origin whose answers tell their paths, many times over, with or without a validator.
pub(crate) struct Origin {
    pub(crate) port: u16,
    asked: Arc<AtomicUsize>,
}

impl Origin {
    pub(crate) fn start(fields: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                thread::spawn(move || serve(&stream, fields, &count));
            }
        });
        Self { port, asked }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn body(path: &str) -> String {
    format!("{path} ").repeat(300)
}

/// Bytes of an answer that can't be packed.
const NOISE: usize = 4 << 20;

fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..NOISE).map(|_| next()).collect()
}

fn serve(stream: &TcpStream, fields: &str, asked: &AtomicUsize) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(line) = lines.next() {
        for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
        let path = line.split(' ').nth(1).unwrap_or_default();
        asked.fetch_add(1, Ordering::SeqCst);
        if path.starts_with("/noise/") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {NOISE}\r\n\r\n");
            if { stream }.write_all(head.as_bytes()).and_then(|()| { stream }.write_all(&noise())).is_err() {
                return;
            }
            continue;
        }
        let answer = match path {
            "/error" => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/private" => "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
            path => format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{}", body(path).len(), body(path)),
        };
        if { stream }.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

pub(crate) fn caching() -> String {
    policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", CACHING)
}

fn start(origin: &Origin) -> Proxy {
    Proxy::start_as(Path::new(FETCHR), &caching(), origin.port, DRAIN)
}

pub(crate) fn cache(proxy: &Proxy, subcommand: &str, args: &[&str]) -> Said {
    run(&mut asks(proxy, subcommand, args))
}

fn asks(proxy: &Proxy, subcommand: &str, args: &[&str]) -> Command {
    let (port, state) = (proxy.port_of("admin").port().to_string(), proxy.state().to_str().unwrap());
    let mut command = command(&[&["cache", subcommand, "--admin-port", &port, "--state-dir", state], args].concat());
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

fn file(folder: &tempfile::TempDir) -> (PathBuf, String) {
    let path = folder.path().join("answers.fxc");
    (path.clone(), path.to_str().unwrap().to_owned())
}

#[test]
fn what_one_proxy_exports_another_one_imports() {
    let (origin, folder) = (Origin::start("etag: \"1\"\r\n"), tempfile::tempdir().unwrap());
    let (one, other) = (start(&origin), start(&origin));
    for path in ["/a", "/b", "/b/c"] {
        one.get(path);
    }
    let (path, name) = file(&folder);
    let said = cache(&one, "export", &[&name]);
    assert_eq!((said.code, said.stdout.starts_with("3 answers, "), said.stderr.as_str()), (0, true, ""), "{said:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
    let again = cache(&one, "export", &[&name]);
    assert_eq!((again.code, again.stderr.contains("--force takes its place")), (1, true), "{again:?}");
    let part = cache(&one, "export", &[&name, "--force", "--prefix", "http://localhost/b", "-o", "json"]);
    assert_eq!((part.code, part.json()["answers"].as_u64()), (0, Some(2)), "{part:?}");
    assert_eq!(part.json()["bytes"].as_u64(), Some(fs::metadata(&path).unwrap().len()));

    let dry = cache(&other, "import", &[&name, "--dry-run"]);
    assert_eq!((dry.code, dry.stdout.starts_with("would import 2 of 2 answers, ")), (0, true), "{dry:?}");
    let said = cache(&other, "import", &[&name]);
    assert!(said.code == 0 && said.stdout.starts_with("imported 2 of 2 answers, "), "{said:?}");
    assert!(said.stdout.contains("\nto validate   2: the origin is asked"), "{said:?}");
    let twice = cache(&one, "import", &[&name, "-o", "json"]).json();
    assert_eq!((&twice["imported"], &twice["skipped"]["Newer"]), (&0.into(), &2.into()));
    assert!(other.get("/b").contains("fwd=stale"), "it is asked about first");
}

#[test]
fn damaged_file_is_refused_before_it_is_sent() {
    let (origin, folder) = (Origin::start(""), tempfile::tempdir().unwrap());
    let proxy = start(&origin);
    proxy.get("/a");
    let (path, name) = file(&folder);
    assert_eq!(cache(&proxy, "export", &[&name]).code, 0);
    let whole = fs::read(&path).unwrap();
    for (bytes, words) in
        [(&whole[..whole.len() - 1], "it is cut off: its end is missing"), (&b"hello"[..], "byte 0: this is no file of answers")]
    {
        fs::write(&path, bytes).unwrap();
        let said = cache(&proxy, "import", &[&name]);
        assert!(said.code == 1 && said.stderr.contains(words) && said.stderr.contains(&name), "{said:?}");
    }
    let nobody = run(&mut command(&["cache", "export", "x.fxc", "--state-dir", "/nonexistent", "--admin-port", "1"]));
    assert_eq!((nobody.code, nobody.stderr.contains("no proxy answers on its admin port")), (4, true), "{nobody:?}");
    assert!(!Path::new("x.fxc").exists());
    for args in [&["export"][..], &["import"], &["export", "a", "--to", "s3://b/c"], &["import", "--from", "ftp://a"]] {
        assert_eq!(cache(&proxy, args[0], &args[1..]).code, 2, "{args:?}");
    }
}

#[test]
fn objects_in_folders_and_buckets_are_as_good_as_files() {
    let server = s3::Server::start().unwrap();
    let (origin, folder) = (Origin::start("etag: \"1\"\r\n"), tempfile::tempdir().unwrap());
    let proxy = start(&origin);
    proxy.get("/a");
    let endpoint = server.endpoint();
    let settings = archive::s3::Settings { bucket: "caches".to_owned(), endpoint: Some(endpoint.clone()), ..Default::default() };
    make_bucket(settings, &folder);
    let in_folder = format!("file://{}/archive/a.fxc", folder.path().display());
    for url in [in_folder.as_str(), "s3://caches/web/a.fxc"] {
        let with = |subcommand: &str, args: &[&str]| {
            let mut command = asks(&proxy, subcommand, &[args, &["--s3-endpoint", &endpoint]].concat());
            command.env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
            run(&mut command)
        };
        let said = with("export", &["--to", url]);
        assert!(said.code == 0 && said.stdout.ends_with(&format!(" in {url}\n")), "{said:?}");
        let again = with("export", &["--to", url]);
        assert_eq!((again.code, again.stderr.contains("--force takes its place")), (1, true), "{again:?}");
        assert_eq!(with("export", &["--to", url, "--force"]).code, 0);
        assert_eq!(with("import", &["--from", url, "-o", "json"]).json()["skipped"]["Newer"], 1);
        let missing = with("import", &["--from", &format!("{url}.none")]);
        assert_eq!((missing.code, missing.stderr.contains(&format!("{url}.none"))), (1, true), "{missing:?}");
    }
}

fn make_bucket(settings: archive::s3::Settings, folder: &tempfile::TempDir) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { bucket(settings, folder).await.create().await.unwrap() });
}

/// With the credentials in files of a folder.
async fn bucket(settings: archive::s3::Settings, folder: &tempfile::TempDir) -> archive::s3::Bucket {
    let (access_key_id, secret_access_key) = (folder.path().join("id"), folder.path().join("secret"));
    fs::write(&access_key_id, s3::ACCESS_KEY).unwrap();
    fs::write(&secret_access_key, s3::SECRET_KEY).unwrap();
    let credentials = archive::s3::Credentials::Files { access_key_id, secret_access_key };
    archive::s3::Bucket::open(&archive::s3::Settings { credentials, ..settings }).await
}

#[test]
fn proxy_that_has_no_time_for_its_last_snapshot_leaves_nothing_of_it_in_the_bucket() {
    let (server, folder) = (s3::Server::start().unwrap(), tempfile::tempdir().unwrap());
    let origin = Origin::start("");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let settings = archive::s3::Settings {
        bucket: "caches".to_owned(),
        endpoint: Some(server.endpoint()),
        ..archive::s3::Settings::default()
    };
    let direct = runtime.block_on(bucket(settings, &folder));
    runtime.block_on(direct.create()).unwrap();
    let relay = runtime.block_on(Relay::start(server.endpoint().trim_start_matches("http://").parse().unwrap())).unwrap();
    let persisted = |listen: u16| {
        let folder = folder.path().display();
        let credentials = format!("{{accessKeyIDFile: {folder}/id, secretAccessKeyFile: {folder}/secret}}");
        let s3 = format!("{{bucket: caches, endpoint: \"http://{}\", credentials: {credentials}}}", relay.address());
        document(listen, origin.port, "{delay: 0s, timeout: 4s}")
            + &format!("  archive: {{backend: S3, s3: {s3}}}\n  cache: {{persistence: {{interval: 1h}}}}\n")
    };
    let mut proxy = Proxy::start_with(Path::new(FETCHR), &caching().replace("64Ki", "8Mi"), persisted);
    const READ: &str = "fetchr_cache_snapshots_total{operation=\"read\",result=\"none\"} ";
    proxy.eventually("it knows that there is no snapshot", |proxy| figure(proxy, READ) == 1.0);
    for number in 0..5 {
        assert!(get_bytes(&proxy, &format!("/noise/{number}")) > NOISE);
    }
    // It takes a minute to send all of it.
    let rate = std::num::NonZeroU32::new(300_000);
    relay.set(Faults { up: Lane { rate, ..Lane::default() }, ..Faults::default() });
    terminate(&proxy.child);
    proxy.eventually("the upload has begun", |_| runtime.block_on(direct.open_uploads()).unwrap() == 1);
    assert_eq!(proxy.exit().code(), Some(0), "{}", proxy.log());
    assert!(proxy.log().contains("The last snapshot of the cache was not written in time."), "{}", proxy.log());
    assert_eq!(runtime.block_on(direct.open_uploads()).unwrap(), 0);
}

/// Bytes of an answer with its head.
fn get_bytes(proxy: &Proxy, path: &str) -> usize {
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap()
}

#[test]
fn warm_asks_for_each_url_once_and_tells_what_came() {
    let (origin, folder) = (Origin::start("etag: \"1\"\r\n"), tempfile::tempdir().unwrap());
    let (proxy, other) = (start(&origin), start(&origin));
    proxy.get("/old");
    let list = folder.path().join("urls");
    fs::write(
        &list,
        "# pages\nhttp://localhost/old\nhttp://localhost/new?a\n\nhttp://localhost/private\nhttp://localhost/new?a\n",
    )
    .unwrap();
    let said = cache(&proxy, "warm", &["-f", list.to_str().unwrap(), "http://localhost/given", "--rate", "1000"]);
    let rows: Vec<Vec<&str>> = said.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let counts: Vec<_> = rows.iter().map(|row| (row[0], row[row.len() - 2])).collect();
    assert_eq!((said.code, counts), (0, vec![("Stored", "2"), ("Hit", "1"), ("NotStored:", "1")]), "{said:?}");
    assert!(proxy.get("/new?a").contains("fetchr; hit"));
    let failed = cache(&proxy, "warm", &["http://localhost/error", "http://localhost/old", "-o", "json"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert_eq!(failed.json()["failures"][0]["why"], "status 503");
    let (_, name) = file(&folder);
    assert_eq!(cache(&proxy, "export", &[&name]).code, 0);
    let anew = cache(&other, "warm", &["-f", &name, "-o", "json"]);
    assert_eq!((anew.code, &anew.json()["results"][0]["requests"]), (0, &3.into()), "{anew:?}");
    assert!(other.get("/given").contains("fetchr; hit"));
    for (args, code, words) in [
        (&["/a"][..], 2, "is not like http://localhost/products"),
        (&["http://localhost/", "--listener", "none"], 2, "the proxy has no listener none"),
        (&["http://localhost/", "--concurrency", "0"], 2, "0"),
        (&[], 2, "URL"),
    ] {
        let said = cache(&proxy, "warm", args);
        assert_eq!((said.code, said.stderr.contains(words)), (code, true), "{args:?}: {said:?}");
    }
}

/// A `redis-server` of the test's own.
fn redis() -> (Process, u16, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder.path());
    (Process::spawn("redis-server", command, &folder.path().join("log")).unwrap(), port, folder)
}

fn figure(proxy: &Proxy, line: &str) -> f64 {
    let page = get(proxy.metrics(), "/metrics");
    page.lines().find_map(|found| found.strip_prefix(line)).map_or(0.0, |value| value.trim().parse().unwrap())
}

#[test]
fn killed_proxy_has_nine_tenths_of_its_hits_again_and_no_wrong_body() {
    const URLS: usize = 300;
    let (origin, archive, (_redis, port, _folder)) = (Origin::start(""), tempfile::tempdir().unwrap(), redis());
    let persisted = |listen: u16| {
        document(listen, origin.port, DRAIN)
            + &format!(
                "  redis: {{endpoints: [\"127.0.0.1:{port}\"]}}\n  archive: {{backend: File, file: {{path: {}}}}}\n  \
                 cache: {{persistence: {{interval: 1s}}}}\n",
                archive.path().display()
            )
    };
    let mut proxy = Proxy::start_with(Path::new(FETCHR), &caching(), persisted);
    proxy.eventually("it knows of purges", |proxy| figure(proxy, "fetchr_cache_cut_off ") == 0.0);
    let round = |proxy: &Proxy| {
        let hits = (0..URLS).filter(|number| {
            let answer = proxy.get(&format!("/page/{number}"));
            assert!(answer.ends_with(&format!("\r\n\r\n{}", body(&format!("/page/{number}")))), "{answer}");
            answer.contains("fetchr; hit")
        });
        hits.count()
    };
    assert_eq!((round(&proxy), round(&proxy)), (0, URLS));
    const WRITTEN: &str = "fetchr_cache_snapshots_total{operation=\"write\",result=\"done\"} ";
    let before = figure(&proxy, WRITTEN);
    // One may have been under way.
    proxy.eventually("all of it is written", |proxy| figure(proxy, WRITTEN) >= before + 2.0);
    kill(worker(&proxy));
    proxy.eventually("it has read what it had", |proxy| {
        figure(proxy, "fetchr_cache_snapshots_total{operation=\"read\",result=\"done\"} ") == 1.0
    });
    let (asked, hits) = (origin.asked(), round(&proxy));
    println!("{hits} of {URLS} are hits again");
    assert!(hits * 10 >= URLS * 9, "{hits} of {URLS}: {}", proxy.log());
    assert_eq!(origin.asked() - asked, URLS - hits);
}
