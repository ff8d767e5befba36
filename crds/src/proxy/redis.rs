//! The field `redis`: the server through which the pods of a proxy share what they must agree upon.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{FILE, SecretKeys, SecretRef};
use crate::{
    check::{ENDPOINT_PATTERN, check_endpoint},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const SECRET_OR_FILE: Rule = Rule::new(
    "has(self.secretRef) != has(self.passwordFile)",
    "a password comes from either secretRef, in a pod, or passwordFile, standalone",
);

/// The Redis (6.2 or newer) that the pods share.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// How its servers stand to each other.
    #[serde(default)]
    pub mode: RedisMode,
    /// Where it is, such as `redis.shop.svc:6379`. Without a port, 6379.
    #[schemars(
        length(min = 1, max = 1),
        inner(length(min = 1, max = 261), regex(pattern = ENDPOINT_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub endpoints: Vec<String>,
    /// How long a command may take for which a request waits; then the request goes on without Redis. 1ms to 10s. Default 20ms.
    #[serde(default = "default_command_timeout")]
    pub command_timeout: Duration,
    /// What it asks for. None: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RedisCredentials>,
}

/// How the servers of a Redis stand to each other.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RedisMode {
    /// There is one, behind one address.
    #[default]
    Single,
}

/// A user of Redis. The password is read anew for each connection.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [SECRET_OR_FILE]))]
#[serde(rename_all = "camelCase")]
pub struct RedisCredentials {
    /// Name of the user (ACL). None: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[^\\x00-\\x20]+$"))]
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
        if let Some(credentials) = &self.credentials {
            let holds = credentials.secret_ref.is_some() != credentials.password_file.is_some();
            SECRET_OR_FILE.check(holds, &at.field("credentials"), problems);
        }
    }

    pub(super) fn secret(&self) -> Option<(&SecretRef, SecretKeys)> {
        let secret = self.credentials.as_ref()?.secret_ref.as_ref()?;
        Some((secret, SecretKeys::Password))
    }
}
