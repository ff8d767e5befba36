//! The sections that one rule wins whole: which rules have them, and who has won them.

use crds::policy::{Cache, CircuitBreaker, Failover, Headers, LoadBalancing, Mode, PolicyKind, PolicyRule, Retry, Timeouts};

/// A shaping section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Headers,
    Cache,
    Timeouts,
    Retry,
    LoadBalancing,
    CircuitBreaker,
    Failover,
}

impl Kind {
    /// All of them, in the order in which an explanation names them.
    pub(super) const ALL: [Self; 7] =
        [Self::Headers, Self::Cache, Self::Timeouts, Self::Retry, Self::LoadBalancing, Self::CircuitBreaker, Self::Failover];

    /// Name of its field.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Headers => Headers::NAME,
            Self::Cache => Cache::NAME,
            Self::Timeouts => Timeouts::NAME,
            Self::Retry => Retry::NAME,
            Self::LoadBalancing => LoadBalancing::NAME,
            Self::CircuitBreaker => CircuitBreaker::NAME,
            Self::Failover => Failover::NAME,
        }
    }

    /// The mode of a rule's section; none if the rule has no such section.
    fn mode(self, rule: &PolicyRule) -> Option<Mode> {
        match self {
            Self::Headers => rule.headers.as_ref().map(|section| section.mode),
            Self::Cache => rule.cache.as_ref().map(|section| section.mode),
            Self::Timeouts => rule.timeouts.as_ref().map(|section| section.mode),
            Self::Retry => rule.retry.as_ref().map(|section| section.mode),
            Self::LoadBalancing => rule.load_balancing.as_ref().map(|section| section.mode),
            Self::CircuitBreaker => rule.circuit_breaker.as_ref().map(|section| section.mode),
            Self::Failover => rule.failover.as_ref().map(|section| section.mode),
        }
    }
}

/// The shaping sections of a rule: a bit for each, and their modes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kinds {
    bits: u8,
    modes: [Mode; Kind::ALL.len()],
}

impl Kinds {
    /// Sections about how an upstream is asked.
    pub(super) const TRIES: u8 =
        1 << Kind::Retry as u8 | 1 << Kind::LoadBalancing as u8 | 1 << Kind::CircuitBreaker as u8 | 1 << Kind::Failover as u8;

    pub(super) fn of(rule: &PolicyRule) -> Self {
        let mut kinds = Self::default();
        for kind in Kind::ALL {
            if let Some(mode) = kind.mode(rule) {
                kinds.bits |= 1 << kind as u8;
                kinds.modes[kind as usize] = mode;
            }
        }
        kinds
    }

    /// The mode of a section that the rule has.
    pub(super) fn mode(self, kind: Kind) -> Option<Mode> {
        (self.bits & 1 << kind as u8 != 0).then(|| self.modes[kind as usize])
    }
}

/// Which rules have won which sections of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Won {
    bits: u8,
    rules: [u32; Kind::ALL.len()],
}

impl Won {
    /// Whether a rule has a section that nobody has won yet.
    pub(super) fn lacks(&self, kinds: Kinds) -> bool {
        kinds.bits & !self.bits != 0
    }

    /// Gives a rule the sections that nobody has won yet.
    pub(super) fn take(&mut self, kinds: Kinds, rule: u32) {
        let mut new = kinds.bits & !self.bits;
        self.bits |= new;
        while new != 0 {
            self.rules[new.trailing_zeros() as usize] = rule;
            new &= new - 1;
        }
    }

    /// Whether any of the sections of a set of bits was won.
    pub(super) fn has(&self, bits: u8) -> bool {
        self.bits & bits != 0
    }

    /// The rule that has won a section.
    pub(super) fn rule(&self, kind: Kind) -> Option<u32> {
        (self.bits & 1 << kind as u8 != 0).then(|| self.rules[kind as usize])
    }
}
