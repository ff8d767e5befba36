//! Connections to one server. Who asks for one bounds how long that may take.

use std::{fmt, io, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
};
use rustls::pki_types::ServerName;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    failed,
    map::is_primary,
    settings::{Address, Mode, Settings, User},
};
use crate::tls;

/// How long each step to a connection may take, so that it is known which one failed.
const STEP: Duration = Duration::from_millis(1500);
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

impl Settings {
    /// Connects to a server that keeps data. With sentinels it must be a primary: they may be wrong.
    pub(super) async fn connect(&self, to: &Address) -> RedisResult<Connection> {
        let mut made = self.connect_as(to, &self.user).await?;
        self.sign_of_life(to, &mut made).await?;
        Ok(made)
    }

    /// Connects to whom that user is known.
    pub(super) async fn connect_as(&self, to: &Address, user: &User) -> RedisResult<Connection> {
        let (info, socket) = (self.info(user).await?, self.socket(to).await?);
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let made = MultiplexedConnection::new_with_config(&info, socket, config).await;
        let (inner, driver) = made.map_err(|why| refused(to, &why))?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            driver.await;
        });
        Ok(Connection { inner, driver: Arc::new(Driver { task: task.abort_handle(), ended }) })
    }

    /// Asks a server that keeps data whether it is there, and of use.
    pub(super) async fn sign_of_life(&self, at: &Address, connection: &mut Connection) -> RedisResult<()> {
        if !matches!(self.mode, Mode::Sentinel { .. }) {
            let answer = redis::cmd("PING").query_async::<()>(&mut connection.inner).await;
            return answer.map_err(|why| refused(at, &why));
        }
        let role: Value = redis::cmd("ROLE").query_async(&mut connection.inner).await.map_err(|why| refused(at, &why))?;
        if is_primary(&role) { Ok(()) } else { Err(failed(format!("{at} is no primary"))) }
    }

    /// A connection that hears what is published on a channel.
    pub(super) async fn subscribe(&self, to: &Address, user: &User, channel: &str) -> RedisResult<(PubSubSink, PubSubStream)> {
        let (info, socket) = (self.info(user).await?, self.socket(to).await?);
        let (mut sink, messages) = PubSub::new(&info, socket).await.map_err(|why| refused(to, &why))?.split();
        sink.subscribe(channel).await.map_err(|why| refused(to, &why))?;
        Ok((sink, messages))
    }

    /// With the password as it is now: Secrets are renewed.
    async fn info(&self, user: &User) -> RedisResult<RedisConnectionInfo> {
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(name) = &user.name {
            info = info.set_username(name);
        }
        if let Some(file) = &user.password {
            let unread = |why: io::Error| failed(format!("the password in {} can't be read: {why}", file.display()));
            let mut password = String::new();
            let opened = File::open(file).await.map_err(unread)?;
            opened.take(LONGEST_PASSWORD).read_to_string(&mut password).await.map_err(unread)?;
            info = info.set_password(password.trim_end_matches(['\r', '\n']));
        }
        Ok(info)
    }

    async fn socket(&self, to: &Address) -> RedisResult<Box<dyn Socket>> {
        let Address { host, port } = to;
        let no_connection = |why: &dyn fmt::Display| failed(format!("no connection to {to}: {why}"));
        let socket = timeout(STEP, TcpStream::connect((&**host, *port))).await;
        let socket = socket.map_err(|_| no_connection(&"no answer in time"))?.map_err(|why| no_connection(&why))?;
        socket.set_nodelay(true)?;
        let Some(settings) = self.tls.clone() else { return Ok(Box::new(socket)) };
        let name = settings.server_name.clone().unwrap_or_else(|| host.to_string());
        let name = ServerName::try_from(name)
            .map_err(|_| failed(format!("{host} can't be the name of a certificate: write redis.tls.serverName")))?;
        // With the files as they are now, which takes the disk a while.
        let secrets = self.secrets.clone();
        let config = spawn_blocking(move || tls::client_config(&settings, &secrets)).await.map_err(io::Error::other)?;
        let config = config.map_err(|why| failed(format!("redis.tls: {why}")))?;
        let no_tls = |why: &dyn fmt::Display| failed(format!("TLS with {to} failed: {why}"));
        let shaken = timeout(STEP, TlsConnector::from(config).connect(name, socket)).await;
        let shaken = shaken.map_err(|_| no_tls(&"no answer in time, as from a port that is not for TLS"))?;
        Ok(Box::new(shaken.map_err(|why| no_tls(&why))?))
    }
}

/// Says who it was.
fn refused(by: &Address, why: &redis::RedisError) -> redis::RedisError {
    failed(format!("{by}: {why}"))
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

    /// Whether it is the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
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
