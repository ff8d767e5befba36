//! The requests that an API server was sent, as its audit log has them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;

/// Everything, without bodies, once it is answered.
const POLICY: &str =
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, Panic]\nrules: [{level: Metadata}]\n";

/// A request that was answered; a watch is there twice, when it begins and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Noted {
    /// `ResponseStarted` for the beginning of a watch, else `ResponseComplete`.
    pub stage: String,
    /// `list`, `watch`, `patch` and so on.
    pub verb: String,
    /// Who asked: the impersonated user, where there is one.
    #[serde(default)]
    pub impersonated_user: User,
    /// When the answer began or was complete.
    pub stage_timestamp: MicroTime,
    /// What was asked for.
    #[serde(default)]
    pub object_ref: Object,
    /// What was answered.
    #[serde(default)]
    pub response_status: Status,
}

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct User {
    /// Name of the user.
    #[serde(default)]
    pub username: String,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Object {
    /// `pods`, `leases` and so on.
    pub resource: String,
    /// `status` and so on.
    pub subresource: String,
    /// The object's name.
    pub name: String,
}

/// What was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
}

impl Noted {
    /// Seconds since 1970 when the answer began or was complete.
    pub fn seconds(&self) -> f64 {
        self.stage_timestamp.0.as_microsecond() as f64 / 1e6
    }

    /// Whether it asked for a change.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// Whether it was answered with success.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.response_status.code)
    }
}

pub(super) fn arguments(folder: &Path) -> anyhow::Result<[String; 2]> {
    let policy = folder.join("audit.yaml");
    fs::write(&policy, POLICY).with_context(|| format!("could not write {}", policy.display()))?;
    Ok([format!("--audit-policy-file={}", policy.display()), format!("--audit-log-path={}", log(folder).display())])
}

pub(super) fn read(folder: &Path) -> anyhow::Result<Vec<Noted>> {
    let text = fs::read_to_string(log(folder)).with_context(|| format!("could not read {}", log(folder).display()))?;
    // A server that was killed may have left half a line.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn log(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}
