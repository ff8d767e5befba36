//! Where a Redis is, and who asks.

use std::{fmt, path::PathBuf, sync::Arc};

use crds::{
    check::parse_endpoint,
    proxy::{RedisCredentials, RedisMode, RedisTls, UpstreamTls},
};

use crate::tls::Secrets;

/// Unless an endpoint says otherwise.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A Redis, as a FetchrProxy says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    pub(super) mode: Mode,
    pub(super) user: User,
    pub(super) tls: Option<UpstreamTls>,
    pub(super) secrets: Secrets,
}

/// How its servers stand to each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    Single(Address),
    Sentinel { sentinels: Vec<Address>, name: String, user: User },
    Cluster { seeds: Vec<Address> },
}

/// Whom a connection is made as.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct User {
    pub(super) name: Option<String>,
    /// File of its password.
    pub(super) password: Option<PathBuf>,
}

/// Host and port of a server.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Address {
    /// A name or an IP address; IPv6 without brackets.
    pub(super) host: Arc<str>,
    pub(super) port: u16,
}

impl Settings {
    /// As a FetchrProxy says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(redis: &crds::proxy::Redis, secrets: &Secrets) -> Result<Self, String> {
        if redis.endpoints.is_empty() {
            return Err("redis.endpoints is empty: it says where the servers are".to_owned());
        }
        let all = |port| redis.endpoints.iter().map(|endpoint| Address::parse(endpoint, port)).collect::<Result<Vec<_>, _>>();
        let mode = match redis.mode {
            RedisMode::Single => Mode::Single(all(PORT)?.into_iter().next().ok_or("redis.endpoints is empty")?),
            RedisMode::Cluster => Mode::Cluster { seeds: all(PORT)? },
            RedisMode::Sentinel => {
                let sentinel = redis.sentinel.as_ref().ok_or("redis.sentinel is missing: it says masterName")?;
                let user = User::new(sentinel.credentials.as_ref(), secrets)?;
                Mode::Sentinel { sentinels: all(SENTINEL_PORT)?, name: sentinel.master_name.clone(), user }
            }
        };
        let user = User::new(redis.credentials.as_ref(), secrets)?;
        let tls = redis.tls.as_ref().and_then(RedisTls::settings).cloned();
        Ok(Self { mode, user, tls, secrets: secrets.clone() })
    }
}

impl User {
    fn new(credentials: Option<&RedisCredentials>, secrets: &Secrets) -> Result<Self, String> {
        let password = match credentials.and_then(|credentials| credentials.secret_ref.as_ref()) {
            Some(secret) => Some(secrets.file(&secret.name, "password").map_err(|error| error.to_string())?),
            None => credentials.and_then(|credentials| credentials.password_file.as_ref()).map(PathBuf::from),
        };
        Ok(Self { name: credentials.and_then(|credentials| credentials.username.clone()), password })
    }
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    fn parse(endpoint: &str, port: u16) -> Result<Self, String> {
        let (host, port) = parse_endpoint(endpoint, port)?;
        Ok(Self::new(&host, port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
