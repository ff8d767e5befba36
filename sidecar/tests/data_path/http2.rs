//! HTTP/2 on either side, and between the versions.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{self, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    frames::{END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Peer, RST_STREAM, block, frame},
    support::{Origin, Proxy, eventually, field, ms, nobody, read_head},
};

async fn client(proxy: &Proxy) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// An origin over HTTP/2 that answers with what it saw, and ends with a trailer.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.version(), Version::HTTP_2);
                let seen = format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("te"));
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
                let frames = [body::Frame::data(Bytes::from(seen)), body::Frame::data(body), body::Frame::trailers(trailers)];
                let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                Ok::<_, Infallible>(Response::new(body))
            });
            let serving =
                hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    address
}

#[tokio::test]
async fn http2_client_reaches_an_http1_origin() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let mut sender = client(&proxy).await;
    let asks = (0..10).map(|n| {
        let request = Request::get(format!("http://shop.example/{n}")).header("cookie", "a=1").header("cookie", "b=2");
        sender.send_request(request.body(Full::default()).unwrap())
    });
    let asks: Vec<_> = asks.collect();
    for (n, response) in futures::future::join_all(asks).await.into_iter().enumerate() {
        let seen = response.unwrap().into_body().collect().await.unwrap().to_bytes();
        let seen = std::str::from_utf8(&seen).unwrap();
        assert!(seen.starts_with(&format!("GET /{n} HTTP/1.1\r\n")), "{seen}");
        assert_eq!((field(seen, "host"), field(seen, "cookie")), (Some("shop.example"), Some("a=1; b=2")), "{seen}");
    }
}

#[tokio::test]
async fn http1_client_reaches_an_http2_origin() {
    let proxy = Proxy::with(&format!("h2c://{}", origin().await), |_| {});
    for _ in 0..2 {
        let response = proxy.ask("POST /x HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 4\r\n\r\nbody").await;
        assert_eq!((response.status, response.text()), (200, "POST http://shop.example/x Nonebody"));
    }
    assert_eq!(proxy.metric("fetchr_upstream_connections_opened_total"), 1.0);
}

#[tokio::test]
async fn trailers_pass_from_http2_to_http2() {
    let proxy = Proxy::with(&format!("h2c://{}", origin().await), |_| {});
    let mut sender = client(&proxy).await;
    let request = Request::post("http://shop.example/Call").header("te", "trailers").body(Full::from("ask")).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "POST http://shop.example/Call Some(\"trailers\")ask");
}

#[tokio::test]
async fn stream_of_an_absent_upstream_fails_alone() {
    let proxy = Proxy::before(nobody().await);
    let mut sender = client(&proxy).await;
    for _ in 0..2 {
        let request = Request::get("http://a/").body(Full::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 502);
    }
}

#[tokio::test]
async fn own_answer_to_head_on_a_stream_has_no_body() {
    let proxy = Proxy::before(nobody().await);
    let request = Request::head("http://a/").body(Full::default()).unwrap();
    let response = client(&proxy).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_ne!(response.headers()["content-length"], "0");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn flood_of_fields_on_a_stream_is_431() {
    let proxy = Proxy::before(nobody().await);
    let mut request = Request::get("http://a/");
    for n in 0..150 {
        request = request.header(format!("x-{n}"), "1");
    }
    let response = client(&proxy).await.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 431);
}

/// A client that opens streams only to reset them makes the origin work for nothing.
#[tokio::test]
async fn flood_of_resets_ends_the_connection() {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let origin = Origin::scripted(move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            while let Some(head) = read_head(&mut stream).await {
                count.fetch_add(1, Ordering::SeqCst);
                if head.starts_with("GET /slow") {
                    let _ = stream.read_u8().await;
                    return;
                }
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut sender = client(&proxy).await;
    let held = tokio::spawn(sender.send_request(Request::get("http://a/slow").body(Full::default()).unwrap()));
    let mut sent = 0;
    while !sender.is_closed() {
        assert!(sent < 2000, "the flood goes on");
        let mut streams = Vec::new();
        for _ in 0..20 {
            let request = Request::get("http://a/slow").body(Full::default()).unwrap();
            let mut response = Box::pin(sender.send_request(request));
            let _ = futures::poll!(&mut response);
            streams.push(response);
        }
        sent += streams.len();
        // What is reset before it is accepted is bounded by the library's own count; these have reached the origin.
        eventually("the requests at the origin", || heads.load(Ordering::SeqCst) >= sent || sender.is_closed()).await;
    }
    assert!(held.await.unwrap().is_err(), "its other streams end with it");
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"reset_flood\"}"), 1.0);
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 204, "others are served");
}

/// hyper does not ask a body for more while the client's window is closed, so the body's own limits don't count then.
#[tokio::test]
async fn client_that_keeps_its_window_closed_is_cut_off() {
    let proxy = Proxy::with(&format!("http://{}", Origin::echo_head().await.address), |settings| {
        settings.upstream.idle_timeout = ms(200);
        settings.upstream.max_connections_per_host = 1;
    });
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.initial_stream_window_size(0).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://a/").body(Full::<Bytes>::default()).unwrap();
    let mut held = sender.send_request(request).await.unwrap();
    assert_eq!(held.status(), 200);
    let reason = "fetchr_errors_total{direction=\"inbound\",reason=\"client_timeout\"}";
    eventually("the count", || proxy.metric(reason) == 1.0).await;
    assert!(held.body_mut().frame().await.unwrap().is_err(), "the stream is reset");
    assert_eq!(proxy.metric("http_server_active_requests{direction=\"inbound\"}"), 0.0);
    let other = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(other.status, 200, "the only connection to the origin is free again: {}", other.head);
}

#[tokio::test]
async fn large_answer_arrives_whole_through_a_small_window() {
    const LEN: usize = 1 << 20;
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; LEN]).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.initial_stream_window_size(1000).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(Request::get("http://a/").body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-length"], LEN.to_string());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), LEN);
    assert!(!proxy.metrics.encode().contains("reason=\"client_"), "nobody left and nobody was late");
}

/// An origin over HTTP/2 that allows one stream a connection, and holds each request until `wave` of them are there.
async fn one_at_a_time(wave: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let barrier = Arc::new(tokio::sync::Barrier::new(wave));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let barrier = Arc::clone(&barrier);
            let service = service_fn(move |request: Request<Incoming>| {
                let barrier = Arc::clone(&barrier);
                async move {
                    if request.uri().path() == "/wave" {
                        barrier.wait().await;
                    }
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok")))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.max_concurrent_streams(1).serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

const WAVE: &str = "GET /wave HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn streams_beyond_the_upstreams_limit_get_further_connections() {
    let proxy = Proxy::with(&format!("h2c://{}", one_at_a_time(3).await), |_| {});
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "ok", "from now on the limit is known");
    let answers = futures::future::join_all((0..3).map(|_| proxy.ask(WAVE))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(proxy.metric("fetchr_upstream_connections_opened_total"), 3.0);
}

#[tokio::test]
async fn streams_beyond_the_cap_of_connections_wait() {
    let proxy = Proxy::with(&format!("h2c://{}", one_at_a_time(2).await), |settings| {
        settings.upstream.max_connections_per_host = 2;
    });
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "ok");
    let answers = futures::future::join_all((0..8).map(|_| proxy.ask(WAVE))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(proxy.metric("fetchr_upstream_connections_opened_total"), 2.0);
    assert_eq!(proxy.metric("fetchr_upstream_retries_total"), 0.0, "none was sent only to be refused");
}

/// What a scripted origin does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answer,
    /// RST_STREAM with REFUSED_STREAM.
    Refuse,
    /// GOAWAY, by which it leaves out this request.
    Leave,
}

/// Each worker has a connection of its own, for connections can't be shared; streams of one must not keep the other from serving.
#[tokio::test]
async fn worker_without_a_connection_opens_one_though_the_cap_is_lower() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let both = Arc::new(tokio::sync::Barrier::new(2));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let both = Arc::clone(&both);
            let service = service_fn(move |_: Request<Incoming>| {
                let both = Arc::clone(&both);
                async move {
                    both.wait().await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("ok"))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let proxy = Proxy::with_workers(2, &format!("h2c://{address}"), |settings| settings.upstream.max_connections_per_host = 1);
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    for client in [&mut first, &mut second] {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    }
    assert_eq!((first.response().await.text(), second.response().await.text()), ("ok", "ok"));
}

/// An origin that reads frames of HTTP/2 and does with the n-th request what stands at n.
async fn scripted(script: &'static [Does]) -> Origin {
    let requests = Arc::new(AtomicUsize::new(0));
    Origin::scripted(move |stream, _| {
        let requests = Arc::clone(&requests);
        async move {
            let Some(mut peer) = Peer::accept(stream, &[]).await else { return };
            while let Some(Frame { stream, .. }) = peer.next(&[HEADERS]).await {
                let answer = match script[requests.fetch_add(1, Ordering::SeqCst)] {
                    Does::Answer => frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "200")])),
                    Does::Refuse => frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes()),
                    Does::Leave => frame(GOAWAY, 0, 0, &[(stream - 2).to_be_bytes(), 0_u32.to_be_bytes()].concat()),
                };
                peer.send(&answer).await;
            }
        }
    })
    .await
}

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn refused_stream_is_tried_once_more_whatever_its_method() {
    let origin = scripted(&[Does::Refuse, Does::Answer, Does::Refuse, Does::Refuse]).await;
    let proxy = Proxy::with(&format!("h2c://{}", origin.address), |_| {});
    assert_eq!(proxy.ask(POST).await.status, 200);
    assert_eq!(proxy.metric("fetchr_upstream_retries_total"), 1.0);
    assert_eq!(proxy.ask(POST).await.status, 502, "twice refused is enough");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn request_that_a_leaving_upstream_left_out_goes_to_a_new_connection() {
    let origin = scripted(&[Does::Answer, Does::Leave, Does::Answer]).await;
    let proxy = Proxy::with(&format!("h2c://{}", origin.address), |_| {});
    assert_eq!(proxy.ask(POST).await.status, 200);
    assert_eq!(proxy.ask(POST).await.status, 200);
    assert_eq!((origin.connections(), proxy.metric("fetchr_upstream_retries_total")), (2, 1.0));
}

#[tokio::test]
async fn refused_request_whose_body_is_gone_is_not_sent_again() {
    let origin = scripted(&[Does::Refuse, Does::Answer]).await;
    let proxy = Proxy::with(&format!("h2c://{}", origin.address), |_| {});
    let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
    assert_eq!((answer.status, proxy.metric("fetchr_upstream_retries_total")), (502, 0.0));
}

/// A body that the test feeds.
type Fed = StreamBody<tokio_stream::wrappers::UnboundedReceiverStream<Result<body::Frame<Bytes>, Infallible>>>;

#[tokio::test]
async fn upload_of_a_stream_goes_on_while_its_download_pauses() {
    const LEN: usize = 4 << 20;
    let (origin, uploaded) = Origin::both_ways(LEN).await;
    let proxy = Proxy::before(origin.address);
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Fed>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (feed, fed) = tokio::sync::mpsc::unbounded_channel();
    let body = StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(fed));
    let request = Request::post("http://a/").header("content-length", LEN).body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    // The download has begun and fills its window; only now the upload comes.
    for _ in 0..LEN / 65536 {
        feed.send(Ok(body::Frame::data(Bytes::from(vec![b'u'; 65536])))).unwrap();
    }
    drop(feed);
    tokio::time::timeout(crate::support::LONG, uploaded.notified()).await.expect("the upload to pass while nothing is read");
    let body = tokio::time::timeout(crate::support::LONG, response.into_body().collect()).await.expect("all of it in time");
    assert_eq!(body.unwrap().to_bytes().len(), LEN);
}

#[tokio::test]
async fn upload_that_its_upstream_left_unread_takes_nothing_of_the_next_request() {
    // It answers the first request of a connection at once, leaves its body alone, and echoes the others.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let unread = Arc::new(std::sync::Mutex::new(Vec::new()));
        let service = service_fn(move |request: Request<Incoming>| {
            let unread = Arc::clone(&unread);
            async move {
                if request.uri().path() == "/early" {
                    unread.lock().unwrap().push(request); // dropped, it would reset the stream
                    return Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("early")));
                }
                unread.lock().unwrap().clear();
                Ok(Response::new(Full::from(request.into_body().collect().await.unwrap().to_bytes())))
            }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.initial_stream_window_size(1000).serve_connection(TokioIo::new(stream), service).await;
    });
    let proxy = Proxy::with(&format!("h2c://{address}"), |_| {});
    let mut client = proxy.client().await;
    client.send(format!("POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 40000\r\n\r\n{}", "x".repeat(40000))).await;
    assert_eq!(client.response().await.text(), "early");
    client.send("POST /next HTTP/1.1\r\nhost: a\r\ncontent-length: 3000\r\n\r\n").await;
    for _ in 0..3 {
        client.send("y".repeat(1000)).await;
    }
    assert_eq!(client.response().await.text(), "y".repeat(3000));
}
