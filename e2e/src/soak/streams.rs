//! What both ends over HTTP/2 do with the bodies of their streams.

use std::future::poll_fn;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::pattern;
use super::wire::{PIECE, rest};

/// What is under way of a stream, and of a connection.
pub(super) const WINDOWS: [u32; 2] = [128 << 10, 1 << 20];

/// Sends bytes as far as the other end has room.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await.context("the stream is over")??;
        }
        let room = stream.capacity().min(bytes.len());
        stream.send_data(bytes.split_to(room), false)?;
    }
    Ok(())
}

/// Sends `len` bytes of exchange `id` in pieces of any size, and rests after each.
pub(super) async fn send_body(stream: &mut SendStream<Bytes>, id: u64, len: usize, pace: Duration) -> anyhow::Result<()> {
    let mut at = 0;
    while at < len {
        let piece = pattern::bytes(id, at, fastrand::usize(1..=PIECE).min(len - at));
        at += piece.len();
        send(stream, piece.into()).await?;
        rest(pace).await;
    }
    Ok(())
}

/// Reads a body to its end, and rests after each piece.
pub(super) async fn read_body(body: &mut RecvStream, pace: Duration, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
    while let Some(bytes) = next(body).await? {
        take(&bytes);
        rest(pace).await;
    }
    Ok(())
}

/// The next piece of a body; none at its end.
pub(super) async fn next(body: &mut RecvStream) -> anyhow::Result<Option<Bytes>> {
    let Some(bytes) = body.data().await else { return Ok(None) };
    let bytes = bytes?;
    body.flow_control().release_capacity(bytes.len())?;
    Ok(Some(bytes))
}

/// Two halves of a stream whose other end sends back what it gets.
pub(super) struct Echo {
    pub(super) up: SendStream<Bytes>,
    pub(super) down: RecvStream,
}

impl Echo {
    /// Sends a message and reads its echo. `at` bytes have passed before.
    pub(super) async fn message(&mut self, id: u64, at: usize, len: usize) -> anyhow::Result<bool> {
        let (message, down) = (Bytes::from(pattern::bytes(id, at, len)), &mut self.down);
        let hear = async {
            let mut heard = Vec::with_capacity(len);
            while heard.len() < len {
                heard.extend_from_slice(&next(down).await?.context("the echo ended early")?);
            }
            anyhow::Ok(heard)
        };
        let (heard, ()) = tokio::try_join!(hear, send(&mut self.up, message.clone()))?;
        Ok(heard == message)
    }

    /// Ends the stream from this side, and reads to its end; the trailers, if there are some.
    pub(super) async fn finish(&mut self) -> anyhow::Result<http::HeaderMap> {
        self.up.send_data(Bytes::new(), true)?;
        while let Some(bytes) = next(&mut self.down).await? {
            if !bytes.is_empty() {
                bail!("{} bytes came that nobody has sent", bytes.len());
            }
        }
        Ok(self.down.trailers().await?.unwrap_or_default())
    }
}
