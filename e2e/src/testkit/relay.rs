//! A TCP relay that breaks the network between two ends, each direction in its own way. Faults can change at any time, also for
//! the connections that are open.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const CHUNK: usize = 16 << 10;
/// Chunks on their way; more than a delayed line holds in tests, so that a delay is no rate limit.
const IN_FLIGHT: usize = 1024;

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// From the client to the target.
    pub up: Lane,
    /// From the target to the client.
    pub down: Lane,
    /// New connections are reset at once.
    pub refuse: bool,
}

/// What is wrong with one direction. Offsets count the bytes of a connection from zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lane {
    /// Time that each byte is under way.
    pub delay: Duration,
    /// Up to this much more, different for each chunk and the same in each run; the order of bytes stays.
    pub jitter: Duration,
    /// Bytes a second.
    pub rate: Option<NonZeroU32>,
    /// After so many bytes nothing is taken any more, as when a window is full.
    pub stall_after: Option<u64>,
    /// Bytes are taken and lost, as when the host behind has died.
    pub blackhole: bool,
    /// After so many bytes the connection ends.
    pub end_after: Option<(u64, End)>,
    /// One bit of the byte at this offset is wrong.
    pub flip: Option<u64>,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This direction is closed; the other one goes on.
    Fin,
    /// Both ends see a reset.
    Reset,
}

/// A running relay. It ends with all its connections when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    faults: watch::Sender<Faults>,
    accepted: AtomicU64,
    /// Cancelled and replaced when all connections are cut.
    cut: Mutex<CancellationToken>,
    /// Likewise, when all are forgotten.
    forgotten: Mutex<CancellationToken>,
}

impl Relay {
    /// Relays from a free port on loopback to `target`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(target: SocketAddr) -> std::io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), target).await
    }

    /// Relays from `address` to `target`.
    ///
    /// # Errors
    /// The address can't be listened on.
    pub async fn listen(address: SocketAddr, target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (faults, cut, forgotten) = (watch::Sender::new(Faults::default()), Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { target, faults, accepted: AtomicU64::new(0), cut, forgotten });
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Ok(Self { address, shared, _accepting: accepting })
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what is wrong, for open connections too.
    pub fn set(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// Resets all open connections.
    pub fn cut(&self) {
        cancel(&self.shared.cut);
    }

    /// Forgets all open connections, as a NAT does that was started again: a client that waits hears nothing more, and one that speaks is
    /// reset. New connections are not concerned.
    pub fn forget(&self) {
        cancel(&self.shared.forgotten);
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if shared.faults.borrow().refuse {
            reset_when_dropped(&client);
            continue;
        }
        let ends = [&shared.cut, &shared.forgotten].map(|end| end.lock().unwrap_or_else(PoisonError::into_inner).clone());
        tokio::spawn(connection(client, Arc::clone(&shared), ends));
    }
}

/// Makes the end of a connection a reset instead of a FIN.
pub(crate) fn reset_when_dropped(stream: &TcpStream) {
    // A socket that is gone already can't be reset.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn cancel(token: &Mutex<CancellationToken>) {
    std::mem::take(&mut *token.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>, [cut, forgotten]: [CancellationToken; 2]) {
    let Ok(mut target) = TcpStream::connect(shared.target).await else {
        reset_when_dropped(&client);
        return;
    };
    for stream in [&client, &target] {
        // Delays are the relay's to make.
        let _ = stream.set_nodelay(true);
    }
    let ended = {
        let ((client_read, client_write), (target_read, target_write)) = (client.split(), target.split());
        let faults = || shared.faults.subscribe();
        let both = async {
            tokio::try_join!(
                lane(client_read, target_write, faults(), |faults| faults.up),
                lane(target_read, client_write, faults(), |faults| faults.down),
            )
        };
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(Broken),
            () = forgotten.cancelled() => Err(Broken),
            result = both => result.map(drop),
        }
    };
    if forgotten.is_cancelled() {
        reset_when_dropped(&target);
        drop(target);
        let mut said = [0];
        tokio::select! { _ = client.read(&mut said) => {} () = cut.cancelled() => {} }
        reset_when_dropped(&client);
        return;
    }
    if ended.is_err() {
        reset_when_dropped(&client);
        reset_when_dropped(&target);
    }
}

/// The connection is to end with a reset.
struct Broken;

/// A piece of the line between the two ends.
enum Piece {
    Data(Instant, Bytes),
    Reset(Instant),
}

async fn lane(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    faults: watch::Receiver<Faults>,
    pick: fn(&Faults) -> Lane,
) -> Result<(), Broken> {
    let (line, pieces) = mpsc::channel(IN_FLIGHT);
    tokio::try_join!(take(from, line, faults.clone(), pick), give(to, pieces, faults, pick)).map(drop)
}

async fn take(
    mut from: ReadHalf<'_>,
    line: mpsc::Sender<Piece>,
    mut faults: watch::Receiver<Faults>,
    pick: fn(&Faults) -> Lane,
) -> Result<(), Broken> {
    let (mut offset, mut latest, mut buffer) = (0, Instant::now(), vec![0; CHUNK]);
    loop {
        let lane = pick(&faults.borrow_and_update());
        if let Some((_, how)) = lane.end_after.filter(|(after, _)| offset >= *after) {
            let due = latest.max(Instant::now() + lane.delay);
            return match how {
                End::Fin => Ok(()),
                End::Reset => line.send(Piece::Reset(due)).await.map_err(|_| Broken),
            };
        }
        let room = lane.room(offset);
        if room == 0 {
            faults.changed().await.map_err(|_| Broken)?;
            continue;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer[..room]) => read.map_err(|_| Broken)?,
            changed = faults.changed() => { changed.map_err(|_| Broken)?; continue }
        };
        if read == 0 {
            return Ok(());
        }
        if !lane.blackhole {
            let mut chunk = buffer[..read].to_vec();
            lane.damage(offset, &mut chunk);
            latest = latest.max(Instant::now() + lane.delay + lane.jitter_at(offset));
            line.send(Piece::Data(latest, chunk.into())).await.map_err(|_| Broken)?;
        }
        offset += read as u64;
    }
}

async fn give(
    mut to: WriteHalf<'_>,
    mut pieces: mpsc::Receiver<Piece>,
    faults: watch::Receiver<Faults>,
    pick: fn(&Faults) -> Lane,
) -> Result<(), Broken> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Reset(due) => {
                sleep_until(due).await;
                return Err(Broken);
            }
            Piece::Data(due, mut chunk) => {
                sleep_until(due).await;
                while !chunk.is_empty() {
                    let rate = pick(&faults.borrow()).rate;
                    // A tenth of a second's worth at a time makes a slow line look steady.
                    let size = rate.map_or(chunk.len(), |rate| chunk.len().min((rate.get() as usize / 10).max(1)));
                    let piece = chunk.split_to(size);
                    to.write_all(&piece).await.map_err(|_| Broken)?;
                    if let Some(rate) = rate {
                        sleep(Duration::from_secs(size as u64) / rate.get()).await;
                    }
                }
            }
        }
    }
    // The source is done, or was cut off by a FIN.
    to.shutdown().await.map_err(|_| Broken)
}

impl Lane {
    /// How many bytes may be taken at `offset`.
    fn room(&self, offset: u64) -> usize {
        let bounds = [self.stall_after, self.end_after.map(|(after, _)| after)];
        let nearest = bounds.into_iter().flatten().map(|bound| bound.saturating_sub(offset)).min();
        nearest.map_or(CHUNK, |left| usize::try_from(left).unwrap_or(CHUNK).min(CHUNK))
    }

    fn damage(&self, offset: u64, chunk: &mut [u8]) {
        let index = self.flip.and_then(|at| usize::try_from(at.checked_sub(offset)?).ok());
        if let Some(byte) = index.and_then(|index| chunk.get_mut(index)) {
            *byte ^= 1;
        }
    }

    fn jitter_at(&self, offset: u64) -> Duration {
        // The multiplier of a linear congruential generator spreads offsets well enough.
        let spread = offset.wrapping_add(1).wrapping_mul(6_364_136_223_846_793_005) >> 33;
        self.jitter.mul_f64(spread as f64 / f64::from(1_u32 << 31))
    }
}

/// Comma-separated: `delay=50ms`, `jitter=10ms`, `rate=1000`, `stall-after=100`, `blackhole`, `rst-after=100`, `fin-after=100`, `flip=7`.
impl FromStr for Lane {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut lane = Self::default();
        for fault in text.split(',').filter(|fault| !fault.is_empty()) {
            let (name, value) = fault.split_once('=').unwrap_or((fault, ""));
            let number = || value.parse::<u64>().with_context(|| format!("{fault}: expected a number of bytes"));
            match name {
                "delay" => lane.delay = duration(value)?,
                "jitter" => lane.jitter = duration(value)?,
                "rate" => lane.rate = Some(value.parse().with_context(|| format!("{fault}: expected bytes a second"))?),
                "stall-after" => lane.stall_after = Some(number()?),
                "blackhole" if value.is_empty() => lane.blackhole = true,
                "rst-after" => lane.end_after = Some((number()?, End::Reset)),
                "fin-after" => lane.end_after = Some((number()?, End::Fin)),
                "flip" => lane.flip = Some(number()?),
                _ => bail!(
                    "{fault}: expected delay=, jitter=, rate=, stall-after=, blackhole, rst-after=, fin-after= or flip=, separated by commas"
                ),
            }
        }
        Ok(lane)
    }
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let milliseconds = text.strip_suffix("ms").and_then(|number| number.parse().ok()).map(Duration::from_millis);
    let seconds = || text.strip_suffix('s').and_then(|number| number.parse().ok()).map(Duration::from_secs);
    milliseconds.or_else(seconds).ok_or_else(|| anyhow!("{text}: expected a time such as 50ms or 2s"))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::time::timeout;

    use super::*;

    /// A relay in front of a server that sends back what it gets, and a client of it.
    async fn echo(faults: Faults) -> (Relay, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        relay.set(faults);
        let client = TcpStream::connect(relay.address()).await.unwrap();
        (relay, client)
    }

    fn down(lane: &str) -> Faults {
        Faults { down: lane.parse().unwrap(), ..Faults::default() }
    }

    fn up(lane: &str) -> Faults {
        Faults { up: lane.parse().unwrap(), ..Faults::default() }
    }

    async fn until_end(client: &mut TcpStream) -> (Vec<u8>, std::io::Result<usize>) {
        let mut got = Vec::new();
        let result = timeout(Duration::from_secs(5), client.read_to_end(&mut got)).await.unwrap();
        (got, result)
    }

    #[tokio::test]
    async fn without_faults_all_bytes_pass_and_the_end_does() {
        let (relay, mut client) = echo(Faults::default()).await;
        let sent = vec![7; 100_000];
        let (mut read, mut write) = client.split();
        let mut got = Vec::new();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() });
        assert!(got == sent && relay.accepted() == 1);
    }

    #[tokio::test]
    async fn delay_holds_bytes_back() {
        let (_relay, mut client) = echo(down("delay=60ms,jitter=5ms")).await;
        let start = Instant::now();
        client.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(60));
    }

    #[tokio::test]
    async fn rate_spreads_bytes_over_time() {
        let (_relay, mut client) = echo(up("rate=1000")).await;
        let start = Instant::now();
        client.write_all(&[0; 200]).await.unwrap();
        client.read_exact(&mut [0; 200]).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn reset_comes_after_so_many_bytes() {
        let (_relay, mut client) = echo(down("rst-after=3")).await;
        client.write_all(b"abcdef").await.unwrap();
        let (got, result) = until_end(&mut client).await;
        assert_eq!((got.len() <= 3, result.unwrap_err().kind()), (true, ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn fin_comes_after_so_many_bytes_and_leaves_the_other_direction() {
        let (_relay, mut client) = echo(down("fin-after=3")).await;
        client.write_all(b"abcdef").await.unwrap();
        let (got, result) = until_end(&mut client).await;
        assert_eq!((got.as_slice(), result.unwrap()), (&b"abc"[..], 3));
        client.write_all(b"more").await.unwrap();
    }

    #[tokio::test]
    async fn stalled_direction_goes_on_when_the_fault_is_gone() {
        let (relay, mut client) = echo(up("stall-after=2")).await;
        client.write_all(b"abcd").await.unwrap();
        let mut got = [0; 2];
        client.read_exact(&mut got).await.unwrap();
        assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err());
        relay.set(Faults::default());
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"cd");
    }

    #[tokio::test]
    async fn black_hole_takes_bytes_and_gives_none() {
        let (_relay, mut client) = echo(up("blackhole")).await;
        client.write_all(&[0; 1 << 20]).await.unwrap();
        assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err());
    }

    #[tokio::test]
    async fn one_byte_is_damaged() {
        let (_relay, mut client) = echo(up("flip=1")).await;
        client.write_all(b"aaa").await.unwrap();
        let mut got = [0; 3];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"a`a");
    }

    #[tokio::test]
    async fn forgotten_connection_is_silent_until_its_client_speaks_and_new_ones_pass() {
        let (relay, mut waits) = echo(Faults::default()).await;
        waits.write_all(b"a").await.unwrap();
        waits.read_u8().await.unwrap();
        relay.forget();
        assert!(timeout(Duration::from_millis(50), waits.read_u8()).await.is_err());
        let mut new = TcpStream::connect(relay.address()).await.unwrap();
        new.write_all(b"b").await.unwrap();
        assert_eq!(new.read_u8().await.unwrap(), b'b');
        waits.write_all(b"c").await.unwrap();
        assert_eq!(waits.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn cut_resets_open_connections_and_refusal_new_ones() {
        let (relay, mut client) = echo(Faults::default()).await;
        client.write_all(b"a").await.unwrap();
        client.read_u8().await.unwrap();
        relay.cut();
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        relay.set(Faults { refuse: true, ..Faults::default() });
        let (_, result) = until_end(&mut TcpStream::connect(relay.address()).await.unwrap()).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn unknown_fault_is_refused_with_the_known_ones() {
        let error = "delay=5ms,lose=3".parse::<Lane>().unwrap_err().to_string();
        assert!(error.starts_with("lose=3: expected delay="), "{error}");
        assert!("delay=5".parse::<Lane>().is_err() && "rate=0".parse::<Lane>().is_err());
    }
}
