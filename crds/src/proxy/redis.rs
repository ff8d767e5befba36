//! The field `redis`: the server through which the pods of a proxy share what they must agree upon.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{FILE, SecretKeys, SecretRef, UpstreamTls};
use crate::{
    check::{ENDPOINT_PATTERN, check_endpoint},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

/// Pattern of a name in Redis.
const WORD: &str = "^[^\\x00-\\x20]+$";

const SECRET_OR_FILE: Rule = Rule::new(
    "has(self.secretRef) != has(self.passwordFile)",
    "a password comes from either secretRef, in a pod, or passwordFile, standalone",
);

const ONE_OF_SINGLE: Rule = Rule::new(
    "has(self.mode) && self.mode != 'Single' || size(self.endpoints) == 1",
    "mode Single has one endpoint; more of them are the sentinels of mode Sentinel, or the seeds of mode Cluster",
);
const NAME_FOR_SENTINELS: Rule = Rule::new(
    "has(self.sentinel) == (has(self.mode) && self.mode == 'Sentinel')",
    "mode Sentinel needs sentinel.masterName, and no other mode has sentinel",
);
const NOTHING_IN_CLEAR: Rule = Rule::new(
    "!has(self.mode) || self.mode != 'Disabled' || !has(self.ca) && !has(self.clientCertificate) && !has(self.serverName)",
    "mode Disabled speaks no TLS: leave out ca, clientCertificate and serverName, or mode",
);

/// The Redis (6.2 or newer) that the pods share.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [ONE_OF_SINGLE, NAME_FOR_SENTINELS]))]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// How its servers stand to each other.
    #[serde(default)]
    pub mode: RedisMode,
    /// Where it is, such as `redis.shop.svc:6379`; without a port, 6379. Of mode Sentinel the sentinels; without a port, 26379. Of mode
    /// Cluster some of its nodes, which tell the others.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 261), regex(pattern = ENDPOINT_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub endpoints: Vec<String>,
    /// How long a command may take for which a request waits; then the request goes on without Redis. 1ms to 10s. Default 20ms.
    #[serde(default = "default_command_timeout")]
    pub command_timeout: Duration,
    /// How many replicas must have what a pod says of purges for it to count, so that a primary that was replaced and has not heard of it
    /// neither completes a purge nor says that there was none. As many as each primary has; with fewer of them pods are cut off. 0: any.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16))]
    pub min_replicas: i32,
    /// What it asks for. None: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RedisCredentials>,
    /// What the sentinels of mode Sentinel know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<RedisSentinel>,
    /// TLS with all of its servers, sentinels too. None: in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// How the servers of a Redis stand to each other.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RedisMode {
    /// There is one, behind one address.
    #[default]
    Single,
    /// There is one primary, and sentinels say which.
    Sentinel,
    /// There are several primaries, each with a part of the slots (Redis Cluster).
    Cluster,
}

/// What is asked of sentinels.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisSentinel {
    /// The name by which they know the primary: `sentinel monitor NAME ...` in their configuration.
    #[schemars(length(min = 1, max = 253), regex(pattern = WORD))]
    pub master_name: String,
    /// What they ask for themselves. None: nothing. What the servers ask for is in `credentials` of `redis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RedisCredentials>,
}

/// TLS with the servers of a Redis. A certificate is always verified; sentinels and nodes of a cluster may tell IP addresses, which it seldom
/// has, and then needs `serverName`. All files are read anew for each connection.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [NOTHING_IN_CLEAR]))]
#[serde(rename_all = "camelCase")]
pub struct RedisTls {
    /// Whether it is spoken.
    #[serde(default)]
    pub mode: RedisTlsMode,
    /// What is asked for, believed and shown, beside `mode`.
    #[serde(flatten)]
    pub settings: UpstreamTls,
}

/// Whether TLS is spoken with a Redis.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RedisTlsMode {
    /// It is.
    #[default]
    Enabled,
    /// It is not, as without `tls`.
    Disabled,
}

/// A user of Redis. The password is read anew for each connection.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [SECRET_OR_FILE]))]
#[serde(rename_all = "camelCase")]
pub struct RedisCredentials {
    /// Name of the user (ACL). None: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = WORD))]
    pub username: Option<String>,
    /// In a pod: a Secret of the pod's namespace with the key `password`. Admission mounts it, so it holds for pods that are created
    /// from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Standalone: a file with the password; a line feed at its end does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub password_file: Option<String>,
}

fn default_command_timeout() -> Duration {
    Duration::from_millis(20)
}

impl Redis {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            check_endpoint(endpoint, &at.field("endpoints").index(index), problems);
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        if !(least..=most).contains(&self.command_timeout) {
            let message = format!("{} is no time for a command: write {least} to {most}", self.command_timeout);
            problems.add(&at.field("commandTimeout"), message);
        }
        let Self { mode, endpoints, credentials, sentinel, tls, .. } = self;
        ONE_OF_SINGLE.check(*mode != RedisMode::Single || endpoints.len() == 1, at, problems);
        NAME_FOR_SENTINELS.check(sentinel.is_some() == (*mode == RedisMode::Sentinel), at, problems);
        if let Some(credentials) = credentials {
            credentials.check(&at.field("credentials"), problems);
        }
        if let Some(credentials) = sentinel.as_ref().and_then(|sentinel| sentinel.credentials.as_ref()) {
            credentials.check(&at.field("sentinel").field("credentials"), problems);
        }
        if let Some(tls) = tls {
            tls.check(&at.field("tls"), problems);
        }
    }

    /// The Secrets that it names.
    pub(super) fn secrets(&self) -> impl Iterator<Item = (&SecretRef, SecretKeys)> {
        let users = self.credentials.iter().chain(self.sentinel.iter().filter_map(|sentinel| sentinel.credentials.as_ref()));
        let passwords = users.filter_map(|user| Some((user.secret_ref.as_ref()?, SecretKeys::Password)));
        passwords.chain(self.tls.iter().flat_map(|tls| tls.settings.secrets()))
    }
}

impl RedisCredentials {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        SECRET_OR_FILE.check(self.secret_ref.is_some() != self.password_file.is_some(), at, problems);
    }
}

impl RedisTls {
    /// As that with an upstream; None if it is not spoken.
    pub fn settings(&self) -> Option<&UpstreamTls> {
        (self.mode == RedisTlsMode::Enabled).then_some(&self.settings)
    }

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        NOTHING_IN_CLEAR.check(self.settings().is_some() || self.settings == UpstreamTls::default(), at, problems);
        if let Some(settings) = self.settings() {
            settings.check(at, problems);
        }
    }
}
