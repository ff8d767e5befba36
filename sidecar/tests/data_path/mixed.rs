//! Many clients at once, of every kind: whoever gets an answer gets the whole of its own, and nothing is left at the end.

use std::sync::Arc;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Client, Origin, Proxy, eventually, field, read_chunks, read_head};

const CLIENTS: u32 = 24;
const REQUESTS: usize = 60;

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    Chunked,
    /// Until the connection closes; only answers.
    Close,
}

/// What one client does with one request.
#[derive(Clone, Debug)]
struct Step {
    upload: usize,
    upload_framing: Framing,
    answer: usize,
    answer_framing: Framing,
    /// Leaves after so many bytes of the request.
    leaves_after: Option<usize>,
    /// The next one is sent before the answer to this one is read.
    pipelined: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![4 => Just(0usize), 4 => 1usize..2000, 1 => 2000usize..300_000];
    let framing = || prop_oneof![Just(Framing::Length), Just(Framing::Chunked)];
    let answer_framing = prop_oneof![3 => Just(Framing::Length), 3 => Just(Framing::Chunked), 1 => Just(Framing::Close)];
    let leaves = prop_oneof![12 => Just(None), 1 => (1usize..5000).prop_map(Some)];
    (size(), framing(), size(), answer_framing, leaves, any::<bool>()).prop_map(
        |(upload, upload_framing, answer, answer_framing, leaves_after, pipelined)| Step {
            upload,
            // The origin takes a length that is not kept for what it is.
            upload_framing: if leaves_after.is_some() { Framing::Length } else { upload_framing },
            answer,
            answer_framing,
            leaves_after,
            pipelined,
        },
    )
}

/// The bytes that belong to a request, so that those of another are seen.
fn bytes_of(id: &str, len: usize) -> Vec<u8> {
    id.bytes().cycle().take(len).collect()
}

fn framed(framing: Framing, body: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Length => [format!("content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
        Framing::Close => [b"connection: close\r\n\r\n", body].concat(),
        Framing::Chunked => {
            let mut out = b"transfer-encoding: chunked\r\n\r\n".to_vec();
            for chunk in body.chunks(1 + body.len() / 3) {
                out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
            out
        }
    }
}

/// Answers as the request's fields say, with bytes of the request's own, once it has read all of it.
async fn answer(mut stream: TcpStream) {
    // A client that leaves in the middle ends the connection.
    while let Some(head) = read_head(&mut stream).await {
        let id = field(&head, "x-id").unwrap().to_owned();
        let body = if let Some(len) = field(&head, "content-length") {
            let mut body = vec![0; len.parse().unwrap()];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            body
        } else if field(&head, "transfer-encoding").is_some() {
            read_chunks(&mut stream).await.0
        } else {
            Vec::new()
        };
        assert_eq!(body, bytes_of(&id, body.len()), "bytes of another request");
        let framing = match field(&head, "x-framing").unwrap() {
            "Length" => Framing::Length,
            "Chunked" => Framing::Chunked,
            _ => Framing::Close,
        };
        let answer = bytes_of(&id, field(&head, "x-answer").unwrap().parse().unwrap());
        let head = format!("HTTP/1.1 200 OK\r\nx-id: {id}\r\nx-got: {}\r\n", body.len());
        let written = stream.write_all(&[head.as_bytes(), &framed(framing, &answer)].concat()).await;
        if written.is_err() || framing == Framing::Close {
            return;
        }
    }
}

fn request(id: &str, step: &Step) -> Vec<u8> {
    let method = if step.upload > 0 { "PUT" } else { "GET" };
    let head = format!(
        "{method} / HTTP/1.1\r\nhost: a\r\nx-id: {id}\r\nx-answer: {}\r\nx-framing: {:?}\r\n",
        step.answer, step.answer_framing
    );
    if step.upload == 0 {
        return format!("{head}\r\n").into_bytes();
    }
    [head.as_bytes(), &framed(step.upload_framing, &bytes_of(id, step.upload))].concat()
}

async fn check(client: &mut Client, id: &str, step: &Step) {
    let response = client.response().await;
    assert_eq!(
        (response.status, response.field("x-id"), response.field("x-got")),
        (200, id, &*step.upload.to_string()),
        "{step:?}"
    );
    assert!(response.body == bytes_of(id, step.answer), "another answer's bytes in that of {id}: {step:?}");
}

async fn run(proxy: Arc<Proxy>, number: u32) {
    let seed = [u8::try_from(number).unwrap(); 32];
    let mut random = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let (mut client, mut unread) = (proxy.client().await, Vec::<(String, Step)>::new());
    for turn in 0..REQUESTS {
        let step = step().new_tree(&mut random).unwrap().current();
        let id = format!("c{number}-r{turn}.");
        let bytes = request(&id, &step);
        if let Some(len) = step.leaves_after {
            client.send(&bytes[..len.min(bytes.len())]).await;
            (client, unread) = (proxy.client().await, Vec::new());
            continue;
        }
        client.send(&bytes).await;
        let waits = step.pipelined && bytes.len() < 5000 && unread.len() < 4 && step.answer < 5000;
        unread.push((id, step));
        if !waits {
            for (id, step) in unread.drain(..) {
                check(&mut client, &id, &step).await;
            }
        }
    }
    for (id, step) in unread {
        check(&mut client, &id, &step).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_whole_and_its_clients_own_and_nothing_is_left() {
    let origin = Origin::scripted(|stream, _| answer(stream)).await;
    let proxy = Arc::new(Proxy::with_workers(2, &format!("http://{}", origin.address), |_| {}));
    let clients: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(run(Arc::clone(&proxy), number))).collect();
    for client in clients {
        client.await.expect("a client saw what it should not");
    }
    for gauge in
        ["http_server_active_requests{direction=\"inbound\"}", "fetchr_connections_open{direction=\"inbound\",kind=\"http1\"}"]
    {
        eventually(gauge, || proxy.metric(gauge) == 0.0).await;
    }
    assert_eq!(proxy.metric("fetchr_panics_total"), 0.0);
}
