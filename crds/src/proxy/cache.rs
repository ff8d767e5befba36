//! The field `cache`: where a pod keeps answers. Which answers, and for how long, is the say of the policies' sections `cache`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    problems::{FieldPath, Problems},
    scalar::Size,
};

/// The store of a pod's cached answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStore {
    /// What is kept in the sidecar's memory.
    #[serde(default)]
    pub memory: CacheMemory,
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
    }
}
