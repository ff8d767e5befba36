//! Origins and clients that follow a script over a raw socket, to the byte: for peers that no HTTP library would play.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::reset_when_dropped;

const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// What one end of a connection does, in order. At the end of the script the connection is closed.
#[derive(Debug, Clone, Default)]
pub struct Script(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Expect(Vec<u8>),
    ExpectThrough(Vec<u8>),
    ExpectEnd,
    ExpectReset,
    Send(Vec<u8>),
    Pause(Duration),
    CloseWriting,
    Reset,
}

impl Script {
    /// The script of a peer that closes at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads exactly these bytes; others are an error.
    #[must_use]
    pub fn expect(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Expect(bytes.as_ref().to_vec()))
    }

    /// Reads until these bytes have come, such as the empty line after a head.
    #[must_use]
    pub fn expect_through(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::ExpectThrough(bytes.as_ref().to_vec()))
    }

    /// Reads until the other end closes.
    #[must_use]
    pub fn expect_end(self) -> Self {
        self.then(Step::ExpectEnd)
    }

    /// Reads until the other end resets the connection.
    #[must_use]
    pub fn expect_reset(self) -> Self {
        self.then(Step::ExpectReset)
    }

    /// Sends these bytes.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(bytes.as_ref().to_vec()))
    }

    /// Does nothing for a while.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.then(Step::Pause(time))
    }

    /// Closes the direction towards the other end, and goes on reading.
    #[must_use]
    pub fn close_writing(self) -> Self {
        self.then(Step::CloseWriting)
    }

    /// Resets the connection; what follows is not done.
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// Plays the client: connects, follows the script, and returns all bytes that came.
    ///
    /// # Errors
    /// The other end did not do what the script expects; the message names the step and holds what came instead.
    pub async fn connect(self, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("could not connect to {address}"))?;
        self.play(stream).await
    }

    async fn play(self, mut stream: TcpStream) -> anyhow::Result<Vec<u8>> {
        stream.set_nodelay(true)?;
        let (mut got, mut used) = (Vec::new(), 0);
        for (index, step) in self.0.iter().enumerate() {
            let reset = matches!(step, Step::Reset);
            let play = async {
                let done = timeout(STEP_DEADLINE + step.pause(), step.play(&mut stream, &mut got, used)).await;
                done.unwrap_or_else(|_| bail!("nothing happened for {STEP_DEADLINE:?}"))
            };
            let played = play.await;
            used = played.with_context(|| {
                let came = String::from_utf8_lossy(&got[used..]).into_owned();
                format!("step {} of {} ({step}); what came: {came:?}", index + 1, self.0.len())
            })?;
            if reset {
                break;
            }
        }
        Ok(got)
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

impl Step {
    /// Returns how many of the bytes that came have been expected by now.
    async fn play(&self, stream: &mut TcpStream, got: &mut Vec<u8>, used: usize) -> anyhow::Result<usize> {
        match self {
            Self::Expect(bytes) => {
                while got.len() < used + bytes.len() && bytes.starts_with(&got[used..]) {
                    more(stream, got).await?;
                }
                if !got[used..].starts_with(bytes) {
                    bail!("other bytes came");
                }
                Ok(used + bytes.len())
            }
            Self::ExpectThrough(bytes) => loop {
                if let Some(at) = got[used..].windows(bytes.len()).position(|window| window == bytes) {
                    return Ok(used + at + bytes.len());
                }
                more(stream, got).await?;
            },
            Self::ExpectEnd => {
                stream.read_to_end(got).await?;
                Ok(got.len())
            }
            Self::ExpectReset => match stream.read_to_end(got).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(got.len()),
                Err(error) => Err(error.into()),
                Ok(_) => bail!("the connection was closed without a reset"),
            },
            Self::Send(bytes) => Ok(stream.write_all(bytes).await.map(|()| used)?),
            Self::Pause(time) => {
                sleep(*time).await;
                Ok(used)
            }
            Self::CloseWriting => Ok(stream.shutdown().await.map(|()| used)?),
            Self::Reset => {
                reset_when_dropped(stream);
                Ok(used)
            }
        }
    }

    fn pause(&self) -> Duration {
        if let Self::Pause(time) = self { *time } else { Duration::ZERO }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expect(bytes) => write!(f, "expect {:?}", String::from_utf8_lossy(bytes)),
            Self::ExpectThrough(bytes) => write!(f, "expect everything through {:?}", String::from_utf8_lossy(bytes)),
            Self::ExpectEnd => write!(f, "expect the end"),
            Self::ExpectReset => write!(f, "expect a reset"),
            Self::Send(bytes) => write!(f, "send {} bytes", bytes.len()),
            Self::Pause(time) => write!(f, "pause for {time:?}"),
            Self::CloseWriting => write!(f, "close the writing direction"),
            Self::Reset => write!(f, "reset"),
        }
    }
}

async fn more(stream: &mut TcpStream, got: &mut Vec<u8>) -> anyhow::Result<()> {
    match stream.read_buf(got).await? {
        0 => bail!("the connection ended"),
        _ => Ok(()),
    }
}

/// An origin that plays one script for each connection, in the order in which they come, and then takes no more.
#[derive(Debug)]
pub struct ScriptedOrigin {
    address: SocketAddr,
    playing: JoinHandle<anyhow::Result<Vec<Vec<u8>>>>,
}

impl ScriptedOrigin {
    /// Listens on a free port on loopback.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(scripts: Vec<Script>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Ok(Self { address: listener.local_addr()?, playing: tokio::spawn(play_all(listener, scripts)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end of all scripts, and returns what came over each connection.
    ///
    /// # Errors
    /// A connection did not come, or went otherwise than its script; the message says at which step.
    pub async fn finish(mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        (&mut self.playing).await.context("the origin panicked")?
    }
}

impl Drop for ScriptedOrigin {
    fn drop(&mut self) {
        self.playing.abort();
    }
}

async fn play_all(listener: TcpListener, scripts: Vec<Script>) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut playing = Vec::new();
    for (index, script) in scripts.into_iter().enumerate() {
        let accepted = timeout(2 * STEP_DEADLINE, listener.accept()).await;
        let (stream, _) = accepted.with_context(|| format!("connection {} did not come", index + 1))??;
        playing.push(tokio_util::task::AbortOnDropHandle::new(tokio::spawn(script.play(stream))));
    }
    let mut all = Vec::new();
    for (index, script) in playing.into_iter().enumerate() {
        all.push(script.await?.with_context(|| format!("connection {}", index + 1))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_END: &str = "\r\n\r\n";

    #[tokio::test]
    async fn both_ends_follow_their_scripts() {
        let script = Script::new().expect("GET / HTTP/1.1\r\n").expect_through(HEAD_END).send("HTTP/1.1 204 x\r\n\r\n");
        let origin = ScriptedOrigin::start(vec![script]).await.unwrap();
        let client = Script::new().send("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest").expect("HTTP/1.1 204 ").expect_end();
        assert_eq!(client.connect(origin.address()).await.unwrap(), b"HTTP/1.1 204 x\r\n\r\n");
        assert_eq!(origin.finish().await.unwrap(), [b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest"]);
    }

    #[tokio::test]
    async fn difference_is_reported_with_its_step_and_what_came() {
        let origin = ScriptedOrigin::start(vec![Script::new().send("hello").expect("yes")]).await.unwrap();
        Script::new().expect("hello").send("no!").connect(origin.address()).await.unwrap();
        let error = format!("{:#}", origin.finish().await.unwrap_err());
        assert_eq!(error, "connection 1: step 2 of 2 (expect \"yes\"); what came: \"no!\": other bytes came");
    }

    #[tokio::test]
    async fn reset_is_told_from_an_end() {
        let origin = ScriptedOrigin::start(vec![Script::new().expect("x").reset(), Script::new()]).await.unwrap();
        Script::new().send("x").expect_reset().connect(origin.address()).await.unwrap();
        let error = Script::new().expect_reset().connect(origin.address()).await.unwrap_err();
        assert!(format!("{error:#}").contains("closed without a reset"), "{error:#}");
    }

    #[tokio::test]
    async fn closed_direction_leaves_the_other_open() {
        let origin = ScriptedOrigin::start(vec![Script::new().expect_end().send("late")]).await.unwrap();
        let client = Script::new().close_writing().pause(Duration::from_millis(5)).expect("late").expect_end();
        client.connect(origin.address()).await.unwrap();
    }

    #[tokio::test]
    async fn connection_that_ends_early_is_an_error() {
        let origin = ScriptedOrigin::start(vec![Script::new()]).await.unwrap();
        let error = Script::new().expect("more").connect(origin.address()).await.unwrap_err();
        assert!(format!("{error:#}").ends_with("the connection ended"), "{error:#}");
    }
}
