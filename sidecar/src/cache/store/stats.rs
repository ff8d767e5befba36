//! What the store counts.

/// Why an entry left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Room was needed for another.
    Space,
    /// The store was made smaller.
    Pressure,
    /// Another answer came under its key.
    Replaced,
    /// It was the oldest of too many variants of its primary key.
    Variants,
    /// Somebody asked for it by key, or for all: purge, invalidation.
    Removed,
    /// It was too old for any use.
    Expired,
}

impl Gone {
    /// All of them, in the order of [`Stats::gone`].
    pub(crate) const ALL: [Self; 6] = [Self::Space, Self::Pressure, Self::Replaced, Self::Variants, Self::Removed, Self::Expired];

    /// As a label of metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Space => "space",
            Self::Pressure => "pressure",
            Self::Replaced => "replaced",
            Self::Variants => "variants",
            Self::Removed => "removed",
            Self::Expired => "expired",
        }
    }
}

/// Why an object wasn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It weighs more than a quarter of the store.
    #[error("the object is too large for the store")]
    TooLarge,
    /// So many small entries would have to go for it that this call stopped half way. A later one finds more room.
    #[error("the store couldn't make room at once")]
    Crowded,
}

/// Figures of the store. Sums over shards read one after another, so they may differ by what happened meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Objects that are there, without the markers of variants.
    pub objects: u64,
    /// Primary keys with variants.
    pub markers: u64,
    /// Bytes of all entries with what the store itself needs for them.
    pub bytes: u64,
    /// The most that they may take.
    pub capacity: u64,
    /// Lookups that found something, a marker included.
    pub hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Objects that came in.
    pub inserted: u64,
    /// Entries that left, by [`Gone`].
    pub gone: [u64; Gone::ALL.len()],
    /// Objects not taken since they are too large.
    pub too_large: u64,
    /// Objects not taken since room would have taken too long.
    pub crowded: u64,
}

impl Stats {
    pub(super) const fn none() -> Self {
        Self {
            objects: 0,
            markers: 0,
            bytes: 0,
            capacity: 0,
            hits: 0,
            misses: 0,
            inserted: 0,
            gone: [0; Gone::ALL.len()],
            too_large: 0,
            crowded: 0,
        }
    }

    /// Entries that left for that reason.
    pub(crate) fn gone(&self, why: Gone) -> u64 {
        self.gone[why as usize]
    }
}
