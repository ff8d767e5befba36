//! Interim answers (1xx) of an upstream on their way to the client.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use crate::support::{Origin, Proxy, field, read_head};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An origin that says `first` to each request, and its answer once it is told to.
async fn origin(first: impl AsRef<str>, answer: &Arc<Notify>) -> Origin {
    let (first, answer) = (first.as_ref().to_owned(), Arc::clone(answer));
    Origin::scripted(move |mut stream, _| {
        let (first, answer) = (first.clone(), Arc::clone(&answer));
        async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(first.as_bytes()).await.unwrap();
                answer.notified().await;
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

fn counted(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metric(&format!("fetchr_interim_responses_total{{outcome=\"{outcome}\"}}"))
}

#[tokio::test]
async fn client_has_them_before_there_is_an_answer() {
    let answer = Arc::new(Notify::new());
    let proxy = Proxy::before(origin(format!("{HINTS}HTTP/1.1 102 Processing\r\n\r\n"), &answer).await.address);
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send(GET).await;
        let hints = read_head(&mut client.0).await.unwrap();
        assert!(hints.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{hints}");
        assert_eq!((field(&hints, "link"), field(&hints, "date")), (Some("</a>"), None));
        assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 102 Processing\r\n"));
        answer.notify_one();
        assert_eq!(client.response().await.text(), "ok", "the connection goes on");
    }
    assert_eq!((counted(&proxy, "passed"), counted(&proxy, "dropped")), (4.0, 0.0));
}

#[tokio::test]
async fn they_are_cleaned_and_edited_like_answers() {
    let answer = Arc::new(Notify::new());
    answer.notify_one();
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\nkeep-alive: timeout=5\r\nx-fetchr-route: forged\r\n\
                 content-length: 5\r\nserver: secret\r\n\r\n";
    let proxy = Proxy::before(origin(hints, &answer).await.address);
    proxy.apply(r#"[{"name": "hints", "headers": {"response": {"remove": ["server"]}}}]"#);
    let mut client = proxy.client().await;
    client.send(GET).await;
    let hints = read_head(&mut client.0).await.unwrap();
    assert_eq!((field(&hints, "link"), field(&hints, "via")), (Some("</a>"), Some("1.1 fetchr-test-in")), "{hints}");
    for name in ["connection", "x-hop", "keep-alive", "x-fetchr-route", "content-length", "transfer-encoding", "server"] {
        assert_eq!(field(&hints, name), None, "{name} in {hints}");
    }
    assert_eq!(client.response().await.text(), "ok");
    proxy.metrics.register(sidecar::route::register);
    let edits = "fetchr_header_edits_total{route=\"shop/test/hints\",part=\"response\",mode=\"enforce\"}";
    assert_eq!(proxy.metric(edits), 1.0, "of the answer, however many came before it");
}

#[tokio::test]
async fn seventeenth_is_refused_and_so_is_a_malformed_one() {
    let answer = Arc::new(Notify::new());
    for (first, passed) in [
        (HINTS.repeat(17), 16),
        ("HTTP/1.1 103 Early Hints\nlink: </a>\n\n".to_owned(), 0),
        ("HTTP/1.1 103 Early Hints\r\nlink : </a>\r\n\r\n".to_owned(), 0),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>,\r\n </b>\r\n\r\n".to_owned(), 0),
    ] {
        let proxy = Proxy::before(origin(first, &answer).await.address);
        let mut client = proxy.client().await;
        client.send(GET).await;
        for _ in 0..passed {
            assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 103"));
        }
        let response = client.response().await;
        assert_eq!(response.status, 502);
        assert!(response.field("proxy-status").contains("http_protocol_error"), "{}", response.head);
    }
}

#[tokio::test]
async fn they_come_while_the_body_is_still_sent_and_before_a_100() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(HINTS.as_bytes()).await.unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    for (status, sends) in [("103", ""), ("100", "hel"), ("102", "lo")] {
        let head = read_head(&mut client.0).await.unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        client.send(sends).await;
    }
    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn clients_that_know_none_get_none() {
    let answer = Arc::new(Notify::new());
    answer.notify_one();
    let proxy = Proxy::before(origin(HINTS, &answer).await.address);
    let old = proxy.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((old.status, old.text()), (200, "ok"));
    answer.notify_one();
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), counted(&proxy, "dropped"), counted(&proxy, "passed")), (200, 2.0, 0.0));
}
