//! The field `cache`: where a pod keeps answers. Which answers, and for how long, is the say of the policies' sections `cache`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::FILE;
use crate::{
    problems::{FieldPath, Problems},
    scalar::{Duration, Size},
};

/// The store of a pod's cached answers.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStore {
    /// What is kept in the sidecar's memory.
    #[serde(default)]
    pub memory: CacheMemory,
    /// What is kept on disk, too, and is there again after a restart of the container. None: nothing. In builds with the feature
    /// `disk-cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<CacheDisk>,
    /// What pods share through `redis`. None: each has what it fetched itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<CacheShared>,
    /// What purges over all pods promise. Without `redis`, a purge is of one pod.
    #[serde(default)]
    pub purge: CachePurge,
    /// What outlives the pods, in `archive`. None: a pod begins with an empty cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<CachePersistence>,
}

/// Snapshots of the answers that are asked for most often, one for all pods of a workload: who begins takes them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CachePersistence {
    /// How old the snapshot may be before some pod writes another one; 1s to 24h. Default 10m.
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// Bytes of memory of the answers in a snapshot, and bytes that a pod reads, at most 1Gi. Default 32Mi.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: Size,
    /// How long a pod that begins may take to read it, beside its traffic; 1s to 1h. Default 1m.
    #[serde(default = "default_load_timeout")]
    pub load_timeout: Duration,
}

/// Answers on disk, which are looked at where memory has nothing.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheDisk {
    /// Bytes on disk, 16Mi to 1024Gi; one answer may take an eighth of them, 16Mi at most. The oldest make room for new ones. In a pod,
    /// admission adds a volume (`emptyDir`) for them, so it holds for pods that are created from then on.
    pub size: Size,
    /// Standalone: a folder for them alone. None: `cache` in the state folder. Pods have their volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub path: Option<String>,
}

impl CacheDisk {
    /// What the volume of a pod may take: filesystems take a little more than files are long.
    pub fn volume(&self) -> Size {
        Size::kib((self.size.0 + self.size.0 / 8).div_ceil(1 << 10))
    }
}

/// Answers in Redis, which a pod looks at before it asks the origin.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheShared {
    /// The longest body that is kept there, at most 16Mi. Default 256Ki.
    #[serde(default = "default_max_object")]
    pub max_object: Size,
}

/// What purges over all pods promise.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CachePurge {
    /// How long a pod that Redis has lost sight of counts as answering from what was purged, at most: a purge waits so long for
    /// it. 100ms to 1h. Default 10s.
    #[serde(default = "default_max_lag")]
    pub max_lag: Duration,
    /// What a pod does that has not heard from Redis for that long.
    #[serde(default)]
    pub when_cut_off: WhenCutOff,
}

/// What a pod does with its answers while it can't know what was purged.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum WhenCutOff {
    /// It goes on: an outage of Redis changes nothing for clients, and purges promise nothing for pods that are cut off.
    #[default]
    Serve,
    /// It asks the origin whether an answer is right before it gives it: no answer comes after a hard purge that took it.
    Revalidate,
}

/// Answers in memory. Where memory is short (`resources.limits.memory`), they are the first to go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheMemory {
    /// Bytes of all answers with what is needed to find them, at most 64Gi; one answer may take a quarter of them. Nothing is taken before it
    /// is needed. 0: nothing is kept.
    #[serde(default = "default_size")]
    pub size: Size,
    /// Which answers make room for new ones.
    #[serde(default)]
    pub eviction: Eviction,
}

/// Which answers make room for new ones. A change of it begins with an empty store.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Eviction {
    /// Those that came and were not asked for again: one round of requests for many answers, each once, drives nothing useful out.
    #[default]
    S3FIFO,
    /// Those that were not asked for since the hand passed them last: a little simpler, as good where popularity hardly changes.
    SIEVE,
}

fn default_max_object() -> Size {
    Size::kib(256)
}

fn default_max_lag() -> Duration {
    Duration::from_secs(10)
}

fn default_interval() -> Duration {
    Duration::from_secs(600)
}

fn default_max_bytes() -> Size {
    Size::kib(32 << 10)
}

fn default_load_timeout() -> Duration {
    Duration::from_secs(60)
}

impl Default for CachePersistence {
    fn default() -> Self {
        Self { interval: default_interval(), max_bytes: default_max_bytes(), load_timeout: default_load_timeout() }
    }
}

impl Default for CachePurge {
    fn default() -> Self {
        Self { max_lag: default_max_lag(), when_cut_off: WhenCutOff::default() }
    }
}

fn default_size() -> Size {
    Size::kib(64 << 10)
}

impl Default for CacheMemory {
    fn default() -> Self {
        Self { size: default_size(), eviction: Eviction::default() }
    }
}

impl CacheStore {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let most = Size::kib(64 << 20);
        if self.memory.size > most {
            problems.add(&at.field("memory").field("size"), format!("{} is too much: write {most} or less", self.memory.size));
        }
        let (least, most) = (Size::kib(16 << 10), Size::kib(1 << 30));
        if let Some(disk) = self.disk.as_ref().filter(|disk| !(least..=most).contains(&disk.size)) {
            let message = format!("{} is no size for a cache on disk: write {least} to {most}", disk.size);
            problems.add(&at.field("disk").field("size"), message);
        }
        let most = Size::kib(16 << 10);
        if let Some(shared) = self.shared.filter(|shared| shared.max_object > most) {
            let message = format!("{} is too much: write {most} or less", shared.max_object);
            problems.add(&at.field("shared").field("maxObject"), message);
        }
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
        if !(least..=most).contains(&self.purge.max_lag) {
            let message = format!("{} is no lag to keep: write {least} to {most}", self.purge.max_lag);
            problems.add(&at.field("purge").field("maxLag"), message);
        }
        if let Some(persistence) = &self.persistence {
            persistence.check(&at.field("persistence"), problems);
        }
    }
}

impl CachePersistence {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let bounded = |value: Duration, field: &str, what: &str, most: Duration, problems: &mut Problems| {
            let least = Duration::from_secs(1);
            if !(least..=most).contains(&value) {
                problems.add(&at.field(field), format!("{value} is no {what}: write {least} to {most}"));
            }
        };
        bounded(self.interval, "interval", "interval between snapshots", Duration::from_secs(24 * 3600), problems);
        bounded(self.load_timeout, "loadTimeout", "time to read a snapshot", Duration::from_secs(3600), problems);
        let most = Size::kib(1 << 20);
        if self.max_bytes > most {
            problems.add(&at.field("maxBytes"), format!("{} is too much: write {most} or less", self.max_bytes));
        }
    }
}
