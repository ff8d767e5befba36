//! What is given up when memory is short, step by step. The control group is a folder of the test's.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::Duration,
};

use sidecar::pressure::Group;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::{
    frames::{GOAWAY, HEADERS, Peer, get, request},
    support::{Counted, Origin, Proxy, eventually, field, read_head},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const STEP: &str = "fetchr_memory_pressure_step";

/// A proxy in a control group whose memory the test says.
struct Short {
    proxy: Proxy,
    folder: tempfile::TempDir,
}

impl Short {
    fn before(origin: &Origin) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("memory.max"), "1000").unwrap();
        fs::write(folder.path().join("memory.stat"), "inactive_file 0\n").unwrap();
        fs::write(folder.path().join("memory.current"), "500").unwrap();
        let proxy = Proxy::within(Some(Group::at(folder.path())), &format!("http://{}", origin.address), |_| {});
        Self { proxy, folder }
    }

    /// Uses so many thousandths of the limit, and waits until that is seen as this step.
    async fn uses(&self, used: u32, step: u32) {
        self.says(&used.to_string());
        eventually("the step", || self.proxy.metric(STEP) == f64::from(step)).await;
    }

    /// Writes what is used over what was there, at once: the kernel's files stay the same, too.
    fn says(&self, used: &str) {
        let file = File::options().write(true).open(self.folder.path().join("memory.current")).unwrap();
        file.write_all_at(format!("{used:<4}\n").as_bytes(), 0).unwrap();
    }

    fn reclaimed(&self, what: &str) -> f64 {
        self.proxy.metric(&format!("fetchr_memory_reclaimed_total{{what=\"{what}\"}}"))
    }
}

async fn origin() -> Origin {
    Origin::answering("HTTP/1.1 204 No Content\r\n\r\n").await
}

#[tokio::test]
async fn first_what_lies_idle_is_given_back_and_all_is_served() {
    let short = Short::before(&origin().await);
    let proxy = &short.proxy;
    let mut client = proxy.client().await;
    client.send(GET).await;
    assert_eq!(client.response().await.status, 204);
    eventually("its connection is idle", || proxy.metric("fetchr_upstream_connections_open") == 1.0).await;
    short.uses(860, 1).await;
    eventually("it is given back", || proxy.metric("fetchr_upstream_connections_open") == 0.0).await;
    assert_eq!(short.reclaimed("upstream_connections"), 1.0);
    client.send(GET).await;
    let response = client.response().await;
    assert_eq!((response.status, response.has("connection")), (204, false));
    assert_eq!(proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.status, 204, "new clients are served");
}

#[tokio::test]
async fn then_new_clients_are_refused_and_idle_ones_leave() {
    let short = Short::before(&origin().await);
    let proxy = &short.proxy;
    let mut idle = proxy.client().await;
    idle.send(GET).await;
    assert_eq!(idle.response().await.status, 204);
    let mut stream = Peer::connect(proxy.address).await;
    stream.send(&request(1, &get(&[]))).await;
    assert_eq!(stream.next(&[HEADERS]).await.unwrap().status(), 204);
    sleep(Duration::from_secs(1)).await; // one that was used just now may be about to be used again
    let mut used = proxy.client().await;
    used.send("GET / HTTP/1.1\r\n").await;
    eventually("all are open", || proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"http1\"}") == 2.0).await;
    let counted = Counted::by(proxy);
    short.uses(930, 2).await;
    let refused = proxy.ask(GET).await;
    assert_eq!((refused.status, refused.field("retry-after"), refused.field("connection")), (503, "1", "close"));
    assert!(refused.field("proxy-status").contains("memory_pressure"), "{}", refused.head);
    counted.once_more(proxy, "memory_pressure", "a new client").await;
    assert!(idle.rest().await.is_empty(), "it is closed");
    assert_eq!(short.reclaimed("client_connections"), 1.0);
    assert!(stream.next(&[GOAWAY]).await.is_some());
    while stream.next(&[GOAWAY]).await.is_some() {} // until it is closed
    used.send("host: a\r\n\r\n").await;
    let response = used.response().await;
    assert_eq!((response.status, response.field("connection")), (204, "close"), "a request under way is served");
    short.uses(880, 2).await;
    assert_eq!(proxy.ask(GET).await.status, 503, "the step does not come and go");
    short.uses(860, 1).await;
    assert_eq!(proxy.ask(GET).await.status, 204);
    short.uses(500, 0).await;
}

#[tokio::test]
async fn last_large_bodies_are_refused_and_what_is_kept_of_bodies_is_let_go() {
    let origin = Origin::scripted(|mut stream, _| async move {
        let Some(head) = read_head(&mut stream).await else { return };
        // A large body is not read to its end.
        if let Some("0" | "2" | "4") = field(&head, "content-length") {
            let length = field(&head, "content-length").unwrap().parse().unwrap();
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
        }
        let _ = stream.read_u8().await;
    })
    .await;
    let short = Short::before(&origin);
    let proxy = &short.proxy;
    proxy.apply(r#"[{"name": "again", "retry": {"methods": ["POST"], "maxBody": "1Mi"}}]"#);
    // All of them have begun to ask, since new connections are refused at this step.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\n").await;
        clients.push(client);
    }
    let mut uploads = proxy.client().await;
    uploads.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nxxx").await;
    let mut kept = proxy.client().await;
    kept.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nxx").await;
    eventually("all are open", || proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"http1\"}") == 6.0).await;
    eventually("the uploads are on their way", || origin.connections() == 2).await;
    short.uses(980, 3).await;
    let errors = || proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"memory_pressure\"}");
    for (client, (rest, status)) in clients.iter_mut().zip([
        ("content-length: 1000000\r\n\r\n", 503),
        ("transfer-encoding: chunked\r\n\r\n", 503),
        ("content-length: 0\r\n\r\n", 204),
        ("content-length: 2\r\n\r\nxx", 204),
    ]) {
        client.send(rest).await;
        let response = client.response().await;
        assert_eq!((response.status, response.field("connection")), (status, "close"), "{rest:?}: {}", response.text());
        assert!(status == 204 || response.field("retry-after") == "1");
    }
    uploads.send("xxx").await;
    assert_eq!(uploads.response().await.status, 503, "an upload on its way is ended");
    eventually("they are counted", || errors() == 3.0).await;
    kept.send("xx").await;
    assert_eq!(kept.response().await.status, 204);
    assert_eq!(short.reclaimed("kept_bodies"), 1.0, "of it alone: of the small one before nothing was kept");
}

#[tokio::test]
async fn nothing_is_given_up_once_memory_cannot_be_read_any_more() {
    let short = Short::before(&origin().await);
    short.uses(930, 2).await;
    assert_eq!(short.proxy.ask(GET).await.status, 503);
    short.says("none");
    eventually("the step", || short.proxy.metric(STEP) == 0.0).await;
    assert_eq!(short.proxy.ask(GET).await.status, 204);
    short.uses(930, 2).await;
}
