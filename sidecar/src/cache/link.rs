//! A connection to the Redis that the pods share. It is made when it is needed, and anew when it broke.

use std::path::PathBuf;

use crds::check::parse_endpoint;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{fs::File, io::AsyncReadExt};

use crate::tls::Secrets;

/// Unless an endpoint says otherwise.
const PORT: u16 = 6379;
/// Bytes of a password.
const LONGEST_PASSWORD: u64 = 4096;

/// Where it is, and who asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    username: Option<String>,
    password: Option<PathBuf>,
}

impl Endpoint {
    /// As a FetchrProxy says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(settings: &crds::proxy::Redis, secrets: &Secrets) -> Result<Self, String> {
        let endpoint = settings.endpoints.first().ok_or("redis.endpoints is empty")?;
        let (host, port) = parse_endpoint(endpoint, PORT)?;
        let credentials = settings.credentials.as_ref();
        let password = match credentials.and_then(|credentials| credentials.secret_ref.as_ref()) {
            Some(secret) => Some(secrets.file(&secret.name, "password").map_err(|error| error.to_string())?),
            None => credentials.and_then(|credentials| credentials.password_file.as_ref()).map(PathBuf::from),
        };
        Ok(Self { host, port, username: credentials.and_then(|credentials| credentials.username.clone()), password })
    }

    /// With the password as it is now: Secrets are renewed.
    pub(crate) async fn client(&self) -> RedisResult<Client> {
        let mut info = RedisConnectionInfo::default();
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(file) = &self.password {
            let unread = |why: std::io::Error| {
                let what = format!("{}: {why}", file.display());
                redis::RedisError::from((ErrorKind::InvalidClientConfig, "the password can't be read", what))
            };
            let mut password = String::new();
            let opened = File::open(file).await.map_err(unread)?;
            opened.take(LONGEST_PASSWORD).read_to_string(&mut password).await.map_err(unread)?;
            info = info.set_password(password.trim_end_matches(['\r', '\n']));
        }
        let address = ConnectionAddr::Tcp(self.host.clone(), self.port);
        Client::open(address.into_connection_info()?.set_redis_settings(info))
    }
}

/// A connection to an endpoint. Who asks bounds how long that may take.
#[derive(Debug)]
pub(crate) struct Link {
    endpoint: Endpoint,
    connection: Option<MultiplexedConnection>,
}

impl Link {
    /// Connects to nothing yet.
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, connection: None }
    }

    /// The connection, for one exchange. If that is given up, for it takes too long, the next one gets another connection: who does not
    /// answer may have gone without a word.
    async fn take(&mut self) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        self.endpoint.client().await?.get_multiplexed_async_connection_with_config(&config).await
    }

    fn put<T>(&mut self, connection: MultiplexedConnection, answer: &RedisResult<T>) {
        self.connection = answer.as_ref().err().is_none_or(|error| !error.is_unrecoverable_error()).then_some(connection);
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut connection = self.take().await?;
            let answer = connection.req_packed_command(cmd).await;
            self.put(connection, &answer);
            answer
        })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut connection = self.take().await?;
            let answer = connection.req_packed_commands(pipeline, offset, count).await;
            self.put(connection, &answer);
            answer
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
