//! Connections to one server. Who asks for one bounds how long that may take.

use std::{fmt, io, sync::Arc};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
};
use rustls::pki_types::ServerName;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    task::{AbortHandle, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    Failed, failed,
    map::is_primary,
    settings::{Address, Mode, Settings, User},
};
use crate::tls;

/// Bytes of a password.
const LONGEST_PASSWORD: u64 = 4096;

/// A connection that has shown who it is. Clones are the same one, which is closed when the last is dropped, whatever is under way on it.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: MultiplexedConnection,
    driver: Arc<Driver>,
}

/// The task that writes and reads.
struct Driver {
    task: AbortHandle,
    ended: CancellationToken,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// In clear or TLS.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Unmade {
    /// What that says of the server: it is away, or it is there and they don't trust each other.
    pub(super) failed: Failed,
    why: RedisError,
}

impl From<Unmade> for RedisError {
    fn from(unmade: Unmade) -> Self {
        unmade.why
    }
}

impl fmt::Display for Unmade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

/// One step to a connection, which who asks waits for until then. Whatever comes of it but success, an error says which step it was.
pub(super) async fn step<T, E: fmt::Display>(
    until: Instant,
    what: impl fmt::Display,
    work: impl Future<Output = Result<T, E>>,
) -> RedisResult<T> {
    Ok(judged(until, what, |_| Failed::Away, work).await?)
}

/// The same for a step whose error tells what is wrong.
async fn judged<T, E: fmt::Display>(
    until: Instant,
    what: impl fmt::Display,
    judge: impl FnOnce(&E) -> Failed,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Unmade> {
    match timeout_at(until, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(why)) => Err(Unmade { failed: judge(&why), why: failed(format!("{what}: {why}")) }),
        Err(_) => Err(Unmade { failed: Failed::Away, why: failed(format!("{what}: no answer in time")) }),
    }
}

/// Whether it is there, and does not let us in.
fn bars(error: &RedisError) -> Failed {
    let is_refused = error.kind() == ErrorKind::AuthenticationFailed
        || error.code().is_some_and(|code| ["NOAUTH", "NOPERM", "WRONGPASS"].contains(&code));
    if is_refused { Failed::Barred } else { Failed::Away }
}

impl Settings {
    /// Connects to a server that keeps data. With sentinels it must be a primary: they may be wrong.
    pub(super) async fn connect(&self, to: &Address, until: Instant) -> Result<Connection, Unmade> {
        let mut made = self.connect_as(to, &self.user, until).await?;
        self.sign_of_life(to, &mut made, until).await?;
        Ok(made)
    }

    /// Connects to whom that user is known.
    pub(super) async fn connect_as(&self, to: &Address, user: &User, until: Instant) -> Result<Connection, Unmade> {
        let (info, socket) = (self.info(user, until).await?, self.socket(to, until).await?);
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let made = MultiplexedConnection::new_with_config(&info, socket, config);
        let (inner, driver) = judged(until, format!("{to} lets nobody in"), bars, made).await?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            driver.await;
        });
        Ok(Connection { inner, driver: Arc::new(Driver { task: task.abort_handle(), ended }) })
    }

    /// Asks a server that keeps data whether it is there, and of use.
    pub(super) async fn sign_of_life(&self, at: &Address, connection: &mut Connection, until: Instant) -> Result<(), Unmade> {
        let what = format!("{at} gives no sign of life");
        if !matches!(self.mode, Mode::Sentinel { .. }) {
            return judged(until, what, bars, redis::cmd("PING").query_async(&mut connection.inner)).await;
        }
        let role: Value = judged(until, what, bars, redis::cmd("ROLE").query_async(&mut connection.inner)).await?;
        if is_primary(&role) { Ok(()) } else { Err(Unmade { failed: Failed::Away, why: failed(format!("{at} is no primary")) }) }
    }

    /// A connection that hears what is published on a channel.
    pub(super) async fn subscribe(
        &self,
        to: &Address,
        user: &User,
        channel: &str,
        until: Instant,
    ) -> RedisResult<(PubSubSink, PubSubStream)> {
        let (info, socket) = (self.info(user, until).await?, self.socket(to, until).await?);
        let made = step(until, format!("{to} lets nobody in"), PubSub::new(&info, socket)).await?;
        let (mut sink, messages) = made.split();
        step(until, format!("{to} has nobody listen"), sink.subscribe(channel)).await?;
        Ok((sink, messages))
    }

    /// With the password as it is now: Secrets are renewed.
    async fn info(&self, user: &User, until: Instant) -> Result<RedisConnectionInfo, Unmade> {
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(name) = &user.name {
            info = info.set_username(name);
        }
        if let Some(file) = &user.password {
            let read = async {
                let mut password = String::new();
                File::open(file).await?.take(LONGEST_PASSWORD).read_to_string(&mut password).await?;
                io::Result::Ok(password)
            };
            let what = format!("the password in {} can't be read", file.display());
            let password = judged(until, what, |_| Failed::Barred, read).await?;
            info = info.set_password(password.trim_end_matches(['\r', '\n']));
        }
        Ok(info)
    }

    async fn socket(&self, to: &Address, until: Instant) -> Result<Box<dyn Socket>, Unmade> {
        let Address { host, port } = to;
        let connected = async {
            let socket = TcpStream::connect((&**host, *port)).await?;
            socket.set_nodelay(true)?;
            io::Result::Ok(socket)
        };
        let socket = judged(until, format!("no connection to {to}"), |_| Failed::Away, connected).await?;
        let Some(settings) = self.tls.clone() else { return Ok(Box::new(socket)) };
        let untrusted = |why: String| Unmade { failed: Failed::Untrusted, why: failed(why) };
        let name = settings.server_name.clone().unwrap_or_else(|| host.to_string());
        let name = ServerName::try_from(name)
            .map_err(|_| untrusted(format!("{host} can't be the name of a certificate: write redis.tls.serverName")))?;
        // With the files as they are now, which takes the disk a while.
        let secrets = self.secrets.clone();
        let read = async { spawn_blocking(move || tls::client_config(&settings, &secrets)).await.map_err(io::Error::other) };
        let config = judged(until, "redis.tls", |_| Failed::Untrusted, read).await?;
        let config = config.map_err(|why| untrusted(format!("redis.tls: {why}")))?;
        // A port that is not for TLS may wait for more, and say nothing.
        let shaken = TlsConnector::from(config).connect(name, socket);
        Ok(Box::new(judged(until, format!("no TLS with {to}"), by_tls, shaken).await?))
    }
}

/// Whether it was there, and what it showed was not accepted.
fn by_tls(error: &io::Error) -> Failed {
    if error.kind() == io::ErrorKind::InvalidData { Failed::Untrusted } else { Failed::Away }
}

impl Connection {
    /// Waits until it is closed.
    pub(super) async fn closed(&self) {
        self.driver.ended.cancelled().await;
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.ended.is_cancelled()
    }

    pub(super) async fn one(&mut self, command: &Cmd, asking: bool) -> RedisResult<Value> {
        if !asking {
            return self.inner.req_packed_command(command).await?.extract_error();
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(command.clone());
        let answers = self.many(&pipeline, 0, 1, true).await?;
        answers.into_iter().next().unwrap_or_default().extract_error()
    }

    /// With `asking`, of a node that is given a slot, and serves it only for who says so before each command (`ASK`).
    pub(super) async fn many(
        &mut self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
        asking: bool,
    ) -> RedisResult<Vec<Value>> {
        if !asking {
            return self.inner.req_packed_commands(pipeline, offset, count).await;
        }
        let mut asked = redis::pipe();
        for command in pipeline.cmd_iter() {
            asked.cmd("ASKING").add_command(command.clone());
        }
        let answers = self.inner.req_packed_commands(&asked, 0, asked.len()).await?;
        Ok(answers.into_iter().skip(1).step_by(2).skip(offset).take(count).collect())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
