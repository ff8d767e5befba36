//! Connections that end at each byte of an exchange, by a FIN or a reset, on either side: no answer is wrong, no request is lost without
//! a word, and none that may not be repeated reaches the origin twice.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Peer, SETTINGS, block, frame},
    support::{LONG, Origin, Proxy, eventually, field, read_head},
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Fin,
    Reset,
}

const CUTS: [Cut; 2] = [Cut::Fin, Cut::Reset];

async fn end(mut stream: TcpStream, cut: Cut) {
    match cut {
        Cut::Fin => {
            let _ = stream.shutdown().await;
            // Closing with bytes unread would be a reset.
            let _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
        }
        Cut::Reset => reset(&stream),
    }
}

/// The connection is reset when it is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

/// How often the origin saw each request: its head, and all of it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashMap<String, (usize, usize)>>>);

impl Seen {
    fn head(&self, head: &str) -> String {
        let id = field(head, "x-id").unwrap_or_default().to_owned();
        self.0.lock().unwrap().entry(id.clone()).or_default().0 += 1;
        id
    }

    fn whole(&self, id: &str) {
        self.0.lock().unwrap().get_mut(id).unwrap().1 += 1;
    }

    fn of(&self, id: &str) -> (usize, usize) {
        self.0.lock().unwrap().get(id).copied().unwrap_or_default()
    }
}

/// Reads the body of a request; false if it ends too early.
async fn read_body(stream: &mut TcpStream, head: &str) -> bool {
    if field(head, "transfer-encoding").is_some() {
        let mut last = Vec::new();
        while !last.ends_with(b"0\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => last.push(byte),
                Err(_) => return false,
            }
        }
        return true;
    }
    let length = field(head, "content-length").map_or(0, |length| length.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.is_ok()
}

/// Answers requests; one that says so is answered up to a byte, and then cut.
async fn origin(seen: Seen, answer: &'static str) -> Origin {
    Origin::scripted(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            while let Some(head) = try_read_head(&mut stream).await {
                let id = seen.head(&head);
                if !read_body(&mut stream, &head).await {
                    return;
                }
                seen.whole(&id);
                let cut = field(&head, "x-cut").map(|cut| cut.split_once(' ').unwrap());
                let length = cut.map_or(answer.len(), |(_, at)| at.parse().unwrap());
                if stream.write_all(&answer.as_bytes()[..length]).await.is_err() {
                    return;
                }
                match cut {
                    Some(("Fin", _)) => return end(stream, Cut::Fin).await,
                    Some(_) => return end(stream, Cut::Reset).await,
                    None if field(answer, "content-length").is_none() && field(answer, "transfer-encoding").is_none() => return,
                    None => {}
                }
            }
        }
    })
    .await
}

/// A head; none if the connection ends before.
async fn try_read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// The status and the body of an answer that is whole.
pub(crate) fn whole(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = format!("{head}\r\n");
    let status = head.split(' ').nth(1)?.parse().unwrap();
    if field(&head, "transfer-encoding").is_some() {
        let mut joined = String::new();
        let mut rest = body;
        loop {
            let (size, after) = rest.split_once("\r\n")?;
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                return after.ends_with("\r\n").then(|| (status, joined.into_bytes()));
            }
            joined.push_str(after.get(..size)?);
            rest = after.get(size + 2..)?;
        }
    }
    let length: usize = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    (body.len() == length).then(|| (status, body.as_bytes().to_vec()))
}

fn request(method: &str, id: &str, more: &str) -> String {
    let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
    format!("{method} / HTTP/1.1\r\nhost: a\r\nx-id: {id}\r\n{more}{body}")
}

/// A request with its number, as bytes.
type Written = Box<dyn Fn(&str) -> Vec<u8>>;

const ANSWERS: [&str; 3] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\nhello",
];

#[tokio::test]
async fn answer_that_is_cut_is_never_whole_and_a_post_is_sent_once() {
    for answer in ANSWERS {
        let seen = Seen::default();
        let proxy = Proxy::before(origin(seen.clone(), answer).await.address);
        let head = answer.find("\r\n\r\n").unwrap() + 4;
        let delimited = answer.contains("content-length") || answer.contains("chunked");
        for (method, pooled, cut) in [("POST", true), ("POST", false), ("GET", true), ("GET", false)]
            .into_iter()
            .flat_map(|(method, pooled)| CUTS.map(|cut| (method, pooled, cut)))
        {
            for at in 0..=answer.len() {
                let id = format!("{method}-{pooled}-{cut:?}-{at}");
                let mut client = proxy.client().await;
                if pooled {
                    client.send(request("GET", &format!("{id}-before"), "")).await;
                    assert_eq!(client.response().await.text(), "hello", "{id}");
                }
                client.send(request(method, &id, &format!("connection: close\r\nx-cut: {cut:?} {at}\r\n"))).await;
                let got = whole(&client.rest().await);
                let full = got == Some((200, b"hello".to_vec()));
                let failed = got.as_ref().is_none_or(|(status, _)| *status == 502);
                // A body without a length ends where its connection is closed, whatever the origin meant.
                let by_close = !delimited && cut == Cut::Fin && at >= head;
                let right = match () {
                    () if by_close => got == Some((200, answer.as_bytes()[head..at].to_vec())),
                    () if at == answer.len() && cut == Cut::Fin => full,
                    () if at == answer.len() => full || failed,
                    () => failed,
                };
                assert!(right, "{answer:?} {id}: {got:?}");
                let (heads, _) = seen.of(&id);
                assert!(heads == 1 || (heads == 2 && method == "GET" && at == 0), "{answer:?} {id}: sent {heads} times");
            }
        }
        eventually("the end of all", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
    }
}

#[tokio::test]
async fn request_that_is_cut_is_never_whole_at_the_origin() {
    let seen = Seen::default();
    let proxy = Proxy::before(origin(seen.clone(), ANSWERS[0]).await.address);
    let h1 = |body: &str| {
        let body = body.to_owned();
        Box::new(move |id: &str| format!("POST / HTTP/1.1\r\nhost: a\r\nx-id: {id}\r\n{body}").into_bytes()) as Written
    };
    let h2: Written = Box::new(|id| {
        let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/"), ("x-id", id)];
        let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head, &frame(DATA, 0, 1, b"bo"), &frame(DATA, END_STREAM, 1, b"dy")].concat()
    });
    let requests = [
        ("length", h1("content-length: 4\r\n\r\nbody")),
        ("chunked", h1("transfer-encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\nx-sum: 1\r\n\r\n")),
        ("stream", h2),
    ];
    let post = request("POST", "after", "");
    for (kind, request) in requests {
        for cut in CUTS {
            let length = request(&format!("0000-{cut:?}-{kind}")).len();
            for at in 0..length {
                let id = format!("{at:04}-{cut:?}-{kind}");
                let bytes = request(&id);
                let mut client = proxy.client().await;
                client.send(&bytes[..at]).await;
                if at + 1 == length {
                    eventually("the part at the origin", || seen.of(&id).0 == 1).await;
                }
                if cut == Cut::Reset {
                    reset(&client.0);
                } else {
                    let _ = client.0.shutdown().await;
                    client.rest().await;
                }
                drop(client);
                if at % 20 == 0 {
                    let open =
                        |kind: &str| proxy.metric(&format!("fetchr_connections_open{{direction=\"inbound\",kind=\"{kind}\"}}"));
                    eventually("their end", || open("detecting") + open("http1") + open("http2") == 0.0).await;
                }
            }
        }
    }
    eventually("the end of all", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
    for (id, (heads, whole)) in seen.0.lock().unwrap().iter() {
        assert!(*heads <= 1 && *whole == 0, "{id}: {heads} heads, {whole} whole");
    }
    let answer = proxy.ask(&post).await;
    assert_eq!((answer.text(), seen.of("after")), ("hello", (1, 1)), "others are served");
}

/// The upstream ends its connection when it has read so many bytes of the second request.
#[tokio::test]
async fn post_whose_upstream_leaves_while_it_reads_is_not_sent_again() {
    for method in ["POST", "GET"] {
        for cut in CUTS {
            let second = request(method, "x", "").len();
            for at in (0..second).step_by(3) {
                let begun = Arc::new(AtomicUsize::new(0));
                let count = Arc::clone(&begun);
                let origin = Origin::scripted(move |mut stream, number| {
                    let count = Arc::clone(&count);
                    async move {
                        if number == 0 {
                            read_head(&mut stream).await.unwrap();
                            stream.write_all(ANSWERS[0].as_bytes()).await.unwrap();
                        }
                        for _ in 0..at {
                            if stream.read_u8().await.is_err() {
                                return;
                            }
                            // The first byte of a request.
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        end(stream, cut).await;
                    }
                })
                .await;
                let proxy = Proxy::before(origin.address);
                let mut client = proxy.client().await;
                client.send(request("GET", "first", "")).await;
                assert_eq!(client.response().await.text(), "hello");
                client.send(request(method, "x", "connection: close\r\n")).await;
                let got = whole(&client.rest().await).map(|(status, _)| status);
                assert_eq!(got, Some(502), "{method} {cut:?} {at}");
                let sent = begun.load(Ordering::SeqCst);
                assert!(sent <= at || method == "GET", "{method} {cut:?} {at}: {sent} bytes");
                assert!(origin.connections() <= 2, "{method} {cut:?} {at}");
            }
        }
    }
}

/// An upstream over HTTP/2 whose answer is cut.
#[tokio::test]
async fn answer_of_a_stream_that_is_cut_is_never_whole_and_its_request_is_sent_once() {
    let head = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]));
    let answer = [
        head,
        frame(DATA, 0, 1, b"he"),
        frame(DATA, 0, 1, b"llo"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "1")])),
    ]
    .concat();
    for cut in CUTS {
        for at in 0..=answer.len() {
            let requests = Arc::new(AtomicUsize::new(0));
            let (count, part) = (Arc::clone(&requests), answer[..at].to_vec());
            let origin = Origin::scripted(move |mut stream, _| {
                let (count, part) = (Arc::clone(&count), part.clone());
                async move {
                    if stream.read_exact(&mut [0; PREFACE.len()]).await.is_err() {
                        return;
                    }
                    let mut peer = Peer(stream);
                    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
                    if peer.next(&[HEADERS]).await.is_none() {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    while peer.next(&[DATA]).await.is_some_and(|data| data.flags & END_STREAM == 0) {}
                    peer.send(&part).await;
                    end(peer.0, cut).await;
                }
            })
            .await;
            let proxy = Proxy::with(&format!("h2c://{}", origin.address), |_| {});
            let mut client = proxy.client().await;
            client.send(request("POST", "x", "connection: close\r\n")).await;
            let got = whole(&client.rest().await);
            let full = got == Some((200, b"hello".to_vec()));
            let failed = got.as_ref().is_none_or(|(status, _)| *status == 502);
            let right = if at < answer.len() { failed } else { full || (failed && cut == Cut::Reset) };
            assert!(right, "{cut:?} {at}: {got:?}");
            assert_eq!(requests.load(Ordering::SeqCst), 1, "{cut:?} {at}");
        }
    }
}
