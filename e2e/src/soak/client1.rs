//! A client over HTTP/1.1, in clear or over TLS.

use std::io;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

use super::ask::Ask;
use super::ledger::{Answer, Outcome};
use super::pattern::{self, Check};
use super::wire::{self, LAST_CHUNK, read_body, read_head, write_body};

/// A socket, whatever is on it.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a WebSocket server makes of a key.
pub(super) fn accept(key: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes()))
}

/// A connection that carries one exchange after the other.
pub(super) struct Connection {
    read: BufReader<ReadHalf<Box<dyn Io>>>,
    write: WriteHalf<Box<dyn Io>>,
}

impl Connection {
    pub(super) fn new(io: Box<dyn Io>) -> Self {
        let (read, write) = tokio::io::split(io);
        Self { read: BufReader::new(read), write }
    }

    /// Sends a request and reads its answer, both at once, for an answer may come early. True if the connection may carry another.
    pub(super) async fn exchange(&mut self, ask: &Ask) -> (Outcome, bool) {
        let mut sent = None;
        let outcome = {
            let (sending, receiving) = (send(&mut self.write, ask), receive(&mut self.read, ask));
            tokio::pin!(sending, receiving);
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut receiving => break outcome,
                    // A connection that takes no more may still hold an answer.
                    done = &mut sending, if sent.is_none() => sent = Some(done.is_ok()),
                }
            }
        };
        let serves = matches!(&outcome, Outcome::Answer(answer) if answer.whole && !answer.closes);
        (outcome, serves && sent == Some(true))
    }

    /// Asks for a WebSocket; it is open if the answer has the status 101.
    pub(super) async fn open(&mut self, ask: &Ask) -> io::Result<Answer> {
        let mut head = head(ask);
        head += &format!(
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
        );
        self.write.write_all(head.as_bytes()).await?;
        self.write.flush().await?;
        let head = read_head(&mut self.read).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let switched = head.field("sec-websocket-accept") == Some(&accept(KEY));
        let answer = answer_of(&head);
        if head.status() == 101 && !switched {
            return Err(io::Error::other("the switch is not confirmed"));
        }
        Ok(answer)
    }

    /// Sends a message over a tunnel and reads its echo. `at` bytes have passed before.
    pub(super) async fn echo(&mut self, id: u64, at: usize, len: usize) -> io::Result<bool> {
        let message = pattern::bytes(id, at, len);
        let mut heard = vec![0; len];
        let write = async {
            self.write.write_all(&message).await?;
            self.write.flush().await
        };
        tokio::try_join!(write, self.read.read_exact(&mut heard))?;
        Ok(heard == message)
    }

    /// Ends a tunnel from this side; true if the other side ends it, too, and says nothing before.
    pub(super) async fn finish(&mut self) -> io::Result<bool> {
        self.write.shutdown().await?;
        Ok(self.read.fill_buf().await?.is_empty())
    }
}

fn head(ask: &Ask) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\nhost: soak\r\n", ask.method, ask.path);
    for (name, value) in ask.fields() {
        head += &format!("{name}: {value}\r\n");
    }
    head
}

async fn send(io: &mut (impl AsyncWrite + Unpin), ask: &Ask) -> io::Result<()> {
    let mut head = head(ask);
    let chunked = ask.chunked && ask.upload > 0;
    if chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if ask.upload > 0 || ask.method == http::Method::POST {
        head += &format!("content-length: {}\r\n", ask.upload);
    }
    io.write_all(format!("{head}\r\n").as_bytes()).await?;
    wire::rest(ask.write_pace).await;
    write_body(io, ask.id, ask.upload, chunked, ask.write_pace).await?;
    if chunked {
        io.write_all(LAST_CHUNK).await?;
    }
    io.flush().await
}

async fn receive(io: &mut BufReader<impl AsyncRead + Unpin>, ask: &Ask) -> Outcome {
    let head = loop {
        match read_head(io).await {
            Ok(Some(head)) if head.status() < 200 => {}
            Ok(Some(head)) => break head,
            Ok(None) => return Outcome::Gone("the connection ended".to_owned()),
            Err(error) => return Outcome::Gone(error.to_string()),
        }
    };
    let mut answer = answer_of(&head);
    let mut check = Check::new(ask.id);
    answer.whole = read_body(io, head.body(true), ask.read_pace, |bytes| check.feed(bytes)).await.is_ok();
    (answer.len, answer.good) = (check.len, check.good);
    Outcome::Answer(answer)
}

fn answer_of(head: &wire::Head) -> Answer {
    Answer {
        status: head.status(),
        id: head.number("x-id"),
        got: head.number("x-got"),
        round: head.number(super::proxy::ROUND),
        reason: head.field("proxy-status").map(str::to_owned),
        closes: head.closes() || head.body(true) == wire::Body::Close,
        ..Answer::default()
    }
}

/// How long pieces are rested between by those who are slow.
pub(super) const SLOW: Duration = Duration::from_millis(4);
